"""Negatives that were drawn for all queries, in memory that worker processes share."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hardneg.storage.arrays import Int


class DrawnNegatives:
    """Two tables of negatives: the one in use, and the one before it, each used from some batch on.

    Worker processes that were started before a table was put here see it as well.

    Args:
        queries: number of queries, n.
        negatives: number of negatives of each, k.
    """

    def __init__(self, queries: int, negatives: int) -> None:
        self.shape = queries, negatives
        self._rows = torch.zeros(2, queries, negatives, dtype=torch.int32)
        self._starts = torch.full((2,), -1, dtype=torch.int64)
        self._rows.share_memory_()  # type: ignore[no-untyped-call]
        self._starts.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def empty(self) -> bool:
        """Whether nothing was drawn yet."""
        return int(self._starts.max()) < 0

    def put(self, start: int, rows: NDArray[np.integer]) -> None:
        """Use `rows`, int `[n, k]`, from batch `start` on, in place of all that was to be used from then on."""
        self._starts[self._starts >= start] = -1
        slot = int(self._starts.argmin())
        self._rows[slot] = torch.from_numpy(np.ascontiguousarray(rows, np.int32))
        self._starts[slot] = start

    def clear(self) -> None:
        """Forget both tables."""
        self._starts.fill_(-1)

    def at(self, batch: int, queries: Int) -> Int:
        """int64 `[b, k]`: the negatives of these queries in a batch; before the first table, those of the first."""
        tables = self._order()
        slot = next((slot for start, slot in reversed(tables) if start <= batch), tables[0][1])
        return np.asarray(self._rows[slot].numpy()[queries], np.int64)

    def newest(self, queries: Int) -> Int:
        """int64 `[b, k]`: the negatives of these queries that were drawn last."""
        return np.asarray(self._rows[self._order()[-1][1]].numpy()[queries], np.int64)

    def tables(self) -> list[tuple[int, NDArray[np.int32]]]:
        """(first batch, int32 `[n, k]`) of each table, the older one first."""
        return [(start, self._rows[slot].numpy().copy()) for start, slot in self._order()]

    def _order(self) -> list[tuple[int, int]]:
        starts = self._starts.tolist()
        return sorted((start, slot) for slot, start in enumerate(starts) if start >= 0)
