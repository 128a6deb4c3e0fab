"""Progress of long computations, reported through a callback, so that the library does not depend on a terminal.

`progress("encode documents", 5000)` starts a stage of 5000 items and returns a function. That function is called with
the number of items finished since its last call. A stage of 0 items is one whose number is not known before its end,
such as the texts of a file: a call with 0 ends it.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[int], None]
Progress = Callable[[str, int], Advance]

P = ParamSpec("P")
R = TypeVar("R")

_logger = logging.getLogger("hardneg")
_HEARTBEAT = 30.0  # seconds without a line after which one says how far a stage is


def silent(stage: str, total: int) -> Advance:
    """A `Progress` callback that ignores all reports."""
    return lambda count: None


def with_progress(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function take `progress=True` for bars, and `progress=False` for silence, besides a callback.

    Without bars, the stages are logged: `logging.basicConfig(level="INFO")` shows when each is finished.
    """

    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapped(*args: P.args, **named: P.kwargs) -> R:
        bound = signature.bind(*args, **named)
        given: Any = bound.arguments.get("progress", False)
        with shown() if given is True else nullcontext(given if callable(given) else logged()) as callback:
            bound.arguments["progress"] = callback
            return function(*bound.args, **bound.kwargs)

    return wrapped


@contextmanager
def shown(console: Console | None = None, write: Callable[[str], None] | None = None) -> Iterator[Progress]:
    """A callback that shows progress on stderr: bars on a terminal and in a notebook, lines elsewhere.

    Args:
        console: where the bars are drawn; None: on stderr, or in the notebook.
        write: writes a line where there are no bars.
    """
    from rich.console import Console as Terminal
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    if console is None:
        console = Terminal() if _in_notebook() else Terminal(stderr=True)
    if not console.is_terminal and not console.is_jupyter:
        yield lines(write or (lambda line: print(line, file=sys.stderr, flush=True)))
        return
    columns = (
        TextColumn("{task.description:<18}", markup=False), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False), TimeRemainingColumn(),
    )  # fmt: skip
    with Bars(*columns, console=console) as bars:

        def start(stage: str, total: int) -> Advance:
            task = bars.add_task(stage, total=total or None, rate="")
            done = 0

            def advance(count: int) -> None:
                nonlocal done
                done += count
                bars.advance(task, count)
                if not total and not count:
                    bars.update(task, total=done)
                speed = bars.tasks[bars.task_ids.index(task)].speed or 0
                bars.update(task, rate=_rate(speed) if total != 1 else "")

            return advance

        yield start


def _rate(speed: float) -> str:
    """How many a second, or how many seconds each where that says more; empty where it is not known yet.

    >>> _rate(2830.4), _rate(1.4), _rate(0.3125), _rate(0.01), _rate(0)
    ('2,830/s', '1.4/s', '3.2 s each', '100 s each', '')
    """
    if speed <= 0:
        return ""
    if speed < 1:
        return f"{1 / speed:.1f} s each" if speed > 0.1 else f"{1 / speed:,.0f} s each"
    return f"{speed:.1f}/s" if speed < 9.95 else f"{speed:,.0f}/s"


def logged() -> Progress:
    """A callback that logs the stages as `lines` writes them, at the level INFO; it ignores them where nobody listens."""
    return lines(_logger.info) if _logger.isEnabledFor(logging.INFO) else silent


def _in_notebook() -> bool:
    """Whether this is a notebook that can show bars: rich needs ipywidgets there."""
    return "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets") is not None


def lines(write: Callable[[str], None], every: float = _HEARTBEAT) -> Progress:
    """A callback that writes a line when a stage is finished, and every 30 seconds how far it is.

    Args:
        write: writes one line.
        every: seconds between two lines of a stage.

    >>> advance = lines(print)("open", 1)
    >>> advance(1)
    open: 1 in 0.0 s
    """

    def start(stage: str, total: int) -> Advance:
        started = last = time.perf_counter()
        done = 0

        def advance(count: int) -> None:
            nonlocal done, last
            before, done = done, done + count
            now = time.perf_counter()
            rate = f", {_rate(done / max(now - started, 1e-9))}"
            if before < total <= done or not (total or count):
                write(f"{stage}: {done:,} in {now - started:.1f} s{rate if done > 1 else ''}")
            elif (done < total or not total) and now - last >= every:
                left = f", about {(total - done) * (now - started) / max(done, 1):,.0f} s left" if total else ""
                write(
                    f"{stage}: {done:,}{f' of {total:,}' if total else ''} in {now - started:.0f} s{rate if done else ''}{left}"
                )
                last = now

        return advance

    return start
