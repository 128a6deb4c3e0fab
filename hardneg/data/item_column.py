"""`ItemColumn`: the queries or the documents of a dataset as they arrive, with their ids and keys."""

from __future__ import annotations

import hashlib
from array import array
from pathlib import Path

import numpy as np
import pyarrow as pa

from hardneg.data.compact import Ids, Numbers, RowTable
from hardneg.data.picture import COLUMNS, Picture, columns_of, content_of
from hardneg.data.texts import BATCH_ROWS, Texts, join_title, schema_of, shown, text_key
from hardneg.errors import DataError
from hardneg.storage.arrow import numbers, strings

_TEXT = pa.large_string()


class ItemColumn:
    """All texts of one kind (queries or documents), with their ids and keys."""

    def __init__(self, kind: str, titled: bool, path: Path | None) -> None:
        self.kind, self.letter, self.titled = kind, kind[0], titled
        self.path = path
        self.pending: list[tuple[str | int, ...]] = []
        self.unhashed: list[bytes] = []  # lengths and texts that are not in `digest` yet
        self.sink = self.writer = None
        self.open(pictures=False)
        self.ids = Ids()
        self.keys, self.rows = (Numbers(self._beside(name)) for name in ("keys", "rows"))
        self.body_keys = Numbers(self._beside("bodies")) if titled else self.keys
        self.digests = (
            bytearray()
        )  # 128 bits per text, to know equal texts, and an id that comes again with another text
        self.by_text = RowTable(self._digest, self._has_digest)
        self.ours = bytearray()  # whether the id of each text was made here, because it came without one
        self.next_id = 0
        self.source_rows = 0
        self.digest = hashlib.sha256()

    def __len__(self) -> int:
        return len(self.ids)

    def _beside(self, name: str) -> Path | None:
        """The path of a temporary file; None without a file of texts."""
        return None if self.path is None else self.path.with_name(f".{self.path.name}.{name}.tmp")

    def _digest(self, row: int) -> bytes:
        return bytes(self.digests[16 * row : 16 * row + 16])

    def _has_digest(self, row: int, digest: bytes) -> bool:
        return self.digests.startswith(digest, 16 * row)

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
        self.digests += short
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
            self.writer.write_batch(pa.record_batch(arrays, schema=self.schema))
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
        self.digests = bytearray()
        self.by_text = RowTable(self._digest, self._has_digest)
        if self.path is None or self.writer is None or self.sink is None:
            columns = [
                pa.Array.from_buffers(_TEXT, len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
                if field.type == _TEXT
                else pa.Array.from_buffers(field.type, len(offsets), [None, pa.py_buffer(offsets)])
                for field, (data, offsets) in zip(self.schema, self.in_memory.values(), strict=True)
            ]
            return Texts(pa.table(columns, schema=self.schema))
        self.writer.close()
        self.sink.close()
        self.path.with_name(f".{self.path.name}.tmp").replace(self.path)
        return Texts(path=self.path)
