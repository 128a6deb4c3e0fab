"""The number format that a model multiplies in: measured, and chosen where it is not given."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hardneg.encoders.linear_layers import quick_linear
from hardneg.errors import UsageError, suggestion
from hardneg.products import one_thread_each

NUMBER_FORMATS = ("auto", "float32", "bfloat16", "float16")
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

GAIN = 1.25  # how much faster bfloat16 must be, so that the noise of a measurement does not decide
LEAST_COSINE = 0.999  # of the vectors of a model in both formats: below, the model does not bear bfloat16

_ROUNDS = 6
_HOPELESS = 3.0  # times the seconds of float32


@dataclass(frozen=True)
class Chosen:
    """A number format and why it was taken.

    Attributes:
        name: `float32`, `bfloat16` or `float16`.
        reason: one sentence.
    """

    name: str
    reason: str


def checked_format(name: str) -> str:
    """`name` itself; UsageError if there is no such number format."""
    if name not in NUMBER_FORMATS:
        raise UsageError(f"unknown encoder precision {name!r}.{suggestion(str(name), NUMBER_FORMATS)}")
    return name


@functools.cache
def product_rates(device: str) -> dict[str, float]:
    """Billions of multiplications and additions per second (GFLOP/s) in the layer of an encoder, by number format.

    On a processor it is the rate of one core, since a core computes a batch alone. It is measured once, in less than a second.
    Formats that the device does not know are left out.

    Args:
        device: such as `cpu` or `cuda:0`.
    """
    place = torch.device(device)
    rows, wide = (512, 1536) if place.type == "cpu" else (8192, 4096)
    before = torch.get_num_threads()
    if place.type == "cpu":
        torch.set_num_threads(1)
    try:
        with one_thread_each():
            seconds = _seconds({name: _layer(each, place, rows, wide) for name, each in TYPES.items()}, place)
    finally:
        if place.type == "cpu":
            torch.set_num_threads(before)
    work = 2 * rows * wide * (wide // 4) / 1e9
    return {name: work / taken for name, taken in seconds.items()}


def _seconds(runs: dict[str, Callable[[], object]], place: torch.device) -> dict[str, float]:
    """The shortest time of each layer, by number format; formats that the device does not know are left out."""
    seconds = dict.fromkeys(runs, math.inf)
    for _ in range(_ROUNDS):  # they take turns, so that a busy moment of the machine does not decide
        for name, run in list(runs.items()):
            taken = _timed(run, place)
            if taken is None:
                runs.pop(name)
                seconds.pop(name)
            else:
                seconds[name] = min(seconds[name], taken)
        for name in [name for name in runs if seconds[name] > _HOPELESS * seconds["float32"]]:
            runs.pop(name)  # once is enough
    return seconds


def is_slow(device: str, name: str) -> bool:
    """Whether a device multiplies this format no faster than float32."""
    rates = product_rates(device)
    return rates.get(name, 0.0) < rates["float32"]


def _layer(kind: torch.dtype, device: torch.device, rows: int, wide: int) -> Callable[[], object]:
    """A function that runs one linear layer. The weights are cast once, the activations every time, as autocast does."""
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(rows, wide, generator=generator, dtype=torch.float32, device="cpu").to(device)
    weights = torch.randn(wide // 4, wide, generator=generator, dtype=torch.float32, device="cpu").to(device, kind)

    def run() -> object:
        with torch.inference_mode(), quick_linear(device, str(kind).removeprefix("torch.")):
            return torch.nn.functional.linear(activations.to(kind), weights)

    return run


def _timed(run: Callable[[], object], device: torch.device) -> float | None:
    """Seconds of a call; None if the device cannot do it."""
    try:
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        return time.perf_counter() - start
    except RuntimeError:  # torch has no such product for this device
        return None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def choose(device: str, both: Callable[[], tuple[NDArray[np.float32], NDArray[np.float32]]] | None) -> Chosen:
    """bfloat16 where the device multiplies it faster and the model bears it, else float32.

    Args:
        device: such as `cpu` or `cuda:0`.
        both: returns vectors `[n, d]` of some texts in float32 and in bfloat16. It is called if bfloat16 is faster. None: there is
            no model to look at.
    """
    rates = product_rates(device)
    if "bfloat16" not in rates:
        return Chosen("float32", f"torch has no bfloat16 product for {device}")
    gain = rates["bfloat16"] / rates["float32"]
    measured = f"{device} multiplies bfloat16 at {rates['bfloat16']:,.0f} GFLOP/s, float32 at {rates['float32']:,.0f}"
    if gain < GAIN:
        return Chosen("float32", f"{measured}: less than {GAIN} times as fast")
    if both is None:
        return Chosen("bfloat16", f"{measured}: {gain:.1f} times as fast")
    exact, coarse = both()
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(coarse, axis=1)
    cosine = float(((exact * coarse).sum(1) / np.maximum(lengths, 1e-30)).min())
    if not cosine >= LEAST_COSINE:
        return Chosen(
            "float32", f"{measured}, but this model's vectors change too much in it (cosine {cosine:.4f} to float32)"
        )
    return Chosen("bfloat16", f"{measured}: {gain:.1f} times as fast (cosine {cosine:.5f} to float32)")
