"""Checks of numbers that are given as arguments. NaN passes every comparison that should refuse it, so it needs one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hardneg.data.texts import shown
from hardneg.errors import UsageError

LARGEST = 2**63 - 1  # the largest integer that tensors can hold


def whole(name: str, value: Any, low: int, high: int = LARGEST) -> int:
    """`value` as an int; UsageError if it is not an integer from `low` to `high`. Integers of numpy count as integers.

    >>> whole("batch_size", np.int64(64), 1)
    64
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise UsageError(f"{name}={shown(value)} must be an integer")
    if not low <= value <= high:
        limits = f"{low} or more" if high == LARGEST and value < low else f"{low} to {high}"
        raise UsageError(f"{name}={shown(value)} must be {limits}")
    return int(value)


def number(
    name: str, value: Any, low: float, high: float = math.inf, *, above: bool = False, below: bool = False
) -> float:
    """`value` as an int or float; UsageError if it is not a finite number from `low` to `high`.

    Args:
        name: for the message.
        value: the number.
        low, high: the limits.
        above, below: whether the number must differ from `low`, and from `high`.

    >>> number("momentum", 0.9, 0, 1, below=True)
    0.9
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise UsageError(f"{name}={shown(value)} must be a number")
    plain: float = value.item() if isinstance(value, np.generic) else value
    finite = not isinstance(plain, float) or math.isfinite(plain)
    inside = (low < plain if above else low <= plain) and (plain < high if below else plain <= high)
    if not finite or not inside:
        start = f"above {low:g}" if above else f"{low:g} or more"
        end = "" if high == math.inf else f" and below {high:g}" if below else f" and at most {high:g}"
        raise UsageError(f"{name}={shown(value)} must be {start}{end}" + ("" if finite else ", and finite"))
    return plain


def flag(name: str, value: Any) -> bool:
    """`value` as a bool; UsageError if it is anything but True or False."""
    if not isinstance(value, bool | np.bool_):
        raise UsageError(f"{name}={shown(value)} must be True or False")
    return bool(value)
