"""Checks before a file is written: the files of a run are never overwritten, and others' files only when that is asked for."""

from __future__ import annotations

import os
from pathlib import Path

from hardneg.errors import DataError, UsageError
from hardneg.storage.files import is_special
from hardneg.storage.folders import marker
from hardneg.storage.remote import refuse_url

# What our folders hold, by their kind: the file that describes them comes first.
OWN_FILES = {
    "run": (
        "run.json",
        "negatives.parquet",
        "relabels.parquet",
        "candidates",
        "source",
        "embeddings",
        "features",
        "teacher",
        "progress",
    ),
    "training": (
        "train.json",
        "best",
        "last",
        "log.jsonl",
        "checkpoints",
        "embeddings",
        "tensorboard",
        "wandb",
        "wandb-run.json",
    ),
}

_READ = 1 << 16  # bytes by which a file of ours is recognized


def check_place(path: Path) -> None:
    """UsageError if a path is that of a file of a run or of a training: whatever is written there would destroy it."""
    refuse_url(path, "a result")
    place = Path(os.path.realpath(path))
    for parent in place.parents:
        name = place.relative_to(parent).parts[0]
        for kind, own in OWN_FILES.items():
            ours = marker(parent, kind).exists() or (parent / own[0]).is_file()
            if ours and (name in own or name.startswith(".hardneg-")):
                raise UsageError(f"{path} is a file of the {kind} in {parent}: choose another place")


def check_replaceable(path: Path, what: str, *signs: bytes) -> None:
    """Raise an error if something is at a path that hardneg did not write.

    Args:
        path: where a file is to be written.
        what: what the file is, for the message.
        signs: texts that such files hold near their start.

    Raises:
        UsageError: the path is that of a file of a run or of a training. DataError: another file is there.
    """
    check_place(path)
    if is_special(path) or not path.is_file():
        return
    with open(path, "rb") as file:
        start = file.read(_READ)
    if start and not all(sign in start for sign in signs):
        raise DataError(f"{path} exists and is no {what} of hardneg: choose another place, or remove it first")
