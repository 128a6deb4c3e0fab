"""Columns of grades: what is asked for, in every container, and what is read without a question."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hardneg
from hardneg.data.notes import notes_of
from hardneg.errors import DataError

CONTAINERS = ("csv", "tsv", "jsonl", "rows one by one", "parquet", "saved", "list", "columns", "frame")

FRACTIONS = (0.98, 0.1, 0.7, 0.35)
GRADES = (5, 0, 2, 4)


def held(folder: Path, container: str, column: str, values: Sequence[Any], **names: Any) -> Any:
    """Pairs with a column of these values, as a source of this kind."""
    rows = [{"query": f"q{i}", "positive": f"text {i}", **names, column: value} for i, value in enumerate(values)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if container == "list":
        return rows
    if container == "columns":
        return columns
    if container == "frame":
        return pd.DataFrame(columns)
    if container == "saved":
        datasets.Dataset.from_dict(columns).save_to_disk(str(folder / "saved"))
        return str(folder / "saved")
    path = folder / f"p.{container if container in ('csv', 'tsv', 'parquet') else 'jsonl'}"
    if container == "parquet":
        pq.write_table(pa.table(columns), path)
    elif container in ("csv", "tsv"):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(columns), delimiter="," if container == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    else:
        if container == "rows one by one":  # a list in a cell is not read as a column
            rows = [row | {"positive": [row["positive"]]} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("score", FRACTIONS, "grades the pairs"),
        ("score", GRADES, "grades the pairs"),
        ("similarity", FRACTIONS, "grades the pairs"),
        ("rating", GRADES, "grades the pairs"),
        ("teacher_score", FRACTIONS, "grades the pairs"),
        ("relevance", FRACTIONS, "the grades in 'relevance' are 0.1, 0.35, 0.7, 0.98, and it is not known"),
        ("relevance", (80, 0, 15, 40), "the grades in 'relevance' are 0, 15, 40, 80, and it is not known"),
        ("is_relevant", (4, 2, 3, 1), "the grades in 'is_relevant' are 1, 2, 3, 4, and it is not known"),
        ("label", FRACTIONS, "which look like grades"),
        ("label", GRADES, "which look like classes, or grades of the pairs"),
        ("label", (-2, -1, 1, 2), "which look like classes, or grades of the pairs"),
        ("label", ("relevant", "partially relevant", "irrelevant", "relevant"), "which look like grades in words"),
    ],
)
def test_grades_are_asked_for(tmp_path: Path, container: str, column: str, values: tuple[Any, ...], words: str) -> None:
    source = held(tmp_path, container, column, values)
    with pytest.raises(DataError, match=rf"{words}.*--relevant-from X"):
        hardneg.read_pairs(source)
    everything: dict[str, Any] = {"group_column": ""} if column == "label" else {"relevance_column": ""}
    assert len(hardneg.read_pairs(source, hardneg.ReadOptions(**everything)).positives.values) == 4
    if isinstance(values[0], str):
        return
    bar = sorted(values)[-2]
    found = hardneg.read_pairs(source, hardneg.ReadOptions(relevance_column=column, relevant_from=bar))
    assert found.positives.lengths.tolist() == [int(value >= bar) for value in values]


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_column_that_was_named_is_asked_for_its_threshold(tmp_path: Path, container: str) -> None:
    source = held(tmp_path, container, "score", FRACTIONS)
    with pytest.raises(DataError, match="it is not known from which grade on a pair is a positive"):
        hardneg.read_pairs(source, hardneg.ReadOptions(relevance_column="score"))


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_group_does_not_hide_the_grades(tmp_path: Path, container: str) -> None:
    source = held(tmp_path, container, "score", FRACTIONS, group="g")
    for options in (hardneg.ReadOptions(), hardneg.ReadOptions(group_column="group")):
        with pytest.raises(DataError, match="grades the pairs"):
            hardneg.read_pairs(source, options)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    ("column", "values", "positives"),
    [
        ("relevance", (1, 0, 1, 0), [1, 0, 1, 0]),
        ("relevance", (3, 0, 1, 2), [1, 0, 1, 1]),  # as in qrels
        ("relevance", (1.0, 1.0, 1.0, 1.0), [1, 1, 1, 1]),
        ("label", (1, -1, 1, -1), [1, 0, 1, 0]),
        ("label", ("shoes", "lamp", "bag", "bag"), [1, 1, 1, 1]),
        ("label", (4, 76, 3, 1), [1, 1, 1, 1]),
        ("class", (4, 2, 3, 1), [1, 1, 1, 1]),
        ("score", (0.5, 0.5, 0.5, 0.5), [1, 1, 1, 1]),
    ],
)
def test_what_is_clear_is_not_asked_for(
    tmp_path: Path, container: str, column: str, values: tuple[Any, ...], positives: list[int]
) -> None:
    found = hardneg.read_pairs(held(tmp_path, container, column, values))
    assert found.positives.lengths.tolist() == positives
    graded = values == (3, 0, 1, 2)
    assert ["2 pairs have a grade above 0 and below the highest" in note for note in notes_of(found)] == [True] * graded


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_score_beside_negatives_is_that_of_a_teacher(tmp_path: Path, container: str) -> None:
    found = hardneg.read_pairs(held(tmp_path, container, "score", FRACTIONS, negative="other"))
    assert len(found.positives.values) == 4
    assert found.reading["columns"]["not read"] == "score"


def test_labels_in_lists_are_asked_for_as_well() -> None:
    rows = [{"query": "q", "documents": ["a", "b", "c"], "labels": [0.9, 0.2, 0.4]}]
    with pytest.raises(DataError, match="the grades in 'labels' are 0.2, 0.4, 0.9, and it is not known"):
        hardneg.read_pairs(rows)
    assert hardneg.read_pairs(rows, hardneg.ReadOptions(relevant_from=0.5)).positives.lengths.tolist() == [1]
    assert hardneg.read_pairs([rows[0] | {"labels": [2, 0, 1]}]).positives.lengths.tolist() == [2]
