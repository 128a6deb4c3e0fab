"""The encoders that a training saves, with the hashes of their files: what is damaged is not taken for a result."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypedDict

from hardneg.encoders.saved import replaced_folder
from hardneg.errors import RunError
from hardneg.storage.files import sha256_file
from hardneg.storage.folders import is_encoder
from hardneg.storage.json_files import read_json, write_json
from hardneg.training.towers import Towers

HASHES = ".hardneg-files.json"


class _Hashes(TypedDict):
    files: dict[str, str]


def save_encoder(towers: Towers, folder: Path) -> None:
    """Write the encoder to a folder. An encoder in the folder is replaced only once the new one is complete.

    Raises:
        RunError: the folder cannot be written, for example because the disk is full; or it holds something else.
    """
    if folder.is_symlink() or (folder.exists() and os.listdir(folder) and not is_encoder(folder)):
        raise RunError(f"{folder} holds no encoder that this training saved: move it to another place")
    with replaced_folder(folder, keep_others=False) as new:
        towers.save(new)
        files = [path for path in sorted(new.rglob("*")) if path.is_file()]
        hashes = {path.relative_to(new).as_posix(): sha256_file(path) for path in files}
        write_json(new / HASHES, {"files": hashes}, checksum=True)


def check_saved(folder: Path) -> None:
    """RunError if a file of a saved encoder is not as it was written. Encoders of older versions have no hashes."""
    if not (folder / HASHES).exists():
        return
    remedy = f"remove {folder} to go on without it; the best encoder is then one of those to come"
    for name, expected in read_json(folder / HASHES, _Hashes, checksum=True, remedy=remedy)["files"].items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise RunError(f"{folder / HASHES} names {name!r}, which is outside the folder: {remedy}")
        if not path.is_file() or sha256_file(path) != expected:
            raise RunError(f"{path} is missing or damaged: {remedy}")
