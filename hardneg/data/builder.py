"""`Builder` collects the queries, documents and judgements of a dataset one by one, and makes and checks their ids.

With a folder, texts are written to disk in batches as they arrive, and only some dozen bytes per row stay in memory.
Without one, the texts stay in memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hardneg.data.dataset_files import DatasetContents, labels_digest, read_dataset, write_dataset
from hardneg.data.item_column import Arrivals, ItemColumn
from hardneg.data.joined import join_positives
from hardneg.data.judgements import Judgements, in_order
from hardneg.data.picture_store import PictureStore
from hardneg.data.texts import shown
from hardneg.errors import DataError
from hardneg.progress import Advance
from hardneg.storage.arrays import Int

_NAMED_GROUPS = 10_000  # of more groups the names are not kept: they are pieces of documents, not kinds of queries

_GROUP_NAME = 100  # characters of a group's name that are kept

_TOLD_AT_ONCE = 1024  # texts of which the progress is told at once

Happened = list[tuple[int, str, int]]  # of each note: where it was first due, its name, and how often it was


class Builder:
    """Collects a dataset. `Pairs.from_contents(builder.finish(name))` is the result.

    Every text has a row number, from 0, which the methods that add texts return. `where` is the place of a text in the
    source, for messages.

    Args:
        folder: folder to write the dataset to; None keeps it in memory.
        advance: is told how many texts were read, and 0 at the end, as in `hardneg.progress`.
        group_positives: make groups of what positives connect (see `ReadOptions`).

    >>> builder = Builder(None)
    >>> builder.add_query("q", "capital of France?", where="line 1"), builder.add_document("d", "Paris", where="line 1")
    (0, 0)
    >>> builder.relate(0, 0, 1.0)
    """

    def __init__(
        self, folder: Path | None, advance: Advance = lambda count: None, group_positives: bool = False
    ) -> None:
        self.folder, self.group_positives = folder, group_positives
        self._advance = advance
        self._untold = 0  # texts read since `advance` was called
        self.queries = ItemColumn("query", False, folder / "queries.arrow" if folder else None)
        self.documents = ItemColumn("document", True, folder / "corpus.arrow" if folder else None)
        self.relations = array("q"), array("q"), array("d")  # queries, documents, grades
        self.given = array("q"), array("q")  # queries, documents: candidates that the source brings along
        self.groups: dict[Hashable, int] = {}
        self.query_groups, self.document_groups = (
            array("q"),
            array("q"),
        )  # of each row, -1 for none, up to the last that has one
        self.notes: dict[str, int] = {}
        self.columns: dict[str, str] = {}  # what each column of the source was taken for
        self.format = ""  # what the source was taken for
        self._corpus: array[int] | None = None  # row of each document in the files of documents, where these are others
        self._corpus_start = 0
        self._store: PictureStore | None = None

    def hold_pictures(self, kind: str) -> None:
        """Let the `query`s or the `document`s be pictures, texts, or both. Call it before the first of them is added.

        Raises:
            DataError: there are texts already.
        """
        column = self.queries if kind == "query" else self.documents
        if column.pictures:
            return
        if column.source_rows:
            raise DataError(f"the {kind} texts of this source cannot be followed by pictures: give the pictures alone")
        column.open(pictures=True)

    @property
    def store(self) -> PictureStore:
        """Keeps the bytes of pictures that are in no file of their own: in the folder of the dataset, or in a temporary one."""
        if self._store is None:
            self._store = PictureStore(self.folder)
        return self._store

    def add_query(self, id: str | None, text: Any, *, group: Any = None, where: str) -> int:
        """Add a query, or find it if it is known; returns its row.

        Without an id, the query gets one, and queries with equal texts are one query. DataError if the text is neither
        a string nor None, or if the id is known with another text.
        """
        return self._add(self.queries, self.query_groups, id, "", text, group, where)

    def add_document(self, id: str | None, text: Any, *, title: Any = "", group: Any = None, where: str) -> int:
        """Add a document, or find it if it is known; returns its row. The rules for queries hold here as well."""
        at = self.documents.source_rows - self._corpus_start
        row = self._add(self.documents, self.document_groups, id, _text(title, "title", where), text, group, where)
        if self._corpus is not None and _entry(self._corpus, row) < 0:
            self._corpus[row] = at
        return row

    def look_up(
        self, kind: str, texts: pa.Array, *, ids: pa.Array | None = None, titles: pa.Array | None = None
    ) -> Arrivals | None:
        """Find out what would be new of many `query` or `document` texts, large strings `[n]` without nulls; nothing is changed.

        Returns:
            What `add_many` takes, before anything else is added; None: these must be added one by one, because some of them
            may be wrong or change the ids of earlier ones.
        """
        return (self.queries if kind == "query" else self.documents).look_up(ids, titles, texts)

    def add_many(self, kind: str, arrivals: Arrivals, groups: list[str | None] | None = None) -> tuple[Int, Happened]:
        """Add what was looked up: as if the texts were added one by one, but whole columns at a time.

        Args:
            kind: `query` or `document`.
            arrivals: what `look_up` returned.
            groups: the label of each text, None where it has none.

        Returns:
            int64 `[n]`, the row of each text; and what is to be counted, for `count_all`.
        """
        column = self.queries if kind == "query" else self.documents
        rows, corpus_row = arrivals.rows, column.source_rows - self._corpus_start
        keys = column.add_many(arrivals)
        happened: Happened = []
        empty = arrivals.new[keys == 0]
        if len(empty):
            happened.append((int(empty[0]), f"empty_{kind}_texts", len(empty)))
        if len(arrivals.new) < len(rows):
            old = np.ones(len(rows), bool)
            old[arrivals.new] = False
            happened.append((int(old.argmax()), f"repeated_{kind}_rows", int(old.sum())))
        if kind == "document" and self._corpus is not None and len(rows):
            _set_missing(self._corpus, rows, corpus_row + np.arange(len(rows)))
        if groups is not None:
            named = np.array([i for i, label in enumerate(groups) if label is not None], np.int64)
            numbered = [self.groups.setdefault(label, len(self.groups)) for label in groups if label is not None]
            held = self.query_groups if kind == "query" else self.document_groups
            conflicts = _set_missing(held, rows[named], np.array(numbered, np.int64))
            if conflicts.any():
                first = int(named[conflicts.argmax()])
                happened.append((first, f"{kind}_group_conflicts", int(conflicts.sum())))
        self._tell(len(rows))
        return rows, happened

    def _tell(self, count: int) -> None:
        """Tell the progress of so many more texts, not of each alone."""
        self._untold += count
        if self._untold >= _TOLD_AT_ONCE:
            self._advance(self._untold)
            self._untold = 0

    def count_all(self, happened: Happened) -> None:
        """Increase the counters in the notes, which stand in the order in which they were first due."""
        for _, note, by in sorted(happened, key=lambda each: each[0]):
            self.count(note, by)

    def relate_many(self, queries: Int, documents: Int, grades: np.ndarray) -> None:
        """`relate` for many pairs, all of shape `[n]`."""
        self.relations[0].frombytes(queries.astype(np.int64).tobytes())
        self.relations[1].frombytes(documents.astype(np.int64).tobytes())
        self.relations[2].frombytes(grades.astype(np.float64).tobytes())

    def give_many(self, queries: Int, documents: Int) -> None:
        """`give` for many pairs, int64 `[n]`."""
        for column, values in zip(self.given, (queries, documents), strict=True):
            column.frombytes(np.ascontiguousarray(values, np.int64).tobytes())

    def begin_corpus(self) -> None:
        """From here on, documents come from files of documents. Their order counts beside that of the source's own."""
        self._corpus_start = self.documents.source_rows
        self._corpus = array("q") if self._corpus_start else None

    def _add(
        self, column: ItemColumn, groups: array[int], id: str | None, title: str, text: Any, group: Any, where: str
    ) -> int:
        self._tell(1)
        text = _text(text, column.kind, where)
        row, new = column.add(id, title, text, where)
        if new and column.keys[row] == 0:
            self.count(f"empty_{column.kind}_texts")
        if not new:
            self.count(f"repeated_{column.kind}_rows")
        if group is not None and not (isinstance(group, str) and group == ""):
            number = self.groups.setdefault(label_of(group, where), len(self.groups))
            known = _entry(groups, row)
            if known < 0:
                groups[row] = number
            elif known != number:
                # A text can have only one group: the first one stays, and the conflict is counted.
                self.count(f"{column.kind}_group_conflicts")
        return row

    def count(self, note: str, by: int = 1) -> None:
        """Increase a counter in the dataset's notes."""
        self.notes[note] = self.notes.get(note, 0) + by

    def relate(self, query: int, document: int, score: float) -> None:
        """Judge a document for a query, both given by their rows: relevant if `score` > 0, which is the grade, or else not."""
        queries, documents, grades = self.relations
        queries.append(query)
        documents.append(document)
        grades.append(score)

    def give(self, query: int, document: int) -> None:
        """Remember that the source brings this document along for the query."""
        self.given[0].append(query)
        self.given[1].append(document)

    def document_of(self, id: str, where: str) -> int:
        """The row of the document with this id; DataError if there is none."""
        row = self.documents.ids.find(id)
        if row is None:
            raise DataError(f"{where}: the document id {shown(id)} is unknown: it is not in the corpus")
        return row

    def judged(self, grade: float, relevant_from: float | None) -> float | None:
        """The grade of a positive, 0 for that of a judged negative, None for one that says neither.

        Positives have a grade of `relevant_from` or more, or above 0 if it is None; those below 0 count as 1. Lower grades
        above 0 say neither, and are counted.
        """
        found = grade_of(grade, relevant_from)
        if found is None:
            self.count("grades_that_say_nothing")
        return found

    def set_group(self, kind: str, row: int, group: Any) -> None:
        """Set the group of a `query` or a `document`, given by its row."""
        groups = self.query_groups if kind == "query" else self.document_groups
        _entry(groups, row)
        groups[row] = self.groups.setdefault(str(group), len(self.groups))

    def finish(self, name: str, keep_queries: np.ndarray | None = None) -> DatasetContents:
        """Finish the dataset, write it to the folder if there is one, and return it for `Pairs.from_contents`.

        Args:
            name: name of the source.
            keep_queries: int64 rows of the queries to keep, such as those of a split; None keeps all.

        Raises:
            DataError: there are no queries or no documents.
        """
        if not len(self.documents):
            raise DataError(f"{name}: the corpus is empty, so there is nothing to mine negatives from")
        total, corpus = len(self.queries), len(self.documents)
        kept = np.arange(total) if keep_queries is None else keep_queries
        if len(kept) == 0:
            raise DataError(f"{name}: there are no queries, so there is nothing to mine negatives for")
        query_keys = self.queries.keys.finish()
        judged = Judgements.of(self.relations, total, corpus, query_keys != 0)
        if judged.contradicted:
            self.count("contradicting_judgements", judged.contradicted)
        arrays = {
            "kept": kept,
            **judged.arrays(),
            "query_keys": query_keys,
            "document_keys": self.documents.keys.finish(),
            "body_keys": self.documents.body_keys.finish(),
            "query_groups": self._grouped(self.query_groups, total),
            "document_groups": self._grouped(self.document_groups, corpus),
            "query_rows": self.queries.rows.finish(),
            "document_rows": self.documents.rows.finish(),
        }
        if self.group_positives:
            arrays |= self._joined(name, judged, arrays)
        arrays |= in_order(self.given, total, corpus)
        if self._corpus is not None:
            arrays["corpus_rows"] = _numbers(self._corpus, corpus)
        head = {
            "name": name,
            "source_query_rows": self.queries.source_rows,
            "source_document_rows": self.documents.source_rows,
            **({} if self._corpus is None else {"source_corpus_rows": self.documents.source_rows - self._corpus_start}),
            "digests": {"queries": self.queries.sha256(), "documents": self.documents.sha256()},
            "labels": labels_digest(arrays),
            "notes": self.notes,
            "reading": self._reading(),
        }
        if 0 < len(self.groups) <= _NAMED_GROUPS:
            head["group_names"] = [_name(group) for group in self.groups]
        return self._written(head, arrays)

    def _written(self, head: dict[str, Any], arrays: dict[str, np.ndarray]) -> DatasetContents:
        """Finish the texts and the pictures, and write the rest to the folder if there is one."""
        texts = self.queries.finish(), self.documents.finish()
        ids = {"query": self.queries.ids.finish(), "document": self.documents.ids.finish()}
        if self._store is not None:
            self._store.finish()
        if self._untold:
            self._advance(self._untold)
        self._advance(0)  # this is the end
        if self.folder is not None:
            write_dataset(self.folder, head, arrays, ids)
            return read_dataset(self.folder)  # with its labels mapped
        return DatasetContents(head, arrays, ids, texts)

    def _reading(self) -> dict[str, Any]:
        """What the source was taken for."""
        groups = {"groups": "what positives connect"} if self.group_positives else {}
        return {"format": self.format, "columns": self.columns, **groups}

    def _joined(self, name: str, judged: Judgements, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The groups of what positives connect, by the names of the arrays they stand in."""
        if self.groups:
            raise DataError(
                f"{name}: it has groups of its own, so none can be made of its positives: leave out group_positives "
                f"(--group-positives), or the column of groups (group_column='', --group-column '')"
            )
        joined = join_positives(judged.positives, judged.negatives, arrays["query_keys"], arrays["document_keys"])
        for note, count in joined.notes.items():
            self.count(note, count)
        return {"query_groups": joined.query_groups, "document_groups": joined.document_groups}

    def _grouped(self, groups: array[int], size: int) -> np.ndarray:
        """int64 `[size]`: the group of each row; empty if the dataset has no groups."""
        return _numbers(groups, size) if self.groups else np.empty(0, np.int64)


def grade_of(grade: float, relevant_from: float | None) -> float | None:
    """`Builder.judged` without its count."""
    if grade <= 0 and (relevant_from is None or grade < relevant_from):
        return 0.0
    if relevant_from is None or grade >= relevant_from:
        return grade if grade > 0 else 1.0
    return None


def _set_missing(column: array[int], rows: Int, values: Int) -> np.ndarray:
    """Set the entries of these rows that are -1, each to its first value; bool `[n]`: where another one stays."""
    if not len(rows):
        return np.zeros(0, bool)
    _entry(column, int(rows.max()))
    entries = np.frombuffer(column, np.int64)
    missing = entries[rows] < 0
    entries[rows[missing][::-1]] = values[missing][::-1]  # the last one that is set stays: the first value
    other: np.ndarray = entries[rows] != values
    return other


def _text(value: Any, what: str, where: str) -> str:
    """The value of a text field. None means empty; anything else that is not a string is an error, never converted."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    raise DataError(f"{where}: the {what} is of type {type(value).__name__} ({shown(value)}), expected text")


def label_of(group: Any, where: str) -> str:
    """The label of a group as text. NaN stands for a missing label in some files, but equal labels make a group."""
    try:
        if group == group:
            return str(group)
    except (ValueError, RecursionError):  # nested too deeply, or an integer of thousands of digits
        pass
    raise DataError(
        f"{where}: the group is {shown(group)}, expected text or a number; leave it out where there is none"
    )


def _name(group: Hashable) -> str:
    """The name of a group as it is kept: shortened, and without halves of characters, which no file can hold."""
    return str(group)[:_GROUP_NAME].encode("utf-8", "replace").decode()


def _entry(column: array[int], row: int) -> int:
    """The entry of a row in a column, which is made longer by entries of -1 if it ends before."""
    if row >= len(column):
        column.extend([-1] * (row + 1 - len(column)))
    return column[row]


def _numbers(column: array[int], n: int) -> np.ndarray:
    """int64 `[n]`: the entry of each row, -1 after the last."""
    out = np.full(n, -1, np.int64)
    out[: len(column)] = column
    return out
