"""Encoding shared by the ranks of a training: rank 0 hands out chunks, every rank encodes some, rank 0 gets all vectors.

A chunk is encoded as a whole by one rank, and as on one rank, so the vectors are the same bytes whatever the number of ranks. The
ranks talk in a group of their own (gloo, on the processor), so that the training may use its group at the same time.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from hardneg.errors import HardnegError
from hardneg.refresh.encode import Encode, Items
from hardneg.storage.arrays import Float, Int
from hardneg.training.distributed import World

_SIDES = ("query", "document")
_QUIT, _ENCODE = 0, 1
_LEAVES = 30.0  # seconds that a rank waits at its end for rank 0 to say that nothing is left to encode

Snapshots = Callable[[], Encode]


class Channel:
    """What the ranks say to each other about one thing: rank 0 leads."""

    def __init__(self, world: World) -> None:
        # It is idle between two generations, which may be hours.
        self.group: Any = dist.new_group(backend="gloo", timeout=timedelta(days=365))
        self.rank, self.size = world.rank, world.size

    def broadcast(self, values: Int) -> Int:
        """The values of rank 0, on all ranks; the others pass an array of the same length."""
        tensor = torch.from_numpy(values.copy())
        dist.broadcast(tensor, 0, group=self.group)
        return tensor.numpy()

    def send(self, vectors: NDArray[Any] | str) -> None:
        """Send vectors to rank 0, or the reason why there are none."""
        failed = isinstance(vectors, str)
        data = np.frombuffer(vectors.encode()[:2000] or b"?", np.uint8) if isinstance(vectors, str) else vectors
        shape = [-1, len(data)] if failed else list(data.shape)
        dist.send(torch.tensor(shape, dtype=torch.int64), 0, group=self.group)
        dist.send(torch.from_numpy(np.array(data, np.uint8 if failed else np.float32)), 0, group=self.group)

    def receive(self, rank: int) -> Float | str:
        """What a rank has sent."""
        shape = torch.empty(2, dtype=torch.int64)
        dist.recv(shape, rank, group=self.group)
        n, d = shape.tolist()
        if n < 0:
            text = torch.empty(d, dtype=torch.uint8)
            dist.recv(text, rank, group=self.group)
            return text.numpy().tobytes().decode(errors="replace")
        vectors = torch.empty((n, d), dtype=torch.float32)
        dist.recv(vectors, rank, group=self.group)
        return vectors.numpy()

    def lead(self, encode: Encode, items: Items, rows: Int, side: str, size: int) -> Iterator[Float]:
        """The vectors of each chunk, on rank 0; the others follow."""
        chunks = _chunks(len(rows), size)
        for start in range(0, len(chunks), self.size):
            self.broadcast(np.array([1]))
            own, failed = None, None
            try:
                own = np.asarray(encode(items.take(rows[chunks[start]]), side))
            except Exception as error:  # raised once the other ranks know
                failed = error
            others = [self.receive(rank) for rank in range(1, min(self.size, len(chunks) - start))]
            if failed is None:
                failed = next(
                    (HardnegError(f"a rank could not encode: {e}") for e in others if isinstance(e, str)), None
                )
            over = start + self.size >= len(chunks)
            try:
                if failed is not None:
                    raise failed
                assert own is not None
                yield own
                yield from (each for each in others if not isinstance(each, str))
            except BaseException:
                if not over:
                    self.broadcast(np.array([0]))
                raise

    def follow(self, encode: Encode, items: Items, rows: Int, side: str, size: int) -> None:
        """Encode the chunks of this rank, on the others."""
        chunks = _chunks(len(rows), size)
        for start in range(0, len(chunks), self.size):
            if not self.broadcast(np.zeros(1, np.int64))[0]:
                return
            if start + self.rank < len(chunks):
                try:
                    found: Any = np.asarray(encode(items.take(rows[chunks[start + self.rank]]), side))
                except Exception as error:  # rank 0 raises it
                    found = f"rank {self.rank}: {error}"
                self.send(found)


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


class Together:
    """An `encode` of rank 0 whose chunks all ranks encode at the same time, with the weights that they have now."""

    def __init__(self, encode: Encode, channel: Channel) -> None:
        self._encode, self._channel = encode, channel

    def __call__(self, items: Sequence[Any], side: str) -> NDArray[np.floating]:
        return self._encode(items, side)

    def chunks(self, items: Items, rows: Int, side: str, size: int) -> Iterator[NDArray[np.floating]]:
        """The vectors of these rows, a chunk of `size` at a time."""
        return self._channel.lead(self._encode, items, rows, side, size)


class SharedSnapshots:
    """Snapshots of rank 0, whose encoding all ranks share.

    Args:
        snapshots: copies the weights of this rank.
        channel: between the ranks.

    Attributes:
        count: the number of snapshots so far. The other ranks have to take as many, at the same steps.
    """

    def __init__(self, snapshots: Snapshots, channel: Channel) -> None:
        self._snapshots, self.channel, self.count = snapshots, channel, 0

    def __call__(self) -> SharedEncode:
        encode = self._snapshots()
        self.count += 1
        return SharedEncode(encode, self.count, self.channel)

    def close(self) -> None:
        """Say that nothing is left to encode."""
        with contextlib.suppress(RuntimeError):  # a rank is gone
            self.channel.broadcast(np.array([_QUIT, 0, 0, 0, 0]))


class SharedEncode(Together):
    """The same with the weights of a snapshot, asked for in the background."""

    def __init__(self, encode: Encode, number: int, channel: Channel) -> None:
        super().__init__(encode, channel)
        self._number = number

    def chunks(self, items: Items, rows: Int, side: str, size: int) -> Iterator[NDArray[np.floating]]:
        """The vectors of these rows, a chunk of `size` at a time."""
        self._channel.broadcast(np.array([_ENCODE, self._number, _SIDES.index(side), len(rows), size]))
        self._channel.broadcast(np.asarray(rows, np.int64))
        return super().chunks(items, rows, side, size)


class Helper:
    """The thread of a rank other than 0 that encodes what rank 0 asks for.

    Args:
        snapshots: copies the weights of this rank.
        channel: between the ranks.
        items: what is encoded, by side: `query` and `document`.
        threads, niceness: of the thread, as of the one that builds generations.
    """

    def __init__(
        self, snapshots: Snapshots, channel: Channel, items: Mapping[str, Items], threads: int = 1, niceness: int = 10
    ) -> None:
        self._snapshots, self.channel, self.items = snapshots, channel, items
        self.threads, self.niceness, self.count = threads, niceness, 0
        self._taken: queue.Queue[Encode] = queue.Queue()
        self._thread = threading.Thread(target=self._serve, name="hardneg-encode", daemon=True)
        self._thread.start()

    def snapshots_to(self, count: int) -> None:
        """Take the snapshots that rank 0 has taken and this rank has not."""
        for _ in range(count - self.count):
            self._taken.put(self._snapshots())
            self.count += 1

    def _serve(self) -> None:
        torch.set_num_threads(self.threads)
        if self.niceness and sys.platform.startswith("linux"):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self.niceness)
        number, encode = 0, None
        try:
            while True:
                command, wanted, side, count, size = self.channel.broadcast(np.zeros(5, np.int64)).tolist()
                if command == _QUIT:
                    return
                rows = self.channel.broadcast(np.zeros(count, np.int64))
                while number < wanted:
                    encode, number = self._taken.get(), number + 1
                assert encode is not None
                self.channel.follow(encode, self.items[_SIDES[side]], rows, _SIDES[side], size)
        except RuntimeError:  # the connection to rank 0 is gone, and with it the training
            return

    def close(self) -> None:
        """Wait for rank 0 to say that nothing is left to encode."""
        self._thread.join(_LEAVES)


def shared_encoding(
    world: World, snapshots: Snapshots, items: Mapping[str, Items], *, begins: bool
) -> SharedSnapshots | Helper:
    """This rank's part in the encoding of generations. All ranks must call this, with the same weights.

    Args:
        world: the ranks.
        snapshots: copies the weights of this rank.
        items: what is encoded, by side.
        begins: whether the first generation is to be built, which needs a snapshot at once.
    """
    channel = Channel(world)
    if world.leads:
        return SharedSnapshots(snapshots, channel)
    helper = Helper(snapshots, channel, items)
    helper.snapshots_to(int(begins))
    return helper
