"""What a kind of input is: how a damaged one is made from random numbers, and how it is read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random


@dataclass(frozen=True)
class Kind:
    """A kind of input that is files.

    Attributes:
        make: writes a damaged input to an empty folder; the same bytes for the same random numbers.
        read: reads it as hardneg does, and uses everything that was read.
        risky: whether damage could kill the process.
        refuses: errors that are refusals as well as ours are, such as those of click.
    """

    make: Callable[[Path, Random], None]
    read: Callable[[Path], None]
    risky: bool = False
    refuses: tuple[type[Exception], ...] = ()


@dataclass(frozen=True)
class Typed:
    """A kind of input that needs no file, such as a spec.

    Attributes:
        make: a damaged input; the same one for the same random numbers.
        read: reads it as hardneg does, and uses what was read.
        refuses: as of `Kind`.
    """

    make: Callable[[Random], str]
    read: Callable[[str], None]
    refuses: tuple[type[Exception], ...] = ()
    risky = False


def cleared(folder: Path) -> Path:
    """The folder, empty. Faster than to remove and to make it, which would be a large share of the time of most cases."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)
    except FileNotFoundError:
        folder.mkdir(parents=True)
    return folder
