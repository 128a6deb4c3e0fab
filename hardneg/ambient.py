"""What callers set for their whole process or thread must not reach into hardneg's own computations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def own_settings(*, gradients: bool = False) -> Iterator[None]:
    """Run a block, or as a decorator a function, with the usual settings of numpy and torch for it.

    Inside, numpy raises no FloatingPointError (whatever `np.seterr` says), and tensors are ordinary ones, also within
    `torch.inference_mode()`: worker threads change them, which inference tensors do not allow.

    Args:
        gradients: whether gradients are needed, also within `torch.no_grad()`.

    >>> with np.errstate(all="raise"), own_settings():
    ...     float(np.float64(1e-5).astype(np.float16)) < 1
    True
    """
    with np.errstate(divide="warn", over="warn", invalid="warn", under="ignore"), torch.inference_mode(False):
        if not gradients:
            yield
            return
        with torch.enable_grad():
            yield
