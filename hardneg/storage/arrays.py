"""Array types: several shards read as one array, selected rows of an array, and lists of different lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]
Float = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Sharded:
    """Several `[n_i, d]` arrays read as one `[N, d]` array, without copying them into one.

    The only index is a slice, an integer array of rows, or a mask of all rows.

    Args:
        parts: the arrays, such as `NpyFiles`, which opens them when they are needed.

    >>> both = Sharded([np.zeros((2, 3), np.float32), np.ones((1, 3), np.float32)])
    >>> both.shape, both[np.array([2, 0])].tolist()
    ((3, 3), [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    """

    ndim = 2

    def __init__(self, parts: Sequence[NDArray[np.floating]]) -> None:
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
        rows = np.flatnonzero(rows) if rows.dtype == bool else np.where(rows < 0, rows + len(self), rows)
        return gathered(rows, self.starts, self.parts.__getitem__, np.empty((len(rows), self.shape[1]), self.dtype))

    def _span(self, start: int, stop: int) -> NDArray[np.floating]:
        first, last = (int(np.searchsorted(self.starts, row, "right")) - 1 for row in (start, max(start, stop - 1)))
        pieces = [
            self.parts[i][max(start - begin, 0) : max(stop - begin, 0)]
            for i, begin in enumerate(self.starts[first : last + 1].tolist(), first)
            if i < len(self.parts)
        ]
        return np.ascontiguousarray(pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [self.parts[0][:0]]))

    def place_of(self, row: int) -> str:
        """Where a row is, for a message: its file and its row there; empty if the parts are no files."""
        paths = getattr(self.parts, "paths", None)
        if paths is None:
            return ""
        number = int(np.searchsorted(self.starts, row, "right")) - 1
        return f"row {row - int(self.starts[number]):,} of {paths[number]}"


def gathered(
    rows: NDArray[np.integer], starts: NDArray[np.integer], part: Callable[[int], Any], out: NDArray[Any]
) -> NDArray[Any]:
    """Rows of several arrays that follow each other.

    Args:
        rows: int `[m]`, rows of the whole.
        starts: the first row of each array, ascending.
        part: gives the array of a number.
        out: `[m, d]`, where they are written.

    Returns:
        `out`.
    """
    if not len(rows):
        return out
    number = np.searchsorted(starts, rows, "right") - 1
    # Sorted by array, so that each is looked at once, and only the rows that are in it.
    order = np.argsort(number, kind="stable")
    used, first = np.unique(number[order], return_index=True)
    for i, places in zip(used.tolist(), np.split(order, first[1:]), strict=True):
        out[places] = part(i)[rows[places] - starts[i]]
    return out


class Rows:
    """Selected rows of an array, read on demand, such as the rows of an embedding file that belong to the documents.

    Args:
        array: `[N, d]`, such as a memory map.
        rows: integers `[n]`: row i of the result is `array[rows[i]]`.
    """

    ndim = 2

    def __init__(self, array: Any, rows: NDArray[np.integer]) -> None:
        self.array, self.rows = array, rows
        self.shape = (len(rows), array.shape[1])
        self.dtype = array.dtype
        self.size = self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> NDArray[np.floating]:
        selected: NDArray[np.floating] = np.ascontiguousarray(self.array[self.rows[rows]])
        return selected


@dataclass(frozen=True)
class Ragged:
    """n lists of integers, of different lengths, in two arrays. List i is `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
        offsets: int64 `[n + 1]`, ascending from 0 to m.
        values: int64 `[m]`; or float32 numbers that belong to the entries of other lists.

    >>> lists = Ragged.from_pairs(np.array([2, 0, 2]), np.array([7, 5, 6]), 3)
    >>> lists.padded().tolist()
    [[5, -1], [-1, -1], [6, 7]]
    """

    offsets: Int
    values: NDArray[Any]

    @classmethod
    def from_pairs(cls, rows: Int, values: Int, n: int) -> Ragged:
        """n lists from (row, value) pairs in any order, each `[m]`. The values of each list are sorted and distinct."""
        if len(rows):
            order = np.lexsort((values, rows))
            rows, values = rows[order], values[order]
            first = np.ones(len(rows), bool)
            first[1:] = (rows[1:] != rows[:-1]) | (values[1:] != values[:-1])
            rows, values = rows[first], values[first]
        offsets = np.zeros(n + 1, np.int64)
        np.cumsum(np.bincount(rows, minlength=n), out=offsets[1:])
        return cls(offsets, values)

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Ragged:
        """The lists of all parts, one after the other."""
        lengths = np.concatenate([part.lengths for part in parts])
        return cls(np.concatenate([[0], np.cumsum(lengths)]), np.concatenate([part.values for part in parts]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int:
        """int64 `[n]`: the length of each list."""
        return np.diff(self.offsets)

    def row_numbers(self) -> Int:
        """int64 `[m]`: the list that each value belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, rows: NDArray[np.integer]) -> Ragged:
        """The lists at these rows, in this order."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return Ragged(offsets, self.values[self.places(rows)])

    def places(self, rows: NDArray[np.integer]) -> Int:
        """int64: where the values of the lists at these rows are in `values`, and in arrays that go with it."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        starts = np.cumsum(lengths) - lengths
        return np.repeat(self.offsets[rows] - starts, lengths) + np.arange(int(lengths.sum()))

    def column(self, j: int) -> tuple[Int, Int]:
        """(int64, the lists that have more than j values; int64, value j of each): a column of `padded`."""
        rows = np.flatnonzero(self.lengths > j)
        return rows, self.values[self.offsets[rows] + j]

    def padded(self, fill: int = -1) -> Int:
        """int64 `[n, longest]`: one list per row, padded at the end with `fill`."""
        lengths = self.lengths
        table = np.full((len(self), int(lengths.max(initial=0))), fill, np.int64)
        table[np.arange(table.shape[1]) < lengths[:, None]] = self.values
        return table


@dataclass(frozen=True)
class SharedLists:
    """n lists of integers, of which many may be the same one. A list is stored once, however many share it.

    Attributes:
        lists: the distinct lists.
        of: int64 `[n]`: list i is list `of[i]` of `lists`.
    """

    lists: Ragged
    of: Int

    def __len__(self) -> int:
        return len(self.of)

    @property
    def lengths(self) -> Int:
        """int64 `[n]`: the length of each list."""
        return self.lists.lengths[self.of]

    def rows(self, rows: NDArray[np.integer]) -> SharedLists:
        """The lists at these rows, in this order; those that are the same stay shared."""
        used, of = np.unique(self.of[rows], return_inverse=True)
        return SharedLists(self.lists.take(used), of.ravel())

    def column(self, j: int) -> tuple[Int, Int]:
        """As `Ragged.column`."""
        rows = np.flatnonzero(self.lengths > j)
        return rows, self.lists.values[self.lists.offsets[self.of[rows]] + j]

    def take(self, rows: NDArray[np.integer]) -> Ragged:
        """The lists at these rows, in this order, each for itself. That can be much more than `rows` gives."""
        return self.lists.take(self.of[rows])

    def mapped(self, values: Int) -> SharedLists:
        """The same lists with other values, `[m]` for those of `lists`; negative ones are left out."""
        real = values >= 0
        return SharedLists(Ragged.from_pairs(self.lists.row_numbers()[real], values[real], len(self.lists)), self.of)


def pair_keys(rows: NDArray[np.integer], values: NDArray[np.integer], size: int) -> Int:
    """int64: one number for each pair of a row and a value from 0 to `size` - 1. The order is that of rows, then of values.

    >>> pair_keys(np.array([0, 2]), np.array([4, 1]), 10).tolist()
    [4, 21]
    """
    return np.asarray(rows, np.int64) * size + np.asarray(values, np.int64)


def members(values: NDArray[np.integer], sets: Ragged | SharedLists) -> Mask:
    """bool `[n, K]`: whether `values[i, j]` is in list i of `sets`.

    Each row costs at most 8 K comparisons and, if its list has more than 8 values, K binary searches.

    >>> members(np.array([[1, 2, 3]]), Ragged(np.array([0, 2]), np.array([2, 9]))).tolist()
    [[False, True, False]]
    """
    of = sets.of if isinstance(sets, SharedLists) else np.arange(len(sets))
    lists = sets.lists if isinstance(sets, SharedLists) else sets
    is_member = np.zeros(values.shape, bool)
    lengths = lists.lengths[of]
    for j in range(min(8, int(lengths.max(initial=0)))):
        rows, member = sets.column(j)
        if len(rows) == len(values):  # the usual case, without copies
            is_member |= values == member[:, None]
        else:
            is_member[rows] |= values[rows] == member[:, None]
    long_rows = np.flatnonzero(lengths > 8)
    if len(long_rows):
        # One sorted array of (list, value) keys answers for all long lists at once.
        used, number = np.unique(of[long_rows], return_inverse=True)
        long_sets = lists.take(used)
        uniques, codes = np.unique(long_sets.values, return_inverse=True)
        width = len(uniques)
        keys = np.sort(long_sets.row_numbers() * width + codes.ravel())
        place = np.searchsorted(uniques, values[long_rows]).clip(max=width - 1)
        wanted = number.ravel()[:, None] * width + place
        hit = keys[np.searchsorted(keys, wanted).clip(max=len(keys) - 1)] == wanted
        is_member[long_rows] |= hit & (uniques[place] == values[long_rows])
    return is_member
