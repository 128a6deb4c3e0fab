"""Processes that encode, one on each device. Units of work are handed out as devices get free; one that dies loses nothing."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from hardneg.encoders.batches import UNIT, Arrangement
from hardneg.errors import HardnegError, RunError
from hardneg.storage.arrays import Float


@dataclass(frozen=True)
class Unit:
    """Some of the distinct texts of a shard, whole pieces of them, which one device encodes at a time.

    Attributes:
        shard: number of the shard.
        start: of the first text among the distinct ones.
        texts: the texts.
        tokens: the budget of a batch.
    """

    shard: int
    start: int
    texts: list[str]
    tokens: int


@dataclass
class Shard:
    """A shard that is being encoded: its arrangement, the vectors so far, and how many texts are missing."""

    arranged: Arrangement
    vectors: Float
    missing: int


class Died(Exception):
    """A process ended, or its device failed. The message says why."""


class DeviceProcess:
    """A process that encodes on one device.

    Args:
        setup: what it loads: `name`, `backend`, `device`, `precision`, `batch_size`, `threads`.
        label: the device for messages.
    """

    def __init__(self, setup: dict[str, Any], label: str) -> None:
        self.label, self.counts = label, [0, 0]
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        code = f"from {__package__}.device_process import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        self._send(setup)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self, fingerprint: str) -> None:
        """Wait until the model is loaded; Died if it could not be, RunError if it is another model."""
        answer = self._receive()
        if answer["fingerprint"] != fingerprint:
            raise RunError(
                f"the process on {self.label} loaded another model than this one: it changed on disk, or in memory after it was "
                f"loaded. Save it, and give the folder"
            )

    def encode(self, unit: Unit, prompt: str, advance: Callable[[int], None]) -> Float:
        """The vectors of a unit, float32 `[m, d]`; Died if the process ended before they were there."""
        self._send({"texts": unit.texts, "prompt": prompt, "tokens": unit.tokens})
        done = 0
        try:
            while (answer := self._receive())["kind"] == "progress":
                done += answer["count"]
                advance(answer["count"])
            shape = answer["shape"]
            data = self._stdout.read(4 * shape[0] * shape[1])
            if len(data) < 4 * shape[0] * shape[1]:
                raise Died(self._reason())
        except Died:
            advance(-done)  # another device encodes these texts
            raise
        self.counts = [before + new for before, new in zip(self.counts, answer["counts"], strict=True)]
        return np.frombuffer(data, "<f4").reshape(shape).astype(np.float32, copy=False)

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _send(self, value: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(value).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise Died(self._reason()) from None

    def _receive(self) -> dict[str, Any]:
        line = self._stdout.readline()
        if not line.endswith(b"\n"):
            raise Died(self._reason())
        answer: dict[str, Any] = json.loads(line)
        if answer["kind"] == "failed":
            raise Died(str(answer["message"]))
        return answer

    def _reason(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        how = f"killed by signal {-code}: out of memory?" if code < 0 else f"exit code {code}"
        return how + (f": {lines[-1][:300]}" if lines else "")

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # what was not sent cannot be flushed any more
                    continue


@dataclass
class _Work:
    """Units that devices take, one after the other, from any thread."""

    stream: Iterator[Unit]
    back: deque[Unit] = field(default_factory=deque)
    out: int = 0
    stopped: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self) -> Unit | None:
        """The next unit; None when all are done, since one that is out may come back."""
        with self.changed:
            while not self.stopped:
                unit = self.back.popleft() if self.back else next(self.stream, None)
                if unit is not None:
                    self.out += 1
                    return unit
                if self.out == 0:
                    return None
                self.changed.wait()
            return None

    def give_back(self, unit: Unit | None) -> None:
        """A unit is done (None), or has to be done by another device."""
        with self.changed:
            self.out -= 1
            if unit is not None:
                self.back.append(unit)
            self.changed.notify_all()

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()


class DevicePool:
    """A process on each device, started when there is something to encode.

    Args:
        encoder: a `SentenceTransformersEncoder`; the processes load the same model.
        devices: see `parse_devices`.
    """

    def __init__(self, encoder: Any, devices: tuple[str, ...]) -> None:
        self.encoder, self.devices = encoder, devices
        self.alive: list[DeviceProcess] = []
        self.lost: list[str] = []
        self._started = False
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> DevicePool:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.alive:
            each.end()
        self.alive = []
        if self._folder is not None:
            self._folder.cleanup()

    def encode(
        self, shards: Iterator[tuple[int, Arrangement]], prompt: str, advance: Callable[[int], None]
    ) -> Iterator[tuple[int, Float]]:
        """Encode shards; yields the number of each and its vectors, float32 `[n, d]`, in the order in which they are finished.

        Raises:
            RunError: the last device died, or a process has another model.
        """
        open_shards: dict[int, Shard] = {}
        work = _Work(self._units(shards, open_shards))
        results: queue.Queue[Any] = queue.Queue()
        first = work.take()  # before the processes start: it finds the budget of a batch
        if first is None:
            return
        work.give_back(first)
        self._start()
        threads = [
            threading.Thread(target=self._serve, args=(each, work, prompt, results), daemon=True) for each in self.alive
        ]
        for thread in threads:
            thread.start()
        try:
            yield from self._collected(open_shards, len(threads), results, advance)
        finally:
            work.stop()
            if any(thread.is_alive() for thread in threads) and open_shards:
                self.__exit__()  # something failed: the threads wait for their processes
            for thread in threads:
                thread.join()

    def _units(self, shards: Iterator[tuple[int, Arrangement]], open_shards: dict[int, Shard]) -> Iterator[Unit]:
        for number, arranged in shards:
            count = len(arranged.texts)
            empty = np.empty((count, self.encoder.dimension), np.float32)
            open_shards[number] = Shard(arranged, empty, count)
            size = max(UNIT, self.encoder.batch_size or 0)
            for start in range(0, count, size):
                yield Unit(number, start, arranged.texts[start : start + size], arranged.tokens)

    def _start(self) -> None:
        if self._started:
            return
        self._started = True
        fingerprint, name = self.encoder.fingerprint(), self.encoder.name
        if name is None:
            self._folder = tempfile.TemporaryDirectory(prefix="hardneg-model-")
            name = str(Path(self._folder.name) / "model")
            self.encoder.save(name)
        setup = {
            "name": name, "backend": self.encoder.backend, "batch_size": self.encoder.batch_size,
            "precision": self.encoder.number_format.name,
        }  # fmt: skip
        threads = max(1, torch.get_num_threads() // len(self.devices))
        for i, device in enumerate(self.devices):
            label = device if device != "cpu" else f"cpu (process {i + 1})"
            self.alive.append(DeviceProcess({**setup, "device": device, "threads": threads}, label))
        for each in list(self.alive):
            try:
                each.ready(fingerprint)
            except Died as error:
                self._bury(each, str(error))
        if not self.alive:
            raise RunError(f"no device could load the model: {'; '.join(self.lost)}")

    def _serve(self, process: DeviceProcess, work: _Work, prompt: str, results: queue.Queue[Any]) -> None:
        """Let one device encode units until there are none; a thread."""

        def advance(count: int) -> None:
            results.put(count)

        try:
            while (unit := work.take()) is not None:
                try:
                    vectors = process.encode(unit, prompt, advance)
                except Died as error:
                    results.put((process, str(error)))
                    work.give_back(unit)
                    return
                results.put((unit, vectors))
                work.give_back(None)
            results.put(None)
        except (
            Exception
        ) as error:  # of the texts, or what the process answered is no answer: the other thread raises it
            results.put(error)

    def _collected(
        self, open_shards: dict[int, Shard], serving: int, results: queue.Queue[Any], advance: Callable[[int], None]
    ) -> Iterator[tuple[int, Float]]:
        while serving:
            found = results.get()
            if isinstance(found, int):
                advance(found)
            elif found is None:
                serving -= 1
            elif isinstance(found, HardnegError):
                raise found
            elif isinstance(found, Exception):
                raise RunError(f"a process that encodes sent no vectors ({found!r})") from found
            elif isinstance(found[0], DeviceProcess):
                serving -= 1
                self._bury(*found)
                if not self.alive:
                    raise RunError(
                        f"no device is left to encode on ({'; '.join(self.lost)}). What was written before is kept: the same "
                        f"command goes on from there (mine and train with --resume)"
                    )
            else:
                unit, vectors = found
                shard = open_shards[unit.shard]
                shard.vectors[unit.start : unit.start + len(vectors)] = vectors
                shard.missing -= len(vectors)
                if not shard.missing:
                    del open_shards[unit.shard]
                    advance(len(shard.arranged.places) - len(shard.arranged.texts))
                    yield unit.shard, shard.vectors[shard.arranged.places]

    def _bury(self, process: DeviceProcess, reason: str) -> None:
        self.lost.append(f"{process.label} stopped ({reason})")
        self.alive.remove(process)
        self._count(process)
        process.end()

    def _count(self, process: DeviceProcess) -> None:
        self.encoder.counts.memory += process.counts[0]
        self.encoder.counts.numbers += process.counts[1]
        process.counts = [0, 0]

    def said(self) -> list[str]:
        """What happened and should be known, one sentence each."""
        for each in self.alive:
            self._count(each)
        lost, self.lost = self.lost, []
        return [f"{each}: what it had begun was encoded by the other devices" for each in lost]
