"""Exact nearest neighbors: a cheap first pass over all documents, and float32 scores for the few that can matter.

The corpus is split into tiles and the queries into blocks. For each tile and block, a kernel (see `kernels`) computes
approximate scores. Documents that the kernel's error bound cannot exclude are rescored in float32 (see `thresholds`).
No document of the top k can be lost. The answer equals that of a full float32 search, and does not depend on the tiles,
the blocks, the number of threads or the kernel.

Cost: 2 n N d operations in the kernel's number format, and about 2 k float32 products per query.
Memory, in addition to queries, corpus and answer: under 256 MB, whatever the size of the corpus.
"""

from __future__ import annotations

from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from hardneg.ambient import own_settings
from hardneg.index.base import Neighbors
from hardneg.index.kernels import Tile, spans
from hardneg.index.thresholds import Block, TileScan, rows_at_once
from hardneg.index.topk import NOTHING
from hardneg.index.vectors import Documents, VectorStore, workers
from hardneg.progress import Advance

_CACHE_BYTES = 64 << 20  # at most this many bytes of rounded documents are kept for the next search


class ExactIndex(VectorStore):
    """An index that compares every query with every document.

    Args:
        documents, metric, threads, like: see `VectorStore`.
        kernel: the number format of the first pass: one of `KERNELS`, or `auto` for the fastest on this machine. It
            changes the speed, never the answer. The metric `l2` always uses `float32`.

    Raises:
        DataError: there are no documents, a vector has a NaN or infinite value, or, for the metric `cosine`, a vector
            is zero.
        UsageError: the metric or the kernel is unknown, or this machine cannot run the kernel.

    >>> vectors = np.eye(4, dtype=np.float32)
    >>> ExactIndex(vectors).search(vectors[2:3], k=1).documents.tolist()
    [[2]]
    """

    name = "exact"

    def __init__(
        self,
        documents: Documents,
        metric: str = "cosine",
        kernel: str = "auto",
        threads: int | None = None,
        *,
        like: VectorStore | None = None,
    ) -> None:
        super().__init__(documents, metric, threads, like=like)
        self.kernel = self.make_kernel(kernel)
        self._cached: dict[int, Tile] = {}

    @property
    def resident(self) -> bool:
        """Whether all rounded documents stay in memory between searches, which makes small searches cheaper."""
        return self.kernel.name == "int8" and self.size * self.kernel.width <= _CACHE_BYTES

    @own_settings()
    def search(self, queries: NDArray[np.floating], k: int, progress: Advance | None = None) -> Neighbors:
        """The `k` nearest documents of each query.

        Args:
            queries: float `[n, d]`.
            k: number of neighbors, at most N.
            progress: called with the number of (query, document) pairs that were finished since its last call.

        Returns:
            The neighbors: float32 scores and int32 rows, both `[n, k]`.

        Raises:
            DataError: the queries have another dimension than the documents, a query has a NaN or infinite value, or,
                for the metric `cosine`, a query is zero.
            UsageError: `k` is not between 1 and N.
        """
        exact = self.prepared(queries, k)
        best = np.full((len(exact), k), NOTHING, np.int64)
        with workers(self.threads) as pool:
            rows = rows_at_once(len(exact), self.threads)
            query_spans = spans(max(1, len(exact)), rows)
            blocks = list(pool.map(lambda span: Block(self.kernel, exact[span], best[span]), query_spans))
            for start in range(0, self.size, self.tile_rows):
                scan = self._scan(start, pool)
                for block, _ in zip(blocks, pool.map(scan, blocks), strict=True):
                    if progress is not None:
                        progress(len(block.best) * scan.size)
            results = list(pool.map(Block.neighbors, blocks))
        return Neighbors(*(np.concatenate(parts) for parts in zip(*results, strict=True)))

    def _scan(self, start: int, pool: Executor) -> TileScan:
        """Read and round the tile that begins at row `start`, or take its rounded documents from the cache."""
        rows = slice(start, min(start + self.tile_rows, self.size))
        vectors, kernel = self.vectors(rows), self.kernel
        tile = self._cached.get(start)
        if tile is None:
            tile = self.tile(kernel, vectors, rows, pool.map)
            cached = sum(each.values.numel() for each in list(self._cached.values()))
            if kernel.name == "int8" and cached + tile.values.numel() <= _CACHE_BYTES:
                self._cached[start] = tile
        return TileScan(kernel, tile, vectors, np.arange(rows.start, rows.stop), self.finish, self.squared)
