"""Damaged inputs of every kind: a few in the suite, many with `make faults`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.fuzz import apart, case, here, table
from tests.faults.kinds import KINDS

SAFE = [name for name, kind in KINDS.items() if not kind.risky]
RISKY = [name for name, kind in KINDS.items() if kind.risky]


def test_a_few_of_every_safe_kind(tmp_path: Path) -> None:
    tallies = {kind: here(kind, 1, range(20), tmp_path) for kind in SAFE}
    assert all(tally.fine for tally in tallies.values()), table(tallies)
    for kind, tally in tallies.items():
        assert min(tally.counts["accepted"], tally.counts["refused"]) > 0, f"{kind}: {tally.counts}"


@pytest.mark.parametrize("kind", RISKY)
def test_a_few_of_every_risky_kind(kind: str, tmp_path: Path) -> None:
    tally = apart(kind, 1, 0, 10, 30.0, tmp_path)
    assert tally.fine, table({kind: tally})
    assert sum(tally.counts.values()) == 10


def test_a_case_is_the_same_each_time(tmp_path: Path) -> None:
    for kind in ("beir", "npy"):
        folders = [tmp_path / name for name in "ab"]
        for folder in folders:
            case(kind, 3, 5, folder)
        files = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders]
        assert files[0] == files[1]


@pytest.mark.faults
@pytest.mark.parametrize("kind", list(KINDS))
def test_many(kind: str, tmp_path: Path) -> None:
    tally = apart(kind, 20, 0, 1 << 40, 60.0, tmp_path)
    assert tally.fine, table({kind: tally})
