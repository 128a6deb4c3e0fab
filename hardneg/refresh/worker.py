"""The background thread that builds the next generation."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import faiss
import numpy as np
import torch

from hardneg.refresh.encode import Encode, Items, Stopped, encode_rows
from hardneg.refresh.generation import Generation, Order, Recipe, build
from hardneg.refresh.staleness import SAMPLE, Schedule, Staleness, staleness_between
from hardneg.storage.arrays import Int


class Job:
    """A build in a thread of its own, optionally after a measurement that decides whether it is needed.

    `prepare` makes what training needs of the generation besides, which the thread keeps in `prepared`.
    """

    def __init__(
        self, recipe: Recipe, order: Order, encode: Encode, if_stale: Schedule | None, niceness: int,
        prepare: Callable[[Generation], Any] | None = None,
    ) -> None:  # fmt: skip
        self.recipe, self.order, self.encode, self.if_stale, self.niceness = recipe, order, encode, if_stale, niceness
        self.prepare, self.prepared = prepare, None
        self.generation: Generation | None = None
        self.staleness: Staleness | None = None
        self.moved: Staleness | None = None
        self.error: Exception | None = None
        self.done, self._stop = threading.Event(), threading.Event()
        # A daemon thread, so that an ending interpreter does not wait for it; `cancel` is called at exit and stops it cleanly.
        self.thread = threading.Thread(target=self._run, name=f"hardneg-generation-{order.number}", daemon=True)

    def _run(self) -> None:
        try:
            torch.set_num_threads(self.recipe.threads)
            faiss.omp_set_num_threads(self.recipe.threads)
            if self.niceness and sys.platform.startswith(
                "linux"
            ):  # on other systems only a whole process has a priority
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self.niceness)
            with _own_stream(self.recipe.device):
                self._work()
        except Stopped:
            pass
        except Exception as error:  # whatever the encoder raises is reported by the training thread
            self.error = error
        finally:
            self.done.set()

    def _work(self) -> None:
        order, before, stop = self.order, self.order.before, self._stop.is_set
        if self.if_stale is not None and before is not None:
            self.staleness = staleness_of(
                before, order.documents, order.ids, self.encode, self.recipe, order.step, stop
            )
            if not self.if_stale.stale(self.staleness):
                return
        generation = build(self.recipe, order, self.encode, stop)
        if before is not None:
            self.moved = movement(before, generation, self.recipe)
        if self.prepare is not None:
            self.prepared = self.prepare(generation)
        self.generation = generation

    def wait(self) -> None:
        self.done.wait()

    def cancel(self) -> None:
        self._stop.set()
        if self.thread.is_alive():
            self.thread.join()


def _own_stream(device: str) -> AbstractContextManager[Any]:
    """On CUDA, a stream of its own, so that the build and the training do not wait for each other."""
    if not device.startswith("cuda"):
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


def staleness_of(
    generation: Generation,
    documents: Items,
    ids: Int,
    encode: Encode,
    recipe: Recipe,
    step: int,
    stop: Callable[[], bool],
) -> Staleness:
    """The staleness of a generation, on a fixed random sample of the documents that it shares with the corpus."""
    rows = generation.rows_of(ids)
    chosen = _sample(np.flatnonzero(rows >= 0), recipe.seed)
    if len(chosen) == 0:
        return Staleness(1.0, 0.0, step, 0)
    fresh = encode_rows(encode, documents, chosen, ids, "document", recipe.precision, stop)
    return staleness_between(np.asarray(generation.vectors[rows[chosen]]), fresh, step, recipe.metric)


def movement(before: Generation, after: Generation, recipe: Recipe) -> Staleness:
    """The staleness that one generation had when the next one was encoded."""
    rows = before.rows_of(after.ids)
    chosen = _sample(np.flatnonzero((rows >= 0) & (after.encoded_at == after.step)), recipe.seed)
    old, new = np.asarray(before.vectors[rows[chosen]]), np.asarray(after.vectors[chosen])
    return staleness_between(old, new, after.step, recipe.metric)


def _sample(rows: Int, seed: int) -> Int:
    """The same sample every time, as long as the corpus stays the same."""
    return np.sort(np.random.default_rng(seed).choice(rows, min(SAMPLE, len(rows)), replace=False))
