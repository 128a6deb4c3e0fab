"""Linear layers of an encoder by numpy's library, where that multiplies float32 faster than torch's (see `hardneg.products`).

Nine tenths of an encoder's operations are linear layers. The layers themselves are left as they are: inside the block, calls of
`torch.nn.functional.linear` by this thread are answered here, for tensors of float32 on the processor and without gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hardneg.products import matrix_product, numpy_multiplies

_ROWS = 1024  # multiplied at once, so that the bias is added while the results are in the cache
_SMALL = 1 << 20  # multiplications below which the detour costs more than it saves


class QuickLinear(TorchFunctionMode):
    """Within this block, linear layers are multiplied by `hardneg.products.matrix_product`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.linear and not kwargs and _fits(args):
            return _linear(*args)
        return func(*args, **(kwargs or {}))


def quick_linear(device: torch.device, number_format: str) -> AbstractContextManager[Any]:
    """A block in which a model runs; it changes how linear layers are multiplied where that is faster."""
    wanted = device.type == "cpu" and number_format == "float32" and numpy_multiplies()
    return QuickLinear() if wanted else nullcontext()


def _fits(args: Sequence[Any]) -> bool:
    """Whether these are a plain layer's arguments, large enough, and nobody needs gradients."""
    tensors: list[Tensor] = [each for each in args if each is not None]
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    if not 2 <= len(tensors) <= 3 or any(type(each) not in (Tensor, torch.nn.Parameter) for each in tensors):
        return False
    if any(each.dtype != torch.float32 or each.device.type != "cpu" or not each.is_contiguous() for each in tensors):
        return False
    inputs, weight = tensors[:2]
    fits = (
        inputs.ndim >= 2
        and weight.ndim == 2
        and all(bias.ndim == 1 for bias in tensors[2:])
        and inputs.shape[-1] == weight.shape[1]
    )
    return fits and inputs.numel() * weight.shape[0] >= _SMALL


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows, across = inputs.flatten(0, -2), weight.detach().t()
    out = rows.new_empty(len(rows), len(weight))
    for start in range(0, len(rows), _ROWS):
        matrix_product(rows[start : start + _ROWS], across, bias, out[start : start + _ROWS])
    return out.view(*inputs.shape[:-1], len(weight))
