"""The scan of an inverted file's lists: each list is multiplied with all the queries of a block that probe it.

What the first list of a query held is the threshold for the documents of the others (see `ivf`). Where the kernel multiplies the
vectors as they are, a document that reaches the threshold, less the error bound, gets its float32 score at once. Kernels of coarser
formats let so many more pass that the highest are rescored first (see `ThresholdFilter`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardneg.index.kernels import FloatKernel, Kernel, is_float32, own_workspace
from hardneg.index.kmeans import by_list
from hardneg.index.thresholds import (
    ThresholdFilter,
    TileDocuments,
    documents_at_once,
    padded,
    reaching,
    score_range,
)
from hardneg.index.topk import RunningTopK, pair_products
from hardneg.storage.arrays import Float, Int

PART = 1024  # queries that are multiplied with a list at once
MOST_FOUND = 1 << 21  # scores of one product, and scored pairs that may wait to be merged
_COLUMNS, _ROWS = 32, 128  # numbers of queries and documents in a product are rounded up to multiples of these


@dataclass
class ListTile:
    """The documents `order[start:stop]`, which belong to some consecutive lists."""

    start: int
    stop: int
    lists: list[tuple[int, slice]]  # pairs (list, its documents as a slice of the tile)


class Probes(NamedTuple):
    """The p (query, list) pairs in which the query probes the list."""

    queries: Int  # [p], ascending
    lists: NDArray[np.int32]  # [p]
    first: NDArray[np.int32]  # [n], the best list of each query
    margins: Float  # [n], the probe margin of each query

    def without_first(self) -> Probes:
        """Without the pairs of a query with its best list."""
        others = self.lists != self.first[self.queries]
        return self._replace(queries=self.queries[others], lists=self.lists[others])


def parts_of(queries: NDArray[Any], documents: int) -> Iterator[NDArray[Any]]:
    """Split queries so that their scores with so many documents fit into the cache."""
    at_once = max(8, min(PART, MOST_FOUND // documents))
    return (queries[start : start + at_once] for start in range(0, len(queries), at_once))


class ListBlock:
    """A block of queries, with the queries that probe each list.

    Args:
        kernel: computes the approximate scores.
        lists: the number of lists.
        exact: the queries in float32, `[n, d]`.
        best: int64 `[n, k]`, the packed neighbors so far; changed in place.
        probes: the probes of all queries.
        span: the numbers of these queries among all queries.
    """

    def __init__(self, kernel: Kernel, lists: int, exact: Float, best: Int, probes: Probes, span: slice) -> None:
        fill = 8 - len(exact) % 8  # at least one row of padding, which `ListScan` uses
        exact = padded(exact, fill)
        self.topk = RunningTopK(exact, best)
        self.rounded = kernel.rounded(exact)
        pairs = slice(*np.searchsorted(probes.queries, [span.start, span.stop]))
        order, self.offsets = by_list(probes.lists[pairs], lists)
        self.columns = (probes.queries[pairs] - span.start)[order].astype(np.int32)

    def probing(self, number: int) -> NDArray[np.int32]:
        """int32 `[m]`: the queries of the block that probe list `number`."""
        columns: NDArray[np.int32] = self.columns[self.offsets[number] : self.offsets[number + 1]]
        return columns


class ListScan(TileDocuments):
    """A tile of lists. Workers call it with a block, whose queries are compared with the lists that they probe."""

    lists: list[tuple[int, slice]]

    def __call__(self, block: ListBlock) -> None:
        """Add the nearest documents of the tile to the running top-k of the block."""
        if is_float32(self.kernel):
            self._score(self.kernel, block)
            return
        topk = block.topk
        threshold_filter = ThresholdFilter(self, topk, block.rounded)
        threshold_filter.set_scale(threshold_filter.safe)
        for number, documents in self.lists:
            columns = block.probing(number)
            for start in range(0, len(columns), PART):
                if self._multiply(threshold_filter, columns[start : start + PART], documents):
                    threshold_filter.rescore()
                    topk.merge()
                    threshold_filter.set_scale(threshold_filter.safe)
        threshold_filter.rescore()
        if topk.waiting > MOST_FOUND:
            topk.merge()

    def _score(self, kernel: FloatKernel, block: ListBlock) -> None:
        """Add the documents whose products reach the threshold, for a kernel that multiplies the vectors as they are."""
        topk = block.topk
        rounded, bound, _, _ = score_range(kernel, block.rounded, self.tile, self.squared)
        for number, documents in self.lists:
            tile = self.tile.rows(documents)
            for columns in parts_of(block.probing(number), documents.stop - documents.start):
                scores = kernel.score_rows(rounded.rows(columns), tile)
                asked, found = reaching(scores, topk.floor[columns] - bound[columns])
                asked, found = columns[asked], found + documents.start
                products = pair_products(topk.exact, asked, self.vectors, found, self.squared)
                rows = self.rows[found]
                topk.add(asked, self.finish(products, rows), rows)
                if topk.waiting > MOST_FOUND:
                    topk.merge()

    def _multiply(self, threshold_filter: ThresholdFilter, columns: NDArray[np.int32], documents: slice) -> bool:
        """Multiply some queries with some documents, and return whether enough pairs are waiting to be rescored."""
        # Use few different shapes, because the matrix library has to prepare for each new one. The shape is filled up
        # with the last query of the block, which is padding.
        fill = np.full(-len(columns) % _COLUMNS, threshold_filter.n - 1, np.int32)
        columns = np.concatenate([columns, fill]) if len(fill) else columns
        queries = self.kernel.packed(threshold_filter.rounded.rows(columns))
        scale = threshold_filter.scale.rows(columns)
        width, chunk = np.int32(len(columns)), documents_at_once(self.kernel, len(columns))
        chunk, full = max(_ROWS, chunk - chunk % _ROWS), False
        for start in range(documents.start, documents.stop, chunk):
            stop = min(start + chunk, documents.stop)
            # Documents that fill up the shape belong to the next list, so their results are cut off.
            part = self.tile.rows(slice(start, stop + -(stop - start) % _ROWS))
            positions, levels = self.kernel.levels(queries, part, scale, own_workspace())
            count = np.searchsorted(positions, (stop - start) * width)
            positions, levels = positions[:count], levels[:count]
            rows = positions // width
            full |= threshold_filter.add(
                (rows + np.int32(start)) * np.int32(threshold_filter.n) + columns[positions - rows * width], levels
            )
        return full
