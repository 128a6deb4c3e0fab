"""`--config FILE.toml` is the same as typing; the shell completes commands and options."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import run_here, write_jsonl


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "p.jsonl", [{"query": f"q {i}", "positive": f"a {i}"} for i in range(30)])


def test_options_of_a_file_are_those_that_are_typed(source: Path, tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text(f"""
        seed = 5
        [mine]
        source = "{source}"
        filter = ["margin:relative=0.05", "rank:min=2"]
        no-default-filters = true
        depth = 20
        negatives = 4
        query_prompt = "find: "
        [train]
        steps = 7
    """)
    done = run_here("mine", "--config", file, "--out", tmp_path / "a", "--negatives", "3")
    assert done.returncode == 0, done.stderr
    typed = run_here(
        "mine", source, "--out", tmp_path / "b", "--seed", "5", "--filter", "margin:relative=0.05", "--filter", "rank:min=2",
        "--no-default-filters", "--depth", "20", "--negatives", "3", "--query-prompt", "find: ",
    )  # fmt: skip
    assert typed.returncode == 0, typed.stderr
    a, b = (json.loads((tmp_path / name / "run.json").read_text()) for name in "ab")
    assert a["config"] == b["config"]
    assert a["config"]["negatives"] == 3
    assert (tmp_path / "a" / "negatives.parquet").read_bytes() == (tmp_path / "b" / "negatives.parquet").read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dept = 5", "hardneg mine has no option 'dept'. Did you mean 'depth'?"),
        ("[mien]\ndepth = 5", "the table [mien] is no command. Did you mean 'mine'?"),
        ("depth = [5, 6]", "a list, but the option is given once"),
        ("depth = true", "true and false are for options without a value"),
        ("resume = 'yes'", "expected true or false"),
        ("depth = 2026-01-01", "is of type date"),
        ("depth = 'many'", "'many' is not a valid integer"),
        ("depth = 0", "0 is not in the range"),
        ("encoder = 'module:os:abort'", "names code to run: type it on the command line"),
        ("filter = ['guide:module:os:abort']", "names code to run"),
        ("depth = ", "is no TOML file"),
        ("config = 'x'", "has no option 'config'"),
        ("x = " + "[" * 5000, "is no TOML file"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(source: Path, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "options.toml"
    file.write_text(text)
    done = run_here("mine", source, "--out", tmp_path / "run", "--config", file)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()


def test_a_prompt_may_speak_of_modules(source: Path, tmp_path: Path) -> None:
    (tmp_path / "o.toml").write_text("query-prompt = 'python module: '")
    done = run_here("mine", source, "--out", tmp_path / "run", "--config", tmp_path / "o.toml")
    assert done.returncode == 0, done.stderr
    assert run_here("mine", source, "--out", tmp_path / "x", "--config", tmp_path / "none.toml").returncode == 2


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    """With the script that the command installs into a home folder, in a real bash."""
    program = tmp_path / "bin" / "hardneg"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "from hardneg_cli.main import main; main()" "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "SHELL": "/bin/bash",
        "PATH": f"{program.parent}:{os.environ['PATH']}",
    }
    (tmp_path / ".bashrc").write_text("true")  # without an end of line
    for _ in range(2):
        subprocess.run(["hardneg", "completion", "--install"], env=environment, check=True, capture_output=True)
    rc = (tmp_path / ".bashrc").read_text().splitlines()
    assert rc[0] == "true"
    assert len(rc) == 2
    script = """
        . ~/.bashrc
        for line in "hardneg mi" "hardneg mine --ove"; do
            COMP_WORDS=($line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
            _hardneg_completion hardneg; echo "${COMPREPLY[@]}"
        done
    """
    done = subprocess.run(["bash", "--norc", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["mine", "--overwrite"]


def test_a_script_is_printed_for_each_shell() -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_HARDNEG_COMPLETE" in run_here("completion", shell).stdout


def test_an_unknown_shell_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/strange")
    done = run_here("completion")
    assert done.returncode == 2
    assert "'strange' is not known" in done.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('depth = "many"', "depth: 'many' is not a valid integer"),
        ("depth = 0.5", "depth: "),
        ("negatives = 0", "negatives: 0 is not in the range x>=1"),
        ('own-negatives = "some"', "own-negatives: 'some' is not one of"),
    ],
)
def test_a_value_that_an_option_refuses_is_named_with_its_file(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f"[mine]\n{line}\n")
    done = run_here("mine", "builtin:pycode", "--out", tmp_path / "run", "--config", path)
    assert done.returncode == 2
    assert f"{path}, {words}" in done.stderr
    path.write_text('precision = "float8"')  # the library refuses it, which knows of no file
    done = run_here("mine", "builtin:pycode", "--out", tmp_path / "run", f"--config={path}")
    assert f"unknown precision 'float8'. Did you mean 'float32'? (options are also taken from {path})" in done.stderr
