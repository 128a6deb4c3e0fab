"""Vectors on disk, in shards with checksums. They are read as one memory-mapped array."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from hardneg.errors import DataError, RunError
from hardneg.storage.arrays import Sharded
from hardneg.storage.arrow import open_npy
from hardneg.storage.files import remove_temporary_files, sha256_file, write_array
from hardneg.storage.folders import locked
from hardneg.storage.json_files import read_json, write_json

PRECISIONS = ("float16", "float32")  # number formats for stored vectors
SHARD_ROWS = 16384


class Span(NamedTuple):
    """A shard: its number, and the rows from `start` to `stop - 1`."""

    number: int
    start: int
    stop: int


class _Part(TypedDict):
    file: str
    start: Annotated[int, Meta(ge=0)]
    rows: Annotated[int, Meta(ge=0)]
    sha256: str


class _Manifest(TypedDict):
    key: str
    rows: Annotated[int, Meta(ge=0)]
    dimension: Annotated[int, Meta(ge=0)]
    dtype: Literal["float16", "float32"]
    parts: list[_Part]


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder; RunError if it is missing or damaged. Those of version 0.1 have no checksum."""
    path = folder / "manifest.json"
    found = read_json(path, _Manifest)
    unknown = sorted(found.keys() - _Manifest.__annotations__.keys())
    if unknown:
        raise RunError(f"{path} is damaged: it holds an unknown entry {unknown[0]!r}")
    return found


class EmbeddingStore:
    """N vectors in a folder: the shards `part-00000.npy`, ... and `manifest.json` with the SHA-256 of each shard.

    Shards are written whole or not at all, so an interrupted encoding continues with the first missing shard.

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
        self._shard_rows = [min(SHARD_ROWS, rows - start) for start in range(0, rows, SHARD_ROWS)]
        self._read_parts()

    @classmethod
    def at(cls, folder: Path) -> EmbeddingStore:
        """The vectors in a folder; RunError if its manifest is missing or damaged."""
        head = _read_manifest(folder)
        if len(head["parts"]) != -(-head["rows"] // SHARD_ROWS):
            raise RunError(f"{folder}/manifest.json names {len(head['parts'])} shards for {head['rows']:,} vectors")
        return cls(folder, head["key"], head["rows"], head["dimension"], head["dtype"])

    def _read_parts(self) -> None:
        """Find the shards that exist, fit the key and are undamaged. All others are encoded again."""
        self.parts = []
        try:
            stored = _read_manifest(self.folder)
        except RunError:
            return
        if {name: stored.get(name) for name in self.head} == self.head:
            self.parts = [part for part in stored["parts"] if self._intact(part)]

    def _intact(self, part: dict[str, Any]) -> bool:
        number = part["start"] // SHARD_ROWS
        path = self.folder / f"part-{number:05d}.npy"
        if part["file"] != path.name or number >= len(self._shard_rows):
            return False
        rows = self._shard_rows[number]
        fits = (part["start"], part["rows"]) == (number * SHARD_ROWS, rows)
        return fits and path.is_file() and sha256_file(path) == part["sha256"]

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
        if self.complete:
            advance(self.rows)
            return
        with locked(self.folder, "vectors"):
            self._read_parts()  # another process may have written some since
            remove_temporary_files(self.folder)
            existing = {int(part["start"]) // SHARD_ROWS for part in self.parts}
            spans = [
                Span(i, i * SHARD_ROWS, i * SHARD_ROWS + rows)
                for i, rows in enumerate(self._shard_rows)
                if i not in existing
            ]
            advance(self.rows - sum(span.stop - span.start for span in spans))
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
        needed = sum(span.stop - span.start for span in spans) * self.dimension * self.dtype.itemsize
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise RunError(
                f"the vectors need {needed / 1e9:,.1f} GB in {self.folder}, and the disk has {free / 1e9:,.1f} GB left: free "
                f"space, or choose a folder on another disk"
            )

    def _checked(self, number: int, vectors: NDArray[np.floating]) -> NDArray[np.floating]:
        """The vectors of a shard in the number format on disk; DataError if they are not what they should be."""
        start, count = number * SHARD_ROWS, self._shard_rows[number]
        if vectors.shape != (count, self.dimension):
            raise DataError(
                f"the encoder returned shape {list(vectors.shape)} for {count:,} texts, "
                f"expected [{count}, {self.dimension}]"
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

    def _write(self, number: int, vectors: NDArray[np.floating]) -> None:
        """Write a shard, and name it in the manifest."""
        path = self.folder / f"part-{number:05d}.npy"
        try:
            digest = write_array(path, vectors)
            start, rows = number * SHARD_ROWS, len(vectors)
            part = {"file": path.name, "start": start, "rows": rows, "sha256": digest}
            self.parts = sorted([*self.parts, part], key=lambda each: int(each["start"]))
            write_json(self.folder / "manifest.json", {**self.head, "parts": self.parts}, checksum=True)
        except OSError as error:
            kept = sum(int(part["rows"]) for part in self.parts if part["file"] != path.name)
            raise RunError(
                f"{path} cannot be written ({error.strerror or error}). {kept:,} of {self.rows:,} vectors are kept: free space "
                f"on the disk, or check the permissions of the folder, and go on with --resume"
            ) from error

    @property
    def complete(self) -> bool:
        """Whether all shards are written."""
        return [part["rows"] for part in self.parts] == self._shard_rows

    def open(self) -> NDArray[np.floating] | Sharded:
        """All vectors as one memory-mapped `[N, d]` array. The store must be complete. RunError if a shard has another shape."""
        maps = [open_npy(self.folder / part["file"], RunError) for part in self.parts]
        for part, vectors in zip(self.parts, maps, strict=True):
            if vectors.shape != (part["rows"], self.dimension) or vectors.dtype != self.dtype:
                raise RunError(
                    f"{self.folder / part['file']} holds {vectors.dtype} {list(vectors.shape)}, expected {self.dtype} "
                    f"[{part['rows']}, {self.dimension}]: remove {self.folder}, and encode again"
                )
        return maps[0] if len(maps) == 1 else Sharded(maps)
