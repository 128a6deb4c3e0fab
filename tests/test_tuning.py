"""How an index is tuned: with few exact searches where the best list of a query is enough, and alike in a pass of several tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import hardneg.index.factory as factory
from hardneg.index.exact import ExactIndex
from hardneg.index.factory import make_index, tuned, tuned_on, tuning_sample
from hardneg.index.ivf import IVFIndex
from hardneg.index.recall import shares_found
from tests.conftest import unit


def copies(of_each: int, count: int = 120) -> Any:
    """Vectors of which `of_each` are nearly equal, so that one list holds the neighbors of each."""
    generator = np.random.default_rng(0)
    centers = np.repeat(generator.standard_normal((count, 16)), of_each, axis=0)
    return unit((centers + 0.05 * generator.standard_normal(centers.shape)).astype(np.float32))


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many queries were searched exactly, in each search."""
    counts: list[int] = []

    class Counting(ExactIndex):
        def search(self, queries: Any, *rest: Any) -> Any:
            counts.append(len(queries))
            return super().search(queries, *rest)

    monkeypatch.setattr(factory, "ExactIndex", Counting)
    return counts


def test_where_one_list_is_enough_few_queries_are_searched_exactly(searched: list[int]) -> None:
    documents = copies(50)
    index, recall = make_index("ivf", documents, "ip", lists=60, k=5, recall=0.9)
    assert searched == [256]
    assert index.probe_margin == 0  # type: ignore[attr-defined]
    assert recall.queries == 256
    assert recall.measured - 3 * recall.error >= 0.9
    truth = ExactIndex(documents, "ip").search(documents, 5).documents
    assert shares_found(index.search(documents, 5).documents, truth).mean() >= 0.9


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({"recall": 0.9999}, [256, 768]),  # one list does not clearly reach it
        ({"lists": 600}, [1024]),  # lists of 10 documents for 5 neighbors: not even tried
    ],
)
def test_otherwise_it_is_tuned_as_ever(
    case: dict[str, Any], expected: list[int], searched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = copies(50)
    given = {"lists": 60, "k": 5, "recall": 0.9, **case}
    index, recall = make_index("ivf", documents, "ip", **given)
    assert searched == expected
    monkeypatch.setattr(factory, "_may_be_enough", lambda index, k, sample: False)
    other, measured = make_index("ivf", documents, "ip", **given)
    assert index.probe_margin == other.probe_margin  # type: ignore[attr-defined]
    assert recall == measured
    assert recall.queries == 512


@pytest.mark.parametrize("recall", [0.9, 0.9999])
def test_with_the_truth_of_the_whole_sample_it_is_the_same(recall: float) -> None:
    documents, made = copies(50), []
    for whole in (False, True):
        index = IVFIndex(documents, "ip", lists=60)
        sample, half = tuning_sample(documents, 0)
        truth = ExactIndex(documents, "ip").search(sample, 5).documents
        found = (
            tuned_on(index, sample, half, truth.__getitem__, 5, recall) if whole else tuned(index, documents, 5, recall)
        )
        made.append((index.probe_margin, found))
    assert made[0] == made[1]


@pytest.mark.parametrize("count", [1, 2, 200, 255])
def test_a_sample_that_is_too_small_to_tell_is_halved(count: int) -> None:
    documents = copies(50)
    assert tuned(IVFIndex(documents, "ip", lists=60), documents[:count], 5, 0.5).queries == max(1, count // 2)


def test_queries_in_order_of_difficulty_are_measured_on_all_of_them() -> None:
    generator = np.random.default_rng(0)
    documents = copies(250, 40)
    near = documents[generator.integers(0, len(documents), 1500)]
    between = unit(generator.standard_normal((3000, 16)).astype(np.float32))  # whose neighbors lie in several lists
    queries = np.concatenate([near, between])
    index, recall = make_index("ivf", documents, "ip", queries=queries, lists=40, k=5, recall=0.9)
    truth = ExactIndex(documents, "ip").search(queries, 5).documents
    real = shares_found(index.search(queries, 5).documents, truth).mean()
    assert abs(recall.measured - real) < 4 * recall.error
    assert real > 0.87


def test_a_target_that_few_queries_cannot_tell_takes_all_of_them(searched: list[int]) -> None:
    documents = copies(100, 60)
    _, recall = make_index("ivf", documents, "ip", lists=1, k=5, recall=0.98)
    assert (searched, recall.measured, recall.error) == ([256], 1.0, 1 / 256)
    searched.clear()
    make_index("ivf", documents, "ip", lists=1, k=5, recall=0.99)  # with 256 found of 256, 3 of 256 may be missing
    assert searched == [256, 768]
