"""`Pairs`: queries, documents and their labels, as columns. Ids and labels are in memory, texts may be on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hardneg.data.builder import Builder
from hardneg.data.columns import as_id
from hardneg.data.dataset_files import DatasetContents, labels_digest, read_dataset, write_dataset
from hardneg.data.id_rows import IdRows
from hardneg.data.labels import is_blank
from hardneg.data.memory_columns import column_values, label_of, texts_of
from hardneg.data.mixed import Mixed, known_everywhere
from hardneg.data.picture_store import PictureStore
from hardneg.data.texts import BATCH_ROWS, Texts, distinct_keys
from hardneg.errors import DataError
from hardneg.storage.arrays import Int, Ragged, SharedLists
from hardneg.storage.arrow import numbers
from hardneg.storage.files import atomic_path


@dataclass
class Pairs:
    """A dataset to mine: n queries, a corpus of N documents, and the positives of each query.

    The library identifies a query or a document by its row here, an integer from 0. Ids are used in files and messages.

    Attributes:
        query_ids, document_ids: Arrow strings `[n]` and `[N]`, distinct.
        queries, documents: the texts, in the same order.
        positives: for each query, rows of the documents that are relevant to it.
        judged_negatives: for each query, rows of the documents that were judged not relevant to it.
        query_keys: int64 `[n]` keys of the query texts (see `text_key`). Equal texts have equal keys; 0 means empty.
        document_keys, body_keys: int64 `[N]` keys of the documents, with and without the title.
        query_groups, document_groups: int64 group numbers, -1 for no group; None if the dataset has no groups.
        query_rows, document_rows: int64 row of the source that each text first appeared in.
        source_query_rows, source_document_rows: number of rows in the source, repetitions included.
        corpus_rows: int64 `[N]`, the row of each document in the files of documents (`--corpus`) beside a source that has documents
            of its own, -1 for those that are not in them; None: all documents come from one place.
        source_corpus_rows: number of rows in those files.
        given: for each query, rows of the documents that the source brings along as its negatives, in its order (see
            `ReadOptions.negatives`); None: it was not read for them, or has none.
        digests: SHA-256 of the query texts (`queries`), of the document texts (`documents`) and of the labels
            (`labels`).
        name: name of the source, as the user gave it.
        notes: counts of what the reader noticed, such as empty texts.
        positive_grades: float64 `[m]`, the grade of each of `positives.values`; None: all are 1.
        reading: what the source was taken for: its `format`, and its `columns` by role.
        ignored: for each query, documents that were found relevant, and are neither positives nor negatives; None: none.
        dropped: for each query, documents that are no mined negatives; those above are among them; None: none.
        group_names: the name of each group number, cut after 100 characters; empty for none, and for more than 10,000 groups.
        mixed: which source each query and document comes from, if it is a mixture (see `hardneg.mixture`); None: it is of one.

    >>> pairs = Pairs.from_columns(["capital of France?"], ["Paris"], corpus=["Lyon"])
    >>> len(pairs), len(pairs.document_ids), pairs.positives.padded().tolist()
    (1, 2, [[0]])
    """

    query_ids: pa.Array
    document_ids: pa.Array
    queries: Texts
    documents: Texts
    positives: Ragged
    judged_negatives: Ragged
    query_keys: Int
    document_keys: Int
    body_keys: Int
    query_groups: Int | None
    document_groups: Int | None
    query_rows: Int
    document_rows: Int
    source_query_rows: int
    source_document_rows: int
    digests: dict[str, str]
    name: str = ""
    notes: dict[str, int] = field(default_factory=dict)
    reading: dict[str, Any] = field(default_factory=dict)
    positive_grades: NDArray[np.float64] | None = None
    corpus_rows: Int | None = None
    source_corpus_rows: int = 0
    given: Ragged | None = None
    ignored: Ragged | None = None
    dropped: Ragged | None = None
    group_names: tuple[str, ...] = ()
    mixed: Mixed | None = None

    def __len__(self) -> int:
        return len(self.query_ids)

    def __repr__(self) -> str:
        groups = "" if self.query_groups is None else ", with groups"
        groups += "" if self.mixed is None else f", of {len(self.mixed)} sources"
        positives, judged = len(self.positives.values), len(self.judged_negatives.values)
        return (
            f"<Pairs {self.name!r}: {len(self):,} queries, {len(self.document_ids):,} documents, {positives:,} positives, "
            f"{judged:,} judged negatives{groups}>"
        )

    def known_positives(self) -> SharedLists:
        """For each query, its positives and those of all queries with the same folded text.

        If one question appears twice with different answers, neither may get the other's answer as a negative. What is `ignored` of a
        query counts as well: it is relevant, only not used as a positive.
        """
        positives = self.positives
        if self.ignored is not None:
            both = (positives, self.ignored)
            rows, values = (
                np.concatenate(each) for each in ([b.row_numbers() for b in both], [b.values for b in both])
            )
            positives = Ragged.from_pairs(rows, values, len(self))
        distinct, classes = np.unique(distinct_keys(self.query_keys), return_inverse=True)
        if len(distinct) == len(self):
            return SharedLists(positives, np.arange(len(self)))
        classes = classes.ravel()
        lists = Ragged.from_pairs(classes[positives.row_numbers()], positives.values, len(distinct))
        if self.mixed is not None:
            lists = known_everywhere(lists, self.mixed.queries, classes, self.mixed, self.document_keys)
        return SharedLists(lists, classes)

    @cached_property
    def document_rows_of(self) -> IdRows:
        """Finds documents by their ids."""
        return IdRows(self.document_ids)

    @classmethod
    def from_contents(cls, contents: DatasetContents) -> Pairs:
        """The dataset from what `Builder.finish` or `read_dataset` returned."""
        head, arrays, ids, texts = contents.head, contents.arrays, contents.ids, contents.texts
        grouped = len(arrays["document_groups"]) > 0
        grades = arrays.get("positive_grades")
        whole = cls(
            query_ids=ids["query"],
            document_ids=ids["document"],
            queries=texts[0],
            documents=texts[1],
            positives=Ragged(arrays["positive_offsets"], arrays["positive_values"]),
            judged_negatives=Ragged(arrays["negative_offsets"], arrays["negative_values"]),
            query_keys=arrays["query_keys"],
            document_keys=arrays["document_keys"],
            body_keys=arrays["body_keys"],
            query_groups=arrays["query_groups"] if grouped else None,
            document_groups=arrays["document_groups"] if grouped else None,
            query_rows=arrays["query_rows"],
            document_rows=arrays["document_rows"],
            source_query_rows=head["source_query_rows"],
            source_document_rows=head["source_document_rows"],
            # The labels of a part that was saved alone are named after the whole.
            digests={**head["digests"], "labels": head["digests"].get("labels", head["labels"])},
            name=head["name"],
            notes=dict(head["notes"]),
            reading=dict(head.get("reading", {})),
            positive_grades=None if grades is None else grades.view(np.float64),
            corpus_rows=arrays.get("corpus_rows"),
            source_corpus_rows=head.get("source_corpus_rows", 0),
            given=Ragged(arrays["given_offsets"], arrays["given_values"]) if "given_offsets" in arrays else None,
            group_names=tuple(head.get("group_names", ())),
            mixed=_mixed_of(head, arrays),
        )
        kept = arrays["kept"]
        return whole if np.array_equal(kept, np.arange(len(whole))) else whole.of_queries(kept)

    def of_queries(self, rows: Int) -> Pairs:
        """The dataset with these queries only, in this order, and with all documents. The digests stay those of the whole."""
        grades, groups = self.positive_grades, self.query_groups
        return replace(
            self,
            query_ids=self.query_ids.take(numbers(rows)),
            queries=self.queries.select(rows),
            positives=self.positives.take(rows),
            judged_negatives=self.judged_negatives.take(rows),
            query_keys=self.query_keys[rows],
            query_groups=None if groups is None else groups[rows],
            query_rows=self.query_rows[rows],
            positive_grades=None if grades is None else grades[self.positives.places(rows)],
            given=None if self.given is None else self.given.take(rows),
            ignored=None if self.ignored is None else self.ignored.take(rows),
            dropped=None if self.dropped is None else self.dropped.take(rows),
            mixed=None if self.mixed is None else self.mixed.of_queries(rows),
        )

    @classmethod
    def from_columns(
        cls,
        queries: Iterable[str],
        positives: Iterable[str | Iterable[str] | None],
        *,
        corpus: Iterable[str] = (),
        query_ids: Iterable[Any] | None = None,
        groups: Iterable[Any] | None = None,
        corpus_ids: Iterable[Any] | None = None,
        corpus_groups: Iterable[Any] | None = None,
    ) -> Pairs:
        """A dataset from columns in memory: lists, arrays, or Series of pandas or polars, which are taken by position.

        Args:
            queries: one text per row. Rows with equal texts become one query with several positives.
            positives: the relevant text, or list of relevant texts, of each row; None, NaN or "" if there is none.
            corpus: additional documents.
            query_ids: one id per row, if given. Rows with equal ids become one query.
            groups: one label per row, if given. The filter `group` rejects documents in the query's group as negatives.
            corpus_ids, corpus_groups: one id, or label, for each document of `corpus`, if given.

        Raises:
            DataError: there are no queries or no documents, one id has two texts, the columns have different lengths, or a
                column is no list.

        >>> Pairs.from_columns(["q"], [["a", "b"]], corpus=["c"], groups=["x"], corpus_groups=["x"]).document_groups.tolist()
        [0, 0, 0]
        """
        rows = {"queries": queries, "positives": positives, "query_ids": query_ids, "groups": groups}
        more = {"corpus": corpus, "corpus_ids": corpus_ids, "corpus_groups": corpus_groups}
        asked, documents = _aligned(rows, "queries"), _aligned(more, "corpus")
        builder = Builder(None)
        for i, query in enumerate(asked["queries"]):
            where, group, id = f"row {i}", label_of(asked["groups"][i]), asked["query_ids"][i]
            row = builder.add_query(None if id is None else as_id(id, where), query, group=group, where=where)
            for text in texts_of(asked["positives"][i], "positives", where):
                if is_blank(text):
                    builder.count("blank_positives")
                else:
                    builder.relate(row, builder.add_document(None, text, group=group, where=where), 1)
        if documents["corpus"]:
            builder.begin_corpus()
        for i, text in enumerate(documents["corpus"]):
            where, id = f"corpus row {i}", documents["corpus_ids"][i]
            group = label_of(documents["corpus_groups"][i])
            builder.add_document(None if id is None else as_id(id, where), text, group=group, where=where)
        return cls.from_contents(builder.finish("columns"))


def _mixed_of(head: dict[str, Any], arrays: dict[str, np.ndarray]) -> Mixed | None:
    """The sources of a dataset on disk, if it is a mixture."""
    if "mixture" not in head:
        return None
    names, weights = (tuple(head["mixture"][name]) for name in ("names", "weights"))
    return Mixed(names, weights, arrays["query_sources"], arrays["source_starts"])


def _aligned(columns: dict[str, Iterable[Any] | None], first: str) -> dict[str, list[Any]]:
    """The columns as lists of one length, with None in those that are not given."""
    found = {name: None if values is None else column_values(values, name) for name, values in columns.items()}
    count = len(found[first] or [])
    for name, values in found.items():
        if values is not None and len(values) != count:
            raise DataError(f"{name} has {len(values):,} rows, but {first} has {count:,}: give one per row")
    return {name: [None] * count if values is None else values for name, values in found.items()}


def open_pairs(folder: Path) -> Pairs:
    """The dataset that a `Builder` or `save_pairs` wrote to `folder`; RunError if it is missing or damaged."""
    return Pairs.from_contents(read_dataset(folder))


def save_pairs(pairs: Pairs, folder: Path) -> None:
    """Write a dataset to `folder`, from where `open_pairs` can open it."""
    no_groups = np.empty(0, np.int64)
    arrays = {
        "kept": np.arange(len(pairs)),
        "positive_offsets": pairs.positives.offsets,
        "positive_values": pairs.positives.values,
        "negative_offsets": pairs.judged_negatives.offsets,
        "negative_values": pairs.judged_negatives.values,
        "query_keys": pairs.query_keys,
        "document_keys": pairs.document_keys,
        "body_keys": pairs.body_keys,
        "query_groups": no_groups if pairs.query_groups is None else pairs.query_groups,
        "document_groups": no_groups if pairs.document_groups is None else pairs.document_groups,
        "query_rows": pairs.query_rows,
        "document_rows": pairs.document_rows,
    }
    if pairs.positive_grades is not None:
        arrays["positive_grades"] = pairs.positive_grades.view(np.int64)
    if pairs.corpus_rows is not None:
        arrays["corpus_rows"] = pairs.corpus_rows
    if pairs.given is not None:
        arrays |= {"given_offsets": pairs.given.offsets, "given_values": pairs.given.values}
    if pairs.mixed is not None:
        arrays |= pairs.mixed.labels()
    head = {
        "name": pairs.name,
        "source_query_rows": pairs.source_query_rows,
        "source_document_rows": pairs.source_document_rows,
        **({} if pairs.corpus_rows is None else {"source_corpus_rows": pairs.source_corpus_rows}),
        "digests": dict(pairs.digests),
        "labels": labels_digest(arrays),
        "notes": pairs.notes,
        "reading": pairs.reading,
        **({"group_names": list(pairs.group_names)} if pairs.group_names else {}),
        **({} if pairs.mixed is None else {"mixture": pairs.mixed.head()}),
    }
    store = PictureStore(folder)
    for texts, total, file in (
        (pairs.queries, len(pairs), "queries"),
        (pairs.documents, len(pairs.document_ids), "corpus"),
    ):
        with atomic_path(folder / f"{file}.arrow") as temporary, pa.OSFile(str(temporary), "wb") as sink:
            schema = texts.columns(np.arange(1)).schema
            with pa.ipc.new_file(sink, schema) as writer:
                for start in range(0, total, BATCH_ROWS):
                    rows = np.arange(start, min(start + BATCH_ROWS, total))
                    writer.write_table(store.with_copies(texts, rows), max_chunksize=BATCH_ROWS)
    store.finish()
    write_dataset(folder, head, arrays, {"query": pairs.query_ids, "document": pairs.document_ids})
