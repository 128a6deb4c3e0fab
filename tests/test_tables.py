"""Tables in memory are read like files: datasets, data frames, Arrow tables, columns and rows."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict

from hardneg import DataError, Pairs, ReadOptions, UsageError, read_pairs

ROWS = [
    {"question": "q one", "answer": "a one", "negatives": ["n one", "n two"]},
    {"question": "q two", "answer": "a two", "negatives": []},
    {"question": "q one", "answer": "another", "negatives": ["n one"]},
]

FORMS: dict[str, Callable[[], Any]] = {
    "rows": lambda: ROWS,
    "columns": lambda: {name: [row[name] for row in ROWS] for name in ROWS[0]},
    "dataset": lambda: Dataset.from_list(ROWS),
    "formatted dataset": lambda: Dataset.from_list(ROWS).with_format("numpy"),
    "split": lambda: DatasetDict(train=Dataset.from_list(ROWS)),
    "stream": lambda: Dataset.from_list(ROWS).to_iterable_dataset(),
    "pandas": lambda: pd.DataFrame(ROWS, index=[7, 7, 9]),
    "polars": lambda: pl.DataFrame(ROWS),
    "lazy polars": lambda: pl.DataFrame(ROWS).lazy(),
    "arrow": lambda: pa.Table.from_pylist(ROWS),
}


def content(pairs: Pairs) -> dict[str, Any]:
    texts = pairs.documents.slice(0, len(pairs.document_ids))
    return {
        "queries": pairs.queries.slice(0, len(pairs)),
        "documents": texts,
        "positives": [[texts[d] for d in row if d >= 0] for row in pairs.positives.padded()],
        "negatives": [[texts[d] for d in row if d >= 0] for row in pairs.judged_negatives.padded()],
    }


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_file(form: str, tmp_path: Path) -> None:
    Dataset.from_list(ROWS).to_json(str(tmp_path / "rows.jsonl"))
    expected = content(read_pairs(str(tmp_path / "rows.jsonl")))
    assert expected["queries"] == ["q one", "q two"]
    assert content(read_pairs(FORMS[form]())) == expected


def test_rows_without_names() -> None:
    found = content(read_pairs([("q", "a"), ("r", "b", "n", "m")]))
    assert found["positives"] == [["a"], ["b"]]
    assert found["documents"] == ["a", "b", "n", "m"]


@pytest.mark.parametrize(
    "corpus",
    [
        ["x", "y"], np.array(["x", "y"]), pd.Series(["x", "y"], index=[3, 3]), pl.Series(["x", "y"]), [{"text": "x"}, {"text": "y"}],
        Dataset.from_list([{"text": "x"}, {"text": "y"}]), {"text": ["x", "y"]}, Dataset.from_list([{"t": "x"}, {"t": "y"}])["t"],
    ],
)  # fmt: skip
def test_a_corpus_in_memory(corpus: Any) -> None:
    assert content(read_pairs([("q", "a")], corpus=corpus))["documents"] == ["a", "x", "y"]


def test_missing_cells_of_pandas() -> None:
    frame = pd.DataFrame(
        {"query": ["q", "r", "s"], "positive": ["a", None, float("nan")], "label": [1.0, float("nan"), 2.0]}
    )
    pairs = read_pairs(frame, ReadOptions(group_column="label"))
    assert pairs.positives.lengths.tolist() == [1, 0, 0]
    assert pairs.query_groups is not None
    assert (pairs.query_groups >= 0).tolist() == [True, False, True]


def test_columns_are_named_by_options() -> None:
    options = ReadOptions(query_column="b", positive_column="a")
    assert content(read_pairs([{"a": "document", "b": "query"}], options))["queries"] == ["query"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (5, "is a int: give a path"),
        (np.eye(3), "is a ndarray"),
        (["a", "b"], r"row 0: expected a mapping with named columns, or a tuple \(query, positive\), got 'a'"),
        ([("a",)], "row 0: expected a mapping"),
        ({"a": [1], "b": [1, 2]}, r"columns of different lengths \(a 1, b 2\)"),
        ([], "there are no rows"),
        ([{"query": "q", "positive": "p"}, {"query": "q", "positive": 3}], "the source, row 1"),
        (pd.DataFrame([["q", "a", "b"]], columns=["query", "positive", "positive"]), "several columns 'positive'"),
        ({"query": pd.DataFrame({"q": ["x"]}), "positive": ["y"]}, "query is a table of 1 columns"),
        (DatasetDict(test=Dataset.from_list(ROWS)), "no split 'train'"),
    ],
)
def test_errors(source: Any, message: str) -> None:
    with pytest.raises((DataError, UsageError), match=message):
        read_pairs(source)


@pytest.mark.parametrize(
    ("corpus", "message"), [(["x", 3], "the corpus, row 1: expected a text, got 3"), (7, "the corpus is a single|int")]
)
def test_errors_of_a_corpus(corpus: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_pairs([("q", "a")], corpus=corpus)


def test_what_only_later_rows_have_is_read() -> None:
    found = read_pairs([{"query": "a", "positive": "pa"}, {"query": "b", "positive": "pb", "negative": "nb"}])
    assert content(found)["documents"] == ["pa", "pb", "nb"]
    with pytest.raises(DataError, match="row 0: the label is None"):
        read_pairs([{"query": "a", "positive": "pa"}, {"query": "b", "positive": "pb", "label": 0}])
    mixed = read_pairs([("a", "pa"), {"query": "b", "positive": "pb", "negatives": ["n"]}])
    assert "n" in content(mixed)["documents"]


def test_named_tuples_are_read_by_name() -> None:
    Row = namedtuple("Row", ["positive", "query"])
    assert content(read_pairs([Row("answer", "question")]))["queries"] == ["question"]


def test_a_corpus_file_beside_a_table(tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text('{"text": "x"}\n')
    assert content(read_pairs([("q", "a")], corpus=tmp_path / "more.jsonl"))["documents"] == ["a", "x"]


def test_a_dataset_by_name(tmp_path: Path) -> None:
    """A saved folder; a name that cannot be reached is an error of one line."""
    DatasetDict(train=Dataset.from_list(ROWS)).save_to_disk(str(tmp_path / "saved"))
    assert content(read_pairs(f"hf:{tmp_path / 'saved'}")) == content(read_pairs(ROWS))
    with pytest.raises(DataError, match=r"hf:nobody/nothing cannot be loaded .*Give the name") as caught:
        read_pairs("hf:nobody/nothing")
    assert "\n" not in str(caught.value)
