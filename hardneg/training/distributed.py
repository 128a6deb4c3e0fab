"""The ranks of a training: processes that torchrun started, one for each device, or this process alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from hardneg.errors import UsageError


@dataclass(frozen=True)
class World:
    """The ranks of a training, seen from one of them.

    Attributes:
        rank: number of this process; rank 0 writes files and prints.
        size: number of ranks.
        device: that this rank computes on.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model; with several ranks, wrapped so that its gradients are averaged over them."""
        if self.size == 1 or not any(parameter.requires_grad for parameter in model.parameters()):
            return model
        ids = [self.device.index or 0] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)

    def average_gradients(self, module: nn.Module) -> None:
        """Average the gradients of a small module that is not wrapped, such as the temperature of a loss."""
        if self.size == 1:
            return
        for parameter in module.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.size

    def wait(self) -> None:
        """Wait until all ranks have come here."""
        if self.size > 1:
            dist.barrier()

    def broadcast_int(self, value: int) -> int:
        """The value that rank 0 has."""
        if self.size == 1:
            return value
        word = torch.tensor([value], dtype=torch.int64, device=self.device)
        dist.broadcast(word, 0)
        return int(word)

    def broadcast_array(self, array: NDArray[np.generic] | None, dtype: type) -> NDArray[np.generic]:
        """The array `[n, k]` that rank 0 passes; the other ranks pass None."""
        shape = [self.broadcast_int(0 if array is None else array.shape[axis]) for axis in (0, 1)]
        here: NDArray[np.generic] = np.zeros(shape, dtype) if array is None else np.ascontiguousarray(array, dtype)
        copy = torch.from_numpy(here.copy()).to(self.device)
        dist.broadcast(copy, 0)
        return copy.cpu().numpy()


@contextmanager
def world(device: str | None = None) -> Iterator[World]:
    """The ranks that torchrun has started (by its environment variables), or this process alone.

    Args:
        device: `cpu`, `cuda`, `cuda:1`; None: a GPU if there is one.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(kind)
    except RuntimeError as error:
        raise UsageError(f"device {kind!r}: {str(error).splitlines()[0]}") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {kind!r}: torch sees no CUDA device here. Use --device cpu")
    if size == 1:
        yield World(0, 1, chosen)
        return
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    mine = not dist.is_initialized()
    if mine:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(rank, size, chosen)
    finally:
        if mine:
            dist.destroy_process_group()
