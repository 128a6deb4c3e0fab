"""NeighborGraph and votes against sets and counters."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardneg.false_negatives import shared_neighbors as c
from hardneg.index.vectors import VectorStore
from hardneg.storage.arrays import Ragged

from .conftest import unit


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_most_counted_equals_a_counter(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    n, m, size, width = (data.draw(st.integers(low, high)) for low, high in ((1, 6), (1, 30), (1, 12), (1, 40)))
    ids, weights = rng.integers(0, size + 1, (n, m)), rng.integers(0, 5, (n, m))
    found, totals = c.most_counted(ids, weights, size, width)
    assert found.shape == totals.shape == (n, width)
    for i in range(n):
        counter: Counter[int] = Counter()
        for key, weight in zip(ids[i].tolist(), weights[i].tolist(), strict=True):
            counter[key] += weight
        expected = sorted(((-w, key) for key, w in counter.items() if key < size and w > 0))[:width]
        expected += [(0, size)] * (width - len(expected))
        assert list(zip((-totals[i]).tolist(), found[i].tolist(), strict=True)) == expected


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 60), copies=st.booleans(), k=st.integers(1, 12))
def test_neighbor_graph_equals_sorting(seed: int, size: int, copies: bool, k: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = unit(rng.standard_normal((size, 8)))
    if copies:
        vectors = vectors[rng.integers(0, max(1, size // 3), size)]
    graph, reach = c.neighbor_graph(VectorStore(vectors), k)
    scores = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    np.fill_diagonal(scores, -9)
    for i, row in enumerate(graph):
        real = row[row >= 0]
        assert len(real) == min(k, size - 1) == len(set(real.tolist()))
        assert i not in real or copies
        best = np.sort(scores[i])[::-1][: len(real)]
        np.testing.assert_allclose(np.sort(scores[i][real[real != i]])[::-1][:1], best[:1], atol=1e-6)
        if len(real):
            np.testing.assert_allclose(reach[i], best[-1], atol=1e-6)
        else:
            assert reach[i] == -np.inf


def naive_vector(near: list[list[int]], seeds: list[int]) -> Counter[int]:
    """How many of the seeds have each document among their near ones."""
    counter: Counter[int] = Counter()
    for seed in seeds:
        counter.update(near[seed])
    return counter


def cosine(a: Counter[int], b: Counter[int]) -> float:
    lengths = [sum(v * v for v in x.values()) ** 0.5 for x in (a, b)]
    return sum(v * b[key] for key, v in a.items()) / max(1e-9, lengths[0] * lengths[1])


def world(seed: int, size: int, queries: int) -> tuple[c.NeighborGraph, np.ndarray, list[list[int]]]:
    rng = np.random.default_rng(seed)
    vectors = unit(rng.standard_normal((size, 6)))
    graph = c.NeighborGraph.of(VectorStore(vectors), nearest=8)
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, 9)  # every document is its own nearest
    near = [np.argsort(-row, kind="stable")[:8].tolist() for row in scores]
    found = np.argsort(-(unit(rng.standard_normal((queries, 6))) @ vectors.T), 1)[:, : min(size, 12)].astype(np.int32)
    return graph, found, near


@pytest.mark.parametrize("size", [1, 5, 7, 90])
@pytest.mark.parametrize("block", [1, 1 << 18])
def test_similarities_equal_counters(size: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c, "_GATHERED", block)
    graph, found, near = world(0, size, 9)
    rng = np.random.default_rng(1)
    documents = rng.integers(-1, size, (9, 5)).astype(np.int32)
    positives = rng.integers(0, size, 9)
    first, second = graph.similarities([graph.of_queries(found), graph.vectors.take(positives)], documents)
    for i in range(9):
        query = naive_vector(near, found[i, :10].tolist())
        positive = naive_vector(near, near[positives[i]])
        for j, d in enumerate(documents[i].tolist()):
            vector = naive_vector(near, near[d]) if d >= 0 else Counter()
            assert first[i, j] == pytest.approx(cosine(query, vector), abs=1e-5)
            assert second[i, j] == pytest.approx(cosine(positive, vector), abs=1e-5)


def test_the_same_bits_whatever_the_threads_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, found, _ = world(3, 400, 64)
    documents = np.random.default_rng(0).integers(-1, 400, (64, 20)).astype(np.int32)
    nearest = found[:, :10]
    positives = Ragged.from_pairs(np.arange(64), np.arange(64), 64)
    answers = []
    for threads, rows in ((1, 512), (3, 8), (2, 64)):
        monkeypatch.setattr(c, "_ROWS", rows)
        monkeypatch.setattr(c, "_GATHERED", 1 << (10 + threads))
        some = c.NeighborGraph(graph.near, graph.farthest_score, graph.vectors, threads)
        votes = c.Votes(some, nearest, positives).of(np.arange(64))
        around = some.of_queries(found)
        answers.append([a.tobytes() for a in some.similarities([around, votes], documents)])
        answers[-1] += [votes.members.tobytes(), votes.counts.tobytes(), around.members.tobytes()]
    assert answers[0] == answers[1] == answers[2]


def test_crowds_keep_their_most_counted_members() -> None:
    near = np.array([[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 0], [5, 0, 1]], np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(c, "WIDTH", 2)
        crowd = c.count_neighbors(near, np.array([[0, 1, 2, -1]]))
    assert crowd.members.tolist() == [[2, 1]]  # three times, twice (as 3, which comes after it)
    assert crowd.counts.tolist() == [[3, 2]]
    np.testing.assert_allclose(crowd.lengths, [13**0.5], rtol=1e-6)


@pytest.mark.parametrize("listed", [64, 3])
def test_votes_equal_loops(listed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Voters are the queries that share most documents; their positives' graph, weighted by the square, pooled."""
    monkeypatch.setattr(c, "_LISTED", listed)
    monkeypatch.setattr(c, "VOTERS", 3)
    graph, found, _ = world(5, 40, 30)
    rng = np.random.default_rng(2)
    nearest = found[:, :10].copy()
    nearest[4, 6:] = -1
    lengths = rng.integers(0, 6, 30)  # none, and more than are looked at
    rows = np.repeat(np.arange(30), lengths)
    positives = Ragged.from_pairs(rows, rng.integers(0, 40, len(rows)), 30)
    votes = c.Votes(graph, nearest, positives)
    made = votes.of(np.arange(30))
    votes.keep()
    for asked in (np.arange(7), np.array([12, 3, 5]), np.arange(30), np.array([29, 0])):
        kept = votes.of(asked)
        assert np.array_equal(kept.members, made.members[asked])
        assert np.array_equal(kept.counts, made.counts[asked])
    own = [set(row.tolist()) - {-1} for row in nearest]
    for i in range(30):
        shared: Counter[int] = Counter()
        for d in own[i]:
            finders = [q for q in range(30) if d in own[q] and positives.lengths[q] > 0]
            if len(finders) > listed:
                finders = [finders[len(finders) * j // listed] for j in range(listed)]
            shared.update(q for q in finders if q != i)
        voters = sorted(shared.items(), key=lambda item: (-item[1], item[0]))[:3]
        pooled: Counter[int] = Counter()
        for q, weight in voters:
            for p in positives.take(np.array([q])).values[:4].tolist():
                for member, count in zip(graph.vectors.members[p, :64], graph.vectors.counts[p, :64], strict=True):
                    pooled[int(member)] += int(count) * weight**2
        del pooled[40]
        most = max(pooled.values(), default=0)
        expected = {key: value * 255 // max(most, 255) for key, value in pooled.items()}
        expected = {key: value for key, value in expected.items() if value}
        real = made.counts[i] > 0
        assert dict(zip(made.members[i][real].tolist(), made.counts[i][real].tolist(), strict=True)) == expected
        assert (made.members[i][~real] == 40).all()


def test_nobody_votes_for_himself() -> None:
    graph, found, _ = world(7, 30, 2)
    nearest = np.stack([found[0, :10], np.full(10, -1)])
    votes = c.Votes(graph, nearest, Ragged.from_pairs(np.arange(2), np.array([3, 4]), 2)).of(np.arange(2))
    assert votes.counts.sum() == 0
