"""Vectors on disk: one `.npy` file, written in shards that each have a checksum. It is read as one memory-mapped array.

`vectors.npy` has room for all N vectors from the start. A shard is written at its place, then named in `shards.jsonl`, to which one
line is added for each, so the cost of a shard does not grow with their number. When all are there, `manifest.json` takes the
place of that file. Folders of version 0.2 and older hold one file for each shard, and are still read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from hardneg.errors import DataError, RunError
from hardneg.storage.arrays import Sharded
from hardneg.storage.arrow import NpyFiles, open_npy
from hardneg.storage.files import add_line, remove_temporary_files, sha256_file, sync_folder, write_at
from hardneg.storage.folders import locked
from hardneg.storage.json_files import read_json, read_json_lines, write_json

PRECISIONS = ("float16", "float32")  # number formats for stored vectors
SHARD_ROWS = 16384

FILE, _LOG = "vectors.npy", "shards.jsonl"

_READ = 1 << 22  # bytes that are hashed at once

_sound: set[tuple[Any, ...]] = set()  # shards that this process has found undamaged, with the state of their files


class Span(NamedTuple):
    """A shard: its number, and the rows from `start` to `stop - 1`."""

    number: int
    start: int
    stop: int


class _Part(TypedDict):
    file: NotRequired[str]  # of version 0.2 and older
    start: Annotated[int, Meta(ge=0)]
    rows: Annotated[int, Meta(ge=0)]
    sha256: str


class _Head(TypedDict):
    key: str
    rows: Annotated[int, Meta(ge=0)]
    dimension: Annotated[int, Meta(ge=0)]
    dtype: Literal["float16", "float32"]


class _Manifest(_Head):
    parts: list[_Part]


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder; RunError if it is missing or damaged. Those of version 0.1 have no checksum."""
    path = folder / "manifest.json"
    found = read_json(path, _Manifest)
    unknown = sorted(found.keys() - {*_Head.__annotations__, "parts"})
    if unknown:
        raise RunError(f"{path} is damaged: it holds an unknown entry {unknown[0]!r}")
    return found


class EmbeddingStore:
    """N vectors in a folder: `vectors.npy`, and `manifest.json` with the SHA-256 of each of its shards.

    A shard counts as written when it is named, so an interrupted encoding continues with the first missing shard.

    Args:
        folder: where the files are, or will be.
        key: identifies the vectors: a hash of the weights, the prompt, the texts and the number format. Shards in the
            folder that have another key are not reused.
        rows: N.
        dimension: d.
        dtype: number format on disk, one of `PRECISIONS`.
    """

    def __init__(self, folder: Path, key: str, rows: int, dimension: int, dtype: str = "float16") -> None:
        self.folder, self.rows, self.dimension, self.dtype = folder, rows, dimension, np.dtype(dtype)
        self.head: dict[str, Any] = {"key": key, "rows": rows, "dimension": dimension, "dtype": str(self.dtype)}
        self.parts: list[dict[str, Any]] = []
        self._shards = -(-rows // SHARD_ROWS)
        self._read_parts()

    @classmethod
    def at(cls, folder: Path) -> EmbeddingStore:
        """The vectors in a folder; RunError if its manifest is missing or damaged."""
        head = _read_manifest(folder)
        if len(head["parts"]) != -(-head["rows"] // SHARD_ROWS):
            raise RunError(f"{folder}/manifest.json names {len(head['parts'])} shards for {head['rows']:,} vectors")
        return cls(folder, head["key"], head["rows"], head["dimension"], head["dtype"])

    def span(self, number: int) -> Span:
        """The rows of a shard."""
        return Span(number, number * SHARD_ROWS, min((number + 1) * SHARD_ROWS, self.rows))

    @property
    def _header(self) -> bytes:
        """The beginning of `vectors.npy`, as `numpy.save` writes it."""
        shape = (self.rows, self.dimension)
        described = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        text = repr(dict(sorted(described.items()))).encode()
        length = -(-(len(text) + 11) // 64) * 64 - 10
        return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text.ljust(length - 1) + b"\n"

    @property
    def _row_bytes(self) -> int:
        return self.dimension * self.dtype.itemsize

    def _read_parts(self) -> None:
        """Find the shards that exist, fit the key and are undamaged. All others are encoded again."""
        named, known = self._named(), {part["sha256"] for part in self.parts}
        fitting = [part for part in named if self._fits(part)]
        sound = [part for part in fitting if part["sha256"] in known or self._intact(part)]
        self.parts = sorted(sound, key=lambda part: int(part["start"]))

    def _named(self) -> list[dict[str, Any]]:
        """The shards that the manifest names, or those that were written before an interruption."""
        log = self.folder / _LOG
        if log.is_file():
            lines = read_json_lines(log, _Head, _Part)
            if lines and lines[0] == self.head:
                return list({part["start"]: part for part in lines[1:]}.values())
        try:
            stored = _read_manifest(self.folder)
        except RunError:
            return []
        same = {name: stored.get(name) for name in self.head} == self.head
        return list(stored["parts"]) if same else []

    def _fits(self, part: dict[str, Any]) -> bool:
        number = part["start"] // SHARD_ROWS
        _, start, stop = self.span(number)
        name = part.get("file")
        return (
            number < self._shards
            and (part["start"], part["rows"]) == (start, stop - start)
            and name in (None, f"part-{number:05d}.npy")
        )

    def _intact(self, part: dict[str, Any]) -> bool:
        """Whether a shard has the recorded checksum. What was found so is not read again while its file stays as it is."""
        path = self.folder / part.get("file", FILE)
        try:
            status = path.stat()
            if "file" in part:
                return bool(sha256_file(path) == part["sha256"])
            state = status.st_ino, status.st_size, status.st_mtime_ns
            seen = (os.path.realpath(path), *state, part["start"], part["sha256"])
            if seen in _sound:
                return True
            offset, size = self._place(part)
            with open(path, "rb") as file:
                same = file.read(len(self._header)) == self._header and _sha256_of(file, offset, size) == part["sha256"]
        except OSError:
            return False
        if same:
            _sound.add(seen)
        return same

    def _place(self, part: dict[str, Any]) -> tuple[int, int]:
        """(where the shard begins in `vectors.npy`, its size), in bytes."""
        return len(self._header) + part["start"] * self._row_bytes, part["rows"] * self._row_bytes

    def fill(self, encode: Callable[[int, int], NDArray[np.floating]], advance: Callable[[int], None]) -> None:
        """Encode and write the missing shards, one after the other. A shard is written while the next one is encoded.

        Args:
            encode: `encode(start, stop)` returns the vectors of these rows, `[stop - start, d]`.
            advance: called with the number of rows of each shard that exists already.

        Raises:
            RunError: another process writes the same vectors, or the disk is full.
            DataError: `encode` returned vectors of another shape, or some that are not finite in the number format.
        """
        self.fill_with(lambda spans: ((span.number, encode(span.start, span.stop)) for span in spans), advance)

    def fill_with(
        self,
        encode: Callable[[list[Span]], Iterable[tuple[int, NDArray[np.floating]]]],
        advance: Callable[[int], None],
    ) -> None:
        """Encode and write the missing shards, in any order.

        Args:
            encode: is given the missing shards; yields the number of a shard and its vectors, as soon as they are there.
            advance: called with the number of rows of each shard that exists already.

        Raises:
            As `fill`.
        """
        if self.complete and not (self.folder / _LOG).is_file():
            advance(self.rows)
            return
        with locked(self.folder, "vectors"):
            self._read_parts()  # another process may have written some since
            remove_temporary_files(self.folder)
            if not self.complete:
                self._begin()
            self._fill(encode, advance)
            self._finish()

    def _fill(
        self, encode: Callable[[list[Span]], Iterable[tuple[int, NDArray[np.floating]]]], advance: Callable[[int], None]
    ) -> None:
        existing = {int(part["start"]) // SHARD_ROWS for part in self.parts}
        spans = [self.span(i) for i in range(self._shards) if i not in existing]
        advance(self.rows - sum(span.stop - span.start for span in spans))
        if not spans:
            return
        self._check_space(spans)
        with ThreadPoolExecutor(1) as background:
            writing: Future[None] | None = None
            for number, vectors in encode(spans):
                cast = self._checked(number, vectors)
                if writing is not None:
                    writing.result()
                writing = background.submit(self._write, number, cast)
            if writing is not None:
                writing.result()

    def _check_space(self, spans: list[Span]) -> None:
        """RunError if the disk has less room than the missing shards need: better now than after hours."""
        needed = sum(span.stop - span.start for span in spans) * self._row_bytes
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise RunError(
                f"the vectors need {needed / 1e9:,.1f} GB in {self.folder}, and the disk has {free / 1e9:,.1f} GB left: free "
                f"space, or choose a folder on another disk"
            )

    def _checked(self, number: int, vectors: NDArray[np.floating]) -> NDArray[np.floating]:
        """The vectors of a shard in the number format on disk; DataError if they are not what they should be."""
        _, start, stop = self.span(number)
        if vectors.shape != (stop - start, self.dimension):
            raise DataError(
                f"the encoder returned shape {list(vectors.shape)} for {stop - start:,} texts, "
                f"expected [{stop - start}, {self.dimension}]"
            )
        with np.errstate(over="ignore"):
            cast = vectors.astype(self.dtype)
        bad = ~np.isfinite(cast).all(1)
        if bad.any():
            first = start + int(np.flatnonzero(bad)[0])
            raise DataError(
                f"{int(bad.sum()):,} vectors are NaN or infinite as {self.dtype}, the first in row {first}: "
                f"either the encoder returned such values, or they need --precision float32"
            )
        return cast

    def _begin(self) -> None:
        """Make the file with room for all vectors, and begin to name those that are written; take over those of old files."""
        kept = [part for part in self.parts if "file" not in part]
        old = [part for part in self.parts if "file" in part]
        if not kept:
            with self._writing():
                (self.folder / _LOG).unlink(missing_ok=True)
                with open(self.folder / FILE, "wb") as file:
                    file.write(self._header)
                    file.truncate(len(self._header) + self.rows * self._row_bytes)
        if not (self.folder / _LOG).is_file():
            with self._writing():
                add_line(self.folder / _LOG, self.head)
                for part in kept:
                    add_line(self.folder / _LOG, part)
                sync_folder(self.folder)
        self.parts = kept
        for part in old:
            array = open_npy(self.folder / part["file"], RunError)
            if array.shape == (part["rows"], self.dimension) and array.dtype == self.dtype:
                self._write(part["start"] // SHARD_ROWS, array)

    def _write(self, number: int, vectors: NDArray[np.floating]) -> None:
        """Write a shard to its place, and then name it."""
        _, start, stop = self.span(number)
        data = np.ascontiguousarray(vectors).data.cast("B")
        part = {"start": start, "rows": stop - start, "sha256": hashlib.sha256(data).hexdigest()}
        with self._writing():
            write_at(self.folder / FILE, self._place(part)[0], data)
            add_line(self.folder / _LOG, part)
        self.parts = sorted([*self.parts, part], key=lambda each: int(each["start"]))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn errors of the disk into RunError, which says what is kept."""
        try:
            yield
        except OSError as error:
            kept = sum(int(part["rows"]) for part in self.parts)
            raise RunError(
                f"{self.folder / FILE} cannot be written ({error.strerror or error}). {kept:,} of {self.rows:,} vectors are kept: "
                f"free space on the disk, or check the permissions of the folder, and run the same command again, which goes on from "
                f"there (mine and train with --resume)"
            ) from error

    def _finish(self) -> None:
        """Name all shards in the manifest, once they are all written."""
        if not self.complete or not (self.folder / _LOG).is_file():
            return
        with self._writing():
            write_json(self.folder / "manifest.json", {**self.head, "parts": self.parts}, checksum=True)
            (self.folder / _LOG).unlink()
            for path in self.folder.glob("part-[0-9]*.npy"):
                path.unlink()
            sync_folder(self.folder)

    @property
    def complete(self) -> bool:
        """Whether all shards are written."""
        return len(self.parts) == self._shards

    def open(self) -> NDArray[np.floating] | Sharded:
        """All vectors as one memory-mapped `[N, d]` array. The store must be complete. RunError if a file has another shape."""
        if not any("file" in part for part in self.parts):
            array = open_npy(self.folder / FILE, RunError)
            self._check_shape(FILE, array.dtype, array.shape, self.rows)
            return array
        files = NpyFiles([self.folder / part["file"] for part in self.parts], RunError)
        for part, shape in zip(self.parts, files.shapes, strict=True):
            self._check_shape(part["file"], files.dtype, shape, part["rows"])
        return files[0] if len(files) == 1 else Sharded(files)

    def _check_shape(self, file: str, dtype: np.dtype[Any], shape: tuple[int, ...], rows: int) -> None:
        if shape != (rows, self.dimension) or dtype != self.dtype:
            raise RunError(
                f"{self.folder / file} holds {dtype} {list(shape)}, expected {self.dtype} "
                f"[{rows}, {self.dimension}]: remove {self.folder}, and encode again"
            )


def _sha256_of(file: IO[bytes], offset: int, size: int) -> str:
    """SHA-256 of a part of a file; it is not that of any vectors if the file ends before."""
    digest = hashlib.sha256()
    file.seek(offset)
    while size and (data := file.read(min(size, _READ))):
        digest.update(data)
        size -= len(data)
    return digest.hexdigest()
