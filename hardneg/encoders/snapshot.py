"""Copies of a model's weights that can encode while the model is trained on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hardneg.errors import UsageError


class ModuleSnapshots:
    """Calling it copies the weights into a shadow of the module, and returns `encode(items, side)` with them.

    Args:
        module: the model that is trained; wrapped by DistributedDataParallel or torch.compile is fine.
        encode: `encode(module, items, side)` -> float `[n, d]`, a tensor or an array; it runs without gradients and
            in evaluation mode. `side` is "document" or "query".
        device: where the shadow lives; by default beside the module. On CUDA it works on a stream of its own.

    There is one shadow: take the next snapshot when the work with the last one is over.
    """

    def __init__(
        self,
        module: nn.Module,
        encode: Callable[[Any, Sequence[Any], str], torch.Tensor | NDArray[Any]],
        device: str | torch.device | None = None,
    ) -> None:
        inner = module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module
        self._module: nn.Module = getattr(inner, "_orig_mod", inner)
        self._encode = encode
        self._device = torch.device(device) if device is not None else None
        self._shadow: nn.Module | None = None
        self._stream: Any = None

    def __call__(self) -> Callable[[Sequence[Any], str], NDArray[np.float32]]:
        if self._shadow is None:
            self._shadow = copy.deepcopy(self._module).to(self._device).eval().requires_grad_(False)
            device = next((tensor.device for tensor in self._shadow.parameters()), torch.device("cpu"))
            if device.type == "cuda":
                self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        else:
            self._copy(self._shadow)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        return self._run

    @torch.no_grad()
    def _copy(self, shadow: nn.Module) -> None:
        now = self._module.state_dict()
        then = shadow.state_dict()
        changed = [
            n for n in then.keys() | now.keys() if n not in then or n not in now or then[n].shape != now[n].shape
        ]
        if changed:
            raise UsageError(
                f"the model has changed its make-up since the first snapshot ({sorted(changed)[0]}): "
                f"make a new ModuleSnapshots for it"
            )
        for name, tensor in then.items():
            tensor.copy_(now[name], non_blocking=True)

    def _run(self, items: Sequence[Any], side: str) -> NDArray[np.float32]:
        where: AbstractContextManager[Any] = nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with torch.inference_mode(), where:
            made = self._encode(self._shadow, items, side)
            if isinstance(made, torch.Tensor):
                made = made.float().cpu().numpy()
        return np.asarray(made, np.float32)
