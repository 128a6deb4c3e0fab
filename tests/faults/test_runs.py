"""The harness of `tests.faults.runs`: a few cases of each kind, and many with `make faults`."""

from __future__ import annotations

import pytest

from tests.faults.disks import small
from tests.faults.place import Place
from tests.faults.runs import FAULTS, KINDS, count
from tests.faults.trainings import Trained

# (kind, number of cases in `make slow`)
FEW = [("finished run, one file damaged", 12), ("interrupted run, one file damaged", 8)]
FEW += [("interrupted training, one file damaged", 6), ("saved encoder, one file damaged", 4)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place(tmp_path_factory.mktemp("place"))
    Trained(made)
    return made


@pytest.mark.slow
@pytest.mark.xdist_group("faults")
@pytest.mark.parametrize(("kind", "cases"), FEW)
def test_a_damaged_file_is_refused_or_gives_the_same_result(place: Place, kind: str, cases: int) -> None:
    found, faults = count(place, kind, seed=0, seconds=200, most=cases)
    assert not faults, found
    assert found["refused"] > 0


@pytest.mark.faults
@pytest.mark.xdist_group("faults")
@pytest.mark.parametrize("kind", KINDS)
def test_faults_of_runs(place: Place, kind: str) -> None:
    if kind == "disk really full" and not small(place.folder):
        pytest.skip("no small disk: mount one of at most 1 GB and give --basetemp a folder on it")
    found, faults = count(place, kind, seed=1, seconds=60)
    print(kind, dict(found))
    assert not faults, found
    assert not any(found[name] for name in FAULTS)
