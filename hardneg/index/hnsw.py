"""HNSW: approximate search in a graph of the documents (Malkov and Yashunin 2018).

faiss builds and searches the graph. The documents it finds are scored as in every other index here. Building the graph
costs more than a whole search with the other indexes, so HNSW suits a corpus that is searched again and again with few
queries at a time.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from hardneg.ambient import own_settings
from hardneg.errors import UsageError
from hardneg.index.base import Neighbors
from hardneg.index.recall import shares_found
from hardneg.index.vectors import Documents, VectorStore
from hardneg.progress import Advance

_CHUNK = 65536  # documents that are added at once
_QUERIES = 4096  # queries that are searched at once
_MOST_LINKS = 1024  # links per document; faiss recommends 4 to 64
_MOST_CANDIDATES = 2**31 - 1  # faiss counts candidates in 32 bits
_WIDEST = 4096  # `tune` stops doubling `ef_search` here


class HNSWIndex(VectorStore):
    """An index that searches a graph in which near documents are linked (HNSW).

    Documents are added on one thread, because with several threads the graph would differ from run to run.

    Args:
        documents, metric, threads: see `VectorStore`. The graph keeps a float32 copy of the documents.
        links: the number of links per document (M in the paper).
        ef_construction: the number of candidates that are examined for each added document (efConstruction).
        ef_search: the number of candidates that a search keeps (efSearch); a search for k neighbors keeps at least k.
            See `tune`.
        graph: an existing graph of the same documents; by default it is built.

    Raises:
        DataError, UsageError: as for `VectorStore`; UsageError also if a setting is out of range.
    """

    name = "hnsw"
    resident = True

    def __init__(
        self,
        documents: Documents,
        metric: str = "cosine",
        *,
        links: int = 32,
        ef_construction: int = 80,
        ef_search: int = 128,
        threads: int | None = None,
        graph: faiss.IndexHNSWFlat | None = None,
    ) -> None:
        super().__init__(documents, metric, threads)
        for setting, value, most in (
            ("links", links, _MOST_LINKS),
            ("ef_construction", ef_construction, _MOST_CANDIDATES),
            ("ef_search", ef_search, _MOST_CANDIDATES),
        ):
            # faiss ends the process if it is given other numbers.
            least = 2 if setting == "links" else 1
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
                raise UsageError(f"{setting}={value!r}: it must be a whole number from {least} to {most:,}")
        self.ef_search = ef_search
        if graph is None:
            measure = faiss.METRIC_L2 if self.squared else faiss.METRIC_INNER_PRODUCT
            graph = faiss.IndexHNSWFlat(self.dimension, links, measure)
            graph.hnsw.efConstruction = ef_construction
            threads_before = faiss.omp_get_max_threads()
            faiss.omp_set_num_threads(1)
            try:
                for start in range(0, self.size, _CHUNK):
                    graph.add(self.scaled(slice(start, min(start + _CHUNK, self.size))))
            finally:
                faiss.omp_set_num_threads(threads_before)
        self.graph = graph

    @own_settings()
    def search(self, queries: NDArray[np.floating], k: int, progress: Advance | None = None) -> Neighbors:
        """The `k` nearest documents that the graph leads to; -1 and -inf where it leads to fewer.

        Arguments and errors are those of `ExactIndex.search`.
        """
        exact = self.prepared(queries, k)
        found = np.empty((len(exact), k), np.int32)
        scores = np.empty((len(exact), k), np.float32)
        parameters = faiss.SearchParametersHNSW()
        parameters.efSearch = max(k, self.ef_search)
        threads_before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(self.threads)
        try:
            for start in range(0, len(exact), _QUERIES):
                rows = slice(start, min(start + _QUERIES, len(exact)))
                _, near = self.graph.search(exact[rows], k, params=parameters)
                scores[rows], found[rows] = self._ordered(queries[rows], near)
                if progress is not None:
                    progress((rows.stop - rows.start) * self.size)
        finally:
            faiss.omp_set_num_threads(threads_before)
        return Neighbors(scores, found)

    def _ordered(
        self, queries: NDArray[np.floating], near: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """(scores, documents), both `[n, k]`: the found documents `near`, best first; equal scores by row."""
        scores = self.pair_scores(queries, near)
        order = np.lexsort((near, -scores), axis=1)
        return np.take_along_axis(scores, order, 1), np.take_along_axis(near, order, 1).astype(np.int32)

    def tune(self, queries: NDArray[np.floating], truth: NDArray[np.integer], recall: float) -> None:
        """Set `ef_search`: double it until searches reach the recall, or until it is 4,096 or the number of documents.

        Args:
            queries: float `[n, d]`.
            truth: int `[n, k]`, the true neighbors of these queries.
            recall: the target recall, above 0 and at most 1.
        """
        k = truth.shape[1]
        self.ef_search = max(k, 32)
        while self.ef_search < min(_WIDEST, self.size):
            if self.recalls(queries, truth).mean() >= recall:
                return
            self.ef_search *= 2

    def recalls(self, queries: NDArray[np.floating], truth: NDArray[np.integer]) -> NDArray[np.float64]:
        """float64 `[n]`: the share of the true neighbors `truth` `[n, k]` that the search finds for each query."""
        return shares_found(self.search(queries, truth.shape[1]).documents, truth)


def check_graph_file(content: memoryview, size: int, dimension: int, squared: bool) -> None:
    """Check a file of faiss before faiss reads it: its reader trusts counts and links, and follows them anywhere.

    Only the kind of graph that `HNSWIndex` builds is accepted: an `IndexHNSWFlat` over an `IndexFlat`, with the layout
    that faiss has written since version 1.5 (`faiss/impl/index_write.cpp`).

    Args:
        content: the bytes of the file.
        size: the number of documents, N.
        dimension: d.
        squared: whether the graph must be for squared distances, else for inner products.

    Raises:
        ValueError: the file is something else, or damaged. The message says what is wrong.
    """
    file = _GraphFile(content)
    file.expect_header(b"IHNf", size, dimension, squared)
    file.vector("f8")  # the probabilities of the levels, which only matter when documents are added
    starts = file.vector("i4").astype(np.int64)  # where the links of each level begin, among those of a document
    levels = file.vector("i4").astype(np.int64)  # the number of levels of each document
    offsets = file.vector("u8").astype(np.int64)
    links = file.vector("i4")
    entry, highest = (int(file.take("i4", 1)[0]) for _ in range(2))
    file.take("i4", 3)  # settings of building and searching
    file.expect_header(b"IxF2" if squared else b"IxFI", size, dimension, squared)
    vectors = file.vector("f4")
    if len(file.rest) or len(vectors) != size * dimension or not np.isfinite(vectors).all():
        raise ValueError(f"it does not hold the vectors of {size:,} documents")
    _check_links(starts, levels, offsets, links, size)
    if not 0 <= entry < size or highest != levels[entry] - 1 or levels.max() != levels[entry]:
        raise ValueError("its entry point is not a document of the highest level")


def _check_links(
    starts: NDArray[np.int64],
    levels: NDArray[np.int64],
    offsets: NDArray[np.int64],
    links: NDArray[np.int32],
    size: int,
) -> None:
    """ValueError unless every link leads to a document that exists on the level of the link."""
    if len(starts) < 2 or starts[0] != 0 or starts[-1] > 2**31 or (np.diff(starts) <= 0).any():
        raise ValueError("its levels are out of order")
    if len(levels) != size or levels.min() < 1 or levels.max() >= len(starts):
        raise ValueError(f"it does not hold the levels of {size:,} documents")
    if len(offsets) != size + 1 or offsets[0] != 0 or offsets[-1] != len(links):
        raise ValueError("its lists of links are out of range")
    if (np.diff(offsets) != starts[levels]).any():
        raise ValueError("its lists of links have the wrong lengths")
    if links.min() < -1 or links.max() >= size:
        raise ValueError("a link leads to a document that there is not")
    for level in range(1, int(levels.max())):
        there = np.flatnonzero(levels > level)
        for place in range(int(starts[level]), int(starts[level + 1])):
            targets = links[offsets[there] + place]
            if (levels[targets[targets >= 0]] <= level).any():
                raise ValueError("a link leads to a document that is not on its level")


class _GraphFile:
    """Reads the parts of a file of faiss one after the other. ValueError if the file ends too early."""

    def __init__(self, content: memoryview) -> None:
        self.rest = content

    def take(self, dtype: str, count: int) -> NDArray[Any]:
        """The next `count` numbers."""
        length = count * np.dtype(dtype).itemsize
        if length > len(self.rest):
            raise ValueError("it ends too early")
        taken, self.rest = self.rest[:length], self.rest[length:]
        return np.frombuffer(taken, f"<{dtype}")

    def vector(self, dtype: str) -> NDArray[Any]:
        """The next vector: its length, then its numbers."""
        return self.take(dtype, int(self.take("u8", 1)[0]))

    def expect_header(self, kind: bytes, size: int, dimension: int, squared: bool) -> None:
        """Read the kind of an index and the numbers that every index has."""
        found = bytes(self.take("u1", 4))
        if found != kind:
            raise ValueError(f"it holds {found!r}, expected {kind!r}")
        d, n = int(self.take("i4", 1)[0]), int(self.take("i8", 1)[0])
        self.take("i8", 2)  # not used
        trained, metric = int(self.take("u1", 1)[0]), int(self.take("i4", 1)[0])
        if (n, d, trained) != (size, dimension, 1):
            raise ValueError(f"it is an index of {n:,} documents of {d:,} dimensions")
        if metric != (faiss.METRIC_L2 if squared else faiss.METRIC_INNER_PRODUCT):
            raise ValueError("it is a graph for another metric")
