"""A person judges in the terminal: keys on a real pseudo-terminal, answers in the file after each of them."""

from __future__ import annotations

import csv
import os
import pty
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import hardneg, write_jsonl


class Keys:
    """A terminal on which keys can be typed."""

    def __init__(self) -> None:
        self.leader, self.follower = pty.openpty()
        self.stream = os.fdopen(self.follower, "r")

    def type(self, *keys: str) -> None:
        """Type as soon as the terminal hands out single keys; each of `keys` arrives in one piece, such as the code of an arrow."""

        def patiently() -> None:
            while termios.tcgetattr(self.leader)[3] & termios.ICANON:
                time.sleep(0.01)
            for key in keys:
                os.write(self.leader, key.encode())
                time.sleep(0.05)

        threading.Thread(target=patiently, daemon=True).start()


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[Keys]:
    made = Keys()
    yield made
    made.stream.close()
    os.close(made.leader)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rows = [{"query": f"what is {i}?", "positive": f"answer {i}" + " very long" * 300 * (i == 3)} for i in range(40)]
    write_jsonl(tmp_path / "p.jsonl", rows)
    done = hardneg("mine", tmp_path / "p.jsonl", "--out", tmp_path / "run", "--depth", "10", "--negatives", "3")
    assert done.returncode == 0, done.stderr
    return tmp_path / "run"


def typed(keys: Keys, what: list[str], *words: str | Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a command prints while these keys are typed."""
    import contextlib
    import io

    from hardneg_cli.main import main

    out = io.StringIO()
    monkeypatch.setattr(sys, "stdin", keys.stream)
    keys.type(*what)
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    assert ended.value.code == 0
    return out.getvalue()


def answers(path: Path) -> list[str]:
    with open(path, newline="") as f:
        return [row["relevant"] for row in csv.DictReader(f)]


def test_a_person_judges_stops_and_goes_on(
    run: Path, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("judge", run, "--out", tmp_path / "f.csv", "--sample", "8", "--judge", "person")
    said = typed(keys, ["10xu1", "\x1b[1~", "smq"], *command, monkeypatch=monkeypatch)
    # Relevant, not, an unknown key, back, relevant after all, Home, later, all of the text, stop.
    assert answers(tmp_path / "f.csv") == ["1", "1", *[""] * 6]
    assert "0 of 8 judged" in said
    assert "2 pairs judged now, 6 left" in said
    assert "--judge person" in said.rsplit("to go on:", 1)[1]
    for secret in ("score", "hold-out", "0."):
        assert secret not in said.split("2 pairs judged")[0].split("for the guarantee", 1)[1]
    said = typed(keys, ["000000"], *command, monkeypatch=monkeypatch)
    assert answers(tmp_path / "f.csv") == ["1", "1", *["0"] * 6]
    assert "6 pairs judged now, 0 left" in said
    assert f"next: hardneg calibrate {run} {tmp_path / 'f.csv'}" in said
    assert "write 1" not in said.rsplit("next:", 1)[1]


def test_the_next_command_of_a_judge_keeps_what_was_chosen(
    run: Path, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hardneg("calibrate", run).returncode == 0
    posterior, out = f"{run}/posterior.json", tmp_path / "f.csv"
    done = hardneg("judge", run, "--out", out, "--sample", "8", "--posterior", posterior, "--alpha", "0.1")
    assert f"hardneg calibrate {run} {out} --alpha 0.1 --posterior {posterior}" in done.stdout, done.stderr
    said = typed(
        keys,
        ["0q"],
        "judge",
        run,
        "--out",
        tmp_path / "n.csv",
        "--of",
        "negatives",
        "--judge",
        "person",
        monkeypatch=monkeypatch,
    )
    assert said.rstrip().endswith(
        f"to go on: hardneg judge {run} --out {tmp_path / 'n.csv'} --judge person --of negatives"
    )


def test_a_question_steers_no_terminal_and_a_model_is_not_credited_with_an_answer(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hardneg_cli.ask import ask

    path = tmp_path / "f.csv"
    with open(path, "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["query_id", "document_id", "relevant", "query", "document", "judge", "grade", "own"])
        writer.writerow(["1", "2", "", "a \x1b[31m query", "'=1+1" + "z" * 3000, "openai:X", "", "kept"])
        writer.writerow(["3", "4", "0", "b", "c", "openai:X", "1", "as it is"])
    monkeypatch.setattr(sys, "stdin", keys.stream)
    keys.type("m1")
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert ask(path) == (1, 0)
    first, whole = out.getvalue().split("stop")[:2]
    assert "\x1b[31m query" not in out.getvalue()
    assert "1,504 characters more" in " ".join(first.split())
    assert whole.count("z") == 3000
    assert "=1+1" in first
    assert "'=1+1" not in first
    with open(path, newline="") as f:
        rows = list(csv.reader(f))
    assert rows[1] == ["1", "2", "1", "a \x1b[31m query", "'=1+1" + "z" * 3000, "", "", "kept"]
    assert rows[2] == ["3", "4", "0", "b", "c", "openai:X", "1", "as it is"]


def test_where_nobody_can_be_asked_it_is_said(run: Path, tmp_path: Path) -> None:
    done = hardneg("judge", run, "--out", tmp_path / "f.csv", "--judge", "person")
    assert done.returncode == 2
    assert "--judge person asks in a terminal, and this is none" in done.stderr
    assert not (tmp_path / "f.csv").exists()
    done = hardneg("judge", run, "--out", "-", "--judge", "person")
    assert done.returncode == 2
    assert "needs a file to keep the answers in" in done.stderr
