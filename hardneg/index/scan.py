"""One tile of documents against one block of queries: cheap products, a threshold that rises, float32 for what is left.

The tile is multiplied a chunk of columns at a time, small enough that the products are still in the cache when
they are looked at. A document survives if its product reaches the lowest value that can still belong to the
top k, given the kernel's error bound; the maxima of blocks of documents say where to look. That threshold comes
from what earlier tiles left, from the block maxima, and from the survivors so far, whichever is highest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from hardneg.index.kernels import BLOCK, Kernel, QueryBlock, Tile

Float = NDArray[np.float32]
Int = NDArray[np.int64]

CHUNK = 32768  # documents multiplied at once
PRODUCT_BYTES = 8 << 20  # one worker's products; more is no faster
NOTHING = np.iinfo(np.int64).min  # sorts after every real neighbour


def rows_at_once(queries: int, width: int, threads: int) -> int:
    """Queries in one block: enough for the product to be fast, few enough for its result to stay in the cache."""
    return max(1, min(256, PRODUCT_BYTES // (4 * min(width, CHUNK)), -(-queries // threads)))


class TileScan:
    """Called by the workers; writes into their rows of `best`.

    Args:
        kernel: of the first pass.
        tile: the rounded documents.
        vectors: the documents themselves, float32 `[T, d]`.
        start: row of the corpus that the tile begins with.
        finish: turns float32 products (squared distances for l2) and corpus rows into scores.
        bias: l2 only: minus half the squared length of each document, `[T]`.
    """

    def __init__(
        self,
        kernel: Kernel,
        tile: Tile,
        vectors: Float,
        start: int,
        finish: Callable[[Float, Int], Float],
        bias: Float | None = None,
    ) -> None:
        self.kernel, self.tile, self.vectors, self.start, self.finish = kernel, tile, vectors, start, finish
        self.bias = None if bias is None else torch.from_numpy(np.pad(bias, (0, -len(bias) % BLOCK)))
        self.factor = 2.0 if bias is not None else 1.0
        self.local = threading.local()

    def __call__(self, exact: Float, best: Int) -> None:
        """Merge the tile's nearest documents of the queries `exact` `[n, d]` into `best` `[n, k]` (see `pack`)."""
        n, k = best.shape
        block = self.kernel.queries(exact)
        unit = block.unit * np.float32(self.tile.unit * self.factor)
        offset = block.offset - (block.norms**2 if self.bias is not None else 0)
        bound = self._bound(block)
        floor = unpack(best[:, -1:])[0][:, 0]  # the k-th exact score so far: nothing below it matters
        threshold = _Threshold(k, (floor - bound - offset) / unit, 2 * bound / unit)
        width = len(self.tile.values)
        found = [self._survivors(block, slice(i, min(i + CHUNK, width)), threshold) for i in range(0, width, CHUNK)]
        rows, documents, values = (np.concatenate(part) for part in zip(*found, strict=True))
        keep = values >= threshold.lowest[rows]
        rows, documents = rows[keep], documents[keep]
        order = np.argsort(rows.astype(np.uint16), kind="stable")  # 16 bits: a radix sort
        candidates = _padded(rows[order], documents[order], n)
        if candidates.shape[1] == 0:
            return
        scores = self._exact(exact, candidates)
        merged = np.concatenate([best, pack(scores, candidates + self.start, candidates >= 0)], axis=1)
        merged = np.partition(merged, merged.shape[1] - k, axis=1)[:, merged.shape[1] - k :]
        merged.sort(axis=1)
        best[:] = merged[:, ::-1]

    def _bound(self, block: QueryBlock) -> Float:
        bound = self.kernel.bound(block, self.tile)
        if self.bias is not None:  # squared lengths are summed in float32 as well
            reach = (block.norms + self.tile.largest_norm) ** 2
            bound = 2 * bound + 8 * (self.vectors.shape[1] + 8) * np.float32(2.0**-24) * reach
        return bound

    def _products(self, block: QueryBlock, span: slice) -> torch.Tensor:
        part = Tile(self.tile.values[span], self.tile.largest_norm, self.tile.largest_error, self.tile.unit)
        products = self.kernel.product(block, part, self._buffer(len(block.norms), len(part.values)))
        if self.bias is not None:
            products += self.bias[span]
        real = len(self.vectors) - span.start
        if products.shape[1] > real:
            products[:, real:] = torch.iinfo(products.dtype).min if products.dtype == torch.int32 else -torch.inf
        return products

    def _buffer(self, rows: int, width: int) -> torch.Tensor:
        """Each worker's own, used again and again: fresh pages would cost as much as the product."""
        buffer: torch.Tensor | None = getattr(self.local, "buffer", None)
        if buffer is None or buffer.numel() < rows * width:
            buffer = torch.empty(rows * width, dtype=self.kernel.dtype)
            self.local.buffer = buffer
        return buffer[: rows * width].view(rows, width)

    def _survivors(self, block: QueryBlock, span: slice, threshold: _Threshold) -> tuple[Int, Int, Float]:
        """(row, document, product) of all documents of the chunk that may belong to the top k, row by row."""
        products = self._products(block, span)
        (n, width), k = products.shape, threshold.k
        group = next((g for g in (BLOCK, 8, 4, 2) if width // g >= 4 * k), 1)
        blocks = width // group
        maxima = products.view(n, group, blocks).amax(1).float().numpy()
        # Flat positions throughout: numpy finds them several times faster than pairs of coordinates.
        chosen = np.flatnonzero(maxima >= threshold.lowest[:, None])
        if len(chosen) > 2 * k * n:
            # k blocks reach the k-th of the maxima, so k documents do.
            threshold.at_least(np.partition(maxima, blocks - k, axis=1)[:, blocks - k])
            chosen = np.flatnonzero(maxima >= threshold.lowest[:, None])
        rows, place = np.divmod(chosen, blocks)
        flat = (rows * width + place)[:, None] + np.arange(group, dtype=np.int64) * blocks
        values = torch.take(products, torch.from_numpy(flat)).float().numpy()
        keep = np.flatnonzero(values >= threshold.lowest[rows, None])
        rows, documents = np.divmod(flat.ravel()[keep], width)
        values, documents = values.ravel()[keep], documents + span.start
        real = documents < len(self.vectors)
        if not real.all():
            rows, documents, values = rows[real], documents[real], values[real]
        threshold.see(rows, values)
        return rows, documents, values

    def _exact(self, exact: Float, candidates: Int) -> Float:
        scores = np.empty(candidates.shape, np.float32)
        by_index = faiss.fvec_inner_products_by_idx if self.bias is None else faiss.fvec_L2sqr_by_idx
        by_index(
            faiss.swig_ptr(scores),
            faiss.swig_ptr(np.ascontiguousarray(exact)),
            faiss.swig_ptr(self.vectors),
            faiss.swig_ptr(candidates),
            self.vectors.shape[1],
            *candidates.shape,
        )
        return self.finish(scores, np.maximum(candidates, 0) + self.start)


class _Threshold:
    """Per query, the lowest product that can still belong to the top k.

    Two bounds below the k-th best product seen (`slack`): its true score may be one bound lower, another
    document's one bound higher.
    """

    def __init__(self, k: int, lowest: Float, slack: Float) -> None:
        self.k, self.slack = k, slack
        self.lowest = _below(lowest)
        self.top = np.full((len(lowest), k), -np.inf, np.float32)

    def at_least(self, kth: Float) -> None:
        """k documents have a product of at least `kth` `[n]`."""
        self.lowest = np.maximum(self.lowest, _below(kth - self.slack))

    def see(self, rows: Int, values: Float) -> None:
        """Take note of the products of some documents; `rows` are sorted."""
        counts = np.bincount(rows, minlength=len(self.top))
        most = int(counts.max(initial=0))
        if most == 0:
            return
        table = np.full((len(self.top), self.k + most), -np.inf, np.float32)
        table[:, : self.k] = self.top
        table[rows, self.k + _places(counts)] = values
        table.partition(most, axis=1)
        self.top = table[:, most:]
        self.at_least(table[:, most])


def _below(values: Float) -> Float:
    """A step of rounding lower, and never below what padding is told from (-inf and such)."""
    lower = np.nextafter(values.astype(np.float32), np.float32(-np.inf), dtype=np.float32)
    return np.maximum(lower, np.float32(-1e30))


def _places(counts: Int) -> Int:
    """0, 1, 2, ... within each of the runs of these lengths."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def _padded(rows: Int, documents: Int, n: int) -> Int:
    counts = np.bincount(rows, minlength=n)
    table = np.full((n, int(counts.max(initial=0))), -1, np.int64)
    table[rows, _places(counts)] = documents
    return table


def pack(scores: Float, documents: Int, real: NDArray[np.bool_]) -> Int:
    """One integer a neighbour, larger = better: the score in order-preserving bits, then the lower row first."""
    bits = (scores + np.float32(0)).view(np.int32)  # + 0: minus zero equals zero
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = (bits.astype(np.int64) << 32) | (0xFFFFFFFF - documents)
    return np.where(real, keys, NOTHING)


def unpack(keys: Int) -> tuple[Float, NDArray[np.int32]]:
    """(scores, documents) of packed neighbours; -inf and -1 where there is none."""
    bits = (keys >> 32).astype(np.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    documents = (0xFFFFFFFF - (keys & 0xFFFFFFFF)).astype(np.int32)
    missing = keys == NOTHING
    return np.where(missing, np.float32(-np.inf), bits.view(np.float32)), np.where(missing, -1, documents)
