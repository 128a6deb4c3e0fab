"""The cells of a file of judgements: what they mean, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hardneg.data.texts import Texts, fold, shown
from hardneg.errors import DataError, first_few
from hardneg.false_negatives.judgement_file import from_cell
from hardneg.storage.arrow import values_of

LOOKS = 100  # looks at one file

_LEAST_CHANCE = 1e-12  # of being drawn

_COMPARED = 200  # characters of a text that are compared


def rows_of(
    ids: list[str], known: pa.Array, judged: list[tuple[int, dict[str, str]]], path: Path, what: str
) -> NDArray[np.int64]:
    places = pc.index_in(pa.array(ids, known.type), value_set=known)
    if places.null_count:
        bad = [i for i, place in enumerate(places.to_pylist()) if place is None]
        said = first_few(f"line {judged[i][0]}: {shown(ids[i])}" for i in bad)
        raise DataError(f"{path}: {len(bad):,} {what} ids are not in the run's dataset ({said}): is it of another run?")
    return values_of(places).astype(np.int64)


def check_texts(
    judged: Sequence[tuple[int, dict[str, str]]], path: Path, what: str, items: Texts, rows: NDArray[np.int64]
) -> None:
    """Raise DataError where a row has the text of another query or document than its id names, which is `items[rows[i]]`."""
    said = [from_cell(row.get(what) or "").strip() for _, row in judged]
    shows = [i for i, text in enumerate(said) if text]
    wrong = [
        judged[i][0]
        for i, text in zip(shows, items.take(rows[np.array(shows, np.int64)]), strict=True)
        if fold(said[i])[:_COMPARED] != fold(text)[:_COMPARED]
    ]
    if wrong:
        raise DataError(
            f"{path}: the ids of the column '{what}_id' name other texts than those of the column {what!r} in {len(wrong):,} lines "
            f"({first_few(wrong)}). Were columns shifted, or zeros taken off ids by a spreadsheet? If only texts were edited, leave "
            f"the column {what!r} out"
        )


def grade_of(text: str | None, line: int, path: Path) -> float:
    if text is None or not text.strip():
        return float("nan")
    try:
        grade = float(text)
    except ValueError:
        grade = float("inf")
    if not np.isfinite(grade):
        raise DataError(f"{path}, line {line}: the grade {shown(text)} is no number")
    return grade


def look_of(text: str | None, line: int, path: Path) -> int:
    plain = "" if text is None else text.strip()
    if not plain:
        return 1
    if not plain.isascii() or not plain.isdigit() or len(plain) > 3 or not 1 <= int(plain) <= LOOKS:
        raise DataError(f"{path}:{line}: the look is {shown(text)}: hardneg judge writes 1 to {LOOKS}")
    return int(plain)


def chance_of(text: str | None, line: int, path: Path, name: str = "inclusion_probability") -> float:
    if not text:
        return float("nan")
    try:
        chance = float(text)
    except ValueError:
        chance = -1.0
    if not _LEAST_CHANCE <= chance <= 1:
        raise DataError(f"{path}, line {line}: {name} {shown(text)} must be above 0 and at most 1")
    return chance


def only_value(values: list[str | None], name: str, path: Path) -> str | None:
    """The value that all judged rows have in this column; None without one. Raises DataError if they differ."""
    found = {value.strip() for value in values if value is not None and value.strip()}
    if len(found) > 1:
        raise DataError(
            f"{path}: the column {name!r} holds {first_few(sorted(found))}: these are files of several draws. Judge one file, "
            f"and extend it with hardneg judge --judged"
        )
    return found.pop() if found else None
