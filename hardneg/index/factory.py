"""Make an index by name or by size, tune it to a recall, and measure its recall."""

from __future__ import annotations

from typing import Any

import numpy as np

from hardneg.errors import UsageError, suggestion
from hardneg.index.base import Index, IndexSpec
from hardneg.index.cuda import DeviceIndex
from hardneg.index.exact import ExactIndex
from hardneg.index.hnsw import HNSWIndex
from hardneg.index.ivf import IVFIndex
from hardneg.index.recall import Recall, shares_found
from hardneg.index.vectors import Documents

INDEXES = ("auto", "exact", "ivf", "hnsw")

_SAMPLE = 2048  # queries that are searched exactly: half for tuning, half for measuring


def fastest_index(documents: int, queries: int) -> str:
    """`exact` or `ivf`, whichever was faster to build and search in total; HNSW never was (benchmarks/RESULTS.md).

    The choice depends only on the sizes: the same work gets the same index on every machine.
    """
    # Centroids pay off when many queries share their cost, and when a list is a small part of the corpus.
    return "ivf" if documents >= 100_000 and queries >= 16_384 else "exact"


def make_index(
    name: IndexSpec,
    documents: Documents,
    metric: str = "cosine",
    *,
    queries: Any = None,
    k: int = 100,
    recall: float = 0.95,
    seed: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    **settings: Any,
) -> tuple[Index, Recall]:
    """Make an index, tuned to a recall that is measured against exact search.

    Args:
        name: one of `INDEXES`; or an index over `documents`, or a function that makes one (see `Index`). The recall of a given
            index is measured, but it is not tuned.
        documents, metric, threads: see `VectorStore`.
        queries: float `[n, d]`, the queries to be searched, or similar ones. A sample of them is searched exactly. By default the
            documents themselves.
        k: the number of neighbors to be searched for; the recall is measured at k.
        recall: target, above 0 and at most 1.
        seed: random seed of the samples of queries and of documents.
        device: device of an exact index, `cuda` for example. Scores on another device differ by rounding.
        settings: settings of the index, see its class.

    Raises:
        UsageError: the name is unknown, the recall is out of range, or the object is not an index of these documents.

    >>> index, recall = make_index("auto", np.eye(4, dtype=np.float32))
    >>> index.name, recall.measured
    ('exact', 1.0)
    """
    if not 0 < recall <= 1:
        raise UsageError(f"recall={recall} must be above 0 and at most 1")
    if not isinstance(name, str):
        return _given_index(name, documents, metric, queries, k, recall, seed)
    if name not in INDEXES:
        raise UsageError(f"unknown index {name!r}.{suggestion(name, INDEXES)}")
    if settings and name not in ("ivf", "hnsw"):
        raise UsageError(f"the setting {next(iter(settings))!r} belongs to the index 'ivf' or 'hnsw', not to {name!r}")
    if device != "cpu":
        if name not in ("auto", "exact"):
            raise UsageError(f"the index {name!r} runs on the processor: use the index 'exact' on {device!r}")
        return DeviceIndex(documents, metric, device=device), Recall(1.0, 0.0, recall, k, 0)
    queries = documents if queries is None else queries
    if name == "auto":
        name = fastest_index(len(documents), len(queries))
    if name == "exact" or recall == 1:
        return ExactIndex(documents, metric, threads=threads), Recall(1.0, 0.0, recall, k, 0)
    index: IVFIndex | HNSWIndex
    if name == "ivf":
        index = IVFIndex(documents, metric, seed=seed, threads=threads, **settings)
    else:
        index = HNSWIndex(documents, metric, threads=threads, **settings)
    return index, tuned(index, queries, min(k, index.size), recall, seed)


def _given_index(
    given: IndexSpec, documents: Documents, metric: str, queries: Any, k: int, recall: float, seed: int
) -> tuple[Index, Recall]:
    """Check an index that a caller built, or build it with the given function, and measure its recall."""
    ready = isinstance(given, Index) and not isinstance(given, type)
    index: Any = given if ready or not callable(given) else given(documents, metric)
    wanted = ("name", "resident", "documents", "metric", "threads", "size", "dimension", "search", "pair_scores")
    missing = [each for each in wanted if not hasattr(index, each)]
    if missing:
        raise UsageError(f"{type(index).__name__} is no index: it lacks {', '.join(missing)} (see hardneg.index.Index)")
    if (index.size, index.dimension) != documents.shape or index.metric != metric:
        raise UsageError(
            f"the index {index.name!r} holds {index.size:,} vectors of {index.dimension} dimensions with the metric "
            f"{index.metric!r}; the corpus has {documents.shape[0]:,} of {documents.shape[1]}, to be compared by {metric!r}"
        )
    if isinstance(index, ExactIndex):
        return index, Recall(1.0, 0.0, recall, k, 0)
    asked, k = documents if queries is None else queries, min(k, index.size)
    rows = np.sort(np.random.default_rng(seed).permutation(len(asked))[: _SAMPLE // 2])
    some = np.asarray(asked[rows], np.float32)
    truth = ExactIndex(documents, metric, threads=index.threads).search(some, k).documents
    shares = shares_found(index.search(some, k).documents, truth)
    return index, Recall(float(shares.mean()), float(shares.std()) / len(shares) ** 0.5, recall, k, len(shares))


def tuned(index: IVFIndex | HNSWIndex, queries: Any, k: int, recall: float, seed: int = 0) -> Recall:
    """Tune an index on one half of a sample of the queries, and measure it on the other half."""
    chosen = np.random.default_rng(seed).permutation(len(queries))[:_SAMPLE]
    halves = np.sort(chosen[::2]), np.sort(chosen[1::2] if len(chosen) > 1 else chosen)
    exact = ExactIndex(index.documents, index.metric, threads=index.threads)
    both = np.asarray(queries[np.concatenate(halves)], np.float32)
    truth = exact.search(both, k).documents
    half = len(halves[0])
    index.tune(both[:half], truth[:half], recall)
    # A little more than asked for: another sample differs by about a standard error.
    shares = index.recalls(both[:half], truth[:half])
    index.tune(both[:half], truth[:half], min(1.0, recall + float(shares.std()) / half**0.5))
    shares = index.recalls(both[half:], truth[half:])
    return Recall(float(shares.mean()), float(shares.std()) / len(shares) ** 0.5, recall, k, len(shares))
