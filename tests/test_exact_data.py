"""Exact search on data that number formats have trouble with: equal to a full sort of all scores, bit for bit.

The reference has nothing of the search in it: `pair_scores` gives the score of every pair, and a stable sort of each row
of them gives the answer.
"""

from __future__ import annotations

import numpy as np
import pytest

import hardneg.index.thresholds as thresholds
from hardneg.index.base import METRICS, ScoredVectors
from hardneg.index.cuda import DeviceIndex
from hardneg.index.exact import ExactIndex
from hardneg.index.ivf import IVFIndex
from hardneg.index.kernel_choice import KERNELS, make_kernel
from hardneg.index.kernels import Tile

from .conftest import unit
from .emulated_int8 import emulate_int8

Pair = tuple[np.ndarray, np.ndarray]


def orthogonal_to_the_mean(rng: np.random.Generator, n: int, size: int, d: int, spread: float) -> Pair:
    """Documents far from the origin, and queries that see only the little by which they differ."""
    mean = rng.standard_normal(d)
    mean *= 10 / np.linalg.norm(mean)
    queries = rng.standard_normal((n, d))
    queries -= np.outer(queries @ mean / (mean @ mean), mean)
    return queries, mean + spread * rng.standard_normal((size, d))


def make(kind: str, n: int, size: int, d: int, rng: np.random.Generator) -> Pair:
    """Queries `[n, d]` and documents `[size, d]`, float16 or float32."""
    q, x = rng.standard_normal((n, d)), rng.standard_normal((size, d))
    if kind == "unit":
        q, x = unit(q), unit(x)
    elif kind == "tiny":
        q, x = q * 1e-20, x * 1e-20
    elif kind == "tiny against large":
        q, x = q * 1e-25, x * 1e12
    elif kind == "huge":
        q, x = q * 1e15, x * 1e15
    elif kind == "far mean":
        q, x = q + 10, 100 + 1e-4 * x
    elif kind == "orthogonal to the mean":
        q, x = orthogonal_to_the_mean(rng, n, size, d, 1e-6)
    elif kind == "opposite":
        q, x = -np.abs(q), 1e-18 * np.abs(x)
    elif kind == "copies":
        x = x[rng.integers(0, max(1, size // 8), size)]
    elif kind == "near copies":
        x = x[rng.integers(0, max(1, size // 8), size)] * (1 + 1e-7 * rng.standard_normal((size, d)))
    elif kind == "clusters":
        centers = rng.standard_normal((5, d))
        q, x = centers[rng.integers(0, 5, n)] + 0.01 * q, centers[rng.integers(0, 5, size)] + 0.01 * x
    elif kind == "one dimension":
        q, x = q[:, :1], x[:, :1]
    elif kind == "constant columns":
        q[:, ::2], x[:, ::2] = 3, 7
    elif kind == "zeros":
        q[::3], x[::5] = 0, 0
    elif kind == "sparse":
        q, x = q * (rng.random((n, d)) < 0.1), x * (rng.random((size, d)) < 0.1)
        q[:, 0], x[:, 0] = q[:, 0] + 1e-3, x[:, 0] + 1e-3
    elif kind == "heavy tails":
        q, x = rng.standard_cauchy((n, d)), rng.standard_cauchy((size, d))
    elif kind == "float16":
        return q.astype(np.float16), x.astype(np.float16)
    elif kind == "denormals":
        q, x = q, x * 1e-39
    elif kind == "alternating signs":
        x = np.abs(x) * (-1.0) ** np.arange(d)
        q = 1 + 1e-3 * q
    elif kind == "low rank":
        basis = rng.standard_normal((2, d))
        q, x = q[:, :1] * basis[0] + basis[1], np.outer(x[:, 0], basis[0]) + np.outer(x[:, -1], basis[1])
    elif kind == "integers":
        q, x = rng.integers(-3, 4, (n, d)), rng.integers(-3, 4, (size, d))
        q[:, 0], x[:, 0] = 1, 1
    elif kind == "queries are documents":
        q = x[rng.integers(0, size, n)]
    elif kind == "mixed norms":
        q, x = q * 10 ** rng.uniform(-6, 6, (n, 1)), x * 10 ** rng.uniform(-6, 6, (size, 1))
    elif kind == "quantised":
        q, x = np.round(q * 2) / 2 + 0.25, np.round(x * 2) / 2 + 0.25
    elif kind == "half are one document":
        x[: size // 2] = x[0]
    return q.astype(np.float32), x.astype(np.float32)


KINDS = (
    "gauss", "unit", "tiny", "tiny against large", "huge", "far mean", "orthogonal to the mean", "opposite", "copies",
    "near copies", "clusters", "one dimension", "constant columns", "zeros", "sparse", "heavy tails", "float16",
    "denormals", "alternating signs", "few documents", "k is n", "low rank", "integers", "queries are documents",
    "mixed norms", "quantised", "half are one document",
)  # fmt: skip
WITHOUT_COSINE = ("zeros", "denormals")  # cosine refuses vectors without a direction


def full_sort(index: ScoredVectors, queries: np.ndarray, k: int) -> Pair:
    """(scores, documents) `[n, k]`: the first k of a stable sort of all scores."""
    every = np.broadcast_to(np.arange(index.size), (len(queries), index.size))
    scores = index.pair_scores(queries, np.ascontiguousarray(every))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), order.astype(np.int32)


def check(index: ExactIndex | DeviceIndex | IVFIndex, queries: np.ndarray, k: int) -> None:
    found = index.search(queries, k)
    scores, documents = full_sort(index, queries, k)
    np.testing.assert_array_equal(found.documents, documents)
    assert found.scores.tobytes() == scores.tobytes()


@pytest.fixture(autouse=True)
def _several_tiles_and_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    emulate_int8(monkeypatch)
    monkeypatch.setattr("hardneg.index.vectors.VectorStore.tile_rows", 250)
    monkeypatch.setattr("hardneg.index.cuda._TILE_ROWS", 250)
    monkeypatch.setattr(thresholds, "_SAMPLE", 100)


@pytest.mark.parametrize(
    ("kind", "metric"),
    [(kind, metric) for kind in KINDS for metric in METRICS if metric != "cosine" or kind not in WITHOUT_COSINE],
)
@pytest.mark.parametrize("kernel", [*KERNELS, "device", "ivf"])
def test_equals_a_full_sort(kind: str, kernel: str, metric: str) -> None:
    rng = np.random.default_rng(KINDS.index(kind))
    for size in (1, 2, 3) if kind == "few documents" else (600,):
        queries, documents = make(kind, 12, size, 24, rng)
        for k in {size} if kind in ("few documents", "k is n") else (1, 20):
            check(built(kernel, documents, metric), queries, k)


def built(kernel: str, documents: np.ndarray, metric: str) -> ExactIndex | DeviceIndex | IVFIndex:
    if kernel == "device":
        return DeviceIndex(documents, metric, device="cpu")
    if kernel == "ivf":
        return IVFIndex(documents, metric, lists=min(8, len(documents)), probe_margin=np.inf, threads=1)
    return ExactIndex(documents, metric, kernel, threads=1)


@pytest.mark.faults
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kernel", [*KERNELS, "device", "ivf"])
@pytest.mark.parametrize("seed", range(12))
def test_equals_a_full_sort_at_random(seed: int, kernel: str, metric: str) -> None:
    """Other sizes, dimensions, spreads and scales."""
    rng = np.random.default_rng([seed, 7])
    for kind in KINDS:
        if metric == "cosine" and kind in WITHOUT_COSINE:
            continue
        n, size, d = int(rng.integers(1, 40)), int(rng.integers(1, 1500)), int(rng.integers(1, 130))
        queries, documents = make(kind, n, size, d, rng)
        if kind == "orthogonal to the mean" and d > 1:
            queries, documents = (
                side.astype(np.float32)
                for side in orthogonal_to_the_mean(rng, n, size, d, float(10 ** rng.uniform(-7, 0)))
            )
        check(built(kernel, documents, metric), queries, int(rng.integers(1, size + 1)))


def error_over_bound(kernel: str, queries: np.ndarray, documents: np.ndarray) -> float:
    """The largest ratio of the error of an approximate score, against the rescored one, to the bound of its query."""
    made = make_kernel(kernel, documents)
    tile: Tile = made.tile(documents)
    block = made.packed(made.rounded(queries))
    every = np.broadcast_to(np.arange(len(documents)), (len(queries), len(documents)))
    truth = ExactIndex(documents, "ip", "float32").pair_scores(queries, np.ascontiguousarray(every))
    error = np.abs(made.scores(block, tile).T.astype(np.float64) - truth)
    return float((error / np.maximum(made.bound(block, tile)[:, None], 1e-300)).max())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", KINDS)
def test_bound_holds_on_such_data(kind: str, kernel: str) -> None:
    rng = np.random.default_rng(KINDS.index(kind))
    queries, documents = (side.astype(np.float32) for side in make(kind, 24, 300, 48, rng))
    assert error_over_bound(kernel, queries, documents) <= 1


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("spread", [1e-3, 1e-5, 1e-6, 1e-7])
def test_queries_orthogonal_to_the_mean_of_the_documents(spread: float, kernel: str) -> None:
    """The score of the center is 0 then, but not its rounding error, which is larger than all differences of scores."""
    rng = np.random.default_rng(1)
    queries, documents = (side.astype(np.float32) for side in orthogonal_to_the_mean(rng, 64, 1000, 128, spread))
    assert error_over_bound(kernel, queries, documents) <= 1
    check(ExactIndex(documents, "ip", kernel, threads=1), queries, 10)
