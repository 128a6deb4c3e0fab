"""Hash functions for arrays of integers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UInt = NDArray[np.uint64]


def mix(values: UInt) -> UInt:
    """Hash of each value, uint64 of any shape: the finalizer of splitmix64 (Steele, Lea and Flood, 2014).

    It is a bijection, and every bit of the input affects every bit of the output.

    >>> mix(np.array([0, 1], np.uint64)).tolist()
    [0, 6238072747940578789]
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: UInt = values ^ (values >> np.uint64(31))
    return mixed
