"""The harness of `tests.faults.runs`: a few cases of each kind, and many with `make faults`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.runs import FAULTS, KINDS, count

DAMAGED = [kind for kind in KINDS if "damaged" in kind]


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_run_is_refused_or_gives_the_same_result(tmp_path: Path, kind: str) -> None:
    found, faults = count(tmp_path, kind, seed=0, seconds=600, most=12)
    assert not faults, found
    assert found["refused"] > 0


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS)
def test_faults_of_runs(tmp_path: Path, kind: str) -> None:
    found, faults = count(tmp_path, kind, seed=1, seconds=60)
    print(kind, dict(found))
    assert not faults, found
    assert not any(found[name] for name in FAULTS)
