"""Drives the workers of an engine: hands out tasks as they become ready, shows progress, and replaces workers that die."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hardneg import errors
from hardneg.errors import HardnegError, RunError
from hardneg.progress import Advance, Progress
from hardneg.tasks.graph import Schedule, Task
from hardneg.tasks.plan import Plan
from hardneg.tasks.records import Records

_BUSY = 0.5  # seconds after which a task is tried again that somebody else does

_STUCK = 600.0  # seconds in which nobody finishes anything, while others hold all that is ready
_LOOKS = 0.2  # seconds that a crew waits for news
_DEATHS = 3  # workers that may die in a row of one task, before it counts as a task that cannot be done


@dataclass(frozen=True)
class News:
    """What became of a task.

    Attributes:
        worker: the number of the worker.
        task: the task.
        kind: `done`, `busy` (somebody else does it), `damaged` (a result that it needs has to be made again), `failed`, or `died`
            (the worker did).
        error: the name of the exception, for `failed`.
        message: why.
    """

    worker: int
    task: str
    kind: str
    error: str = ""
    message: str = ""


class Crew(Protocol):
    """The workers of an engine.

    Attributes:
        size: the number of workers, numbered from 0.
    """

    size: int

    def send(self, worker: int, task: Task) -> None:
        """Let a worker that has nothing to do begin a task."""
        ...

    def news(self, timeout: float) -> list[News]:
        """What happened since the last call; waits up to `timeout` seconds for the first of it."""
        ...

    def replace(self, worker: int) -> None:
        """Put a new worker in the place of one that died."""
        ...

    def close(self) -> None:
        """End the workers, whatever they do."""
        ...


@dataclass
class Losses:
    """What went wrong and was done again, by kind and name."""

    died: Counter[str] = field(default_factory=Counter)
    damaged: Counter[str] = field(default_factory=Counter)

    def said(self) -> list[str]:
        """One sentence for each kind; none if nothing went wrong."""
        words = []
        for what, counts in (("workers died", self.died), ("damaged results were made again", self.damaged)):
            if counts:
                named = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items())[:5])
                words.append(f"{sum(counts.values()):,} {what}: {named}{' ...' if len(counts) > 5 else ''}")
        return words


def drive(folder: Path, plan: Plan, crew: Crew, progress: Progress) -> Losses:
    """Have all tasks of a plan done by a crew.

    Raises:
        HardnegError: of a task that cannot be done. RunError: a task killed its worker three times. What is done is kept.
    """
    schedule, records = Schedule(plan), Records(folder, plan.name)
    records.forget_failures()
    schedule.set_done(records.done())
    bars, losses = _Bars(plan, progress), Losses()
    bars.look(schedule.done)
    free, busy, last = set(range(crew.size)), dict[str, float](), time.monotonic()
    doing: dict[int, Task] = {}
    shards = dict.fromkeys(range(crew.size), -1)
    while not schedule.finished:
        now = time.monotonic()
        without = {task.name for task in doing.values()} | {name for name, until in busy.items() if until > now}
        for worker in sorted(free):
            task = schedule.choose(shards[worker], without)
            if task is None:
                break
            crew.send(worker, task)
            doing[worker], shards[worker] = task, task.shard if task.shard >= 0 else shards[worker]
            without.add(task.name)
            free.discard(worker)
        for each in crew.news(_LOOKS):
            doing.pop(each.worker, None)
            free.add(each.worker)
            if each.kind == "busy":
                busy[each.task], before = time.monotonic() + _BUSY, len(schedule.done)
                schedule.set_done(records.done() | {"finish"} if _over(folder) else records.done())
                if doing or len(schedule.done) > before:
                    last = time.monotonic()
                if time.monotonic() - last > _STUCK:
                    raise RunError(
                        f"another process has held the task {each.task} for {_STUCK:.0f} s, and nothing was finished: end that "
                        f"process (it may be stopped), then go on with --resume"
                    )
                continue
            last = time.monotonic()
            if each.kind == "done":
                schedule.mark(each.task)
            elif each.kind == "damaged":
                losses.damaged[each.message] += 1
                schedule.set_done(records.done())
            elif each.kind == "died":
                _bury(each, crew, losses)
            else:
                raise _as_raised(each)
        bars.look(schedule.done)
    return losses


def _over(folder: Path) -> bool:
    return (folder / "run.json").is_file()


def _bury(news: News, crew: Crew, losses: Losses) -> None:
    """Replace a worker that died; RunError if its task has killed several."""
    losses.died[f"{news.task}: {news.message}"] += 1
    deaths = sum(count for name, count in losses.died.items() if name.startswith(f"{news.task}: "))
    if deaths >= _DEATHS:
        raise RunError(
            f"the task {news.task} killed {deaths} workers ({news.message}). What is done is kept: give it more memory, and go on "
            f"with --resume"
        )
    crew.replace(news.worker)


def _as_raised(news: News) -> HardnegError:
    """The error of a task, of its own class."""
    kind = getattr(errors, news.error, RunError)
    made: HardnegError = RunError(news.message) if kind is errors.MissingDependencyError else kind(news.message)
    return made


class _Bars:
    """The progress of a plan, in the stages of a pass."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.plan, self.progress = plan, progress
        self.seen: set[str] = set()
        self.advance: dict[str, Advance] = {}
        self.left: dict[str, float] = {}

    def look(self, done: set[str]) -> None:
        """Advance the bars to what is done."""
        for name in done - self.seen:
            stage, total, rows = self._rows(name)
            if stage:
                if stage not in self.advance:
                    self.advance[stage] = self.progress(stage, total)
                self.left[stage] = self.left.get(stage, 0.0) + rows
                whole = int(self.left[stage] + 1e-6)
                self.left[stage] -= whole
                self.advance[stage](whole)
        self.seen |= done

    def _rows(self, name: str) -> tuple[str, int, float]:
        """(the stage of a task, its items in all, the items of this task)."""
        plan, words = self.plan, name.split("-")
        if words[0] == "encode":
            number, side, piece = words[1:]
            bounds = plan.pieces(side)
            label = "" if int(number) == 0 and not plan.given else "guide "
            return f"encode {label}{side}", plan.count(side), bounds[int(piece) + 1] - bounds[int(piece)]
        if words[0] == "search" and words[1] == "r0":
            start, stop = plan.block(int(words[2]))
            return "search", plan.queries, (stop - start) / plan.shard_count
        if words[0] == "write":
            start, stop = plan.block(int(words[1]))
            return "write", plan.queries, stop - start
        if words[0] == "neighbors":
            bounds = plan.graph_blocks()
            return "neighbors", plan.documents, (bounds[int(words[1]) + 1] - bounds[int(words[1])]) / plan.shard_count
        return "", 0, 0
