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
_QUERIES = 2048  # of one block: the more, the more often a document that is in the cache is scored again
_PRODUCT_BYTES = 2 << 20  # of one chunk of products: they are looked at while they are in the cache
_SAMPLE = 2048  # documents that the first guess is made from
_MOST_WAITING = 1 << 20  # passed pairs that wait to be scored
_TABLE = 1 << 22  # cells of a table that is filled up to its longest row


def rows_at_once(queries: int, threads: int) -> int:
    """Queries in one block: a multiple of 8, at most 2,048, fewer when that keeps all workers busy."""
    share = -(-queries // threads)
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
        # Spread over the tile: datasets come sorted, and neighbours in the file are neighbours in space.
        chosen = np.linspace(0, self.size - 1, min(self.size, _SAMPLE)).astype(np.int64)
        self.sample = tile if len(chosen) == self.size else tile.rows(chosen)
        self.local = threading.local()

    def __call__(self, block: Block) -> None:
        """Merge the tile's nearest documents into the block's neighbours."""
        pending = np.arange(len(block.best))
        current, reached, generosity = block, np.full(len(pending), -np.inf, np.float32), 2.0
        while len(pending):
            attempt = _Attempt(self, current, reached, generosity)
            certified = attempt.run()
            block.best[pending[certified]] = attempt.best[certified]
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
            self.waiting.append(((positions + start * self.n).astype(np.int32), levels))
            if sum(len(levels) for _, levels in self.waiting) > _MOST_WAITING:
                self._settle()
                self._set_scale(np.maximum(guess, self.floor - self.bound))
        self._settle()
        certified: NDArray[np.bool_] = (guess <= safe) | (self.floor - self.bound >= guess)
        return certified[: self.real]

    def _guess(self) -> Float:
        """float32 `[n]`: a threshold that somewhat more than k documents of the tile will pass."""
        scores = self.scan.kernel.scores(self.rounded, self.scan.sample)
        size, sampled = self.scan.size, len(scores)
        if sampled == size:
            # Not even a guess: k documents have true scores of at least the k-th approximate one less the bound.
            return _kth(scores, self.k) - 2 * self.bound if self.k <= size else self.ends[0]
        expected = self.generosity * self.k * sampled / size
        rank = math.ceil(expected + 2.5 * math.sqrt(expected) + 1)
        if rank >= sampled:
            return self.ends[0]
        # The best of groups of documents will do, and is cheaper to order.
        group = next((g for g in (8, 4, 2) if sampled // g >= 8 * rank), 1)
        whole = scores[: sampled - sampled % group].reshape(sampled // group, group, self.n)
        return _kth(whole.max(1), rank)

    def _set_scale(self, lowest: Float) -> None:
        lowest = lowest.copy()
        lowest[self.real :] = np.inf  # what only fills up the block
        step = np.maximum((self.ends[1] - lowest) / LEVELS, np.float32(1e-30))
        self.scale = Scale(lowest - step, step)

    def _settle(self) -> None:
        """Score what waits, best guesses first, and put it among the neighbours."""
        positions, levels = (np.concatenate(parts) for parts in zip(*self.waiting, strict=True))
        self.waiting = []
        documents = positions // np.int32(self.n)
        columns = positions - documents * np.int32(self.n)
        counts = np.bincount(columns * np.int64(256) + levels, minlength=256 * self.n).reshape(self.n, 256)
        reached = counts[:, :0:-1].cumsum(1)[:, ::-1]  # [n, 255]: how many have level 1, 2, ... or more
        enough = (reached >= self.k).sum(1)  # the highest level that k documents reach, 0: none
        first = levels >= np.minimum(enough, 255).astype(np.uint8)[columns]
        self._score(columns[first], documents[first])
        # The k-th true score is known now. What can still reach it, one bound and one step allowed for?
        wanted = np.ceil((self.floor - self.bound - self.scale.lowest) / self.scale.step - 1)
        second = ~first & (levels >= np.clip(np.nan_to_num(wanted, nan=0), 0, 255).astype(np.uint8)[columns])
        self._score(columns[second], documents[second])

    def _score(self, columns: NDArray[np.int32], documents: NDArray[np.int32]) -> None:
        if len(columns) == 0:
            return
        scan = self.scan
        scores = np.empty(len(columns), np.float32)
        pairwise = faiss.pairwise_indexed_L2sqr if scan.squared else faiss.pairwise_indexed_inner_product
        left, right = columns.astype(np.int64), documents.astype(np.int64)
        pairwise(
            self.exact.shape[1],
            len(scores),
            faiss.swig_ptr(self.exact),
            faiss.swig_ptr(left),
            faiss.swig_ptr(scan.vectors),
            faiss.swig_ptr(right),
            faiss.swig_ptr(scores),
        )
        right += scan.start
        keys = pack(scan.finish(scores, right), right)
        order = np.argsort(columns.astype(np.uint16), kind="stable")  # 16 bits: a radix sort
        lengths = np.bincount(columns, minlength=self.real)
        ends = np.cumsum(lengths)
        keys, rows, place = keys[order], columns[order], np.arange(len(keys)) - np.repeat(ends - lengths, lengths)
        for start, stop in _groups(lengths + self.k):
            low, high = ends[start] - lengths[start], ends[stop - 1]
            table = np.full((stop - start, self.k + int(lengths[start:stop].max())), NOTHING, np.int64)
            table[:, : self.k] = self.best[start:stop]
            table[rows[low:high] - start, self.k + place[low:high]] = keys[low:high]
            table.partition(table.shape[1] - self.k, axis=1)
            self.best[start:stop] = table[:, table.shape[1] - self.k :]
        self.floor[: self.real] = unpack(self.best.min(1))[0]


def _kth(scores: Float, k: int) -> Float:
    """float32 `[n]`: the k-th largest of each column of `[m, n]`."""
    rows = np.ascontiguousarray(scores.T)
    rows.partition(rows.shape[1] - k, axis=1)
    kth: Float = rows[:, rows.shape[1] - k]
    return kth


def _groups(widths: Int) -> Iterator[tuple[int, int]]:
    """Spans of rows whose table, as wide as the widest of them, stays small."""
    spans = [(0, len(widths))]
    while spans:
        start, stop = spans.pop()
        if stop - start > 1 and (stop - start) * int(widths[start:stop].max()) > _TABLE:
            middle = (start + stop) // 2
            spans += [(start, middle), (middle, stop)]
        else:
            yield start, stop


def pack(scores: Float, documents: Int) -> Int:
    """One integer a neighbour, larger = better: the score in order-preserving bits, then the lower row first."""
    bits = (scores + np.float32(0)).view(np.int32)  # + 0: minus zero equals zero
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys: Int = (bits.astype(np.int64) << 32) | (0xFFFFFFFF - documents)
    return keys


def unpack(keys: Int) -> tuple[Float, NDArray[np.int32]]:
    """(scores, documents) of packed neighbours; -inf and -1 where there is none."""
    bits = (keys >> 32).astype(np.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    documents = (0xFFFFFFFF - (keys & 0xFFFFFFFF)).astype(np.int32)
    missing = keys == NOTHING
    return np.where(missing, np.float32(-np.inf), bits.view(np.float32)), np.where(missing, -1, documents)
