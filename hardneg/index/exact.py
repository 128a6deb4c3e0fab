"""Exact nearest neighbours: a cheap first pass over everything, float32 for the few that can matter.

The corpus is read tile by tile, the queries block by block. In each tile a kernel (see `kernels`)
gives approximate scores; the maxima of blocks of 16 documents give a k-th best that bounds from below
what belongs to the answer; whatever the kernel's error bound cannot rule out is scored again in
float32. Nothing that belongs to the top k can be lost: the answer equals a full float32 search, and it
does not depend on tiles, blocks, threads or the kernel.

Cost: 2 n N d operations in the kernel's format, some 2 k float32 products a query in addition.
Memory beyond queries, corpus and answer: under 256 MB, whatever the corpus.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from hardneg.data.store import Rows, Sharded
from hardneg.errors import DataError, UsageError, first_few, suggestion
from hardneg.index.base import METRICS, Neighbours
from hardneg.index.kernels import BLOCK, KERNELS, Kernel, QueryBlock, Tile, fastest_kernel, make_kernel

Float = NDArray[np.float32]
Progress = Callable[[int], None]

_TILE_BYTES = 96 << 20  # float32 documents of one tile
_PRODUCT_BYTES = 8 << 20  # one block's approximate scores; more is no faster
_CACHE_BYTES = 64 << 20  # rounded documents kept for the next search
_NOTHING = np.iinfo(np.int64).min  # sorts after every real neighbour


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
        # Squared lengths in l2 scores span too wide a range for a coarse format to be worth its re-ranking.
        name = "float32" if metric == "l2" else fastest_kernel(self.dimension) if kernel == "auto" else kernel
        self.kernel: Kernel = make_kernel(name, sample)
        rows = max(1, _TILE_BYTES // (4 * self.dimension))
        self._tile_rows = min(65536, max(BLOCK, rows - rows % BLOCK))
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
        best = np.full((len(exact), k), _NOTHING, np.int64)
        for start in range(0, self.size, self._tile_rows):
            self._search_tile(exact, start, best, progress)
        scores, documents = _unpack(best)
        return Neighbours(scores, documents)

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
            pair = faiss.pairwise_indexed_L2sqr if self.metric == "l2" else faiss.pairwise_indexed_inner_product
            scores = np.empty(len(r), np.float32)
            left, right = r.astype(np.int64), place.astype(np.int64)
            pair(
                self.dimension,
                len(r),
                faiss.swig_ptr(exact),
                faiss.swig_ptr(left),
                faiss.swig_ptr(vectors),
                faiss.swig_ptr(right),
                faiss.swig_ptr(scores),
            )
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

    def _search_tile(self, exact: Float, start: int, best: NDArray[np.int64], progress: Progress | None) -> None:
        stop = min(start + self._tile_rows, self.size)
        vectors = np.ascontiguousarray(self.documents[start:stop], np.float32)
        tile = self._tile(vectors, start)
        bias = -0.5 * np.einsum("ij,ij->i", vectors, vectors) if self.metric == "l2" else None
        width = len(tile.values)
        rows = max(1, min(256, _PRODUCT_BYTES // (4 * width), -(-len(exact) // self.threads)))
        # Every worker multiplies on one thread and selects on the same one: while one selects, another multiplies.
        scan = _TileScan(self, vectors, tile, bias, start)
        outer = torch.get_num_threads(), faiss.omp_get_max_threads()
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(self.threads, initializer=_single_thread) as pool:
                spans = [(i, min(i + rows, len(exact))) for i in range(0, len(exact), rows)]
                done = [pool.submit(scan, exact[i:j], best[i:j]) for i, j in spans]
                for (i, j), future in zip(spans, done, strict=True):
                    future.result()
                    if progress is not None:
                        progress((j - i) * (stop - start))
        finally:
            torch.set_num_threads(outer[0])
            faiss.omp_set_num_threads(outer[1])

    def _tile(self, vectors: Float, start: int) -> Tile:
        if start in self._cached:
            return self._cached[start]
        scale = self._inverse_norms[start : start + len(vectors)] if self.metric == "cosine" else None
        tile = self.kernel.tile(vectors, scale)
        if self.kernel.name == "int8" and (len(self._cached) + 1) * tile.values.numel() <= _CACHE_BYTES:
            self._cached[start] = tile
        return tile


class _TileScan:
    """One tile against one block of queries: called by the workers, writes into their rows of `best`."""

    def __init__(self, index: ExactIndex, vectors: Float, tile: Tile, bias: Float | None, start: int) -> None:
        self.index, self.vectors, self.tile, self.start = index, vectors, tile, start
        self.bias = None if bias is None else torch.from_numpy(np.pad(bias, (0, -len(bias) % BLOCK)))
        self.factor = 2.0 if index.metric == "l2" else 1.0
        self.local = threading.local()

    def __call__(self, exact: Float, best: NDArray[np.int64]) -> None:
        k = best.shape[1]
        block = self.index.kernel.queries(exact)
        products = self._products(block)
        unit = block.unit * np.float32(self.tile.unit * self.factor)
        offset = block.offset - (block.norms**2 if self.bias is not None else 0)
        bound = self._bound(block)
        floor = _unpack(best[:, -1:])[0][:, 0]  # the k-th exact score so far: nothing below it matters
        rows, documents, values = self._survivors(products, k, unit, offset, bound, floor)
        rows, documents = _prune(rows, documents, values, len(exact), k, 2 * bound / unit)
        candidates = _padded(rows, documents, len(exact))
        if candidates.shape[1] == 0:
            return
        scores = self._exact(exact, candidates)
        merged = np.concatenate([best, _pack(scores, candidates + self.start, candidates >= 0)], axis=1)
        merged = np.partition(merged, merged.shape[1] - k, axis=1)[:, merged.shape[1] - k :]
        merged.sort(axis=1)
        best[:] = merged[:, ::-1]

    def _products(self, block: QueryBlock) -> torch.Tensor:
        products = self.index.kernel.product(block, self.tile, self._buffer(len(block.norms)))
        if self.bias is not None:
            products += self.bias
        real = len(self.vectors)
        if products.shape[1] > real:
            least = torch.iinfo(products.dtype).min if products.dtype == torch.int32 else -torch.inf
            products[:, real:] = least
        return products

    def _buffer(self, rows: int) -> torch.Tensor:
        """Each worker's own, used again and again: fresh pages would cost as much as the product."""
        buffer: torch.Tensor | None = getattr(self.local, "buffer", None)
        if buffer is None or len(buffer) < rows:
            buffer = torch.empty(rows, len(self.tile.values), dtype=self.index.kernel.dtype)
            self.local.buffer = buffer
        return buffer[:rows]

    def _bound(self, block: QueryBlock) -> Float:
        bound = self.index.kernel.bound(block, self.tile)
        if self.bias is not None:  # squared lengths are summed in float32 as well
            reach = (block.norms + self.tile.largest_norm) ** 2
            bound = 2 * bound + 8 * (self.index.dimension + 8) * np.float32(2.0**-24) * reach
        return bound

    def _survivors(
        self, products: torch.Tensor, k: int, unit: Float, offset: Float, bound: Float, floor: Float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], Float]:
        """(row, document, product) of all documents that may belong to the top k, row by row."""
        n, width = products.shape
        group = next((g for g in (BLOCK, 8, 4, 2) if width // g >= 4 * k), 1)
        blocks = width // group
        maxima = products.view(n, group, blocks).amax(1).float().numpy()
        lowest = (floor - bound - offset) / unit
        if blocks >= k:
            # k blocks reach this value, so k documents do, and their true scores are at most `bound` lower.
            kth = np.partition(maxima, blocks - k, axis=1)[:, blocks - k]
            lowest = np.maximum(lowest, kth - 2 * bound / unit)
        lowest = np.nextafter(lowest, np.float32(-np.inf), dtype=np.float32)
        lowest = np.maximum(lowest, np.float32(-1e30))  # padding is below this
        # Flat positions throughout: numpy finds them several times faster than pairs of coordinates.
        rows, chosen = np.divmod(np.flatnonzero(maxima >= lowest[:, None]), blocks)
        members = np.arange(group, dtype=np.int64) * blocks
        flat = (rows * width + chosen)[:, None] + members
        values = torch.take(products, torch.from_numpy(flat)).float().numpy()
        keep = np.flatnonzero(values >= lowest[rows, None])
        rows, documents = np.divmod(flat.ravel()[keep], width)
        values = values.ravel()[keep]
        real = documents < len(self.vectors)
        if not real.all():
            return rows[real], documents[real], values[real]
        return rows, documents, values

    def _exact(self, exact: Float, candidates: NDArray[np.int64]) -> Float:
        scores = np.empty(candidates.shape, np.float32)
        by_index = faiss.fvec_L2sqr_by_idx if self.index.metric == "l2" else faiss.fvec_inner_products_by_idx
        by_index(
            faiss.swig_ptr(scores),
            faiss.swig_ptr(np.ascontiguousarray(exact)),
            faiss.swig_ptr(self.vectors),
            faiss.swig_ptr(candidates),
            self.index.dimension,
            *candidates.shape,
        )
        return self.index._finish(scores, np.maximum(candidates, 0) + self.start)


def _single_thread() -> None:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


def _prune(
    rows: NDArray[np.int64], documents: NDArray[np.int64], values: Float, n: int, k: int, slack: Float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Drop what falls below the k-th approximate value of its row by more than `slack`: several in a block count now."""
    counts = np.bincount(rows, minlength=n)
    if len(rows) == 0 or counts.max() <= k:
        return rows, documents
    table = np.full((n, int(counts.max())), -np.inf, np.float32)
    table[rows, _places(counts)] = values
    kth = np.partition(table, table.shape[1] - k, axis=1)[:, table.shape[1] - k]
    keep = values >= np.nextafter(kth - slack, np.float32(-np.inf), dtype=np.float32)[rows]
    return rows[keep], documents[keep]


def _places(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, 2, ... within each of the runs of these lengths."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def _padded(rows: NDArray[np.int64], documents: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    counts = np.bincount(rows, minlength=n)
    table = np.full((n, int(counts.max(initial=0))), -1, np.int64)
    table[rows, _places(counts)] = documents
    return table


def _pack(scores: Float, documents: NDArray[np.int64], real: NDArray[np.bool_]) -> NDArray[np.int64]:
    """One integer a neighbour, larger = better: the score in order-preserving bits, then the lower row first."""
    bits = (scores + np.float32(0)).view(np.int32)  # + 0: minus zero equals zero
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = (bits.astype(np.int64) << 32) | (0xFFFFFFFF - documents)
    return np.where(real, keys, _NOTHING)


def _unpack(keys: NDArray[np.int64]) -> tuple[Float, NDArray[np.int32]]:
    bits = (keys >> 32).astype(np.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    documents = (0xFFFFFFFF - (keys & 0xFFFFFFFF)).astype(np.int32)
    missing = keys == _NOTHING
    return np.where(missing, np.float32(-np.inf), bits.view(np.float32)), np.where(missing, -1, documents)


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
