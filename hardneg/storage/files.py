"""Reading and writing files safely: atomic writes, checksums and arrays."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.errors import RunError, UsageError

_HALVES = re.compile("[\ud800-\udfff]")  # what Python makes of the bytes of a name that are not UTF-8

_ZEROS = 1 << 20  # bytes that are written at once to take space


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Let an OSError of a write name the file: on a full disk, for example, it does not say which one it was."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None and error.errno != errno.EPIPE:
            error.filename = str(path)
        raise


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path, to write the file to.

    If the block ends without an error, the temporary file is synced to disk and renamed to `path`. Otherwise it is
    deleted, and a file that was at `path` before stays as it was. Several processes can write the same file: the last
    one wins, and readers see one or the other. What killed processes left of their writes is removed.

    If `path` is a symbolic link, the file that it points to is replaced. If it is a device, a pipe or a socket, the
    content is written to it when the block ends.

    Raises:
        UsageError: `path` is a folder, a disk, or something else that cannot be written as a file.
    """
    if is_special(path):
        with tempfile.TemporaryDirectory(prefix="hardneg-") as folder:
            temporary = Path(folder) / path.name
            yield temporary
            _copy_to_special(temporary, path)
        return
    if path.is_dir():
        raise UsageError(f"{path} is a folder: give the name of a file")
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = _temporary(path)
    try:
        with naming_file(path):
            yield temporary
            with open(temporary, "rb") as f:
                os.fsync(f.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def check_name(path: str | os.PathLike[str]) -> None:
    """UsageError if a path is not UTF-8: neither JSON nor Arrow can hold it, so that a run could not name it; or has a zero byte."""
    text = os.fspath(path)
    if "\0" in text:
        raise UsageError(
            f"the name {text!r} holds a zero byte, which no file or folder has in its name: give another one"
        )
    if not _HALVES.search(text):
        return
    shown = _HALVES.sub(lambda found: f"\\x{ord(found[0]) & 255:02x}", text)
    raise UsageError(
        f"the name {shown} is not in UTF-8 (\\x.. are its bytes that are not): a run cannot record it, so rename the file or folder"
    )


def is_special(path: Path) -> bool:
    """Whether the path is a device, a pipe, a socket, or a name of an open descriptor such as /dev/stdout."""
    if _descriptor(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _descriptor(path: Path) -> int | None:
    """The descriptor that a path such as /dev/stdout or /dev/fd/3 names, or None."""
    match = re.fullmatch(r"/dev/(stdout|stderr)|/(?:dev|proc/self)/fd/([0-9]{1,6})", str(path))
    if match is None:
        return None
    return {"stdout": 1, "stderr": 2}[match[1]] if match[1] else int(match[2])


def _copy_to_special(source: Path, path: Path) -> None:
    """Write the content of a file to a device, a pipe, a socket or an open descriptor."""
    descriptor = _descriptor(path)
    if descriptor is None and stat.S_ISBLK(os.stat(path).st_mode):
        raise UsageError(f"{path} is a disk: give the name of a file")
    with open(source, "rb") as content:
        if descriptor is not None:
            # Opening the name would cut off a file that the descriptor appends to, and fails for a socket.
            with os.fdopen(os.dup(descriptor), "wb") as target:
                shutil.copyfileobj(content, target)
        elif stat.S_ISSOCK(os.stat(path).st_mode):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(path))
                connection.sendfile(content)
        else:
            with open(path, "wb", buffering=0) as target:
                shutil.copyfileobj(content, target)


def _temporary(path: Path) -> Path:
    """A path in the same folder that no other process uses, with the process in its name."""
    return path.with_name(f"{_temporary_stem(path)}{_machine()}-{os.getpid()}.{secrets.token_hex(4)}.tmp")


def _machine() -> str:
    """A short name of this machine: several machines may write to one folder."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def _temporary_stem(path: Path) -> str:
    # At most 255 bytes are allowed for a name, so a long one is replaced by its hash.
    name = path.name if len(path.name.encode()) < 180 else hashlib.sha256(path.name.encode()).hexdigest()
    return f".{name}."


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files for this path whose process, on this machine, is gone."""
    stem = _temporary_stem(path)
    with os.scandir(path.parent) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(stem) and entry.name.endswith(".tmp")]
    for name in names:
        machine, _, number = name[len(stem) :].split(".")[0].partition("-")
        if machine == _machine() and number.isdigit() and not _alive(int(number)):
            (path.parent / name).unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def remove_temporary_files(folder: Path) -> None:
    """Remove all temporary files in a folder that only this process writes to."""
    for path in folder.rglob(".*.tmp"):
        if not path.is_dir():
            path.unlink(missing_ok=True)


def add_line(path: Path, value: dict[str, Any]) -> None:
    """Append a JSON object to a file of lines, durably. A line that was cut off by a crash before stays alone."""
    data = json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    with open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            data = data if file.read(1) == b"\n" else b"\n" + data
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_at(path: Path, offset: int, data: memoryview) -> None:
    """Write bytes to a place of a file, durably."""
    with open(path, "r+b", buffering=0) as file:
        file.seek(offset)
        while data:
            data = data[file.write(data) :]
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Sync a folder to disk. A rename in it is durable only after that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_array(path: Path, array: NDArray[Any]) -> str:
    """Write an array to the .npy file `path`, whole or not at all; returns the SHA-256 of the file."""
    with atomic_path(path) as temporary, open(temporary, "wb") as f:
        np.save(f, array, allow_pickle=False)
    return sha256_file(path)


def mapped_array(path: Path, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """A new `.npy` file of zeros, mapped into memory to be written to.

    Its space on the disk is taken at once. Otherwise the process would die (SIGBUS) at the first page that finds none.
    """
    array: NDArray[Any] = np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=shape)
    size = path.stat().st_size
    with open(path, "r+b", buffering=0) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except (AttributeError, OSError) as error:  # not on macOS, nor on every file system
            if isinstance(error, OSError) and error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            file.seek(size - array.nbytes)
            for start in range(0, array.nbytes, _ZEROS):
                file.write(bytes(min(_ZEROS, array.nbytes - start)))
    return array


def read_array(path: Path, sha256: str) -> NDArray[Any]:
    """The array in the .npy file `path`; RunError if its checksum is not `sha256` or it cannot be read."""
    check_file(path, sha256)
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except Exception as error:  # numpy parses the header as Python, and a made-up one can raise nearly anything
        raise RunError(f"{path} is no array that numpy can read ({error!r}): it has to be made again") from None
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
