"""The file of judgements: CSV that people open in a spreadsheet, and that models fill."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from hardneg.data.pairs import Pairs
from hardneg.data.readers.rows import opened
from hardneg.errors import DataError
from hardneg.false_negatives.population import OpenPairs
from hardneg.hashing import mix
from hardneg.mining.samplers import query_keys
from hardneg.storage.files import atomic_path

COLUMNS = (
    "query_id", "document_id", "relevant", "query", "positive", "document", "score", "rank",
    "inclusion_probability", "part", "look", "alpha", "drawn_for", "grade", "judge", "note", "chosen_by", "prompt",
)  # fmt: skip

HELD_OUT, FIT, NEGATIVE, POSITIVE = "hold-out", "fit", "negative", "positive"

_SHOWN = 3  # positives that are shown


@dataclass(frozen=True)
class Row:
    """What is written about one pair besides its texts.

    Attributes:
        part: `hold-out`, `fit` or `negative`.
        inclusion: the chance of being drawn; NaN: not known.
        look: the look at which it was drawn.
        relevant: 1, 0, or None: not judged.
        grade: the grade or score behind it; None without one.
        judge: the name of the model that judged; "" for a person.
        note: what is to be known about the answer.
    """

    part: str
    inclusion: float
    look: int = 1
    relevant: int | None = None
    grade: float | None = None
    judge: str = ""
    note: str = ""


def write_judgements(
    path: Path,
    pairs: Pairs,
    shown: OpenPairs,
    rows: Sequence[Row],
    *,
    alpha: float,
    drawn_for: str,
    chosen_by: str = "",
    prompts: dict[str, str] | None = None,
) -> None:
    """Write the pairs as CSV, one per line, in the order in which to judge them.

    Ids and texts are written with `as_cell`, because people open the file in a spreadsheet.

    Args:
        path: the file.
        pairs: the dataset.
        shown: the pairs.
        rows: what is known about each of them.
        alpha, drawn_for: tell `calibrate` what the pairs were drawn for: a hash of the run, the posterior and the selection.
        chosen_by: a hash of the judgements by which the pairs were chosen.
        prompts: the prompts of the models, by name. Each stands in the first line that its model judged.
    """
    ids = [
        known_ids.take(pa.array(numbers)).to_pylist()
        for known_ids, numbers in ((pairs.query_ids, shown.query), (pairs.document_ids, shown.document))
    ]
    texts = pairs.queries.take(shown.query), pairs.documents.take(shown.document)
    known = pairs.positives.take(shown.query)
    lines = []
    for i, row in enumerate(rows):
        positives = known.values[known.offsets[i] : known.offsets[i + 1]][:_SHOWN]
        lines.append(
            {
                "query_id": as_cell(ids[0][i]), "document_id": as_cell(ids[1][i]),
                "relevant": "" if row.relevant is None else row.relevant,
                "query": as_cell(texts[0][i]), "positive": as_cell(" | ".join(pairs.documents.take(positives))),
                "document": as_cell(texts[1][i]), "score": f"{shown.score[i]:.6f}", "rank": int(shown.rank[i]),
                "inclusion_probability": "" if np.isnan(row.inclusion) else repr(float(row.inclusion)),
                "part": row.part, "look": row.look, "alpha": repr(alpha), "drawn_for": drawn_for,
                "grade": "" if row.grade is None else f"{row.grade:g}", "judge": as_cell(row.judge), "note": row.note,
                "chosen_by": chosen_by, "prompt": "",
            }
        )  # fmt: skip
    # Shuffled by the hashes of their ids, so that the order does not reveal which pairs are suspected.
    order = np.argsort(mix(query_keys(pa.array([f"{a}\t{b}" for a, b in zip(*ids, strict=True)], pa.string()))))
    unwritten = dict(prompts or {})
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS)
        writer.writeheader()
        for i in order:
            writer.writerow({**lines[i], "prompt": unwritten.pop(rows[i].judge, "")})


_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_cell(text: str) -> str:
    """A text as a cell of a spreadsheet, where it is not taken for a formula.

    Spreadsheets run a cell that starts with one of these: = + - @ tab, carriage return. Such a cell gets a single quote in
    front. So does one that starts with quotes and then one of these, so that `from_cell` gives every text back.

    >>> as_cell("=1+1"), as_cell("'=1+1"), as_cell("'tis")
    ("'=1+1", "''=1+1", "'tis")
    """
    return "'" + text if text.lstrip("'").startswith(_FORMULA) else text


def from_cell(cell: str) -> str:
    """The text that `as_cell` made a cell of.

    >>> from_cell("''=1+1"), from_cell("'tis")
    ("'=1+1", "'tis")
    """
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA) else cell


def read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line, row) for each row of a CSV file."""
    csv.field_size_limit(1 << 27)  # texts may be longer than the default allows
    with opened(path, once=True) as stream:
        try:
            reader = csv.DictReader(io.TextIOWrapper(stream, "utf-8-sig", newline=""), strict=True)
            found = reader.fieldnames or []
            missing = [name for name in ("query_id", "document_id", "relevant") if name not in found]
            if missing:
                other = next((mark for mark in ";\t" if len(found) == 1 and mark in found[0]), None)
                raise DataError(
                    f"{path} has no column {', '.join(missing)}: it needs query_id, document_id and relevant (0 or 1)"
                    + (f". Save it with commas between the cells, not {other!r}" if other else "")
                )
            return [(reader.line_num, {k: v or "" for k, v in row.items() if k is not None}) for row in reader]
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path} is not readable as CSV in UTF-8 ({error})") from None


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write rows as `read_rows` gave them, with what was changed in them."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
