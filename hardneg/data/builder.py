"""From a stream of queries, documents and judgements to `Pairs`: one place where ids are made and checked.

Texts go to disk as they come (to memory without a folder); what stays in memory is a few dozen bytes
a row. The folder can be opened again: a run keeps its dataset, so that resuming and exporting need
neither the source nor, for a pipe, its second reading.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hardneg.data.dataset_files import DatasetContents, labels_digest, write_dataset
from hardneg.data.texts import BATCH_ROWS, Texts, join_title, text_key
from hardneg.errors import DataError
from hardneg.storage.arrays import Ragged
from hardneg.storage.arrow import strings

_TEXT = pa.large_string()


class _Column:
    """Texts of one kind (queries or documents), with their ids and keys."""

    def __init__(self, kind: str, titled: bool, path: Path | None) -> None:
        self.kind, self.titled = kind, titled
        names = ["title", "text"] if titled else ["text"]
        self.schema = pa.schema([(name, _TEXT) for name in names])
        self.path = path
        self.pending: list[tuple[str, ...]] = []
        self.unhashed: list[bytes] = []  # lengths and texts that `digest` has not seen yet
        self.kept = {name: (bytearray(), array("q", [0])) for name in names}  # without a file: bytes, offsets
        self.sink = self.writer = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.sink = pa.OSFile(str(path.with_name(f".{path.name}.tmp")), "wb")
            self.writer = pa.ipc.new_file(self.sink, self.schema)
        self.ids: list[str] = []
        self.keys = array("q")
        self.body_keys = array("q")
        self.rows = array("q")
        self.by_id: dict[str, int] = {}
        self.by_text: dict[bytes, int] = {}
        self.text_of = array("q")  # 64 bits of each text's digest: another text under a known id is an error
        self.made_ids = 0
        self.source_rows = 0
        self.digest = hashlib.sha256()

    def add(self, id: str | None, title: str, text: str, where: str) -> tuple[int, bool]:
        """Row of this text, and whether it is new. Without an id, equal texts are one row."""
        row = self.source_rows
        self.source_rows += 1
        whole = join_title(title, text)
        try:
            encoded = whole.encode("utf-8")
            if id is not None:
                id.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: the {self.kind} holds a lone surrogate, half a character: {error}") from None
        short = hashlib.blake2b(encoded, digest_size=16).digest()
        digest = int.from_bytes(short[:8], "little", signed=True)
        if id is None:
            known = self.by_text.get(short)
            if known is not None:
                return known, False
            id = f"{self.kind[0]}{self.made_ids}"
            while id in self.by_id:
                self.made_ids += 1
                id = f"{self.kind[0]}{self.made_ids}"
            self.made_ids += 1
        elif (known := self.by_id.get(id)) is not None:
            if self.text_of[known] != digest:
                raise DataError(
                    f"{where}: {self.kind} id {id!r} stands for another text before (row {self.rows[known]}). "
                    f"Give each text an id of its own"
                )
            return known, False
        number = len(self.ids)
        self.by_id[id] = number
        self.by_text.setdefault(short, number)
        self.text_of.append(digest)
        self.ids.append(id)
        key = text_key(whole)
        self.keys.append(key)
        self.body_keys.append(text_key(text) if title else key)
        self.rows.append(row)
        self.unhashed += (len(encoded).to_bytes(8, "little"), encoded)
        self.pending.append((title, text) if self.titled else (text,))
        if len(self.pending) == BATCH_ROWS:
            self._flush(where)
        return number, True

    def _flush(self, where: str = "") -> None:
        columns = list(zip(*self.pending, strict=True))
        self.pending = []
        self.sha256()
        if self.writer is not None:
            self.writer.write_batch(pa.record_batch([strings(column) for column in columns], schema=self.schema))
            return
        for (data, offsets), column in zip(self.kept.values(), columns, strict=True):
            for text in column:
                data += text.encode("utf-8")
                offsets.append(len(data))

    def sha256(self) -> str:
        """Of all texts so far, each with its length before it."""
        self.digest.update(b"".join(self.unhashed))
        self.unhashed = []
        return self.digest.hexdigest()

    def finish(self) -> Texts:
        if self.pending:
            self._flush()
        self.by_id = {}
        self.by_text = {}
        self.text_of = array("q")
        if self.path is None or self.writer is None or self.sink is None:
            columns = [
                pa.Array.from_buffers(_TEXT, len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
                for data, offsets in self.kept.values()
            ]
            return Texts(pa.table(columns, schema=self.schema))
        self.writer.close()
        self.sink.close()
        self.path.with_name(f".{self.path.name}.tmp").replace(self.path)
        return Texts(path=self.path)


class Builder:
    """Collects a dataset; `finish` gives the `Pairs`.

    Args:
        folder: where texts go; None keeps them in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.queries = _Column("query", False, folder / "queries.arrow" if folder else None)
        self.documents = _Column("document", True, folder / "corpus.arrow" if folder else None)
        self.relations: list[tuple[int, int, float]] = []
        self.groups: dict[Hashable, int] = {}
        self.query_groups: dict[int, int] = {}
        self.document_groups: dict[int, int] = {}
        self.notes: dict[str, int] = {}

    def add_query(self, id: str | None, text: Any, *, group: Any = None, where: str) -> int:
        return self._add(self.queries, self.query_groups, id, "", text, group, where)

    def add_document(self, id: str | None, text: Any, *, title: Any = "", group: Any = None, where: str) -> int:
        return self._add(self.documents, self.document_groups, id, _text(title, "title", where), text, group, where)

    def _add(
        self, column: _Column, groups: dict[int, int], id: str | None, title: str, text: Any, group: Any, where: str
    ) -> int:
        text = _text(text, column.kind, where)
        row, new = column.add(id, title, text, where)
        if new and column.keys[row] == 0:
            self.count(f"empty_{column.kind}_texts")
        if not new:
            self.count(f"repeated_{column.kind}_rows")
        if group is not None and group != "":
            number = self.groups.setdefault(str(group), len(self.groups))
            if groups.setdefault(row, number) != number:
                # One text with two labels belongs to both, which one number cannot say.
                self.count(f"{column.kind}_group_conflicts")
        return row

    def count(self, note: str, by: int = 1) -> None:
        self.notes[note] = self.notes.get(note, 0) + by

    def relate(self, query: int, document: int, score: float) -> None:
        """A judgement: relevant when `score` > 0, else judged not relevant."""
        self.relations.append((query, document, score))

    def set_group(self, kind: str, row: int, group: Any) -> None:
        groups = self.query_groups if kind == "query" else self.document_groups
        groups[row] = self.groups.setdefault(str(group), len(self.groups))

    def finish(self, name: str, keep_queries: np.ndarray | None = None) -> DatasetContents:
        """What `Pairs.from_contents` makes a dataset of; `keep_queries` (rows) limits it to the queries of a split.

        Raises:
            DataError: no queries or no documents.
        """
        if not self.documents.ids:
            raise DataError(f"{name}: the corpus is empty: there is nothing to mine negatives from")
        total = len(self.queries.ids)
        kept = np.arange(total) if keep_queries is None else keep_queries
        if len(kept) == 0:
            raise DataError(f"{name}: there are no queries: there is nothing to mine negatives for")
        columns = list(zip(*self.relations, strict=True)) if self.relations else [(), (), ()]
        q, d = np.array(columns[0], np.int64), np.array(columns[1], np.int64)
        relevant = np.array(columns[2], np.float64) > 0
        positives = Ragged.from_pairs(q[relevant], d[relevant], total)
        negatives = Ragged.from_pairs(q[~relevant], d[~relevant], total)
        negatives = _without(negatives, positives, len(self.documents.ids))
        grouped = bool(self.groups)
        arrays = {
            "kept": kept,
            "positive_offsets": positives.offsets,
            "positive_values": positives.values,
            "negative_offsets": negatives.offsets,
            "negative_values": negatives.values,
            "query_keys": np.asarray(self.queries.keys),
            "document_keys": np.asarray(self.documents.keys),
            "body_keys": np.asarray(self.documents.body_keys),
            "query_groups": _numbers(self.query_groups, total) if grouped else np.empty(0, np.int64),
            "document_groups": _numbers(self.document_groups, len(self.documents.ids))
            if grouped
            else np.empty(0, np.int64),
            "query_rows": np.asarray(self.queries.rows),
            "document_rows": np.asarray(self.documents.rows),
        }
        ids = {"query": strings(self.queries.ids, pa.string()), "document": strings(self.documents.ids, pa.string())}
        head = {
            "name": name,
            "source_query_rows": self.queries.source_rows,
            "source_document_rows": self.documents.source_rows,
            "digests": {"queries": self.queries.sha256(), "documents": self.documents.sha256()},
            "labels": labels_digest(arrays),
            "notes": self.notes,
        }
        texts = self.queries.finish(), self.documents.finish()
        if self.folder is not None:
            write_dataset(self.folder, head, arrays, ids)
        return DatasetContents(head, arrays, ids, texts)


def _text(value: Any, what: str, where: str) -> str:
    """A text field: None is an empty one; numbers and other things are an error, not their `str`."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    raise DataError(f"{where}: the {what} is of type {type(value).__name__} ({value!r}), expected text")


def _numbers(groups: dict[int, int], n: int) -> np.ndarray:
    out = np.full(n, -1, np.int64)
    if groups:
        out[np.fromiter(groups.keys(), np.int64)] = np.fromiter(groups.values(), np.int64)
    return out


def _without(negatives: Ragged, positives: Ragged, width: int) -> Ragged:
    """Judgements of one pair that disagree count as relevant: a positive is never a known negative."""
    rows = negatives.row_numbers()
    clash = np.isin(rows * width + negatives.values, positives.row_numbers() * width + positives.values)
    return Ragged.from_pairs(rows[~clash], negatives.values[~clash], len(negatives))
