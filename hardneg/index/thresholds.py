"""Exact search in one tile: a threshold on the approximate scores decides which documents are rescored in float32.

A kernel (see `kernels`) computes approximate scores. Documents whose approximate score reaches the threshold of the
query pass. They are rescored and go into the running top-k.

If k documents were found in earlier tiles, the threshold of a query is its floor (see `topk`) minus the error bound of
the kernel. A document below this threshold cannot belong to the top k. Otherwise the threshold is a guess: an
approximate score from a sample of the tile, chosen so that somewhat more than k documents should pass.

The result of a guess is checked. Rescoring the documents that passed raises the floor. If the floor minus the error
bound is now at least the threshold, no document below the threshold can belong to the top k, and the result for the
query is *certified*. If not, the query is scanned again with a lower threshold. So the answer is exact, whatever the
guess was.

An example with k = 2 and the error bound 0.05. Five documents have these scores:

    approximate  0.81  0.42  0.78  0.55  0.70
    float32      0.80  0.40  0.77  0.54  0.73

With the guess 0.68, the first, third and fifth document pass and are rescored. The second best of their float32 scores
is 0.77, so the floor is 0.77. The result is certified, because 0.77 - 0.05 = 0.72 is at least 0.68. Indeed, the float32
score of a document that did not pass is less than 0.68 + 0.05 = 0.73, and so below the floor.

With the guess 0.75, only the first and the third document pass. The floor is again 0.77, but 0.72 is less than 0.75, so
the result is not certified. There could have been a document with the approximate score 0.74 and the float32 score
0.79. The query is scanned again with the threshold 0.72, which is the floor minus the error bound and needs no check.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hardneg.index.kernels import LEVELS, SMALLEST, UNIT_ROUNDOFF, Kernel, QueryBlock, Scale, Tile, own_workspace
from hardneg.index.topk import RunningTopK, pair_products
from hardneg.storage.arrays import Float, Int

_QUERIES = 1024  # queries in one block; the larger the block, the more often a document in the cache is used

_PRODUCT_BYTES = 3 << 19  # bytes of one chunk of products, so small that they are examined while they are in the cache

_SAMPLE = 2048  # documents of the tile that a threshold is guessed from

_GENEROSITY = 1.6  # this many times k documents should pass a guess; the surplus allows for the bound and for chance

_MOST_WAITING = 1 << 20  # pairs that may wait to be rescored

# `ThresholdFilter.rescore` counts levels if at least this many times k pairs per query are waiting. With fewer pairs,
# hardly any query has pairs that can be left out.
_WORTH_COUNTING = 0.5


def rows_at_once(queries: int, threads: int, most: int = 0) -> int:
    """The number of queries in one block, such that all threads get the same number of blocks.

    Args:
        queries: the number of queries in all.
        threads: the number of worker threads.
        most: the largest number of queries in a block, which is rounded up to a multiple of 8; 0 stands for 1,024.

    >>> rows_at_once(5000, threads=2)  # three blocks for each thread
    840
    """
    share = -(-max(1, queries) // threads)
    blocks = -(-share // (most or _QUERIES))
    rows = -(-share // blocks)
    return rows + -rows % 8


def documents_at_once(kernel: Kernel, queries: int) -> int:
    """The number of documents that a block of `queries` queries is multiplied with before the products are examined."""
    return max(64, _PRODUCT_BYTES // (kernel.bytes_a_product * max(1, queries)))


def padded(queries: Float, fill: int) -> Float:
    """The queries `[n, d]` with `fill` rows of zeros appended."""
    return np.concatenate([queries, np.zeros((fill, queries.shape[1]), np.float32)]) if fill else queries


class Block:
    """A block of queries, rounded once for all tiles, and their neighbors so far.

    Args:
        kernel: computes the approximate scores.
        exact: the queries in float32, `[n, d]`.
        best: int64 `[n, k]`, the packed neighbors so far, unsorted (see `topk.pack`); changed in place by `TileScan`.
    """

    def __init__(self, kernel: Kernel, exact: Float, best: Int) -> None:
        self.exact = padded(exact, -len(exact) % 8)  # the int8 kernel examines eight products at a time
        self.best = best
        self.rounded = kernel.packed(kernel.rounded(self.exact))

    def neighbors(self) -> tuple[Float, NDArray[np.int32]]:
        """(float32 scores, int32 documents), both `[n, k]`, nearest first."""
        return RunningTopK(self.exact, self.best).neighbors()


class TileDocuments:
    """The documents of a tile, both rounded and in float32.

    Args:
        kernel: computes the approximate scores.
        tile: the rounded documents.
        vectors: the documents in float32, `[T, d]`.
        rows: int64 `[T]`, the row of each document in the corpus.
        finish: converts products to scores, see `VectorStore.finish`.
        squared: whether scores are negative squared distances.
    """

    def __init__(
        self,
        kernel: Kernel,
        tile: Tile,
        vectors: Float,
        rows: Int,
        finish: Callable[[Float, Int], Float],
        squared: bool,
    ) -> None:
        self.kernel, self.tile, self.vectors, self.rows, self.finish = kernel, tile, vectors, rows, finish
        self.squared = squared
        self.size = len(vectors)


def score_range(
    kernel: Kernel, rounded: QueryBlock, tile: Tile, squared: bool
) -> tuple[QueryBlock, Float, Float, Float]:
    """The error bound of approximate scores, and the range that they lie in.

    Returns:
        (the queries, error bound, lowest possible score, highest possible score). The queries are rescaled for l2, such
        that the approximate scores are negative squared distances. The others are float32 `[n]`.
    """
    largest, bound = np.float32(tile.largest_norm), kernel.bound(rounded, tile)
    if not squared:
        span = rounded.norms * largest
        return rounded, bound, rounded.offset - span - bound, rounded.offset + span + bound
    # -|q - d|^2 = 2 (q.d - |d|^2 / 2) - |q|^2. These additions are in float32 too, so they add to the bound.
    span = (rounded.norms + largest) ** 2
    dimension = kernel.dimension
    bound = 2 * bound + 8 * (dimension + 8) * (np.float32(UNIT_ROUNDOFF) * span + np.float32(SMALLEST))
    return replace(rounded, unit=2 * rounded.unit, offset=-(rounded.norms**2)), bound, -span - bound, bound


class ThresholdFilter:
    """The thresholds of a block of queries for one tile, and the pairs that passed them and wait to be rescored.

    Args:
        documents: the documents of the tile.
        topk: the running top-k of the queries.
        rounded: the rounded queries.

    Attributes:
        rounded, bound, lowest_possible, highest_possible: see `score_range`.
        scale: the levels of the kernel. `set_scale` sets it.
    """

    def __init__(self, documents: TileDocuments, topk: RunningTopK, rounded: QueryBlock) -> None:
        self.documents, self.topk, self.n = documents, topk, topk.n
        self.rounded, self.bound, self.lowest_possible, self.highest_possible = score_range(
            documents.kernel, rounded, documents.tile, documents.squared
        )
        self._waiting: list[tuple[NDArray[np.int32], NDArray[np.uint8]]] = []
        self._count = 0

    def set_scale(self, thresholds: Float) -> None:
        """Set the threshold of each query, float32 `[n]`. It becomes level 1."""
        thresholds = thresholds.copy()
        thresholds[self.topk.real :] = np.inf  # no document passes for the padding of the block
        step = np.maximum((self.highest_possible - thresholds) / LEVELS, np.float32(1e-30))
        self.scale = Scale(thresholds - step, step)

    @property
    def safe(self) -> Float:
        """float32 `[n]`: thresholds that need no check. A document below them cannot belong to the top k."""
        safe: Float = np.maximum(self.topk.floor - self.bound, self.lowest_possible)
        return safe

    def add(self, positions: NDArray[np.int32], levels: NDArray[np.uint8]) -> bool:
        """Keep pairs that passed until the next call of `rescore`.

        Args:
            positions: int32 `[m]`: for each pair, the number of the document in the tile times n, plus the number of
                the query.
            levels: uint8 `[m]`, the level of each pair.

        Returns:
            Whether so many pairs are waiting that `rescore` should be called.
        """
        self._waiting.append((positions, levels))
        self._count += len(levels)
        return self._count > _MOST_WAITING

    def rescore(self) -> None:
        """Compute the float32 scores of the waiting pairs that can still matter, and add them to the running top-k.

        First come the pairs with the highest levels, about k for each query. The lowest of their scores is a score that
        k documents reach. Of the other pairs, only those whose level can still reach this score or the floor are
        rescored.
        """
        waiting, count = self._waiting, self._count
        self._waiting, self._count = [], 0
        if count == 0:
            return
        topk = self.topk
        positions, levels = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
        documents = positions // np.int32(self.n)
        columns = documents * np.int32(self.n)
        np.subtract(positions, columns, out=columns)
        kth_level = np.zeros(self.n, np.uint8)  # the highest level that k documents reach; 0 if there is none
        if count >= _WORTH_COUNTING * self.n * topk.k:
            counts = np.bincount(columns * np.int64(256) + levels, minlength=256 * self.n)
            reached = counts.astype(np.int32).reshape(self.n, 256)[:, :0:-1].cumsum(1, dtype=np.int32)
            kth_level = (reached >= topk.k).sum(1).astype(np.uint8)
        is_high = levels >= kth_level[columns]
        first = np.flatnonzero(is_high)
        scores = self._scores(columns[first], documents[first])
        # k documents reach the lowest of these scores. Which of the other pairs can reach it, or the floor?
        lowest = np.full(self.n, np.inf, np.float32)
        np.minimum.at(lowest, columns[first], scores)
        floor = np.maximum(topk.floor, np.where(kth_level > 0, lowest, -np.inf))
        least_level = np.ceil((floor - self.bound - self.scale.lowest) / self.scale.step - 1)
        least_level = np.where(np.isfinite(least_level), least_level.clip(0, 255), 0).astype(np.uint8)
        second = np.flatnonzero((levels >= least_level[columns]) & ~is_high)
        both = np.concatenate([first, second])
        scores = np.concatenate([scores, self._scores(columns[second], documents[second])])
        topk.add(columns[both], scores, self.documents.rows[documents[both]])

    def _scores(self, columns: NDArray[np.int32], documents: NDArray[np.int32]) -> Float:
        """float32 `[m]`: the scores of these pairs. This is fastest if the pairs of each document are adjacent."""
        tile, rows = self.documents, documents.astype(np.int64)
        products = pair_products(self.topk.exact, columns, tile.vectors, rows, tile.squared)
        return tile.finish(products, tile.rows[rows])


class TileScan(TileDocuments):
    """A tile whose documents are all compared with every query. Workers call it with their blocks of queries."""

    def __call__(self, block: Block) -> None:
        """Merge the nearest documents of the tile into the neighbors of the block."""
        pending = np.arange(len(block.best))
        current, floor, generosity = block, np.full(len(block.exact), -np.inf, np.float32), _GENEROSITY
        while True:
            attempt = _Attempt(self, current, floor, generosity)
            certified = attempt.run()
            topk = attempt.topk
            block.best[pending[certified]] = topk.best[certified]
            if certified.all():
                return
            left = np.flatnonzero(~certified)
            pending, generosity = pending[left], 4 * generosity
            current = Block(self.kernel, block.exact[pending], block.best[pending])
            floor = np.full(len(current.exact), -np.inf, np.float32)
            floor[: len(left)] = topk.floor[left]

    @functools.cached_property
    def sample(self) -> Tile:
        """The documents that thresholds are guessed from."""
        # Taken from all parts of the tile and shuffled, because in a sorted dataset near rows hold near documents.
        chosen = np.linspace(0, self.size - 1, min(self.size, _SAMPLE)).astype(np.int64)
        chosen = np.random.default_rng(0).permutation(chosen)
        return self.tile if len(chosen) == self.size else self.tile.rows(chosen)


class _Attempt:
    """One scan of a tile for a block of queries, with one choice of thresholds.

    Args:
        scan: the tile.
        block: the queries.
        floor: float32 `[n]`, the floor of each query, if it is known from an earlier attempt; -inf where it is not.
        generosity: where the floor is -inf, the threshold is guessed so that this many times k documents should pass.
    """

    def __init__(self, scan: TileScan, block: Block, floor: Float, generosity: float) -> None:
        self.scan, self.generosity = scan, generosity
        self.topk = RunningTopK(block.exact, block.best.copy(), floor)
        self.threshold_filter = ThresholdFilter(scan, self.topk, block.rounded)

    def run(self) -> NDArray[np.bool_]:
        """Scan the tile. Returns bool `[real]`: whether the neighbors of each query in `topk` are certified."""
        scan, threshold_filter, topk = self.scan, self.threshold_filter, self.topk
        safe = threshold_filter.safe
        no_floor = np.isneginf(topk.floor)
        thresholds = np.where(no_floor, np.maximum(self._guess(), safe), safe) if no_floor[: topk.real].any() else safe
        threshold_filter.set_scale(thresholds)
        chunk = documents_at_once(scan.kernel, topk.n)
        for start in range(0, scan.size, chunk):
            part = scan.tile.rows(slice(start, min(start + chunk, scan.size)))
            positions, levels = scan.kernel.levels(
                threshold_filter.rounded, part, threshold_filter.scale, own_workspace()
            )
            if threshold_filter.add(positions + np.int32(start * topk.n), levels):
                self._rescore()
                threshold_filter.set_scale(np.maximum(thresholds, topk.floor - threshold_filter.bound))
        self._rescore()
        certified: NDArray[np.bool_] = (thresholds <= safe) | (topk.floor - threshold_filter.bound >= thresholds)
        return certified[: topk.real]

    def _rescore(self) -> None:
        self.threshold_filter.rescore()
        self.topk.merge()

    def _guess(self) -> Float:
        """float32 `[n]`: thresholds that somewhat more than k documents of the tile should pass."""
        size, sampled, k = self.scan.size, len(self.scan.sample.values), self.topk.k
        if k > size:
            return self.threshold_filter.lowest_possible
        if sampled == size:
            # This is always certified. k documents have true scores of at least the k-th best approximate score minus
            # the bound. The floor reaches that, and certifying subtracts the bound once more.
            return self._kth_of_sample(k, 1) - 2 * self.threshold_filter.bound
        expected = self.generosity * k * sampled / size
        rank = math.ceil(expected + 2 * math.sqrt(expected) + 1)
        if rank >= sampled:
            return self.threshold_filter.lowest_possible
        # It is enough, and cheaper, to compare only the best documents of small groups.
        return self._kth_of_sample(rank, next((g for g in (8, 4, 2) if sampled // g >= 8 * rank), 1))

    def _kth_of_sample(self, k: int, group: int) -> Float:
        """float32 `[n]`: the k-th largest approximate score in the sample, counting only the best of each `group`."""
        sample, maxima, n = self.scan.sample, [], self.topk.n
        for start in range(0, len(sample.values), 256):
            scores = self.scan.kernel.scores(self.threshold_filter.rounded, sample.rows(slice(start, start + 256)))
            whole = len(scores) - len(scores) % group
            maxima.append(scores[:whole].reshape(-1, group, n).max(1))
        return kth_largest(np.concatenate(maxima), k)


def nearest_pairs(scores: Float, bound: Float, k: int) -> tuple[NDArray[np.int32], Int]:
    """The pairs (query, document) that may be among the k nearest of the query, ordered by query: int32 `[m]`, int64 `[m]`.

    k documents have true scores of at least the k-th best approximate one less its error. To reach that, another document
    needs an approximate score that is lower by the error once more.

    Args:
        scores: float32 `[n, T]`, the approximate scores of n queries with T documents.
        bound: float32 `[n]`, how far they may be from the true ones.
        k: the number of neighbors.
    """
    n, size = scores.shape
    if size <= k:
        return np.repeat(np.arange(n, dtype=np.int32), size), np.tile(np.arange(size), n)
    # The k-th best of the maxima of groups is a lower bound that takes less time, and lets few more pairs pass.
    maxima, group = scores, next((g for g in (8, 4, 2) if size // g >= 8 * k), 1)
    while group > 1:
        half = maxima.shape[1] // 2
        maxima, group = np.maximum(maxima[:, :half], maxima[:, half : 2 * half]), group // 2
    maxima = maxima.copy() if maxima is scores else maxima
    maxima.partition(maxima.shape[1] - k, axis=1)
    return reaching(scores, maxima[:, -k] - 2 * bound)


def reaching(scores: Float, lowest: Float) -> tuple[NDArray[np.int32], Int]:
    """The pairs (query, document), ordered by query, whose scores reach `lowest`, or nearly: int32 `[m]`, int64 `[m]`.

    `scores` is float32 `[n, T]`, of n queries with T documents, and `lowest` `[n]`.
    """
    positions = np.flatnonzero(scores >= np.nextafter(lowest, np.float32(-np.inf))[:, None])
    columns = positions // scores.shape[1]
    return columns.astype(np.int32), positions - columns * scores.shape[1]


def kth_largest(scores: Float, k: int) -> Float:
    """float32 `[n]`: the k-th largest value in each column of `scores` `[T, n]`.

    >>> kth_largest(np.array([[0.5], [0.25], [0.75]], np.float32), k=2).tolist()
    [0.5]
    """
    rows = np.ascontiguousarray(scores.T)
    rows.partition(rows.shape[1] - k, axis=1)
    kth: Float = rows[:, rows.shape[1] - k]
    return kth
