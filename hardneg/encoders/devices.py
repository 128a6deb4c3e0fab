"""Several devices that encode at the same time: `cuda:0,cuda:1`, or `cpu:2` for two processes on the processor."""

from __future__ import annotations

import torch

from hardneg.errors import UsageError

_MOST = 256


def parse_devices(text: str | None) -> tuple[str, ...]:
    """The devices that `--devices` names, one for each process.

    Args:
        text: `cuda:0,cuda:1` (these GPUs), `cuda` (every GPU), or `cpu:2` (two processes on the processor); None: none.

    Raises:
        UsageError: a device is unknown, is named twice or cannot be used, or the devices are of different kinds.

    >>> parse_devices("cpu:2")
    ('cpu', 'cpu')
    """
    found: list[str] = []
    if text is None:
        return ()
    for each in text.split(","):
        kind, colon, number = each.strip().partition(":")
        if not kind or (colon and not number.isdecimal()):
            raise UsageError(f"--devices {text}: {each!r} is no device: write cuda:0,cuda:1 or cpu:2")
        if kind == "cpu":
            if not 1 <= int(number or 1) <= _MOST:
                raise UsageError(f"--devices {text}: {each} asks for {number} processes, 1 to {_MOST} are possible")
            found += ["cpu"] * int(number or 1)
        elif kind == "cuda" and not colon:
            found += [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cuda:0"]
        else:
            found.append(each.strip())
    if len({each.partition(":")[0] for each in found}) > 1:
        raise UsageError(
            f"--devices {text}: devices of different kinds round differently, and who encodes what is a matter of time: "
            f"name devices of one kind"
        )
    for each in dict.fromkeys(found):
        if each != "cpu" and found.count(each) > 1:
            raise UsageError(f"--devices {text}: {each} is named twice")
        check_available(each)
    return tuple(found)


def check_one_way(device: str | None, devices: object) -> None:
    """UsageError if both a device and several of them are named."""
    if devices and device is not None:
        raise UsageError(f"--device {device} and --devices exclude each other: give one of them")


def check_available(device: str) -> None:
    """UsageError if torch cannot use a device."""
    try:
        torch.empty(0, device=torch.device(device))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"the device {device!r} cannot be used ({reason}): 'hardneg doctor' lists what is there"
        ) from None
