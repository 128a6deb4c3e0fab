"""CSV in blocks: Arrow parses those that every reader of CSV takes for the same, and leaves all others to `separated`."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.csv as pc

from hardneg.data.readers.rows import Block, guarded, opened
from hardneg.data.readers.separated import LIST_COLUMNS, checked_header, header_line, rows_of_fields

_BLOCK = 1 << 22  # bytes that are parsed at once
_MOST_CARRIED = 1 << 24  # bytes in which the end of a row is still looked for

_MARK = b"\xef\xbb\xbf"  # at the start of a file it is no text, and Arrow leaves it out

_QUOTE, _COMMA, _LINE, _RETURN = b'",\n\r'


def csv_blocks(path: Path) -> Iterator[Block]:
    """The rows of a CSV file with quotes, as `separated` gives them, in blocks."""
    with opened(path, once=True) as stream:
        yield from _blocks(stream, path)


def _blocks(stream: IO[bytes], path: Path) -> Iterator[Block]:
    data, before = stream.read(_BLOCK), 0
    columns: Sequence[str] | None = None
    header = header_line(data)
    if header is not None:
        columns, end = header
        columns = checked_header(list(columns), f"{path}, line 1")
        data, before = data[end:] or stream.read(_BLOCK), 1
    while data:
        more = stream.read(_BLOCK)
        end = _end_of_rows(data) if more else len(data)
        if columns is None or end < 0 or (end == 0 and len(data) > _MOST_CARRIED):
            # From here on, rows end where `csv` says.
            yield _rest(io.BufferedReader(_Joined(data + more, stream)), path, columns, before)
            return
        if end:
            yield _block(data[:end], path, columns, before, bool(more))
            before += _lines_in(data[:end])
        data = data[end:] + more


def _rest(stream: IO[bytes], path: Path, columns: Sequence[str] | None, before: int) -> Block:
    return Block(lambda: guarded(path, rows_of_fields(path, stream, columns, before)))


def _block(data: bytes, path: Path, columns: Sequence[str], before: int, strict: bool) -> Block:
    return Block(
        lambda: rows_of_fields(path, io.BytesIO(data), columns, before),
        lambda _: None if data.startswith(_MARK) else _table(data, columns, strict),
        held=True,
    )


class _Joined(io.RawIOBase):
    """Bytes that were read, and the stream that they are from, as one."""

    def __init__(self, data: bytes, stream: IO[bytes]) -> None:
        self._held, self._stream = io.BytesIO(data), stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        found = self._held.read(len(buffer)) or self._stream.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)


def _lines_in(data: bytes) -> int:
    """Number of lines as `csv` counts them: it takes a carriage return inside of quotes for the end of one, too."""
    return data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")


def _end_of_rows(data: bytes) -> int:
    """Where the last whole row of the bytes ends, 0 if there is none; -1 if readers of CSV could differ on them."""
    found = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(found == _QUOTE)
    breaks = np.flatnonzero(found == _LINE)
    outside = breaks[np.searchsorted(quotes, breaks) % 2 == 0]  # not inside of quotes
    end = int(outside[-1]) + 1 if len(outside) else 0
    return end if _is_strict(found[:end], quotes[: np.searchsorted(quotes, end)]) else -1


def _is_strict(found: np.ndarray, quotes: np.ndarray) -> bool:
    """Whether quotes enclose whole fields, those inside are doubled, and rows end with a line feed.

    Quotes open and close in turn. One opens at the start of a field, or right after one that closed: the two are a doubled one.
    """
    if len(quotes) % 2:
        return False
    opening, closing = quotes[::2], quotes[1::2]
    before = np.where(opening > 0, found[opening - 1], _LINE)
    after = found[np.minimum(closing + 1, len(found) - 1)]
    after = np.where(closing + 1 < len(found), after, _LINE)
    if not np.isin(before, (_COMMA, _LINE, _QUOTE)).all() or not np.isin(after, (_COMMA, _LINE, _RETURN, _QUOTE)).all():
        return False
    returns = np.flatnonzero(found == _RETURN)
    outside = returns[np.searchsorted(quotes, returns) % 2 == 0]
    return bool((outside + 1 < len(found)).all() and (found[outside + 1] == _LINE).all()) and not (found == 0).any()


def _table(data: bytes, columns: Sequence[str], strict: bool) -> pa.Table | None:
    """The rows as a table of texts; None if they may be wrong. `strict`: they were seen to be, as all but the last block are."""
    found = np.frombuffer(data, np.uint8)
    if not strict and not _is_strict(found, np.flatnonzero(found == _QUOTE)):
        return None
    try:
        table = pc.read_csv(
            pa.BufferReader(data),
            read_options=pc.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=list(columns)),
            parse_options=pc.ParseOptions(newlines_in_values=True),
            convert_options=pc.ConvertOptions(column_types=dict.fromkeys(columns, pa.large_string())),
        )
    except (pa.ArrowException, ValueError, OverflowError):  # the row that is wrong, if there is one, will be named
        return None
    lists = [column for name, column in zip(columns, table.columns, strict=True) if name.lower() in LIST_COLUMNS]
    if any(compute.any(compute.starts_with(column, "[")).as_py() for column in lists):
        return None
    return table
