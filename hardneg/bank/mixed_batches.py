"""Batches of a mixture: each of one source, and each source as often as its weight says.

In-batch negatives of another dataset are trivially easy, and teach an encoder to tell datasets apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hardneg.bank.batches import distinct_batches
from hardneg.data.mixed import Mixed
from hardneg.errors import UsageError
from hardneg.storage.arrays import Int


@dataclass(frozen=True)
class Plan:
    """The batches of an epoch, in their order.

    Attributes:
        queries, positives: for each batch int64 `[b]`, rows of the dataset.
        sources: the source of each batch.
    """

    queries: list[Int]
    positives: list[Int]
    sources: list[int]


class MixedBatches:
    """Which pairs an epoch of a mixture holds, and in which batches.

    A source of n pairs with the weight w has round(w * n) pairs in an epoch: whole copies, each in an order of its own, and a random
    part of one more. No pair stands twice in a batch. The last batch of each source may be short. A source with fewer pairs than a
    batch has short batches only: one for each copy.

    Args:
        mixed: the sources.
        trainable: int64, the queries that have a positive.
        size: pairs of a batch, over all ranks.
        ranks: their number.
        drop_last: leave out batches that are not full, but none of a source that does not fill one.

    Attributes:
        counts: pairs of each source in an epoch.

    Raises:
        UsageError: a source has no pair, or would have none in an epoch, or, on several ranks, does not fill a batch.
    """

    def __init__(self, mixed: Mixed, trainable: Int, size: int, ranks: int = 1, drop_last: bool = False) -> None:
        self.mixed, self.size, self.ranks, self.drop_last = mixed, size, ranks, drop_last
        of = mixed.queries[trainable]
        self.rows = [trainable[of == i] for i in range(len(mixed))]
        self.counts = [round(w * len(rows)) for w, rows in zip(mixed.weights, self.rows, strict=True)]
        for name, weight, rows, count in zip(mixed.names, mixed.weights, self.rows, self.counts, strict=True):
            if not len(rows):
                raise UsageError(
                    f"no query of the source {name!r} has a positive: there is nothing to train on, so leave it out"
                )
            if count < 1:
                raise UsageError(
                    f"the source {name!r} has {len(rows):,} pairs, of which the weight {weight:g} takes less than one an epoch: "
                    f"raise it, or leave the source out"
                )
            if ranks > 1 and min(count, len(rows)) < size:
                raise UsageError(
                    f"the source {name!r} has {min(count, len(rows)):,} pairs in an epoch, too few for batches of "
                    f"{size // ranks} on each of {ranks} ranks: take smaller batches, a larger weight, or leave it out"
                )

    def __len__(self) -> int:
        """Batches of an epoch, approximately: repeated queries and positives may add some."""
        return sum(
            len(self._copies(i)) if self._small(i) else
            count // self.size if self.drop_last else -(-count // self.size)
            for i, count in enumerate(self.counts)
        )  # fmt: skip

    @property
    def small(self) -> list[str]:
        """The sources that do not fill a batch."""
        return [name for i, name in enumerate(self.mixed.names) if self._small(i)]

    @property
    def pairs(self) -> int:
        """Pairs of an epoch."""
        return sum(self.counts)

    def _small(self, source: int) -> bool:
        return min(self.counts[source], len(self.rows[source])) < self.size

    def _copies(self, source: int) -> list[int]:
        """The number of pairs in each copy of a source."""
        whole, rest = divmod(self.counts[source], len(self.rows[source]))
        return [len(self.rows[source])] * whole + ([rest] if rest else [])

    def _spans(self, source: int) -> list[tuple[int, int]]:
        """Where the copies of a source stand in `order`."""
        ends = np.cumsum([sum(self.counts[:source]), *self._copies(source)]).tolist()
        return list(pairwise(ends))

    def order(self, rng: np.random.Generator) -> Int:
        """int64: the queries of an epoch: those of each source together, one copy after the other.

        What a copy leaves of a batch is filled up by the next one. That begins with other queries, so that the batch can be filled.
        """
        found: list[Int] = []
        for i, rows in enumerate(self.rows):
            left = rows[:0]
            for count in self._copies(i):
                copy = rng.permutation(rows)
                other = copy[~np.isin(copy, left)][: self.size - len(left)] if len(left) else left
                copy = np.concatenate([other, copy[~np.isin(copy, other)]])[:count]
                found.append(copy)
                together = np.concatenate([left, copy])
                left = together[len(together) // self.size * self.size :]
        return np.concatenate(found)

    def composed(self, compose: Callable[[int, int], Int]) -> Int:
        """int64: the places of `order` in another order, in which copies and sources stay apart.

        Args:
            compose: gives the order, int64 from 0, of the pairs from one place to another. It puts what does not fill a batch at the
                end, from where it goes behind the full batches of all copies.
        """
        found = []
        for i in range(len(self.rows)):
            copies = [start + compose(start, stop) for start, stop in self._spans(i)]
            full = [len(each) // self.size * self.size for each in copies]
            found += [each[:n] for each, n in zip(copies, full, strict=True)]
            found += [each[n:] for each, n in zip(copies, full, strict=True)]
        return np.concatenate(found)

    def plan(self, queries: Int, positives: Int, keys: tuple[Int, Int], rng: np.random.Generator) -> Plan:
        """The batches of an epoch.

        Args:
            queries, positives: int64 `[m]`, the pairs in the order of `order`, or of `composed`.
            keys: of their texts.
            rng: of the order of the batches.

        Raises:
            UsageError: a source has so many pairs with equal texts that it fills no batch of all ranks.
        """
        places: list[Int] = []
        sources: list[int] = []
        for i, name in enumerate(self.mixed.names):
            found = self._batches(i, queries, keys, self.drop_last)
            if not found and self.ranks == 1:  # equal texts fill no batch this time: short ones, as of a small source
                found = self._batches(i, queries, keys, False)
            if not found:
                raise UsageError(
                    f"the {self.counts[i]:,} pairs of the source {name!r} do not fill one batch of {self.size} in which no "
                    f"query and no positive is repeated: take a smaller batch_size"
                )
            places += found
            sources += [i] * len(found)
        shuffled = rng.permutation(len(places)).tolist()
        return Plan(
            [queries[places[j]] for j in shuffled],
            [positives[places[j]] for j in shuffled],
            [sources[j] for j in shuffled],
        )

    def _batches(self, source: int, queries: Int, keys: tuple[Int, Int], drop_last: bool) -> list[Int]:
        """The places of each batch of a source."""
        spans = self._spans(source)
        # Of a source that fits into a batch, pairs of two copies would be the same ones: each copy is a batch of its own.
        alone = len(self.rows[source]) <= self.size
        runs = spans if alone else [(spans[0][0], spans[-1][1])]
        drop = drop_last and not self._small(source)
        found: list[Int] = []
        for start, stop in runs:
            here = slice(start, stop)
            batches = -(-(stop - start) // self.size)
            again = None if alone or len(spans) == 1 else queries[here]
            cut = distinct_batches(keys[0][here], keys[1][here], self.size, batches, drop, again)
            found += [start + each for each in cut]
        return found
