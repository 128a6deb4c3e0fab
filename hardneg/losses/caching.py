"""Gradient caching (Gao et al. 2021, arXiv 2101.06983): batches larger than memory.

All chunks are encoded without a graph, the loss gives the gradient of every vector, and then each chunk is encoded again with
a graph to pass its gradient on. The activations of only one chunk are held at a time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hardneg.errors import UsageError


@dataclass(frozen=True)
class _Random:
    """The state of the random generators before a chunk, so that its dropout can be repeated, whatever draws it."""

    cpu: Tensor
    cuda: list[Tensor]
    numpy: dict[str, Any]
    python: tuple[Any, ...]

    @classmethod
    def now(cls) -> _Random:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(torch.get_rng_state(), cuda, np.random.get_state(legacy=False), random.getstate())  # noqa: NPY002

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)


# The chunks of a side, with the state of the generators before each, and its number of rows.
_Pass = list[tuple[Any, _Random, int]]


def cached_backward(
    encode: Callable[[Any], Tensor],
    sides: Sequence[Sequence[Any]],
    loss: Callable[..., Tensor],
    *,
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """Add the gradients of `loss` to the parameters, as one backward pass over the whole batch would.

    Args:
        encode: returns the vectors `[c, ...]` of one chunk of inputs.
        sides: for each argument of the loss (queries, positives, hard negatives, ...) its chunks, in order.
        loss: a function of the vectors of all sides; its own parameters, such as a temperature, get gradients, too.
        no_sync: of a DistributedDataParallel model: gradients are exchanged with the last chunk only.

    Returns:
        The loss, `[]`, detached.

    Raises:
        UsageError: a side without chunks.
    """
    leaves, passes = _encoded(encode, sides)
    with no_sync():
        value = loss(*leaves)
        torch.autograd.backward(value)
    _pass_on(encode, leaves, passes, no_sync)
    return value.detach()


def cached_gradients(
    encode: Callable[[Any], Tensor], sides: Sequence[Sequence[Any]], loss: Callable[..., Tensor]
) -> Tensor:
    """Like `cached_backward`, for a loop that calls `backward()` itself: the loss, `[]`, whose backward pass does the work.

    The chunks are encoded again in the backward pass, with the precision (autocast) of the forward pass.
    """
    leaves, passes = _encoded(encode, sides)
    value = loss(*leaves)
    kind = value.device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    def backward(gradient: Tensor) -> None:
        torch.autograd.backward(value, gradient)
        with torch.enable_grad(), torch.autocast(kind, dtype, enabled=enabled):
            _pass_on(encode, leaves, passes, nullcontext)

    handle = torch.zeros((), device=value.device, requires_grad=True)
    out: Tensor = _Deferred.apply(handle, value.detach(), backward)  # type: ignore[no-untyped-call]
    return out


class _Deferred(torch.autograd.Function):
    """A value whose backward pass calls a function."""

    @staticmethod
    def forward(ctx: Any, handle: Tensor, value: Tensor, backward: Callable[[Tensor], None]) -> Tensor:
        ctx.run = backward
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        ctx.run(gradients[0])
        return torch.zeros_like(gradients[0]), None, None


def _encoded(encode: Callable[[Any], Tensor], sides: Sequence[Sequence[Any]]) -> tuple[list[Tensor], list[_Pass]]:
    """The vectors of all sides, as leaves of a graph, and what is needed to encode them again."""
    if not sides or any(not chunks for chunks in sides):
        raise UsageError("every side needs one chunk or more")
    leaves: list[Tensor] = []
    passes: list[_Pass] = []
    with torch.no_grad():
        for chunks in sides:
            parts: list[Tensor] = []
            done: _Pass = []
            for chunk in chunks:
                state = _Random.now()
                parts.append(encode(chunk))
                done.append((chunk, state, len(parts[-1])))
            leaves.append(torch.cat(parts).requires_grad_())
            passes.append(done)
    return leaves, passes


def _pass_on(
    encode: Callable[[Any], Tensor],
    leaves: Sequence[Tensor],
    passes: Sequence[_Pass],
    no_sync: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Encode all chunks again, and pass the gradients of the leaves on."""
    after = _Random.now()
    # A side that the loss does not use has no gradient and is not encoded again.
    again = [
        (chunk, state, gradient)
        for done, leaf in zip(passes, leaves, strict=True)
        if leaf.grad is not None
        for (chunk, state, _), gradient in zip(done, torch.split(leaf.grad, [rows for _, _, rows in done]), strict=True)
    ]
    for i, (chunk, state, gradient) in enumerate(again):
        state.restore()
        with nullcontext() if i + 1 == len(again) else no_sync():
            vectors = encode(chunk)
            if vectors.requires_grad:  # those of a frozen side, such as vectors that were made before, do not
                torch.autograd.backward(vectors, gradient)
    after.restore()
