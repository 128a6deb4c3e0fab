"""Inverted file: approximate search that compares each query only with the documents of the most promising lists.

Every document is in the list of its nearest centroid. A query probes the lists of the centroids that are near to it,
which means that it is compared with the documents in them (Sivic and Zisserman 2003). A server that gets one query at a
time reads the lists again for each. Here all queries are known in advance. They are grouped by list, and each list is
one matrix product with all the queries that probe it (as in `faiss.contrib.big_batch_search`). Within the probed lists
the answer is exact, by the same error bounds as in a full search. The best list of each query comes first; what it holds
is the threshold for the others.

The *probe margin* says how many lists a query probes: all those whose centroids compare with the query at most this
much worse than the best centroid. For example, if the cosines of a query with three centroids are 0.80, 0.75 and 0.60,
and the probe margin is 0.10, the query probes the first two lists. A query in a dense place needs few lists, one
between many centroids needs many. At equal recall, a search with a probe margin reads a half to a quarter of the
documents that it reads with a fixed number of lists. If the probed lists hold fewer than k documents, the margin of
that query is doubled until they hold k.

Cost: 2 L d operations for each document, to find its list, and for each sampled document in each iteration of k-means;
one read of the documents to build the lists, and at most two to search them; 2 d operations for each query and each
document in a list that it probes. Memory, in addition to queries, corpus and answer: about 8 bytes per document, and
200 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor

import numpy as np
import torch
from numpy.typing import NDArray

from hardneg.ambient import own_settings
from hardneg.errors import DataError, UsageError
from hardneg.index.base import Neighbors
from hardneg.index.kernels import FloatKernel, spans
from hardneg.index.kmeans import Centroids, by_list
from hardneg.index.list_scan import ListBlock, ListScan, ListTile, Probes, parts_of
from hardneg.index.thresholds import nearest_pairs, rows_at_once, score_range
from hardneg.index.topk import NOTHING, best_keys, best_of, pair_products, sorted_keys
from hardneg.index.vectors import Documents, VectorStore, mapped, workers
from hardneg.progress import Advance
from hardneg.storage.arrays import Float, Int
from hardneg.storage.arrow import check_whole

MOST_LISTS = 1 << 15
_QUERIES = 1 << 16  # queries in one block; the larger the block, the more of them share a list
_READ = 2048  # documents that are read at once


def default_lists(size: int) -> int:
    """The default number of lists for N = `size` documents: about √N, so that a list holds about √N documents.

    >>> default_lists(1_000_000)
    1000
    """
    return int(min(MOST_LISTS, max(1, round(size**0.5))))


class IVFIndex(VectorStore):
    """An index that stores documents in lists around centroids, and searches the most promising lists of each query.

    Args:
        documents, metric, threads: see `VectorStore`.
        lists: the number of lists, L; by default the square root of N.
        probe_margin: how much worse than the best centroid the centroid of a probed list may compare, 0 or more (see
            the docstring of this module). A larger margin gives a higher recall and a slower search. `tune` sets it.
        kernel: the number format of the products, see `ExactIndex`.
        seed: random seed of the sample that the centroids are trained on.
        centroids: existing centroids, such as those of the previous index over the same documents; by default they are
            trained.
        order: existing lists, as (`order`, `offsets`); by default each document goes into the list of its nearest
            centroid.

    Attributes:
        order: int32 `[N]`, the rows of the corpus, list by list.
        offsets: int64 `[L + 1]`. List l is `order[offsets[l]:offsets[l + 1]]`.

    Raises:
        DataError: as for `VectorStore`.
        UsageError: the number of lists or the probe margin is out of range, the metric or the kernel is unknown, or
            this machine cannot run the kernel.
    """

    name = "ivf"
    resident = False

    @own_settings()
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
        if not isinstance(lists, int | np.integer) or not 1 <= lists <= min(MOST_LISTS, self.size):
            raise UsageError(
                f"lists={lists!r} for {self.size:,} documents: it must be between 1 and {min(MOST_LISTS, self.size):,}"
            )
        number = isinstance(probe_margin, int | float | np.number) and not isinstance(probe_margin, bool)
        if not number or not probe_margin >= 0:  # with NaN, a search would never end
            raise UsageError(f"probe_margin={probe_margin!r}: it must be a number, 0 or more")
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
        """The number of lists, L."""
        return len(self.offsets) - 1

    @property
    def sizes(self) -> Int:
        """int64 `[L]`: the number of documents in each list."""
        return np.diff(self.offsets)

    @own_settings()
    def search(self, queries: NDArray[np.floating], k: int, progress: Advance | None = None) -> Neighbors:
        """The `k` nearest documents of each query within the lists that it probes.

        Arguments and errors are those of `ExactIndex.search`.
        """
        exact = self.prepared(queries, k)
        best = np.full((len(exact), k), NOTHING, np.int64)
        done, total = 0, len(exact) * self.size

        def tell(share: float) -> None:
            nonlocal done
            if progress is not None:
                progress(int(share * total) - done)
                done = int(share * total)

        with workers(self.threads) as pool:
            probes = self._probes(exact, k, pool)
            self._search_first(exact, best, probes.first, k, pool, lambda share: tell(share / 2))
            others = probes.without_first()
            if len(others.queries):
                self._search_others(exact, best, others, pool, lambda share: tell(0.5 + share / 2))
            tell(1.0)
            parts = list(pool.map(lambda span: sorted_keys(best[span]), spans(max(1, len(best)), _QUERIES)))
        return Neighbors(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def _search_others(
        self, exact: Float, best: Int, probes: Probes, pool: Executor, tell: Callable[[float], None]
    ) -> None:
        """Merge the nearest documents of the other probed lists into `best`, for the queries that have some."""
        asked = probes.queries[np.flatnonzero(np.diff(probes.queries, prepend=-1))]
        some = len(asked) < len(exact)
        queries, found = (exact[asked], best[asked]) if some else (exact, best)
        probes = probes._replace(queries=np.searchsorted(asked, probes.queries))
        rows = rows_at_once(len(queries), self.threads, _QUERIES)

        def block_of(span: slice) -> ListBlock:
            return ListBlock(self.kernel, self.lists, queries[span], found[span], probes, span)

        blocks = list(pool.map(block_of, spans(len(queries), rows)))
        most = min(self.tile_rows, ((1 << 31) - 1) // (rows + 8))  # so that the numbers of pairs fit into 31 bits
        for tile in self._tiles(probes, most):
            list(pool.map(self._scan(tile, pool), blocks))
            tell(tile.stop / self.size)
        list(pool.map(lambda block: block.topk.merge(), blocks))
        if some:
            best[asked] = found

    def tune(self, queries: NDArray[np.floating], truth: NDArray[np.integer], recall: float) -> None:
        """Set `probe_margin` to the smallest one that reaches the recall.

        Args:
            queries: float `[n, d]`.
            truth: int `[n, k]`, the true neighbors of these queries.
            recall: the target recall, above 0 and at most 1.
        """
        self.probe_margin = float(np.quantile(self._margins(self.prepared(queries), truth), recall, method="higher"))

    def recalls(self, queries: NDArray[np.floating], truth: NDArray[np.integer]) -> NDArray[np.float64]:
        """float64 `[n]`: the share of the true neighbors `truth` `[n, k]` in the lists that each query probes."""
        exact = self.prepared(queries)
        with workers(self.threads) as pool:
            margins = self._probes(exact, truth.shape[1], pool).margins
        shares: NDArray[np.float64] = (self._margins(exact, truth) <= margins[:, None]).mean(1)
        return shares

    def _margins(self, exact: Float, documents: NDArray[np.integer]) -> Float:
        """float32 `[n, k]`: the smallest probe margin with which each query finds each of its `documents` `[n, k]`."""
        with workers(self.threads) as pool:
            return self.centroids.margins(exact, self.list_of[documents], pool.map)

    @property
    def list_of(self) -> NDArray[np.int32]:
        """int32 `[N]`: the list of each document."""
        lists = np.empty(self.size, np.int32)
        lists[self.order] = np.repeat(np.arange(self.lists, dtype=np.int32), self.sizes)
        return lists

    def _probes(self, exact: Float, k: int, pool: Executor) -> Probes:
        """Choose the lists that each query probes: its probe margin is doubled until they hold at least k documents."""
        margins = np.full(len(exact), self.probe_margin, np.float32)
        queries, lists, first = self.centroids.probe(exact, margins, pool.map)
        held = np.bincount(queries, weights=self.sizes[lists], minlength=len(exact))
        while len(short := np.flatnonzero(held < k)):
            margins[short] = np.maximum(2 * margins[short], np.float32(2.0**-10))
            others = (held >= k)[queries]
            again, found, _ = self.centroids.probe(exact[short], margins[short], pool.map)
            held[short] = np.bincount(again, weights=self.sizes[found], minlength=len(short))
            queries, lists = np.concatenate([queries[others], short[again]]), np.concatenate([lists[others], found])
            order = np.argsort(queries, kind="stable")
            queries, lists = queries[order], lists[order]
        return Probes(queries, lists, first, margins)

    def _search_first(
        self, exact: Float, best: Int, first: NDArray[np.int32], k: int, pool: Executor, tell: Callable[[float], None]
    ) -> None:
        """Set `best` `[n, k]` to the packed neighbors of each query within its best list, `first` `[n]`.

        Their scores are those that the documents of the other lists have to reach. Where a list holds fewer than k
        documents, `NOTHING` stands for the others.
        """
        by_first, offsets = by_list(first, self.lists)
        kernel = FloatKernel(exact[:1], torch.float32)

        def search_list(number: int) -> None:
            queries = by_first[offsets[number] : offsets[number + 1]]
            start, stop = self.offsets[number : number + 2].tolist()
            # Copies may all be in one list, so it is read in parts.
            for begin in range(start, stop if len(queries) else start, self.tile_rows):
                rows = self.order[begin : min(stop, begin + self.tile_rows)].astype(np.int64)
                search_rows(rows, queries, begin == start)

        def search_rows(rows: Int, queries: Int, nothing_yet: bool) -> None:
            vectors = self.vectors(rows)
            tile = self.tile(kernel, vectors, rows)
            for part in parts_of(queries, len(rows)):
                asked = exact[part]
                rounded, bound, _, _ = score_range(kernel, kernel.rounded(asked), tile, self.squared)
                columns, found = nearest_pairs(kernel.score_rows(rounded, tile), bound, k)
                products = pair_products(asked, columns, vectors, found, self.squared)
                keys = best_keys(columns, self.finish(products, rows[found]), rows[found], (len(part), k))
                best[part] = keys if nothing_yet else best_of(best[part], keys)

        for number, _ in enumerate(pool.map(search_list, range(self.lists))):
            tell(self.offsets[number + 1] / self.size)

    def _tiles(self, probes: Probes, most: int) -> Iterator[ListTile]:
        """Split `order` into tiles of at most `most` documents, without the lists that no query probes."""
        tile: ListTile | None = None
        for number in np.unique(probes.lists).tolist():
            start, stop = self.offsets[number : number + 2].tolist()
            while start < stop:
                if tile is not None and (start != tile.stop or tile.stop - tile.start >= most):
                    yield tile
                    tile = None
                tile = tile or ListTile(start, start, [])
                end = min(stop, tile.start + most)
                tile.lists.append((number, slice(start - tile.start, end - tile.start)))
                tile.stop = start = end
        if tile is not None:
            yield tile

    def _scan(self, part: ListTile, pool: Executor) -> ListScan:
        """Read and round the documents of a tile."""
        rows = self.order[part.start : part.stop]
        vectors = np.empty((len(rows), self.dimension), np.float32)

        def read(start: int) -> None:
            check_whole(mapped(self.documents), DataError)
            vectors[start : start + _READ] = self.documents[rows[start : start + _READ]]

        list(pool.map(read, range(0, len(rows), _READ)))
        tile = self.tile(self.kernel, vectors, rows, pool.map)
        scan = ListScan(self.kernel, tile, vectors, rows.astype(np.int64), self.finish, self.squared)
        scan.lists = part.lists
        return scan
