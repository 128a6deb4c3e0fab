"""Queries, documents and what is known about them, as columns: ids and labels in memory, texts on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hardneg.data.builder import Builder
from hardneg.data.dataset_files import DatasetContents, labels_digest, read_dataset, write_dataset
from hardneg.data.texts import BATCH_ROWS, Texts, distinct_keys
from hardneg.storage.arrays import Int, Ragged
from hardneg.storage.arrow import numbers
from hardneg.storage.files import atomic_path


@dataclass
class Pairs:
    """A dataset to mine: queries, a corpus, and which documents are positives of which query.

    Rows of queries and of documents are what everything else counts in; ids are for people and files.

    Attributes:
        query_ids, document_ids: Arrow strings, distinct.
        queries, documents: their texts.
        positives: rows of the documents that are relevant to each query.
        judged_negatives: rows of the documents that were judged and found not relevant.
        query_keys, document_keys, body_keys: int64 keys of the folded texts (body: without the title);
            0 = empty.
        query_groups, document_groups: int64 group numbers, -1 where there is none; None without groups.
        query_rows, document_rows: which row of the source file each stands in.
        source_query_rows, source_document_rows: how many rows the source has.
        digests: SHA-256 of all query texts and of all document texts, in order.
        name: what the user called it.
        notes: what was noticed while reading: counts by name.
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

    def __len__(self) -> int:
        return len(self.query_ids)

    def known_positives(self) -> Ragged:
        """The positives of each query and of every other query with the same folded text.

        Two rows of one question with different answers must not get each other's answer as a negative.
        """
        distinct, classes = np.unique(distinct_keys(self.query_keys), return_inverse=True)
        if len(distinct) == len(self):
            return self.positives
        classes = classes.ravel()
        merged = Ragged.from_pairs(classes[self.positives.row_numbers()], self.positives.values, len(distinct))
        return merged.take(classes)

    @classmethod
    def from_contents(cls, contents: DatasetContents) -> Pairs:
        """The dataset that a `Builder` has finished, or that was read from its folder."""
        head, arrays, ids, texts = contents.head, contents.arrays, contents.ids, contents.texts
        kept = arrays["kept"]
        everything = len(kept) == len(arrays["query_keys"])
        grouped = len(arrays["document_groups"]) > 0
        positives = Ragged(arrays["positive_offsets"], arrays["positive_values"]).take(kept)
        negatives = Ragged(arrays["negative_offsets"], arrays["negative_values"]).take(kept)
        return cls(
            query_ids=ids["query"] if everything else ids["query"].take(numbers(kept)),
            document_ids=ids["document"],
            queries=texts[0] if everything else texts[0].select(kept),
            documents=texts[1],
            positives=positives,
            judged_negatives=negatives,
            query_keys=arrays["query_keys"][kept],
            document_keys=arrays["document_keys"],
            body_keys=arrays["body_keys"],
            query_groups=arrays["query_groups"][kept] if grouped else None,
            document_groups=arrays["document_groups"] if grouped else None,
            query_rows=arrays["query_rows"][kept],
            document_rows=arrays["document_rows"],
            source_query_rows=head["source_query_rows"],
            source_document_rows=head["source_document_rows"],
            digests={**head["digests"], "labels": head["labels"]},
            name=head["name"],
            notes=dict(head["notes"]),
        )

    @classmethod
    def from_columns(
        cls,
        queries: Sequence[str],
        positives: Sequence[str | Sequence[str]],
        *,
        corpus: Sequence[str] = (),
        query_ids: Sequence[str] | None = None,
        groups: Sequence[Any] | None = None,
    ) -> Pairs:
        """A dataset from lists in memory.

        Args:
            queries: one text a row; rows with equal texts are one query with several positives.
            positives: the relevant text, or texts, of each row.
            corpus: further documents.
            query_ids: an id a row; rows with equal ids are one query.
            groups: a label a row; documents of one group are never negatives of its queries
                once the filter `group` is used.
        """

        builder = Builder(None)
        for i, (query, texts) in enumerate(zip(queries, positives, strict=True)):
            group = None if groups is None else groups[i]
            query_id = None if query_ids is None else str(query_ids[i])
            row = builder.add_query(query_id, query, group=group, where=f"row {i}")
            for text in [texts] if isinstance(texts, str) else texts:
                builder.relate(row, builder.add_document(None, text, group=group, where=f"row {i}"), 1)
        for i, text in enumerate(corpus):
            builder.add_document(None, text, where=f"corpus row {i}")
        return cls.from_contents(builder.finish("columns"))


def open_pairs(folder: Path) -> Pairs:
    """The dataset that a `Builder` wrote to `folder`; RunError when it is not there or damaged."""
    return Pairs.from_contents(read_dataset(folder))


def save_pairs(pairs: Pairs, folder: Path) -> None:
    """Write a dataset that is in memory, so that `open_pairs` can open it."""
    none = np.empty(0, np.int64)
    arrays = {
        "kept": np.arange(len(pairs)),
        "positive_offsets": pairs.positives.offsets,
        "positive_values": pairs.positives.values,
        "negative_offsets": pairs.judged_negatives.offsets,
        "negative_values": pairs.judged_negatives.values,
        "query_keys": pairs.query_keys,
        "document_keys": pairs.document_keys,
        "body_keys": pairs.body_keys,
        "query_groups": none if pairs.query_groups is None else pairs.query_groups,
        "document_groups": none if pairs.document_groups is None else pairs.document_groups,
        "query_rows": pairs.query_rows,
        "document_rows": pairs.document_rows,
    }
    head = {
        "name": pairs.name,
        "source_query_rows": pairs.source_query_rows,
        "source_document_rows": pairs.source_document_rows,
        "digests": {side: pairs.digests[side] for side in ("queries", "documents")},
        "labels": labels_digest(arrays),
        "notes": pairs.notes,
    }
    for texts, total, file in (
        (pairs.queries, len(pairs), "queries"),
        (pairs.documents, len(pairs.document_ids), "corpus"),
    ):
        with atomic_path(folder / f"{file}.arrow") as temporary, pa.OSFile(str(temporary), "wb") as sink:
            schema = texts.columns(np.arange(1)).schema
            with pa.ipc.new_file(sink, schema) as writer:
                for start in range(0, total, BATCH_ROWS):
                    rows = np.arange(start, min(start + BATCH_ROWS, total))
                    writer.write_table(texts.columns(rows), max_chunksize=BATCH_ROWS)
    write_dataset(folder, head, arrays, {"query": pairs.query_ids, "document": pairs.document_ids})
