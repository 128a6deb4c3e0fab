"""Queries with very many positives, texts that repeat, and searches that go deeper: bounded memory, few passes."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

import hardneg
from hardneg import MineOptions, mine
from hardneg.index.base import Neighbors
from hardneg.index.exact import ExactIndex
from hardneg.mining.filters.base import index_scores, lowest_scores
from hardneg.mining.miner import Miner
from hardneg.mining.specs import parse_filters, parse_sampler
from hardneg.storage.arrays import Ragged, SharedLists, members


def pairs_of(queries: list[str], positives: list[list[str]], corpus: list[str]) -> hardneg.Pairs:
    return hardneg.Pairs.from_columns(
        queries, positives, corpus=corpus, query_ids=[f"q{i}" for i in range(len(queries))]
    )


def vectors(n: int, d: int = 8, seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def peak_of(work: Any) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_one_text_asked_many_times_is_not_quadratic() -> None:
    n = 6000
    pairs = pairs_of(["what is shown here?"] * n, [[f"answer {i}"] for i in range(n)], [])
    known = pairs.known_positives()
    assert len(known.lists.values) == n  # each once, where every query had a copy of all: 36 million
    assert known.take(np.array([5])).values.tolist() == list(range(n))
    candidates = np.random.default_rng(0).integers(0, n, (n, 10))
    assert peak_of(lambda: members(candidates, known.rows(np.arange(n)))) < 20e6
    assert members(candidates, known).all()
    assert not members(candidates + n, known).any()


def test_shared_lists_are_the_lists() -> None:
    rng = np.random.default_rng(1)
    lists = Ragged.from_pairs(rng.integers(0, 7, 60), rng.integers(0, 30, 60), 7)
    shared = SharedLists(lists, rng.integers(0, 7, 25))
    rows = rng.integers(0, 25, 12)
    candidates = rng.integers(0, 30, (12, 9))
    expected = [set(lists.take(shared.of[[row]]).values.tolist()) for row in rows]
    found = members(candidates, shared.rows(rows))
    assert found.tolist() == [[int(c) in expected[i] for c in row] for i, row in enumerate(candidates)]
    np.testing.assert_array_equal(found, members(candidates, shared.take(rows)))
    assert shared.rows(rows).take(np.arange(12)).padded().tolist() == shared.take(rows).padded().tolist()
    assert shared.lengths.tolist() == [len(lists.take(shared.of[[i]]).values) for i in range(25)]


def test_scores_of_lists_equal_those_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardneg.mining.filters.base._MOST_SCORED", 16)
    rng = np.random.default_rng(2)
    index, queries = ExactIndex(vectors(40)), vectors(30, seed=3)
    lists = Ragged.from_pairs(rng.integers(0, 30, 200) ** 2 // 30, rng.integers(0, 40, 200), 30)
    scores = index_scores(index, queries, lists)
    table = index.pair_scores(queries, lists.padded())
    np.testing.assert_array_equal(scores.values, table[lists.padded() >= 0])
    expected = np.where(np.isinf(table), np.inf, table).min(1)
    np.testing.assert_array_equal(lowest_scores(scores), np.where(np.isinf(expected), np.nan, expected))


def test_a_query_with_very_many_positives_takes_memory_for_itself_only(tmp_path: Any) -> None:
    many, n = 8000, 1500
    positives = [[f"answer {i}" for i in range(many)], *([f"answer {i}"] for i in range(1, n))]
    pairs = pairs_of([f"question {i}" for i in range(n)], positives, [f"other {i}" for i in range(200)])
    given = vectors(n), vectors(len(pairs.document_ids), seed=1)
    # A table of all queries with the most positives has 12 million entries: 96 MB of rows alone.
    used = peak_of(lambda: mine(pairs, tmp_path / "run", MineOptions(depth=20, negatives=3), vectors=given, force=True))
    assert used < 60e6
    run = hardneg.Run(tmp_path / "run")
    rows = run.negatives().to_pylist()
    assert len(rows[0]["positive_scores"]) == many
    index = ExactIndex(given[1])
    expected = index.pair_scores(given[0][:1], pairs.positives.take(np.array([0])).padded())[0]
    np.testing.assert_array_equal(np.array(rows[0]["positive_scores"], np.float32), expected)
    again = run.select(tmp_path / "again", negatives=2)
    assert len(again.negatives().to_pylist()[0]["positive_scores"]) == many


class Counting(ExactIndex):
    """Counts the searches: each reads all documents."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.asked: list[tuple[int, int]] = []

    def search(self, queries: Any, k: int, progress: Any = None) -> Neighbors:
        self.asked.append((len(queries), k))
        return super().search(queries, k, progress)


@pytest.mark.parametrize("filters", [("margin:relative=0.3",), ("rank:min=25",)])
def test_all_short_queries_are_searched_deeper_in_one_pass(
    filters: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 100
    pairs = pairs_of(
        [f"question {i}" for i in range(n)], [[f"answer {i}"] for i in range(n)], [f"x {i}" for i in range(900)]
    )
    asked = vectors(n)
    documents = vectors(1000, seed=4)
    documents[:n] = asked * 0.9 + documents[:n] * 0.1

    def mined(block: int, ahead: int) -> tuple[list[tuple[int, int]], list[Any]]:
        monkeypatch.setattr("hardneg.mining.miner._BLOCK", block)
        monkeypatch.setattr("hardneg.mining.miner._AHEAD", ahead)
        index = Counting(documents)
        miner = Miner(
            pairs,
            asked,
            index,
            parse_filters(filters, True),
            parse_sampler("top"),
            depth=10,
            max_depth=160,
            negatives=4,
        )
        parts = [miner.mine(start, min(start + 32, n)) for start in range(0, n, 32)]
        out = [
            (p.chosen.tolist(), p.candidates.documents.tolist(), p.verdicts.tolist(), p.widened, p.positive_scores.values.tolist())
            for p in parts
        ]  # fmt: skip
        return index.asked, out

    searches, expected = mined(16, 16)
    assert len(searches) > 10
    few, found = mined(16, 1 << 16)
    assert [k for _, k in few] == sorted({k for _, k in searches})  # one pass for each depth
    assert [row[0] for part in found for row in [part]] == [part[0] for part in expected]
    assert [part[3] for part in found] == [part[3] for part in expected]
    assert sum(part[3] for part in found) > 0
    assert [part[4] for part in found] == [part[4] for part in expected]


def test_slow_filters_are_asked_for_one_block_at_a_time() -> None:
    chain = parse_filters(("cross-encoder:NAME,max=0.5",), True)
    assert chain.slow
    assert not parse_filters(("margin:relative=0.1",), True).slow
