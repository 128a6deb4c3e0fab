"""The miner searches, filters and samples one block of queries at a time, all as arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.hashing import UInt
from hardneg.index.base import Index, Neighbors
from hardneg.index.per_source import search_rows
from hardneg.index.vectors import VectorStore
from hardneg.memory import release
from hardneg.mining.candidates import NEAREST_FOUND, Candidates, Context, Listed
from hardneg.mining.filters.base import Chain, index_scores, lowest_scores
from hardneg.mining.samplers import Sampler, draw, query_keys
from hardneg.mining.sources.search import FusedSearch
from hardneg.storage.arrays import Float, Ragged

_BLOCK = 4096  # queries filtered at once
_MOST_DEEP = 1 << 25  # candidates of queries that are searched deeper at once
_AHEAD = 1 << 16  # queries searched at once by an index for which a few queries cost nearly as much as many


@dataclass(frozen=True)
class Judged:
    """Candidates of a block of queries, the verdict on each, and the negatives among them.

    Attributes:
        candidates: the candidates of n queries, up to K documents each.
        verdicts: uint8 `[n, K]`: 0 = kept, else the number of the filter that rejected it.
        chosen: int64 `[n, negatives]`, columns of the candidates that became negatives; -1 where a query has fewer.
        positive_scores: the scores of all positives of each query, float32.
        widened: number of queries that were searched deeper than the others.
        false_probability: float32 `[n, negatives]`, P(relevant) of the chosen candidates; None without a posterior.
    """

    candidates: Candidates
    verdicts: NDArray[np.uint8]
    chosen: NDArray[np.int64]
    positive_scores: Ragged
    widened: int = 0
    false_probability: Float | None = None

    @classmethod
    def joined(cls, blocks: Sequence[Judged]) -> Judged:
        """Concatenate blocks, padded to the widest."""
        parts = [block.candidates for block in blocks]
        probabilities = [block.false_probability for block in blocks if block.false_probability is not None]
        listed = [part.listed for part in parts if part.listed is not None]
        candidates = Candidates(
            np.concatenate([part.queries for part in parts]),
            _stacked([part.documents for part in parts], -1),
            _stacked([part.scores for part in parts], -np.inf),
            np.concatenate([part.positive_scores for part in parts]),
            # The search is done, so the vectors are no longer needed.
            np.empty((sum(len(part.queries) for part in parts), 0), np.float32),
            Listed.joined(listed) if listed else None,
        )
        return cls(
            candidates,
            _stacked([block.verdicts for block in blocks], 0),
            np.concatenate([block.chosen for block in blocks]),
            Ragged.joined([block.positive_scores for block in blocks]),
            sum(block.widened for block in blocks),
            None if not probabilities else np.concatenate(probabilities),
        )


@dataclass
class Block:
    """A block of queries whose candidates are judged, before the negatives are drawn. Query vectors are read again when needed.

    Attributes:
        candidates, verdicts, positive_scores: as in `Judged`.
        deeper: what was found for queries that were searched deeper, one entry a round: (their rows; candidates; verdicts).
    """

    candidates: Candidates
    verdicts: NDArray[np.uint8]
    positive_scores: Ragged
    deeper: list[tuple[NDArray[np.int64], Candidates, NDArray[np.uint8]]] = field(default_factory=list)

    def short(self, negatives: int, chain: Chain, searched: int) -> NDArray[np.int64]:
        """The rows of queries with too few kept candidates, for which a deeper search may find more."""
        rows, candidates, verdicts = (
            self.deeper[-1] if self.deeper else (np.arange(len(self.verdicts)), self.candidates, self.verdicts)
        )
        short = np.flatnonzero(((verdicts == 0) & candidates.real).sum(1) < negatives)
        if len(short):
            short = short[chain.more_may_pass(candidates.rows(short).cut(searched))]
        return rows[short]

    def merged(self) -> tuple[Candidates, NDArray[np.uint8]]:
        """(candidates, verdicts) of all queries, with what the deeper searches found."""
        candidates, verdicts = self.candidates, self.verdicts
        for rows, deeper, judged in self.deeper:
            candidates, verdicts = _merge(candidates, verdicts, rows, deeper, judged)
        return candidates, verdicts


def _stacked(tables: list[NDArray[Any]], fill: float) -> NDArray[Any]:
    """Concatenate tables of different widths, padded with `fill` to the widest."""
    if len(tables) == 1:
        return tables[0]
    width = max(table.shape[1] for table in tables)
    out = np.full((sum(map(len, tables)), width), fill, tables[0].dtype)
    start = 0
    for table in tables:
        out[start : start + len(table), : table.shape[1]] = table
        start += len(table)
    return out


def _nearest(index: Index, vectors: Any) -> NDArray[np.int32]:
    """Search the first few documents of every query, for filters that compare queries with each other.

    This is not a method of the miner: its context would then hold the miner, and the index would outlive the pass.
    """
    few = min(NEAREST_FOUND, index.size)
    blocks = range(0, len(vectors), _AHEAD)
    spans = [np.arange(at, min(at + _AHEAD, len(vectors))) for at in blocks]
    results = [search_rows(index, rows, np.asarray(vectors[rows], np.float32), few) for rows in spans]
    return np.concatenate([each.documents for each in results])


def choose_negatives(
    chain: Chain, sampler: Sampler, context: Context, candidates: Candidates, verdicts: NDArray[np.uint8],
    positive_scores: Ragged, *, negatives: int, seed: int, keys: UInt, widened: int = 0,
) -> Judged:  # fmt: skip
    """Draw negatives among the candidates that were kept.

    Args:
        chain: the filters; the last one that estimates P(relevant) does so for the negatives.
        sampler: the sampler that draws the negatives.
        context: what filters can use besides the candidates.
        candidates: the candidates of n queries.
        verdicts: uint8 `[n, K]`, see `Judged`.
        positive_scores: the scores of all positives, float32.
        negatives: number of negatives for each query.
        seed: seed of the sampler.
        keys: uint64, a hash of the id of each query of the dataset, see `query_keys`.
        widened: number of queries that were searched deeper.
    """
    kept = (verdicts == 0) & candidates.real
    chosen = draw(sampler, candidates, kept, negatives, seed, keys[candidates.queries])
    probability = chain.false_probability(candidates, context, chosen)
    return Judged(candidates, verdicts, chosen, positive_scores, widened, probability)


class Miner:
    """Finds negatives for blocks of queries.

    Args:
        pairs: the dataset.
        vectors: float `[n, d]`, the embeddings of its queries: an array, or an object that gives rows like one.
        index: the index of its documents.
        chain: the filters.
        sampler: the sampler that draws negatives among the kept candidates.
        depth: number of candidates for each query.
        max_depth: how deep to search for a query with fewer kept candidates than `negatives`.
        negatives: number of negatives for each query.
        seed: seed of the sampler.
        embed: function that returns (query vectors, document vectors) of a guide model.
        sources: where candidates come from; None: the search of the index alone.
    """

    def __init__(
        self,
        pairs: Pairs,
        vectors: Any,
        index: Index,
        chain: Chain,
        sampler: Sampler,
        *,
        depth: int,
        max_depth: int,
        negatives: int,
        seed: int = 0,
        embed: Callable[[str], tuple[Any, VectorStore]] | None = None,
        sources: FusedSearch | None = None,
    ) -> None:
        self.sources = sources
        self.pairs, self.vectors, self.index = pairs, vectors, index
        self.chain, self.sampler = chain, sampler
        self.depth, self.max_depth, self.negatives, self.seed = depth, max_depth, negatives, seed
        self.context = Context(pairs, lambda: index, pairs.known_positives(), embed, lambda: _nearest(index, vectors))
        self.keys = query_keys(pairs.query_ids)
        self._ahead = Neighbors(np.empty((0, depth), np.float32), np.empty((0, depth), np.int32))
        self._ahead_start = 0
        self._blocks: dict[tuple[int, int], Block] = {}  # judged ahead, by their first row and the one after their last

    def mine(self, start: int, stop: int, progress: Callable[[int], None] | None = None) -> Judged:
        """Mine the queries in rows `start` to `stop`; `progress` is used as in `ExactIndex.search`."""
        blocks = []
        for at in range(start, stop, _BLOCK):
            blocks.append(self._mine(at, min(at + _BLOCK, stop), progress))
            release()
        return Judged.joined(blocks)

    def _search(self, start: int, stop: int, progress: Callable[[int], None] | None) -> Neighbors:
        """The neighbors of these queries.

        An index that reads all documents at every search (see `Index.resident`) searches many queries ahead at once.
        """
        if self.index.resident:
            rows = np.arange(start, stop)
            return search_rows(self.index, rows, np.asarray(self.vectors[start:stop], np.float32), self.depth, progress)
        at = start - self._ahead_start
        if not 0 <= at <= at + stop - start <= len(self._ahead.scores):
            ahead = self.vectors[start : max(stop, start + _AHEAD)]
            rows = np.arange(start, start + len(ahead))
            self._ahead = search_rows(self.index, rows, np.asarray(ahead, np.float32), self.depth, progress)
            at, self._ahead_start = 0, start
        here = slice(at, at + stop - start)
        return Neighbors(self._ahead.scores[here], self._ahead.documents[here])

    def _mine(self, start: int, stop: int, progress: Callable[[int], None] | None) -> Judged:
        """Search, filter and sample one block of queries."""
        if (start, stop) not in self._blocks:
            self._blocks = self._judged(start, stop, progress)
        block = self._blocks.pop((start, stop))
        candidates, verdicts = block.merged()
        candidates = replace(candidates, vectors=self._vectors(candidates.queries))
        widened = int((candidates.real.sum(1) > self.depth).sum())
        return choose_negatives(
            self.chain, self.sampler, self.context, candidates, verdicts, block.positive_scores, widened=widened,
            negatives=self.negatives, seed=self.seed, keys=self.keys,
        )  # fmt: skip

    def _vectors(self, queries: NDArray[np.int64]) -> Float:
        return np.asarray(self.vectors[queries], np.float32)

    def _judged(self, start: int, stop: int, progress: Callable[[int], None] | None) -> dict[tuple[int, int], Block]:
        """Search and filter a block of queries, and with it those that follow, so that they are searched deeper all at once.

        Filters that take long get one block only: what was judged and is not written yet is lost if the process is killed.
        """
        step, ahead = stop - start, 0 if self.index.resident or self.chain.slow else _AHEAD
        until = max(stop, min(start + ahead, len(self.pairs)))
        blocks = {}
        for at in range(start, until, step):
            end = min(at + step, until)
            blocks[at, end] = self._judge(at, end, progress)
        self._widen(list(blocks.values()))
        return blocks

    def _judge(self, start: int, stop: int, progress: Callable[[int], None] | None) -> Block:
        """Search and filter one block of queries."""
        queries = np.arange(start, stop)
        vectors = self._vectors(queries)
        positive_scores = index_scores(self.index, vectors, self.pairs.positives.take(queries))
        empty = np.empty((len(queries), 0), np.float32)
        candidates = Candidates(queries, empty.astype(np.int32), empty, lowest_scores(positive_scores), vectors)
        if self.sources is None:
            found = self._search(start, stop, progress)
            candidates = replace(candidates, documents=found.documents, scores=found.scores)
        else:
            candidates = self._listed(candidates, self.depth)
            if progress is not None:
                progress(len(queries) * self.index.size)
        verdicts = self.chain.verdicts(candidates, self.context)
        return Block(replace(candidates, vectors=empty), verdicts, positive_scores)

    def _listed(self, candidates: Candidates, k: int) -> Candidates:
        """The candidates of these queries that the sources list, k of each."""
        assert self.sources is not None
        found, listed = self.sources.search(candidates.queries, candidates.vectors, k, self.index)
        return replace(candidates, documents=found.documents, scores=found.scores, listed=listed)

    def _widen(self, blocks: list[Block]) -> None:
        """Search deeper for the queries that have too few kept candidates, four times as deep in each round."""
        searched = self.depth
        while searched < self.max_depth and blocks:
            short = [block.short(self.negatives, self.chain, searched) for block in blocks]
            blocks = [block for block, rows in zip(blocks, short, strict=True) if len(rows)]
            short = [rows for rows in short if len(rows)]
            searched = min(4 * searched, self.max_depth)
            # As many at once as make an answer of bounded size: each search of an index may read all documents.
            most = max(_BLOCK, _MOST_DEEP // searched)
            while short:
                count = max(1, int(np.searchsorted(np.cumsum([len(rows) for rows in short]), most, "right")))
                self._search_deeper(blocks[-len(short) :][:count], short[:count], searched)
                short = short[count:]

    def _search_deeper(self, blocks: list[Block], short: list[NDArray[np.int64]], k: int) -> None:
        """Find and judge k candidates for these rows of the blocks."""
        parts = [block.candidates.rows(rows) for block, rows in zip(blocks, short, strict=True)]
        queries = np.concatenate([part.queries for part in parts])
        vectors = self._vectors(queries)
        found = None if self.sources is not None else search_rows(self.index, queries, vectors, k)
        stop = 0
        for block, rows, part in zip(blocks, short, parts, strict=True):
            here = slice(stop, stop := stop + len(rows))
            deeper = replace(part, vectors=vectors[here])
            if found is None:
                deeper = self._listed(deeper, k)
            else:
                deeper = replace(deeper, documents=found.documents[here], scores=found.scores[here])
            verdicts = self.chain.verdicts(deeper, self.context)
            block.deeper.append((rows, replace(deeper, vectors=np.empty((len(rows), 0), np.float32)), verdicts))


def _merge(
    candidates: Candidates,
    verdicts: NDArray[np.uint8],
    rows: NDArray[np.int64],
    deeper: Candidates,
    judged: NDArray[np.uint8],
) -> tuple[Candidates, NDArray[np.uint8]]:
    """Replace these rows by the deeper candidates, and pad the other rows to their width."""
    width = max(deeper.documents.shape[1], candidates.documents.shape[1])  # sources may have no more to list
    extra = ((0, 0), (0, width - candidates.documents.shape[1]))
    documents = np.pad(candidates.documents, extra, constant_values=-1)
    scores = np.pad(candidates.scores, extra, constant_values=-np.inf)
    merged = np.pad(verdicts, extra)
    more = ((0, 0), (0, width - deeper.documents.shape[1]))
    documents[rows] = np.pad(deeper.documents, more, constant_values=-1)
    scores[rows] = np.pad(deeper.scores, more, constant_values=-np.inf)
    merged[rows] = np.pad(judged, more)
    listed = candidates.listed
    if listed is not None and deeper.listed is not None:
        listed, found = listed.wide(width), deeper.listed.wide(width)
        listed.ranks[:, rows], listed.scores[:, rows], listed.fused[rows] = found.ranks, found.scores, found.fused
    return replace(candidates, documents=documents, scores=scores, listed=listed), merged
