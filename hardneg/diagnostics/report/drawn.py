"""Pairs that `hardneg judge` drew, for people to judge in a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hardneg.false_negatives.judgement_file import from_cell, read_rows
from hardneg.storage.files import fingerprint


@dataclass(frozen=True)
class DrawnPairs:
    """The rows of a file of `hardneg judge`.

    Attributes:
        name: the file's name.
        digest: a hash of its content, so that a browser keeps the judgements of each file apart.
        columns: the names of the columns, as in the file.
        rows: the cells of each row, as in the file.
        shown: query, positive and document of each row, without the quotes that keep spreadsheets from running them.
    """

    name: str
    digest: str
    columns: list[str]
    rows: list[list[str]]
    shown: list[list[str]]

    @property
    def saved(self) -> str:
        """The name of the file that the report saves."""
        return f"{Path(self.name).stem}-judged.csv"


def drawn_pairs(path: str | Path) -> DrawnPairs:
    """Read a file of `hardneg judge`; what is judged in it already stays. Raises DataError for any other file."""
    rows = [row for _, row in read_rows(Path(path))]
    columns = list(rows[0]) if rows else ["query_id", "document_id", "relevant"]
    cells = [[row.get(name, "") for name in columns] for row in rows]
    shown = [[from_cell(row.get(name, "")) for name in ("query", "positive", "document")] for row in rows]
    return DrawnPairs(Path(path).name, fingerprint(cells), columns, cells, shown)
