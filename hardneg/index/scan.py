"""One tile of documents against one block of queries: cheap products, a threshold, float32 for what is left.

Each query has a threshold. When earlier tiles left k neighbours, it is the k-th of them. Before that it is a
guess, from the products with a sample of the tile, that some more than k documents will pass; what passes is
scored in float32, and if the k-th true score then lies more than the kernel's error bound above the guess, no
document outside can belong to the top k: the guess is certified. The few queries for which it is not are
scanned again with a lower one. So the answer is exact whatever was guessed.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import faiss
import numpy as np
from numpy.typing import NDArray

from hardneg.index.kernels import LEVELS, Float, Int, Kernel, Scale, Tile, Workspace

NOTHING = np.iinfo(np.int64).min  # sorts after every real neighbour
_QUERIES = 1024  # of one block: the more, the more often a document that is in the cache is scored again
_PRODUCT_BYTES = 3 << 19  # of one chunk of products: they are looked at while they are in the cache
_SAMPLE = 2048  # documents that the first guess is made from
_GENEROSITY = 1.6  # how many times k documents shall pass a guess: those within the error bound, and bad luck
_MOST_WAITING = 1 << 20  # passed pairs that wait to be scored
_TABLE = 1 << 22  # cells of a table that is filled up to its longest row


def rows_at_once(queries: int, threads: int) -> int:
    """Queries in one block: a multiple of 8, at most 1,024, fewer when that keeps all workers busy."""
    share = -(-max(1, queries) // threads)
    blocks = -(-share // _QUERIES)
    rows = -(-share // blocks)
    return rows + -rows % 8


class Block:
    """Some queries, rounded once for all tiles.

    Args:
        kernel: of the first pass.
        exact: the queries, float32 `[n, d]`.
        best: int64 `[n, k]`, their neighbours so far, unsorted (see `pack`).
    """

    def __init__(self, kernel: Kernel, exact: Float, best: Int) -> None:
        fill = np.zeros((-len(exact) % 8, exact.shape[1]), np.float32)  # products are looked at eight at a time
        self.exact = np.concatenate([exact, fill]) if len(fill) else exact
        self.best = best
        self.rounded = kernel.queries(self.exact)

    def neighbours(self) -> tuple[Float, NDArray[np.int32]]:
        """(scores, documents), both `[n, k]`, nearest first."""
        self.best.sort(axis=1)
        return unpack(self.best[:, ::-1])


class TileScan:
    """Called by the workers; writes into the neighbours of their blocks.

    Args:
        kernel: of the first pass.
        tile: the rounded documents.
        vectors: the documents themselves, float32 `[T, d]`.
        start: row of the corpus that the tile begins with.
        finish: turns float32 products (squared distances for l2) and corpus rows into scores.
        squared: whether scores are minus squared distances.
    """

    def __init__(
        self,
        kernel: Kernel,
        tile: Tile,
        vectors: Float,
        start: int,
        finish: Callable[[Float, Int], Float],
        squared: bool,
    ) -> None:
        self.kernel, self.tile, self.vectors, self.start, self.finish = kernel, tile, vectors, start, finish
        self.squared = squared
        self.size = len(vectors)
        # Spread over the tile, in any order: datasets come sorted, and neighbours in the file are neighbours in space.
        chosen = np.linspace(0, self.size - 1, min(self.size, _SAMPLE)).astype(np.int64)
        chosen = np.random.default_rng(0).permutation(chosen)
        self.sample = tile if len(chosen) == self.size else tile.rows(chosen)
        self.local = threading.local()

    def __call__(self, block: Block) -> None:
        """Merge the tile's nearest documents into the block's neighbours."""
        pending = np.arange(len(block.best))
        current, reached, generosity = block, np.full(len(pending), -np.inf, np.float32), _GENEROSITY
        while True:
            attempt = _Attempt(self, current, reached, generosity)
            certified = attempt.run()
            block.best[pending[certified]] = attempt.best[certified]
            if certified.all():
                return
            left = np.flatnonzero(~certified)
            pending, reached, generosity = pending[left], attempt.floor[left], 4 * generosity
            current = Block(self.kernel, block.exact[pending], block.best[pending])

    @property
    def workspace(self) -> Workspace:
        if not hasattr(self.local, "workspace"):
            self.local.workspace = Workspace()
        workspace: Workspace = self.local.workspace
        return workspace


class _Attempt:
    """One scan of a tile for a block.

    Args:
        reached: float32 `[n]`, a score that k documents of the corpus are known to reach; -inf if there is none.
        generosity: how many times k documents shall pass where nothing is known.
    """

    def __init__(self, scan: TileScan, block: Block, reached: Float, generosity: float) -> None:
        self.scan, self.exact, self.generosity = scan, block.exact, generosity
        self.best = block.best.copy()
        self.n, self.real, self.k = len(block.exact), *block.best.shape
        rounded, largest = block.rounded, np.float32(scan.tile.largest_norm)
        self.bound = scan.kernel.bound(rounded, scan.tile)
        if scan.squared:  # -|q - d|^2 = 2 (q.d - |d|^2 / 2) - |q|^2, summed in float32 as well
            reach = (rounded.norms + largest) ** 2
            self.bound = 2 * self.bound + 8 * (self.exact.shape[1] + 8) * np.float32(2.0**-24) * reach
            rounded = replace(rounded, unit=2 * rounded.unit, offset=-(rounded.norms**2))
            self.ends = -reach - self.bound, self.bound
        else:
            reach = rounded.norms * largest
            self.ends = rounded.offset - reach - self.bound, rounded.offset + reach + self.bound
        self.rounded = rounded
        self.floor = np.full(self.n, -np.inf, np.float32)  # the k-th true score so far
        self.floor[: self.real] = unpack(self.best.min(1))[0]
        self.reached = self.floor.copy()
        self.reached[: self.real] = np.maximum(self.floor[: self.real], reached)
        self.waiting: list[tuple[NDArray[np.int32], NDArray[np.uint8]]] = []

    def run(self) -> NDArray[np.bool_]:
        """bool `[n]`: whether the query's neighbours in `best` are proven right."""
        scan = self.scan
        safe = np.maximum(self.reached - self.bound, self.ends[0])  # nothing below it can matter
        blind = np.isneginf(self.reached)
        guess = np.where(blind, np.maximum(self._guess(), safe), safe) if blind[: self.real].any() else safe
        self._set_scale(guess)
        chunk = max(64, _PRODUCT_BYTES // (scan.kernel.bytes_a_product * self.n))
        for start in range(0, scan.size, chunk):
            part = scan.tile.rows(slice(start, min(start + chunk, scan.size)))
            positions, levels = scan.kernel.levels(self.rounded, part, self.scale, scan.workspace)
            self.waiting.append((positions + np.int32(start * self.n), levels))
            if sum(len(levels) for _, levels in self.waiting) > _MOST_WAITING:
                self._settle()
                self._set_scale(np.maximum(guess, self.floor - self.bound))
        self._settle()
        certified: NDArray[np.bool_] = (guess <= safe) | (self.floor - self.bound >= guess)
        return certified[: self.real]

    def _guess(self) -> Float:
        """float32 `[n]`: a threshold that somewhat more than k documents of the tile will pass."""
        size, sampled = self.scan.size, len(self.scan.sample.values)
        if self.k > size:
            return self.ends[0]
        if sampled == size:
            # Not even a guess: k documents have true scores of at least the k-th approximate one less the bound.
            return self._kth_of_sample(self.k, 1) - 2 * self.bound
        expected = self.generosity * self.k * sampled / size
        rank = math.ceil(expected + 2 * math.sqrt(expected) + 1)
        if rank >= sampled:
            return self.ends[0]
        # The best of groups of documents will do, and is cheaper to order.
        return self._kth_of_sample(rank, next((g for g in (8, 4, 2) if sampled // g >= 8 * rank), 1))

    def _kth_of_sample(self, k: int, group: int) -> Float:
        """float32 `[n]`: the k-th largest of the approximate scores with the sample, only the best of each group seen."""
        sample, seen = self.scan.sample, []
        for start in range(0, len(sample.values), 256):
            scores = self.scan.kernel.scores(self.rounded, sample.rows(slice(start, start + 256)))
            whole = len(scores) - len(scores) % group
            seen.append(scores[:whole].reshape(-1, group, self.n).max(1))
        rows = np.ascontiguousarray(np.concatenate(seen).T)
        rows.partition(rows.shape[1] - k, axis=1)
        kth: Float = rows[:, rows.shape[1] - k]
        return kth

    def _set_scale(self, lowest: Float) -> None:
        lowest = lowest.copy()
        lowest[self.real :] = np.inf  # what only fills up the block
        step = np.maximum((self.ends[1] - lowest) / LEVELS, np.float32(1e-30))
        self.scale = Scale(lowest - step, step)

    def _settle(self) -> None:
        """Score what waits, as far as it can matter, and put it among the neighbours."""
        waiting, self.waiting = self.waiting, []
        if sum(len(levels) for _, levels in waiting) == 0:
            return
        positions, levels = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
        documents = positions // np.int32(self.n)
        columns = documents * np.int32(self.n)
        np.subtract(positions, columns, out=columns)
        counts = np.bincount(columns * np.int64(256) + levels, minlength=256 * self.n)
        reached = counts.astype(np.int32).reshape(self.n, 256)[:, :0:-1].cumsum(1, dtype=np.int32)
        enough = (reached >= self.k).sum(1).astype(np.uint8)  # the highest level that k documents reach, 0: none
        likely = levels >= enough[columns]
        first = np.flatnonzero(likely)
        scores = self._scores(columns[first], documents[first])
        # k documents have at least the lowest of these scores. What else can reach it, or the floor?
        lowest = np.full(self.n, np.inf, np.float32)
        np.minimum.at(lowest, columns[first], scores)
        sure = np.maximum(self.floor, np.where(enough > 0, lowest, -np.inf))
        wanted = np.ceil((sure - self.bound - self.scale.lowest) / self.scale.step - 1)
        wanted = np.where(np.isfinite(wanted), wanted.clip(0, 255), 0).astype(np.uint8)
        second = np.flatnonzero((levels >= wanted[columns]) & ~likely)
        both = np.concatenate([first, second])
        scores = np.concatenate([scores, self._scores(columns[second], documents[second])])
        self._merge(columns[both], documents[both], scores)

    def _scores(self, columns: NDArray[np.int32], documents: NDArray[np.int32]) -> Float:
        """float32 `[m]` true scores of these pairs; fastest when each document's stand together."""
        scan, rows = self.scan, documents.astype(np.int64)
        return scan.finish(pair_products(self.exact, columns, scan.vectors, rows, scan.squared), rows + scan.start)

    def _merge(self, columns: NDArray[np.int32], documents: NDArray[np.int32], scores: Float) -> None:
        lengths = np.bincount(columns, minlength=self.real)
        # Queries by how many pairs they have, so that tables of several are full; some have many times more than most.
        by_length = np.argsort(lengths, kind="stable")
        lengths = lengths[by_length]
        rank = np.empty(self.real, np.uint16)  # 16 bits: a radix sort
        rank[by_length] = np.arange(self.real)
        order = np.argsort(rank[columns], kind="stable")
        keys = pack(scores, documents + np.int64(self.scan.start))[order]
        ends = np.cumsum(lengths)
        for start, stop in _groups(lengths):
            low, high = ends[start] - lengths[start], ends[stop - 1]
            here, rows = lengths[start:stop], by_length[start:stop]
            table = np.full((stop - start, self.k + int(here[-1])), NOTHING, np.int64)
            table[:, : self.k] = self.best[rows]
            table[:, self.k :][np.arange(here[-1]) < here[:, None]] = keys[low:high]
            table.partition(table.shape[1] - self.k, axis=1)
            self.best[rows] = table[:, table.shape[1] - self.k :]
        self.floor[: self.real] = unpack(self.best.min(1))[0]


def _groups(lengths: Int) -> Iterator[tuple[int, int]]:
    """Spans of ascending `lengths` that are alike; those without any pair are left out."""
    start = int(np.searchsorted(lengths, 1))
    while start < len(lengths):
        widest = max(16, int(1.3 * lengths[start]))
        stop = min(int(np.searchsorted(lengths, widest, "right")), start + max(1, _TABLE // widest))
        yield start, stop
        start = stop


def pair_products(
    queries: Float, left: NDArray[np.integer], documents: Float, right: NDArray[np.integer], squared: bool
) -> Float:
    """float32 `[m]`: inner products (squared distances) of rows `left` of `queries` with rows `right` of `documents`.

    One function for whole searches and single pairs: their scores are the same, bit for bit.
    """
    products = np.empty(len(left), np.float32)
    pairwise = faiss.pairwise_indexed_L2sqr if squared else faiss.pairwise_indexed_inner_product
    left, right = (np.ascontiguousarray(rows, np.int64) for rows in (left, right))
    pairwise(
        queries.shape[1],
        len(products),
        faiss.swig_ptr(queries),
        faiss.swig_ptr(left),
        faiss.swig_ptr(documents),
        faiss.swig_ptr(right),
        faiss.swig_ptr(products),
    )
    return products


def pack(scores: Float, documents: Int) -> Int:
    """One integer a neighbour, larger = better: the score in order-preserving bits, then the lower row first."""
    # In place as far as it goes: fresh memory costs more than the arithmetic.
    bits = (scores + np.float32(0)).view(np.int32)  # + 0: minus zero equals zero
    sign = bits >> 31
    sign &= np.int32(0x7FFFFFFF)
    bits ^= sign
    keys = bits.astype(np.int64)
    keys <<= 32
    keys |= 0xFFFFFFFF - documents
    return keys


def unpack(keys: Int) -> tuple[Float, NDArray[np.int32]]:
    """(scores, documents) of packed neighbours; -inf and -1 where there is none."""
    bits = (keys >> 32).astype(np.int32)
    sign = bits >> 31
    sign &= np.int32(0x7FFFFFFF)
    bits ^= sign
    documents = ~keys.astype(np.int32)  # the lower half
    scores = bits.view(np.float32)
    missing = keys == NOTHING
    scores[missing], documents[missing] = -np.inf, -1
    return scores, documents
