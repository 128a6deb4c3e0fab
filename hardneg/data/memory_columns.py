"""Columns that callers hold in memory: lists, arrays, and Series of pandas or polars, taken by position."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

from hardneg.data.labels import is_blank
from hardneg.data.texts import shown
from hardneg.errors import DataError


def column_values(values: Iterable[Any], name: str) -> list[Any]:
    """The values of a column, by position, whatever labels its rows have.

    Args:
        values: a list, an iterator, an array of numpy or Arrow, or a Series of pandas or polars.
        name: the name of the argument, for the message.

    Raises:
        DataError: it is a text, a mapping or a set, in which values have no positions.

    >>> column_values(("a", "b"), "queries")
    ['a', 'b']
    """
    if isinstance(values, str | bytes | Mapping | Set):
        raise DataError(f"{name} is a {type(values).__name__}: give a list with one value per row")
    if getattr(values, "ndim", 1) != 1 and hasattr(values, "columns"):
        raise DataError(f"{name} is a table of {len(values.columns)} columns: give one column")
    for method in ("to_pylist", "to_list", "tolist"):
        take = getattr(values, method, None)
        if callable(take):
            found = take()
            if not isinstance(found, list):
                raise DataError(f"{name} is a single value: give a list with one value per row")
            return found
    try:
        return list(values)
    except TypeError:
        raise DataError(f"{name} is a {type(values).__name__}: give a list with one value per row") from None


def texts_of(cell: Any, name: str, where: str) -> list[str]:
    """The texts of a cell that holds a text, several, or none (None, NaN or an empty list). Some may be blank."""
    if isinstance(cell, str):
        return [cell]
    if cell is None or (isinstance(cell, float) and cell != cell):
        return []
    if isinstance(cell, Mapping | Set) or not isinstance(cell, Iterable):
        raise DataError(f"{where}: {name} is {shown(cell)}, expected a text or a list of texts")
    texts = []
    for text in column_values(cell, f"{where}: {name}"):
        if not isinstance(text, str):
            raise DataError(f"{where}: {name} holds {shown(text)}, expected texts")
        texts.append(text)
    return texts


def label_of(group: Any) -> Any:
    """A group label; None for a missing one, as pandas writes it (NaN)."""
    return None if is_blank(group) else group
