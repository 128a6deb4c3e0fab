"""The processes that read damaged inputs, and what they share with the one that counts.

A process writes the number of the case that it begins, and its counts, to a file that both have mapped: no write and no
pipe for each case, and the numbers outlast the process, however it ends. Only raw errors are written out, once for each place.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tests.faults.fuzz import Tally

LONGEST_SILENCE = 30  # seconds for one case, after which its process is taken to hang
LONGEST_START = 240  # seconds until the first case
MEMORY = 3 << 30  # bytes that a process may have more than at its start
TURN = 1.0  # seconds of a kind before the next one has its turn

_VERDICTS = ("accepted", "refused", "raw")
_NUMBER, _BEGUN, _COUNTS, _TIME = 0, 1, 2, 5  # the columns of what is shared, a row for each kind
_WIDTH = 6
_FAULTS = 40  # places of one kind whose first raw error is written out
_WARM = 4  # cases of each kind that are read first, and not counted
_RAM = Path("/dev/shm")


@contextmanager
def place() -> Iterator[Path]:
    """A folder for inputs, in memory if that can be: nothing in it has to last."""
    room = _RAM if _RAM.is_dir() and os.access(_RAM, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="hardneg-fuzz-", dir=room, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def shared(path: Path, kinds: int) -> Any:
    """int64 `[kinds, 6]` in a file: the next case, whether one is begun, three counts, and microseconds."""
    return np.memmap(path, np.int64, "r+" if path.exists() else "w+", shape=(kinds, _WIDTH))


class Job:
    """One process that reads, started again when it dies.

    Args:
        kinds: the kinds that it takes in turns.
        seed: of the inputs.
        numbers: the cases of each kind.
        until: when it ends, by `time.monotonic`.
        folder: for the inputs, and for what is shared.
    """

    def __init__(self, kinds: Sequence[str], seed: int, numbers: range, until: float, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.kinds, self.seed, self.numbers, self.until, self.folder = list(kinds), seed, numbers, until, folder
        self.state = shared(folder / "state", len(kinds))
        self.state[:, _NUMBER] = numbers.start
        self._counted = np.zeros((len(kinds), _WIDTH), np.int64)
        self._seen, self._since = b"", time.monotonic()
        self._read = 0
        self.process: subprocess.Popen[bytes] | None = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        order = {"kinds": self.kinds, "seed": self.seed, "stop": self.numbers.stop, "step": self.numbers.step}
        order |= {"seconds": self.until - time.monotonic(), "folder": str(self.folder)}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "0", "PYTHONHASHSEED": "0"}
        self._since = time.monotonic()
        self._began = False
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.crew", json.dumps(order)],
            stdout=subprocess.DEVNULL,
            stderr=open(self.folder / "stderr", "wb"),
            env=environment,
        )

    def look(self, tallies: Mapping[str, Tally]) -> bool:
        """Whether it still works; a process that died or hangs is replaced."""
        if self.process is None:
            return False
        now, content = time.monotonic(), self.state.tobytes()
        if content != self._seen:
            self._began |= self._seen != b""
            self._seen, self._since = content, now
        code = self.process.poll()
        hangs = code is None and now - self._since > (LONGEST_SILENCE if self._began else LONGEST_START)
        if code is None and not hangs:
            return True
        self.end()
        begun = np.flatnonzero(self.state[:, _BEGUN])
        if len(begun):
            row = int(begun[0])
            tally = tallies[self.kinds[row]]
            words = (self.folder / "stderr").read_text("utf-8", "replace").strip()[-1500:]
            tally.deaths.append((int(self.state[row, _NUMBER]), "hangs" if hangs else f"exit code {code} {words}"))
            self.state[row, _NUMBER] += self.numbers.step
            self.state[row, _BEGUN] = 0
        elif code or hangs:
            words = (self.folder / "stderr").read_text("utf-8", "replace")[-3000:]
            raise RuntimeError(f"a process that reads inputs ended between two of them, {code=} {hangs=}: {words}")
        if not code and not hangs:
            return False
        if now < self.until:
            self.process = self._start()
        return self.process is not None

    def end(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def count(self, tallies: Mapping[str, Tally]) -> None:
        """Add what was read since the last time."""
        now = np.array(self.state)
        for row, kind in zip(now - self._counted, self.kinds, strict=True):
            tally = tallies[kind]
            tally.counts.update({name: int(n) for name, n in zip(_VERDICTS, row[_COUNTS:_TIME], strict=True)})
            tally.seconds += float(row[_TIME]) / 1e6
        self._counted = now
        path = self.folder / "raw"
        lines = path.read_bytes().splitlines() if path.exists() else []
        for line in lines[self._read :]:
            kind, number, words = json.loads(line)
            tallies[kind].raw.setdefault(words.partition("\n")[0], f"case {number}: {words}")
        self._read = len(lines)


def _child(order: dict[str, Any]) -> None:
    """Read cases of all kinds in turns, until the time is over or there are no more."""
    from tests.faults.fuzz import KINDS, case
    from tests.faults.kind import Typed, cleared

    until, folder, kinds = time.monotonic() + order["seconds"], Path(order["folder"]), order["kinds"]
    os.fsync = lambda descriptor: None  # nothing here has to last
    for kind in (
        each for each in kinds if each in KINDS
    ):  # what is imported on first use is there before memory is limited
        for number in range(-_WARM, 0):
            cleared(folder / "input")
            case(kind, order["seed"], number, folder / "input")
    with open("/proc/self/statm") as f:
        now = int(f.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    gc.collect()
    gc.freeze()
    state, seen = shared(folder / "state", len(kinds)), set[tuple[str, str]]()
    going = list(range(len(kinds)))
    while going and time.monotonic() < until:
        for i in list(going):
            kind, row = kinds[i], state[i]
            written = not isinstance(KINDS.get(kind), Typed)
            start = began = time.perf_counter()
            while began - start < TURN and time.monotonic() < until:
                number = int(row[_NUMBER])
                if number >= order["stop"]:
                    going.remove(i)
                    break
                row[_BEGUN] = 1
                if written:
                    cleared(folder / "input")
                verdict, words = case(kind, order["seed"], number, folder / "input")
                if verdict == "raw":
                    _note(folder / "raw", seen, kind, number, words)
                row[_NUMBER] = number + order["step"]
                row[_COUNTS + _VERDICTS.index(verdict)] += 1
                row[_BEGUN] = 0
                ended = time.perf_counter()
                row[_TIME] += int(1e6 * (ended - began))
                began = ended


def _note(path: Path, seen: set[tuple[str, str]], kind: str, number: int, words: str) -> None:
    """Write a raw error out, if it is the first at its place."""
    key = (kind, words.partition("\n")[0])
    if key in seen or sum(each[0] == kind for each in seen) >= _FAULTS:
        return
    seen.add(key)
    with open(path, "ab") as file:
        file.write(json.dumps([kind, number, words]).encode() + b"\n")


if __name__ == "__main__":
    _child(json.loads(sys.argv[1]))
