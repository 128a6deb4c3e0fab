"""Exact nearest neighbours: a cheap first pass over everything, float32 for the few that can matter.

The corpus is read tile by tile, the queries block by block (see `scan`). In each tile a kernel (see
`kernels`) gives approximate scores; whatever its error bound cannot rule out is scored again in float32.
Nothing that belongs to the top k can be lost: the answer equals a full float32 search, and it
does not depend on tiles, blocks, threads or the kernel.

Cost: 2 n N d operations in the kernel's format, some 2 k float32 products a query in addition.
Memory beyond queries, corpus and answer: under 256 MB, whatever the corpus.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from hardneg.data.store import Rows, Sharded
from hardneg.errors import DataError, UsageError, first_few, suggestion
from hardneg.index.base import METRICS, Neighbours
from hardneg.index.kernels import KERNELS, Kernel, Tile, fastest_kernel, int8_is_exact, make_kernel
from hardneg.index.scan import NOTHING, Block, TileScan, pair_products, rows_at_once

Float = NDArray[np.float32]
Progress = Callable[[int], None]

_TILE_BYTES = 96 << 20  # float32 documents of one tile
_CACHE_BYTES = 64 << 20  # rounded documents kept for the next search


class ExactIndex:
    """All documents in one matrix, searched completely.

    Args:
        documents: float16 or float32 `[N, d]`, an array or a memory map; not copied.
        metric: `cosine`, `ip` (inner product) or `l2` (score = minus the squared distance).
        kernel: format of the first pass, one of `KERNELS`, or `auto`: the fastest here. It changes the
            speed, never the answer.
        threads: worker threads; by default as many as torch uses.

    Raises:
        DataError: no documents, a NaN or infinite value, or, for cosine, a zero vector.
        UsageError: an unknown metric or kernel.
    """

    def __init__(
        self,
        documents: NDArray[np.floating] | Sharded | Rows,
        metric: str = "cosine",
        kernel: str = "auto",
        threads: int | None = None,
    ) -> None:
        if metric not in METRICS:
            raise UsageError(f"unknown metric {metric!r}.{suggestion(metric, METRICS)}")
        if kernel not in ("auto", *KERNELS):
            raise UsageError(f"unknown kernel {kernel!r}.{suggestion(kernel, ('auto', *KERNELS))}")
        if documents.ndim != 2 or documents.size == 0:
            raise DataError(f"the corpus holds no vectors: expected an array [N, d], got shape {documents.shape}")
        self.documents = documents
        self.metric = metric
        self.threads = threads if threads is not None else torch.get_num_threads()
        self._inverse_norms = checked_norms(documents, "corpus", zero_allowed=metric != "cosine")
        np.divide(1.0, self._inverse_norms, out=self._inverse_norms, where=self._inverse_norms > 0)
        stride = max(1, len(documents) // 4096)
        sample = np.array(documents[::stride], np.float32)
        if metric == "cosine":
            sample *= self._inverse_norms[::stride, None]
        if kernel == "int8" and not int8_is_exact(self.dimension):
            raise UsageError(
                "kernel 'int8': this processor or this torch has no exact 8-bit product of that size; use 'auto'"
            )
        # Squared lengths in l2 scores span too wide a range for a coarse format to be worth its re-ranking.
        name = "float32" if metric == "l2" else fastest_kernel(self.dimension) if kernel == "auto" else kernel
        self.kernel: Kernel = make_kernel(name, sample)
        rows = max(1, _TILE_BYTES // (4 * self.dimension))
        self._tile_rows = min(65536, rows)
        self._cached: dict[int, Tile] = {}

    @property
    def size(self) -> int:
        return len(self.documents)

    @property
    def dimension(self) -> int:
        return int(self.documents.shape[1])

    @property
    def resident(self) -> bool:
        """Whether rounded documents stay in memory between searches, so that small searches cost no more."""
        tiles = -(-self.size // self._tile_rows)
        return self.kernel.name == "int8" and tiles * self._tile_rows * self.dimension <= _CACHE_BYTES

    def search(self, queries: NDArray[np.floating], k: int, progress: Progress | None = None) -> Neighbours:
        """The `k` nearest documents of each query.

        Args:
            queries: float `[n, d]`.
            k: how many, at most N.
            progress: called with the number of (query, document) pairs done since the last call.

        Returns:
            Neighbours, float32 scores and int32 rows, both `[n, k]`.
        """
        self._check(queries)
        if not 1 <= k <= self.size:
            raise UsageError(
                f"k={k} neighbours asked of a corpus of {self.size:,} documents: k must be 1 to {self.size:,}"
            )
        exact = self._queries(queries)
        best = np.full((len(exact), k), NOTHING, np.int64)
        outer = torch.get_num_threads(), faiss.omp_get_max_threads()
        torch.set_num_threads(1)
        try:
            # Every worker multiplies on one thread and selects on the same one: while one selects, another multiplies.
            with ThreadPoolExecutor(self.threads, initializer=_single_thread) as pool:
                rows = rows_at_once(len(exact), self.threads)
                spans = [slice(i, min(i + rows, len(exact))) for i in range(0, max(1, len(exact)), rows)]
                blocks = list(pool.map(lambda span: Block(self.kernel, exact[span], best[span]), spans))
                for start in range(0, self.size, self._tile_rows):
                    scan = self._scan(start, pool)
                    for block, _ in zip(blocks, pool.map(scan, blocks), strict=True):
                        if progress is not None:
                            progress(len(block.best) * scan.size)
                done = list(pool.map(Block.neighbours, blocks))
        finally:
            torch.set_num_threads(outer[0])
            faiss.omp_set_num_threads(outer[1])
        return Neighbours(*(np.concatenate(side) for side in zip(*done, strict=True)))

    def pair_scores(self, queries: NDArray[np.floating], documents: NDArray[np.integer]) -> Float:
        """float32 `[n, p]` scores of `queries` `[n, d]` with `documents` `[n, p]` (-1: none, gives -inf)."""
        self._check(queries)
        exact = self._queries(queries)
        out = np.full(documents.shape, -np.inf, np.float32)
        rows, columns = np.nonzero(documents >= 0)
        chunk = max(1, (16 << 20) // (4 * self.dimension))
        for start in range(0, len(rows), chunk):
            r, c = rows[start : start + chunk], columns[start : start + chunk]
            wanted, place = np.unique(documents[r, c], return_inverse=True)
            vectors = np.ascontiguousarray(self.documents[wanted], np.float32)
            scores = pair_products(exact, r, vectors, place, self.metric == "l2")
            out[r, c] = self._finish(scores, wanted[place])
        return out

    def _check(self, queries: NDArray[np.floating]) -> None:
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise DataError(
                f"queries have shape {list(queries.shape)}, but the corpus has {self.dimension} dimensions: "
                f"embed both with the same encoder"
            )

    def _queries(self, queries: NDArray[np.floating]) -> Float:
        exact = np.array(queries, np.float32, order="C")
        norms = checked_norms(exact, "queries", zero_allowed=self.metric != "cosine")
        if self.metric == "cosine":
            exact /= norms[:, None]
        return exact

    def _finish(self, products: Float, documents: NDArray[np.integer]) -> Float:
        if self.metric == "cosine":
            scaled: Float = products * self._inverse_norms[documents]
            return scaled
        signed: Float = -products if self.metric == "l2" else products
        return signed

    def _scan(self, start: int, pool: Executor) -> TileScan:
        stop = min(start + self._tile_rows, self.size)
        vectors = np.ascontiguousarray(self.documents[start:stop], np.float32)
        if start not in self._cached:
            scale = self._inverse_norms[start:stop] if self.metric == "cosine" else None
            tile = self.kernel.tile(vectors, scale, pool.map)
            if self.metric == "l2":
                bias = -0.5 * np.einsum("ij,ij->i", vectors, vectors)
                tile = replace(tile, bias=torch.from_numpy(bias[:, None]))
            if self.kernel.name != "int8" or (len(self._cached) + 1) * tile.values.numel() > _CACHE_BYTES:
                return TileScan(self.kernel, tile, vectors, start, self._finish, self.metric == "l2")
            self._cached[start] = tile
        return TileScan(self.kernel, self._cached[start], vectors, start, self._finish, self.metric == "l2")


def _single_thread() -> None:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


def checked_norms(vectors: NDArray[np.floating] | Sharded | Rows, what: str, zero_allowed: bool = False) -> Float:
    """float32 `[n]` Euclidean norms; raises DataError naming the first rows that hold NaN, Inf or only zeros."""
    norms = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), 16384):
        part = np.asarray(vectors[start : start + 16384], np.float32)
        norms[start : start + 16384] = np.sqrt(np.einsum("ij,ij->i", part, part))
    # Rows as they stand in the file, where these are some of a file's rows.
    names = vectors.rows if isinstance(vectors, Rows) else np.arange(len(vectors))
    bad = names[~np.isfinite(norms)]
    if len(bad):
        raise DataError(
            f"{len(bad):,} of {len(vectors):,} {what} vectors hold NaN or infinite values (or overflow): "
            f"rows {first_few(bad)}. Embed those texts again or remove them"
        )
    zero = names[norms == 0]
    if len(zero) and not zero_allowed:
        raise DataError(
            f"{len(zero):,} of {len(vectors):,} {what} vectors are all zero, so they have no direction and no cosine: "
            f"rows {first_few(zero)}. Embed those texts again, remove them, or use another metric"
        )
    return norms
