"""Arrays read in pieces: ragged lists, several shards as one array, selected rows of a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]
Float = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Sharded:
    """Several `[n_i, d]` arrays read as one `[N, d]`: slices and integer rows, nothing else; never copied whole."""

    ndim = 2

    def __init__(self, parts: list[NDArray[np.floating]]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(len(part) for part in parts)])
        self.shape = (int(self.starts[-1]), parts[0].shape[1])
        self.dtype = parts[0].dtype
        self.size = self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> NDArray[np.floating]:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self._span(start, max(start, stop))
            rows = np.arange(start, stop, step)
        rows = np.asarray(rows)
        out = np.empty((len(rows), self.shape[1]), self.dtype)
        shard = np.searchsorted(self.starts, rows, "right") - 1
        for i in np.unique(shard):
            here = np.flatnonzero(shard == i)
            out[here] = self.parts[i][rows[here] - self.starts[i]]
        return out

    def _span(self, start: int, stop: int) -> NDArray[np.floating]:
        first, last = (int(np.searchsorted(self.starts, row, "right")) - 1 for row in (start, max(start, stop - 1)))
        pieces = [
            part[max(start - begin, 0) : max(stop - begin, 0)]
            for part, begin in zip(self.parts[first : last + 1], self.starts[first:], strict=False)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [self.parts[0][:0]])


class Rows:
    """Selected rows of an array, read on demand: what maps documents to the rows of an embedding file."""

    ndim = 2

    def __init__(self, array: Any, rows: NDArray[np.integer]) -> None:
        self.array, self.rows = array, rows
        self.shape = (len(rows), array.shape[1])
        self.dtype = array.dtype
        self.size = self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> NDArray[np.floating]:
        wanted: NDArray[np.floating] = self.array[self.rows[rows]]
        return wanted


@dataclass(frozen=True)
class Ragged:
    """Lists of different lengths in two arrays: row i is `values[offsets[i]:offsets[i + 1]]`."""

    offsets: Int  # [n + 1]
    values: Int  # [m]

    @classmethod
    def from_pairs(cls, rows: Int, values: Int, n: int) -> Ragged:
        """From (row, value) pairs in any order; each row's values come out sorted and distinct."""
        if len(rows):
            order = np.lexsort((values, rows))
            rows, values = rows[order], values[order]
            first = np.ones(len(rows), bool)
            first[1:] = (rows[1:] != rows[:-1]) | (values[1:] != values[:-1])
            rows, values = rows[first], values[first]
        offsets = np.zeros(n + 1, np.int64)
        np.cumsum(np.bincount(rows, minlength=n), out=offsets[1:])
        return cls(offsets, values)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int:
        return np.diff(self.offsets)

    def row_numbers(self) -> Int:
        """The row of each value, `[m]`."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, rows: NDArray[np.integer]) -> Ragged:
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Ragged(offsets, self.values[places])

    def padded(self, fill: int = -1) -> Int:
        """`[n, longest]`, filled up with `fill`."""
        lengths = self.lengths
        table = np.full((len(self), int(lengths.max(initial=0))), fill, np.int64)
        table[np.arange(table.shape[1]) < lengths[:, None]] = self.values
        return table


def members(values: NDArray[np.integer], sets: Ragged) -> Mask:
    """bool `[n, K]`: whether `values[i, j]` is one of row i of `sets`.

    Work is proportional to K times the number of set members, or K log of it for rows with many.
    """
    found = np.zeros(values.shape, bool)
    lengths = sets.lengths
    for j in range(min(8, int(lengths.max(initial=0)))):
        rows = np.flatnonzero(lengths > j)
        member = sets.values[sets.offsets[rows] + j][:, None]
        if len(rows) == len(values):  # the usual case, without copies
            found |= values == member
        else:
            found[rows] |= values[rows] == member
    many = np.flatnonzero(lengths > 8)
    if len(many):
        # One sorted array of (row, value) keys serves all long rows at once.
        part = sets.take(many)
        uniques, codes = np.unique(part.values, return_inverse=True)
        width = len(uniques)
        keys = np.sort(part.row_numbers() * width + codes.ravel())
        place = np.searchsorted(uniques, values[many]).clip(max=width - 1)
        wanted = np.arange(len(many))[:, None] * width + place
        hit = keys[np.searchsorted(keys, wanted).clip(max=len(keys) - 1)] == wanted
        found[many] |= hit & (uniques[place] == values[many])
    return found
