"""A run is given as an object, a string or a path; what a diagnosis suggests keeps the filters of the run."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

import hardneg
from hardneg import MineOptions, Pairs, mine, select
from hardneg.diagnostics.compare import compare
from hardneg.diagnostics.findings.rules import RULES, ThresholdRule
from hardneg.mining.run import Run
from hardneg.mining.select import SelectOptions
from tests.conftest import run_here


@pytest.fixture
def run(tmp_path: Path) -> Run:
    pairs = Pairs.from_columns([f"question {i}" for i in range(12)], [f"answer {i}" for i in range(12)])
    return mine(pairs, tmp_path / "run", MineOptions(depth=10, negatives=2, filters=("rank:min=2",)))


def test_a_folder_stands_for_its_run(tmp_path: Path, run: Run) -> None:
    for each in (run, run.folder, str(run.folder)):
        assert hardneg.diagnose(each).measured.numbers["queries"] == 12
        assert compare(each, run.folder).overlap.value == 1
        assert hardneg.export(each, "triplet", tmp_path / "t.jsonl", overwrite=True).rows == 24


def test_filters_are_added(tmp_path: Path, run: Run) -> None:
    added = select(run, SelectOptions(add_filters=("rank:max=8",)), tmp_path / "two")
    assert added.info["config"]["filters"] == ["rank:min=2", "rank:max=8"]
    assert select(run, SelectOptions(filters=("rank:max=8",)), tmp_path / "three").info["config"]["filters"] == [
        "rank:max=8"
    ]


def test_fixes_keep_the_filters_of_the_run(tmp_path: Path, run: Run) -> None:
    """Each fix that is one command is run as it stands."""
    tried = 0
    for rule in RULES:
        if not isinstance(rule, ThresholdRule) or not rule.fix.startswith("hardneg select") or "," in rule.fix:
            continue
        command = rule.fix.format(run=run.folder, out=tmp_path / f"out{tried}", posterior="")
        done = run_here(*shlex.split(command, comments=True)[1:])
        assert done.returncode == 0, done.stderr
        assert Run(tmp_path / f"out{tried}").info["config"]["filters"][0] == "rank:min=2"
        tried += 1
    assert tried >= 2


def test_a_selection_that_fails_leaves_nothing_behind(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be resumed, so what it wrote would be in the way of the next one."""
    from hardneg.mining import select as selecting

    def failing(*args: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(selecting, "_write_parts", failing)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    for out in (tmp_path / "new", None):
        with pytest.raises(OSError, match="no space left"):
            select(run, SelectOptions(filters=()), out)
        assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
    monkeypatch.undo()
    assert select(run, SelectOptions(filters=()), tmp_path / "new").info["config"]["filters"] == []
