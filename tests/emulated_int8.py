"""The int8 kernel on processors without an int8 product: the same integers, multiplied in float64, which is exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hardneg.index.int8 as int8
from hardneg.index.int8 import int8_is_exact
from hardneg.index.kernels import QueryBlock, Tile


def linear(queries: QueryBlock, tile: Tile, factor: np.ndarray, offset: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """What oneDNN's quantized linear layer computes: integer sums, then float32 arithmetic, then a saturated byte."""
    sums = (tile.values.double() @ queries.values.double().t()).float()
    bias = (offset - 128 * queries.sums * factor).astype(np.float32)
    out = sums * torch.from_numpy(factor) + torch.from_numpy(bias)
    return out if dtype == torch.float32 else out.round().clamp(0, 255).to(torch.uint8)


def emulate_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel `int8` run here, unless the processor has the product itself."""
    if int8_is_exact(64):
        return
    monkeypatch.setattr(int8, "_linear", linear)
    monkeypatch.setattr(int8.Int8Kernel, "packed", lambda self, queries: queries)
    for module in ("vectors", "kernel_choice"):
        monkeypatch.setattr(f"hardneg.index.{module}.int8_is_exact", lambda dimension: True)
