"""Pairs by whole columns: a block of rows at a time, with the result that the rows have one by one.

What may be wrong, or needs more than columns of texts and numbers, is left to the rows, which say what is wrong and where.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from hardneg.data.builder import Builder, Happened, grade_of, label_of
from hardneg.data.columns import as_number
from hardneg.data.labels import Grades, as_judgement
from hardneg.data.options import ReadOptions
from hardneg.data.text_batches import as_texts, blank, distinct, interleaved, spans, taken
from hardneg.errors import DataError
from hardneg.storage.arrays import Int
from hardneg.storage.arrow import numbers, strings

_STAGES = 8  # steps of a row, in the order in which a row counts what it finds


@dataclass(frozen=True)
class PairColumns:
    """What the columns of pairs are to them, by name; None for what there is not.

    Attributes:
        query, positive, id, document_id, relevance, group: names of columns.
        negatives: names of the columns of negatives.
        known: names of all columns that rows may have.
    """

    query: str
    positive: str
    id: str | None
    document_id: str | None
    relevance: str | None
    group: str | None
    negatives: tuple[str, ...]
    known: frozenset[str] = field(default_factory=frozenset)


@dataclass
class _Found:
    """The columns of a block: texts and ids `[n]`, the negatives by column, labels and grades of the rows."""

    queries: pa.Array
    positives: pa.Array
    ids: pa.Array | None
    document_ids: pa.Array | None
    negatives: list[pa.Array]
    groups: list[str | None] | None
    grades: list[float | None] | None


def add_pairs(builder: Builder, options: ReadOptions, columns: PairColumns, table: pa.Table, grades: Grades) -> bool:
    """Add the rows of a table, and their grades; False if it is to be read row by row. Nothing was added then."""
    found = _found(columns, table, options)
    if found is None:
        return False
    # A row adds its positive and then its negatives; what is blank is left out.
    several = interleaved([found.positives, *found.negatives])
    width = 1 + len(found.negatives)
    empty = blank(several)
    kept = np.flatnonzero(~empty)
    owners, is_positive = kept // width, kept % width == 0
    document_ids = found.document_ids
    if document_ids is not None:
        if width > 1:
            return False
        document_ids = taken(document_ids, kept)
    queries = builder.look_up("query", found.queries, ids=found.ids)
    documents = builder.look_up("document", taken(several, kept), ids=document_ids)
    if queries is None or documents is None:
        return False
    asked, happened = builder.add_many("query", queries, found.groups)
    groups = found.groups
    labels = (
        None
        if groups is None
        else [groups[i] if own else None for i, own in zip(owners.tolist(), is_positive.tolist(), strict=True)]
    )
    answers, of_documents = builder.add_many("document", documents, labels)
    order: Happened = [(at * width * _STAGES, note, by) for at, note, by in happened]
    order += [(int(kept[at]) * _STAGES + 4, note, by) for at, note, by in of_documents]
    blanks = np.flatnonzero(empty[::width])
    if len(blanks):
        order.append((int(blanks[0]) * width * _STAGES + 3, "blank_positives", len(blanks)))
    _relate(builder, options, found, (asked[owners], answers), is_positive, owners, order, width)
    builder.count_all(order)
    if found.grades is not None:
        grades.add_many(np.array(found.grades, np.float64))
    return True


def add_documents(
    builder: Builder, table: pa.Table, text: str, id: str | None, title: str | None, group: str | None
) -> bool:
    """Add the documents in these columns of a table; False if it is to be read row by row. Nothing was added then."""
    present = set(table.column_names)
    if len(present) < table.num_columns or not {name for name in (text, id, group) if name is not None} <= present:
        return False
    texts, ids, titles = as_texts(table.column(text)), None, None
    groups: list[str | None] | None = None
    if id is not None:
        ids = _ids(table.column(id))
    if title in present:
        titles = _titles(table.column(title))
    if group is not None:
        groups = _labels(table.column(group))
    if texts is None or any(
        value is None for value, name in ((ids, id), (groups, group), (titles, title)) if name in present
    ):
        return False
    arrivals = builder.look_up("document", texts, ids=ids, titles=titles)
    if arrivals is None:
        return False
    builder.count_all(builder.add_many("document", arrivals, groups)[1])
    return True


def add_queries(builder: Builder, table: pa.Table, text: str, id: str) -> bool:
    """Add the queries in these columns of a table; False if it is to be read row by row. Nothing was added then."""
    if len(set(table.column_names)) < table.num_columns or not {text, id} <= set(table.column_names):
        return False
    texts, ids = as_texts(table.column(text)), _ids(table.column(id))
    queries = None if texts is None or ids is None else builder.look_up("query", texts, ids=ids)
    if queries is None:
        return False
    builder.count_all(builder.add_many("query", queries)[1])
    return True


def _titles(column: pa.ChunkedArray) -> pa.Array | None:
    """Titles, empty where there is none; None if they are no texts."""
    texts = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return as_texts(column.fill_null(strings([""]).cast(column.type)[0]) if texts and column.null_count else column)


def _labels(column: pa.ChunkedArray) -> list[str | None] | None:
    try:
        return _each(column, _label)
    except DataError:  # the row in which it is will be named
        return None


def _relate(
    builder: Builder,
    options: ReadOptions,
    found: _Found,
    pairs: tuple[Int, Int],
    is_positive: np.ndarray,
    owners: Int,
    order: Happened,
    width: int,
) -> None:
    """Relate the queries to their positives and their own negatives."""
    queries, documents = pairs
    scores = np.where(is_positive, 1.0, 0.0)
    said = is_positive.copy()
    if found.grades is not None:
        graded = np.array([np.nan if grade is None else grade for grade in found.grades])
        silent = np.flatnonzero(np.isnan(graded))
        if len(silent):
            order.append((int(silent[0]) * width * _STAGES + 2, "grades_that_say_nothing", len(silent)))
        scores[is_positive] = graded[owners[is_positive]]
        said &= ~np.isnan(scores)
    if options.negatives == "judged":
        said |= ~is_positive
    elif options.negatives == "candidates":
        builder.give_many(queries[~is_positive], documents[~is_positive])
    builder.relate_many(queries[said], documents[said], scores[said])


def _found(columns: PairColumns, table: pa.Table, options: ReadOptions) -> _Found | None:
    """The columns of a block; None if some are not what can be read as columns."""
    if not set(table.column_names) <= columns.known or len(set(table.column_names)) < table.num_columns:
        return None
    read: list[str | None] = [columns.query, columns.positive, *columns.negatives]
    read += [columns.id, columns.document_id, columns.group, columns.relevance]
    if not {name for name in read if name is not None} <= set(table.column_names):
        return None
    queries, positives, *negatives = (
        as_texts(table.column(name)) for name in (columns.query, columns.positive, *columns.negatives)
    )
    ids, document_ids = (
        None if name is None else _ids(table.column(name)) for name in (columns.id, columns.document_id)
    )
    groups: list[str | None] | None = None
    grades: list[float | None] | None = None
    try:
        if columns.group is not None:
            groups = _labels(table.column(columns.group))
        if columns.relevance is not None:
            grades = _each(table.column(columns.relevance), lambda value: _grade(value, options.relevant_from))
    except DataError:  # the row in which it is will be named
        return None
    lacks = [
        value is None and name is not None
        for value, name in (
            (ids, columns.id),
            (document_ids, columns.document_id),
            (groups, columns.group),
            (grades, columns.relevance),
        )
    ]
    if queries is None or positives is None or any(each is None for each in negatives) or any(lacks):
        return None
    return _Found(queries, positives, ids, document_ids, negatives, groups, grades)


def _ids(column: pa.ChunkedArray) -> pa.Array | None:
    """Ids as texts; None if some are missing or empty, or neither texts nor integers."""
    if pa.types.is_integer(column.type) and not column.null_count:
        return strings([str(value) for value in column.to_pylist()])
    texts = as_texts(column)
    return None if texts is None or not (np.diff(spans(texts)[0]) > 0).all() else texts


def _each(column: pa.ChunkedArray, meaning: Callable[[Any], Any]) -> list[Any] | None:
    """What each value means, asked once for equal ones; None for values of other kinds than texts and numbers."""
    kind = column.type
    if pa.types.is_floating(kind) and column.null_count == 0:
        values = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
        return [meaning(value) for value in values.to_pylist()]
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        if column.null_count:
            return None
        return [meaning(value) for value in column.to_pylist()]
    texts = as_texts(column)
    if texts is None:
        return None
    numbered, firsts = distinct(texts)
    of_value = [meaning(value) for value in texts.take(numbers(firsts)).to_pylist()]
    return [of_value[number] for number in numbered.tolist()]


def _label(value: Any) -> str | None:
    if isinstance(value, float):
        raise DataError("a whole number that Arrow took for another one would be another label")
    return None if value == "" else label_of(value, "here")


def _grade(value: Any, relevant_from: float | None) -> float | None:
    grade = as_judgement(value)
    return grade_of(as_number(value if grade is None else grade, "grade", "here"), relevant_from)
