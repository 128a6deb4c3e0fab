"""Shared nearest neighbors: evidence of relevance that the score of a single pair cannot give.

Two texts with the same meaning may lie somewhat apart and still have the same neighbors. The *neighbor vector* of a document
counts, for every document of the corpus, how many of the document's nearest ones have it among their own nearest. This is shared
nearest neighbors (Jarvis and Patrick 1973) after a local query expansion, which made them strong in person re-identification
(Zhong et al. 2017, arXiv 1701.08398). The cosine of two neighbor vectors measures how far two texts share their neighborhood.

An example with 3 neighbors each. Document 0 is near 0, 1, 2; document 1 near 1, 0, 3; document 2 near 2, 0, 1. The seeds 0, 1, 2
have document 0 among their nearest three times, 1 three times, 2 twice and 3 once. The neighbor vector of document 0 is
{0: 3, 1: 3, 2: 2, 3: 1}.

All counts are integers, so no result depends on the order of a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hardneg.index.base import ScoredVectors
from hardneg.index.factory import make_index
from hardneg.index.ivf import IVFIndex
from hardneg.index.recall import others
from hardneg.mining.candidates import NEAREST_FOUND, Context
from hardneg.storage.arrays import Float, Ragged

NEAREST = 50  # nearest documents of each document, itself included

EXPANSION = NEAREST_FOUND  # nearest documents whose own neighbors are counted (local query expansion)

WIDTH = 128  # largest entries of a neighbor vector that are kept

VOTERS = 16  # other queries whose positives vote

_LISTED = 64  # queries examined for a document that was found for more of them

_VOTES = 64  # entries of a positive's neighbor vector that get a vote

_POOLED = 256  # members with most votes that are kept

_POSITIVES = 4  # positives of a voter that are used

_BLOCK = 16384  # documents whose neighbors are searched at once

_ROWS = 512  # neighbor vectors computed at once

_GATHERED = 1 << 18  # members looked up at once

_BITS = 21  # of one product of two neighbor vectors, at most 255 * EXPANSION * NEAREST = 127,500; three fit into 64

T = TypeVar("T")


@dataclass(frozen=True)
class NeighborVectors:
    """The neighbor vectors of n documents or queries, as sparse vectors over N documents.

    Attributes:
        members: int32 `[n, w]`, rows of the corpus, each once; N where there are fewer.
        counts: uint8 `[n, w]`, the count of each member; 0 where there are fewer.
    """

    members: NDArray[np.int32]
    counts: NDArray[np.uint8]

    def take(self, rows: NDArray[np.integer] | slice) -> NeighborVectors:
        return NeighborVectors(self.members[rows], self.counts[rows])

    @cached_property
    def lengths(self) -> Float:
        """float32 `[n]`: Euclidean norms of the counts."""
        squares = np.einsum("ij,ij->i", self.counts, self.counts, dtype=np.int64)
        lengths: Float = np.sqrt(squares).astype(np.float32)
        return lengths

    @classmethod
    def joined(cls, parts: Sequence[NeighborVectors]) -> NeighborVectors:
        return cls(np.concatenate([p.members for p in parts]), np.concatenate([p.counts for p in parts]))


@dataclass(frozen=True)
class NeighborGraph:
    """The nearest neighbors of every document of a corpus, and the neighbor vectors of all documents.

    Attributes:
        near: int32 `[N, k]`: each document, then its nearest others, nearest first; -1 where there are fewer.
        farthest_score: float32 `[N]`: the score of the farthest of those others; -inf where there is none.
        vectors: the neighbor vector of every document.
        threads: number of threads that count.
    """

    near: NDArray[np.int32]
    farthest_score: Float
    vectors: NeighborVectors
    threads: int = 1

    @classmethod
    def of(cls, corpus: ScoredVectors, nearest: int = NEAREST) -> NeighborGraph:
        """Search the `nearest` - 1 nearest others of every document, and count them."""
        near, farthest_score = neighbor_graph(corpus, nearest - 1)
        near = np.concatenate([np.arange(len(near), dtype=np.int32)[:, None], near], axis=1)
        parts = _in_threads(
            lambda rows: count_neighbors(near, near[rows, :EXPANSION]), len(near), _ROWS, corpus.threads
        )
        return cls(near, farthest_score, NeighborVectors.joined(parts), corpus.threads)

    @classmethod
    def kept(cls, context: Context) -> NeighborGraph:
        """The graph of a context's documents: the one that is kept in the run, or a new one, which is then kept there."""
        corpus, kept = context.index, context.kept
        if kept is None:
            return cls.of(corpus)
        size = corpus.size
        shapes = {
            "near": (np.int32, size),
            "farthest_score": (np.float32, size),
            "members": (np.int32, size),
            "counts": (np.uint8, size),
        }
        found = kept.arrays("neighbors", shapes)
        if found is not None and _sound(found, size):
            vectors = NeighborVectors(found["members"], found["counts"])
            return cls(found["near"], found["farthest_score"], vectors, corpus.threads)
        graph = cls.of(corpus)
        arrays: dict[str, NDArray[Any]] = {
            "near": graph.near,
            "farthest_score": graph.farthest_score,
            "members": graph.vectors.members,
            "counts": graph.vectors.counts,
        }
        kept.keep_arrays("neighbors", arrays)
        return graph

    @property
    def size(self) -> int:
        return len(self.near)

    def of_queries(self, found: NDArray[np.integer]) -> NeighborVectors:
        """The neighbor vectors of queries.

        Args:
            found: `[n, m]`, the documents found for each query, nearest first; -1 where there are fewer.
        """
        parts = _in_threads(
            lambda rows: count_neighbors(self.near, found[rows, :EXPANSION]), len(found), _ROWS, self.threads
        )
        return NeighborVectors.joined(parts)

    def similarities(self, anchors: Sequence[NeighborVectors], documents: NDArray[np.integer]) -> list[Float]:
        """Cosines of the neighbor vectors of each row with those of the documents of that row.

        Args:
            anchors: one to three sets of `[n]` neighbor vectors: of queries, of positives, of votes. They are looked up together.
            documents: `[n, K]` rows of the corpus, -1 where there is none.

        Returns:
            For each of `anchors`, float32 `[n, K]`, 0 to 1; 0 where there is no document.
        """
        step = max(1, _GATHERED // max(1, documents.shape[1] * self.vectors.members.shape[1]))
        products = np.empty(documents.shape, np.uint64)
        # Each thread has one share of the rows, and reuses one set of tables.
        shares = min(self.threads, -(-len(documents) // step)) or 1
        bounds = np.linspace(0, len(documents), shares + 1).astype(int)

        def count(share: slice) -> None:
            table = _Table(self, step, documents.shape[1])
            for i in range(bounds[share.start], bounds[share.stop], step):
                rows = slice(i, min(i + step, bounds[share.stop]))
                table.products([each.take(rows) for each in anchors], documents[rows], products[rows])

        _in_threads(count, shares, 1, self.threads)
        lengths = self.vectors.lengths[documents]
        cosines = []
        for i, anchor in enumerate(anchors):
            part = (products >> np.uint64(i * _BITS)) & np.uint64((1 << _BITS) - 1)
            cosines.append((part / np.maximum(anchor.lengths[:, None] * lengths, np.float32(1))).astype(np.float32))
            cosines[-1][documents < 0] = 0
        return cosines


class _Table:
    """Neighbor vectors of a few queries, expanded over all documents for lookups.

    Args:
        graph: the graph of the documents.
        rows: number of queries at once.
        width: number of documents per query.
    """

    def __init__(self, graph: NeighborGraph, rows: int, width: int) -> None:
        self.graph, members = graph, graph.vectors.members.shape[1]
        self.table = np.zeros((rows, graph.size + 1), np.uint64)
        self.line = np.arange(rows)[:, None]
        self.members = np.empty((rows, width, members), np.int32)
        self.counts = np.empty((rows, width, members), np.uint8)
        self.places = np.empty((rows, width, members), np.int64)
        self.found = np.empty((rows, width, members), np.uint64)

    def products(self, anchors: list[NeighborVectors], documents: NDArray[np.integer], out: NDArray[np.uint64]) -> None:
        """Products of all anchors with the documents' vectors, packed into one number, so that one lookup serves them all."""
        n, line = len(documents), self.line[: len(documents)]
        for i, anchor in enumerate(anchors):
            self.table[line, anchor.members] += anchor.counts.astype(np.uint64) << np.uint64(i * _BITS)
        rows = np.where(documents < 0, 0, documents)
        vectors = self.graph.vectors
        members = np.take(vectors.members, rows, axis=0, out=self.members[:n], mode="clip")
        places = np.add(members, line[:, :, None] * (self.graph.size + 1), out=self.places[:n])
        found = np.take(self.table.ravel(), places, out=self.found[:n], mode="clip")
        counts = np.take(vectors.counts, rows, axis=0, out=self.counts[:n], mode="clip")
        np.einsum("ijk,ijk->ij", found, counts, out=out)
        for anchor in anchors:
            self.table[line, anchor.members] = 0


class Votes:
    """Votes of similar queries: queries that retrieve the same documents have positives of the same kind.

    A query's own neighbors are the nearest of its relevant documents; known positives are random ones of them. Pooled over `VOTERS`
    queries, the positives show how far the relevant documents extend.

    Args:
        graph: the graph of the documents.
        nearest: int32 `[n, m]`, the nearest documents of every query of the dataset, -1 where there are fewer.
        positives: the positives of every query.
    """

    def __init__(self, graph: NeighborGraph, nearest: NDArray[np.integer], positives: Ragged) -> None:
        self.graph, self.positives = graph, positives
        self.nearest = nearest[:, :EXPANSION]
        rows, columns = np.nonzero((self.nearest >= 0) & (positives.lengths > 0)[:, None])
        # For every document, the queries that found it and have a positive: those that can vote.
        self.finders = Ragged.from_pairs(self.nearest[rows, columns].astype(np.int64), rows, graph.size)
        self._kept: tuple[NeighborVectors, NDArray[np.bool_]] | None = None

    def keep(self) -> None:
        """Keep what `of` returns (1,281 bytes a query) for those who ask for the same queries again."""
        if self._kept is None:
            n = len(self.positives)
            blank = NeighborVectors(np.empty((n, _POOLED), np.int32), np.empty((n, _POOLED), np.uint8))
            self._kept = blank, np.zeros(n, bool)

    def of(self, queries: NDArray[np.integer]) -> NeighborVectors:
        """The pooled neighbor vectors of the voters' positives, one for each of these queries; empty without voters."""
        if self._kept is None:
            return self._all(queries)
        vectors, made = self._kept
        new = queries[~made[queries]]
        if len(new):
            fresh = self._all(new)
            vectors.members[new], vectors.counts[new] = fresh.members, fresh.counts
            made[new] = True
        return vectors.take(queries)

    def _all(self, queries: NDArray[np.integer]) -> NeighborVectors:
        return NeighborVectors.joined(
            _in_threads(lambda rows: self._of(queries[rows]), len(queries), _ROWS // 4, self.graph.threads)
        )

    def _of(self, queries: NDArray[np.integer]) -> NeighborVectors:
        n = len(self.positives)
        found = self.nearest[queries]
        # From a long list, evenly spread ones.
        lengths = np.minimum(self.finders.lengths, _LISTED)[found] * (found >= 0)
        place = np.arange(min(_LISTED, int(lengths.max(initial=1))))
        stride = np.maximum(self.finders.lengths[found], _LISTED)[:, :, None] * place // _LISTED
        stride = np.where(self.finders.lengths[found][:, :, None] <= _LISTED, place, stride)
        inside = place < lengths[:, :, None]
        starts = self.finders.offsets[:-1][found][:, :, None]
        voters = np.full(inside.shape, n)
        voters[inside] = self.finders.values[(starts + stride)[inside]]
        voters = voters.reshape(len(queries), -1)
        voters[voters == queries[:, None]] = n  # a query does not vote for itself
        voters, shared = most_counted(voters, np.ones(voters.shape, np.int64), n, VOTERS)
        return self._pool(voters, shared * shared)

    def _pool(self, voters: NDArray[np.int64], weights: NDArray[np.int64]) -> NeighborVectors:
        n, size = len(self.positives), self.graph.size
        real = voters < n
        lengths = np.where(real, self.positives.lengths[np.where(real, voters, 0)], 0)
        place = np.arange(min(_POSITIVES, int(lengths.max(initial=1))))
        inside = place < lengths[:, :, None]
        places = self.positives.offsets[:-1][np.where(real, voters, 0)][:, :, None] + place
        positives = np.full(inside.shape, -1)
        positives[inside] = self.positives.values[places[inside]]
        vectors = self.graph.vectors
        members = np.where(inside[..., None], vectors.members[positives, :_VOTES], size).reshape(len(voters), -1)
        counts = (vectors.counts[positives, :_VOTES] * weights[:, :, None, None] * inside[..., None]).reshape(
            len(voters), -1
        )
        pooled, totals = most_counted(members, counts, size, _POOLED)
        scale = np.maximum(totals.max(1, initial=0, keepdims=True), 255)
        shares = totals * 255 // scale
        pooled[shares == 0] = size
        return NeighborVectors(pooled.astype(np.int32), shares.astype(np.uint8))


def _sound(found: Mapping[str, NDArray[Any]], size: int) -> bool:
    """Whether arrays from a file can be those of a graph of this size."""
    near, members = found["near"], found["members"]
    shaped = (
        near.ndim == members.ndim == 2 and found["farthest_score"].ndim == 1 and found["counts"].shape == members.shape
    )
    return shaped and bool(
        near.size
        and members.size
        and near.min() >= -1
        and near.max() < size
        and members.min() >= 0
        and members.max() <= size
    )


def neighbor_graph(corpus: ScoredVectors, k: int) -> tuple[NDArray[np.int32], Float]:
    """The nearest other documents of every document, and the score of the farthest of them.

    Returns:
        (int32 `[N, k]`, nearest first, -1 where there are fewer; float32 `[N]`, -inf where there is none).
    """
    index, _ = make_index("auto", corpus.documents, corpus.metric, k=min(k + 1, corpus.size), threads=corpus.threads)
    graph = np.full((corpus.size, k), -1, np.int32)
    farthest = np.full(corpus.size, -np.inf, np.float32)
    # List by list, so that the documents of a block probe the same few lists, and each list is read about once.
    order = index.order if isinstance(index, IVFIndex) else np.arange(corpus.size, dtype=np.int32)
    for start in range(0, corpus.size, _BLOCK):
        rows = np.sort(order[start : start + _BLOCK])
        found = index.search(np.asarray(corpus.documents[rows], np.float32), min(k + 1, corpus.size))
        near = others(found.documents, rows)
        graph[rows, : near.shape[1]] = near
        if near.shape[1]:
            farthest[rows] = found.scores[:, -1]
    return graph, farthest


def count_neighbors(near: NDArray[np.int32], seeds: NDArray[np.integer]) -> NeighborVectors:
    """Neighbor vectors of seeds `[n, s]`, rows of the corpus or -1: how often each document is near a seed."""
    size = len(near)
    found = near[seeds].astype(np.int64)
    found[seeds < 0] = size
    found[found < 0] = size
    found = found.reshape(len(seeds), -1)
    members, counts = most_counted(found, np.ones(found.shape, np.int64), size, WIDTH)
    return NeighborVectors(members.astype(np.int32), counts.astype(np.uint8))


def most_counted(
    ids: NDArray[np.int64], weights: NDArray[np.int64], size: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ids of largest weight in each row.

    Args:
        ids: `[n, m]`, 0 to `size` - 1; `size` where there is none.
        weights: `[n, m]`, 0 or more. The weights of equal ids are added.

    Returns:
        int64 `[n, width]` ids, largest weight first, equal weights by id, `size` where there are fewer; and their weights.
    """
    # An id and its weight in one number: sorting numbers is several times as fast as sorting positions.
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


def _in_threads(work: Callable[[slice], T], rows: int, step: int, threads: int) -> list[T]:
    """The results of `work` for each span of `step` rows, in order, computed by several threads."""
    spans = [slice(start, min(start + step, rows)) for start in range(0, max(rows, 1), step)]
    if threads == 1 or len(spans) == 1:
        return [work(span) for span in spans]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, spans))
