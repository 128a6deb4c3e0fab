"""The order of the pairs in hard batches, epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from hardneg.bank.hard_batches import TRAINING, HardBatches
from hardneg.bank.pair_graph import PairVectors
from hardneg.data.pairs import Pairs
from hardneg.errors import RunError
from hardneg.mining.mined import Mined
from hardneg.storage.arrays import Int, SharedLists


class Composition:
    """The order of the pairs of an epoch, from the candidates in use when it begins; it stays for the whole epoch.

    A thread composes the next epoch ahead of the training. With `graph=training` there is nothing to be ahead of: an epoch is
    composed when the one before it, whose vectors tell what is near, has ended.

    Args:
        hard: how batches are composed.
        pairs, known: the dataset, and the known positives of its queries.
        compose: the order of an epoch `[m]`, from candidates; None: random. It depends on these and the epoch alone.

    Attributes:
        vectors: of the pairs, with `graph=training`; else None.
    """

    def __init__(
        self, hard: HardBatches, pairs: Pairs, known: SharedLists, compose: Callable[[int, Mined | None], Int]
    ) -> None:
        self.hard, self._compose = hard, compose
        self.vectors = PairVectors(pairs, known) if hard.graph == TRAINING else None
        self._order: tuple[int, Int] | None = None  # the epoch, and its order
        # The order of the next epoch, which a thread composes, and the candidates that it is made from.
        self._ahead: tuple[int, Mined | None, Future[Int]] | None = None

    def of(self, epoch: int) -> Int | None:
        """int64 `[m]`: the order of an epoch, if it is known."""
        return None if self._order is None or self._order[0] != epoch else self._order[1]

    def set(self, epoch: int, order: Int) -> None:
        """Let an epoch have this order."""
        self._order = epoch, order

    def order(self, epoch: int, mined: Mined | None) -> Int:
        """int64 `[m]`: the order of an epoch, from these candidates unless it is known."""
        known = self.of(epoch)
        if known is not None:
            return known
        if self.vectors is not None:  # those of the epoch that has ended: this one has none yet
            mined = self.vectors.near(self.hard.near)
        ahead = self._ahead
        if ahead is not None and ahead[0] == epoch and ahead[1] is mined:
            found = ahead[2].result()
        else:
            found = self._compose(epoch, mined)
        self._order = epoch, found
        self._begin(epoch + 1, mined)
        return found

    def use(self, epoch: int, mined: Mined | None) -> None:
        """Other candidates are in use, in this epoch."""
        if self._order is not None:
            self._begin(epoch if self._order[0] < epoch else epoch + 1, mined)

    def _begin(self, epoch: int, mined: Mined | None) -> None:
        """Begin to compose an epoch from the candidates in use, which it will have unless others come before it begins."""
        if self.vectors is not None:
            return
        if self._ahead is not None:
            self._ahead[2].cancel()
        pool = ThreadPoolExecutor(1, "hardneg-batches")
        self._ahead = epoch, mined, pool.submit(self._compose, epoch, mined)
        pool.shutdown(wait=False)

    def state(self, epoch: int) -> dict[str, Any]:
        """What an epoch that has begun goes on with: the candidates that its order was made from may be gone by then."""
        order = self.of(epoch)
        found: dict[str, Any] = {} if order is None else {"composition": torch.from_numpy(order.astype(np.int32))}
        return found if self.vectors is None else {**found, "vectors": self.vectors.state_dict()}

    def load(self, state: dict[str, Any], epoch: int, count: int) -> None:
        """Continue from a state of an epoch of so many pairs; RunError if it is damaged."""
        order = state.get("composition")
        if order is not None and not np.array_equal(np.sort(order.numpy()), np.arange(count)):
            raise RunError("the state holds an order of its batches that does not go through all pairs: it is damaged")
        self._order = None if order is None else (epoch, order.numpy().astype(np.int64))
        self._ahead = None
        if self.vectors is not None:
            self.vectors.load_state_dict(state.get("vectors") or {})
