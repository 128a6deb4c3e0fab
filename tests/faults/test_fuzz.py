"""Damaged inputs of every kind: a few in the suite, many with `make faults`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from random import Random

import pytest

from tests.faults import own_files, own_parts, own_trainings
from tests.faults.damage import files_of
from tests.faults.fuzz import _progress, case, crowd, here, table
from tests.faults.kind import Typed, cleared
from tests.faults.kinds import KINDS

SAFE = [name for name, kind in KINDS.items() if not kind.risky]
RISKY = [name for name, kind in KINDS.items() if kind.risky]


def test_a_few_of_every_safe_kind(tmp_path: Path) -> None:
    tallies = {kind: here(kind, 1, range(20), tmp_path) for kind in SAFE}
    assert all(tally.fine for tally in tallies.values()), table(tallies)
    for kind, tally in tallies.items():
        assert min(tally.counts["accepted"], tally.counts["refused"]) > 0, f"{kind}: {tally.counts}"


@pytest.mark.slow
def test_a_few_of_every_risky_kind(tmp_path: Path) -> None:
    """And of one that kills its process on purpose, which is found, and nothing else is lost."""
    tallies = crowd(["trial", *RISKY], 1, 0, 12, 300.0, tmp_path)
    trial = tallies.pop("trial")
    assert all(tally.fine for tally in tallies.values()), table(tallies)
    assert all(sum(tally.counts.values()) == 12 and tally.counts["refused"] for tally in tallies.values()), table(
        tallies
    )
    assert sum(tally.counts["accepted"] > 0 for tally in tallies.values()) > len(RISKY) / 2, table(tallies)
    numbers = [Random(f"trial 1 {i}").randrange(6) for i in range(12)]
    assert [number for number, _ in trial.deaths] == [i for i, n in enumerate(numbers) if n == 0]
    assert all(how.startswith("exit code -9") for _, how in trial.deaths)
    assert trial.counts == {
        "raw": numbers.count(1),
        "refused": numbers.count(2),
        "accepted": sum(n > 2 for n in numbers),
    }
    (words,) = trial.raw.values()
    assert words.startswith("case ")
    assert "KeyError at kinds.py" in words
    assert not trial.fine


def made(kind: str, number: int, folder: Path) -> object:
    """An input of a kind: what was typed, or its files."""
    of, rng = KINDS[kind], Random(f"{kind} 3 {number}")
    if isinstance(of, Typed):
        return of.make(rng)
    of.make(cleared(folder), rng)
    return files_of(folder)


def test_a_case_is_the_same_each_time(tmp_path: Path) -> None:
    before = {kind: [made(kind, number, tmp_path / "a") for number in range(3)] for kind in KINDS}
    for cached in (
        own_files.run_files, own_parts._index_files, own_parts._plan_files, own_parts._vector_files, own_trainings.training_files,
        own_trainings._saved_negatives,
    ):  # fmt: skip
        cached.cache_clear()  # as in another process
    after = {kind: [made(kind, number, tmp_path / "b") for number in range(3)] for kind in KINDS}
    assert [kind for kind in KINDS if before[kind] != after[kind]] == []


def test_a_few_cases_can_be_read_again(tmp_path: Path) -> None:
    for kind in ("specs", "posterior"):
        assert case(kind, 3, 5, cleared(tmp_path / "a")) == case(kind, 3, 5, cleared(tmp_path / "a"))


@pytest.mark.faults
def test_many(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All kinds in turns, on all cores; HARDNEG_FUZZ_SECONDS says for how long."""
    seconds = float(os.environ.get("HARDNEG_FUZZ_SECONDS", "1200"))
    with capfd.disabled():
        tallies = crowd(list(KINDS), 20, 0, 1 << 40, seconds, tmp_path, os.cpu_count() or 1, _progress)
        print(table(tallies), file=sys.stderr)
    assert all(tally.fine for tally in tallies.values()), table(tallies)
