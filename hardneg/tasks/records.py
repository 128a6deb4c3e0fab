"""Records of finished tasks, and their results. A task is done when its record is there and its results have the recorded hashes."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from numpy.typing import NDArray

from hardneg.errors import RunError
from hardneg.storage.arrow import open_npy
from hardneg.storage.files import sha256_file, write_array
from hardneg.storage.folders import claimed
from hardneg.storage.json_files import read_json, write_json

_RECORDS, _RESULTS, _CLAIMS, _FAILURES = "tasks", "results", "claims", "failures"


class _Record(TypedDict):
    task: str
    plan: str
    inputs: list[str]
    files: dict[str, str]
    result: dict[str, Any]
    seconds: float


class _Failure(TypedDict):
    task: str
    plan: str
    error: str
    message: str


@dataclass(frozen=True)
class Outcome:
    """What a task leaves.

    Attributes:
        files: SHA-256 of its files, by their path in the run folder.
        result: numbers and words that other tasks read, as plain values.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)


class Damaged(RunError):
    """A result of a task is missing or damaged, and its record was removed: the task has to be done again."""

    def __init__(self, task: str, path: Path) -> None:
        super().__init__(f"{path}, a result of the task {task}, is missing or damaged: the task has to be done again")
        self.task = task


class Records:
    """The records and results of the tasks of a plan.

    Args:
        folder: the run folder.
        plan: the name of the plan, a hash: records of another plan do not count.
    """

    def __init__(self, folder: Path, plan: str) -> None:
        self.folder, self.plan = folder, plan
        self.place = folder / "progress"
        self._checked: set[tuple[str, int, int, int]] = set()

    def _names(self, kind: str) -> set[str]:
        try:
            with os.scandir(self.place / kind) as entries:
                return {entry.name.removesuffix(".json") for entry in entries if entry.name.endswith(".json")}
        except FileNotFoundError:
            return set()

    def done(self) -> set[str]:
        """The names of the tasks that have a record."""
        return self._names(_RECORDS)

    def of(self, task: str) -> dict[str, Any]:
        """The record of a task; `Damaged` if there is none, or it is damaged, or belongs to another plan."""
        path = self.place / _RECORDS / f"{task}.json"
        try:
            record = read_json(path, _Record, checksum=True)
        except RunError:
            self.remove(task)
            raise Damaged(task, path) from None
        if record["task"] != task or record["plan"] != self.plan:
            self.remove(task)
            raise Damaged(task, path)
        return record

    def result(self, task: str) -> dict[str, Any]:
        """The numbers that a task found."""
        found: dict[str, Any] = self.of(task)["result"]
        return found

    def path(self, task: str, name: str) -> Path:
        """Where a result of a task is."""
        return self.place / _RESULTS / f"{task}.{name}"

    def array(self, task: str, name: str) -> NDArray[Any]:
        """An array that a task left, memory-mapped, once its hash was checked; `Damaged` if it has another."""
        path = self.path(task, f"{name}.npy")
        self.check(task, path)
        try:
            return open_npy(path, RunError)
        except RunError:
            self.remove(task)
            raise Damaged(task, path) from None

    def check(self, task: str, path: Path) -> None:
        """`Damaged` if a file is not what the task left. What was read once and has not changed since is not read again."""
        self._check(task, path, self.of(task)["files"].get(path.relative_to(self.folder).as_posix()))

    def check_all(self, task: str) -> None:
        """`Damaged` if any file is not what the task left."""
        for name, recorded in self.of(task)["files"].items():
            self._check(task, self.folder / name, recorded)

    def _check(self, task: str, path: Path, recorded: str | None) -> None:
        try:
            status = path.stat()
            seen = (str(path), status.st_size, status.st_mtime_ns, status.st_ino)
            if recorded is not None and (seen in self._checked or sha256_file(path) == recorded):
                self._checked.add(seen)
                return
        except OSError:
            pass
        self.remove(task)
        raise Damaged(task, path)

    def save(self, task: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
        """Write arrays of a task; returns the hashes of the files by path."""
        paths = {self.path(task, f"{name}.npy"): array for name, array in arrays.items()}
        return {path.relative_to(self.folder).as_posix(): write_array(path, array) for path, array in paths.items()}

    def write(self, task: str, inputs: list[str], outcome: Outcome, seconds: float) -> None:
        """Write the record of a task, after its files."""
        record: dict[str, Any] = {"task": task, "plan": self.plan, "inputs": inputs}
        record |= {"files": dict(outcome.files), "result": dict(outcome.result)}
        record |= {"seconds": round(seconds, 3), "worker": f"{platform.node()}:{os.getpid()}"}
        write_json(self.place / _RECORDS / f"{task}.json", record, checksum=True)
        self._path(_FAILURES, task).unlink(missing_ok=True)

    def remove(self, task: str) -> None:
        """Forget that a task was done."""
        self._path(_RECORDS, task).unlink(missing_ok=True)

    def _path(self, kind: str, task: str) -> Path:
        return self.place / kind / f"{task}.json"

    @contextmanager
    def claim(self, task: str) -> Iterator[bool]:
        """Whether this process may do a task now: nobody else does it, and it is not done.

        The claim is a lock of the operating system, which ends with the process, however it ends.
        """
        path = self.place / _CLAIMS / task
        with claimed(path) as ours:
            if not ours or self._path(_RECORDS, task).exists():
                yield False
                return
            yield True
            if self._path(_RECORDS, task).exists():
                path.unlink(missing_ok=True)

    def fail(self, task: str, error: BaseException) -> None:
        """Leave word of why a task cannot be done."""
        value = {"task": task, "plan": self.plan, "error": type(error).__name__, "message": str(error)}
        write_json(self._path(_FAILURES, task), value, checksum=True)

    def failure(self) -> tuple[str, str, str] | None:
        """A task that could not be done: (its name, the error's name, the message); None: there is none."""
        for task in sorted(self._names(_FAILURES)):
            try:
                found = read_json(self._path(_FAILURES, task), _Failure, checksum=True)
            except RunError:
                continue
            if found["plan"] == self.plan:
                return task, found["error"], found["message"]
        return None

    def forget_failures(self) -> None:
        """Give tasks that failed before another chance."""
        for task in self._names(_FAILURES):
            self._path(_FAILURES, task).unlink(missing_ok=True)
