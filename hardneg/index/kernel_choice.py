"""Make a kernel by its name, and find the fastest kernel on this machine."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable

import numpy as np
import torch

from hardneg.index.int8 import Int8Kernel, int8_is_exact
from hardneg.index.kernels import FloatKernel, Kernel, Scale, Workspace
from hardneg.storage.arrays import Float

KERNELS = ("float32", "bfloat16", "int8")

_BY_NAME: dict[str, Callable[[Float], Kernel]] = {
    "float32": lambda sample: FloatKernel(sample, torch.float32),
    "bfloat16": lambda sample: FloatKernel(sample, torch.bfloat16),
    "int8": Int8Kernel,
}


def make_kernel(name: str, sample: Float) -> Kernel:
    """Make the kernel `name`, one of `KERNELS`. Its rounding is fitted to `sample` `[m, d]`, some of the documents."""
    return _BY_NAME[name](sample)


@functools.cache
def fastest_kernel(dimension: int) -> str:
    """The name of the fastest kernel for vectors of this dimension. It is measured once, in a tenth of a second."""
    seconds = kernel_seconds(dimension)
    return min(seconds, key=lambda name: seconds[name])


@functools.cache
def kernel_seconds(dimension: int) -> dict[str, float]:
    """Seconds that a tile of vectors of this dimension takes, by the name of the kernel.

    A coarse number format leaves more documents to rescore, so it has to be faster by a clear margin, by which its seconds are
    multiplied. Some processors saturate the partial sums of int8 products. There int8 is not used, because its error bound would
    not hold.
    """
    handicaps = {"float32": 1.0, "bfloat16": 1.2}
    if int8_is_exact(dimension):
        handicaps["int8"] = 1.3
    runs = {name: _product(name, dimension) for name in handicaps}
    seconds = dict.fromkeys(handicaps, math.inf)
    for _ in range(6):  # the kernels take turns, so that a busy moment of the machine does not decide
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return {name: seconds[name] * handicaps[name] for name in handicaps}


def _product(name: str, dimension: int) -> Callable[[], object]:
    """A function that runs the kernel `name` once, on a tile and a block of the size that a search uses."""
    generator = np.random.default_rng(0)
    documents = generator.standard_normal((1024, dimension), np.float32)
    queries = generator.standard_normal((512, dimension), np.float32)
    kernel = make_kernel(name, documents[:64])
    tile, block, workspace = kernel.tile(documents), kernel.packed(kernel.rounded(queries)), Workspace()
    scale = Scale(4 * block.norms, block.norms)  # four standard deviations, so that few documents pass
    kernel.levels(block, tile, scale, workspace)
    return lambda: kernel.levels(block, tile, scale, workspace)
