"""Inverted file: approximate search that reads each list of documents once, for all queries that probe it.

Documents are stored in the list of their nearest centroid, and a query probes the few lists whose centroids are most promising
(Sivic and Zisserman 2003). Libraries that serve one query at a time walk the lists for each query. Here all queries are known:
they are grouped by list, and each list is one matrix product with all the queries that probe it. Within the probed lists the
answer is exact, by the same bounds as a full search.

Cost: L d operations per document and sample point for the centroids, two reads of the documents, and 2 d operations for each
(query, document) pair that shares a list. Memory, in addition to queries, corpus and answer: about 8 bytes per document and
200 MB.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardneg.errors import UsageError
from hardneg.index.base import Neighbors
from hardneg.index.kernel_choice import make_kernel
from hardneg.index.kernels import spans
from hardneg.index.kmeans import Centroids, by_list
from hardneg.index.thresholds import (
    ThresholdFilter,
    TileDocuments,
    documents_at_once,
    kth_largest,
    padded,
    rows_at_once,
    score_range,
)
from hardneg.index.topk import NOTHING, RunningTopK
from hardneg.index.vectors import Documents, VectorStore, workers
from hardneg.progress import Advance
from hardneg.storage.arrays import Float, Int

MOST_LISTS = 1 << 15
_QUERIES = 1 << 16  # queries in one block: with more of them, more share a list
_PART = 1024  # queries that are multiplied with a list at once
_COLUMNS, _ROWS = 32, 128  # their number, and that of the documents, is rounded up to these
_READ = 2048  # documents that are gathered at once
_MOST_FOUND = 1 << 21  # scored pairs that wait to be merged


def default_lists(size: int) -> int:
    """Number of lists for a corpus of this size: the square root, so that there are about as many lists as documents in each."""
    return int(min(MOST_LISTS, max(1, round(size**0.5))))


class IVFIndex(VectorStore):
    """An index that stores documents in lists around centroids, and searches the most promising lists of each query.

    Args:
        documents, metric, threads: see `VectorStore`.
        lists: number of lists; by default the square root of N.
        probe_margin: a query probes the lists whose centroids score at most this much worse than its best one, and further lists
            while they hold fewer than k documents; see `tune`.
        kernel: number format of the products, see `ExactIndex`.
        seed: random seed of the sample that the centroids are trained on.
        centroids: existing centroids, for example those of the last generation.
        order: existing lists, as (`order`, `offsets`).

    Attributes:
        order: int32 `[N]`, rows of the corpus, list by list.
        offsets: int64 `[L + 1]`, where each list begins in `order`.
    """

    name = "ivf"
    resident = False

    def __init__(
        self,
        documents: Documents,
        metric: str = "cosine",
        *,
        lists: int | None = None,
        probe_margin: float = 0.1,
        kernel: str = "auto",
        threads: int | None = None,
        seed: int = 0,
        centroids: Centroids | None = None,
        order: tuple[NDArray[np.int32], Int] | None = None,
    ) -> None:
        super().__init__(documents, metric, threads)
        lists = len(centroids) if centroids is not None else default_lists(self.size) if lists is None else lists
        if not 1 <= lists <= min(MOST_LISTS, self.size):
            raise UsageError(
                f"{lists:,} lists of {self.size:,} documents: between 1 and {min(MOST_LISTS, self.size):,} are possible"
            )
        self.kernel = self.make_kernel(kernel)
        self.probe_margin = probe_margin
        with workers(self.threads) as pool:
            self.centroids = centroids or Centroids.train(self, lists, seed, pool)
            if order is None:
                rows, offsets = by_list(self.centroids.assign(self.scaled, self.size, pool.map), lists)
                order = rows.astype(np.int32), offsets
        self.order, self.offsets = order

    @property
    def lists(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> Int:
        """int64 `[L]`: number of documents in each list."""
        return np.diff(self.offsets)

    def search(self, queries: NDArray[np.floating], k: int, progress: Advance | None = None) -> Neighbors:
        """The `k` nearest documents of each query within the lists that it probes. The arguments are those of `ExactIndex.search`."""
        exact = self.prepared(queries, k)
        best = np.full((len(exact), k), NOTHING, np.int64)
        with workers(self.threads) as pool:
            asked = self._asked(exact, k, pool)
            floor = self._floor(exact, asked.first, k, pool)
            rows = rows_at_once(len(exact), self.threads, _QUERIES)
            cut = spans(max(1, len(exact)), rows)
            blocks = list(pool.map(lambda span: _Block(self, exact[span], best[span], floor[span], asked, span), cut))
            most = min(self.tile_rows, ((1 << 31) - 1) // (rows + 8))  # pairs have 31-bit numbers
            done, total = 0, len(exact) * self.size
            for tile in self._tiles(asked, most):
                list(pool.map(self._scan(tile, pool), blocks))
                if progress is not None:
                    now = len(exact) * tile.stop
                    progress(now - done)
                    done = now
            if progress is not None:
                progress(total - done)
            found = list(pool.map(lambda block: block.topk.neighbors(), blocks))
        return Neighbors(*(np.concatenate(side) for side in zip(*found, strict=True)))

    def tune(self, queries: NDArray[np.floating], truth: NDArray[np.integer], recall: float) -> None:
        """Choose the probe margin that finds `recall` of the true neighbors `truth` `[n, k]` of `queries` `[n, d]`."""
        self.probe_margin = float(np.quantile(self._margins(self.prepared(queries), truth), recall, method="higher"))

    def recalls(self, queries: NDArray[np.floating], truth: NDArray[np.integer]) -> NDArray[np.float64]:
        """float64 `[n]`: the share of the true neighbors `truth` `[n, k]` in the lists that each query probes."""
        exact = self.prepared(queries)
        with workers(self.threads) as pool:
            asked = _Asked(*self.centroids.probe(exact, self.probe_margin, pool.map))
            margins = self._margins_to_hold(exact, truth.shape[1], asked, pool)
        shares: NDArray[np.float64] = (self._margins(exact, truth) <= margins[:, None]).mean(1)
        return shares

    def _margins(self, exact: Float, documents: NDArray[np.integer]) -> Float:
        with workers(self.threads) as pool:
            return self.centroids.margins(exact, self.list_of[documents], pool.map)

    @property
    def list_of(self) -> NDArray[np.int32]:
        """int32 `[N]`: the list of each document."""
        lists = np.empty(self.size, np.int32)
        lists[self.order] = np.repeat(np.arange(self.lists, dtype=np.int32), self.sizes)
        return lists

    def _asked(self, exact: Float, k: int, pool: Executor) -> _Asked:
        """Choose the lists of each query: the promising ones, and further ones until they hold k documents."""
        asked = _Asked(*self.centroids.probe(exact, self.probe_margin, pool.map))
        margins = self._margins_to_hold(exact, k, asked, pool)
        if (margins > np.float32(self.probe_margin)).any():
            return _Asked(*self.centroids.probe(exact, margins, pool.map))
        return asked

    def _margins_to_hold(self, exact: Float, k: int, asked: _Asked, pool: Executor) -> Float:
        """float32 `[n]`: the probe margin, doubled for queries whose lists would hold fewer than k documents."""
        margins = np.full(len(exact), self.probe_margin, np.float32)
        short, mine, lists = np.arange(len(exact)), asked.queries, asked.lists
        while len(short):
            held = np.bincount(mine, weights=self.sizes[lists], minlength=len(short))
            short = short[held < k]
            margins[short] = np.maximum(2 * margins[short], np.float32(2.0**-10))
            mine, lists, _ = self.centroids.probe(exact[short], margins[short], pool.map)
        return margins

    def _floor(self, exact: Float, first: NDArray[np.int32], k: int, pool: Executor) -> Float:
        """float32 `[n]`: a score that k documents of the query's `first` list reach; -inf if the list has fewer."""
        floor = np.full(len(exact), -np.inf, np.float32)
        queries, offsets = by_list(first, self.lists)
        kernel = make_kernel("float32", exact[:1])

        def look(number: int) -> None:
            rows = self.order[self.offsets[number] : self.offsets[number + 1]]
            here = queries[offsets[number] : offsets[number + 1]]
            if len(here) == 0 or len(rows) < k:
                return
            tile = self.tile(kernel, self.vectors(rows), rows)
            for at in range(0, len(here), _PART):
                some = here[at : at + _PART]
                rounded, bound, _, _ = score_range(kernel, kernel.rounded(exact[some]), tile, self.squared)
                floor[some] = kth_largest(kernel.scores(rounded, tile), k) - bound

        list(pool.map(look, range(self.lists)))
        return floor

    def _tiles(self, asked: _Asked, most: int) -> Iterator[_Tile]:
        """Split `order` into tiles of at most `most` documents. Lists that no query probes are not read."""
        tile: _Tile | None = None
        for number in np.unique(asked.lists).tolist():
            start, stop = self.offsets[number : number + 2].tolist()
            while start < stop:
                if tile is not None and (start != tile.stop or tile.stop - tile.start >= most):
                    yield tile
                    tile = None
                tile = tile or _Tile(start, start, [])
                end = min(stop, tile.start + most)
                tile.lists.append((number, slice(start - tile.start, end - tile.start)))
                tile.stop = start = end
        if tile is not None:
            yield tile

    def _scan(self, stretch: _Tile, pool: Executor) -> _ListScan:
        rows = self.order[stretch.start : stretch.stop]
        vectors = np.empty((len(rows), self.dimension), np.float32)

        def read(start: int) -> None:
            vectors[start : start + _READ] = self.documents[rows[start : start + _READ]]

        list(pool.map(read, range(0, len(rows), _READ)))
        tile = self.tile(self.kernel, vectors, rows, pool.map)
        scan = _ListScan(self.kernel, tile, vectors, rows.astype(np.int64), self.finish, self.squared)
        scan.lists = stretch.lists
        return scan


@dataclass
class _Tile:
    """Documents order[start:stop]. `lists` holds pairs (list, its documents in the tile)."""

    start: int
    stop: int
    lists: list[tuple[int, slice]]


class _Asked(NamedTuple):
    """The probed (query, list) pairs `[p]`, queries ascending. `first` is the nearest list of each query, `[n]`."""

    queries: Int
    lists: NDArray[np.int32]
    first: NDArray[np.int32]


class _Block:
    """Some queries, and which of them probe each list."""

    def __init__(self, index: IVFIndex, exact: Float, best: Int, floor: Float, asked: _Asked, span: slice) -> None:
        fill = 8 - len(exact) % 8  # at least one row of padding
        exact = padded(exact, fill)
        self.topk = RunningTopK(exact, best, np.concatenate([floor, np.full(fill, -np.inf, np.float32)]))
        self.rounded = index.kernel.rounded(exact)
        mine = slice(*np.searchsorted(asked.queries, [span.start, span.stop]))
        order, self.offsets = by_list(asked.lists[mine], index.lists)
        self.columns = (asked.queries[mine] - span.start)[order].astype(np.int32)

    def asking(self, number: int) -> NDArray[np.int32]:
        """The queries of the block that probe a list."""
        mine: NDArray[np.int32] = self.columns[self.offsets[number] : self.offsets[number + 1]]
        return mine


class _ListScan(TileDocuments):
    """Some lists of documents, scanned for the queries that probe them. Workers call it."""

    lists: list[tuple[int, slice]]

    def __call__(self, block: _Block) -> None:
        topk = block.topk
        passing = ThresholdFilter(self, topk, block.rounded)
        passing.set_scale(passing.safe)
        for number, documents in self.lists:
            columns = block.asking(number)
            for at in range(0, len(columns), _PART):
                if self._multiply(passing, columns[at : at + _PART], documents):
                    passing.rescore()
                    topk.merge()
                    passing.set_scale(passing.safe)
        passing.rescore()
        if topk.waiting > _MOST_FOUND:
            topk.merge()

    def _multiply(self, passing: ThresholdFilter, columns: NDArray[np.int32], documents: slice) -> bool:
        """Multiply, and return whether enough pairs wait to be rescored."""
        # Use few shapes: the matrix library prepares each new shape again.
        fill = np.full(-len(columns) % _COLUMNS, passing.n - 1, np.int32)
        columns = np.concatenate([columns, fill]) if len(fill) else columns
        queries, scale = self.kernel.packed(passing.rounded.rows(columns)), passing.scale.rows(columns)
        width, chunk = np.int32(len(columns)), documents_at_once(self.kernel, len(columns))
        chunk, full = max(_ROWS, chunk - chunk % _ROWS), False
        for start in range(documents.start, documents.stop, chunk):
            stop = min(start + chunk, documents.stop)
            # The rows that pad a shape belong to the next list: their results are cut off.
            part = self.tile.rows(slice(start, stop + -(stop - start) % _ROWS))
            positions, levels = self.kernel.levels(queries, part, scale, self.workspace)
            count = np.searchsorted(positions, (stop - start) * width)
            positions, levels = positions[:count], levels[:count]
            rows = positions // width
            full |= passing.add(
                (rows + np.int32(start)) * np.int32(passing.n) + columns[positions - rows * width], levels
            )
        return full
