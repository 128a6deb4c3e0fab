"""The index of a mixture: one for each source, so that a query finds as many documents of its own source as were asked for.

A search over all documents, filtered afterwards, would leave a query short whose neighbors are of another source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.data.mixed import Mixed
from hardneg.errors import UsageError
from hardneg.index.base import Index, IndexSpec, Neighbors, checked_answer
from hardneg.index.factory import make_index
from hardneg.index.recall import Recall
from hardneg.index.vectors import Documents, VectorStore
from hardneg.progress import Advance
from hardneg.storage.arrays import Int


class PerSource(VectorStore):
    """The vectors of all documents, and an index for the documents of each source.

    Args:
        documents: `[N, d]`, those of all sources.
        parts: the index of each source, over its rows of `documents`, in their order.
        sources: int64 `[n]`, the source of each query of the dataset.

    Attributes:
        name: the name of the indexes; if they differ, all of their names.

    Raises:
        UsageError: the indexes do not hold as many documents as there are.
    """

    def __init__(self, documents: Documents, parts: Sequence[Index], sources: Int) -> None:
        super().__init__(documents, parts[0].metric, parts[0].threads)
        self.parts, self.sources = list(parts), sources
        self.name = "+".join(sorted({part.name for part in self.parts}))
        self.starts = np.cumsum([0, *(part.size for part in parts)])
        if int(self.starts[-1]) != len(documents):
            raise UsageError(f"the indexes of the sources hold {self.starts[-1]:,} documents of {len(documents):,}")

    @property
    def resident(self) -> bool:
        """Whether every search uses what is in memory; see `Index.resident`."""
        return all(part.resident for part in self.parts)

    def search(self, queries: NDArray[np.floating], k: int, progress: Advance | None = None) -> Neighbors:
        """The `k` nearest documents of each query in all sources; arguments as in `ExactIndex.search`."""
        self.prepared(queries, k)
        found = [self._of(i, queries, k, progress) for i in range(len(self.parts))]
        scores, documents = (np.concatenate(each, axis=1) for each in zip(*found, strict=True))
        nearest = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return Neighbors(np.take_along_axis(scores, nearest, 1), np.take_along_axis(documents, nearest, 1))

    def search_rows(
        self, rows: Int, queries: NDArray[np.floating], k: int, progress: Advance | None = None
    ) -> Neighbors:
        """The `k` nearest documents of each query in its own source, -1 where that has fewer.

        Args:
            rows: int64 `[n]`, rows of the dataset's queries.
            queries: float `[n, d]`, their vectors.
            k, progress: as in `ExactIndex.search`.
        """
        scores = np.full((len(rows), k), -np.inf, np.float32)
        documents = np.full((len(rows), k), -1, np.int32)
        sources = self.sources[rows]
        for i in np.unique(sources).tolist():
            here = np.flatnonzero(sources == i)
            found = self._of(i, queries[here], k, progress)
            scores[here, : found.scores.shape[1]], documents[here, : found.scores.shape[1]] = found
            if progress is not None:  # each query counts as if all documents had been compared
                progress(len(here) * (self.size - self.parts[i].size))
        return Neighbors(scores, documents)

    def _of(self, source: int, queries: NDArray[np.floating], k: int, progress: Advance | None) -> Neighbors:
        """The nearest documents in one source, as rows of the whole; fewer than k if it has fewer."""
        found = _searched(self.parts[source], queries, min(k, self.parts[source].size), progress)
        rows = found.documents + np.int32(self.starts[source])
        return Neighbors(found.scores, np.where(found.documents >= 0, rows, np.int32(-1)))


def _searched(index: Index, queries: NDArray[np.floating], k: int, progress: Advance | None) -> Neighbors:
    """Search, and check the answer of an index of the user's own."""
    answer = index.search(queries, k) if progress is None else index.search(queries, k, progress)
    return checked_answer(index, answer, len(queries), k)


def search_rows(
    index: Index, rows: Int, queries: NDArray[np.floating], k: int, progress: Advance | None = None
) -> Neighbors:
    """The `k` nearest documents of these queries of a dataset; in a mixture, of those of their own source.

    Args:
        index: the index.
        rows: int64 `[n]`, the rows of the queries in the dataset.
        queries: float `[n, d]`, their vectors.
        k, progress: as in `ExactIndex.search`.
    """
    if isinstance(index, PerSource):
        return index.search_rows(rows, queries, k, progress)
    return _searched(index, queries, k, progress)


def make_index_of(
    mixed: Mixed | None, name: IndexSpec, documents: Documents, metric: str = "cosine", *, queries: Any = None, k: int = 100,
    **settings: Any,
) -> tuple[Index, Recall]:  # fmt: skip
    """As `make_index`; for a mixture, with an index for each of its sources, each tuned on the queries of its source.

    Args:
        mixed: the sources of the dataset; None: it is of one.
        name, documents, metric, queries, k, settings: as for `make_index`; `queries` are all queries of the dataset.

    Returns:
        (index, its recall: the mean over the queries that were measured).

    Raises:
        UsageError: as for `make_index`, or an index over the documents of all sources is given.
    """
    if mixed is None:
        return make_index(name, documents, metric, queries=queries, k=k, **settings)
    if not isinstance(name, str) and isinstance(name, Index) and not isinstance(name, type):
        raise UsageError(
            f"the index {name.name!r} holds the documents of all sources, and each source of a mixture is searched by "
            f"itself: give the name of an index, or a function that builds one"
        )
    parts, recalls = [], []
    for i in range(len(mixed)):
        asked = None if queries is None else queries[mixed.rows(i)]
        if asked is not None and not len(asked):
            asked = None
        own = documents[slice(*mixed.span(i))]
        index, recall = make_index(name, own, metric, queries=asked, k=min(k, len(own)), **settings)
        parts.append(index)
        recalls.append(recall)
    return PerSource(documents, parts, mixed.queries), _mean(recalls, k)


def _mean(recalls: Sequence[Recall], k: int) -> Recall:
    """The recall over all queries that were measured; what is exact was not measured."""
    measured = [each for each in recalls if each.queries]
    target, total = recalls[0].target, sum(each.queries for each in measured)
    if not measured:
        return Recall(1.0, 0.0, target, k, 0)
    shares = [each.queries / total for each in measured]
    mean = sum(share * each.measured for share, each in zip(shares, measured, strict=True))
    error = sum((share * each.error) ** 2 for share, each in zip(shares, measured, strict=True)) ** 0.5
    return Recall(mean, error, target, k, total)
