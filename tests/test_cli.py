"""The command as people and scripts use it: files, streams, exit codes, messages."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from .conftest import run_here, write_jsonl
from .processes import run_code

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

ROWS = [{"query": f"how to do thing number {i}", "positive": f"thing number {i} is done like this"} for i in range(40)]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "pairs.jsonl", ROWS)


def test_mine_select_export(run_cli: Cli, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run_cli("mine", pairs, "--out", out, "--depth", "20", "--negatives", "3")
    assert done.returncode == 0, done.stderr
    for words in (
        "queries",
        "candidates",
        "verdicts",
        "kept",
        "known",
        "positive - negative",
        "median",
        "next: hardneg diagnose",
    ):
        assert words in done.stdout
    for stage in ("read", "fit encoder", "encode queries: 40", "encode documents: 40", "search: 40", "write: 40"):
        assert stage in done.stderr
    assert sorted(p.name for p in out.iterdir()) == [
        ".hardneg-run",
        "candidates",
        "embeddings",
        "negatives.parquet",
        "run.json",
        "source",
    ]
    info = json.loads((out / "run.json").read_text())
    assert info["schema_version"] == 2
    assert info["command"][0] == "mine"
    done = run_here("select", out, "--filter", "rank:min=5", "--out", tmp_path / "run2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdicts"]["rank"] == 40 * 4 - json.loads(done.stdout)["verdicts"]["known"]
    assert set(json.loads(done.stdout)["seconds"]) == {"select"}
    done = run_here("select", tmp_path / "run2", "--negatives", "2")
    for words in (f"selected {tmp_path / 'run2'}", "seconds: select"):
        assert words in done.stdout
    for words in ("mined", "read as", "encode"):  # that was the first pass
        assert words not in done.stdout
    done = run_here("select", tmp_path / "run2", "--negatives", "3")
    done = run_here("export", tmp_path / "run2", "--format", "triplet", "--out", tmp_path / "t.jsonl", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 120 == len((tmp_path / "t.jsonl").read_text().splitlines())
    done = run_cli("export", out, "--format", "flagembedding", "--out", "-")
    assert [json.loads(line)["query"] for line in done.stdout.splitlines()] == [row["query"] for row in ROWS]


def test_a_split_of_one_file_is_refused(pairs: Path, tmp_path: Path) -> None:
    for words in (("evaluate", pairs), ("inspect", pairs), ("mine", pairs, "--out", tmp_path / "run")):
        done = run_here(*words, "--split", "dev")
        assert done.returncode == 2
        assert "p.jsonl is one file, which has no splits: leave --split dev out" in done.stderr.replace(
            str(pairs), "p.jsonl"
        )
    assert run_here("inspect", pairs).stderr.count("read texts: 80") == 1  # once, and in words that say what


def test_json_is_alone_on_stdout(run_cli: Cli, pairs: Path, tmp_path: Path) -> None:
    done = run_cli("mine", pairs, "--out", tmp_path / "run", "--json", "--filter", "margin:relative=0.3")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["queries"] == 40
    assert value["candidates"] == 1600 == sum(value["verdicts"].values())
    table = pq.read_table(tmp_path / "run" / "negatives.parquet")
    assert value["negatives"] == len(table["negative_ids"].combine_chunks().flatten())
    assert set(value["scores"]) == {"positive", "negative", "difference"}


def test_stdin(run_cli: Cli, tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    done = run_cli("mine", "-", "--out", tmp_path / "run", "--json", stdin=lines)
    assert json.loads(done.stdout)["queries"] == 40
    done = run_here("mine", "-", "--out", tmp_path / "run2", stdin=lines + "{broken\n")
    assert (done.returncode, done.stderr.count("standard input, line 41")) == (1, 1)


@pytest.mark.slow
def test_bars_on_a_terminal(pairs: Path, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    code = "from hardneg_cli.main import main; main()"
    command = [sys.executable, "-c", code, "mine", str(pairs), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=follower, env=environment)
    os.close(follower)
    seen = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:
            break
        if not part:
            break
        seen += part
    assert process.wait() == 0
    for words in (b"encode documents", b"search", b"write", b"40/40", b"/s", b"\xe2\x94\x81"):
        assert words in seen


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["mine"], 2, "Missing argument 'SOURCE'"),
        (["mine", "PAIRS"], 2, "Missing option '--out'"),
        (["mine", "PAIRS", "--out", "OUT", "--depht", "5"], 2, "--depth"),
        (["mine", "PAIRS", "--out", "OUT", "--depth", "0"], 2, "0 is not in the range"),
        (["mine", "PAIRS", "--out", "OUT", "--depth", "41"], 1, "depth 41 is more than the 40 documents"),
        (["mine", "PAIRS", "--out", "OUT", "--negatives", "101"], 2, "raise --depth to 101"),
        (["mine", "PAIRS", "--out", "OUT", "--sampler", "tpo"], 2, "Did you mean 'top'"),
        (["mine", "PAIRS", "--out", "OUT", "--filter", "margin:relative=x"], 2, "not a number"),
        (["mine", "PAIRS", "--out", "OUT", "--resume", "--overwrite"], 2, "exclude each other"),
        (["mine", "PAIRS", "--out", "OUT", "--filter", "score:max=-3"], 1, "all candidates were rejected"),
        (["mine", "PAIRS", "--out", "/proc/nowhere/run"], 1, "/proc/nowhere"),
        (["mine", "nothing.jsonl", "--out", "OUT"], 1, "nothing.jsonl does not exist"),
        (["select", "OUT"], 1, "is no run folder"),
        (["export", "OUT", "--format", "triplet", "--out", "x.jsonl"], 1, "is no run folder"),
        (["exprot"], 2, "Did you mean 'export'"),
    ],
)
def test_exit_codes(pairs: Path, tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    places = {"PAIRS": str(pairs), "OUT": str(tmp_path / "run")}
    done = run_here(*[places.get(a, a) for a in arguments])
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_full_disk(pairs: Path, tmp_path: Path) -> None:
    """/dev/full stands for a disk without space."""
    code = (
        "import hardneg.storage.files as s\n"
        "from contextlib import contextmanager\n"
        "from pathlib import Path\n"
        "@contextmanager\n"
        "def full(path):\n"
        "    yield Path('/dev/full')\n"
        "import hardneg.mining.parts as r; r.atomic_path = full\n"
        "from hardneg_cli.main import main; main()"
    )
    done = run_code(code, "mine", pairs, "--out", tmp_path / "run")
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    done = run_here("mine", pairs, "--out", tmp_path / "run", "--resume")
    assert done.returncode == 0, done.stderr


def test_help_and_version() -> None:
    done = run_here("--help")
    assert done.returncode == 0
    for command in ("mine", "select", "export"):
        assert command in done.stdout
        shown = run_here(command, "--help").stdout
        assert f"hardneg {command} " in shown.split("Examples:")[1]
    assert run_here("--version").stdout.startswith("hardneg, version ")


def test_help_fits_on_a_screen_and_all_of_it_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    import click
    from click.testing import CliRunner
    from hardneg_cli.main import _COMMANDS, cli
    from hardneg_cli.short_help import COMMON, SCREEN

    for name in _COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        short, whole = (
            CliRunner().invoke(cli, [name, flag], terminal_width=80, prog_name="hardneg").output
            for flag in ("--help", "--help-all")
        )
        assert short.startswith("Usage: ")
        assert len(short.splitlines()) <= SCREEN
        assert max(map(len, short.lower().split("options:")[-1].splitlines())) <= 80
        options = [each.opts[-1] for each in command.params if isinstance(each, click.Option) and not each.hidden]
        assert not [each for each in options if each not in whole]
        if name in COMMON:
            assert f"hardneg {name} --help-all" in short
            assert len(short) < len(whole) / 2 or name in ("diagnose", "calibrate", "score", "export")
            assert "Examples:" in short


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom hardneg_cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'faiss', 'pyarrow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_closed_pipe_is_no_error(pairs: Path, tmp_path: Path) -> None:
    run_here("mine", pairs, "--out", tmp_path / "run")
    main = f"{sys.executable} -c 'from hardneg_cli.main import main; main()'"
    command = f"{main} export {tmp_path / 'run'} --format labeled-pair --out - | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_missing_extra_says_what_to_install(pairs: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['sentence_transformers'] = None\nfrom hardneg_cli.main import main; main()"
    done = run_code(code, "mine", pairs, "--out", tmp_path / "run", "--encoder", "st:x")
    assert done.returncode == 2
    assert "pip install 'hardneg[st]'" in done.stderr


def test_given_embeddings(pairs: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in "qd":
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((40, 8)).astype(np.float16))
    given = ["--query-embeddings", tmp_path / "q.npy", "--corpus-embeddings", tmp_path / "d.npy"]
    for metric in ("cosine", "ip", "l2"):
        done = run_here("mine", pairs, "--out", tmp_path / metric, *given, "--metric", metric, "--json")
        assert done.returncode == 0, done.stderr
    bad = np.load(tmp_path / "d.npy")
    bad[[4, 9]] = np.nan
    np.save(tmp_path / "d.npy", bad)
    done = run_here("mine", pairs, "--out", tmp_path / "bad", *given)
    assert (done.returncode, "rows 4, 9" in done.stderr) == (1, True)


@pytest.mark.slow
def test_the_demo(tmp_path: Path, run_cli: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """On a tenth of its data; what it promises: a run, a trained encoder that is better on what it never saw, a diagnosis."""
    done = run_cli("demo", "--quick", "--out", tmp_path / "demo", "--json")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    for measure in value["measures"].values():
        assert measure["after"] > measure["before"]
    assert value["measures"]["ndcg@10"]["after"] > value["measures"]["ndcg@10"]["before"] + 0.05
    assert (tmp_path / "demo" / "run" / "negatives.parquet").exists()
    assert (tmp_path / "demo" / "trained" / "best" / "config.json").exists()
    assert value["diagnosis"]["numbers"]["queries"] == value["mined"]["queries"]
    again = run_cli("demo", "--quick", "--out", tmp_path / "demo")
    assert again.returncode == 1
    assert "--overwrite replaces it" in again.stderr
