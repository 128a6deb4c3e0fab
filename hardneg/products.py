"""Matrix products on the processor, by torch's library or by numpy's, whichever is faster for float32.

torch's wheels for x86 bring Intel's MKL, numpy's bring OpenBLAS. On processors of AMD, OpenBLAS multiplies float32 faster, by a tenth
to a half for the shapes of a search (see benchmarks/RESULTS.md). The choice is made by the name of the maker: a measurement could
choose differently every time, and the lists of an index must not change with it. bfloat16 and int8 are multiplied by torch.

Only work that the main thread began is multiplied by numpy. OpenBLAS may hang where one thread forks the process, as a
loader of batches does, while another one multiplies, such as that of a refresh in the background.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import LibController, ThreadpoolController

_PROCESSOR = Path("/proc/cpuinfo")


def matrix_product(
    left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """`[T, n]`: the product of `left` `[T, d]` and `right` `[d, n]` on the CPU, plus `bias`, in their number format.

    Products of float32 are float32, whatever precision the process has chosen for torch. With
    `torch.set_float32_matmul_precision("medium")`, for example, torch rounds float32 to bfloat16 on many processors,
    which no error bound here allows for. The setting belongs to the whole process, so it is not touched: another
    thread may be training with it. Instead, numpy multiplies.
    """
    if left.dtype == torch.float32 and (numpy_multiplies() or _may_round_float32()):
        out = left.new_empty(len(left), right.shape[1]) if out is None else out
        np.matmul(left.numpy(), right.numpy(), out=out.numpy())
        return out if bias is None else out.add_(bias)
    return torch.mm(left, right, out=out) if bias is None else torch.addmm(bias, left, right, out=out)


def _may_round_float32() -> bool:
    """Whether torch may round the operands of float32 products on the CPU, because the process has asked for it."""
    onednn = getattr(torch.backends.mkldnn, "matmul", None)
    if onednn is None:  # torch before 2.9
        return torch.get_float32_matmul_precision() != "highest"
    return onednn.fp32_precision not in ("none", "ieee")


@functools.cache
def numpy_is_faster() -> bool:
    """Whether numpy multiplies float32 faster here: OpenBLAS of its own, on a processor of AMD, where torch has MKL."""
    has_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return has_mkl and _maker() == "AuthenticAMD" and bool(_libraries())


def _maker() -> str:
    """The maker of the processor as it names itself; nothing where the system is not Linux."""
    try:
        lines = _PROCESSOR.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


@functools.cache
def _libraries() -> tuple[LibController, ...]:
    """The OpenBLAS that numpy's wheel brings, which nothing else in the process uses; or nothing."""
    found = ThreadpoolController().lib_controllers
    return tuple(
        each for each in found if each.internal_api == "openblas" and Path(each.filepath).parent.name == "numpy.libs"
    )


_lock = threading.Lock()
_inside = 0
_before: list[int] = []


def _in_child() -> None:
    """In a forked process no other thread is in a block, nor can one give the lock back."""
    global _lock, _inside
    _lock = threading.Lock()
    if _inside:
        _inside = 0
        _set_threads(_before)


def _set_threads(threads: list[int]) -> None:
    for library, count in zip(_libraries(), threads, strict=True):
        library.set_num_threads(count)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


_chosen = threading.local()


def numpy_multiplies() -> bool:
    """Whether numpy multiplies float32 for this thread now."""
    return getattr(_chosen, "numpy", False)


def choose_numpy(chosen: bool) -> None:
    """Let numpy multiply for this thread, or not: for the threads of a pool, what `one_thread_each` gave."""
    _chosen.numpy = chosen


@contextmanager
def one_thread_each() -> Iterator[bool]:
    """Within this block, numpy multiplies float32 where that is faster, each call in one thread, so that several may call.

    Gives whether numpy multiplies, for `choose_numpy`. The number of threads is the library's, for all threads. The first block that
    begins sets it, the last one that ends takes it back.
    """
    global _inside, _before
    outside = numpy_multiplies()
    if not outside and not (threading.current_thread() is threading.main_thread() and numpy_is_faster()):
        yield False
        return
    with _lock:
        if _inside == 0:
            _before = [library.get_num_threads() for library in _libraries()]
            _set_threads([1] * len(_before))
        _inside += 1
    try:
        choose_numpy(True)
        yield True
    finally:
        choose_numpy(outside)
        with _lock:
            _inside = max(0, _inside - 1)  # a forked process that leaves a block of its parent has begun none
            if _inside == 0:
                _set_threads(_before)


@contextmanager
def pool_of_cores(threads: int, begin: Callable[[], object] = lambda: None) -> Iterator[Executor]:
    """A pool of threads, each of which computes on one processor core. Each calls `begin` first.

    Until the pool is closed, torch and numpy's OpenBLAS use one thread for each operation.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)

    def first(numpy: bool) -> None:
        choose_numpy(numpy)
        torch.set_num_threads(1)
        begin()

    try:
        with one_thread_each() as numpy, ThreadPoolExecutor(threads, initializer=first, initargs=(numpy,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)  # what the threads set is the default of new ones
