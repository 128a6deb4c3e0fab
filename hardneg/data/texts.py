"""Texts on disk or in memory, and the keys that identify equal texts."""

from __future__ import annotations

import copy
import re
import reprlib
import unicodedata
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hardneg.data.picture import COLUMNS, Picture, content_of, pictures_from
from hardneg.errors import RUN_DAMAGED, RunError
from hardneg.storage.arrays import Int
from hardneg.storage.arrow import ArrowFile, numbers

_PLACE = [(name, pa.int64() if name in ("offset", "size") else pa.large_string()) for name in COLUMNS]


def schema_of(titled: bool, pictures: bool = False) -> pa.Schema:
    """The columns of texts: `text`; for documents `title` before it; and where there are pictures, their places."""
    return pa.schema(
        [
            *([("title", pa.large_string())] if titled else []),
            ("text", pa.large_string()),
            *(_PLACE if pictures else []),
        ]
    )


_SCHEMAS = tuple(schema_of(titled, pictures) for titled in (False, True) for pictures in (False, True))

BATCH_ROWS = 256  # rows of each batch on disk; the size is fixed, so row i is in batch i // BATCH_ROWS


class Texts:
    """A column of texts, with titles if they are documents; or of pictures (`Picture`), or of both.

    The texts are in memory (`table`) or in an Arrow file (`path`). A file is memory-mapped, and its pages are released
    after each use, so a corpus may be larger than memory. Of a picture it holds the place only.

    Args:
        table: Arrow table with the column `text`; for documents, `title`; and the places of pictures, if there are any.
        path: Arrow IPC file with the same columns, in batches of `BATCH_ROWS` rows.
    """

    def __init__(self, table: pa.Table | None = None, path: Path | None = None) -> None:
        self._selected: Int | None = None
        self._file: ArrowFile | None = None
        self._table: pa.Table | None = None
        self.folder = None if path is None else path.parent  # what the files of pictures are relative to
        if path is not None:
            self._file = ArrowFile(path, RunError, mapped=True)
            if self._file.schema.remove_metadata() not in _SCHEMAS:
                raise RunError(f"{path}: expected columns of texts, got {self._file.schema.names}: {RUN_DAMAGED}")
            self._batches = self._file.batches
        else:
            assert table is not None
            self._table = table.combine_chunks()
            self._batches = -(-len(table) // BATCH_ROWS)

    @property
    def pictures(self) -> bool:
        """Whether some of the items may be pictures."""
        return COLUMNS[0] in (self._file.schema if self._file is not None else self._table.schema).names  # type: ignore[union-attr]

    @property
    def rows(self) -> int:
        """Number of texts."""
        if self._selected is not None:
            return len(self._selected)
        if self._table is not None:
            return len(self._table)
        last = self._batch(self._batches - 1).num_rows if self._batches else 0
        return max(0, self._batches - 1) * BATCH_ROWS + last

    def __iter__(self) -> Iterator[str]:
        """The texts in order, read piece by piece.

        >>> from hardneg import Pairs
        >>> sorted(Pairs.from_columns(["a question"], ["its answer"]).documents)
        ['its answer']
        """
        for batch in self.batches():
            yield from batch

    def __len__(self) -> int:
        return self.rows

    def select(self, rows: Int) -> Texts:
        """A view of these rows, in this order; nothing is copied."""
        view = copy.copy(self)
        view._selected = rows if self._selected is None else self._selected[rows]
        return view

    def _batch(self, i: int) -> pa.RecordBatch | pa.Table:
        if self._file is None:
            assert self._table is not None
            return self._table.slice(i * BATCH_ROWS, BATCH_ROWS)
        batch = self._file.batch(i)
        full = batch.num_rows == BATCH_ROWS or (i == self._batches - 1 and 0 < batch.num_rows < BATCH_ROWS)
        if not full or any(column.null_count for column in batch.columns):
            raise RunError(f"{self._file.path}: batch {i} is not one of {BATCH_ROWS} texts: {RUN_DAMAGED}")
        return batch

    def _release(self) -> None:
        if self._file is not None:
            self._file.release()

    def batches(self) -> Iterator[list[str]]:
        """All texts in row order, in batches. Each text is what an encoder gets: the title, a space, the text."""
        if self._selected is not None:
            for start in range(0, len(self._selected), BATCH_ROWS):
                yield self.slice(start, min(start + BATCH_ROWS, len(self._selected)))
            return
        for i in range(self._batches):
            yield _joined(self._batch(i), self.folder)
            self._release()

    def slice(self, start: int, stop: int) -> list[str]:
        """The texts of the rows `start` to `stop - 1`, each with its title in front."""
        return self.take(np.arange(start, stop))

    def take(self, rows: NDArray[np.integer]) -> list[str]:
        """The texts of these rows, in this order, each with its title in front."""
        return _joined(self.columns(rows), self.folder)

    def columns(self, rows: NDArray[np.integer]) -> pa.Table:
        """The columns `text`; for documents, `title`; and the places of pictures, of these rows, in this order."""
        rows = np.asarray(rows, np.int64)
        if self._selected is not None:
            rows = self._selected[rows]
        if self._file is None:
            assert self._table is not None
            return self._table.take(numbers(rows))
        wanted, inverse = np.unique(rows, return_inverse=True)
        batch_of = wanted // BATCH_ROWS
        pieces = [
            self._batch(int(i)).take(numbers(wanted[batch_of == i] - i * BATCH_ROWS)) for i in np.unique(batch_of)
        ]
        self._release()
        return pa.Table.from_batches(pieces, self._file.schema).combine_chunks().take(numbers(inverse.ravel()))


def _joined(batch: pa.Table | pa.RecordBatch, folder: Path | None) -> list[str]:
    texts: list[str] = batch.column("text").to_pylist()
    if COLUMNS[0] in batch.schema.names:
        places = {name: batch.column(name).to_pylist() for name in COLUMNS}
        texts = pictures_from(texts, places, folder)
    if "title" not in batch.schema.names:
        return texts
    return [
        text if isinstance(text, Picture) else join_title(title, text)
        for title, text in zip(batch.column("title").to_pylist(), texts, strict=True)
    ]


def join_title(title: str, text: str) -> str:
    """The text as an encoder gets it: the title, a space, the text.

    >>> join_title("Ada Lovelace", "wrote the first program.")
    'Ada Lovelace wrote the first program.'
    """
    return f"{title} {text}".strip() if title else text


# Characters that nobody sees: controls that are no white space, and those of Unicode's property Default_Ignorable_Code_Point
# (zero-width characters, marks of the writing direction, soft hyphens, variation selectors, fillers, tags).
_UNSEEN = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)


def fold(text: str) -> str:
    """The text in normal form. Texts that differ only in Unicode form (NFKC), case, white space or unseen characters fold alike.

    >>> fold("  Straße\\n1") == fold("STRASSE 1"), fold("soft\\u00adly\\u200b") == fold("softly")
    (True, True)
    """
    if text.isascii():
        if text.isprintable():  # no controls, so nothing is unseen: most texts, in a third of the time
            return " ".join(text.lower().split())
    else:
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(_UNSEEN.sub("", text).lower().split())


def text_key(text: str) -> int:
    """An odd 63-bit hash (BLAKE2b) of the folded text, or 0 if that is empty.

    Texts with equal keys are treated as equal. That of a picture is made of its bytes: equal files have equal keys.

    >>> text_key("Hello  World") == text_key("hello world"), text_key(" ")
    (True, 0)
    """
    if isinstance(text, Picture):
        return int.from_bytes(blake2b(content_of(text), digest_size=8).digest(), "little") >> 1 | 1
    folded = fold(text)
    if not folded:
        return 0
    return int.from_bytes(blake2b(folded.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") >> 1 | 1


def distinct_keys(keys: Int, rows: Int | None = None) -> Int:
    """Keys under which empty texts are distinct too, int64 `[n]`.

    Args:
        keys: int64 `[n]` from `text_key`; 0 means an empty text.
        rows: int64 `[n]` that tell empty texts apart; 0 to n - 1 by default.

    >>> distinct_keys(np.array([7, 0, 7, 0])).tolist()
    [7, -2, 7, -4]
    """
    row_numbers = np.arange(len(keys)) if rows is None else rows
    return np.where(keys != 0, keys, -1 - row_numbers)


_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = _shortener.maxlong = 80
_shortener.maxlevel = 3


def shown(value: object) -> str:
    """A value of unknown content for a message: short, and without control characters.

    >>> print(shown("a" + chr(27)), len(shown("x" * 1000)))
    'a\\x1b' 80
    """
    try:
        return _shortener.repr(value)
    except ValueError:  # an integer of thousands of digits
        return f"a value of type {type(value).__name__}"
