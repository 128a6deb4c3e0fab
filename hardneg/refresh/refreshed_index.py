"""An index that is rebuilt while training goes on.

Training reads one generation. When the next one is due, the encoder's weights are copied, and a background thread encodes,
builds and mines with the copy. The finished generation replaces the old one between two steps. Refreshing negatives
asynchronously is due to ANCE (Xiong et al. 2021, arXiv 2007.00808).
"""

from __future__ import annotations

import shutil
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from hardneg.errors import HardnegError, RunError, UsageError
from hardneg.index.base import Neighbors
from hardneg.refresh.encode import Encode, Items
from hardneg.refresh.generation import Generation, Order, Recipe, build, load_saved, save_once
from hardneg.refresh.staleness import Schedule, Staleness, SwapEntry
from hardneg.refresh.worker import Job, movement, staleness_of
from hardneg.storage.json_files import read_json, write_json

SCHEMA = "hardneg-refreshed-1"


_Step = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]


class _State(msgspec.Struct):
    """What `refreshed.json` holds."""

    generation: str
    next: str | None
    step: _Step
    started: _Step
    checked: _Step
    due: _Step
    owed: bool
    staleness: Staleness | None
    history: list[SwapEntry]
    recipe: dict[str, Any]


class RefreshError(HardnegError):
    """A refresh failed. The last good generation is still in use."""


class RefreshWarning(UserWarning):
    """A refresh failed, and training continues with the last good generation."""


@dataclass(frozen=True)
class _Ready:
    """A generation that waits for its step. One that a checkpoint held is prepared when it comes into use."""

    generation: Generation
    moved: Staleness
    prepared: Any = None
    is_prepared: bool = False


@dataclass(frozen=True)
class Failure:
    """A generation that could not be built: the step at which it was started, and the error."""

    step: int
    error: Exception


class RefreshedIndex:
    """Generations of an index over a corpus whose encoder is being trained.

    Args:
        documents: anything with `take(rows)`; `ids` numbers them.
        snapshot: copies the encoder's weights and returns `encode(items, side)`, which is called in another thread; see
            `hardneg.refresh.ModuleSnapshots`.
        ids: int64 `[N]`, distinct numbers that documents keep when the corpus changes (see `set_documents`); or N itself,
            for the numbers 0 to N - 1.
        queries: (items, number of items): their neighbors are mined with every generation.
        schedule: when the next generation is due: a `Schedule`, or a text for `Schedule.parse`.
        recipe: how generations are built.
        lag: steps between starting a generation and using it. A number makes training repeatable: `step()` waits for the
            generation if it is not ready by then. None: use it as soon as it is ready.
        prepare: makes what training needs of a generation besides (such as filtered candidates), from the generation; called in
            the background thread as soon as it is built. The result is `prepared`.
        niceness: of the background thread, 0 to 19 (Linux only): how far it yields to training when cores are short.
        patience: failures in a row after which `step()` raises.
        resume: a folder that `save` wrote; by default the first generation is built at once.
        step: training step of the encoder.

    Use it as a context manager, or call `close()`, which stops a build that is under way and waits for the thread.

    Raises:
        UsageError: an argument that cannot be used. RunError: `resume` is damaged or belongs to another recipe.
    """

    def __init__(
        self,
        documents: Items,
        snapshot: Callable[[], Encode],
        *,
        ids: NDArray[np.integer] | int,
        queries: tuple[Items, int] | None = None,
        schedule: Schedule | str = "epoch",
        recipe: Recipe | None = None,
        lag: int | None = None,
        prepare: Callable[[Generation], Any] | None = None,
        niceness: int = 10,
        patience: int = 3,
        resume: str | Path | None = None,
        step: int = 0,
    ) -> None:
        if not 0 <= niceness <= 19:
            raise UsageError(f"niceness={niceness} must be 0 to 19")
        if lag is not None and lag < 0:
            raise UsageError(f"lag={lag} must be 0 or more, or None")
        self.schedule = Schedule.parse(schedule) if isinstance(schedule, str) else schedule
        self.recipe = recipe or Recipe()
        self.lag, self.niceness, self.patience = lag, niceness, patience
        self.snapshot, self.queries, self.prepare = snapshot, queries, prepare
        self.set_documents(documents, ids)
        self._prepared: Any = None
        self._is_prepared = False
        self.failures: list[Failure] = []
        self.history: list[dict[str, Any]] = []  # one entry for each generation that came into use after the first
        self.now = step  # the training step
        self._failed_in_a_row = 0
        self._staleness: Staleness | None = None
        self._job: Job | None = None
        self._waiting: _Ready | None = None  # built, to be used from `_due` on
        self._owed = False  # a generation was due while a build was under way
        self._due = (
            step  # when the last job's generation is to be used; until then it counts as under way, finished or not
        )
        self._started = self._checked = step
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._closed = False
        if resume is not None:
            self._generation = self._load(Path(resume))
        else:
            alone = replace(self.recipe, threads=torch.get_num_threads())  # training has not begun
            self._generation = build(alone, self._order(0, None), snapshot(), lambda: False)

    # Read by training.

    @property
    def generation(self) -> Generation:
        """The generation in use. Keep it in a variable wherever its parts have to belong together."""
        return self._generation

    @property
    def prepared(self) -> Any:
        """What `prepare` made of the generation in use; None without it."""
        if self.prepare is not None and not self._is_prepared:  # the first one, or one that a checkpoint held
            self._prepared, self._is_prepared = self.prepare(self._generation), True
        return self._prepared

    def search(self, queries: NDArray[np.floating], k: int) -> Neighbors:
        """The `k` nearest documents of `queries` `[n, d]` in the generation in use, as rows of its `ids`."""
        return self._generation.search(queries, k)

    @property
    def age(self) -> int:
        """Training steps since the generation in use was encoded."""
        return self.now - self._generation.step

    @property
    def staleness(self) -> Staleness:
        """The last measurement against the generation in use; without one, no drift."""
        return self._staleness or Staleness(0.0, 1.0, self._generation.step, 0)

    @property
    def refreshing(self) -> bool:
        """Whether the next generation is being built, or is built and waits for its step."""
        return self._job is not None or self._waiting is not None

    # Called by training.

    def set_documents(self, documents: Items, ids: NDArray[np.integer] | int) -> None:
        """Set the corpus from the next generation on: new ids are added, missing ones removed."""
        numbers = np.arange(ids) if isinstance(ids, int) else np.asarray(ids, np.int64)
        if numbers.ndim != 1 or len(numbers) == 0:
            raise UsageError(
                f"ids have shape {list(numbers.shape)}, expected one number for each of at least one document"
            )
        if len(np.unique(numbers)) != len(numbers):
            raise UsageError("ids repeat: every document needs a number of its own")
        self.documents, self.ids = documents, numbers

    def step(self) -> bool:
        """Count a training step. Returns True if a new generation has come into use.

        Never waits for the background thread, unless `lag` says that a generation is to be used now.
        """
        self._open()
        self.now += 1
        swapped = self._collect(wait=self.lag is not None and self.now >= self._due)
        steps = self.schedule.steps
        if swapped and self.lag is None:
            return True  # copy the weights in the next step: two short pauses are better than one long one
        if self._owed or (steps is not None and self.now - self._started >= steps):
            self._start()
        elif self.schedule.measures and self.now - self._checked >= self.schedule.check:
            self._start(measure_first=True)
        if self.lag == 0:
            swapped |= self._collect(wait=True)
        return swapped

    def end_epoch(self) -> bool:
        """Mark the end of an epoch, in addition to `step`; returns the same."""
        self._open()
        swapped = self._collect(wait=False)
        if self.schedule.epoch:
            self._start()
            if self.lag == 0:
                swapped |= self._collect(wait=True)
        return swapped

    def refresh(self) -> Generation:
        """Build a generation from the present weights, wait for it, and use it; raises RefreshError if that fails."""
        self._open()
        self._collect(wait=True)
        self._waiting, self._due = None, self.now
        self._start()
        self._due = self.now
        self._collect(wait=True)
        if self._failed_in_a_row:
            raise RefreshError(f"the index could not be refreshed at step {self.now}") from self.failures[-1].error
        return self._generation

    def measure_staleness(self) -> Staleness:
        """Measure the staleness now, in this thread."""
        self._open()
        self._collect(wait=True)
        found = staleness_of(
            self._generation, self.documents, self.ids, self.snapshot(), self.recipe, self.now, lambda: False
        )
        self._staleness = found
        return found

    def close(self) -> None:
        """Stop a build that is under way and wait for its thread. The index can still be read."""
        self._closed = True
        if self._job is not None:
            self._job.cancel()
            self._finish_job(closing=True)

    def __enter__(self) -> RefreshedIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Checkpoints.

    def save(self, folder: str | Path) -> None:
        """Write the generation in use and, after waiting for it, the one that is being built.

        Each generation is written once, so saving again is cheap until the next one comes into use. If the process is killed
        while saving, the folder keeps its previous content.
        """
        folder = Path(folder)
        if self._job is not None:
            self._job.wait()
            self._finish_job()
        following = None if self._waiting is None else save_once(self._waiting.generation, folder)
        state = {
            "schema": SCHEMA,
            "generation": save_once(self._generation, folder),
            "next": following,
            "step": self.now,
            "started": self._started,
            "checked": self._checked,
            "owed": self._owed,
            "due": self._due,
            "staleness": None if self._staleness is None else self._staleness.to_json(),
            "history": self.history,
            "recipe": self.recipe.to_json(),
        }
        write_json(folder / "refreshed.json", state)
        for old in folder.glob("generation-*"):
            if old.name not in (state["generation"], following):
                shutil.rmtree(old)

    def _load(self, folder: Path) -> Generation:
        path = folder / "refreshed.json"
        head = read_json(path)
        if head.get("schema") != SCHEMA:
            raise RunError(f"{path}: schema {head.get('schema')!r}, expected {SCHEMA!r}: start anew")
        try:
            state = msgspec.convert(head, _State)
        except msgspec.ValidationError as error:
            raise RunError(f"{path} does not describe a refreshed index ({error}): start anew") from None
        recipe, names = head["recipe"], [state.generation, *([] if state.next is None else [state.next])]
        self.now, self._started, self._checked, self._due = state.step, state.started, state.checked, state.due
        self._owed, self.history, self._staleness = state.owed, head["history"], state.staleness
        changed = [n for n, v in self.recipe.to_json().items() if n != "threads" and recipe.get(n) != v]
        if changed:
            raise RunError(
                f"{folder} was saved with another recipe ({changed[0]}: {recipe.get(changed[0])!r} then, "
                f"{self.recipe.to_json()[changed[0]]!r} now): use the same, or start anew"
            )
        loaded = [load_saved(folder, name, self.recipe) for name in names]
        if len(loaded) == 2:
            self._waiting = _Ready(loaded[1], movement(loaded[0], loaded[1], self.recipe))
        return loaded[0]

    # The background.

    def _open(self) -> None:
        if self._closed:
            raise UsageError("this RefreshedIndex is closed: it can be read, not refreshed")

    def _order(self, number: int, before: Generation | None) -> Order:
        return Order(self.documents, self.ids, self.queries, number, self.now, before)

    def _start(self, measure_first: bool = False) -> None:
        """Start a build (or a measurement that may become one), unless one is under way."""
        if self._job is not None or self._waiting is not None or self.now < self._due:
            self._owed |= not measure_first
            return
        self._owed = False
        self._checked = self.now
        if not measure_first:
            self._started = self.now
        try:
            encode = self.snapshot()
        except Exception as error:  # whatever the caller's function raises counts as a failed refresh
            self._failed(Failure(self.now, error), closing=False)
            return
        order = self._order(self._generation.number + 1, self._generation)
        self._due = self.now + (self.lag or 0)
        if_stale = self.schedule if measure_first else None
        self._job = Job(self.recipe, order, encode, if_stale, self.niceness, self.prepare)
        self._finalizer = weakref.finalize(self, Job.cancel, self._job)
        self._job.thread.start()

    def _finish_job(self, closing: bool = False) -> None:
        """Take over the result of the finished background job."""
        job, self._job = self._job, None
        if job is None:
            return
        job.thread.join()
        if self._finalizer is not None:
            self._finalizer.detach()
        if job.staleness is not None:
            self._staleness = job.staleness
        if job.error is not None:
            self._failed(Failure(job.order.step, job.error), closing)
        elif job.generation is not None:
            self._failed_in_a_row = 0
            self._started = job.order.step
            self._waiting = _Ready(job.generation, job.moved or self.staleness, job.prepared, True)

    def _collect(self, wait: bool) -> bool:
        """Use a generation that is ready and due; returns whether there was one."""
        # With a lag, a job that is done early waits for its step, so that nothing depends on its speed.
        if self._job is not None and (wait or (self.lag is None and self._job.done.is_set())):
            self._job.wait()
            self._finish_job()
        if self._waiting is None or self.now < self._due:
            return False
        ready, self._waiting = self._waiting, None
        generation, moved = ready.generation, ready.moved
        self.history.append(
            {
                "generation": generation.number,
                "step": generation.step,
                "in_use_from": self.now,
                "drift": moved.drift,
                "overlap": moved.overlap,
                "recall": generation.recall.measured,
                "carry_error": generation.compensation_error,
                "seconds": generation.seconds,
            }
        )
        self._generation, self._staleness = generation, None
        self._prepared, self._is_prepared = ready.prepared, ready.is_prepared
        return True

    def _failed(self, failure: Failure, closing: bool) -> None:
        self.failures.append(failure)
        self._failed_in_a_row += 1
        message = f"the refresh started at step {failure.step} failed: {failure.error}"
        if self._failed_in_a_row >= self.patience and not closing:
            raise RefreshError(f"{message} ({self._failed_in_a_row} failures in a row)") from failure.error
        warnings.warn(RefreshWarning(f"{message}. Generation {self._generation.number} stays in use"), stacklevel=4)
