"""Several columns that are read as one text, and columns that are not read, in every container."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import hardneg
from hardneg.data.inspect import reasons
from hardneg.data.readers.pair_rows import PairRows
from hardneg.errors import DataError

from .test_grades import CONTAINERS, held

TITLES = ("Lamp", "", "Bag", "  ")
WANTED = ["Lamp text 0", "text 1", "Bag text 2", "text 3"]


def shop(folder: Path, container: str) -> Any:
    """Products: a title, which may be blank, and a description."""
    return held(folder, "jsonl" if container == "rows one by one" else container, "title", TITLES, price="3.50")


@pytest.mark.parametrize("container", [name for name in CONTAINERS if name != "rows one by one"])
@pytest.mark.parametrize("one_by_one", [False, True])
def test_several_columns_are_one_text(
    tmp_path: Path, container: str, one_by_one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if one_by_one:
        monkeypatch.setattr(PairRows, "take", lambda *given: False)
    source = shop(tmp_path, container)
    found = hardneg.read_pairs(source, hardneg.ReadOptions(positive_column="title, positive"))
    assert list(found.documents) == WANTED
    assert found.positives.values.tolist() == [0, 1, 2, 3]
    assert found.reading["columns"] == {"query": "query", "positive": "title, positive", "not read": "price"}
    asked = hardneg.read_pairs(source, hardneg.ReadOptions(query_column="title,query", positive_column="positive"))
    assert list(asked.queries) == ["Lamp q0", "q1", "Bag q2", "q3"]
    with pytest.raises(DataError, match="there is no column 'titel'. Did you mean 'title'"):
        hardneg.read_pairs(source, hardneg.ReadOptions(positive_column="titel,positive"))


@pytest.mark.parametrize("container", [name for name in CONTAINERS if name != "rows one by one"])
def test_several_columns_of_a_corpus_are_one_text(tmp_path: Path, container: str) -> None:
    rows = [{"query": "q", "positive": "p"}]
    source: Any = shop(tmp_path, container)
    options = hardneg.ReadOptions(text_column="title,positive")
    found = hardneg.read_pairs(rows, options, corpus=source)
    assert list(found.documents)[1:] == WANTED


def test_the_whole_name_comes_first_and_numbers_are_no_texts(tmp_path: Path) -> None:
    rows = [{"query": "q", "a,b": "whole", "a": "x", "b": "y", "n": 3}]
    assert list(hardneg.read_pairs(rows, hardneg.ReadOptions(positive_column="a,b")).documents) == ["whole"]
    with pytest.raises(DataError, match="the column 'n' is 3, expected text"):
        hardneg.read_pairs(rows, hardneg.ReadOptions(positive_column="a,n"))


@pytest.mark.parametrize("container", [name for name in CONTAINERS if name != "rows one by one"])
def test_what_is_not_read_is_listed(tmp_path: Path, container: str) -> None:
    source = held(tmp_path, container, "category", ["lamp", "bag"] * 20, price="3.50", seller="s")
    found = hardneg.read_pairs(source)
    columns = found.reading["columns"]
    assert columns["not read"] == "price, seller, category"
    assert columns["perhaps groups"] == "category"
    assert "--group-column would make groups of it" in reasons(found.reading, {})["perhaps groups"]
    grouped = hardneg.read_pairs(source, hardneg.ReadOptions(group_column="category")).reading["columns"]
    assert (grouped["not read"], grouped["group"], "perhaps groups" in grouped) == ("price, seller", "category", False)
