"""Exact search against a naive float64 reference, for every kernel and metric."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardneg.errors import DataError, UsageError
from hardneg.index.base import METRICS, Index, Neighbors
from hardneg.index.exact import ExactIndex
from hardneg.index.int8 import int8_is_exact
from hardneg.index.kernel_choice import KERNELS, fastest_kernel, make_kernel
from hardneg.index.kernels import Scale, Workspace
from hardneg.storage.arrays import Rows, Sharded
from tests.conftest import NO_INT8

from .conftest import unit

HERE = [name for name in KERNELS if name != "int8" or int8_is_exact(64)]
EVERY = [pytest.param(name, marks=() if name in HERE else pytest.mark.skip(reason=NO_INT8)) for name in KERNELS]


def naive_scores(queries: np.ndarray, documents: np.ndarray, metric: str) -> np.ndarray:
    q, d = queries.astype(np.float64), documents.astype(np.float64)
    if metric == "l2":
        return -((q[:, None, :] - d[None, :, :]) ** 2).sum(-1)
    if metric == "cosine":
        q, d = q / np.linalg.norm(q, axis=1, keepdims=True), d / np.linalg.norm(d, axis=1, keepdims=True)
    return q @ d.T


KINDS = ["gauss", "shifted", "outlier", "copies", "scaled", "tiny", "large", "far"]


def awkward(kind: str, n: int, size: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 queries `[n, d]` and documents `[size, d]` of a kind that number formats have trouble with."""
    rng = np.random.default_rng(seed)
    queries, documents = rng.standard_normal((n, d)), rng.standard_normal((size, d))
    if kind == "shifted":  # an anisotropic encoder: everything points one way
        queries, documents = queries + 4, documents + 4
    elif kind == "outlier":  # one component dominates, as in many transformers
        documents[:, 0] *= 50
    elif kind == "copies":  # ties
        documents = documents[rng.integers(0, max(1, size // 5), size)]
    elif kind == "scaled":
        documents *= rng.uniform(0.01, 10, (size, 1))
    elif kind == "tiny":
        documents, queries = documents * 1e-4, queries * 1e-4
    elif kind == "large":  # half precision alone would overflow
        documents, queries = documents * 3e3, queries * 3e3
    elif kind == "far":
        queries *= 200
    return queries.astype(np.float32), documents.astype(np.float32)


def tolerances(queries: np.ndarray, documents: np.ndarray, metric: str) -> np.ndarray:
    """float64 `[n]`: how much a float32 score of each query can differ from the true one.

    It is relative to the lengths of the vectors. With an absolute tolerance, every answer would be right for vectors
    that are short enough.
    """
    q, d = (np.linalg.norm(side.astype(np.float64), axis=1) for side in (queries, documents))
    size = {"cosine": np.ones(len(q)), "ip": q * d.max(), "l2": (q + d.max()) ** 2}[metric]
    return 4 * (documents.shape[1] + 8) * 2.0**-24 * size


def check_answer(found: Neighbors, queries: np.ndarray, documents: np.ndarray, k: int, metric: str) -> None:
    truth = naive_scores(queries, documents, metric)
    assert found.scores.shape == found.documents.shape == (len(queries), k)
    for i, tolerance in enumerate(tolerances(queries, documents, metric)):
        assert len(set(found.documents[i].tolist())) == k
        np.testing.assert_allclose(found.scores[i], truth[i, found.documents[i]], rtol=0, atol=tolerance)
        kth = np.sort(truth[i])[-k]
        # Nothing clearly better than the k-th best is missing, nothing clearly worse is in.
        missing = np.setdiff1d(np.flatnonzero(truth[i] > kth + tolerance), found.documents[i])
        assert len(missing) == 0
        assert (truth[i, found.documents[i]] >= kth - tolerance).all()
        assert (np.diff(found.scores[i]) <= 0).all()


def check(queries: np.ndarray, documents: np.ndarray, k: int, metric: str, kernel: str) -> None:
    found = ExactIndex(documents, metric, kernel).search(queries, k)
    check_answer(found, queries, documents, k, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1.0, 1e12])
def test_the_check_itself_can_fail(metric: str, scale: float) -> None:
    """The worst neighbors, and scores that are slightly off, are noticed for vectors of every length."""
    queries, documents = (np.float32(scale) * side for side in awkward("gauss", 5, 300, 24, 0))
    index = ExactIndex(documents, metric)
    right, whole = index.search(queries, 20), index.search(queries, 300)
    check_answer(right, queries, documents, 20, metric)
    worst = Neighbors(whole.scores[:, -20:], whole.documents[:, -20:])
    off = Neighbors(right.scores * np.float32(1 + 1e-3), right.documents)
    next_best = np.concatenate([whole.documents[:, :19], whole.documents[:, 30:31]], axis=1)
    second = Neighbors(index.pair_scores(queries, next_best), next_best)
    for wrong in (worst, off, second):
        with pytest.raises(AssertionError):
            check_answer(wrong, queries, documents, 20, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kernel", EVERY)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_equals_naive(metric: str, kernel: str, data: st.DataObject) -> None:
    n, size, d = (data.draw(st.integers(1, high)) for high in (20, 700, 70))
    seed = data.draw(st.integers(0, 2**31))
    kind = data.draw(st.sampled_from(KINDS))
    queries, documents = awkward(kind, n, size, d, seed)
    check(queries, documents, data.draw(st.integers(1, size)), metric, kernel)


@pytest.mark.parametrize("kernel", EVERY)
def test_many_tiles(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardneg.index.vectors.TILE_BYTES", 16 * 4 * 100)
    rng = np.random.default_rng(1)
    documents = unit(rng.standard_normal((1003, 16)))
    queries = unit(rng.standard_normal((50, 16)))
    check(queries, documents, 30, "cosine", kernel)
    check(
        queries, documents[np.argsort(documents @ queries[0])], 30, "cosine", kernel
    )  # every tile better than the last


def test_answer_depends_on_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    documents = unit(rng.standard_normal((3000, 32)))[rng.integers(0, 2000, 3000)]
    queries = unit(rng.standard_normal((200, 32)))
    first = ExactIndex(documents, kernel="float32", threads=1).search(queries, 50)
    for kernel in HERE:
        for tile_bytes, threads in ((96 << 20, 1), (4 * 32 * 500, 3)):
            monkeypatch.setattr("hardneg.index.vectors.TILE_BYTES", tile_bytes)
            again = ExactIndex(documents, kernel=kernel, threads=threads).search(queries, 50)
            assert again.scores.tobytes() == first.scores.tobytes()
            assert again.documents.tobytes() == first.documents.tobytes()
    part = ExactIndex(documents).search(queries[70:71], 50)
    assert part.scores.tobytes() == first.scores[70:71].tobytes()


@pytest.mark.parametrize("kernel", EVERY)
@pytest.mark.parametrize("kind", ["gauss", "sorted", "copies", "one place"])
def test_whatever_was_guessed_the_answer_is_exact(kernel: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds guessed from a sample that misleads, pairs rescored many times within a tile, tables cut small."""
    import hardneg.index.thresholds as scan

    rng = np.random.default_rng(7)
    documents = unit(rng.standard_normal((4000, 24)))
    queries = unit(rng.standard_normal((90, 24)))
    if kind == "sorted":
        documents = documents[np.argsort(documents @ queries[0])]
    elif kind == "copies":
        documents = documents[rng.integers(0, 300, 4000)]
    elif kind == "one place":  # the sample sees the neighbors and little else
        near = np.linspace(0, 3999, 64).astype(np.int64)[:30]
        queries = unit(queries[:1] + 0.1 * rng.standard_normal((90, 24)))
        documents[near] = unit(queries[:30] + 0.1 * rng.standard_normal((30, 24)))
    truth = ExactIndex(documents, kernel="float32", threads=1).search(queries, 40)
    check(queries, documents, 40, "cosine", "float32")
    attempts = []
    run = scan._Attempt.run
    monkeypatch.setattr(scan._Attempt, "run", lambda self: attempts.append(self.topk.real) or run(self))
    for name, value in (
        ("_SAMPLE", 64),
        ("_GENEROSITY", 0.3),
        ("_QUERIES", 32),
        ("_MOST_WAITING", 500),
    ):
        monkeypatch.setattr(scan, name, value)
    monkeypatch.setattr("hardneg.index.topk._TABLE", 300)
    monkeypatch.setattr(scan, "_PRODUCT_BYTES", 4096)
    found = ExactIndex(documents, kernel=kernel, threads=2).search(queries, 40)
    assert found.scores.tobytes() == truth.scores.tobytes()
    assert found.documents.tobytes() == truth.documents.tobytes()
    assert len(attempts) > 4  # four blocks of queries: some were scanned again
    assert attempts.count(24) + attempts.count(32) < len(attempts)


def test_without_int8_another_kernel_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import hardneg.index.kernel_choice as kernels
    import hardneg.index.vectors as corpus

    for module in (corpus, kernels):
        monkeypatch.setattr(module, "int8_is_exact", lambda dimension: False)
    fastest_kernel.cache_clear()
    documents = np.eye(37, dtype=np.float32)
    assert ExactIndex(documents).search(documents, 1).documents[:, 0].tolist() == list(range(37))
    assert fastest_kernel(37) in ("float32", "bfloat16")
    with pytest.raises(UsageError, match="no exact 8-bit product.*'auto'"):
        ExactIndex(documents, kernel="int8")
    fastest_kernel.cache_clear()


def test_int8_refuses_what_it_cannot_sum() -> None:
    assert not int8_is_exact(1 << 16)


def test_ties_are_ordered_by_row() -> None:
    documents = np.tile(np.array([[1.0, 0.0]], np.float32), (500, 1))
    found = ExactIndex(documents).search(documents[:1], 20)
    assert found.documents[0].tolist() == list(range(20))


def test_pair_scores_equal_search_scores() -> None:
    rng = np.random.default_rng(3)
    documents = rng.standard_normal((400, 24)).astype(np.float16)
    queries = rng.standard_normal((30, 24)).astype(np.float32)
    for metric in METRICS:
        index = ExactIndex(documents, metric)
        found = index.search(queries, 25)
        again = index.pair_scores(queries, found.documents)
        assert again.tobytes() == found.scores.tobytes()
    holes = np.where(np.arange(25) % 2, found.documents, -1)
    assert np.isneginf(index.pair_scores(queries, holes)[:, ::2]).all()


@settings(max_examples=50, deadline=None)
@given(
    kernel=st.sampled_from(HERE),
    d=st.integers(1, 200),
    seed=st.integers(0, 2**31),
    shift=st.floats(0, 10),
    scale=st.floats(1e-3, 1e3),
)
def test_bound_holds(kernel: str, d: int, seed: int, shift: float, scale: float) -> None:
    """The certificate: no approximate score is further from the true one than the kernel says."""
    rng = np.random.default_rng(seed)
    documents = ((rng.standard_normal((64, d)) + shift) * scale).astype(np.float32)
    queries = (rng.standard_normal((16, d)) + shift).astype(np.float32)
    made = make_kernel(kernel, documents)
    tile, block = made.tile(documents), made.packed(made.rounded(queries))
    approximate = made.scores(block, tile).astype(np.float64)
    truth = documents.astype(np.float64) @ queries.astype(np.float64).T
    bound = made.bound(block, tile)
    assert (np.abs(approximate - truth) <= bound).all()
    # What reaches a threshold is reported, with a level that is right but for one step.
    lowest = np.quantile(approximate, 0.7, axis=0).astype(np.float32)
    lowest[-1] = np.inf
    step = (np.where(np.isinf(lowest), 0, approximate.max(0) - lowest) / 200 + 1e-3 * bound).astype(np.float32)
    positions, levels = made.levels(block, tile, Scale(lowest, step), Workspace())
    rows, columns = np.divmod(positions, 16)
    assert (np.diff(positions) > 0).all()
    assert (columns < 15).all()
    assert (np.abs(lowest[columns] + levels * step[columns] - approximate[rows, columns]) <= 1.01 * step[columns]).all()
    clear = approximate >= lowest + step
    assert set(zip(*np.nonzero(clear), strict=True)) <= set(zip(rows, columns, strict=True))


def test_reads_shards_and_rows() -> None:
    rng = np.random.default_rng(4)
    whole = rng.standard_normal((100, 8)).astype(np.float16)
    sharded = Sharded([whole[:30], whole[30:35], whole[35:]])
    queries = rng.standard_normal((5, 8)).astype(np.float32)
    expected = ExactIndex(whole).search(queries, 10)
    assert ExactIndex(sharded).search(queries, 10).documents.tobytes() == expected.documents.tobytes()
    for span in (slice(0, 100), slice(10, 33), slice(29, 36), slice(40, 40), slice(0, 100, 7)):
        np.testing.assert_array_equal(sharded[span], whole[span])
    mask = np.arange(100) % 9 == 0
    for chosen in (np.array([99, 0, 34, 34]), np.array([-1, -100]), np.empty(0, np.int64), mask, ~mask & mask):
        np.testing.assert_array_equal(sharded[chosen], whole[chosen])
    rows = np.array([5, 50, 7])
    np.testing.assert_array_equal(Rows(whole, rows)[1:], whole[[50, 7]])


def test_is_an_index() -> None:
    index = ExactIndex(np.eye(3, dtype=np.float32))
    assert isinstance(index, Index)
    assert (index.size, index.dimension) == (3, 3)
    assert fastest_kernel(64) in KERNELS


def test_progress_adds_up() -> None:
    rng = np.random.default_rng(5)
    seen: list[int] = []
    ExactIndex(rng.standard_normal((333, 8)).astype(np.float32)).search(np.ones((77, 8), np.float32), 5, seen.append)
    assert sum(seen) == 333 * 77


@pytest.mark.parametrize(
    ("bad", "message"),
    [(np.nan, "NaN or infinite.*rows 3, 7"), (np.inf, "NaN or infinite.*rows 3, 7"), (0.0, "all zero.*rows 3, 7")],
)
def test_bad_vectors_are_named(bad: float, message: str) -> None:
    documents = np.ones((10, 4), np.float32)
    documents[[3, 7]] = bad
    with pytest.raises(DataError, match=message):
        ExactIndex(documents)
    with pytest.raises(DataError, match=message):
        ExactIndex(np.ones((10, 4), np.float32)).search(documents, 2)


def test_bad_arguments() -> None:
    documents = np.ones((10, 4), np.float32)
    with pytest.raises(UsageError, match="Did you mean 'cosine'"):
        ExactIndex(documents, "cosin")
    with pytest.raises(UsageError, match="Did you mean 'int8'"):
        ExactIndex(documents, kernel="int")
    with pytest.raises(DataError, match="no vectors"):
        ExactIndex(np.ones((0, 4), np.float32))
    with pytest.raises(DataError, match="4 dimensions"):
        ExactIndex(documents).search(np.ones((1, 5), np.float32), 1)
    with pytest.raises(UsageError, match="must be 1 to 10"):
        ExactIndex(documents).search(documents, 11)
