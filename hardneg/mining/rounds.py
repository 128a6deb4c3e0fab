"""Filtering in rounds: queries that the filters leave with too few candidates are searched deeper, four times as deep each time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hardneg.mining.candidates import Candidates, Context
from hardneg.mining.filters.base import Chain
from hardneg.storage.arrays import Int, Mask


@dataclass(frozen=True)
class Round:
    """A block of queries after a round.

    Attributes:
        candidates: the candidates of n queries, up to K documents each.
        verdicts: uint8 `[n, K]`: 0 = kept, else the number of the filter that rejected it.
        searched: the depth of the search of this round.
        deeper: bool `[n]`: the queries that were searched in this round.
    """

    candidates: Candidates
    verdicts: NDArray[np.uint8]
    searched: int
    deeper: Mask


@dataclass(frozen=True)
class Rounds:
    """The rounds of filtering.

    Attributes:
        chain: the filters.
        context: what they can use besides the candidates.
        depth: number of candidates for each query.
        max_depth: how deep to search for a query with fewer kept candidates than `negatives`.
        negatives: number of negatives for each query.
    """

    chain: Chain
    context: Context
    depth: int
    max_depth: int
    negatives: int

    def first(self, candidates: Candidates, verdicts: NDArray[np.uint8] | None = None) -> Round:
        """Filter the candidates of the first search; with `verdicts`, they were filtered before."""
        if verdicts is None:
            verdicts = self.chain.verdicts(candidates, self.context)
        return Round(candidates, verdicts, self.depth, np.ones(len(verdicts), bool))

    def short(self, before: Round) -> Int:
        """The queries of the block that have to be searched deeper, as rows of it; none once the search is as deep as it may be."""
        if before.searched >= self.max_depth:
            return np.empty(0, np.int64)
        kept = ((before.verdicts == 0) & before.candidates.real).sum(1)
        short = np.flatnonzero((kept < self.negatives) & before.deeper)
        if len(short):
            short = short[self.chain.more_may_pass(before.candidates.rows(short).cut(before.searched))]
        return short

    def next(
        self, before: Round, short: Int, found: Candidates, depth: int, verdicts: NDArray[np.uint8] | None = None
    ) -> Round:
        """Filter what a deeper search found.

        Args:
            before: the round before.
            short: int64 `[m]`, the rows of the block that were searched deeper.
            found: the candidates of these queries.
            depth: the depth of that search, see `depths` below.
            verdicts: uint8, those of `found` if they were filtered before.
        """
        judged = self.chain.verdicts(found, self.context) if verdicts is None else verdicts
        candidates, verdicts = _merged(before.candidates, before.verdicts, short, found, judged)
        deeper = np.zeros(len(verdicts), bool)
        deeper[short] = True
        return Round(candidates, verdicts, depth, deeper)

    def widened(self, last: Round) -> int:
        """The number of queries that were searched deeper than the others."""
        return int((last.candidates.real.sum(1) > self.depth).sum())


def depths(depth: int, max_depth: int) -> Iterator[int]:
    """The depths of the searches, one a round.

    >>> list(depths(100, 1000))
    [100, 400, 1000]
    """
    yield depth
    while depth < max_depth:
        depth = min(4 * depth, max_depth)
        yield depth


def _merged(
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
