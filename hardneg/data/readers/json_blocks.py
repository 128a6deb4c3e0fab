"""JSON lines in blocks: Arrow parses those that are plain, and leaves all others to `json_rows`.

A block is plain if Arrow and Python's `json` must agree on it: each line is one object, all objects have the same kinds of values.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.json as pj

from hardneg.data.readers.json_rows import Lines, holds_one_value, json_rows, numbered_rows
from hardneg.data.readers.rows import Block, Row, guarded, lines_in, opened

_BLOCK = 1 << 22  # bytes that are parsed at once
_MOST_CARRIED = 1 << 26  # bytes of a line that is still looked for in blocks
_LONG_NUMBER = re.compile(rb"[0-9]{1000}")  # Python refuses some of these, Arrow none
_DEEPEST = 16  # levels of columns inside of columns
_NESTED = 64  # levels of values that Arrow is given


def json_blocks(path: Path) -> Iterator[Block]:
    """The rows of a JSON file, as `json_file` gives them, in blocks."""
    with opened(path, once=True) as f:
        yield from _blocks(f, path)


def _blocks(stream: IO[bytes], path: Path) -> Iterator[Block]:
    name = str(path)
    data, before = stream.read(_BLOCK), 0
    if holds_one_value(data):
        rest = _Joined(data, stream)
        yield Block(lambda: guarded(path, json_rows(rest, name)))
        return
    while data:
        more = stream.read(_BLOCK)
        end = data.rfind(b"\n") + 1 if more else len(data)
        if end == 0 and len(data) > _MOST_CARRIED:
            yield _rest(path, _Joined(data, stream, more), before)
            return
        if end:
            whole = data[:end]
            yield _block(whole, name, before)
            before += lines_in(whole)
        data = data[end:] + more


def _rest(path: Path, lines: Lines, before: int) -> Block:
    return Block(lambda: guarded(path, numbered_rows(lines, str(path), before)))


def _block(data: bytes, name: str, before: int) -> Block:
    return Block(lambda: numbered_rows(io.BytesIO(data), name, before), lambda first: _table(data, first), held=True)


class _Joined:
    """Bytes that were read, and the stream that they are from, as one."""

    def __init__(self, data: bytes, stream: Lines, more: bytes = b"") -> None:
        self._held, self._stream = io.BytesIO(data + more), stream

    def readline(self, limit: int = -1) -> bytes:
        line = self._held.readline(limit)
        if line.endswith(b"\n") or len(line) == limit:
            return line
        return line + self._stream.readline(limit - len(line) if limit >= 0 else -1)


def _table(data: bytes, first: Row) -> pa.Table | None:
    """The lines as a table; None if they are not plain. `first` is a row of the source, which tells the texts."""
    found = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(found == 10)
    if not data.endswith(b"\n"):
        ends = np.append(ends, len(data))
    if not _lines_are_objects(found, ends) or _is_deep(data, found, ends):
        return None
    texts = pa.schema([(key, pa.large_string()) for key, value in first.items() if isinstance(value, str)])
    try:
        if not data.isascii():
            data.decode("utf-8")
        table = pj.read_json(
            pa.BufferReader(data),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pj.ParseOptions(explicit_schema=texts, newlines_in_values=False),
        )
    except (pa.ArrowException, ValueError, OverflowError):  # the row that is wrong, if there is one, will be named
        return None
    if table.num_rows != len(ends):
        return None
    kinds = [column.type for column in table.columns]
    if any(_has_float(kind, _DEEPEST) for kind in kinds) and _LONG_NUMBER.search(data):
        return None
    return table


def _lines_are_objects(found: np.ndarray, ends: np.ndarray) -> bool:
    """Whether each line begins with a brace and ends with one, so that no object goes on in another line."""
    starts = np.append(0, ends[:-1] + 1)
    if (ends - starts < 3).any():  # an empty line, or no object of one entry
        return False
    last = found[ends - 1]
    last = np.where(last == 13, found[ends - 2], last)
    return bool((found[starts] == 123).all() and (last == 125).all())


def _is_deep(data: bytes, found: np.ndarray, ends: np.ndarray) -> bool:
    """Whether values are nested so deeply that Arrow's parser, which calls itself for each level, might run out of stack."""
    opening = np.flatnonzero((found == 91) | (found == 123))
    if np.bincount(np.searchsorted(ends, opening)).max(initial=0) <= _NESTED:
        return False  # no line has as many, whether in texts or not
    plain = np.frombuffer(data.replace(b"\\\\", b"  ").replace(b'\\"', b"  "), np.uint8)
    step = np.zeros(256, np.int8)
    step[[91, 123]], step[[93, 125]] = 1, -1
    steps = step[plain]
    marks = np.flatnonzero(steps)  # few, and in them what stands in texts does not count
    outside = np.searchsorted(np.flatnonzero(plain == 34), marks) % 2 == 0
    return int(np.cumsum(steps[marks][outside]).max(initial=0)) > _NESTED


def _has_float(kind: pa.DataType, levels: int) -> bool:
    """Whether a column holds numbers with fractions, at any level; so is one that is nested too deeply to look."""
    if not pa.types.is_nested(kind):
        return bool(pa.types.is_floating(kind))
    return levels == 0 or any(_has_float(kind.field(i).type, levels - 1) for i in range(kind.num_fields))
