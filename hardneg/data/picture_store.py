"""Keeps the bytes of pictures that are in no file of their own: in a column of a table, in memory, in a compressed archive.

They are copied once, one after the other, into a file from which each can be read alone. It stands in the folder of the dataset,
or, for a dataset in memory, in a temporary folder, which is removed when the process ends.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

from hardneg.data.picture import COLUMNS, Picture, read_part
from hardneg.data.texts import Texts
from hardneg.errors import DataError
from hardneg.storage.arrays import Int
from hardneg.storage.arrow import brief, numbers, strings

FILE = "pictures.bin"
_PREFIX = "hardneg-pictures-"  # of the temporary folders


class PictureStore:
    """One file of pictures, to which more can be added.

    Args:
        folder: the folder of the dataset; None: a temporary one.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._file: IO[bytes] | None = None
        self._path: Path | None = None
        self._size = 0
        self._known: dict[
            bytes, tuple[int, int]
        ] = {}  # the place of a picture by its SHA-256: equal ones are kept once

    def add(self, name: str, data: bytes) -> Picture:
        """Keep a picture; the same bytes are kept once.

        Raises:
            DataError: the file cannot be written, for example because the disk is full.
        """
        digest = hashlib.sha256(data).digest()
        place = self._known.get(digest)
        if place is None:
            try:
                self._opened().write(data)
            except OSError as error:
                raise DataError(
                    f"{self._path}: the pictures cannot be copied here ({brief(error)}): free space"
                ) from None
            place = self._known[digest] = (self._size, len(data))
            self._size += len(data)
        assert self._path is not None
        file = FILE if self.folder is not None else str(self._path)
        return Picture(name, file, *place, digest.hex())

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            if self.folder is None:
                made = tempfile.mkdtemp(prefix=_PREFIX)
                weakref.finalize(_LIFE, _remove, made, os.getpid())
                self._path = Path(made) / FILE
            else:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._path = self.folder / FILE
            self._file = open(self._path, "wb")  # noqa: SIM115 (closed by finish)
        return self._file

    def finish(self) -> None:
        """Write everything to disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
        self._known = {}

    def with_copies(self, texts: Texts, rows: Int) -> pa.Table:
        """Rows of a dataset, as they are written to another folder: pictures that another store keeps are copied to this one."""
        table = texts.columns(rows)
        if COLUMNS[0] not in table.column_names:
            return table
        places = list(zip(*(table.column(name).to_pylist() for name in COLUMNS), strict=True))
        kept = []
        for name, (file, offset, size, sha256) in zip(table.column("text").to_pylist(), places, strict=True):
            if os.path.basename(file) == FILE and offset >= 0:
                path = Path(file) if texts.folder is None else texts.folder / file
                again = self.add(name, read_part(path, offset, size, f"{path} at byte {offset:,}"))
                if again.sha256 != sha256:
                    raise DataError(f"{path} at byte {offset:,}: the picture is another than the one that was read")
                file, offset = again.file, again.offset
            kept.append((file, offset, size, sha256))
        for name, column in zip(COLUMNS, zip(*kept, strict=True), strict=True):
            array = numbers(np.array(column, np.int64)) if name in ("offset", "size") else strings(column)
            table = table.set_column(table.column_names.index(name), name, array)
        return table


def _remove(folder: str, process: int) -> None:
    """Remove a temporary folder, in the process that made it: workers that were forked off leave it alone."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


class _Life:
    """Lives as long as the process: what hangs on it is removed at the end."""


_LIFE = _Life()
