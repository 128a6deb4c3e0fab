"""Texts on disk or in memory, and the keys by which equal texts are found."""

from __future__ import annotations

import copy
import mmap
import unicodedata
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hardneg.storage.arrays import Int
from hardneg.storage.arrow import numbers

BATCH_ROWS = 256  # of texts on disk: fixed, so that row // BATCH_ROWS finds the batch


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


def distinct_keys(keys: Int, rows: Int | None = None) -> Int:
    """int64 `[n]`: equal where the texts of these keys are; what has no text (key 0) is told apart by its row."""
    numbers = np.arange(len(keys)) if rows is None else rows
    return np.where(keys != 0, keys, -1 - numbers)
