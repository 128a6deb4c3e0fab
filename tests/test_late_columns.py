"""Columns that only later rows have, objects of columns that are not regular, grades that are not read, judgements that disagree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import hardneg
from hardneg.data.notes import notes_of
from hardneg.errors import DataError

ROWS = [{"query": f"q{i}", "positive": f"p{i}"} for i in range(5)]


def read(folder: Path, rows: Any, **options: Any) -> hardneg.Pairs:
    path = folder / ("p.jsonl" if isinstance(rows, list) else "p.json")
    path.write_text("\n".join(map(json.dumps, rows)) if isinstance(rows, list) else json.dumps(rows))
    return hardneg.read_pairs(str(path), hardneg.ReadOptions(**options))


@pytest.mark.parametrize(
    ("column", "value", "option"),
    [
        ("label", 0, "group"),
        ("relevant", 0, "relevance"),
        ("score", 0.5, "relevance"),
        ("id", "7", "id"),
        ("doc_id", "7", "document-id"),
    ],
)
def test_a_column_that_begins_late_is_not_passed_over(tmp_path: Path, column: str, value: Any, option: str) -> None:
    rows = [*ROWS, {"query": "q1", "positive": "wrong", column: value}]
    with pytest.raises(
        DataError, match=rf"line 6: the column '{column}' is not in the first row.*--{option}-column ''"
    ):
        read(tmp_path, rows)
    assert len(read(tmp_path, rows, **{option.replace("-", "_") + "_column": ""})) == 5


def test_the_same_between_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("query,positive\nq0,p0\n")
    (tmp_path / "b.csv").write_text("query,positive,label\nq1,p1,0\n")
    with pytest.raises(DataError, match=r"b\.csv.*the column 'label' is not in the first row"):
        hardneg.read_pairs(str(tmp_path / "*.csv"))


def test_negatives_may_begin_late(tmp_path: Path) -> None:
    pairs = read(tmp_path, [*ROWS, {"query": "q9", "positive": "x", "negative": "n"}], negatives="judged")
    assert pairs.judged_negatives.values.tolist() == [list(pairs.documents).index("n")]
    assert pairs.reading["columns"]["negatives"] == "negative"


def test_other_columns_may_begin_late(tmp_path: Path) -> None:
    assert len(read(tmp_path, [*ROWS, {"query": "q9", "positive": "x", "source": "wiki"}])) == 6


@pytest.mark.parametrize(
    "value",
    [
        {"query": ["a", "b"], "positive": ["c", "d"], "source": "wiki"},
        {"query": ["a", "b", "e"], "positive": ["c", "d"]},
        {"question": ["a", "b"], "answer": ["c", "d"], "info": {"by": "me"}},
    ],
)
def test_columns_that_are_not_regular_are_no_single_row(tmp_path: Path, value: dict[str, Any]) -> None:
    for text in (json.dumps(value), json.dumps(value, indent=1)):
        (tmp_path / "p.json").write_text(text)
        with pytest.raises(
            DataError, match=r"one JSON object with \d texts under .* all entries must be lists of that length"
        ):
            hardneg.read_pairs(str(tmp_path / "p.json"))


def test_columns_and_single_rows_are_read(tmp_path: Path) -> None:
    assert len(read(tmp_path, {"query": ["a", "b"], "positive": ["c", "d"]})) == 2
    assert len(read(tmp_path, {"query": ["a", "b"], "positive": "c"})) == 2  # two ways to ask
    assert read(tmp_path, {"query": "a", "pos": ["c", "d"], "neg": ["e", "f"]}).positives.lengths.tolist() == [2]


def test_a_judgement_by_another_name_is_one(tmp_path: Path) -> None:
    rows = [{"query": "a", "positive": text, "is_relevant": text == "c"} for text in "bc"]
    assert [list(read(tmp_path, rows).documents)[i] for i in read(tmp_path, rows).positives.values] == ["c"]


def test_what_is_not_read_and_what_disagrees_is_said(tmp_path: Path) -> None:
    rows = [{"query": q, "positive": "b", "negative": "n", "score": score} for q, score in (("a", 0.0), ("c", 1.0))]
    assert any("1 column of scores or grades is not read" in note for note in notes_of(read(tmp_path, rows)))
    rows = [{"query": "a", "positive": "b", "label": label} for label in (1, 0)]
    assert any("1 pair is a positive and a negative of one query" in note for note in notes_of(read(tmp_path, rows)))
