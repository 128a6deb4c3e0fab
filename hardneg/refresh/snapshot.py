"""Snapshots: copies of a model's weights that encode while the model itself is trained."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.multiprocessing
from numpy.typing import NDArray
from torch import nn

from hardneg.errors import HardnegError, UsageError

# encode(module, items, side) returns float [n, d], a tensor or an array; side is "document" or "query".
EncodeWith = Callable[[Any, Sequence[Any], str], "torch.Tensor | NDArray[Any]"]


class ModuleSnapshots:
    """Each call copies the weights into a shadow of the module and returns `encode(items, side)` with them.

    Args:
        module: the model that is trained; it may be wrapped by DistributedDataParallel or torch.compile.
        encode: `encode(module, items, side)` returns float `[n, d]`, a tensor or an array. It runs without gradients, in
            evaluation mode. `side` is "document" or "query".
        device: of the shadow; by default that of the module. On CUDA the shadow has a stream of its own.

    There is one shadow: take the next snapshot only when the work with the last one is done.
    """

    def __init__(
        self,
        module: nn.Module,
        encode: EncodeWith,
        device: str | torch.device | None = None,
    ) -> None:
        self._module = _unwrapped(module)
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
            _copy_weights(self._module, self._shadow)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        return self._run

    def _run(self, items: Sequence[Any], side: str) -> NDArray[np.float32]:
        where: AbstractContextManager[Any] = nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with where:
            return _encoded(self._encode, self._shadow, items, side)


class ProcessSnapshots:
    """Like `ModuleSnapshots`, but the shadow encodes in a process of its own, so that training keeps its interpreter.

    Args:
        module: the model that is trained.
        encode: as for `ModuleSnapshots`; it must be a function at the top level of a module, because the process imports it.
        threads: of the process.
        niceness: of the process, 0 to 19.

    The weights are in shared memory, so a snapshot only copies them, and only items and vectors are sent. If the process dies,
    the refresh that it worked for fails, and the next snapshot starts a new one. Call `close()` at the end.
    """

    def __init__(self, module: nn.Module, encode: EncodeWith, threads: int = 1, niceness: int = 10) -> None:
        self._module = _unwrapped(module)
        self._encode, self._threads, self._niceness = encode, threads, niceness
        self._shadow = copy.deepcopy(self._module).cpu().eval().requires_grad_(False).share_memory()
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self) -> Callable[[Sequence[Any], str], NDArray[np.float32]]:
        _copy_weights(self._module, self._shadow)
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                1,
                mp_context=torch.multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=(self._shadow, self._encode, self._threads, self._niceness),
            )
        return self._run

    def _run(self, items: Sequence[Any], side: str) -> NDArray[np.float32]:
        if self._pool is None:
            raise UsageError("these snapshots are closed")
        try:
            return self._pool.submit(_encode_there, items, side).result()
        except BrokenProcessPool as error:
            self._pool = None
            raise HardnegError(f"the process that encodes has died ({error}): out of memory?") from error

    def close(self) -> None:
        """End the process."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)


_there: dict[str, Any] = {}  # in the process that encodes: what it was started with


def _begin(shadow: nn.Module, encode: EncodeWith, threads: int, niceness: int) -> None:
    torch.set_num_threads(threads)
    if hasattr(os, "nice"):
        os.nice(niceness)
    _there.update(shadow=shadow, encode=encode)


def _encode_there(items: Sequence[Any], side: str) -> NDArray[np.float32]:
    return _encoded(_there["encode"], _there["shadow"], items, side)


def _encoded(encode: EncodeWith, shadow: nn.Module | None, items: Sequence[Any], side: str) -> NDArray[np.float32]:
    with torch.inference_mode():
        made = encode(shadow, items, side)
        if isinstance(made, torch.Tensor):
            made = made.float().cpu().numpy()
    return np.asarray(made, np.float32)


def _unwrapped(module: nn.Module) -> nn.Module:
    inner = module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module
    unwrapped: nn.Module = getattr(inner, "_orig_mod", inner)
    return unwrapped


@torch.no_grad()
def _copy_weights(module: nn.Module, shadow: nn.Module) -> None:
    now, then = module.state_dict(), shadow.state_dict()
    changed = [n for n in then.keys() | now.keys() if n not in then or n not in now or then[n].shape != now[n].shape]
    if changed:
        raise UsageError(
            f"the model has changed its make-up since the first snapshot ({sorted(changed)[0]}): make new snapshots for it"
        )
    for name, tensor in then.items():
        tensor.copy_(now[name], non_blocking=True)
