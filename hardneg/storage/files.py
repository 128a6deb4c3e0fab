"""Reading and writing files safely: atomic writes, checksums, JSON and arrays."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.errors import RunError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`, to write the file to.

    If the block ends without an error, the temporary file is synced to disk and renamed to `path`. Otherwise it is
    deleted, and a file that was at `path` before stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder to disk. A rename in it is durable only after that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all. ValueError if it contains NaN or infinity."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; RunError if the file is missing or holds something else."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not readable as JSON ({error}): the file is damaged") from None
    if not isinstance(value, dict):
        raise RunError(f"{path} holds a JSON {type(value).__name__}, expected an object: the file is damaged")
    return value


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_array(path: Path, array: NDArray[Any]) -> str:
    """Write an array to the .npy file `path`, whole or not at all; returns the SHA-256 of the file."""
    with atomic_path(path) as temporary, open(temporary, "wb") as f:
        np.save(f, array, allow_pickle=False)
    return sha256_file(path)


def read_array(path: Path, sha256: str) -> NDArray[Any]:
    """The array in the .npy file `path`; RunError if its checksum is not `sha256` or it cannot be read."""
    check_file(path, sha256)
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise RunError(f"{path} is no array that numpy can read ({error}): it has to be made again") from None
    return array


def check_file(path: Path, sha256: str) -> None:
    """RunError if the file is missing or its checksum is not `sha256`."""
    if not path.is_file() or sha256_file(path) != sha256:
        raise RunError(
            f"{path} is missing or damaged (its checksum is not the one that was recorded): it has to be made again"
        )


def fingerprint(value: Any) -> str:
    """SHA-256 of a value that JSON can represent, as 64 hexadecimal digits. The order of keys does not matter.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
