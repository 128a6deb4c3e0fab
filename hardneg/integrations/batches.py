"""Batches of pairs for data loaders: nothing stands twice in one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from torch.utils.data import Sampler

from hardneg.bank.batches import distinct_batches
from hardneg.data.pairs import Pairs
from hardneg.data.texts import distinct_keys
from hardneg.errors import UsageError
from hardneg.integrations.examples import NegativeExamples
from hardneg.storage.arrays import Int


class Training(Protocol):
    """What batches need to know of a training."""

    seed: int
    epoch: int
    pairs: Pairs
    examples: NegativeExamples

    def skipped(self) -> int:
        """Batches of this epoch to leave out, once."""
        ...


class PairBatches(Sampler[list[int]]):
    """Batches of places in the examples, in another order in every epoch."""

    def __init__(self, negatives: Training, batch_size: int, drop_last: bool) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size} must be 1 or more")
        self.negatives, self.batch_size, self.drop_last = negatives, batch_size, drop_last
        self._keys = pair_keys(negatives.pairs, negatives.examples)

    def __len__(self) -> int:
        count = len(self.negatives.examples)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        training = (
            self.negatives
        )  # asked when the first batch is: a trainer may name the epoch after it made the iterator
        batches = shuffled_batches(
            self._keys, [training.seed, training.epoch], self.batch_size, len(self), self.drop_last
        )
        yield from itertools.islice(batches, training.skipped(), None)


def shuffled_batches(
    keys: tuple[Int, Int], seed: list[int], size: int, batches: int, drop_last: bool
) -> Iterator[list[int]]:
    """Places of pairs, in batches in which no query and no document stands twice.

    Args:
        keys: as from `pair_keys`.
        seed: of the order.
        size, batches, drop_last: see `distinct_batches`.
    """
    queries, documents = keys
    order = np.random.default_rng(seed).permutation(len(queries))
    for batch in distinct_batches(queries[order], documents[order], size, batches, drop_last):
        yield order[batch].tolist()


def pair_keys(pairs: Pairs, examples: NegativeExamples) -> tuple[Int, Int]:
    """(int64 `[m]`, int64 `[m]`): a key for the query and for the positive of each pair; equal texts have equal keys."""
    return (
        distinct_keys(pairs.query_keys[examples.queries], examples.queries),
        distinct_keys(pairs.document_keys[examples.positives], examples.positives),
    )
