"""Exact search in one tile: approximate scores, a threshold for each query, and float32 scores for the documents above it.

When earlier tiles have left k neighbors, the threshold of a query is the score of the k-th of them. Before that it is estimated
from a sample of the tile, so that somewhat more than k documents pass. The documents that pass are scored again in float32.

The estimate is then certified. If the k-th best float32 score, less the kernel's error bound, is at least the threshold, no
other document can belong to the top k. Queries that fail this test are scanned again with a lower threshold. The answer is
therefore exact, whatever the estimate was.

An example with k = 2 and an error bound of 0.05. Five documents have the approximate scores 0.81, 0.42, 0.78, 0.55 and 0.70.
With the threshold 0.68, the first, third and fifth pass; their float32 scores are 0.80, 0.77 and 0.73. The second best is 0.77,
and 0.77 - 0.05 = 0.72 is above 0.68. A document that did not pass scores at most 0.68 + 0.05 = 0.73, which is less than 0.77:
certified. With the threshold 0.75, only the first and the third pass, and 0.72 is below 0.75. The fifth document could still
score up to 0.75, and one just below the threshold up to 0.80. The query is scanned again with the threshold 0.72.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hardneg.index.kernels import LEVELS, UNIT_ROUNDOFF, Kernel, QueryBlock, Scale, Tile, Workspace
from hardneg.index.topk import RunningTopK, pair_products
from hardneg.storage.arrays import Float, Int

_QUERIES = 1024  # queries in one block: with more of them, a document in the cache is used more often

_PRODUCT_BYTES = 3 << 19  # bytes of one chunk of products: they are examined while they are in the cache

_SAMPLE = 2048  # documents that the first estimate is made from

_GENEROSITY = 1.6  # times k documents should pass an estimate: a reserve for the error bound and for chance

_MOST_WAITING = 1 << 20  # pairs that passed and await rescoring

_WORTH_COUNTING = 0.5  # share of k pairs per query: with fewer, hardly any query has pairs that could be left out


def rows_at_once(queries: int, threads: int, most: int = 0) -> int:
    """Number of queries in one block: a multiple of 8, at most `most` (0: 1,024), and fewer if that keeps all workers busy."""
    share = -(-max(1, queries) // threads)
    blocks = -(-share // (most or _QUERIES))
    rows = -(-share // blocks)
    return rows + -rows % 8


def documents_at_once(kernel: Kernel, queries: int) -> int:
    """Number of documents to multiply with a block of `queries` queries before the products are examined."""
    return max(64, _PRODUCT_BYTES // (kernel.bytes_a_product * max(1, queries)))


def padded(queries: Float, fill: int) -> Float:
    """Append `fill` rows of zeros."""
    return np.concatenate([queries, np.zeros((fill, queries.shape[1]), np.float32)]) if fill else queries


class Block:
    """A block of queries, rounded once for all tiles.

    Args:
        kernel: the first pass.
        exact: the queries, float32 `[n, d]`.
        best: int64 `[n, k]`, the best neighbors so far, unsorted (see `pack`).
    """

    def __init__(self, kernel: Kernel, exact: Float, best: Int) -> None:
        self.exact = padded(exact, -len(exact) % 8)  # products are examined eight at a time
        self.best = best
        self.rounded = kernel.packed(kernel.rounded(self.exact))

    def neighbors(self) -> tuple[Float, NDArray[np.int32]]:
        """(scores, documents), both `[n, k]`, nearest first."""
        return RunningTopK(self.exact, self.best).neighbors()


class TileDocuments:
    """The documents of a tile, rounded and in float32.

    Args:
        kernel: the first pass.
        tile: the rounded documents.
        vectors: the documents in float32, `[T, d]`.
        rows: int64 `[T]`, the rows of these documents in the corpus.
        finish: converts float32 products (squared distances for l2) and corpus rows to scores.
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
        self.local = threading.local()

    @property
    def workspace(self) -> Workspace:
        if not hasattr(self.local, "workspace"):
            self.local.workspace = Workspace()
        workspace: Workspace = self.local.workspace
        return workspace


def score_range(
    kernel: Kernel, rounded: QueryBlock, tile: Tile, squared: bool
) -> tuple[QueryBlock, Float, Float, Float]:
    """Scale approximate scores, and bound them.

    Returns:
        (queries whose approximate scores are on the scale of the scores, error bound, lowest possible score, highest possible
        score); the last three are float32 `[n]`.
    """
    largest, bound = np.float32(tile.largest_norm), kernel.bound(rounded, tile)
    if not squared:
        span = rounded.norms * largest
        return rounded, bound, rounded.offset - span - bound, rounded.offset + span + bound
    # -|q - d|^2 = 2 (q.d - |d|^2 / 2) - |q|^2, summed in float32 as well
    span = (rounded.norms + largest) ** 2
    dimension = kernel.dimension
    bound = 2 * bound + 8 * (dimension + 8) * np.float32(UNIT_ROUNDOFF) * span
    return replace(rounded, unit=2 * rounded.unit, offset=-(rounded.norms**2)), bound, -span - bound, bound


class ThresholdFilter:
    """The thresholds for one tile, and the pairs that passed them and await rescoring.

    Args:
        documents: the tile.
        topk: the running top-k of the queries.
        rounded: the rounded queries.
    """

    def __init__(self, documents: TileDocuments, topk: RunningTopK, rounded: QueryBlock) -> None:
        self.documents, self.topk, self.n = documents, topk, topk.n
        self.rounded, self.bound, self.least, self.most = score_range(
            documents.kernel, rounded, documents.tile, documents.squared
        )
        self._waiting: list[tuple[NDArray[np.int32], NDArray[np.uint8]]] = []
        self._count = 0

    def set_scale(self, lowest: Float) -> None:
        lowest = lowest.copy()
        lowest[self.topk.real :] = np.inf  # the padding of the block
        step = np.maximum((self.most - lowest) / LEVELS, np.float32(1e-30))
        self.scale = Scale(lowest - step, step)

    @property
    def safe(self) -> Float:
        """float32 `[n]`: a document whose approximate score is below this cannot belong to the top k."""
        safe: Float = np.maximum(self.topk.floor - self.bound, self.least)
        return safe

    def add(self, positions: NDArray[np.int32], levels: NDArray[np.uint8]) -> bool:
        """Add pairs that passed, as `document of the tile * n + query`. Returns True when enough pairs wait to be rescored."""
        self._waiting.append((positions, levels))
        self._count += len(levels)
        return self._count > _MOST_WAITING

    def rescore(self) -> None:
        """Compute the float32 scores of the waiting pairs that can still matter, and add them to the top-k."""
        waiting, count = self._waiting, self._count
        self._waiting, self._count = [], 0
        if count == 0:
            return
        topk = self.topk
        positions, levels = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
        documents = positions // np.int32(self.n)
        columns = documents * np.int32(self.n)
        np.subtract(positions, columns, out=columns)
        enough = np.zeros(self.n, np.uint8)  # the highest level that k documents reach; 0: none
        if count >= _WORTH_COUNTING * self.n * topk.k:
            counts = np.bincount(columns * np.int64(256) + levels, minlength=256 * self.n)
            reached = counts.astype(np.int32).reshape(self.n, 256)[:, :0:-1].cumsum(1, dtype=np.int32)
            enough = (reached >= topk.k).sum(1).astype(np.uint8)
        likely = levels >= enough[columns]
        first = np.flatnonzero(likely)
        scores = self._scores(columns[first], documents[first])
        # k documents have at least the lowest of these scores. Which others can reach it, or the floor?
        lowest = np.full(self.n, np.inf, np.float32)
        np.minimum.at(lowest, columns[first], scores)
        sure = np.maximum(topk.floor, np.where(enough > 0, lowest, -np.inf))
        wanted = np.ceil((sure - self.bound - self.scale.lowest) / self.scale.step - 1)
        wanted = np.where(np.isfinite(wanted), wanted.clip(0, 255), 0).astype(np.uint8)
        second = np.flatnonzero((levels >= wanted[columns]) & ~likely)
        both = np.concatenate([first, second])
        scores = np.concatenate([scores, self._scores(columns[second], documents[second])])
        topk.add(columns[both], scores, self.documents.rows[documents[both]])

    def _scores(self, columns: NDArray[np.int32], documents: NDArray[np.int32]) -> Float:
        """float32 `[m]`: scores of these pairs. It is fastest when the pairs of each document are adjacent."""
        tile, rows = self.documents, documents.astype(np.int64)
        products = pair_products(self.topk.exact, columns, tile.vectors, rows, tile.squared)
        return tile.finish(products, tile.rows[rows])


class TileScan(TileDocuments):
    """Scan all documents of a tile for every query. Workers call it; it updates the neighbors of their blocks."""

    def __call__(self, block: Block) -> None:
        """Merge the tile's nearest documents into the block's neighbors."""
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
        # Spread over the tile, in any order: datasets come sorted, and neighbors in the file are neighbors in space.
        chosen = np.linspace(0, self.size - 1, min(self.size, _SAMPLE)).astype(np.int64)
        chosen = np.random.default_rng(0).permutation(chosen)
        return self.tile if len(chosen) == self.size else self.tile.rows(chosen)


class _Attempt:
    """One scan of a tile for a block, with one choice of thresholds.

    Args:
        scan: the tile.
        block: the queries.
        floor: float32 `[n]`, a score that k documents of the corpus are known to reach; -inf if none is known.
        generosity: where nothing is known, the threshold is estimated to let this many times k documents pass.
    """

    def __init__(self, scan: TileScan, block: Block, floor: Float, generosity: float) -> None:
        self.scan, self.generosity = scan, generosity
        self.topk = RunningTopK(block.exact, block.best.copy(), floor)
        self.passing = ThresholdFilter(scan, self.topk, block.rounded)

    def run(self) -> NDArray[np.bool_]:
        """bool `[real]`: whether the neighbors of the query in the top-k are certified."""
        scan, passing, topk = self.scan, self.passing, self.topk
        safe = passing.safe
        blind = np.isneginf(topk.floor)
        guess = np.where(blind, np.maximum(self._guess(), safe), safe) if blind[: topk.real].any() else safe
        passing.set_scale(guess)
        chunk = documents_at_once(scan.kernel, topk.n)
        for start in range(0, scan.size, chunk):
            part = scan.tile.rows(slice(start, min(start + chunk, scan.size)))
            positions, levels = scan.kernel.levels(passing.rounded, part, passing.scale, scan.workspace)
            if passing.add(positions + np.int32(start * topk.n), levels):
                self._rescore()
                passing.set_scale(np.maximum(guess, topk.floor - passing.bound))
        self._rescore()
        certified: NDArray[np.bool_] = (guess <= safe) | (topk.floor - passing.bound >= guess)
        return certified[: topk.real]

    def _rescore(self) -> None:
        self.passing.rescore()
        self.topk.merge()

    def _guess(self) -> Float:
        """float32 `[n]`: an estimated threshold that somewhat more than k documents of the tile will pass."""
        size, sampled, k = self.scan.size, len(self.scan.sample.values), self.topk.k
        if k > size:
            return self.passing.least
        if sampled == size:
            # This needs no certificate: k documents have true scores of at least the k-th approximate one less the bound.
            return self._kth_of_sample(k, 1) - 2 * self.passing.bound
        expected = self.generosity * k * sampled / size
        rank = math.ceil(expected + 2 * math.sqrt(expected) + 1)
        if rank >= sampled:
            return self.passing.least
        # The best of each group of documents is enough, and cheaper to order.
        return self._kth_of_sample(rank, next((g for g in (8, 4, 2) if sampled // g >= 8 * rank), 1))

    def _kth_of_sample(self, k: int, group: int) -> Float:
        """float32 `[n]`: the k-th largest approximate score in the sample, counting only the best document of each group."""
        sample, seen, n = self.scan.sample, [], self.topk.n
        for start in range(0, len(sample.values), 256):
            scores = self.scan.kernel.scores(self.passing.rounded, sample.rows(slice(start, start + 256)))
            whole = len(scores) - len(scores) % group
            seen.append(scores[:whole].reshape(-1, group, n).max(1))
        return kth_largest(np.concatenate(seen), k)


def kth_largest(scores: Float, k: int) -> Float:
    """float32 `[n]`: the k-th largest of each column of `scores` `[T, n]`."""
    rows = np.ascontiguousarray(scores.T)
    rows.partition(rows.shape[1] - k, axis=1)
    kth: Float = rows[:, rows.shape[1] - k]
    return kth
