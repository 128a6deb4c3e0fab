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
    if not sides or any(not chunks for chunks in sides):
        raise UsageError("every side needs one chunk or more")
    leaves = []
    passes: list[list[tuple[Any, _Random, int]]] = []  # for each side: its chunks, their random states, their rows
    with torch.no_grad():
        for chunks in sides:
            parts, done = [], []
            for chunk in chunks:
                state = _Random.now()
                parts.append(encode(chunk))
                done.append((chunk, state, len(parts[-1])))
            leaves.append(torch.cat(parts).requires_grad_())
            passes.append(done)
    with no_sync():
        value = loss(*leaves)
        torch.autograd.backward(value)
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
    return value.detach()
