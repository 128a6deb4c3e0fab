"""Whether the numbers of a training are finite, without waiting for the device at every step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hardneg.training.distributed import World

_NONE = 2**62  # no step


class FirstBadStep:
    """Remembers, on the device, the first step whose loss was NaN or infinite.

    Args:
        device: the device of the losses.
    """

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), _NONE, dtype=torch.int64, device=device)

    @torch.no_grad()
    def look(self, loss: Tensor, step: int) -> None:
        """Look at the loss of a batch, `[]`, without waiting for it. `step` is the step that the batch belongs to."""
        self._first = torch.where(torch.isfinite(loss), self._first, self._first.clamp(max=step))

    def value(self, world: World | None = None) -> int | None:
        """The first bad step; None: there was none. Waits for the device.

        Args:
            world: look at the losses of all ranks, which must all call this; None: only at those of this rank.
        """
        first = int(self._first) if world is None else world.lowest(self._first)
        return None if first == _NONE else first


def tensors_in(value: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested dicts and lists, with their places, such as `towers.table.weight`."""
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, dict | list | tuple):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors_in(each, f"{place}.{key}" if place else str(key))


def first_not_finite(state: Any, may_be_infinite: set[str]) -> str | None:
    """The place of the first tensor in `state` with NaN or infinity; None: all numbers are finite.

    Args:
        state: nested dicts and lists.
        may_be_infinite: the places of tensors where only NaN is wrong, such as a model's masks of attention.
    """
    named = [(place, each) for place, each in tensors_in(state) if each.is_floating_point() and each.numel()]
    by_device: dict[torch.device, list[tuple[int, Tensor]]] = {}
    for i, (place, each) in enumerate(named):
        ends = torch.stack(torch.aminmax(each))  # NaN if one number is; a twentieth of the time of looking at each
        bad = (torch.isnan(ends) if place in may_be_infinite else ~torch.isfinite(ends)).any()
        by_device.setdefault(each.device, []).append((i, bad))
    wrong = [
        i
        for flags in by_device.values()
        for (i, _), is_bad in zip(flags, torch.stack([bad for _, bad in flags]).tolist(), strict=True)
        if is_bad
    ]
    return named[min(wrong)][0] if wrong else None
