"""Files that are either whole or not there: atomic writes, checksums, and sharded embeddings on top of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.errors import DataError, RunError

SHARD_ROWS = 16384


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; renamed to it, synced to disk, when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """After a rename in it: that, too, has to reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; RunError when the file is missing or holds something else."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not readable as JSON ({error}): the file is damaged") from None
    if not isinstance(value, dict):
        raise RunError(f"{path} holds a JSON {type(value).__name__}, expected an object: the file is damaged")
    return value


def sha256_file(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_array(path: Path, array: NDArray[Any]) -> str:
    """Write `path` (.npy) whole or not at all; returns its SHA-256."""
    with atomic_path(path) as temporary, open(temporary, "wb") as f:
        np.save(f, array, allow_pickle=False)
    return sha256_file(path)


def read_array(path: Path, sha256: str) -> NDArray[Any]:
    """The array in `path`, read after its checksum was found right; RunError otherwise."""
    check_file(path, sha256)
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise RunError(f"{path} is no array ({error}): it has to be made again") from None
    return array


def check_file(path: Path, sha256: str) -> None:
    """RunError unless the file is there and has that checksum."""
    if not path.is_file() or sha256_file(path) != sha256:
        raise RunError(f"{path} is missing or damaged (its checksum is not the recorded one): it has to be made again")


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON-able value, written in one canonical way."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Sharded:
    """Several `[n_i, d]` arrays read as one `[N, d]`: slices and integer rows, nothing else; never copied whole."""

    ndim = 2

    def __init__(self, parts: list[NDArray[np.floating]]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(len(part) for part in parts)])
        self.shape = (int(self.starts[-1]), parts[0].shape[1])
        self.dtype = parts[0].dtype
        self.size = self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> NDArray[np.floating]:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self._span(start, max(start, stop))
            rows = np.arange(start, stop, step)
        rows = np.asarray(rows)
        out = np.empty((len(rows), self.shape[1]), self.dtype)
        shard = np.searchsorted(self.starts, rows, "right") - 1
        for i in np.unique(shard):
            here = np.flatnonzero(shard == i)
            out[here] = self.parts[i][rows[here] - self.starts[i]]
        return out

    def _span(self, start: int, stop: int) -> NDArray[np.floating]:
        first, last = (int(np.searchsorted(self.starts, row, "right")) - 1 for row in (start, max(start, stop - 1)))
        pieces = [
            part[max(start - begin, 0) : max(stop - begin, 0)]
            for part, begin in zip(self.parts[first : last + 1], self.starts[first:], strict=False)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [self.parts[0][:0]])


class Rows:
    """Selected rows of an array, read on demand: what maps documents to the rows of an embedding file."""

    ndim = 2

    def __init__(self, array: Any, rows: NDArray[np.integer]) -> None:
        self.array, self.rows = array, rows
        self.shape = (len(rows), array.shape[1])
        self.dtype = array.dtype
        self.size = self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> NDArray[np.floating]:
        wanted: NDArray[np.floating] = self.array[self.rows[rows]]
        return wanted


class EmbeddingStore:
    """Vectors on disk: `<folder>/part-00000.npy`, ... and `manifest.json` with a SHA-256 for each.

    `key` says what the vectors are of (weights, prompt, texts, number format); a folder with another
    key is never reused. A shard is written whole or not at all, so an interrupted encoding goes on
    with the first shard that is missing.
    """

    def __init__(self, folder: Path, key: str, rows: int, dimension: int, dtype: str = "float16") -> None:
        self.folder, self.rows, self.dimension, self.dtype = folder, rows, dimension, np.dtype(dtype)
        self.head: dict[str, Any] = {"key": key, "rows": rows, "dimension": dimension, "dtype": str(self.dtype)}
        self.parts: list[dict[str, Any]] = []
        manifest = folder / "manifest.json"
        if manifest.exists():
            stored = read_json(manifest)
            if {name: stored.get(name) for name in self.head} == self.head:
                self.parts = [part for part in stored["parts"] if self._whole(part)]
        self._wanted = [min(SHARD_ROWS, rows - start) for start in range(0, rows, SHARD_ROWS)]

    def _whole(self, part: dict[str, Any]) -> bool:
        path = self.folder / str(part["file"])
        return path.parent == self.folder and path.is_file() and sha256_file(path) == part["sha256"]

    def fill(self, encode: Callable[[int, int], NDArray[np.floating]], advance: Callable[[int], None]) -> None:
        """Write the missing shards; `encode(start, stop)` gives the vectors of those rows, `[stop - start, d]`."""
        have = {int(part["start"]): part for part in self.parts}
        self.parts = []
        for i, count in enumerate(self._wanted):
            start = i * SHARD_ROWS
            if start in have:
                self.parts.append(have[start])
                advance(count)
                continue
            vectors = encode(start, start + count)
            if vectors.shape != (count, self.dimension):
                raise DataError(
                    f"the encoder returned shape {list(vectors.shape)} for {count:,} texts, "
                    f"expected [{count}, {self.dimension}]"
                )
            with np.errstate(over="ignore"):
                cast = vectors.astype(self.dtype)
            lost = ~np.isfinite(cast).all(1)
            if lost.any():
                first = start + int(np.flatnonzero(lost)[0])
                raise DataError(
                    f"{int(lost.sum()):,} vectors are NaN or infinite as {self.dtype}, the first in row {first}: "
                    f"the encoder returned such values, or they need --precision float32"
                )
            path = self.folder / f"part-{i:05d}.npy"
            self.parts.append({"file": path.name, "start": start, "rows": count, "sha256": write_array(path, cast)})
            write_json(self.folder / "manifest.json", {**self.head, "parts": self.parts})

    @property
    def complete(self) -> bool:
        return [part["rows"] for part in self.parts] == self._wanted

    def open(self) -> NDArray[np.floating] | Sharded:
        """All vectors, memory-mapped, read as one `[N, d]` array."""
        maps = [np.load(self.folder / part["file"], mmap_mode="r", allow_pickle=False) for part in self.parts]
        return maps[0] if len(maps) == 1 else Sharded(maps)
