"""Rows of JSON files: one object a line, a list of objects, or an object that holds a list for every column."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from hardneg.data.readers.pair_rows import QUERY_COLUMNS
from hardneg.data.readers.rows import Located, Row, opened
from hardneg.errors import DataError

_LONGEST_LINE = 1 << 30  # bytes
_LARGEST_DOCUMENT = 1 << 31  # bytes of a file that is one JSON value, and is read at once

# Entries under which files keep their rows, beside a version for example.
_HOLDERS = ("data", "rows", "examples", "instances", "queries")

_QUERIES = {name.lower() for name in (*QUERY_COLUMNS, "queries")}


class Lines(Protocol):
    """What lines are read from, such as a file."""

    def readline(self, limit: int = ..., /) -> bytes: ...


def json_file(path: Path) -> Located:
    """The rows of a JSON file. Its first line tells whether each line is an object of its own."""
    with opened(path, once=True) as f:
        yield from json_rows(f, str(path))


def json_rows(stream: Lines, name: str) -> Located:
    """The rows of a stream; `name` stands for it in messages.

    >>> import io
    >>> list(json_rows(io.BytesIO(b'[{"query": "q"}]'), "p.json"))
    [('p.json, item 1', {'query': 'q'})]
    """
    lines = iter(partial(stream.readline, _LONGEST_LINE + 1), b"")
    first, before = _first_line(lines)
    if first is None:
        return
    if len(first) > _LONGEST_LINE:
        raise DataError(f"{name}, line {before + 1}: longer than {_LONGEST_LINE >> 20} MiB; write one object a line")
    if first.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[") or not _is_object(first):
        yield from _document(first, lines, name, before)
        return
    following = next(lines, None)
    if following is None:
        value = json.loads(first.decode("utf-8-sig"))
        _refuse_ragged(value, name)
        if _holds_rows(value):
            yield from _document(first, iter(()), name, before)
            return
    rest = chain([following] if following is not None else [], lines)
    yield from _numbered(chain([first], rest), name, before)


def numbered_rows(stream: Lines, name: str, before: int) -> Located:
    """The rows of a stream of objects, one a line, that `before` lines came before."""
    return _numbered(iter(partial(stream.readline, _LONGEST_LINE + 1), b""), name, before)


def holds_one_value(start: bytes) -> bool:
    """Whether a file that starts like this may be one JSON value; if not, each line is an object of its own.

    Files whose first line is empty, or too long to be seen here, count as such: `json_rows` reads all of them.
    """
    first, end, rest = start.partition(b"\n")
    return not (end and rest and first.removeprefix(b"\xef\xbb\xbf").startswith(b"{") and _is_object(first))


def _first_line(lines: Iterator[bytes]) -> tuple[bytes | None, int]:
    """(the first line that is not empty, number of lines before it)."""
    for number, line in enumerate(lines):
        if not line.isspace() and line != b"\xef\xbb\xbf":
            return line, number
    return None, 0


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False


def _numbered(lines: Iterator[bytes], name: str, before: int) -> Located:
    for number, line in enumerate(lines, before + 1):
        if line.isspace() or line == b"\xef\xbb\xbf":
            continue
        where = f"{name}, line {number}"
        if len(line) > _LONGEST_LINE:
            raise DataError(f"{where}: longer than {_LONGEST_LINE >> 20} MiB; write one object a line")
        yield where, _object(_decoded(line, where, number == 1), where)


def _decoded(data: bytes, where: str, first: bool) -> Any:
    """The JSON value in these bytes."""
    try:
        return json.loads(data.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not valid UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        # Python refuses to parse integers of more than a few thousand digits, with a plain ValueError.
        detail = (
            error.msg if isinstance(error, json.JSONDecodeError)
            else "nested too deeply" if isinstance(error, RecursionError)
            else "a number has too many digits"
        )  # fmt: skip
        raise DataError(f"{where}: not a JSON object ({detail})") from None


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, got a {type(value).__name__}")
    return value


def _document(first: bytes, lines: Iterator[bytes], name: str, before: int) -> Located:
    """The rows of a file that is one JSON value."""
    parts, size = [first], len(first)
    for line in lines:
        size += len(line)
        if size > _LARGEST_DOCUMENT:
            raise DataError(
                f"{name}: more than {_LARGEST_DOCUMENT >> 30} GiB as one JSON value; write one object a line"
            )
        parts.append(line)
    whole = b"".join(parts)
    try:
        value = _decoded(whole, name, True)
    except DataError:
        # Several values, most likely: then the line that is wrong says more.
        _decoded(first, f"{name}, line {before + 1}", before == 0)
        raise
    if isinstance(value, dict):
        yield from _rows_of(value, name)
        return
    if not isinstance(value, list):
        raise DataError(f"{name}: expected objects, got a {type(value).__name__}")
    for number, item in enumerate(value, 1):
        where = f"{name}, item {number}"
        yield where, _object(item, where)


def _holder(value: dict[str, Any]) -> str | None:
    """The entry of an object that holds its rows, such as `data`; None if there is none."""
    return next(
        (
            name
            for name in _HOLDERS
            if isinstance(value.get(name), list) and all(isinstance(x, dict) for x in value[name])
        ),
        None,
    )


def _is_columns(value: dict[str, Any]) -> bool:
    """Whether an object holds a list of equal length, or an object with numbers as keys, for every column."""
    columns = list(value.values())
    if len(columns) < 2:
        return False
    lists = all(isinstance(column, list) for column in columns)
    if {"queries", "corpus", "relevant_docs"} <= value.keys():  # of llama-index, whose ids may be numbers
        return False
    maps = all(isinstance(column, dict) and all(map(str.isdigit, column)) for column in columns)
    return (lists or maps) and len({len(column) for column in columns}) == 1


def _holds_rows(value: dict[str, Any]) -> bool:
    return _holder(value) is not None or _is_columns(value)


def _refuse_ragged(value: dict[str, Any], name: str) -> None:
    """DataError for an object of columns that are not all lists of one length, which would be read as one row of many queries."""
    lists = {key: len(each) for key, each in value.items() if isinstance(each, list) and len(each) > 1}
    asked = next((key for key in lists if key.lower() in _QUERIES), None)
    if asked is None or len(lists) < 2 or _holds_rows(value):
        return
    held = ", ".join(f"{key}: {lists[key]}" if key in lists else f"{key}: no list of several" for key in value)
    raise DataError(
        f"{name}: one JSON object with {lists[asked]} texts under {asked!r}: as columns, all entries must be lists of that length "
        f"({held}); as rows, write one object a line"
    )


def _rows_of(value: dict[str, Any], name: str) -> Located:
    """The rows of an object: those of its entry `data`, or of its columns; or the object itself."""
    _refuse_ragged(value, name)
    holder = _holder(value)
    if holder is not None:
        for number, item in enumerate(value[holder], 1):
            yield f"{name}, item {number} of {holder!r}", item
    elif _is_columns(value):
        columns = {key: list(column.values() if isinstance(column, dict) else column) for key, column in value.items()}
        for number, cells in enumerate(zip(*columns.values(), strict=True), 1):
            yield f"{name}, row {number}", dict(zip(columns, cells, strict=True))
    else:
        yield f"{name}, item 1", value
