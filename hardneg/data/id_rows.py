"""Finds the rows of ids. The ids of a dataset are hashed and sorted once, not at every look-up."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hardneg.hashing import UInt, mix
from hardneg.storage.arrays import Int
from hardneg.storage.arrow import numbers, values_of

_CHUNK = 1 << 14  # ids that are hashed at once


class IdRows:
    """Finds the rows of N distinct ids, in 12 bytes each.

    Args:
        ids: Arrow strings `[N]`.

    >>> IdRows(pa.array(["a", "b"], pa.large_string())).of(pa.array(["b", "c"])).tolist()
    [1, -1]
    """

    def __init__(self, ids: pa.Array) -> None:
        self.ids = ids.cast(pa.large_string())
        hashes = hash_ids(self.ids)
        order = np.argsort(hashes, kind="stable")
        self._hashes: UInt = hashes[order]
        self._rows: NDArray[np.int32] = order.astype(np.int32)
        # With 64 bits, two ids of one hash are as good as never met; they are told apart by their text.
        same = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        self._doubtful = np.unique(self._hashes[same])

    def of(self, column: pa.Array | pa.ChunkedArray) -> Int:
        """int64 `[m]`: the row of each id, -1 for an id that is not there, or is missing."""
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if not pa.types.is_dictionary(column.type) and len(column) > 2 * len(self._rows):
            column = column.dictionary_encode()  # ids are there several times: each is looked up once
        if pa.types.is_dictionary(column.type):
            coded = self._of(column.dictionary)
            codes = column.indices.cast(pa.int64())
            codes = values_of(codes.fill_null(-1) if codes.null_count else codes)
            return np.where(codes >= 0, np.append(coded, -1)[codes], -1)
        return self._of(column)

    def _of(self, column: pa.Array) -> Int:
        """The same for an array of strings."""
        wanted = column.cast(pa.large_string())
        hashes = hash_ids(wanted)
        if not len(self._rows):
            return np.full(len(hashes), -1)
        place = np.searchsorted(self._hashes, hashes).clip(max=len(self._hashes) - 1)
        rows = self._rows[place].astype(np.int64)
        equal = pc.equal(self.ids.take(numbers(rows)), wanted)
        same = values_of(pc.fill_null(equal, False) if equal.null_count else equal)
        doubtful = np.flatnonzero(~same & np.isin(hashes, self._doubtful))
        if len(doubtful):
            found = pc.index_in(wanted.take(numbers(doubtful)), value_set=self.ids)
            rows[doubtful] = values_of(found.fill_null(-1).cast(pa.int64()))
            same[doubtful] = rows[doubtful] >= 0
        return np.where(same, rows, -1)


def hash_ids(ids: pa.Array) -> UInt:
    """uint64 `[n]`: a hash of each id, a polynomial in its bytes modulo 2^64; that of a missing one is that of an empty one."""
    parts = [_hash_chunk(ids.slice(at, _CHUNK)) for at in range(0, len(ids), _CHUNK)]
    return np.concatenate([np.empty(0, np.uint64), *parts])


def _hash_chunk(ids: pa.Array) -> UInt:
    # Where nothing is missing, nothing is filled: Arrow imports pandas for it, which takes longer than the rest.
    ids = (ids.fill_null("") if ids.null_count else ids).cast(pa.large_string())
    _, offsets_buffer, data_buffer = ids.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[ids.offset : ids.offset + len(ids) + 1]
    data = (
        np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]]
        if data_buffer is not None
        else np.empty(0, np.uint8)
    )
    lengths = np.diff(offsets)
    position = np.arange(len(data)) - np.repeat(offsets[:-1] - offsets[0], lengths)
    powers = np.cumprod(np.full(int(lengths.max(initial=0)) + 1, 0x100000001B3, np.uint64), dtype=np.uint64)
    terms = np.append((data.astype(np.uint64) + np.uint64(1)) * powers[position], np.uint64(0))
    sums = np.add.reduceat(terms, offsets[:-1] - offsets[0])
    return mix(np.where(lengths > 0, sums, np.uint64(0)) + lengths.astype(np.uint64))
