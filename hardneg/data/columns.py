"""Cells of untrusted rows: which column holds what, and values of the right kind or an error that says where."""

from __future__ import annotations

from typing import Any

import numpy as np

from hardneg.data.readers.rows import Row
from hardneg.errors import DataError, first_few, suggestion


def find_column(row: Row, given: str | None, usual: tuple[str, ...], where: str) -> str | None:
    """The column to read: the given one, or the first usual name that the row has; names differ in case at most."""
    if given is not None:
        if given == "":
            return None
        if given not in row:
            raise DataError(f"{where}: there is no column {given!r}.{suggestion(given, row)}")
        return given
    lowered = {name.lower(): name for name in row}
    return next((lowered[name.lower()] for name in usual if name.lower() in lowered), None)


def need_column(row: Row, given: str | None, usual: tuple[str, ...], where: str, what: str) -> str:
    """As `find_column`, for a column that there has to be."""
    found = find_column(row, given, usual, where)
    if found is None:
        raise DataError(
            f"{where}: no column looks like a {what}; it has: {', '.join(row) or 'none'}. "
            f"Usual names: {first_few(usual, limit=20)}. Name yours with --{what}-column"
        )
    return found


def is_binary(value: Any) -> bool:
    return value in (0, 1, "0", "1", True, False)


def id_of(row: Row, column: str | None, where: str) -> str | None:
    return None if column is None else as_id(row.get(column), where)


def as_id(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{where}: the id is {value!r}, expected text or an integer")
    return str(value)


def as_number(value: Any, what: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(f"{where}: the {what} is {value!r}, expected a number") from None
    if not np.isfinite(number):
        raise DataError(f"{where}: the {what} is {value!r}, expected a finite number")
    return number


def need_cells(row: Row, names: tuple[str, ...], where: str) -> None:
    for name in names:
        if name not in row:
            raise DataError(f"{where}: there is no {name!r}; it has: {', '.join(row)}")


def as_list(value: Any, what: str, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{where}: {what!r} is of type {type(value).__name__}, expected a list")
    return value
