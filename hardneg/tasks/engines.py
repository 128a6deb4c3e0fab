"""Engines that do the tasks of a plan: this process, several processes of this machine, or Ray."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from hardneg.errors import HardnegError, UsageError, suggestion
from hardneg.tasks.drive import News
from hardneg.tasks.graph import Task
from hardneg.tasks.records import Damaged
from hardneg.tasks.worker import Worker

ENGINES = ("local", "processes", "ray")


def parse_engine(text: str) -> tuple[str, int]:
    """(name, number of workers) of an engine that is written `local`, `processes[:N]` or `ray[:N]`; 0: as many as suit it.

    >>> parse_engine("processes:4"), parse_engine("ray")
    (('processes', 4), ('ray', 0))
    """
    name, colon, count = text.partition(":")
    if name not in ENGINES:
        raise UsageError(f"unknown engine {name!r}.{suggestion(name, ENGINES)}")
    if not colon:
        return name, 0
    if name == "local" or not count.isdigit() or not 1 <= int(count) <= 1024:
        raise UsageError(f"the engine {text!r}: write local, processes:N or ray:N, with a number of workers")
    return name, int(count)


def workers_of(engine: str) -> int:
    """The number of workers that an engine has on this machine."""
    name, count = parse_engine(engine)
    return 1 if name == "local" else count or max(1, os.cpu_count() or 1)


def news_of(worker: int, task: Task, do: Callable[[Task], bool]) -> News:
    """Do a task, and say what became of it."""
    try:
        return News(worker, task.name, "done" if do(task) else "busy")
    except Damaged as error:
        return News(worker, task.name, "damaged", message=error.task)
    except HardnegError as error:
        return News(worker, task.name, "failed", type(error).__name__, str(error))


class LocalCrew:
    """This process alone."""

    size = 1

    def __init__(self, folder: Path, device: str | None = None, batch_size: int | None = None) -> None:
        self._worker = Worker(folder, device, batch_size)
        self._next: Task | None = None

    def send(self, worker: int, task: Task) -> None:
        self._next = task

    def news(self, timeout: float) -> list[News]:
        task, self._next = self._next, None
        if task is None:
            time.sleep(timeout)
            return []
        return [news_of(0, task, self._worker.do)]

    def replace(self, worker: int) -> None:
        raise AssertionError("this process cannot die and go on")

    def close(self) -> None:
        return


class ProcessCrew:
    """Processes of this machine, which share its cores.

    Args:
        folder: the run folder.
        size: the number of processes.
        threads: threads of each; None: the cores, shared out.
        device, batch_size: of encoders.
    """

    def __init__(
        self, folder: Path, size: int, threads: int | None = None, device: str | None = None, batch_size: int | None = None
    ) -> None:  # fmt: skip
        self.size, self.folder = size, folder
        share = max(1, torch.get_num_threads() // size)
        self._setup = {"folder": str(folder), "device": device, "batch_size": batch_size, "threads": threads or share}
        self._news: queue.Queue[News] = queue.Queue()
        self._processes = [_Process(number, self._setup, self._news) for number in range(size)]

    @property
    def pids(self) -> list[int]:
        return [each.process.pid for each in self._processes]

    def send(self, worker: int, task: Task) -> None:
        self._processes[worker].send(task)

    def news(self, timeout: float) -> list[News]:
        found = []
        try:
            found.append(self._news.get(timeout=timeout))
            while True:
                found.append(self._news.get_nowait())
        except queue.Empty:
            return found

    def replace(self, worker: int) -> None:
        self._processes[worker].end()
        self._processes[worker] = _Process(worker, self._setup, self._news)

    def close(self) -> None:
        for each in self._processes:
            each.end()


class _Process:
    """One process, and the thread that reads what it says."""

    def __init__(self, number: int, setup: dict[str, Any], news: queue.Queue[News]) -> None:
        self.number, self._news, self._task = number, news, ""
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        threads = str(setup["threads"])
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        code = f"from {__package__}.process import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment
        )  # fmt: skip
        self._ended = False
        self._write(json.dumps(setup))
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, task: Task) -> None:
        self._task = task.name
        self._write(json.dumps(task._asdict() | {"after": list(task.after)}))

    def _write(self, line: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            return  # it died, which `_read` finds

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if not line.endswith(b"\n"):
                break
            value = json.loads(line)
            self._task = ""
            self._news.put(News(self.number, value["task"], value["kind"], value["error"], value["message"]))
        code = self.process.wait()
        if not self._ended:
            self._news.put(News(self.number, self._task, "died", message=self._reason(code)))

    def _reason(self, code: int) -> str:
        if code < 0:
            return f"killed by signal {-code}"
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return f"exit code {code}" + (f": {lines[-1][:300]}" if lines else "")

    def end(self) -> None:
        self._ended = True
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except (OSError, ValueError):  # what was not sent cannot be flushed any more
                    continue
