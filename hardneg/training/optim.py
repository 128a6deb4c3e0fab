"""Learning-rate schedules and mixed precision."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

_FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def mixed_precision(amp: str | None, device: torch.device) -> AbstractContextManager[Any]:
    """A context in which models compute as the option `amp` says: `no` (or None), `bf16` or `fp16`."""
    return nullcontext() if amp in (None, "no") else torch.autocast(device.type, _FORMATS[str(amp)])


def rate_at(step: int, total: int, warmup: float, kind: str) -> float:
    """The learning rate of an update, as a share of its peak.

    The rate rises linearly during the warm-up. Then it stays constant, or falls to 0.

    Args:
        step: the update, from 0.
        total: number of updates of the training.
        warmup: share of the updates that the warm-up takes.
        kind: how the rate goes on after the warm-up: `constant`, `linear` or `cosine`.

    >>> [rate_at(step, 5, 0.4, "linear") for step in range(5)]
    [0.5, 1.0, 1.0, 0.6666666666666666, 0.3333333333333333]
    """
    warmup_steps = round(warmup * total)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    left = (total - step) / max(1, total - warmup_steps)
    if kind == "constant":
        return 1.0
    return max(0.0, left) if kind == "linear" else 0.5 * (1 + math.cos(math.pi * (1 - max(0.0, left))))
