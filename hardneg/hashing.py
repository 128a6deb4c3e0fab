"""Hash arithmetic on whole arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UInt = NDArray[np.uint64]


def mix(values: UInt) -> UInt:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): every bit of the input reaches every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: UInt = values ^ (values >> np.uint64(31))
    return mixed
