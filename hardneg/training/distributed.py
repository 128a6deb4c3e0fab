"""The ranks of a training: the processes that torchrun started, one for each device, or this process alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from hardneg.errors import UsageError


@dataclass(frozen=True)
class World:
    """The ranks of a training, seen from one of them.

    Attributes:
        rank: the number of this process, from 0. Rank 0 writes files and prints.
        size: number of ranks.
        device: the device that this rank computes on.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def same_start(self, module: nn.Module) -> None:
        """Give all ranks the weights and buffers of rank 0."""
        if self.size > 1:
            with torch.no_grad():
                for tensor in (*module.parameters(), *module.buffers()):
                    dist.broadcast(tensor.data, 0)

    def average_gradients(self, *modules: nn.Module) -> None:
        """Average the gradients of these modules over the ranks, once for each update of the weights.

        A parameter that no rank has a gradient of, such as the pooler of a BERT whose vectors are means, keeps none.
        DistributedDataParallel cannot do without it, nor with two passes through the model before the gradients.
        """
        if self.size == 1:
            return
        parameters = list({id(p): p for m in modules for p in m.parameters() if p.requires_grad}.values())
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=self.device)
        dist.all_reduce(used, dist.ReduceOp.MAX)
        gradients = []
        for parameter, some in zip(parameters, used.tolist(), strict=True):
            if some:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            flat /= self.size
            for gradient, part in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def wait(self) -> None:
        """Wait until all ranks have called this."""
        if self.size > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Whether a rank passes True. All ranks must call this, and each waits for the others."""
        if self.size == 1:
            return flag
        tensor = torch.tensor([int(flag)], dtype=torch.int64, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return bool(tensor)

    def lowest(self, value: Tensor) -> int:
        """The lowest of the integers `[]` that the ranks pass. All ranks must call this."""
        if self.size == 1:
            return int(value)
        tensor = value.clone()
        dist.all_reduce(tensor, dist.ReduceOp.MIN)
        return int(tensor)

    def broadcast_int(self, value: int) -> int:
        """Return the value that rank 0 passes, on all ranks."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.int64, device=self.device)
        dist.broadcast(tensor, 0)
        return int(tensor)

    def broadcast_array(self, array: NDArray[np.generic] | None, dtype: type) -> NDArray[np.generic]:
        """Return the array `[n, k]` that rank 0 passes, on all ranks. The other ranks pass None."""
        shape = [self.broadcast_int(0 if array is None else array.shape[axis]) for axis in (0, 1)]
        local: NDArray[np.generic] = np.zeros(shape, dtype) if array is None else np.ascontiguousarray(array, dtype)
        tensor = torch.from_numpy(local.copy()).to(self.device)
        dist.broadcast(tensor, 0)
        return tensor.cpu().numpy()


def _buckets(gradients: Sequence[Tensor], most: int = 1 << 25) -> Iterator[list[Tensor]]:
    """The gradients in groups of one number format and at most so many numbers, which are exchanged at once."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        full = sum(each.numel() for each in bucket) + gradient.numel() > most
        if bucket and (full or bucket[0].dtype != gradient.dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


@contextmanager
def world(device: str | None = None) -> Iterator[World]:
    """Join the ranks that torchrun started, which its environment variables describe, or use this process alone.

    Args:
        device: `cpu`, `cuda`, or one GPU such as `cuda:1`; None: a GPU if there is one. With several ranks on GPUs,
            each rank uses the GPU of its number on its machine.

    Raises:
        UsageError: the device is unknown or not there.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(kind)
    except RuntimeError as error:
        raise UsageError(f"device {kind!r}: {str(error).splitlines()[0]}") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {kind!r}: torch finds no CUDA device on this machine. Use --device cpu")
    if size == 1:
        yield World(0, 1, chosen)
        return
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    must_join = not dist.is_initialized()
    if must_join:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(rank, size, chosen)
    finally:
        if must_join:
            dist.destroy_process_group()
