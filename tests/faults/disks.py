"""Disks that are really full, for every command that writes. The folder has to be on a small disk of its own, such as

    mount -t tmpfs -o size=1g tmpfs FOLDER && python -m tests.faults.runs --folder FOLDER --kind 'disk really full'

A limit on the size of files (the kind `disk full`) gives errors only where a file grows. On a full disk, writes to a map of a file end
in a signal, and no temporary file, lock or log can be made either.
"""

from __future__ import annotations

import os
import random
import subprocess
from functools import partial
from pathlib import Path

from tests.faults.place import MAIN, Place
from tests.faults.trainings import filled

LARGEST = 1 << 30  # bytes of a disk that is filled


def small(folder: Path) -> bool:
    """Whether the folder is on a disk that may be filled."""
    disk = os.statvfs(folder)
    return disk.f_blocks * disk.f_frsize <= LARGEST


def _with_so_much_left(left: int, place: Place, args: list[str | Path]) -> subprocess.CompletedProcess[str]:
    """Run a command while only so many bytes are left on the disk."""
    ballast = place.folder / "ballast"
    try:
        with open(ballast, "wb", buffering=0) as file:
            disk = os.fstatvfs(file.fileno())
            os.posix_fallocate(file.fileno(), 0, max(1, disk.f_bavail * disk.f_frsize - left))
        return place.process(MAIN, *args)
    finally:
        ballast.unlink(missing_ok=True)


def really_full(place: Place, rng: random.Random) -> str:
    """The disk is full at some moment of a command: an error in words, nothing lost, and later the same result."""
    return filled(place, rng, partial(_with_so_much_left, int(10 ** rng.uniform(3, 5.8))))
