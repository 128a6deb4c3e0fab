"""Choose an index, build it, tune it to a target recall, and measure its recall."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.errors import UsageError, first_few, suggestion
from hardneg.index.base import Index, IndexSpec, checked_answer
from hardneg.index.cuda import DeviceIndex
from hardneg.index.exact import ExactIndex
from hardneg.index.hnsw import HNSWIndex
from hardneg.index.ivf import IVFIndex
from hardneg.index.recall import Recall, shares_found
from hardneg.index.vectors import Documents

INDEXES = ("auto", "exact", "ivf", "hnsw")

AUTO_DOCUMENTS, AUTO_QUERIES = 100_000, 16_384  # from here on, `auto` stands for `ivf`

Truth = Callable[[NDArray[np.int64]], NDArray[np.int32]]

_COMPARED = 1 << 22  # numbers of the documents that are compared with those of an index of the caller's own

_SAMPLE = 1024  # queries in the sample that is also searched exactly: half of them tune the index, half measure it
_FEW = 256  # of them, which are enough where the best list of a query holds nearly all that it looks for
_CLEARLY = 3  # standard errors by which these must exceed the target
_DEEP = 16  # times k documents in a list, from where on that is looked at


def fastest_index(documents: int, queries: int) -> str:
    """The index that `auto` stands for: `exact` or `ivf`, whichever took less time to build and search in benchmarks.

    HNSW was never the fastest (see benchmarks/RESULTS.md). The choice depends only on the number of documents and
    queries, so that the same work gets the same index on every machine.

    >>> fastest_index(documents=1_000_000, queries=100_000)
    'ivf'
    >>> fastest_index(documents=1_000_000, queries=100)  # too few queries to make up for building the lists
    'exact'
    """
    # Training the centroids pays off when many queries share its cost and each list is a small part of the corpus.
    return "ivf" if documents >= AUTO_DOCUMENTS and queries >= AUTO_QUERIES else "exact"


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
    """Build an index and tune it to a target recall, which is measured against exact search.

    Args:
        name: one of `INDEXES`, an index over `documents`, or a function that builds one (see `Index`). An index of your
            own is measured, but not tuned.
        documents, metric, threads: see `VectorStore`. An index of your own has its own number of threads.
        queries: float `[n, d]`, the queries that will be searched, or similar ones; by default the documents. A sample
            of them is searched exactly.
        k: the number of neighbors that searches will ask for. The recall is measured at k.
        recall: the target recall, above 0 and at most 1.
        seed: random seed of the samples of queries and documents.
        device: the device of an exact index, such as `cuda`. Scores on different devices differ by rounding.
        settings: further arguments of `IVFIndex` or `HNSWIndex`, for a recall below 1 (1 stands for exact search).

    Returns:
        (index, its recall).

    Raises:
        UsageError: an argument is unknown, out of range or without effect; an object is no index of these documents.

    >>> index, recall = make_index("auto", np.eye(4, dtype=np.float32))
    >>> index.name, recall.measured
    ('exact', 1.0)
    """
    if not 0 < recall <= 1:
        raise UsageError(f"recall={recall}: it must be above 0 and at most 1")
    if not isinstance(name, str):
        if settings:
            raise UsageError(f"the setting {next(iter(settings))!r} has no effect on an index of your own")
        return _given_index(name, documents, metric, queries, k, recall, seed, device)
    if name not in INDEXES:
        raise UsageError(f"unknown index {name!r}.{suggestion(name, INDEXES)}")
    _check_settings(name, settings, recall)
    if device != "cpu":
        if name not in ("auto", "exact"):
            raise UsageError(f"the index {name!r} runs on the processor only: use the index 'exact' on {device!r}")
        return DeviceIndex(documents, metric, device=device, threads=threads), Recall(1.0, 0.0, recall, k, 0)
    queries = documents if queries is None else queries
    if name == "auto":
        name = fastest_index(len(documents), len(queries))
    if name == "exact" or recall == 1:
        return ExactIndex(documents, metric, threads=threads), Recall(1.0, 0.0, recall, k, 0)
    index = (
        IVFIndex(documents, metric, seed=seed, threads=threads, **settings) if name == "ivf"
        else HNSWIndex(documents, metric, threads=threads, **settings)
    )  # fmt: skip
    return index, tuned(index, queries, min(k, index.size), recall, seed)


def _check_settings(name: str, settings: dict[str, Any], recall: float) -> None:
    """UsageError if a setting is unknown, or has no effect on the index `name`."""
    if not settings:
        return
    first = next(iter(settings))
    if name not in ("ivf", "hnsw"):
        raise UsageError(f"the setting {first!r} belongs to the index 'ivf' or 'hnsw', not to {name!r}")
    if recall == 1:
        raise UsageError(
            f"the setting {first!r} has no effect with recall=1, which stands for exact search: leave it out, or ask "
            f"for a lower recall"
        )
    parameters = inspect.signature(IVFIndex if name == "ivf" else HNSWIndex).parameters
    known = [each for each in parameters if each not in ("documents", "metric", "threads", "seed")]
    for setting in settings:
        if setting not in known:
            raise UsageError(f"unknown setting {setting!r} of the index {name!r}.{suggestion(setting, known)}")


def _given_index(
    given: IndexSpec, documents: Documents, metric: str, queries: Any, k: int, recall: float, seed: int, device: str
) -> tuple[Index, Recall]:
    """Measure the recall of an index that the caller built, or that the caller's function builds."""
    is_index = isinstance(given, Index) and not isinstance(given, type)
    index: Any = given if is_index or not callable(given) else given(documents, metric)
    required = ("name", "resident", "documents", "metric", "threads", "size", "dimension", "search", "pair_scores")
    missing = [each for each in required if not hasattr(index, each)]
    if missing:
        raise UsageError(f"{type(index).__name__} is no index: it lacks {', '.join(missing)} (see hardneg.index.Index)")
    if (index.size, index.dimension) != documents.shape or index.metric != metric:
        raise UsageError(
            f"the index {index.name!r} holds {index.size:,} vectors of {index.dimension} dimensions with the metric "
            f"{index.metric!r}, but the corpus has {documents.shape[0]:,} vectors of {documents.shape[1]} dimensions "
            f"and the metric {metric!r}"
        )
    if device != "cpu" and not isinstance(index, DeviceIndex):
        raise UsageError(
            f"the device {device!r} has no effect on the index {type(index).__name__}, which decides itself where it "
            f"runs: leave the device out"
        )
    _check_same_vectors(index, documents)
    if type(index) in (ExactIndex, DeviceIndex):
        return index, Recall(1.0, 0.0, recall, k, 0)
    queries, k = documents if queries is None or len(queries) == 0 else queries, min(k, index.size)
    rows = np.sort(np.random.default_rng(seed).permutation(len(queries))[: _SAMPLE // 2])
    sample = np.asarray(queries[rows], np.float32)
    truth = ExactIndex(documents, metric, threads=index.threads).search(sample, k).documents
    found = checked_answer(index, index.search(sample, k), len(sample), k)
    shares = shares_found(found.documents, truth)
    return index, _recall(shares, recall, k)


def _check_same_vectors(index: Index, documents: Documents) -> None:
    """UsageError if the vectors of a given index are not these documents. All are compared, or an even sample of them.

    float16 vectors are compared with that precision. For cosine, the index may hold normalized vectors.
    """
    if index.documents is documents:
        return
    size, dimension = documents.shape
    rows = np.unique(np.linspace(0, size - 1, min(size, max(64, _COMPARED // dimension))).astype(np.int64))
    ours = np.asarray(documents[rows], np.float64)
    try:
        theirs = np.asarray(index.documents[rows], np.float64)
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise UsageError(f"the documents of the index {type(index).__name__} cannot be read by row: {error}") from None
    if theirs.shape != ours.shape:
        raise UsageError(
            f"the index {type(index).__name__} gives vectors of the shape {list(theirs.shape)} for {len(rows):,} rows, "
            f"expected {list(ours.shape)}"
        )
    if index.metric == "cosine":
        ours, theirs = (
            side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-300) for side in (ours, theirs)
        )
    half = np.float16 in (np.dtype(documents.dtype), getattr(index.documents, "dtype", None))
    length = np.linalg.norm(ours, axis=1)
    differs = ~(np.linalg.norm(ours - theirs, axis=1) <= (2.0**-9 if half else 1e-5) * length)
    if differs.any():
        raise UsageError(
            f"the index {type(index).__name__} holds other vectors than the corpus: {int(differs.sum()):,} of "
            f"{len(rows):,} compared rows differ, the rows {first_few(rows[differs])}. Build the index of these vectors"
        )


def tuned(index: IVFIndex | HNSWIndex, queries: Any, k: int, recall: float, seed: int = 0) -> Recall:
    """Tune `index` on one half of a sample of the queries, and measure its recall on the other half.

    Arguments are those of `make_index`. A single query serves for both. If there are none, documents take their place.
    """
    sample, half = tuning_sample(queries if len(queries) else index.documents, seed)
    exact = ExactIndex(index.documents, index.metric, threads=index.threads, like=index)
    return tuned_on(index, sample, half, lambda rows: exact.search(sample[rows], k).documents, k, recall)


def tuning_sample(queries: Any, seed: int) -> tuple[NDArray[np.float32], int]:
    """The queries that an index is tuned and measured on, float32 `[m, d]`; and how many of them, from the first, tune it."""
    chosen = np.random.default_rng(seed).permutation(len(queries))[:_SAMPLE]
    halves = np.sort(chosen[::2]), np.sort(chosen[1::2] if len(chosen) > 1 else chosen)
    return np.asarray(queries[np.concatenate(halves)], np.float32), len(halves[0])


def tuned_on(
    index: IVFIndex | HNSWIndex, sample: NDArray[np.float32], half: int, truth: Truth, k: int, recall: float
) -> Recall:
    """Tune `index` on the first `half` of a sample, and measure it on the others.

    Args:
        truth: the true neighbors of some queries of the sample, int `[m]`, as int32 `[m, k]`. It is asked for each of
            them at most once, and only for some where these are enough.
        index, sample, half, k, recall: see `tuned` and `tuning_sample`.
    """
    known, left = np.empty((len(sample), k), np.int32), np.arange(len(sample))
    if isinstance(index, IVFIndex) and _may_be_enough(index, k, len(sample)):
        few = _few(half, len(sample))
        known[few] = truth(few)
        if (found := _with_one_list(index, sample[few], known[few], recall)) is not None:
            return found
        left = np.setdiff1d(left, few)
    known[left] = truth(left)
    index.tune(sample[:half], known[:half], recall)
    # Aim one standard error above the target, because the recall on other queries differs by about that much.
    shares = index.recalls(sample[:half], known[:half])
    index.tune(sample[:half], known[:half], min(1.0, recall + float(shares.std()) / half**0.5))
    return _recall(index.recalls(sample[half:], known[half:]), recall, k)


def _recall(shares: NDArray[np.float64], target: float, k: int) -> Recall:
    return Recall(float(shares.mean()), float(shares.std()) / len(shares) ** 0.5, target, k, len(shares))


def _may_be_enough(index: IVFIndex, k: int, sample: int) -> bool:
    """Whether the best list of a query, alone, may well hold its k neighbors, and the sample is large enough to tell."""
    return k * _DEEP <= index.size // index.lists and sample >= _FEW


def _few(half: int, size: int) -> NDArray[np.int64]:
    """Some queries of both halves of the sample, from all parts of it: neighboring rows may be alike, and halves are in order."""
    few = np.arange(_FEW // 2) * 2
    return np.concatenate([few * half // _FEW, half + few * (size - half) // _FEW])


def _with_one_list(
    index: IVFIndex, sample: NDArray[np.float32], truth: NDArray[np.int32], recall: float
) -> Recall | None:
    """Search the best list of each query only, if that clearly reaches the recall, and say what it reaches; or None.

    There is no smaller probe margin than 0, so that nothing was chosen by these queries, and all of them measure.
    """
    index.probe_margin = 0.0
    found = _recall(index.recalls(sample, truth), recall, truth.shape[1])
    # Where these find all their neighbors, one query in as many may yet miss some.
    found = replace(found, error=max(found.error, 1 / len(sample)))
    return found if found.measured - _CLEARLY * found.error >= recall else None
