"""Reads cells of untrusted rows. A function returns a value of the right kind or raises a DataError that says where."""

from __future__ import annotations

from typing import Any

import numpy as np

from hardneg.data.readers.rows import Row, names
from hardneg.data.texts import shown
from hardneg.errors import DataError, first_few, suggestion


class MissingColumnError(DataError):
    """A column that the user named is not there.

    Attributes:
        given: the name as it was given, perhaps of several columns that are read as one.
    """

    def __init__(self, message: str, given: str = "") -> None:
        super().__init__(message)
        self.given = given


def find_column(row: Row, given: str | None, usual: tuple[str, ...], where: str) -> str | None:
    """The column to read: the given one, or the first usual name that the row has, ignoring case.

    Args:
        row: a row of the file.
        given: the column that the user named; "" for none, None to guess.
        usual: names to look for, in order.
        where: place of the row, for the message.

    Returns:
        Name of the column; None if there is none.

    Raises:
        MissingColumnError: the row does not have the given column.

    >>> find_column({"ID": "7", "Question": "why?"}, None, ("query", "question"), "line 1")
    'Question'
    """
    if given is not None:
        if given == "":
            return None
        if given not in row:
            # Of several columns that are read as one, the first that is missing.
            lacks = next((part.strip() for part in given.split(",") if part.strip() not in row), given)
            raise MissingColumnError(f"{where}: there is no column {lacks!r}.{suggestion(lacks, row)}", given)
        return given
    lowered = {name.lower(): name for name in row}
    return next((lowered[name.lower()] for name in usual if name.lower() in lowered), None)


def need_column(row: Row, given: str | None, usual: tuple[str, ...], where: str, what: str) -> str:
    """Like `find_column`, but DataError if there is no such column. `what` names its content in the message."""
    column = find_column(row, given, usual, where)
    if column is None:
        raise DataError(
            f"{where}: no column looks like a {what}; it has: {names(row) or 'none'}. "
            f"Usual names: {first_few(usual, limit=20)}. Name yours with --{what}-column"
        )
    return column


def need_pair(
    row: Row, query: tuple[str | None, tuple[str, ...]], positive: tuple[str | None, tuple[str, ...]], where: str
) -> tuple[str, str]:
    """The columns of the query and of its positive, each from (the given one, usual names). If both are missing, both are said.

    Raises:
        MissingColumnError: the row does not have a given column. DataError: no column has a usual name.
    """
    try:
        asked = need_column(row, *query, where, "query")
    except DataError as error:
        try:
            need_column(row, *positive, where, "positive")
        except DataError as other:
            error.args = (f"{str(error).rstrip('.')}. And for the positive: {str(other).removeprefix(f'{where}: ')}",)
        raise
    free = {name: value for name, value in row.items() if name != asked}
    return asked, need_column(free, *positive, where, "positive")


def is_binary(value: Any) -> bool:
    """Whether a label is 0 or 1, as a number, a text or a bool."""
    return value in (0, 1, "0", "1", True, False)


def id_of(row: Row, column: str | None, where: str) -> str | None:
    """The id in this column of a row; None without a column."""
    return None if column is None else as_id(row.get(column), where)


def as_id(value: Any, where: str) -> str:
    """An id, which must be a non-empty text or an integer, as text."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{where}: the id is {shown(value)}, expected text or an integer")
    return str(value)


def as_number(value: Any, what: str, where: str) -> float:
    """A finite number. `what` names the value in the message."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{where}: the {what} is {shown(value)}, expected a number") from None
    if not np.isfinite(number):
        raise DataError(f"{where}: the {what} is {shown(value)}, expected a finite number")
    return number


def is_number(text: str) -> bool:
    """Whether a field of a table can be read as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def need_cells(row: Row, needed: tuple[str, ...], where: str) -> None:
    """DataError if the row lacks one of these columns."""
    for name in needed:
        if name not in row:
            raise DataError(f"{where}: there is no {name!r}; it has: {names(row)}")


def as_list(value: Any, what: str, where: str) -> list[Any]:
    """The value, which must be a list. `what` names its column in the message."""
    if not isinstance(value, list):
        raise DataError(f"{where}: {what!r} is of type {type(value).__name__}, expected a list")
    return value
