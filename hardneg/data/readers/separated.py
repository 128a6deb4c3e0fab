"""Rows of CSV and TSV files. The first line names the columns, unless the file is known to have none.

CSV is read with quotes (RFC 4180). For TSV there are two customs: datasets of retrieval are written without quotes, pandas
and spreadsheets write with quotes. The whole file decides, and a file that both customs read without an error, but into
another number of rows, is refused.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from hardneg.data.options import Quoting
from hardneg.data.readers.rows import Located, names, opened
from hardneg.data.texts import shown
from hardneg.errors import DataError


def separated(path: Path, delimiter: str, header: Sequence[str] | None = None, quoting: Quoting = "auto") -> Located:
    """The rows of a CSV or TSV file.

    Args:
        path: the file.
        delimiter: what separates the fields.
        header: the names of the columns, for a file whose first line is a row already; None: the first line names them.
        quoting: `quotes`: a field in double quotes may hold delimiters and line breaks; `none`: a quote is a character
            like any other; `auto`: see above.

    Raises:
        DataError: a row has more or fewer fields than the header, two columns have the same name, a quote is never
            closed, or the file is not UTF-8. The message names the line.
    """
    yield from _named(separated_fields(path, delimiter, quoting), header, delimiter)


def _named(found: Iterator[tuple[str, list[str]]], columns: Sequence[str] | None, delimiter: str) -> Located:
    """The rows of fields, whose first ones are the names of the columns if these are not known."""
    for where, fields in found:
        if columns is None:
            columns = checked_header(fields, where, delimiter)
            continue
        if len(fields) != len(columns):
            raise DataError(f"{where}: {len(fields)} fields, but the header names {len(columns)}: {names(columns)}")
        row: dict[str, Any] = dict(zip(columns, fields, strict=True))
        for name in columns:
            if name.lower() in LIST_COLUMNS and row[name].startswith("["):
                row[name] = _as_list(row[name])
        yield where, row


# Columns that hold lists in every layout. In CSV, a list is written as JSON, as our exports and pandas do.
LIST_COLUMNS = {
    "pos", "neg", "pos_id", "neg_id", "pos_scores", "neg_scores", "positives", "negatives", "documents", "labels", "answers",
    "positive_passages", "negative_passages", "positive_ctxs", "negative_ctxs", "hard_negative_ctxs",
}  # fmt: skip


def _as_list(cell: str) -> Any:
    """The list that a cell holds; the cell itself if it is none."""
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    return value if isinstance(value, list) else cell


def separated_fields(path: Path, delimiter: str, quoting: Quoting = "auto") -> Iterator[tuple[str, list[str]]]:
    """(place, fields) of each line that is not empty, the header included."""
    if delimiter == "," and quoting == "auto":
        quoting = "quotes"
    if quoting == "auto":
        quoting = _custom(path, delimiter)
    for number, fields in _parsed(path, delimiter, quoting == "quotes", once=delimiter == ","):
        yield f"{path}, line {number}", fields


_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}

_LIKE_A_NAME = re.compile(r'"?[\w .-]{1,40}"?')


def rows_of_fields(path: Path, stream: IO[bytes], columns: Sequence[str] | None, before: int) -> Located:
    """The rows of the rest of a CSV file with quotes, after `before` lines; None for columns: its first row names them."""
    text = io.TextIOWrapper(stream, "utf-8" if before else "utf-8-sig", newline="")
    return _named(
        ((f"{path}, line {number}", fields) for number, fields in _quoted(path, text, ",", before)), columns, ","
    )


def header_line(start: bytes) -> tuple[list[str], int] | None:
    """(the columns, where their line ends) of a CSV file that starts like this; None if its first line is not a plain header."""
    first = start[: start.find(b"\n") + 1]
    try:
        line = first.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
        fields = next(csv.reader([line], strict=True), None)
    except (UnicodeDecodeError, csv.Error):
        return None
    return (fields, len(first)) if fields and line.count('"') % 2 == 0 and "\r" not in line else None


def checked_header(fields: list[str], where: str, delimiter: str = ",") -> list[str]:
    """The names of columns; DataError if two are equal, or they seem to have another separator between them."""
    check_separator(fields, where, delimiter)
    twice = [name for name, count in Counter(fields).items() if count > 1 and name]
    if twice:
        places = [str(i) for i, name in enumerate(fields, 1) if name == twice[0]]
        raise DataError(f"{where}: the columns {' and '.join(places)} are both called {twice[0]!r}: rename one of them")
    return fields


def check_separator(fields: list[str], where: str, delimiter: str) -> None:
    """DataError if a header of one field looks like several names with another separator between them, as spreadsheets write some."""
    if len(fields) != 1:
        return
    for other in (";", "\t", "|"):
        parts = fields[0].split(other)
        if other == delimiter or len(parts) < 2 or not all(map(_LIKE_A_NAME.fullmatch, parts)):
            continue
        written = "index=False" if delimiter == "," else f"sep={delimiter!r}, index=False"
        made = f"make another of it, as with pandas.read_csv(FILE, sep={other!r}).to_csv(NEW, {written})"
        remedy = "name it .tsv" if other == "\t" else made
        raise DataError(
            f"{where}: the header is one column, {shown(fields[0])}: its names seem to be separated by {_NAMES[other]}, and a file of "
            f"this name is read with {_NAMES[delimiter]} between columns: {remedy}"
        )


def _check_first_line(path: Path, delimiter: str) -> None:
    """DataError if the first line, which is none with this delimiter, looks like names in quotes with another separator."""
    with opened(path) as stream:
        line = stream.readline(10_000).decode("utf-8-sig", "replace")
    check_separator([line.strip("\r\n")], f"{path}, line 1", delimiter)


def _parsed(path: Path, delimiter: str, quotes: bool, once: bool = False) -> Iterator[tuple[int, list[str]]]:
    """(number of the last line, fields) of each row."""
    with opened(path, once=once) as stream:
        if quotes:
            yield from _quoted(path, io.TextIOWrapper(stream, "utf-8-sig", newline=""), delimiter, 0)
            return
        # Only \\n and \\r\\n end a line where quotes are characters: texts hold lone carriage returns.
        number = 0
        try:
            for number, line in enumerate(io.TextIOWrapper(stream, "utf-8-sig", newline="\n"), 1):
                if fields := line.removesuffix("\n").removesuffix("\r"):
                    yield number, fields.split(delimiter)
        except UnicodeDecodeError as error:
            raise _not_utf8(path, number, error) from None


def _quoted(path: Path, text: io.TextIOBase, delimiter: str, before: int) -> Iterator[tuple[int, list[str]]]:
    """(number of the last line, fields) of each row that is not empty, where quotes enclose fields."""
    csv.field_size_limit(1 << 27)
    number = before
    try:
        reader = csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL, strict=True)
        for fields in reader:
            number = before + reader.line_num
            if fields:
                yield number, fields
    except UnicodeDecodeError as error:
        raise _not_utf8(path, number, error) from None
    except csv.Error as error:
        if number == 0 and path.is_file():  # a pipe cannot be read again
            _check_first_line(path, delimiter)
        raise DataError(f"{path}, line {number + 1} or after: {error}{_QUOTING_HINT}") from None


def _not_utf8(path: Path, number: int, error: UnicodeDecodeError) -> DataError:
    return DataError(f"{path}, after line {number}: not valid UTF-8 ({error.reason}); save the file as UTF-8")


_QUOTING_HINT = ". If quotes are characters of the texts, give --quoting none"


def _custom(path: Path, delimiter: str) -> Quoting:
    """Whether a file is written with quotes, told by all of it."""
    rows = Counter[int]()
    starts = closed = count = 0
    first_open = 0
    for number, fields in _parsed(path, delimiter, False):
        rows[len(fields)] += 1
        count += 1
        for field in fields:
            if field.startswith('"'):
                starts += 1
                whole = len(field) > 1 and field.endswith('"') and '"' not in field[1:-1].replace('""', "")
                closed += whole
                if not whole and not first_open:
                    first_open = number
    if not starts:
        return "none"
    even = len(rows) == 1
    try:
        widths = Counter(len(fields) for _, fields in _parsed(path, delimiter, True))
        readable = len(widths) == 1
    except DataError:
        readable, widths = False, Counter()
    if even and not readable:
        return "none"
    if readable and not even:
        return "quotes"
    if not readable or (widths.total() != count and widths.keys() == rows.keys()):
        raise DataError(
            f"{path}, line {first_open or 1}: it cannot be told whether quotes enclose the fields of this file "
            f"({widths.total():,} rows) or are characters of the texts ({count:,} rows): say so with --quoting quotes "
            f"or --quoting none"
        )
    return "quotes" if closed == starts else "none"
