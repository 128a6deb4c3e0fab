"""Random documents in the places of negatives that were not found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hardneg.data.pairs import Pairs
from hardneg.errors import UsageError
from hardneg.storage.arrays import Int, Mask, SharedLists

_TRIES = (64, 4096)  # random documents looked at to find one that may be used, before all are

# Given queries, int64 `[n]`, and documents, int32 `[n, K]`: bool `[n, K]`, which documents may be negatives.
Allowed = Callable[[Int, Int], Mask]


@dataclass
class Filled:
    """What was put in the places of negatives that were not found.

    Attributes:
        negatives: all places of the last draw.
        random: places that got a random document.
        repeated: places that got a negative of the same query again, as no other document was left.
        against: of these, places of queries for which the filters reject every document: some of them are used all the same.
    """

    negatives: int = 0
    random: int = 0
    repeated: int = 0
    against: int = 0


class Filling:
    """Replaces -1 by random documents that are not known positives and not in the row already; in a mixture, of the query's source.

    Args:
        pairs: the dataset.
        known: the known positives of every query.
        allowed: says which documents may be used besides; None: all. Where none is left, the negatives of the row are repeated.
    """

    def __init__(self, pairs: Pairs, known: SharedLists, allowed: Allowed | None = None) -> None:
        self.pairs, self.known, self.allowed = pairs, known, allowed
        self.size = len(pairs.document_ids)

    def _span(self, row: int) -> tuple[int, int]:
        """The documents that may be negatives of a query: the first, and the one after the last."""
        mixed = self.pairs.mixed
        return (0, self.size) if mixed is None else mixed.span(int(mixed.queries[row]))

    def __call__(self, negatives: Int, rows: Int, seed: int, rejected: Callable[[int], Int]) -> Filled:
        """Fill `negatives`, int64 `[n, k]`, in place.

        Args:
            negatives: rows of the corpus, -1 where one is missing.
            rows: int64 `[n]`, the queries.
            seed: of the draw.
            rejected: the documents that filters rejected for the query in this place; asked only where there is `allowed`.
        """
        filled = Filled(negatives.size)
        for i in np.flatnonzero((negatives < 0).any(1)).tolist():
            missing = np.flatnonzero(negatives[i] < 0)
            pool = self._pool(int(rows[i]), negatives[i], len(missing), seed, i, rejected)
            fresh = missing[: len(pool)]
            negatives[i, fresh] = pool[: len(fresh)]
            again = missing[len(fresh) :]
            if len(again):
                own = negatives[i][negatives[i] >= 0]
                if not len(own):  # the filters reject every document: a training does not stop for one query
                    row = int(rows[i])
                    own = self._left(row, self._known(row), negatives[i], np.random.default_rng([seed, row]))
                    filled.against += len(again)
                negatives[i, again] = np.resize(own, len(again))
            filled.random += len(fresh)
            filled.repeated += len(again)
        return filled

    def _pool(self, row: int, own: Int, count: int, seed: int, place: int, rejected: Callable[[int], Int]) -> Int:
        """Documents for one query in random order: `count` or more, or all that may be used."""
        known, (start, stop) = self._known(row), self._span(row)
        rng = np.random.default_rng([seed, row])
        for tries in _TRIES if self.allowed is not None else _TRIES[:1]:
            pool = rng.integers(start, stop, tries + count)
            _, first = np.unique(pool, return_index=True)
            pool = pool[np.sort(first)]
            pool = self._allowed(row, pool[~np.isin(pool, known) & ~np.isin(pool, own)], place, rejected)
            if len(pool) >= count:
                return pool
        # A tiny corpus, or strict filters: all that is left.
        left = self._left(row, known, own, rng)
        if len(left) < count:
            possible = len(own) - count + len(left)
            raise UsageError(
                f"query {self.pairs.query_ids[row].as_py()!r}: of {stop - start:,} documents only {possible} can be negatives, "
                f"{len(own)} were asked for"
            )
        return self._allowed(row, left, place, rejected)

    def _known(self, row: int) -> Int:
        return self.known.take(np.array([row])).values

    def _left(self, row: int, known: Int, own: Int, rng: np.random.Generator) -> Int:
        """All documents that are no known positives and not in the row, in random order."""
        return rng.permutation(np.setdiff1d(np.arange(*self._span(row)), np.concatenate([known, own])))

    def _allowed(self, row: int, documents: Int, place: int, rejected: Callable[[int], Int]) -> Int:
        if self.allowed is None or not len(documents):
            return documents
        documents = documents[~np.isin(documents, rejected(place))]
        return documents[self.allowed(np.array([row]), documents[None])[0]] if len(documents) else documents
