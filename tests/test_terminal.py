"""What the command prints: texts, ids and paths of others are shown as they are, and steer no terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hardneg_cli import show, show_diagnosis, show_posterior, train_next
from hardneg_cli.plain import json_text, plain, quoted
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.conftest import run_here, write_jsonl

# Markup that rich refuses or swallows, a smiley of rich, a colour, a link, an override of the direction, a new line.
NASTY = [
    "a[/b]",
    "[red]x",
    "[/]",
    ":smile:",
    "\x1b[31mred",
    "\x1b]8;;http://x\x1b\\link",
    "\u202eabc",
    "over\rwritten",
    "a\nb",
    "\x9b31m",
]
STEERING = "\x1b\r\u202e\x9b"


@given(st.text(alphabet=st.characters()))
def test_plain_texts_steer_nothing_and_json_stays_equal(text: str) -> None:
    assert not set(plain(text)) & {*STEERING, "\n", "\u2028", "\x07", "\x00"}
    written = json_text({text: [text]})
    assert not set(written) & set(STEERING)
    assert json.loads(written) == {text: [text]}
    written.encode()  # no lone surrogates, with which printing fails


@pytest.mark.parametrize("name", [*NASTY, "it's", "a b", "back\\slash\n'"])
def test_a_printed_word_can_be_pasted_into_a_shell(name: str) -> None:
    assert not set(quoted(name)) & set(STEERING)
    said = subprocess.run(
        ["bash", "-c", f"printf %s {quoted(name)}"], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert said.stdout.decode() == name


def test_plain_keeps_what_is_harmless() -> None:
    for text in ("größe", "日本", "[red] :smile:", "👩‍🔬", "a'b\"c\\n"):
        assert plain(text) == text


def printed(monkeypatch: pytest.MonkeyPatch, capsys: Any, call: Any, *arguments: Any) -> str:
    """What a function of `show` prints on a terminal of 200 columns."""
    made: list[io.StringIO] = []

    def console(stderr: bool = False) -> Console:
        made.append(io.StringIO())
        plain_console = Console(file=made[-1], width=200, force_terminal=True, color_system=None, highlight=False)
        ours = original(stderr)
        plain_console._markup, plain_console._emoji = ours._markup, ours._emoji
        return plain_console

    original = show._console
    monkeypatch.setattr(show, "_console", console)
    call(*arguments)
    return "".join(each.getvalue() for each in made)


SCORES = {"positive": None, "negative": None, "difference": None}


@pytest.mark.parametrize("nasty", NASTY, ids=range(len(NASTY)))
def test_every_table_shows_texts_as_they_are(nasty: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    counts = {"queries": 1, "candidates": 1, "negatives": 1, "negatives_asked": 1, "queries_with_fewer_negatives": 0}
    counts |= {"queries_without_negatives": 0, "queries_without_positives": 0, "queries_searched_deeper": 0}
    summary = {
        **counts,
        "run": nasty,
        "reading": {"format": nasty, "columns": {"query": nasty}},
        "index": "exact",
        "recall": {"queries": 0},
        "verdicts": {nasty: 1},
        "scores": SCORES,
    }
    posterior = {
        "report": {"expected": 0.5, "alpha": 0.1, "assumption": nasty}, "guarantee": None, "source": nasty,
        "features": {nasty: 1.0}, "threshold": 0.5,
    }  # fmt: skip
    finding = {"severity": "warning", "text": nasty, "ids": [nasty], "fix": nasty, "change": "new"}
    diagnosis = {"run": nasty, "numbers": {}, "findings": [finding]}
    side = {"run": nasty, "numbers": {}}
    comparison = {
        "before": side, "after": side, "overlap": {"value": None}, "hardness_shift": {"value": None}, "staleness": None,
        "verdict_flow": {nasty: {"kept": 3}}, "changes": [finding],
    }  # fmt: skip
    number = {"value": 0.5, "low": 0.4, "high": 0.6}
    ranked = {"name": nasty, "place": 1, "measures": {"useful": number}, "behind": number}
    comparison["ranking"] = {"runs": [ranked], "false_by": "groups", "queries": 1, "notes": [nasty]}
    told = {
        "training": nasty,
        "steps": 1,
        "finished": True,
        "numbers": {nasty: 1.0},
        "first": {nasty: 1.0},
        "warnings": [nasty],
    }
    told |= {"findings": [finding], "unreadable_lines": 1}
    evaluation = {"means": {nasty: 0.5}, "standard_errors": {nasty: 0.1}, "queries_without_positives": 0}
    evaluation |= {"queries": 1, "documents": 1}
    best = {"step": 1, nasty: 0.5}
    training = {"evaluations": [best], "best": best, "generations": [], "steps": 1, "seconds": 1.0}
    for call, arguments, least in (
        (show.print_summary, ({**summary, "seconds": {nasty: 1.0}},), 3),
        (show_posterior.print_posterior, (posterior, nasty, nasty), 4),
        (show.print_evaluation, (evaluation, nasty), 2),
        (show.print_training, (training, nasty, [train_next.mine_command(nasty, [nasty], nasty, nasty)]), 4),
        (show_diagnosis.print_diagnosis, (diagnosis,), 4),
        (show_diagnosis.print_comparison, (comparison,), 5),
        (show_diagnosis.print_training_diagnosis, (told,), 4),
        (show.warn, ([nasty],), 1),
        (show.say, (nasty,), 1),
    ):
        out = printed(monkeypatch, capsys, call, *arguments)
        monkeypatch.undo()
        assert not set(out) & set(STEERING), (call, out)
        forms = {plain(nasty), quoted(nasty).removeprefix("$").strip("'")}  # in a command, a backslash is written twice
        assert sum(map(out.count, forms)) >= least, (call, out)


def in_terminal(*arguments: object) -> tuple[int, bytes]:
    """(exit code, what a terminal of 160 columns gets from the command, on stdout and stderr)."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-c", "from hardneg_cli.main import main; main()", *map(str, arguments)]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "160", "NO_COLOR": "1"}
    process = subprocess.Popen(command, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    seen = b""
    while True:
        try:
            part = os.read(leader, 1 << 16)
        except OSError:
            break
        if not part:
            break
        seen += part
    os.close(leader)
    return process.wait(), seen


@pytest.mark.slow
def test_a_whole_run_in_a_folder_with_markup(tmp_path: Path) -> None:
    """The table at the end fails with such names, after all the work is done."""
    rows = [
        {"id": f"{NASTY[i % 6]} {i}", "query": f"{NASTY[i % 9]} query {i}", "positive": f"{NASTY[i % 7]} text {i}"}
        for i in range(60)
    ]
    source = write_jsonl(tmp_path / "a[/b] :smile:.jsonl", rows)
    out = tmp_path / "a[" / "b] \x1b[31m"
    code, seen = in_terminal("mine", source, "--out", out)
    assert code == 0, seen
    shown = seen.decode()
    assert "mined" in shown
    assert "\x1b[31m" not in shown.replace("\r\n", "\n")
    assert "b] \\x1b[31m" in "".join(line.strip() for line in shown.splitlines())
    for arguments in (
        ("select", out, "--filter", "rank:min=2"),
        ("diagnose", out),
        ("compare", out, out),
        ("export", out, "--format", "triplet", "--out", tmp_path / "t[/x].jsonl"),
        ("judge", out, "--out", tmp_path / "j[/x].csv"),
    ):
        done = run_here(*arguments)
        assert done.returncode == 0, (arguments, done.stderr)
        assert "\x1b[31m" not in done.stdout + done.stderr


def test_errors_show_what_they_name(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x\x1b[31m[red].jsonl", [{"query\x1b[31m": "a"}])
    done = run_here("mine", path, "--out", tmp_path / "run")
    assert done.returncode == 1
    assert "x\\x1b[31m[red].jsonl, line 1" in done.stderr
    assert "\x1b" not in done.stderr
    done = run_here("mine", path, "--out", tmp_path / "run", "--\x1b[31mdepth")
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert "depth" in done.stderr  # click 8.1 leaves the code out, later ones show what it is made of


def test_progress_is_bars_lines_or_a_callback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`progress=True` writes lines where there is no terminal; a long stage says how far it is."""
    import hardneg
    from hardneg import progress

    rows = [{"query": f"query {i}", "positive": f"answer {i}"} for i in range(20)]
    hardneg.mine(rows, tmp_path / "lines", negatives=2, progress=True)
    assert "search: 20 in" in capsys.readouterr().err
    stages: list[str] = []

    def collect(stage: str, total: int) -> progress.Advance:
        stages.append(stage)
        return lambda count: None

    hardneg.mine(rows, tmp_path / "callback", negatives=2, progress=collect)
    assert "search" in stages
    hardneg.mine(rows, tmp_path / "silence", negatives=2)
    assert capsys.readouterr().err == ""
    written: list[str] = []
    advance = progress.lines(written.append, every=0)("encode", 100)
    advance(25)
    advance(75)
    assert written[0].startswith("encode: 25 of 100 in 0 s")
    assert written[1].startswith("encode: 100 in")


def test_reading_counts_texts_as_it_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """How many there will be is not known before the end. Where nothing is shown, the stages are logged."""
    import logging

    import hardneg
    from hardneg import progress

    rows = [{"query": f"query {i}", "positive": f"answer {i}"} for i in range(3000)]
    written: list[str] = []
    hardneg.read_pairs(rows, progress=progress.lines(written.append, every=0))
    assert [line.split(" in ")[0] for line in written] == [
        *(f"read texts: {n:,}" for n in (1024, 2048, 3072, 4096, 5120, 6000)),
        "read texts: 6,000",
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:20]))
    with caplog.at_level(logging.INFO, "hardneg"):
        hardneg.mine(path, tmp_path / "run", negatives=2)
    assert any(message.startswith("read texts: 40 in") for message in caplog.messages)
    done = run_here("mine", path, "--out", tmp_path / "shown")
    assert done.stderr.count("read texts: 40 in") == 1


def test_the_next_command_names_a_folder_that_is_free(tmp_path: Path) -> None:
    assert train_next._free(f"{tmp_path}/trained-run") == f"{tmp_path}/trained-run"
    for name in ("trained-run", "trained-run2"):
        (tmp_path / name).mkdir()
    assert train_next._free(f"{tmp_path}/trained-run") == f"{tmp_path}/trained-run3"
