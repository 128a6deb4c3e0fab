"""Whole columns of texts at a time: their bytes, their digests, and the keys of their folded forms.

Every value is that of `texts.text_key` or of `hashlib.blake2b` for the text alone; only the way there is shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hardneg.data.texts import join_title, text_key
from hardneg.hashing import UInt
from hardneg.storage.arrays import Int
from hardneg.storage.arrow import numbers, strings

_TEXT = pa.large_string()


def as_texts(column: pa.Array | pa.ChunkedArray) -> pa.Array | None:
    """The column as large strings without nulls `[n]`; None if it holds anything else."""
    if column.null_count:
        return None
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return None
    if column.type != _TEXT:
        column = column.cast(_TEXT)
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return None if column.null_count else column


def spans(column: pa.Array) -> tuple[Int, NDArray[np.uint8]]:
    """(int64 `[n + 1]`, bytes): where each text starts and ends in the bytes of large strings without nulls."""
    _, places, data = column.buffers()
    if len(column) == 0 or data is None:
        return np.zeros(len(column) + 1, np.int64), np.empty(0, np.uint8)
    offsets = np.frombuffer(places, np.int64, len(column) + 1, 8 * column.offset)
    first, last = int(offsets[0]), int(offsets[-1])
    return offsets - first if first else offsets, np.frombuffer(data, np.uint8, last - first, first)


def _hashed(offsets: Int, data: bytes, size: int) -> bytes:
    """The BLAKE2b digests of `size` bytes of all texts, one after the other."""
    return b"".join([blake2b(data[i:j], digest_size=size).digest() for i, j in pairwise(offsets.tolist())])


def digests(column: pa.Array, size: int = 16) -> UInt:
    """uint64 `[n, size / 8]`: the BLAKE2b digest of each text."""
    offsets, data = spans(column)
    return np.frombuffer(_hashed(offsets, data.tobytes(), size), "<u8").reshape(len(column), size // 8)


def text_keys(column: pa.Array) -> Int:
    """int64 `[n]`: `texts.text_key` of each text.

    >>> from hardneg.data.texts import text_key
    >>> text_keys(strings(["Hello  World", "é"])).tolist() == [text_key("hello world"), text_key("É")]
    True
    """
    offsets, data = spans(column)
    hashed = np.frombuffer(_hashed(offsets, data.tobytes().lower(), 8), "<u8")
    keys = (hashed >> np.uint64(1) | np.uint64(1)).astype(np.int64)
    keys[offsets[1:] == offsets[:-1]] = 0
    others = _not_plain(offsets, data).tolist()
    keys[others] = [text_key(column[i].as_py()) for i in others]
    return keys


def _not_plain(offsets: Int, data: NDArray[np.uint8]) -> Int:
    """Sorted positions of the texts whose folded form is not just their lower case.

    Plain texts are printable ASCII with single spaces inside: nothing to normalize, to leave out or to join.
    """
    if not len(data):
        return np.empty(0, np.int64)
    odd = (data - np.uint8(32)) > np.uint8(94)  # wraps around below the space: controls, DEL, and what is not ASCII
    space = data == 32
    odd[1:] |= space[1:] & space[:-1]
    filled = offsets[1:] > offsets[:-1]
    first, last = offsets[:-1][filled], offsets[1:][filled] - 1
    odd[first] |= space[first]
    odd[last] |= space[last]
    found = np.searchsorted(offsets, np.flatnonzero(odd), "right") - 1
    distinct: Int = np.unique(found)
    return distinct


def blank(column: pa.Array) -> NDArray[np.bool_]:
    """bool `[n]`: whether a text is empty, or all white space."""
    offsets, data = spans(column)
    empty: NDArray[np.bool_] = offsets[1:] == offsets[:-1]
    first = np.zeros(len(column), np.uint8)
    first[~empty] = data[offsets[:-1][~empty]]
    # Only what starts with white space can be nothing else; beyond ASCII, Python tells.
    for i in np.flatnonzero(~empty & ((first <= 32) | (first >= 128))).tolist():
        empty[i] = not column[i].as_py().strip()
    return empty


def joined(titles: pa.Array | None, texts: pa.Array) -> pa.Array:
    """The texts as encoders get them, `[n]`: the title, a space, the text."""
    if titles is None or not len(spans(titles)[1]):
        return texts
    return strings([join_title(*each) for each in zip(titles.to_pylist(), texts.to_pylist(), strict=True)])


def after_lengths(column: pa.Array) -> pa.Buffer:
    """All texts, each after its length in bytes as 8 bytes, little-endian."""
    offsets, _ = spans(column)
    return prefixed(column, np.diff(offsets).astype("<i8"))[1]


def prefixed(column: pa.Array, prefixes: NDArray[np.generic]) -> tuple[Int, pa.Buffer]:
    """(int64 `[n + 1]`, bytes): where each text starts and ends when the bytes of a number `[n]` are put before it."""
    n, width = len(column), prefixes.itemsize
    starts = pa.py_buffer(np.arange(n + 1, dtype=np.int64) * width)
    heads = pa.Array.from_buffers(pa.large_binary(), n, [None, starts, pa.py_buffer(np.ascontiguousarray(prefixes))])
    nothing = strings([""]).cast(pa.large_binary())[0]  # a scalar that does not import pandas
    both = pc.binary_join_element_wise(heads, column.cast(pa.large_binary()), nothing)
    offsets = np.frombuffer(both.buffers()[1], np.int64, n + 1)
    return offsets, both.buffers()[2] if n else pa.py_buffer(b"")


def distinct(column: pa.Array) -> tuple[Int, Int]:
    """(int64 `[n]`, int64 `[m]`): the number of each value among the distinct ones, and where each of these comes first."""
    codes = column.dictionary_encode().indices
    if not len(codes):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    numbered = np.frombuffer(codes.buffers()[1], np.int32, len(codes), 4 * codes.offset).astype(np.int64)
    firsts = np.empty(int(numbered.max()) + 1, np.int64)
    firsts[numbered[::-1]] = np.arange(len(numbered))[::-1]  # the last one that is set stays: the first position
    return numbered, firsts


def distinct_digests(found: UInt) -> tuple[Int, Int]:
    """`distinct` of digests, uint64 `[n, 2]`."""
    return distinct(pa.Array.from_buffers(pa.binary(16), len(found), [None, pa.py_buffer(found)]))


def taken(column: pa.Array, rows: Int) -> pa.Array:
    """The values at these positions; the column itself, if these are all of them in order."""
    if len(rows) == len(column) and (rows == np.arange(len(column))).all():
        return column
    return column.take(numbers(rows))


def pieces(column: pa.Array, start: int, stop: int, size: int) -> list[pa.Array]:
    """The large strings from `start` to `stop - 1` in pieces of `size`, whose buffers hold nothing else.

    Written to a file, equal texts are then equal bytes, whatever they were cut from.
    """
    offsets, data = spans(column)
    found = []
    for at in range(start, stop, size):
        places = offsets[at : at + size + 1]
        buffers = [None, pa.py_buffer(places - places[0]), pa.py_buffer(data[places[0] : places[-1]])]
        found.append(pa.Array.from_buffers(_TEXT, size, buffers))
    return found


def counted(letter: str, start: int, stop: int) -> pa.Array:
    """Large strings `[stop - start]`: the letter and a number, from `start` on."""
    head, nothing = strings([letter, ""])  # scalars that do not import pandas
    return pc.binary_join_element_wise(head, numbers(np.arange(start, stop)).cast(_TEXT), nothing)


def empty_texts(count: int) -> pa.Array:
    """Large strings `[n]`, all of them empty."""
    return pa.Array.from_buffers(_TEXT, count, [None, pa.py_buffer(np.zeros(count + 1, np.int64)), pa.py_buffer(b"")])


def interleaved(columns: Sequence[pa.Array]) -> pa.Array:
    """Columns of n large strings each as one: the first values of all, the second ones of all, and so on."""
    if len(columns) == 1:
        return columns[0]
    n = len(columns[0])
    order = (np.arange(n)[:, None] + np.arange(len(columns)) * n).ravel()
    return pa.concat_arrays(columns).take(numbers(order))
