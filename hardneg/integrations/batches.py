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

    def __len__(self) -> int:
        count = len(self.negatives.examples)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        negatives = self.negatives
        queries, documents = pair_keys(negatives.pairs, negatives.examples)
        order = np.random.default_rng([negatives.seed, negatives.epoch]).permutation(len(queries))
        batches = distinct_batches(queries[order], documents[order], self.batch_size, len(self), self.drop_last)
        for batch in itertools.islice(batches, negatives.skipped(), None):
            yield order[batch].tolist()


def pair_keys(pairs: Pairs, examples: NegativeExamples) -> tuple[Int, Int]:
    """(int64 `[m]`, int64 `[m]`): a key for the query and for the positive of each pair; equal texts have equal keys."""
    return (
        distinct_keys(pairs.query_keys[examples.queries], examples.queries),
        distinct_keys(pairs.document_keys[examples.positives], examples.positives),
    )
