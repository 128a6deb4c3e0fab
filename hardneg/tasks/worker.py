"""A worker does tasks of a plan: those that it is told, or those that it finds undone and can claim."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hardneg.ambient import own_settings
from hardneg.errors import HardnegError, RunError, UsageError
from hardneg.memory import release
from hardneg.mining.mine import torch_threads
from hardneg.storage.folders import locked
from hardneg.tasks import encode, filtering, finish, lists, neighbors, search
from hardneg.tasks.bench import Bench
from hardneg.tasks.graph import Schedule, Task
from hardneg.tasks.plan import Plan, check_source
from hardneg.tasks.records import Damaged, Outcome

KINDS: dict[str, Callable[[Bench, Task], Outcome]] = {
    "encode": encode.encode,
    "norms": encode.norms,
    "store": encode.store,
    "search": search.search,
    "merge": search.merge,
    "centroids": lists.centroids,
    "assign": lists.assign,
    "truth": lists.truth,
    "tune": lists.tune,
    "neighbors": neighbors.search_neighbors,
    "nearest": neighbors.nearest,
    "near": neighbors.near,
    "count": neighbors.count,
    "graph": neighbors.graph,
    "judge": filtering.judge,
    "write": filtering.write,
    "finish": finish.finish,
}

_POLL, _MOST_POLL = 0.1, 5.0  # seconds between two looks at what others have done


class Worker:
    """Does tasks of the plan in a run folder, one after the other.

    Args:
        folder: the run folder.
        device, batch_size: of encoders.

    Raises:
        RunError: there is no plan, another version of hardneg wrote it, or the dataset has changed since.
    """

    def __init__(self, folder: Path, device: str | None = None, batch_size: int | None = None) -> None:
        self.folder = folder
        self.plan = Plan.load(folder)
        check_source(folder)
        self.bench = Bench(folder, self.plan, device, batch_size)
        sizes = len(self.bench.pairs), len(self.bench.pairs.document_ids)
        if sizes != (self.plan.queries, self.plan.documents):
            raise RunError(
                f"{folder} has {sizes[0]:,} queries and {sizes[1]:,} documents, and its plan is of {self.plan.queries:,} and "
                f"{self.plan.documents:,}: plan anew with another --out"
            )
        self.records = self.bench.records
        self.shard = -1

    @own_settings()
    def do(self, task: Task) -> bool:
        """Do a task. Returns False if somebody else does it, or it is done.

        Raises:
            Damaged: a result that it needs is damaged, and its record was removed. HardnegError: it cannot be done.
        """
        if (self.folder / "run.json").is_file():  # what is missing now was removed at the end
            return False
        with self.records.claim(task.name) as ours:
            if not ours:
                return False
            start = time.perf_counter()
            outcome = KINDS[task.kind](self.bench, task)
            if task.kind != "finish":  # which removes the records
                self.records.write(task.name, list(task.after), outcome, time.perf_counter() - start)
        self.shard = task.shard if task.shard >= 0 else self.shard
        release()
        return True


@contextmanager
def run_is_open(folder: Path) -> Iterator[None]:
    """Hold the run folder open together with other workers, so that nobody replaces it meanwhile."""
    if not (folder / "progress").is_dir() and not (folder / "run.json").is_file():
        raise RunError(f"{folder} holds no plan: write one with hardneg mine SOURCE --out {folder} --plan SHARDS")
    with locked(folder, "run", shared=True):
        yield


def work(
    run: str | Path,
    *,
    task: str | None = None,
    share: tuple[int, int] | None = None,
    wait: float = 600.0,
    threads: int | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> int:
    """Do tasks of the plan in a run folder, until there are none or somebody else does the last ones.

    Args:
        run: the run folder, with a plan (`hardneg mine SOURCE --out RUN --plan SHARDS`).
        task: do this task alone; what it needs must be done.
        share: (i, n): do only every n-th task, from the i-th (from 1) on; other workers do the others.
        wait: seconds in which no task is finished, by anybody, after which the worker gives up.
        threads, device, batch_size: speed, not the result.
        report: called with a line for each finished task.

    Returns:
        The number of tasks that this worker did.

    Raises:
        UsageError: there is no such task or share. RunError: there is no plan, or it is another version's, or its inputs have
            changed; what the task needs is not done; nothing was finished for `wait` seconds. DataError: as `mine`.
    """
    folder = Path(run)
    if share is not None and not 1 <= share[0] <= share[1]:
        raise UsageError(f"the share {share[0]}/{share[1]} is none: give 1/N to N/N")
    with torch_threads(threads), run_is_open(folder):
        if (folder / "run.json").is_file():
            report(f"{folder} is finished")
            return 0
        worker = Worker(folder, device, batch_size)
        loop = _Loop(worker, share, wait, report)
        done = loop.one(task) if task is not None else loop.all()
        if loop.over:
            shutil.rmtree(folder / "progress", ignore_errors=True)
        return done


class _Loop:
    """The tasks of one worker that nobody drives."""

    def __init__(
        self, worker: Worker, share: tuple[int, int] | None, wait: float, report: Callable[[str], None]
    ) -> None:
        self.worker, self.wait, self.report = worker, wait, report
        self.schedule = Schedule(worker.plan)
        names = list(self.schedule.tasks)
        self.others = set() if share is None else {
            name for place, name in enumerate(names) if place % share[1] != share[0] - 1
        }  # fmt: skip

    @property
    def over(self) -> bool:
        return (self.worker.folder / "run.json").is_file()

    def one(self, name: str) -> int:
        """Do one task."""
        schedule, records = self.schedule, self.worker.records
        if name not in schedule.tasks:
            raise UsageError(
                f"the plan in {self.worker.folder} has no task {name!r}: hardneg work RUN --list names them"
            )
        schedule.set_done(records.done())
        if name in schedule.done:
            self.report(f"{name} is done")
            return 0
        missing = schedule.needed(name)
        if missing:
            raise RunError(
                f"the task {name} needs {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}: do these first"
            )
        return int(self._do(schedule.tasks[name]))

    def all(self) -> int:
        """Do what can be done, and wait for what others do."""
        done, busy, last, poll = 0, set[str](), time.monotonic(), _POLL
        while not self.over:
            before = len(self.schedule.done)
            try:
                self.schedule.set_done(self.worker.records.done())
            except KeyError:
                continue
            if len(self.schedule.done) != before:
                last, poll, busy = time.monotonic(), _POLL, set()
            if self.schedule.finished:
                break
            failed = self.worker.records.failure()
            if failed is not None:
                raise RunError(f"the task {failed[0]} cannot be done: {failed[2]}")
            task = self.schedule.choose(self.worker.shard, self.others | busy)
            if task is None:
                if time.monotonic() - last > self.wait:
                    raise RunError(self._idle())
                time.sleep(poll)
                poll, busy = min(2 * poll, _MOST_POLL), set()
                continue
            if self._do(task):
                done += 1
            else:
                busy.add(task.name)
        return done

    def _do(self, task: Task) -> bool:
        """Do a task, and leave word if it cannot be done."""
        records = self.worker.records
        start = time.perf_counter()
        try:
            did = self.worker.do(task)
        except Damaged as error:
            self.report(str(error))
            self.schedule.set_done(records.done())
            return False
        except HardnegError as error:
            if not self.over:
                records.fail(task.name, error)
            raise
        if did:
            self.report(f"{task.name} in {time.perf_counter() - start:.1f} s")
        return did

    def _idle(self) -> str:
        ready = sorted(self.schedule.ready)
        words = "which other workers do, or have to do" if ready else "none is ready"
        return (
            f"no task was finished for {self.wait:,.0f} seconds, and {len(self.schedule.tasks) - len(self.schedule.done):,} are left "
            f"({', '.join(ready[:3])}: {words}). Start workers for them (hardneg work {self.worker.folder}), or give --wait more"
        )


def tasks_and_states(run: str | Path) -> list[tuple[str, str]]:
    """The name of each task of a plan, and `done`, `ready` or `waits`. None are left of a run that is finished."""
    folder = Path(run)
    if (folder / "run.json").is_file():  # the plan was removed at the end
        return []
    plan = Plan.load(folder)
    schedule = Schedule(plan)
    schedule.set_done(Bench(folder, plan).records.done())
    return [
        (name, "done" if name in schedule.done else "ready" if name in schedule.ready else "waits")
        for name in schedule.tasks
    ]


def states(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """How many tasks are in each state."""
    return {state: sum(each == state for _, each in pairs) for state in ("done", "ready", "waits")}
