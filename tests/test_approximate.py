"""Approximate indexes against exact search: what they find is right, how much they find is what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hardneg.index.factory as choose
import hardneg.index.ivf as ivf
import hardneg.index.list_scan as list_scan
from hardneg.errors import DataError, UsageError
from hardneg.index.base import METRICS, Index
from hardneg.index.exact import ExactIndex
from hardneg.index.factory import INDEXES, fastest_index, make_index
from hardneg.index.hnsw import HNSWIndex
from hardneg.index.ivf import IVFIndex
from hardneg.index.kmeans import Centroids, has_bfloat16
from hardneg.index.recall import shares_found
from hardneg.index.vectors import VectorStore, workers
from hardneg.storage.arrays import Rows, Sharded

from .conftest import unit


def clustered(size: int, dimension: int = 24, seed: int = 0, groups: int = 40) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((groups, dimension))
    return unit(centers[rng.integers(0, groups, size)] + 0.5 * rng.standard_normal((size, dimension)))


def naive_in_lists(index: IVFIndex, queries: np.ndarray, k: int) -> list[set[int]]:
    """The k nearest of the documents in the lists within the probe margin, by float64 products and Python sets."""
    documents = np.asarray(index.documents, np.float64)
    behind = index.centroids._behind(index.prepared(queries))
    lists = index.list_of
    found = []
    for query, row in zip(queries.astype(np.float64), behind, strict=True):
        here = np.flatnonzero(np.isin(lists, np.flatnonzero(row <= index.probe_margin)))
        if index.metric == "l2":
            scores = -((documents[here] - query) ** 2).sum(1)
        else:
            scores = documents[here] @ query
        found.append(set(here[np.argsort(-scores)[:k]].tolist()))
    return found


@pytest.mark.parametrize("metric", METRICS)
def test_answer_is_exact_within_the_lists(metric: str) -> None:
    documents, queries = clustered(3000), clustered(200, seed=1)
    if metric != "cosine":
        documents = documents * np.random.default_rng(2).uniform(0.5, 2, (3000, 1)).astype(np.float32)
    index = IVFIndex(documents, metric, lists=30, probe_margin=0.2)
    found = index.search(queries, 20)
    expected = naive_in_lists(index, queries, 20)
    assert sum(len(set(row) & set(other)) for row, other in zip(found.documents.tolist(), expected, strict=True)) >= (
        0.999 * sum(map(len, expected))
    )
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert index.pair_scores(queries, found.documents).tobytes() == found.scores.tobytes()
    assert sorted(index.order.tolist()) == list(range(3000))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_with_every_list_it_equals_exact_search(data: st.DataObject) -> None:
    metric = data.draw(st.sampled_from(METRICS))
    size, n, d = data.draw(st.integers(1, 600)), data.draw(st.integers(0, 40)), data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    documents = rng.standard_normal((size, d)).astype(np.float32) + data.draw(st.sampled_from([0, 3]))
    if data.draw(st.booleans()):  # copies: empty lists, ties
        documents = documents[rng.integers(0, max(1, size // 8), size)]
    queries = rng.standard_normal((n, d)).astype(np.float32)
    k = data.draw(st.integers(1, size))
    index = IVFIndex(documents, metric, lists=data.draw(st.integers(1, size)), probe_margin=np.inf)
    found, truth = index.search(queries, k), ExactIndex(documents, metric).search(queries, k)
    assert found.scores.tobytes() == truth.scores.tobytes()
    assert found.documents.tobytes() == truth.documents.tobytes()


def test_answer_depends_on_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads, tiles, blocks, how much waits: the same map, the same neighbors."""
    documents, queries = clustered(4000).astype(np.float16), clustered(300, seed=1)
    index = IVFIndex(documents, threads=1, seed=3, probe_margin=0.15)
    first = index.search(queries, 40)
    assert (first.documents >= 0).all()
    kernels = ["float32", "bfloat16"]
    for kernel, threads, tile, block in [
        ("auto", 3, 96 << 20, 64),
        *((name, 2, 24 * 4 * 150, 104) for name in kernels),
    ]:
        monkeypatch.setattr("hardneg.index.vectors.TILE_BYTES", tile)
        monkeypatch.setattr(ivf, "_QUERIES", block)
        monkeypatch.setattr(list_scan, "PART", 40)
        monkeypatch.setattr(list_scan, "MOST_FOUND", 100)
        monkeypatch.setattr("hardneg.index.thresholds._MOST_WAITING", 1000)
        shards = Sharded([documents[:1000], documents[1000:]])
        again = IVFIndex(shards, kernel=kernel, threads=threads, seed=3, probe_margin=0.15)
        assert again.centroids.vectors.tobytes() == index.centroids.vectors.tobytes()
        assert again.order.tobytes() == index.order.tobytes()
        found = again.search(queries, 40)
        assert found.scores.tobytes() == first.scores.tobytes()
        assert found.documents.tobytes() == first.documents.tobytes()
    few = index.search(queries[7:9], 40)
    assert few.documents.tobytes() == first.documents[7:9].tobytes()


def test_a_list_longer_than_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies all stand in one list, which is read in parts."""
    documents = np.concatenate([np.repeat(clustered(1), 700, axis=0), clustered(300, seed=1)]).astype(np.float32)
    queries = np.concatenate([clustered(1), clustered(40, seed=2)])
    monkeypatch.setattr("hardneg.index.vectors.VectorStore.tile_rows", 100)
    index = IVFIndex(documents, lists=3, probe_margin=np.inf)
    assert np.diff(index.offsets).max() >= 700
    for k in (1, 150, 1000):
        found, truth = index.search(queries, k), ExactIndex(documents).search(queries, k)
        assert found.scores.tobytes() == truth.scores.tobytes()
        assert found.documents.tobytes() == truth.documents.tobytes()


def test_queries_in_thin_places_look_further() -> None:
    documents = clustered(500, groups=5)
    index = IVFIndex(documents, lists=100, probe_margin=0.0)
    found = index.search(clustered(50, seed=1, groups=5), 60)
    assert (found.documents >= 0).all()
    assert (index.search(documents[:3], 500).documents >= 0).all()


def test_used_centroids_need_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    documents, queries = clustered(2000), clustered(50, seed=1)
    first = IVFIndex(documents, lists=20, probe_margin=0.1)

    def refuse(*_: object) -> Centroids:
        raise AssertionError("trained again")

    monkeypatch.setattr(Centroids, "train", refuse)
    again = IVFIndex(documents, centroids=first.centroids, probe_margin=0.1)
    assert again.search(queries, 9).documents.tobytes() == first.search(queries, 9).documents.tobytes()


def test_centroids_are_means_of_their_lists() -> None:
    documents = np.repeat(np.eye(6, dtype=np.float32), 50, axis=0) * 3
    documents += 0.01 * np.random.default_rng(0).standard_normal(documents.shape).astype(np.float32)
    with workers(2) as pool:
        clusters = Centroids.train(VectorStore(documents, "l2"), 40, 0, pool)
        nearest = clusters.assign(lambda rows: documents[rows], len(documents))
    distances = ((documents[:, None, :].astype(np.float64) - clusters.vectors) ** 2).sum(-1)
    # Rounding may put a document between two centroids into the farther, hardly farther one.
    chosen = distances[np.arange(len(documents)), nearest]
    assert (chosen <= distances.min(1) + (0.05 if has_bfloat16() else 1e-4)).all()
    assert distances.min(1).max() < 0.1


@pytest.mark.parametrize("name", ["ivf", "hnsw"])
@pytest.mark.parametrize("target", [0.8, 0.97])
def test_recall_is_what_it_says(name: str, target: float) -> None:
    documents = unit(np.random.default_rng(0).standard_normal((3000, 12)))
    queries = unit(np.random.default_rng(1).standard_normal((1500, 12)))
    index, recall = make_index(name, documents, queries=queries, k=30, recall=target)
    truth = ExactIndex(documents).search(queries, 30)
    found = index.search(queries, 30)
    whole = shares_found(found.documents, truth.documents)
    assert abs(whole.mean() - recall.measured) <= 4 * (recall.error + whole.std() / 1500**0.5) + 1e-9
    assert recall.measured >= target - 3 * recall.error
    assert recall.queries == 512
    assert index.pair_scores(queries, found.documents).tobytes() == found.scores.tobytes()
    naive = np.mean([len(set(a) & set(b)) / 30 for a, b in zip(found.documents, truth.documents, strict=True)])
    assert whole.mean() == pytest.approx(naive)


def test_hnsw_is_the_same_every_time() -> None:
    documents, queries = clustered(1500), clustered(60, seed=1)
    runs = [HNSWIndex(documents, "l2", threads=threads, ef_search=40).search(queries, 10) for threads in (1, 2)]
    assert runs[0].documents.tobytes() == runs[1].documents.tobytes()
    assert (runs[0].scores <= 0).all()


def test_hnsw_without_enough_to_find_says_nothing() -> None:
    documents = np.tile(np.eye(2, dtype=np.float32), (200, 1))  # copies: the graph falls apart
    found = HNSWIndex(documents, links=2, ef_construction=4, ef_search=1).search(documents[:2], 150)
    missing = found.documents < 0
    assert np.isneginf(found.scores[missing]).all()
    assert np.isfinite(found.scores[~missing]).all()
    for row in found.documents:
        real = row[row >= 0]
        assert len(set(real.tolist())) == len(real)


@pytest.mark.parametrize("name", INDEXES)
def test_every_name_gives_an_index(name: str) -> None:
    documents = clustered(300)
    seen: list[int] = []
    index, recall = make_index(name, Rows(documents, np.arange(300)), k=10)
    assert isinstance(index, Index)
    assert index.name == ("exact" if name == "auto" else name)
    assert recall.reached
    index.search(documents[:50], 10, seen.append)
    assert sum(seen) == 50 * 300


def test_auto_goes_by_the_sizes() -> None:
    assert fastest_index(50_000, 50_000) == "exact"
    assert fastest_index(1_000_000, 100) == "exact"
    assert fastest_index(1_000_000, 100_000) == "ivf"


def test_full_recall_is_an_exact_index() -> None:
    index, recall = make_index("ivf", clustered(100), recall=1)
    assert isinstance(index, ExactIndex)
    assert (recall.measured, recall.queries) == (1.0, 0)


def test_a_missed_target_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IVFIndex, "tune", lambda self, queries, truth, recall: setattr(self, "probe_margin", 0.0))
    documents = unit(np.random.default_rng(0).standard_normal((2000, 24)))
    _, recall = choose.make_index("ivf", documents, k=20, recall=0.99)
    assert recall.measured < 0.9
    assert not recall.reached


def test_bad_arguments() -> None:
    documents = clustered(50)
    with pytest.raises(UsageError, match="Did you mean 'hnsw'"):
        make_index("hnws", documents)
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        make_index("ivf", documents, recall=1.5)
    with pytest.raises(UsageError, match="'lists' belongs to the index 'ivf' or 'hnsw', not to 'auto'"):
        make_index("auto", documents, lists=3)
    with pytest.raises(UsageError, match="between 1 and 50"):
        IVFIndex(documents, lists=51)
    for index in (IVFIndex(documents), HNSWIndex(documents)):
        with pytest.raises(DataError, match="24 dimensions"):
            index.search(np.ones((1, 5), np.float32), 1)
        with pytest.raises(UsageError, match="must be 1 to 50"):
            index.search(documents, 51)
        with pytest.raises(DataError, match="NaN"):
            index.search(np.full((1, 24), np.nan, np.float32), 1)
