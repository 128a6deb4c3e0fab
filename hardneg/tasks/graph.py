"""The tasks of a plan, what each needs, and which are ready."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hardneg.tasks.plan import SIDES, Plan


class Task(NamedTuple):
    """A piece of work whose results are files.

    Attributes:
        name: unique in the plan; the record of a finished task is called after it.
        kind: the function that does it; empty for a gate, which is done as soon as all that it needs is done.
        words, numbers: what it is given.
        after: the names of the tasks whose results it reads.
        shard: the shard of the corpus that it reads, -1: none. A worker prefers tasks of the shard that it has open.
    """

    name: str
    kind: str
    words: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    after: Sequence[str] = ()
    shard: int = -1


def named(kind: str, *words: str | int) -> str:
    """The name of a task, such as `search-r0-00003-00001`."""
    return "-".join([kind, *(f"{word:05d}" if isinstance(word, int) else word for word in words)])


def gate(*words: str) -> str:
    return named("all", *words)


def tasks_of(plan: Plan) -> Iterator[Task]:
    """All tasks, in an order in which they can be done; gates have an empty `kind`."""
    yield from _encoding(plan)
    shards = range(plan.shard_count)
    for j in shards:
        yield Task(named("norms", j), "norms", (), (j,), _vectors(plan, "documents", *plan.shard(j)), j)
    yield Task(gate("norms"), "", after=[named("norms", j) for j in shards])
    for name, index in plan.indexes.items():
        if index.kind == "ivf":
            yield from _lists(plan, name)
    if "graph" in plan.indexes:
        yield from _neighbors(plan)
    if plan.nearest:
        for i in range(plan.block_count):
            yield from _search(plan, "near", i, ())
        yield Task(gate("near"), "", after=[named("merge", "near", i) for i in range(plan.block_count)])
    for i in range(plan.block_count):
        yield from _block(plan, i)
    yield from _end(plan)


def _encoding(plan: Plan) -> Iterator[Task]:
    for m in range(len(plan.models)):
        for side in SIDES:
            count = len(plan.pieces(side)) - 1
            for piece in range(count):
                yield Task(named("encode", m, side, piece), "encode", (side,), (m, piece))
            names = [named("encode", m, side, piece) for piece in range(count)]
            yield Task(gate("encode", str(m), side), "", after=names)


def _vectors(plan: Plan, side: str, start: int, stop: int) -> list[str]:
    """The tasks that make the vectors of these rows."""
    if plan.given:
        return []
    return [named("encode", 0, side, piece) for piece in plan.pieces_of(side, start, stop)]


def _lists(plan: Plan, name: str) -> Iterator[Task]:
    """Train the centroids of an inverted file, assign the documents of every shard, and tune it."""
    side = plan.indexes[name].queries
    shards = range(plan.shard_count)
    sampled = [gate("norms"), *([] if plan.given else [gate("encode", "0", side)])]
    yield Task(named("centroids", name), "centroids", (name,), (), [gate("norms")])
    for j in shards:
        yield Task(named("assign", name, j), "assign", (name,), (j,), [named("centroids", name)], j)
        yield Task(named("truth", name, j), "truth", (name,), (j,), sampled, j)
    both = [named(kind, name, j) for kind in ("assign", "truth") for j in shards]
    yield Task(named("tune", name), "tune", (name,), (), both)


def _ready_to_search(plan: Plan, name: str, shard: int) -> str:
    return named("tune", name) if plan.indexes[name].kind == "ivf" else named("norms", shard)


def _search(plan: Plan, which: str, i: int, after: Sequence[str]) -> Iterator[Task]:
    """Search a block of queries in every shard, and merge the answers."""
    queries = _vectors(plan, "queries", *plan.block(i))
    shards = range(plan.shard_count)
    for j in shards:
        needs = [*queries, _ready_to_search(plan, "main", j), *after]
        yield Task(named("search", which, i, j), "search", (which,), (i, j), needs, j)
    yield Task(named("merge", which, i), "merge", (which,), (i,), [named("search", which, i, j) for j in shards])


def _neighbors(plan: Plan) -> Iterator[Task]:
    """The same grid with documents as queries, then the neighbor vectors of all."""
    shards, blocks = range(plan.shard_count), range(len(plan.graph_blocks()) - 1)
    for g in blocks:
        for j in shards:
            needs = [gate("norms"), _ready_to_search(plan, "graph", j)]
            yield Task(named("neighbors", g, j), "neighbors", (), (g, j), needs, j)
        yield Task(named("nearest", g), "nearest", (), (g,), [named("neighbors", g, j) for j in shards])
    yield Task("near", "near", after=[named("nearest", g) for g in blocks])
    for g in blocks:
        yield Task(named("count", g), "count", (), (g,), ["near"])
    yield Task("graph", "graph", after=[named("count", g) for g in blocks])


def _block(plan: Plan, i: int) -> Iterator[Task]:
    """Search, filter and sample a block of queries, a round for each depth, and write its parts."""
    across = ["graph"] if "graph" in plan.indexes else []
    across += [gate("near")] if plan.nearest else []
    across += [gate("encode", str(m), side) for m in range(0 if plan.given else 1, len(plan.models)) for side in SIDES]
    before: list[str] = []
    for r in range(len(plan.depths)):
        yield from _search(plan, f"r{r}", i, before)
        judged = named("judge", f"r{r}", i)
        yield Task(judged, "judge", (f"r{r}",), (i,), [named("merge", f"r{r}", i), gate("norms"), *across, *before])
        before = [judged]
    yield Task(named("write", i), "write", (), (i,), before)


def _end(plan: Plan) -> Iterator[Task]:
    """Put the vectors and the parts together: what `hardneg mine` leaves."""
    stores = [(m, side) for m in range(len(plan.models)) for side in SIDES]
    for m, side in stores:
        yield Task(named("store", m, side), "store", (side,), (m,), [gate("encode", str(m), side)])
    yield Task(gate("blocks"), "", after=[named("write", i) for i in range(plan.block_count)])
    yield Task("finish", "finish", after=[gate("blocks"), *(named("store", m, side) for m, side in stores)])


class Schedule:
    """Which tasks are done, and which can be done now. Marking a task costs as much as the number of tasks that wait for it.

    Args:
        plan: the plan.

    Attributes:
        tasks: all tasks without the gates, by name, in their order.
        done: the names of those that are done.
        ready: the names of those that can be done now and are not done.
    """

    def __init__(self, plan: Plan) -> None:
        every = {task.name: task for task in tasks_of(plan)}
        self.tasks = {name: task for name, task in every.items() if task.kind}
        self._every = every
        self._order = {name: place for place, name in enumerate(every)}
        self._names = list(every)
        # Places of ready tasks, of each shard and of all (None), the first on top; tasks that are no longer ready are still there.
        self._heaps: dict[int | None, list[int]] = {None: []}
        self._missing = {name: len(set(task.after)) for name, task in every.items()}
        self._waiting: dict[str, list[str]] = {name: [] for name in every}
        for name, task in every.items():
            for needed in set(task.after):
                self._waiting[needed].append(name)
        self.done: set[str] = set()
        self._left = len(self.tasks)  # that are not done
        self.ready: set[str] = set()
        for name in [name for name, count in self._missing.items() if count == 0 and every[name].kind]:
            self._set_ready(name)
        for name in [name for name, count in self._missing.items() if count == 0 and not every[name].kind]:
            self.mark(name)

    @property
    def finished(self) -> bool:
        return not self._left

    def _set_ready(self, name: str) -> None:
        self.ready.add(name)
        for heap in (self._heaps[None], self._heaps.setdefault(self._every[name].shard, [])):
            heapq.heappush(heap, self._order[name])

    def mark(self, name: str) -> None:
        """A task is done."""
        stack = [name]
        while stack:
            each = stack.pop()
            if each in self.done:
                continue
            self.done.add(each)
            self._left -= bool(self._every[each].kind)
            self.ready.discard(each)
            for waiting in self._waiting[each]:
                self._missing[waiting] -= 1
                if self._missing[waiting] == 0 and waiting not in self.done:
                    if self._every[waiting].kind:
                        self._set_ready(waiting)
                    else:
                        stack.append(waiting)

    def unmark(self, name: str) -> None:
        """The results of a task are gone: it has to be done again. What was made from them before stays done."""
        stack = [name]
        while stack:
            each = stack.pop()
            if each not in self.done:
                continue
            self.done.discard(each)
            self._left += bool(self._every[each].kind)
            for waiting in self._waiting[each]:
                self._missing[waiting] += 1
                self.ready.discard(waiting)
                if not self._every[waiting].kind:
                    stack.append(waiting)
            if self._missing[each] == 0 and self._every[each].kind:
                self._set_ready(each)

    def set_done(self, names: set[str]) -> None:
        """Exactly these tasks are done."""
        for name in (self.done & self.tasks.keys()) - names:
            self.unmark(name)
        for name in (names & self.tasks.keys()) - self.done:
            self.mark(name)

    def choose(self, shard: int = -1, without: set[str] | frozenset[str] = frozenset()) -> Task | None:
        """The next task: one of the shard that is open if there is one, else the first; None: nothing can be done now."""
        name = self._first(shard, without) or self._first(None, without)
        return None if name is None else self._every[name]

    def _first(self, shard: int | None, without: set[str] | frozenset[str]) -> str | None:
        """The first task that is ready, of a shard or of all."""
        heap, skipped, found = self._heaps.get(shard, []), [], None
        while heap and found is None:
            name = self._names[heap[0]]
            if name not in self.ready:
                heapq.heappop(heap)
            elif name in without:
                skipped.append(heapq.heappop(heap))
            else:
                found = name
        for place in skipped:
            heapq.heappush(heap, place)
        return found

    def needed(self, name: str) -> list[str]:
        """The tasks that have to be done before this one and are not."""
        found, stack, seen = [], list(self._every[name].after), set()
        while stack:
            each = stack.pop()
            if each in seen or each in self.done:
                continue
            seen.add(each)
            if self._every[each].kind:
                found.append(each)
            else:
                stack += self._every[each].after
        return sorted(found, key=lambda each: self._order[each])
