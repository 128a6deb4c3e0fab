"""Who stands in the same crowd: the sign of relevance that no score of a pair can give.

Two texts that mean the same may lie somewhat apart, but they lie in the same crowd. The crowd of a document counts,
for every other, how many of its nearest documents have it among their nearest: shared nearest neighbours (Jarvis and
Patrick 1973) after a local query expansion, which is what made them strong in person re-identification (Zhong et al.
2017, arXiv 1701.08398). All is counted in whole numbers, so no answer depends on the order of a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Ragged
from hardneg.index.base import others
from hardneg.index.choose import make_index
from hardneg.index.corpus import Corpus
from hardneg.index.kernels import Float

NEAREST = 50  # documents that a document counts as near, itself included
SPREAD = 10  # near documents whose own near ones make up a crowd
WIDTH = 128  # members that are kept of a crowd, those counted most often
VOTERS = 16  # other queries whose positives vote
_LISTED = 64  # queries that are looked at for a document that was found for more
_VOTES = 64  # members of a positive's crowd that are voted for
_POOLED = 256  # members that are kept of what was voted for
_POSITIVES = 4  # positives of a voter that are looked at
_BLOCK = 16384  # documents whose neighbours are searched at once
_ROWS = 512  # crowds made at once
_GATHERED = 1 << 18  # members looked up at once
_BITS = 21  # of one product of two crowds, at most 255 * SPREAD * NEAREST = 127,500; three fit into 64

T = TypeVar("T")


@dataclass(frozen=True)
class Crowd:
    """Crowds of n documents or queries, as sparse vectors over N documents.

    Attributes:
        members: int32 `[n, w]`, rows of the corpus, each once; N where there are fewer.
        counts: uint8 `[n, w]`, how often each was counted; 0 where there are fewer.
    """

    members: NDArray[np.int32]
    counts: NDArray[np.uint8]

    def take(self, rows: NDArray[np.integer] | slice) -> Crowd:
        return Crowd(self.members[rows], self.counts[rows])

    @cached_property
    def lengths(self) -> Float:
        """float32 `[n]`: Euclidean norms of the counts."""
        squares = np.einsum("ij,ij->i", self.counts, self.counts, dtype=np.int64)
        lengths: Float = np.sqrt(squares).astype(np.float32)
        return lengths

    @classmethod
    def joined(cls, parts: Sequence[Crowd]) -> Crowd:
        return cls(np.concatenate([p.members for p in parts]), np.concatenate([p.counts for p in parts]))


@dataclass(frozen=True)
class Crowds:
    """The neighbourhoods of a corpus.

    Attributes:
        near: int32 `[N, k]`: every document, then its nearest others, nearest first; -1 where there are fewer.
        reach: float32 `[N]`: score of the farthest of those others; -inf where there is none.
        crowd: of every document.
        threads: that count at once.
    """

    near: NDArray[np.int32]
    reach: Float
    crowd: Crowd
    threads: int = 1

    @classmethod
    def of(cls, corpus: Corpus, nearest: int = NEAREST) -> Crowds:
        """Searches the nearest `nearest` - 1 others of every document, and counts."""
        near, reach = neighbour_graph(corpus, nearest - 1)
        near = np.concatenate([np.arange(len(near), dtype=np.int32)[:, None], near], axis=1)
        crowd = Crowd.joined(_spread(lambda rows: gather(near, near[rows, :SPREAD]), len(near), _ROWS, corpus.threads))
        return cls(near, reach, crowd, corpus.threads)

    @property
    def size(self) -> int:
        return len(self.near)

    def around(self, found: NDArray[np.integer]) -> Crowd:
        """The crowds of queries, from the documents found for them, `[n, m]`, nearest first, -1 where there are fewer."""
        return Crowd.joined(
            _spread(lambda rows: gather(self.near, found[rows, :SPREAD]), len(found), _ROWS, self.threads)
        )

    def similarities(self, around: Sequence[Crowd], documents: NDArray[np.integer]) -> list[Float]:
        """Cosines of each row's crowds with the crowds of that row's documents.

        Args:
            around: one to three times `[n]` crowds: of queries, of positives, of votes. They are looked up together.
            documents: `[n, K]` rows of the corpus, -1 where there is none.

        Returns:
            For each of `around` float32 `[n, K]`, 0 to 1; 0 where there is no document.
        """
        step = max(1, _GATHERED // max(1, documents.shape[1] * self.crowd.members.shape[1]))
        products = np.empty(documents.shape, np.uint64)
        # Every thread has one share of the rows, and one set of tables that it uses again and again.
        shares = min(self.threads, -(-len(documents) // step)) or 1
        bounds = np.linspace(0, len(documents), shares + 1).astype(int)

        def count(share: slice) -> None:
            table = _Table(self, step, documents.shape[1])
            for i in range(bounds[share.start], bounds[share.stop], step):
                rows = slice(i, min(i + step, bounds[share.stop]))
                table.products([crowd.take(rows) for crowd in around], documents[rows], products[rows])

        _spread(count, shares, 1, self.threads)
        lengths = self.crowd.lengths[documents]
        cosines = []
        for i, crowd in enumerate(around):
            part = (products >> np.uint64(i * _BITS)) & np.uint64((1 << _BITS) - 1)
            cosines.append((part / np.maximum(crowd.lengths[:, None] * lengths, np.float32(1))).astype(np.float32))
            cosines[-1][documents < 0] = 0
        return cosines


class _Table:
    """Crowds of a few queries spread out over all documents, to be looked up in.

    Args:
        crowds: of the documents.
        rows: queries at once.
        width: documents a query.
    """

    def __init__(self, crowds: Crowds, rows: int, width: int) -> None:
        self.crowds, members = crowds, crowds.crowd.members.shape[1]
        self.table = np.zeros((rows, crowds.size + 1), np.uint64)
        self.line = np.arange(rows)[:, None]
        self.members = np.empty((rows, width, members), np.int32)
        self.counts = np.empty((rows, width, members), np.uint8)
        self.places = np.empty((rows, width, members), np.int64)
        self.found = np.empty((rows, width, members), np.uint64)

    def products(self, around: list[Crowd], documents: NDArray[np.integer], out: NDArray[np.uint64]) -> None:
        """Products of all the crowds with those of the documents, in one number: one look-up serves them all."""
        n, line = len(documents), self.line[: len(documents)]
        for i, crowd in enumerate(around):
            self.table[line, crowd.members] += crowd.counts.astype(np.uint64) << np.uint64(i * _BITS)
        rows = np.where(documents < 0, 0, documents)
        crowd = self.crowds.crowd
        members = np.take(crowd.members, rows, axis=0, out=self.members[:n], mode="clip")
        places = np.add(members, line[:, :, None] * (self.crowds.size + 1), out=self.places[:n])
        found = np.take(self.table.ravel(), places, out=self.found[:n], mode="clip")
        counts = np.take(crowd.counts, rows, axis=0, out=self.counts[:n], mode="clip")
        np.einsum("ijk,ijk->ij", found, counts, out=out)
        for crowd in around:
            self.table[line, crowd.members] = 0


class Votes:
    """What other queries' positives say: queries that find the same documents have positives of one kind.

    Known positives are random members of what is relevant, where a query's own neighbours are its nearest members:
    pooled over `VOTERS` queries they show how far the relevant reach.

    Args:
        crowds: of the documents.
        nearest: int32 `[n, m]`, the nearest documents of every query of the dataset, -1 where there are fewer.
        positives: of every query.
    """

    def __init__(self, crowds: Crowds, nearest: NDArray[np.integer], positives: Ragged) -> None:
        self.crowds, self.positives = crowds, positives
        self.nearest = nearest[:, :SPREAD]
        rows, columns = np.nonzero((self.nearest >= 0) & (positives.lengths > 0)[:, None])
        # For every document the queries that found it and have a positive: those that can vote.
        self.finders = Ragged.from_pairs(self.nearest[rows, columns].astype(np.int64), rows, crowds.size)

    def of(self, queries: NDArray[np.integer]) -> Crowd:
        """The pooled crowds of the voters' positives, one for each of these rows of queries; empty where nobody votes."""
        return Crowd.joined(
            _spread(lambda rows: self._of(queries[rows]), len(queries), _ROWS // 4, self.crowds.threads)
        )

    def _of(self, queries: NDArray[np.integer]) -> Crowd:
        n = len(self.positives)
        found = self.nearest[queries]
        # Evenly spread ones of a long list.
        lengths = np.minimum(self.finders.lengths, _LISTED)[found] * (found >= 0)
        place = np.arange(min(_LISTED, int(lengths.max(initial=1))))
        stride = np.maximum(self.finders.lengths[found], _LISTED)[:, :, None] * place // _LISTED
        stride = np.where(self.finders.lengths[found][:, :, None] <= _LISTED, place, stride)
        inside = place < lengths[:, :, None]
        starts = self.finders.offsets[:-1][found][:, :, None]
        voters = np.full(inside.shape, n)
        voters[inside] = self.finders.values[(starts + stride)[inside]]
        voters = voters.reshape(len(queries), -1)
        voters[voters == queries[:, None]] = n  # nobody votes for himself
        voters, shared = most_counted(voters, np.ones(voters.shape, np.int64), n, VOTERS)
        return self._pool(voters, shared * shared)

    def _pool(self, voters: NDArray[np.int64], weights: NDArray[np.int64]) -> Crowd:
        n, size = len(self.positives), self.crowds.size
        real = voters < n
        lengths = np.where(real, self.positives.lengths[np.where(real, voters, 0)], 0)
        place = np.arange(min(_POSITIVES, int(lengths.max(initial=1))))
        inside = place < lengths[:, :, None]
        places = self.positives.offsets[:-1][np.where(real, voters, 0)][:, :, None] + place
        positives = np.full(inside.shape, -1)
        positives[inside] = self.positives.values[places[inside]]
        crowd = self.crowds.crowd
        members = np.where(inside[..., None], crowd.members[positives, :_VOTES], size).reshape(len(voters), -1)
        counts = (crowd.counts[positives, :_VOTES] * weights[:, :, None, None] * inside[..., None]).reshape(
            len(voters), -1
        )
        pooled, totals = most_counted(members, counts, size, _POOLED)
        scale = np.maximum(totals.max(1, initial=0, keepdims=True), 255)
        shares = totals * 255 // scale
        pooled[shares == 0] = size
        return Crowd(pooled.astype(np.int32), shares.astype(np.uint8))


def neighbour_graph(corpus: Corpus, k: int) -> tuple[NDArray[np.int32], Float]:
    """The nearest other documents of every document, nearest first, int32 `[N, k]`, -1 where there are fewer; and the
    score of the farthest of them, float32 `[N]`, -inf where there is none."""
    index, _ = make_index("auto", corpus.documents, corpus.metric, k=min(k + 1, corpus.size), threads=corpus.threads)
    graph = np.full((corpus.size, k), -1, np.int32)
    reach = np.full(corpus.size, -np.inf, np.float32)
    for start in range(0, corpus.size, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, corpus.size), dtype=np.int32)
        found = index.search(np.asarray(corpus.documents[rows], np.float32), min(k + 1, corpus.size))
        near = others(found.documents, rows)
        graph[rows, : near.shape[1]] = near
        if near.shape[1]:
            reach[rows] = found.scores[:, -1]
    return graph, reach


def gather(near: NDArray[np.int32], seeds: NDArray[np.integer]) -> Crowd:
    """The crowds of these seeds, `[n, s]` rows of the corpus, -1 where there is none: how often each document is near one."""
    size = len(near)
    found = near[seeds].astype(np.int64)
    found[seeds < 0] = size
    found[found < 0] = size
    found = found.reshape(len(seeds), -1)
    members, counts = most_counted(found, np.ones(found.shape, np.int64), size, WIDTH)
    return Crowd(members.astype(np.int32), counts.astype(np.uint8))


def most_counted(
    ids: NDArray[np.int64], weights: NDArray[np.int64], size: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ids of largest weight in each row.

    Args:
        ids: `[n, m]`, 0 to `size` - 1; `size` where there is none.
        weights: `[n, m]`, 0 or more; those of an id are added up.

    Returns:
        int64 `[n, width]` ids, largest weight first, equal ones by id, `size` where there are fewer; their weights.
    """
    # An id and its weight in one number: sorting numbers is several times as fast as sorting places.
    bits = np.uint64(int(weights.max(initial=0)).bit_length())
    packed = np.sort((ids.astype(np.uint64) << bits) | weights.astype(np.uint64), axis=1).ravel()
    ids = (packed >> bits).astype(np.int64)
    first = np.ones(len(ids), bool)
    first[1:] = ids[1:] != ids[:-1]
    first[:: weights.shape[1] or 1] = True
    starts = np.flatnonzero(first)
    mask = np.uint64((1 << int(bits)) - 1)
    totals = np.add.reduceat((packed & mask).astype(np.int64), starts) if len(starts) else np.empty(0, np.int64)
    ids = ids[starts]
    totals[ids >= size] = 0
    most = np.int64(totals.max(initial=0))
    key = np.full(weights.size, most * (size + 1) + size)
    key[starts] = np.where(totals > 0, (most - totals) * (size + 1) + ids, key[starts])
    table: NDArray[np.int64] = np.sort(key.reshape(weights.shape), axis=1)[:, :width]
    if table.shape[1] < width:
        table = np.pad(table, ((0, 0), (0, width - table.shape[1])), constant_values=most * (size + 1) + size)
    return table % (size + 1), most - table // (size + 1)


def _spread(work: Callable[[slice], T], rows: int, step: int, threads: int) -> list[T]:
    """What `work` gives for each span of `step` rows, in order; several threads, as numpy's array work lets them."""
    spans = [slice(start, min(start + step, rows)) for start in range(0, max(rows, 1), step)]
    if threads == 1 or len(spans) == 1:
        return [work(span) for span in spans]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, spans))
