"""Tasks of the documents' own neighbors: the grid of the search with documents as queries, and the neighbor vectors of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.false_negatives.shared_neighbors import EXPANSION, NEAREST, NeighborGraph, NeighborVectors, count_neighbors
from hardneg.index.recall import others
from hardneg.storage.arrays import Int
from hardneg.storage.files import atomic_path, mapped_array, sha256_file
from hardneg.storage.vectors import SHARD_ROWS
from hardneg.tasks.bench import Bench
from hardneg.tasks.graph import Task, named
from hardneg.tasks.records import Outcome
from hardneg.tasks.search import found, merged
from hardneg.tasks.search import neighbors as unpacked

_TOGETHER = SHARD_ROWS  # documents that are searched together where one machine does it
_ROWS = 512  # neighbor vectors that are counted at once


def search_neighbors(bench: Bench, task: Task) -> Outcome:
    """The neighbors of a block of documents in a shard."""
    block, shard = task.numbers
    rows, groups = _rows(bench, block)
    queries = np.asarray(bench.vectors("documents")[rows], np.float32)
    k = min(NEAREST, bench.plan.documents)
    keys = found(bench.index("graph", shard), queries, k, groups, bench.plan.shard(shard)[0])
    return Outcome(bench.records.save(task.name, {"keys": keys}))


def _rows(bench: Bench, block: int) -> tuple[Int, list[int]]:
    """The documents of a block, and how many of them are searched together. With lists, a block holds few of these."""
    start, stop = bench.plan.graph_blocks()[block : block + 2]
    rows = np.arange(start, stop)
    if bench.plan.indexes["graph"].kind == "ivf":
        rows = np.array(bench.records.array(named("tune", "graph"), "order")[start:stop], np.int64)
    spans = range(0, stop - start, _TOGETHER)
    parts = [np.sort(rows[at : at + _TOGETHER]) for at in spans]
    return np.concatenate(parts), [len(part) for part in parts]


def nearest(bench: Bench, task: Task) -> Outcome:
    """Merge the neighbors of a block of documents; a document is not its own."""
    (block,) = task.numbers
    rows, _ = _rows(bench, block)
    names = [named("neighbors", block, shard) for shard in range(bench.plan.shard_count)]
    k = min(NEAREST, bench.plan.documents)
    answer = unpacked(merged([bench.records.array(name, "keys") for name in names], k))
    near = np.full((len(rows), NEAREST), -1, np.int32)
    near[:, 0] = rows
    near[:, 1:k] = others(answer.documents, rows)
    farthest = answer.scores[:, -1] if k > 1 else np.full(len(rows), -np.inf, np.float32)
    return Outcome(bench.records.save(task.name, {"near": near, "farthest": farthest}))


def near(bench: Bench, task: Task) -> Outcome:
    """The neighbors of all documents, in the order of their rows."""
    size, blocks = bench.plan.documents, range(len(bench.plan.graph_blocks()) - 1)

    def fill(arrays: dict[str, NDArray[Any]]) -> None:
        for block in blocks:
            rows, _ = _rows(bench, block)
            for name, array in arrays.items():
                array[rows] = bench.records.array(named("nearest", block), name)

    return _written(bench, task, {"near": ((size, NEAREST), np.int32), "farthest": ((size,), np.float32)}, fill)


def count(bench: Bench, task: Task) -> Outcome:
    """The neighbor vectors of a block of documents."""
    (block,) = task.numbers
    start, stop = bench.plan.graph_blocks()[block : block + 2]
    whole = bench.records.array("near", "near")
    parts = [count_neighbors(whole, whole[at : min(at + _ROWS, stop), :EXPANSION]) for at in range(start, stop, _ROWS)]
    vectors = NeighborVectors.joined(parts)
    return Outcome(bench.records.save(task.name, {"members": vectors.members, "counts": vectors.counts}))


def graph(bench: Bench, task: Task) -> Outcome:
    """The neighbor vectors of all documents."""
    bounds = bench.plan.graph_blocks()
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {}
    for name in ("members", "counts"):
        first = bench.records.array(named("count", 0), name)
        shapes[name] = (bench.plan.documents, first.shape[1]), first.dtype

    def fill(arrays: dict[str, NDArray[Any]]) -> None:
        for block in range(len(bounds) - 1):
            for name, array in arrays.items():
                array[bounds[block] : bounds[block + 1]] = bench.records.array(named("count", block), name)

    return _written(bench, task, shapes, fill)


def _written(bench: Bench, task: Task, shapes: dict[str, tuple[tuple[int, ...], Any]], fill: Any) -> Outcome:
    """Write arrays that may be larger than memory, whole or not at all."""
    files: dict[str, str] = {}
    names = list(shapes)

    def write(left: list[str], arrays: dict[str, NDArray[Any]]) -> None:
        if not left:
            fill(arrays)
            for array in arrays.values():
                array.flush()  # type: ignore[attr-defined]
            return
        shape, dtype = shapes[left[0]]
        with atomic_path(_path(bench, task, left[0])) as temporary:
            array = mapped_array(temporary, shape, dtype)
            write(left[1:], {**arrays, left[0]: array})

    write(names, {})
    for name in names:
        path = _path(bench, task, name)
        files[path.relative_to(bench.folder).as_posix()] = sha256_file(path)
    return Outcome(files)


def _path(bench: Bench, task: Task, name: str) -> Path:
    return bench.records.path(task.name, f"{name}.npy")


def graph_of(bench: Bench) -> NeighborGraph:
    """The graph of the documents, mapped into memory."""
    near, farthest = (bench.records.array("near", name) for name in ("near", "farthest"))
    members, counts = (bench.records.array("graph", name) for name in ("members", "counts"))
    return NeighborGraph(near, farthest, NeighborVectors(members, counts), bench.whole.threads)
