"""Pairs that `hardneg judge` drew, for people to judge in a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from hardneg.data.pairs import Pairs
from hardneg.errors import DataError, first_few
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


def drawn_pairs(path: str | Path, pairs: Pairs) -> DrawnPairs:
    """Read a file of `hardneg judge`; what is judged in it already stays.

    Raises:
        DataError: it is no such file, has no rows, an id is not in the dataset, or a cell of `relevant` is not empty, 0 or 1.
    """
    numbered = read_rows(Path(path))
    _check(path, numbered, pairs)
    rows = [{**row, "relevant": row["relevant"].strip()} for _, row in numbered]
    columns = list(rows[0])
    cells = [[row.get(name, "") for name in columns] for row in rows]
    shown = [[from_cell(row.get(name, "")) for name in ("query", "positive", "document")] for row in rows]
    return DrawnPairs(Path(path).name, fingerprint(cells), columns, cells, shown)


def _check(path: str | Path, rows: list[tuple[int, dict[str, str]]], pairs: Pairs) -> None:
    if not rows:
        raise DataError(f"{path} holds no pairs to judge: hardneg judge RUN --out F.csv draws some")
    wrong = [line for line, row in rows if row["relevant"].strip() not in ("", "0", "1")]
    if wrong:
        raise DataError(f"{path}: 'relevant' must be empty, 0 or 1, it is not in the lines {first_few(wrong)}")
    for name, ids in (("query_id", pairs.query_ids), ("document_id", pairs.document_ids)):
        asked = pa.array([from_cell(row[name]) for _, row in rows], pa.string())
        known = pc.is_in(asked, value_set=ids.cast(pa.string())).to_pylist()
        strange = [line for (line, _), found in zip(rows, known, strict=True) if not found]
        if strange:
            raise DataError(
                f"{path}: the {name} is not in the run's dataset in the lines {first_few(strange)}: was it drawn for another run?"
            )
