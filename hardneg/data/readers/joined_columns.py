"""Columns that are read as one text, as `title,description`: joined by a space, as the title and the text of BEIR are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow as pa

from hardneg.data.labels import is_blank
from hardneg.data.readers.rows import Row
from hardneg.data.text_batches import as_texts
from hardneg.data.texts import shown
from hardneg.errors import DataError
from hardneg.storage.arrow import strings


class JoinedColumns:
    """Adds the columns that an option names by several names, with commas between them. A column of that whole name comes first.

    Blank cells are left out of a joined text.

    Args:
        given: the columns as the options name them, None where they do not.
        row: the first row.

    Attributes:
        parts: the names of the columns that each is made of, by the name in the option.
    """

    def __init__(self, given: Iterable[str | None], row: Row) -> None:
        self.parts: dict[str, list[str]] = {}
        for name in given:
            parts = [part.strip() for part in name.split(",")] if name and name not in row else []
            if len(parts) > 1 and all(part in row for part in parts):
                self.parts[str(name)] = parts

    def row(self, where: str, row: Row) -> Row:
        """The row with the joined columns. DataError if a part of one is no text; a row without a part lacks the column, too."""
        if not self.parts:
            return row
        made = {
            name: " ".join(_cells(row, parts, where))
            for name, parts in self.parts.items()
            if all(part in row for part in parts)
        }
        return {**row, **made}

    def table(self, table: pa.Table) -> pa.Table | None:
        """The table with the joined columns; None if it is to be read row by row."""
        for name, parts in self.parts.items():
            if not set(parts) <= set(table.column_names):
                return None
            cells: list[list[str]] = []
            for part in parts:
                texts = as_texts(table.column(part))
                if texts is None:
                    return None
                cells.append(texts.to_pylist())
            table = table.append_column(
                name, strings([" ".join(c for c in row if c.strip()) for row in zip(*cells, strict=True)])
            )
        return table


def _cells(row: Mapping[str, object], parts: list[str], where: str) -> list[str]:
    found = []
    for part in parts:
        value = row[part]
        if is_blank(value):
            continue
        if not isinstance(value, str):
            raise DataError(f"{where}: the column {part!r} is {shown(value)}, expected text")
        found.append(value)
    return found
