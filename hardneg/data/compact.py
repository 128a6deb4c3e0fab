"""What a growing dataset keeps of each item, in few bytes: numbers that go to a file, ids as bytes, and a table that finds rows."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from hardneg.storage.arrays import Int

_HELD = 1 << 16  # numbers in memory before they go to the file

_COPIED = 1 << 14  # ids that are put in order at once


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
        if self._file is not None and len(self._held) == _HELD:
            self._flush()

    def _flush(self) -> None:
        assert self._file is not None
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


class RowTable:
    """Finds the row of a key: a hash table with open addressing that stores rows only, in 5 to 11 bytes each.

    Args:
        key_of: gives the key of a row. A row whose key changes is added again under the new one, and not found under the old one.
        is_key: tells whether a row has this key.
    """

    def __init__(self, key_of: Callable[[int], bytes], is_key: Callable[[int, bytes], bool]) -> None:
        self._key_of, self._is_key = key_of, is_key
        self._slots = array("I", bytes(4 * 64))  # a row + 1, or 0
        self._count = 0

    def find(self, key: bytes) -> int | None:
        """The row that was first added under this key; None if there is none."""
        slots, mask, code = self._slots, len(self._slots) - 1, hash(key)
        i, step = code & mask, (code >> 32) | 1  # double hashing: the steps of two keys differ, so no clusters arise
        while row := slots[i]:
            if self._is_key(row - 1, key):
                return row - 1
            i = (i + step) & mask
        return None

    def add(self, key: bytes, row: int) -> None:
        if 4 * (self._count + 1) > 3 * len(self._slots):
            before, self._slots = self._slots, array("I", bytes(8 * len(self._slots)))
            for each in before:
                if each:
                    self._place(self._key_of(each - 1), each)
        self._place(key, row + 1)
        self._count += 1

    def _place(self, key: bytes, value: int) -> None:
        slots, mask, code = self._slots, len(self._slots) - 1, hash(key)
        i, step = code & mask, (code >> 32) | 1
        while slots[i]:
            i = (i + step) & mask
        slots[i] = value


class Ids:
    """A growing column of distinct ids, which can be found by their text. Costs 14 to 20 bytes each, and those of the ids."""

    def __init__(self) -> None:
        self._data = bytearray()  # each id after its length in bytes; one that was replaced stays there
        self._starts = array("q")
        self._table = RowTable(self._stored, lambda row, key: self._data.startswith(key, self._starts[row]))

    def __len__(self) -> int:
        return len(self._starts)

    def _stored(self, row: int) -> bytes:
        """The id as it is stored: no other one begins with it."""
        start = self._starts[row]
        length = self._data[start]
        if length < 255:
            return bytes(self._data[start : start + 1 + length])
        return bytes(self._data[start : start + 5 + int.from_bytes(self._data[start + 1 : start + 5], "little")])

    def __getitem__(self, row: int) -> str:
        stored = self._stored(row)
        return stored[1 if stored[0] < 255 else 5 :].decode("utf-8")

    def find(self, id: str) -> int | None:
        """The row of an id; None if there is none."""
        return self._table.find(_with_length(id.encode("utf-8", "surrogatepass")))

    def append(self, id: str) -> None:
        """Add an id that is not there yet."""
        self._starts.append(0)
        self.replace(len(self._starts) - 1, id)

    def replace(self, row: int, id: str) -> None:
        """Give a row another id, one that is not there yet."""
        stored = _with_length(id.encode("utf-8"))
        self._starts[row] = len(self._data)
        self._data += stored
        self._table.add(stored, row)

    def finish(self) -> pa.Array:
        """Arrow large strings `[n]`, so that they may have more than 2 GB in all. The table is gone after that."""
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
