"""Embeddings on disk: shards with checksums, written once and read as one memory-mapped array."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.errors import DataError
from hardneg.storage.arrays import Sharded
from hardneg.storage.files import read_json, sha256_file, write_array, write_json

PRECISIONS = ("float16", "float32")  # number formats of stored vectors
SHARD_ROWS = 16384


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
