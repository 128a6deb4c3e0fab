"""What a growing dataset keeps of each item, in few bytes: numbers that go to a file, ids as bytes, and a table that finds rows."""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Callable, Iterable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hardneg.data.text_batches import counted
from hardneg.hashing import UInt
from hardneg.storage.arrays import Int
from hardneg.storage.arrow import strings
from hardneg.storage.files import naming_file

_HELD = 1 << 16  # numbers in memory before they go to the file

_COPIED = 1 << 12  # ids that are put in order at once

_PLACED = 1 << 12  # rows that get new slots at once


class Numbers:
    """A growing column of int64, in a file if there is one. Entries are set when they are appended.

    Args:
        path: the file, which holds nothing but the numbers; None: they stay in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self._held = path, array("q")
        self._written = 0
        self._file = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "w+b")  # noqa: SIM115 - closed by `finish`

    def __len__(self) -> int:
        return self._written + len(self._held)

    def append(self, value: int) -> None:
        self._held.append(value)
        if self._file is not None and len(self._held) >= _HELD:
            self._flush()

    def extend(self, values: Int) -> None:
        """Append all values, int64 `[n]`."""
        self._held.frombytes(np.ascontiguousarray(values, np.int64).tobytes())
        if self._file is not None and len(self._held) >= _HELD:
            self._flush()

    def _flush(self) -> None:
        assert self._file is not None
        assert self.path is not None
        with naming_file(self.path):
            self._held.tofile(self._file)
        self._written += len(self._held)
        self._held = array("q")

    def __getitem__(self, i: int) -> int:
        if i >= self._written:
            return self._held[i - self._written]
        assert self._file is not None
        self._file.seek(8 * i)
        value = array("q")
        value.fromfile(self._file, 1)
        self._file.seek(0, 2)
        return value[0]

    def finish(self) -> Int:
        """int64 `[n]`: all numbers, mapped from the file, whose name is removed."""
        if self._file is None or self.path is None:
            return np.frombuffer(self._held, np.int64) if self._held else np.empty(0, np.int64)
        self._flush()
        self._file.close()
        self._file = None
        found: Int = np.memmap(self.path, np.int64, "r") if self._written else np.empty(0, np.int64)
        self.path.unlink()
        return np.asarray(found)


class Digests:
    """A growing column of digests of 16 bytes, in a file if there is one: what is written is mapped, and costs no memory of its own.

    Args:
        path: the file; None: they stay in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._held, self._written = bytearray(), 0
        self._map: mmap.mmap | bytes = b""
        self.path = path
        self._file = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "w+b")  # noqa: SIM115 - closed by `close`

    def extend(self, digests: bytes) -> None:
        """Append the digests that these bytes hold, one after the other."""
        self._held += digests
        if self._file is not None and len(self._held) >= 8 * _HELD:
            assert self.path is not None
            with naming_file(self.path):
                self._file.write(self._held)
                self._file.flush()
            self._written += len(self._held) // 16
            self._held = bytearray()
            self._map = mmap.mmap(self._file.fileno(), 16 * self._written, access=mmap.ACCESS_READ)

    def __getitem__(self, row: int) -> bytes:
        at, held = 16 * row, 16 * (row - self._written)
        return bytes(self._held[held : held + 16]) if held >= 0 else self._map[at : at + 16]

    def take(self, rows: Int) -> UInt:
        """uint64 `[n, 2]`: the digests of these rows."""
        found = np.empty((len(rows), 2), np.uint64)
        old = rows < self._written
        found[old] = np.frombuffer(self._map, "<u8").reshape(-1, 2)[rows[old]]
        found[~old] = np.frombuffer(self._held, "<u8").reshape(-1, 2)[rows[~old] - self._written]
        return found

    def close(self) -> None:
        """Forget all of them, and remove the file."""
        self._held, self._map, self._written = bytearray(), b"", 0
        if self._file is not None and self.path is not None:
            self._file.close()
            self._file = None
            self.path.unlink()


class RowTable:
    """Finds the row of a key: a hash table with open addressing that stores rows only, in 5 to 10 bytes each.

    Keys are found one by one, or many at once, whose probes then go side by side.

    Args:
        is_key: tells whether a row has this key. One whose key changes is added again under the new one, and not found under the old.
        code_of: gives the code of a key, a hash of 64 bits.
        codes_of: gives the codes of many rows, uint64 `[n]`.
    """

    def __init__(
        self,
        is_key: Callable[[int, bytes], bool],
        code_of: Callable[[bytes], int],
        codes_of: Callable[[Int], UInt],
    ) -> None:
        self._is_key, self._code_of, self._codes_of = is_key, code_of, codes_of
        self._slots = array("I", bytes(4 * 64))  # a row + 1, or 0
        self._count = 0

    def find(self, key: bytes) -> int | None:
        """The row that was first added under this key; None if there is none."""
        slots, mask, code = self._slots, len(self._slots) - 1, self._code_of(key)
        i, step = code & mask, (code >> 32) | 1  # double hashing: the steps of two keys differ, so no clusters arise
        while row := slots[i]:
            if self._is_key(row - 1, key):
                return row - 1
            i = (i + step) & mask
        return None

    def add(self, key: bytes, row: int) -> None:
        self._make_room(1)
        slots, mask, code = self._slots, len(self._slots) - 1, self._code_of(key)
        i, step = code & mask, (code >> 32) | 1
        while slots[i]:
            i = (i + step) & mask
        slots[i] = row + 1
        self._count += 1

    def find_many(self, codes: UInt, same: Callable[[Int, Int], NDArray[np.bool_]]) -> Int:
        """int64 `[n]`: the row of each of n keys, -1 where there is none.

        Args:
            codes: uint64 `[n]`, those of the keys.
            same: tells, bool `[m]`, whether rows, int64 `[m]`, have the keys at these positions, int64 `[m]`.
        """
        slots, mask = np.frombuffer(self._slots, np.uint32), np.uint64(len(self._slots) - 1)
        at, step = codes & mask, codes >> np.uint64(32) | np.uint64(1)
        found = np.full(len(codes), -1, np.int64)
        left = np.arange(len(codes))
        while len(left):
            rows = slots[at[left]].astype(np.int64) - 1
            left, rows = left[rows >= 0], rows[rows >= 0]
            equal = same(rows, left)
            found[left[equal]] = rows[equal]
            left = left[~equal]
            at[left] = (at[left] + step[left]) & mask
        return found

    def add_many(self, codes: UInt, rows: Int) -> None:
        """Add rows, int64 `[n]`, under different keys with these codes, uint64 `[n]`. None of the keys is there yet."""
        self._make_room(len(codes))
        self._place(codes, rows + 1)
        self._count += len(codes)

    def _make_room(self, more: int) -> None:
        size = len(self._slots)
        while 5 * (self._count + more) > 4 * size:
            size *= 2
        if size == len(self._slots):
            return
        slots = np.frombuffer(self._slots, np.uint32)
        held = slots[slots > 0]
        del slots
        self._slots = array("I")  # the old slots are gone before the new ones come
        self._slots = array("I", [0]) * size
        for start in range(0, len(held), _PLACED):
            values = held[start : start + _PLACED].astype(np.int64)
            self._place(self._codes_of(values - 1), values)

    def _place(self, codes: UInt, values: Int) -> None:
        slots, mask = np.frombuffer(self._slots, np.uint32), np.uint64(len(self._slots) - 1)
        at, step = codes & mask, codes >> np.uint64(32) | np.uint64(1)
        left = np.arange(len(codes))
        while len(left):
            tried = left[slots[at[left]] == 0]
            slots[at[tried]] = values[tried]  # of several that want one slot, one gets it
            left = left[slots[at[left]] != values[left]]
            at[left] = (at[left] + step[left]) & mask


class Ids:
    """A growing column of distinct ids, which can be found by their text. Costs 14 to 19 bytes each, and those of the ids.

    While all of them are the letter and their row, as those are that a dataset makes itself, they cost nothing.

    Args:
        letter: what ids begin with that are followed by their row.
    """

    def __init__(self, letter: str = "") -> None:
        self.letter = letter
        self._counted: int | None = 0  # ids while all are counted; None as soon as one is not
        self._data = bytearray()  # each id after its length in bytes; one that was replaced stays there
        self._starts = array("q")
        self._table = RowTable(self._is_stored, _code_of, self._codes_of)

    def __len__(self) -> int:
        return len(self._starts) if self._counted is None else self._counted

    @property
    def counted(self) -> bool:
        """Whether all ids are the letter and their row."""
        return self._counted is not None

    def _is_stored(self, row: int, key: bytes) -> bool:
        return self._data.startswith(key, self._starts[row])

    def _stored(self, row: int) -> bytes:
        """The id as it is stored: no other one begins with it."""
        start = self._starts[row]
        length = self._data[start]
        if length < 255:
            return bytes(self._data[start : start + 1 + length])
        return bytes(self._data[start : start + 5 + int.from_bytes(self._data[start + 1 : start + 5], "little")])

    def _codes_of(self, rows: Int) -> UInt:
        return _codes_of(map(self._stored, rows.tolist()))

    def __getitem__(self, row: int) -> str:
        if self._counted is not None:
            return f"{self.letter}{range(self._counted)[row]}"
        stored = self._stored(row)
        return stored[1 if stored[0] < 255 else 5 :].decode("utf-8")

    def find(self, id: str) -> int | None:
        """The row of an id; None if there is none."""
        if self._counted is not None:
            return self._row_of(id)
        return self._table.find(_with_length(id.encode("utf-8", "surrogatepass")))

    def _row_of(self, id: str) -> int | None:
        """The row of an id that is counted; None for any other."""
        digits = id.removeprefix(self.letter)
        if len(digits) > 18 or not (digits.isascii() and digits.isdigit()) or f"{self.letter}{int(digits)}" != id:
            return None
        row = int(digits)
        return row if self._counted is not None and row < self._counted else None

    def find_many(self, ids: pa.Array) -> Int:
        """int64 `[n]`: the row of each id of large strings without nulls, -1 where there is none."""
        if self._counted is not None:
            rows: list[int | None] = [self._row_of(id) if self._counted else None for id in ids.to_pylist()]
            return np.array([-1 if row is None else row for row in rows], np.int64)
        wanted = list(map(_with_length, ids.cast(pa.large_binary()).to_pylist()))
        begins, starts = self._data.startswith, self._starts

        def same(rows: Int, positions: Int) -> NDArray[np.bool_]:
            pairs = zip(rows.tolist(), positions.tolist(), strict=True)
            return np.array([begins(wanted[i], starts[row]) for row, i in pairs], bool)

        return self._table.find_many(_codes_of(wanted), same)

    def append(self, id: str) -> None:
        """Add an id that is not there yet."""
        if self._counted is not None:
            if id == f"{self.letter}{self._counted}":
                self._counted += 1
                return
            self._spell()
        self._starts.append(0)
        self.replace(len(self._starts) - 1, id)

    def count_on(self, count: int) -> None:
        """Add so many ids that are the letter and their row. All ids before must be `counted`."""
        assert self._counted is not None
        self._counted += count

    def append_many(self, ids: pa.Array) -> None:
        """Add ids, large strings without nulls: all different, and none of them there yet."""
        self._spell()
        stored = list(map(_with_length, ids.cast(pa.large_binary()).to_pylist()))
        rows = np.arange(len(self._starts), len(self._starts) + len(stored))
        ends = len(self._data) + np.cumsum([0, *map(len, stored)])
        self._starts.frombytes(ends[:-1].tobytes())
        self._data += b"".join(stored)
        self._table.add_many(_codes_of(stored), rows)

    def _spell(self) -> None:
        """Store the ids that were only counted so far."""
        counted, self._counted = self._counted, None
        for start in range(0, counted or 0, _COPIED):
            self.append_many(self._spelled(start, min(start + _COPIED, counted or 0)))

    def _spelled(self, start: int, stop: int) -> pa.Array:
        return counted(self.letter, start, stop)

    def replace(self, row: int, id: str) -> None:
        """Give a row another id, one that is not there yet."""
        self._spell()
        stored = _with_length(id.encode("utf-8"))
        self._starts[row] = len(self._data)
        self._data += stored
        self._table.add(stored, row)

    def finish(self) -> pa.Array:
        """Arrow large strings `[n]`, so that they may have more than 2 GB in all. The table is gone after that."""
        if self._counted is not None:
            pieces = [self._spelled(at, min(at + _COPIED, len(self))) for at in range(0, len(self), _COPIED)]
            return pa.concat_arrays(pieces) if pieces else strings([])
        del self._table
        starts, data = np.frombuffer(self._starts, np.int64), np.frombuffer(self._data, np.uint8)
        offsets = np.zeros(len(starts) + 1, np.int64)
        out = bytearray()
        for begin in range(0, len(starts), _COPIED):
            first = starts[begin : begin + _COPIED]
            lengths = data[first].astype(np.int64)
            long = np.flatnonzero(lengths == 255)
            skipped = np.ones(len(first), np.int64)
            skipped[long] = 5
            if len(long):
                lengths[long] = data[first[long, None] + np.arange(1, 5)].copy().view("<u4").ravel()
            ends = np.cumsum(lengths)
            places = np.repeat(first + skipped - (ends - lengths), lengths) + np.arange(int(ends[-1]))
            out += data[places].tobytes()
            offsets[begin + 1 : begin + 1 + len(first)] = offsets[begin] + ends
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(out)]
        return pa.Array.from_buffers(pa.large_string(), len(starts), buffers)


def _with_length(encoded: bytes) -> bytes:
    length = len(encoded)
    return (bytes((length,)) if length < 255 else b"\xff" + length.to_bytes(4, "little")) + encoded


def _code_of(stored: bytes) -> int:
    """The code of an id in its table. It is the same in every process."""
    return int.from_bytes(blake2b(stored, digest_size=8).digest(), "little")


def _codes_of(stored: Iterable[bytes]) -> UInt:
    """uint64 `[n]`: the code of each id."""
    codes = b"".join([blake2b(each, digest_size=8).digest() for each in stored])
    return np.frombuffer(codes, "<u8").astype(np.uint64)
