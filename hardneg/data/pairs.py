"""Queries, documents and what is known about them, as columns: ids and labels in memory, texts on disk."""

from __future__ import annotations

import copy
import mmap
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hardneg.data.arrow import numbers

Int = NDArray[np.int64]

BATCH_ROWS = 256  # of texts on disk: fixed, so that row // BATCH_ROWS finds the batch


@dataclass(frozen=True)
class Ragged:
    """Lists of different lengths in two arrays: row i is `values[offsets[i]:offsets[i + 1]]`."""

    offsets: Int  # [n + 1]
    values: Int  # [m]

    @classmethod
    def from_pairs(cls, rows: Int, values: Int, n: int) -> Ragged:
        """From (row, value) pairs in any order; each row's values come out sorted and distinct."""
        if len(rows):
            order = np.lexsort((values, rows))
            rows, values = rows[order], values[order]
            first = np.ones(len(rows), bool)
            first[1:] = (rows[1:] != rows[:-1]) | (values[1:] != values[:-1])
            rows, values = rows[first], values[first]
        offsets = np.zeros(n + 1, np.int64)
        np.cumsum(np.bincount(rows, minlength=n), out=offsets[1:])
        return cls(offsets, values)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int:
        return np.diff(self.offsets)

    def row_numbers(self) -> Int:
        """The row of each value, `[m]`."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, rows: NDArray[np.integer]) -> Ragged:
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Ragged(offsets, self.values[places])

    def padded(self, fill: int = -1) -> Int:
        """`[n, longest]`, filled up with `fill`."""
        lengths = self.lengths
        table = np.full((len(self), int(lengths.max(initial=0))), fill, np.int64)
        table[np.arange(table.shape[1]) < lengths[:, None]] = self.values
        return table


class Texts:
    """A column of texts (and titles), in memory or in an Arrow file that is read as needed.

    Nothing of a file stays resident after it was used: a corpus may be larger than memory.
    """

    def __init__(self, table: pa.Table | None = None, path: Path | None = None) -> None:
        self._selected: Int | None = None
        self._map: mmap.mmap | None = None
        if path is not None:
            with open(path, "rb") as f:
                self._map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
            self._reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self._map)))
            self._batches = self._reader.num_record_batches
            self._table = None
        else:
            assert table is not None
            self._table = table.combine_chunks()
            self._batches = -(-len(table) // BATCH_ROWS)

    def select(self, rows: Int) -> Texts:
        """The texts of these rows only."""
        view = copy.copy(self)
        view._selected = rows
        return view

    def _batch(self, i: int) -> pa.RecordBatch | pa.Table:
        if self._table is not None:
            return self._table.slice(i * BATCH_ROWS, BATCH_ROWS)
        return self._reader.get_batch(i)

    def _release(self) -> None:
        if self._map is not None and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def batches(self) -> Iterator[list[str]]:
        """Texts in row order, as they are embedded: the title, a space, the text."""
        if self._selected is not None:
            for start in range(0, len(self._selected), BATCH_ROWS):
                yield self.slice(start, min(start + BATCH_ROWS, len(self._selected)))
            return
        for i in range(self._batches):
            yield _joined(self._batch(i))
            self._release()

    def slice(self, start: int, stop: int) -> list[str]:
        """Texts of the rows `start` to `stop`, as they are embedded."""
        return self.take(np.arange(start, stop))

    def take(self, rows: NDArray[np.integer]) -> list[str]:
        """Texts of these rows, in this order, as they are embedded."""
        return _joined(self.columns(rows))

    def columns(self, rows: NDArray[np.integer]) -> pa.Table:
        """The columns `text` and, for documents, `title`, of these rows in this order."""
        rows = np.asarray(rows, np.int64)
        if self._selected is not None:
            rows = self._selected[rows]
        if self._table is not None:
            return self._table.take(numbers(rows))
        wanted, inverse = np.unique(rows, return_inverse=True)
        which = wanted // BATCH_ROWS
        pieces = [
            self._reader.get_batch(int(i)).take(numbers(wanted[which == i] - i * BATCH_ROWS)) for i in np.unique(which)
        ]
        self._release()
        return pa.Table.from_batches(pieces, self._reader.schema).combine_chunks().take(numbers(inverse.ravel()))


def _joined(batch: pa.Table | pa.RecordBatch) -> list[str]:
    texts: list[str] = batch.column("text").to_pylist()
    if "title" not in batch.schema.names:
        return texts
    return [join_title(title, text) for title, text in zip(batch.column("title").to_pylist(), texts, strict=True)]


def join_title(title: str, text: str) -> str:
    return f"{title} {text}".strip() if title else text


def fold(text: str) -> str:
    """Equal for texts that differ only in unicode form (NFKC), case or white space."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(text.lower().split())


def text_key(text: str) -> int:
    """64 bits of the folded text, 0 for an empty one: equal keys mean equal texts, for all practical purposes."""
    folded = fold(text)
    if not folded:
        return 0
    return int.from_bytes(blake2b(folded.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") >> 1 | 1


def told_apart(keys: Int, rows: Int | None = None) -> Int:
    """int64 `[n]`: equal where the texts of these keys are; what has no text (key 0) is told apart by its row."""
    numbers = np.arange(len(keys)) if rows is None else rows
    return np.where(keys != 0, keys, -1 - numbers)


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
        distinct, classes = np.unique(told_apart(self.query_keys), return_inverse=True)
        if len(distinct) == len(self):
            return self.positives
        classes = classes.ravel()
        merged = Ragged.from_pairs(classes[self.positives.row_numbers()], self.positives.values, len(distinct))
        return merged.take(classes)

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
        from hardneg.data.builder import Builder

        builder = Builder(None)
        for i, (query, texts) in enumerate(zip(queries, positives, strict=True)):
            group = None if groups is None else groups[i]
            query_id = None if query_ids is None else str(query_ids[i])
            row = builder.add_query(query_id, query, group=group, where=f"row {i}")
            for text in [texts] if isinstance(texts, str) else texts:
                builder.relate(row, builder.add_document(None, text, group=group, where=f"row {i}"), 1)
        for i, text in enumerate(corpus):
            builder.add_document(None, text, where=f"corpus row {i}")
        return builder.finish("columns")
