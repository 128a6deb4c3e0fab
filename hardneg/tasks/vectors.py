"""The vectors of a plan, opened piece by piece: a worker maps the pieces that it reads, and checks each once."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.encoders.precomputed import open_aligned
from hardneg.errors import RunError
from hardneg.index.exact import ExactIndex
from hardneg.index.ivf import IVFIndex
from hardneg.index.vectors import VectorStore
from hardneg.storage.arrays import Float, Int, Rows, gathered
from hardneg.storage.files import fingerprint
from hardneg.storage.vectors import EmbeddingStore
from hardneg.tasks.graph import named
from hardneg.tasks.plan import Given, Model, Plan
from hardneg.tasks.records import Damaged, Records

_OPEN = 64  # pieces that are mapped at once


class Pieces:
    """Vectors `[n, d]` that lie in several arrays, which are opened when rows of them are read.

    Indexed by a slice or an integer array of rows, as `Sharded`.

    Args:
        bounds: rows at which the arrays begin, and their end, in the numbers of the whole.
        shape: (number of rows of the whole, d).
        dtype: number format.
        opened: opens the array of a number.
        start, stop: the rows that this object holds.
    """

    ndim = 2

    def __init__(
        self, bounds: list[int], dimension: int, dtype: Any, opened: Callable[[int], Any], start: int = 0,
        stop: int | None = None,
    ) -> None:  # fmt: skip
        self.bounds, self.dtype, self._opened = np.array(bounds), np.dtype(dtype), opened
        self.start, self.stop = start, bounds[-1] if stop is None else stop
        self.shape = (self.stop - start, dimension)
        self.size = self.shape[0] * dimension

    def __len__(self) -> int:
        return self.shape[0]

    def part(self, start: int, stop: int) -> Pieces:
        """The vectors of the rows from `start` to `stop`, without reading them."""
        at = self.start
        return Pieces(self.bounds.tolist(), self.shape[1], self.dtype, self._opened, at + start, at + stop)

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> NDArray[np.floating]:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self._span(self.start + start, self.start + max(start, stop))
            rows = np.arange(start, stop, step)
        rows = np.asarray(rows, np.int64) + self.start
        return gathered(rows, self.bounds, self._opened, np.empty((len(rows), self.shape[1]), self.dtype))

    def _span(self, start: int, stop: int) -> NDArray[np.floating]:
        if start >= stop:
            return np.empty((0, self.shape[1]), self.dtype)
        first, last = (int(np.searchsorted(self.bounds, row, "right")) - 1 for row in (start, stop - 1))
        spans = []
        for number in range(first, last + 1):
            begin, end = self.bounds[number : number + 2]
            spans.append(self._opened(number)[max(start, begin) - begin : min(stop, end) - begin])
        whole: NDArray[np.floating] = spans[0] if len(spans) == 1 else np.concatenate(spans)
        return whole


class _Known:
    """Vectors whose norms are known: they are not read again to measure them."""

    def __init__(self, norms: Float, *args: Any, **named_arguments: Any) -> None:
        self._known = norms
        super().__init__(*args, **named_arguments)

    def norms(self) -> Float:
        return np.array(self._known, np.float32)


class Corpus(_Known, VectorStore):
    """The documents of the whole dataset, or of a shard, to score pairs."""


class ShardIndex(_Known, ExactIndex):
    """Exact search in a shard of the corpus."""


class ShardLists(_Known, IVFIndex):
    """The part of an inverted file that lies in a shard, or the whole; lists are probed as in the whole.

    Attributes:
        whole: int64 `[L]`, the number of documents of each list in the whole corpus.
        wanted: the number of neighbors that is searched for in the whole corpus.
        groups: numbers of queries that are probed together, in their order; the shape of a product may change its rounding.
    """

    whole: Int
    wanted: int
    groups: list[int] | None = None

    @property
    def sizes(self) -> Int:
        return self.whole

    def _probes(self, exact: Float, k: int, pool: Any) -> Any:
        if self.groups is None:
            return super()._probes(exact, self.wanted, pool)
        found, start = [], 0
        for count in self.groups:
            probes = super()._probes(exact[start : start + count], self.wanted, pool)
            found.append(probes._replace(queries=probes.queries + start))
            start += count
        if not found:
            return super()._probes(exact, self.wanted, pool)
        return type(found[0])(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def piece_store(
    folder: Path, model: Model, number: int, side: str, piece: int, bounds: list[int], precision: str
) -> EmbeddingStore:
    """The vectors of a piece: those of the rows from `bounds[piece]` to `bounds[piece + 1]`, in a folder of their own."""
    start, stop = bounds[piece : piece + 2]
    key = fingerprint([model.keys[side], start, stop])
    place = folder / "progress" / "vectors" / named("encode", number, side, piece)
    return EmbeddingStore(place, key, stop - start, model.dimension, precision)


def encoded_vectors(folder: Path, plan: Plan, records: Records, side: str, model: int = 0) -> Pieces:
    """The vectors of a side that the tasks of the plan encode. A damaged piece has to be encoded again: `Damaged`."""
    bounds, precision = plan.pieces(side), str(plan.config["precision"])

    @functools.lru_cache(_OPEN)
    def opened(piece: int) -> Any:
        task = named("encode", model, side, piece)
        store = piece_store(folder, plan.models[model], model, side, piece, bounds, precision)
        if not store.complete:
            records.remove(task)
            raise Damaged(task, store.folder)
        return store.open()

    return Pieces(bounds, plan.models[model].dimension, precision, opened)


def given_vectors(pairs: Pairs, given: Given, side: str) -> Pieces:
    """Vectors in a file; RunError if what is read of it is not what it was when the plan was written."""
    whole: list[Any] = []

    def array() -> Any:
        if not whole:
            whole.append(open_aligned(given.file, pairs, side))
            if whole[0].shape != (given.rows[-1], given.dimension) or whole[0].dtype != given.dtype:
                raise _changed(given.file)
        return whole[0]

    @functools.lru_cache(None)
    def opened(piece: int) -> Any:
        start, stop = given.rows[piece : piece + 2]
        vectors = rows_between(array(), start, stop)
        if digest_of(vectors) != given.sha256[piece]:
            raise _changed(given.file)
        return vectors

    return Pieces(given.rows, given.dimension, given.dtype, opened)


def _changed(file: str) -> RunError:
    return RunError(f"{file} has changed since the plan was written: restore it, or plan anew with another --out")


def rows_between(vectors: Any, start: int, stop: int) -> Any:
    """The rows from `start` to `stop`, without reading them."""
    if isinstance(vectors, Rows):
        return Rows(vectors.array, vectors.rows[start:stop])
    return vectors[start:stop]


def digest_of(vectors: Any) -> str:
    """SHA-256 of vectors `[n, d]`."""
    digest = hashlib.sha256(f"{tuple(vectors.shape)} {vectors.dtype.str}".encode())
    step = max(1, (1 << 24) // max(1, vectors.shape[1] * vectors.dtype.itemsize))
    for start in range(0, len(vectors), step):
        digest.update(np.ascontiguousarray(vectors[start : start + step]).tobytes())
    return digest.hexdigest()
