"""What `hardneg train` says, and what it takes: columns of several sources, and the command that goes on."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hardneg_cli.show import print_training

import hardneg
from hardneg.progress import lines
from tests.conftest import pairs_of_words, run_here, write_jsonl

SHORT = ("--steps", "1", "--batch-size", "4", "--negatives", "1", "--depth", "8", "--device", "cpu")


def train(*words: Any) -> subprocess.CompletedProcess[str]:
    return run_here("train", *words, *SHORT)


def rows(count: int, query: str, positive: str, **more: str) -> list[dict[str, str]]:
    return [
        {query: f"what is {i} times {i % 7}", positive: f"{i} times {i % 7} is {i * (i % 7)}"}
        | {name: value.format(i % 5) for name, value in more.items()}
        for i in range(count)
    ]


def next_commands(out: str) -> list[list[str]]:
    return [shlex.split(line.removeprefix("next: "))[1:] for line in out.splitlines() if line.startswith("next: ")]


def test_the_next_command_reads_as_the_training_did(tmp_path: Path) -> None:
    source = tmp_path / "my tasks.csv"
    lines = [f"{row['t']},{row['c']},{row['kind']}" for row in rows(30, "t", "c", kind="kind {}")]
    source.write_text("\n".join(["task,command line,kind", *lines]))
    reading = (
        "--query-column",
        "task",
        "--positive-column",
        "command line",
        "--group-column",
        "kind",
        "--relevance-column",
        "",
    )
    more = ("--filter", "group", "--filter", "score:max=0.99", "--query-prompt", "task: ")
    done = train(source, *reading, *more, "--out", tmp_path / "t 1")
    assert done.returncode == 0, done.stderr
    assert ", negatives mined again" not in done.stdout
    (found,) = next_commands(done.stdout)
    for words in (*((reading[i : i + 2]) for i in range(0, 8, 2)), more[:2], more[4:]):
        assert any(found[i : i + 2] == list(words) for i in range(len(found))), words
    assert "score:max=0.99" not in found  # a limit of the untrained encoder's scores
    mined = run_here(*found, "--depth", "8", "--negatives", "1")
    assert mined.returncode == 0, mined.stderr
    info = json.loads((tmp_path / "t 1-run" / "run.json").read_text())
    assert info["reading"]["columns"]["positive"] == "command line"
    assert info["config"]["query_prompt"] == "task: "


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    odd, usual = tmp_path / "odd.jsonl", tmp_path / "p.parquet"
    write_jsonl(odd, rows(30, "Frage", "Antwort"))
    pq.write_table(pa.Table.from_pylist([{**row, "row": "x"} for row in rows(24, "question", "answer")][2:]), usual)
    return odd, usual


def test_an_encoder_that_was_fitted_on_what_it_is_evaluated_on_is_no_baseline(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "pairs.jsonl", rows(30, "query", "positive"))
    done = run_here("evaluate", source, "--json")
    assert done.stderr.count("note: this encoder was fitted just now on the texts that it is evaluated on") == 1
    assert "fitted" not in done.stdout
    json.loads(done.stdout)
    done = train(source, "--out", tmp_path / "t", "--refresh", "steps:1", "--lag", "0", "--steps", "2")
    assert done.returncode == 0, done.stderr
    done = run_here("evaluate", source, "--encoder", f"hashed:{tmp_path}/t/last")
    assert done.returncode == 0, done.stderr
    assert "fitted" not in done.stderr


def test_how_often_negatives_were_mined_again(capsys: pytest.CaptureFixture[str]) -> None:
    for count, words in ((1, "negatives mined again once"), (2, "negatives mined again 2 times")):
        value = {"evaluations": [], "best": None, "steps": 5, "seconds": 1.0, "generations": [{}] * count}
        print_training(value, "out")
        assert words in capsys.readouterr().out


def test_slow_stages_say_how_long_one_takes() -> None:
    written: list[str] = []
    clock = iter([0.0, 6.4, 12.8, 16.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: next(clock))
        advance = lines(written.append, every=0)("train", 100)
        advance(0)
        advance(4)
        advance(96)
    assert "/s" not in written[0]  # nothing is done yet
    assert "4 of 100 in 13 s, 3.2 s each, about" in written[1]
    assert written[2] == "train: 100 in 16.0 s, 6.2/s"


COLUMNS = ("--query-column", "Frage", "--positive-column", "Antwort")


def test_named_columns_hold_for_the_sources_that_have_them(two: tuple[Path, Path], tmp_path: Path) -> None:
    odd, usual = two
    done = train(odd, "--source", f"{usual}:0.5", *COLUMNS, "--out", tmp_path / "t", "--refresh", "steps:1")
    assert done.returncode == 0, done.stderr
    said = (
        "source p: no column 'Frage' (--query-column), 'Antwort' (--positive-column), so it is read by its own names: "
        "query = question, positive = answer"
    )
    assert said in done.stderr
    assert "source odd: no column" not in done.stderr
    first, second = next_commands(done.stdout)  # one a source, each as it was read
    assert first[1:6] == [str(odd), *COLUMNS]
    assert second[1] == str(usual)
    assert "--query-column" not in second
    for words in (first, second):
        mined = run_here(*words, "--depth", "8", "--negatives", "1")
        assert mined.returncode == 0, mined.stderr


def test_columns_that_lead_nowhere_are_refused(two: tuple[Path, Path], tmp_path: Path) -> None:
    odd, usual = two
    out = ("--out", tmp_path / "t")
    third = write_jsonl(tmp_path / "third.jsonl", rows(9, "instruction", "output"))
    done = train(odd, "--source", third, *COLUMNS, *out)
    assert done.returncode == 1  # its names are no usual ones
    assert "rename its columns, or mix the sources from Python" in done.stderr
    assert "Name yours" not in done.stderr
    third = write_jsonl(tmp_path / "third.jsonl", rows(9, "query", "positive"))
    done = train(usual, "--source", third, "--query-column", "Frege", *out)
    assert done.returncode == 2
    assert "no source has the column 'Frege' (--query-column)" in done.stderr
    done = train(third, "--query-column", "Frege", *out)  # of one source, a name is never passed over
    assert done.returncode == 1
    assert "there is no column 'Frege'" in done.stderr


def test_an_evaluation_source_has_its_own_names_where_it_lacks_the_given_ones(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    odd, usual = two
    done = train(odd, *COLUMNS, "--eval-source", usual, "--out", tmp_path / "t")
    assert done.returncode == 0, done.stderr
    assert f"evaluated on {usual}: no column 'Frage' (--query-column)" in done.stderr


def test_advice_leaves_out_what_is_set() -> None:
    from hardneg.diagnostics import LiveFindings

    said = {}
    for drawn_by in (None, "uniform", "simans:a=1", "top"):
        live = LiveFindings(drawn_by=drawn_by)
        said[drawn_by] = [
            each for step in (1, 2, 3) for each in live.look(step, {"teaching": 0.1, "temperature": 0.05})
        ]
    assert all(len(each) == 1 and "a smaller --depth" in each[0] for each in said.values())
    assert ["simans" in each[0] for each in said.values()] == [True, True, False, False]


def test_a_bank_that_is_not_used_yet_has_no_rows_in_the_log(tmp_path: Path) -> None:
    pairs = pairs_of_words()
    logs = {}
    for start in (0, 3):
        options = hardneg.TrainOptions(
            steps=4, batch_size=4, depth=5, negatives=1, bank=16, bank_start=start, log_every=1, refresh="never"
        )
        folder = tmp_path / str(start)
        hardneg.train(pairs, hardneg.HashedEncoder(8, 256), folder, options, device="cpu")
        entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        logs[start] = [each["bank_rows"] for each in entries if "bank_rows" in each]
    assert all(rows > 0 for rows in logs[0])
    assert logs[3][:2] == [0, 0]
    assert logs[3][-1] == 16
