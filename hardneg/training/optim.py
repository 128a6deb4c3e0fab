"""The optimizer's learning-rate scheduler."""

from __future__ import annotations

import math


def rate_at(step: int, total: int, warmup: float, kind: str) -> float:
    """The learning rate of an update as a share of its peak: it rises in the first `warmup` of the steps, then falls to 0."""
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / rising
    left = (total - step) / max(1, total - rising)
    if kind == "constant":
        return 1.0
    return max(0.0, left) if kind == "linear" else 0.5 * (1 + math.cos(math.pi * (1 - max(0.0, left))))
