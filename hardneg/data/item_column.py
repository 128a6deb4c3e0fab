"""`ItemColumn`: the queries or the documents of a dataset as they arrive, with their ids and keys."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hardneg.data.compact import Digests, Ids, Numbers, RowTable
from hardneg.data.picture import COLUMNS, Picture, columns_of, content_of
from hardneg.data.text_batches import (
    after_lengths,
    digests,
    distinct,
    distinct_digests,
    empty_texts,
    joined,
    pieces,
    spans,
    taken,
    text_keys,
)
from hardneg.data.texts import BATCH_ROWS, Texts, join_title, schema_of, shown, text_key
from hardneg.errors import DataError
from hardneg.hashing import UInt
from hardneg.storage.arrays import Int
from hardneg.storage.arrow import numbers, strings
from hardneg.storage.files import naming_file

_TEXT = pa.large_string()


@dataclass(frozen=True)
class Arrivals:
    """Texts that arrive together, looked up but not added yet.

    Attributes:
        titles, texts, whole: large strings `[n]`; None for titles where there are none. `whole` has the titles in front.
        ids: likewise, those that the source gives; None: it gives none.
        rows: int64 `[n]`: the row of each, once they are added.
        new: int64 `[m]`: the positions of those that get new rows, in order.
        digests: uint64 `[m, 2]`: those of the new ones.
        unseen: bool `[m]`: whether no earlier row has the text.
        named: rows whose ids were made here, and those that they get now.
    """

    titles: pa.Array | None
    texts: pa.Array
    whole: pa.Array
    ids: pa.Array | None
    rows: Int
    new: Int
    digests: UInt
    unseen: NDArray[np.bool_]
    named: list[tuple[int, str]]


class ItemColumn:
    """All texts of one kind (queries or documents), with their ids and keys."""

    def __init__(self, kind: str, titled: bool, path: Path | None) -> None:
        self.kind, self.letter, self.titled = kind, kind[0], titled
        self.path = path
        self.pending: list[tuple[str | int, ...]] = []
        self.unhashed: list[bytes] = []  # lengths and texts that are not in `digest` yet
        self.sink = self.writer = None
        self.open(pictures=False)
        self.ids = Ids(self.letter)
        self.keys, self.rows = (Numbers(self._beside(name)) for name in ("keys", "rows"))
        self.body_keys = Numbers(self._beside("bodies")) if titled else self.keys
        # 128 bits per text, to know equal texts, and an id that comes again with another text
        self.digests = Digests(self._beside("digests"))
        self.by_text = self._table()
        self.ours = bytearray()  # whether the id of each text was made here, because it came without one
        self.next_id = 0
        self.source_rows = 0
        self.digest = hashlib.sha256()

    def __len__(self) -> int:
        return len(self.ids)

    def _beside(self, name: str) -> Path | None:
        """The path of a temporary file; None without a file of texts."""
        return None if self.path is None else self.path.with_name(f".{self.path.name}.{name}.tmp")

    def _has_digest(self, row: int, digest: bytes) -> bool:
        return self.digests[row] == digest

    def _table(self) -> RowTable:
        return RowTable(self._has_digest, _code_of, lambda rows: self.digests.take(rows)[:, 0])

    def open(self, pictures: bool) -> None:
        """Make the columns, those of pictures with their places; nothing was added yet."""
        self.schema = schema_of(self.titled, pictures)
        # (bytes, offsets) of texts and ([], numbers) of numbers, without a file
        self.in_memory = {
            field.name: (bytearray(), array("q", [0] if field.type == _TEXT else [])) for field in self.schema
        }
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.sink = pa.OSFile(str(self.path.with_name(f".{self.path.name}.tmp")), "wb")
            self.writer = pa.ipc.new_file(self.sink, self.schema)

    @property
    def pictures(self) -> bool:
        """Whether pictures can be added."""
        return COLUMNS[0] in self.schema.names

    def add(self, id: str | None, title: str, text: str, where: str) -> tuple[int, bool]:
        """(row of this text, whether it is new). A text without an id is new if no earlier text equals it."""
        row = self.source_rows
        self.source_rows += 1
        whole = text if isinstance(text, Picture) else join_title(title, text)
        try:
            encoded = content_of(whole)
            (id or "").encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: the {self.kind} has a lone surrogate (half a character): {error}") from None
        short = hashlib.blake2b(encoded, digest_size=16).digest()
        same = self.by_text.find(short)
        if id is None:
            if same is not None:
                return same, False
            id, ours = self._fresh_id(), True
        else:
            known = self._known(id, short, same, where)
            if known is not None:
                return known, False
            ours = False
        number = len(self.ids)
        self.ours.append(ours)
        self.digests.extend(short)
        self.ids.append(id)
        if same is None:
            self.by_text.add(short, number)
        key = text_key(whole)
        self.keys.append(key)
        if self.titled:
            self.body_keys.append(text_key(text) if title else key)
        self.rows.append(row)
        self.unhashed += (len(encoded).to_bytes(8, "little"), encoded)
        place = columns_of(text) if self.pictures else ()
        self.pending.append((title, str(text), *place) if self.titled else (str(text), *place))
        if len(self.pending) == BATCH_ROWS:
            self._flush(where)
        return number, True

    def look_up(self, ids: pa.Array | None, titles: pa.Array | None, texts: pa.Array) -> Arrivals | None:
        """Find out what would be new of many texts; nothing is changed. `add_many` adds them.

        Args:
            ids, titles, texts: large strings `[n]` without nulls, in UTF-8; None for ids or titles that the source does not have.

        Returns:
            None for what must be added one by one: there are pictures, one of these ids was made here for another text, or
            an id stands for two texts.
        """
        if self.pictures:
            return None
        whole = joined(titles, texts)
        found = digests(whole)
        numbered, firsts = distinct_digests(found)
        found = found[firsts]
        at = self.by_text.find_many(found[:, 0], lambda rows, i: (self.digests.take(rows) == found[i]).all(axis=1))
        unknown = at < 0
        if ids is None:
            at[unknown] = len(self) + np.arange(int(unknown.sum()))
            new = firsts[unknown]
            return Arrivals(titles, texts, whole, None, at[numbered], new, found[unknown], np.ones(len(new), bool), [])
        ours = np.frombuffer(self.ours, np.uint8)
        ids_numbered, ids_first = distinct(ids)
        known = self.ids.find_many(taken(ids, ids_first))
        there = known >= 0
        text = numbered[ids_first]  # of each id
        if ours[known[there]].any() or (self.digests.take(known[there]) != found[text[there]]).any():
            return None
        if (numbered != text[ids_numbered]).any():
            return None
        # The first id that comes with a text that has one of ours takes its place.
        given = np.flatnonzero(~unknown)
        given = given[ours[at[given]] > 0]
        renaming = ids_numbered[firsts[given]]
        if there[renaming].any() or (ids_first[renaming] != firsts[given]).any():
            return None
        known[renaming] = at[given]
        fresh = known < 0
        known[fresh] = len(self) + np.arange(int(fresh.sum()))
        new = ids_first[fresh]
        unseen = unknown[numbered[new]] & (firsts[numbered[new]] == new)
        named = list(zip(at[given].tolist(), taken(ids, firsts[given]).to_pylist(), strict=True))
        return Arrivals(titles, texts, whole, ids, known[ids_numbered], new, found[text[fresh]], unseen, named)

    def add_many(self, arrivals: Arrivals) -> Int:
        """Add what was looked up; returns int64 `[m]`: the keys of the new ones. Nothing may be added in between."""
        first, count = len(self), len(arrivals.new)
        texts = taken(arrivals.texts, arrivals.new)
        whole = texts if arrivals.whole is arrivals.texts else taken(arrivals.whole, arrivals.new)
        self.rows.extend(self.source_rows + arrivals.new)
        self.source_rows += len(arrivals.rows)
        self.digests.extend(arrivals.digests.tobytes())
        self.by_text.add_many(arrivals.digests[arrivals.unseen, 0], first + np.flatnonzero(arrivals.unseen))
        for row, id in arrivals.named:
            self.ids.replace(row, id)
            self.ours[row] = False
        if arrivals.ids is not None:
            self.ids.append_many(taken(arrivals.ids, arrivals.new))
        elif self.ids.counted and self.next_id == first:
            self.ids.count_on(count)
            self.next_id += count
        else:
            for _ in range(count):
                self.ids.append(self._fresh_id())
        self.ours += bytes([arrivals.ids is None]) * count
        keys = text_keys(whole)
        self.keys.extend(keys)
        self.sha256()
        self.digest.update(after_lengths(whole))
        titled = whole is not texts
        if self.titled:
            self.body_keys.extend(text_keys(texts) if titled else keys)
        columns = [texts]
        if self.titled:
            titles = arrivals.titles if titled else None
            columns = [empty_texts(count) if titles is None else taken(titles, arrivals.new), texts]
        self._write(columns)
        return keys

    def _write(self, columns: list[pa.Array]) -> None:
        """Write texts in batches of `BATCH_ROWS`, after those that wait for their batch to be full."""
        count = len(columns[0])
        start = min(count, -len(self.pending) % BATCH_ROWS)
        whole = start + (count - start) // BATCH_ROWS * BATCH_ROWS
        self._wait(columns, 0, start)
        if self.writer is not None:
            cut = (pieces(column, start, whole, BATCH_ROWS) for column in columns)
            for batch in map(list, zip(*cut, strict=True)):
                self._write_batch(pa.RecordBatch.from_arrays(batch, schema=self.schema))
        else:
            for (data, offsets), column in zip(self.in_memory.values(), columns, strict=True):
                ends, added = spans(column.slice(start, whole - start))
                offsets.frombytes((len(data) + ends[1:]).tobytes())
                data += added.data
        self._wait(columns, whole, count)

    def _write_batch(self, batch: pa.RecordBatch) -> None:
        assert self.path is not None
        assert self.writer is not None
        with naming_file(self.path):
            self.writer.write_batch(batch)

    def _wait(self, columns: list[pa.Array], start: int, stop: int) -> None:
        """Let texts wait for their batch, which is written once it is full."""
        self.pending += zip(*(column.slice(start, stop - start).to_pylist() for column in columns), strict=True)
        if len(self.pending) == BATCH_ROWS:
            self._flush()

    def _fresh_id(self) -> str:
        """An id for a text without one."""
        while True:
            id = f"{self.letter}{self.next_id}"
            self.next_id += 1
            if self.ids.find(id) is None:
                return id

    def _known(self, id: str, short: bytes, same: int | None, where: str) -> int | None:
        """The row of a text that comes with an id, or None if it is new. Ids that were made here give way to it."""
        known = self.ids.find(id)
        if known is not None and not self.ours[known]:
            if not self._has_digest(known, short):
                raise DataError(
                    f"{where}: {self.kind} id {shown(id)} stands for another text before (row {self.rows[known]}). "
                    f"Give each text its own id"
                )
            return known
        if known is not None:
            self.ids.replace(known, self._fresh_id())
        if same is None or not self.ours[same]:
            return None
        # A text without an id, such as a positive, that now gets one, such as its own in the corpus.
        self.ids.replace(same, id)
        self.ours[same] = False
        return same

    def _flush(self, where: str = "") -> None:
        """Write the pending texts to the file, or to memory."""
        columns = list(zip(*self.pending, strict=True))
        self.pending = []
        self.sha256()
        if self.writer is not None:
            arrays = [
                strings(column) if field.type == _TEXT else numbers(np.array(column, np.int64))
                for field, column in zip(self.schema, columns, strict=True)
            ]
            self._write_batch(pa.record_batch(arrays, schema=self.schema))
            return
        for field, (data, offsets), column in zip(self.schema, self.in_memory.values(), columns, strict=True):
            if field.type != _TEXT:
                offsets.extend(column)
                continue
            for text in column:
                data += text.encode("utf-8")
                offsets.append(len(data))

    def sha256(self) -> str:
        """SHA-256 of all texts so far; each text is preceded by its length in bytes."""
        self.digest.update(b"".join(self.unhashed))
        self.unhashed = []
        return self.digest.hexdigest()

    def finish(self) -> Texts:
        """Close the file, if there is one, and return the texts."""
        if self.pending:
            self._flush()
        self.digests.close()
        self.by_text = self._table()
        if self.path is None or self.writer is None or self.sink is None:
            columns = [
                pa.Array.from_buffers(_TEXT, len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
                if field.type == _TEXT
                else pa.Array.from_buffers(field.type, len(offsets), [None, pa.py_buffer(offsets)])
                for field, (data, offsets) in zip(self.schema, self.in_memory.values(), strict=True)
            ]
            return Texts(pa.table(columns, schema=self.schema))
        with naming_file(self.path):
            self.writer.close()
            self.sink.close()
        self.path.with_name(f".{self.path.name}.tmp").replace(self.path)
        return Texts(path=self.path)


def _code_of(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little")
