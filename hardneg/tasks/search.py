"""Tasks of the search: a block of queries in a shard of the corpus, and the answers of all shards merged.

A neighbor is one integer, as in `hardneg.index.topk`: of two neighbors the better one is the larger integer, so the k largest of
all shards are the answer of a search of the whole corpus, in its order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hardneg.errors import DataError
from hardneg.index.base import Neighbors
from hardneg.index.topk import NOTHING, pack, unpacked
from hardneg.mining.parts import PART_ROWS
from hardneg.storage.arrays import Float, Int
from hardneg.tasks.bench import Bench
from hardneg.tasks.graph import Task, named
from hardneg.tasks.records import Outcome
from hardneg.tasks.vectors import ShardIndex, ShardLists

_ROWS = 4096  # queries whose answers are merged at once


def search(bench: Bench, task: Task) -> Outcome:
    """Search a block of queries in a shard; in the first round, also score the positives that the shard holds."""
    (which,), (block, shard) = task.words, task.numbers
    rows, groups = rows_of(bench, which, block)
    index, start = bench.index("main", shard), bench.plan.shard(shard)[0]
    queries = np.asarray(bench.vectors("queries")[rows], np.float32)
    k = depth_of(bench, which)
    arrays: dict[str, NDArray[Any]] = {"keys": found(index, queries, k, groups, start)}
    if which == "r0":
        places, scores = _positives(bench, index, rows, queries, shard)
        arrays |= {"places": places, "scores": scores}
    return Outcome(bench.records.save(task.name, arrays), {"rows": len(rows)})


def depth_of(bench: Bench, which: str) -> int:
    """The number of neighbors of a search: `near`, or a round."""
    return int(bench.plan.nearest if which == "near" else bench.plan.depths[int(which[1:])])


def rows_of(bench: Bench, which: str, block: int) -> tuple[Int, list[int]]:
    """The queries of a search, and how many of them lie in each part of the run."""
    start, stop = bench.plan.block(block)
    if which in ("near", "r0"):
        rows = np.arange(start, stop)
    else:
        rows = np.array(bench.records.array(named("judge", f"r{int(which[1:]) - 1}", block), "short"))
    counts = np.bincount((rows - start) // PART_ROWS, minlength=len(bench.plan.parts(block)))
    return rows, [int(count) for count in counts if count]


def found(index: ShardIndex | ShardLists, queries: Float, k: int, groups: list[int], start: int) -> Int:
    """int64 `[n, min(k, size)]`: the packed neighbors of queries in a shard whose first document is row `start` of the corpus."""
    if len(queries) == 0:
        return np.empty((0, min(k, index.size)), np.int64)
    if isinstance(index, ShardLists):
        index.wanted, index.groups = k, groups
    try:
        answer = index.search(queries, min(k, index.size))
    except DataError as error:
        raise DataError(f"queries of a block, whose rows are counted from its first: {error}") from None
    return packed(answer, start)


def packed(answer: Neighbors, start: int) -> Int:
    """int64 `[n, k]`: neighbors as integers, with `start` added to their rows."""
    rows = answer.documents.astype(np.int64)
    keys = pack(torch.from_numpy(answer.scores.copy()), torch.from_numpy(rows + start)).numpy()
    keys[rows < 0] = NOTHING
    return np.asarray(keys)


def _positives(
    bench: Bench, index: ShardIndex | ShardLists, rows: Int, queries: Float, shard: int
) -> tuple[Int, NDArray[np.float32]]:
    """The places of the positives that a shard holds, among all of the block, and their scores."""
    start, stop = bench.plan.shard(shard)
    positives = bench.pairs.positives.take(rows)
    places = np.flatnonzero((positives.values >= start) & (positives.values < stop))
    if not len(places):
        return places, np.empty(0, np.float32)
    of, local = positives.row_numbers()[places], positives.values[places] - start
    distinct, place = np.unique(of, return_inverse=True)
    # The positives of each query side by side, as `pair_scores` takes them.
    column = np.arange(len(of)) - np.searchsorted(of, of)
    table = np.full((len(distinct), int(column.max()) + 1), -1, np.int64)
    table[place, column] = local
    scores = index.pair_scores(queries[distinct], table)
    return places, scores[place, column]


def merge(bench: Bench, task: Task) -> Outcome:
    """Merge the answers of all shards for a block of queries."""
    (which,), (block,) = task.words, task.numbers
    names = [named("search", which, block, shard) for shard in range(bench.plan.shard_count)]
    keys = merged([bench.records.array(name, "keys") for name in names], depth_of(bench, which))
    arrays: dict[str, Any] = {"keys": keys}
    if which == "r0":
        rows, _ = rows_of(bench, which, block)
        scores = np.full(len(bench.pairs.positives.take(rows).values), -np.inf, np.float32)
        for name in names:
            scores[bench.records.array(name, "places")] = bench.records.array(name, "scores")
        arrays["positives"] = scores
    return Outcome(bench.records.save(task.name, arrays), {"rows": len(keys)})


def merged(answers: list[NDArray[np.int64]], k: int) -> Int:
    """int64 `[n, k]`: the k largest of packed neighbors `[n, k_i]`, the largest first; `NOTHING` where there are fewer.

    >>> merged([np.array([[5, 2]]), np.array([[4, NOTHING]])], 3).tolist()
    [[5, 4, 2]]
    """
    n = len(answers[0])
    out = np.full((n, k), NOTHING, np.int64)
    for start in range(0, n, _ROWS):
        best = out[start : start + _ROWS].copy()
        for answer in answers:
            both = np.concatenate([best, answer[start : start + _ROWS]], axis=1)
            both.partition(both.shape[1] - k, axis=1)
            best = both[:, both.shape[1] - k :]
        out[start : start + _ROWS] = np.sort(best, axis=1)[:, ::-1]
    return out


def neighbors(keys: NDArray[np.int64]) -> Neighbors:
    """The neighbors behind packed ones `[n, k]`."""
    return Neighbors(*unpacked(np.array(keys)))
