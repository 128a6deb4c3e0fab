"""A person judges the pairs of a file in the terminal, one key a pair. Every answer is on the disk before the next question."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.text import Text

from hardneg.errors import UsageError
from hardneg.false_negatives.judgement_file import from_cell, read_rows, write_rows
from hardneg.storage.files import is_special

from .plain import plain
from .show import _console

_MEANING = "10usmq"
_LONGEST = 1500  # characters of a text that are shown at first
_OF_MODELS = ("grade", "judge", "note")  # columns that speak of a model's answer
_KEYS = "1 relevant · 0 not relevant · s later · u undo · m all of the text · q stop"


def check_terminal(out: Path) -> None:
    """UsageError where nobody can be asked, or the answers cannot be kept."""
    if is_special(out):
        raise UsageError(f"{out}: --judge person needs a file to keep the answers in")
    if not sys.stdin.isatty():
        raise UsageError(
            "--judge person asks in a terminal, and this is none: leave it out, and fill the column 'relevant' of the file"
        )


def ask(path: Path) -> tuple[int, int]:
    """Ask for the pairs of a file that are not judged yet, until all are or the person stops.

    Scores and ranks are not shown, so that they do not sway anybody.

    Args:
        path: a file as `hardneg judge` writes it.

    Returns:
        (pairs judged now, pairs left).

    Raises:
        DataError: it is no such file.
    """
    rows = [row for _, row in read_rows(path)]
    waiting = [i for i, row in enumerate(rows) if not row["relevant"].strip()]
    done: list[int] = []
    with _keyboard() as next_key:
        _questions(path, rows, waiting, done, next_key)
    return len(done), len(waiting)


def _questions(
    path: Path, rows: list[dict[str, str]], waiting: list[int], done: list[int], next_key: Callable[[], str]
) -> None:
    """Ask for the rows at the places `waiting`, which move to `done` as they are answered."""
    whole = False
    while waiting:
        current = waiting[0]
        _pair(rows[current], len(rows) - len(waiting), len(rows), whole)
        whole = False
        key = next_key()
        if key in ("1", "0"):
            rows[current] |= {"relevant": key, **{name: "" for name in _OF_MODELS if name in rows[current]}}
            done.append(waiting.pop(0))
        elif key == "u" and done:
            waiting.insert(0, done.pop())
            rows[waiting[0]]["relevant"] = ""
        elif key == "s":
            waiting.append(waiting.pop(0))
        elif key == "m":
            whole = True
        elif key == "q":
            break
        if key in ("1", "0", "u"):
            write_rows(path, rows)


@contextmanager
def _keyboard() -> Iterator[Callable[[], str]]:
    """A function that waits for the next key that means something. What is typed ahead is kept.

    Ctrl-C, Ctrl-D and the end of the input mean 'stop': all answers are on the disk.
    """
    import termios
    import tty

    place = sys.stdin.fileno()
    before = termios.tcgetattr(place)
    waiting: list[str] = []

    def key() -> str:
        while True:
            while waiting:
                if (found := waiting.pop(0)) in _MEANING:
                    return found
            try:
                typed = os.read(place, 64)
            except (KeyboardInterrupt, OSError):
                return "q"
            if typed in (b"", b"\x04"):
                return "q"
            if not typed.startswith(b"\x1b"):  # an arrow, or Home, whose code has a 1 in it
                waiting.extend(typed.decode("utf-8", "replace").lower())

    tty.setcbreak(place, termios.TCSANOW)
    try:
        yield key
    finally:
        termios.tcsetattr(place, termios.TCSANOW, before)


def _pair(row: dict[str, str], judged: int, total: int, whole: bool) -> None:
    console = _console()
    console.rule(f"{judged:,} of {total:,} judged")
    for name, style in (("query", "bold"), ("positive", "dim"), ("document", "")):
        text = from_cell(row.get(name, ""))
        cut = len(text) > _LONGEST and not whole
        shown = plain(text[:_LONGEST] if cut else text) + (
            f" … ({len(text) - _LONGEST:,} characters more)" if cut else ""
        )
        label = "known answer" if name == "positive" else name
        console.print(Text.assemble((f"{label:<13}", "cyan"), (shown, style)))
    console.print(Text(_KEYS, "dim"))
