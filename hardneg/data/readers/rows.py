"""Rows of untrusted files: what they are, and how their files are opened.

Each row comes with its place, as in "pairs.csv, line 3", for error messages.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa

from hardneg.data.texts import shown
from hardneg.errors import DataError, first_few
from hardneg.storage.arrow import brief

Row = Mapping[str, Any]

Located = Iterator[tuple[str, Row]]  # (place in the source, row)


@dataclass(frozen=True)
class Block:
    """Rows of a source that follow one another.

    Attributes:
        rows: begins a pass over them. Blocks without a table may allow one pass only.
        table: gives them as a table, from a row of the source that tells which columns are texts; None if they are to be read row by
            row, which says what is wrong with them and where.
        held: whether its bytes are in memory, so that the block after it can be read before its rows are.
    """

    rows: Callable[[], Located]
    table: Callable[[Row], pa.Table | None] = lambda first: None
    held: bool = False


def read_blocks(
    blocks: Iterable[Block], take: Callable[[Block, str, Row], bool], add: Callable[[str, Row], None]
) -> bool:
    """Read rows in blocks, or one by one where a block cannot be taken as a whole; returns whether there are any.

    Args:
        blocks: the rows.
        take: adds a block as a whole, or says that it did not. It is also given the first row of all, and its place.
        add: adds a row, given its place.
    """
    first: tuple[str, Row] | None = None
    with closing(_Ahead(blocks)) as ahead:
        while (block := ahead.next()) is not None:
            found = None
            if first is None:
                found = block.rows()
                first = next(found, None)
                if first is None:
                    continue
            if block.held:
                ahead.begin(first[1])
            if take(block, *first):
                continue
            if found is not None:
                add(*first)
            for where, row in found or block.rows():
                add(where, row)
    return first is not None


_PATIENCE = 1.0  # seconds


class _Ahead:
    """Blocks, of which the next one can be read and parsed in a thread while the last one is used."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._blocks = iter(blocks)
        self._begun: Future[Block | None] | None = None

    def begin(self, first: Row) -> None:
        """Begin to read the next block. `first` is the first row of the source."""
        self._begun = Future()
        # It does not keep the process: it may wait for a pipe that nobody writes to any more.
        threading.Thread(target=self._work, args=(self._begun, first), daemon=True).start()

    def _work(self, begun: Future[Block | None], first: Row) -> None:
        try:
            begun.set_result(self._parsed(first))
        except BaseException as error:  # of any kind: `next` raises it
            begun.set_exception(error)

    def _parsed(self, first: Row) -> Block | None:
        block = next(self._blocks, None)
        if block is None or not block.held:
            return block
        table = block.table(first)
        return replace(block, table=lambda _: table)

    def next(self) -> Block | None:
        """The next block; None at the end."""
        begun, self._begun = self._begun, None
        return next(self._blocks, None) if begun is None else begun.result()

    def close(self) -> None:
        """Wait for what was begun, but not for long: the source may be a pipe that is silent."""
        if self._begun is not None:
            wait([self._begun], _PATIENCE)


COMPRESSED = (".gz", ".zst", ".bz2", ".xz")


def exists(path: Path) -> bool:
    """Whether there is something at the path; DataError if the system does not tell, as in a folder without access."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be opened ({brief(error)})") from None
    return True


@contextmanager
def opened(path: Path, *, once: bool = False) -> Iterator[IO[bytes]]:
    """A text file, opened for reading as bytes. Files named .gz, .zst, .bz2 and .xz are unpacked as they are read.

    Args:
        path: the file.
        once: whether it is read from start to end, once. Only then may it be a pipe.

    Raises:
        DataError: it does not exist, is a folder or a device, or reading fails. The message names it.
    """
    with _failures(path):
        mode = path.stat().st_mode  # before opening: a pipe that nobody writes to would never open
        if not stat.S_ISREG(mode) and not (once and stat.S_ISFIFO(mode)):
            what = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "no regular file"
            raise DataError(f"{path} is {what}, expected a file on disk")
        with open(path, "rb") as f:
            yield _unpacked(f, path.suffix.lower())


def guarded(path: Path, rows: Located) -> Located:
    """Rows that are read from an `opened` file outside of its block, with the same errors."""
    with _failures(path):
        yield from rows


def lines_in(data: bytes) -> int:
    """How many line feeds there are."""
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == 10))


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    """Turn what fails while a file is read into a DataError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        raise DataError(
            f"{path} cannot be unpacked ({brief(error)}): it is damaged, or was not completely written"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({brief(error)})") from None


def _unpacked(file: IO[bytes], suffix: str) -> IO[bytes]:
    """The unpacked content of a file with this suffix."""
    if suffix == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    if suffix == ".bz2":
        return cast(IO[bytes], bz2.BZ2File(file))
    if suffix == ".xz":
        return cast(IO[bytes], lzma.LZMAFile(file))
    if suffix == ".zst":
        return cast(IO[bytes], io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")))
    return file


def names(columns: Iterable[str]) -> str:
    """The names of columns, for a message."""
    return first_few((name if len(name) <= 40 and name.isprintable() else shown(name) for name in columns), limit=20)
