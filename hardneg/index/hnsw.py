"""HNSW: approximate search in a graph, with faiss (Malkov and Yashunin 2018), scored like every other index here.

Building the graph costs more than a whole search with the other indexes. It suits a corpus that is searched again and again,
with few queries at a time.
"""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

from hardneg.index.base import Neighbors
from hardneg.index.recall import shares_found
from hardneg.index.vectors import Documents, VectorStore
from hardneg.progress import Advance

_CHUNK = 65536  # documents added at once
_QUERIES = 4096  # queries searched at once
_WIDEST = 4096


class HNSWIndex(VectorStore):
    """An index that searches a navigable graph of the documents.

    Documents are added on one thread: with several, the graph would differ from run to run.

    Args:
        documents, metric, threads: see `VectorStore`. The graph keeps a float32 copy of the documents.
        links: links per document (M).
        ef_construction: candidates examined for each document that is added (efConstruction).
        ef_search: candidates that a search keeps (efSearch); never fewer than k. See `tune`.
        graph: an existing graph over the same documents.
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
        self.ef_search = ef_search
        if graph is None:
            measure = faiss.METRIC_L2 if self.squared else faiss.METRIC_INNER_PRODUCT
            graph = faiss.IndexHNSWFlat(self.dimension, links, measure)
            graph.hnsw.efConstruction = ef_construction
            outer = faiss.omp_get_max_threads()
            faiss.omp_set_num_threads(1)
            try:
                for start in range(0, self.size, _CHUNK):
                    graph.add(self.scaled(slice(start, min(start + _CHUNK, self.size))))
            finally:
                faiss.omp_set_num_threads(outer)
        self.graph = graph

    def search(self, queries: NDArray[np.floating], k: int, progress: Advance | None = None) -> Neighbors:
        """The `k` nearest documents that the search of the graph finds; -1 and -inf where it finds fewer."""
        exact = self.prepared(queries, k)
        found = np.empty((len(exact), k), np.int32)
        scores = np.empty((len(exact), k), np.float32)
        parameters = faiss.SearchParametersHNSW()
        parameters.efSearch = max(k, self.ef_search)
        outer = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(self.threads)
        try:
            for start in range(0, len(exact), _QUERIES):
                rows = slice(start, min(start + _QUERIES, len(exact)))
                _, near = self.graph.search(exact[rows], k, params=parameters)
                scores[rows], found[rows] = self._ordered(queries[rows], near)
                if progress is not None:
                    progress((rows.stop - rows.start) * self.size)
        finally:
            faiss.omp_set_num_threads(outer)
        return Neighbors(scores, found)

    def _ordered(
        self, queries: NDArray[np.floating], near: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Score like `pair_scores`, best first, equal scores by row."""
        scores = self.pair_scores(queries, near)
        order = np.lexsort((near, -scores), axis=1)
        return np.take_along_axis(scores, order, 1), np.take_along_axis(near, order, 1).astype(np.int32)

    def tune(self, queries: NDArray[np.floating], truth: NDArray[np.integer], recall: float) -> None:
        """Double `ef_search` until the search finds `recall` of the true neighbors `truth` `[n, k]`, or `ef_search` is 4,096."""
        k = truth.shape[1]
        self.ef_search = max(k, 32)
        while self.ef_search < min(_WIDEST, self.size):
            if self.recalls(queries, truth).mean() >= recall:
                return
            self.ef_search *= 2

    def recalls(self, queries: NDArray[np.floating], truth: NDArray[np.integer]) -> NDArray[np.float64]:
        """float64 `[n]`: the share of the true neighbors `truth` `[n, k]` that each query finds."""
        return shares_found(self.search(queries, truth.shape[1]).documents, truth)
