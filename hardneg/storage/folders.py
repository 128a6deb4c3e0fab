"""Folders that hardneg writes: marked as its own, locked while they are written, and replaced only by a finished one.

A folder of ours holds an empty file, `.hardneg-run` in a run. Only such folders are ever removed. The process that writes
to a folder holds a lock on that file. The operating system gives the lock back when the process ends, in whatever way.

A folder that is to replace another one is built beside it, under the name of `staging`, and put in its place in one step
when it is finished. Whoever opens the folder finds the old result or the new one, whole.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import struct
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hardneg.errors import RunError
from hardneg.storage.files import check_name, sync_folder
from hardneg.storage.remote import refuse_url

_held: set[tuple[int, int]] = set()  # (device, inode) of the markers that this process holds
_taking = threading.Lock()
_ATTEMPTS = 100  # to lock a folder that other processes replace meanwhile


def marker(folder: Path, kind: str) -> Path:
    """The file that marks a folder as one of ours."""
    return folder / f".hardneg-{kind}"


def entries(folder: Path) -> list[str]:
    """The names in a folder, without our markers; none if it does not exist."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith(".hardneg-"))
    except FileNotFoundError:
        return []


def resolved(folder: Path) -> Path:
    """The folder that a path leads to: absolute, without symbolic links. UsageError for a name that no folder can have."""
    check_name(folder)
    return Path(os.path.realpath(folder))


def staging(folder: Path, purpose: str = "new") -> Path:
    """Where the folder that is to replace `folder` is built: beside it, on the same file system."""
    return folder.with_name(f".{folder.name}.hardneg-{purpose}")


def remove_folder(folder: Path) -> None:
    """Remove a folder of ours with all that is in it. The marker goes last, so that a killed removal can go on.

    Raises:
        RunError: it is a symbolic link, or it holds something and no marker: somebody else's.
    """
    if folder.is_symlink():
        raise RunError(f"{folder} is a symbolic link, where hardneg keeps a folder of its own: remove the link")
    if entries(folder) and not _marked(folder):
        raise RunError(f"{folder} is no folder of hardneg, and stands where it keeps one: move it to another place")
    for name in entries(folder):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def output_folder(
    target: Path, kind: str, *, replace: bool, known: Collection[str], purpose: str = "new", restart: bool = True
) -> Iterator[Path]:
    """Lock the folder of a result, and put a new result in its place.

    Args:
        target: the folder. A symbolic link stays, and the folder that it points to is written.
        kind: the kind of folder, `run` or `training`.
        replace: build the result beside `target`, and put it there if the block ends without an error.
        known: the names that a folder of this kind holds. All others in a replaced folder are kept.
        purpose: a word for the name of the folder beside `target`.
        restart: remove what a killed process has built there.

    Yields:
        The folder to write to.

    Raises:
        RunError: another process writes to the folder, or it cannot be replaced because it is a mount point.
    """
    refuse_url(target, "the folder of a result")
    target = resolved(target)
    with locked(target, kind):
        remove_folder(staging(target, "old"))
        if not replace:
            no_links(target, known)
            yield target
            return
        if os.path.ismount(target):
            raise RunError(f"{target} is a mount point and cannot be replaced: give a folder inside it")
        new = staging(target, purpose)
        if restart:
            remove_folder(new)
        with locked(new, kind):
            no_links(new, known)
            yield new
            _keep_others(target, new, known)
            inside = Path.cwd().is_relative_to(target)
            swap(new, target)
            if inside:
                os.chdir(target)  # the old folder, which this process was in, is about to be removed
            with suppress(FileNotFoundError):
                os.rename(new, staging(target, "old"))  # so that nobody takes it for a new one
            remove_folder(staging(target, "old"))


def recover(target: Path) -> None:
    """Finish a replacement that was killed between its two steps, on a file system that needs two."""
    target = resolved(target)
    old = staging(target, "old")
    if not target.exists() and old.is_dir() and not old.is_symlink() and (_marked(old) or is_encoder(old)):
        with suppress(OSError):
            os.rename(old, target)


def _marked(folder: Path) -> bool:
    """Whether a folder holds a marker of ours."""
    return any(marker(folder, kind).is_file() for kind in ("run", "training", "vectors"))


def is_encoder(folder: Path) -> bool:
    """Whether a folder holds a saved encoder, or one in each of `query` and `document`. These have no marker."""

    def one(place: Path) -> bool:
        return any((place / name).is_file() for name in ("config.json", "modules.json"))

    return one(folder) or all(one(folder / side) for side in ("query", "document"))


def no_links(folder: Path, known: Collection[str]) -> None:
    """RunError if a symbolic link is among or below these names in a folder that is about to be written to."""
    for name in known:
        for path in (folder / name, *_below(folder / name)):
            if path.is_symlink():
                raise RunError(
                    f"{path} is a symbolic link, and hardneg writes inside its own folder only: put what it points to in its "
                    f"place"
                )


def _below(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(place, name)


def _keep_others(target: Path, new: Path, known: Collection[str]) -> None:
    """Give the new folder what somebody else put into the old one."""
    for name in entries(target):
        if name in known or os.path.lexists(new / name):
            continue
        if (target / name).is_dir() and not (target / name).is_symlink():
            link_tree(target / name, new / name)
        else:
            shutil.copy2(target / name, new / name, follow_symlinks=False)


def link_tree(source: Path, target: Path) -> None:
    """Copy a folder with hard links where the file system allows it.

    That is safe because files in our folders are replaced as a whole, never changed in place.
    """

    def link(a: str, b: str) -> None:
        try:
            os.link(a, b, follow_symlinks=False)
        except OSError:
            shutil.copy2(a, b, follow_symlinks=False)

    if source.is_dir():
        shutil.copytree(source, target, copy_function=link, symlinks=True, ignore=shutil.ignore_patterns(".hardneg-*"))


def swap(new: Path, target: Path) -> None:
    """Exchange two folders in one step, or in three where the system cannot."""
    if not _exchange(new, target):
        os.rename(target, staging(target, "old"))
        os.rename(new, target)
        sync_folder(target.parent)
        os.rename(staging(target, "old"), new)
    sync_folder(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths atomically; False if the system cannot (see renameat2(2) of Linux, renamex_np(2) of macOS)."""
    library = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(one), os.fsencode(other)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        here, exchange = -100, 2
        failed = library.renameat2(here, paths[0], here, paths[1], exchange)
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(*paths, 2)
    else:
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(other))


@contextmanager
def locked(folder: Path, kind: str, named: Path | None = None, *, shared: bool = False) -> Iterator[None]:
    """Mark a folder as ours and hold its lock. The folder is made if it does not exist.

    The lock is one of POSIX record locks: it belongs to the process, works on network file systems, and is not passed on
    to child processes. On file systems that have no locks, nothing is locked.

    Args:
        folder: the folder.
        kind: the kind of the marker.
        named: what messages say is being written; None: the folder.
        shared: hold the lock together with others that share it.

    Raises:
        RunError: another process, or another thread of this one, writes to the folder; or it cannot be written to.
    """
    path = marker(folder, kind)
    with _taking:
        key, descriptor = _take(folder, path, named or folder, shared)
        _held.add(key)
    try:
        yield
    finally:
        with _taking:
            _held.discard(key)
            os.close(descriptor)


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process now holds the lock of a file, which is made if it does not exist, until the block ends.

    The lock is given back when the process ends, as that of `locked`. The file stays: remove it when nobody needs it any more.
    """
    with _taking:
        held = _held_alone(path)
    try:
        yield held is not None
    finally:
        if held is not None:
            with _taking:
                _held.discard(held[0])
                os.close(held[1])


def _held_alone(path: Path) -> tuple[tuple[int, int], int] | None:
    """The lock of a file: its (device, inode), and the open descriptor; None if somebody else has it."""
    with suppress(FileNotFoundError):
        if _identity(os.stat(path)) in _held:
            return None
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        _lock(descriptor, path)
    except RunError:
        os.close(descriptor)
        return None
    key = _identity(os.fstat(descriptor))
    _held.add(key)
    return key, descriptor


def _take(folder: Path, path: Path, named: Path, shared: bool) -> tuple[tuple[int, int], int]:
    """Lock the marker. Returns its (device, inode), and the open descriptor that holds the lock."""
    for attempt in range(_ATTEMPTS):
        if folder.is_symlink():
            raise RunError(f"{folder} is a symbolic link, where hardneg keeps a folder of its own: remove the link")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                # Closing any descriptor of a locked file would give the lock back, so it is not even opened here.
                if _identity(os.stat(path)) in _held:
                    raise RunError(f"{named} is being written by this process already: choose another folder")
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            # Another process may have removed the folder just now. But some places, such as /proc, hold no new folders.
            if isinstance(error, FileNotFoundError) and attempt < _ATTEMPTS - 1:
                continue
            raise RunError(f"{folder} cannot be written to ({error.strerror})") from None
        key = _identity(os.fstat(descriptor))
        try:
            _lock(descriptor, named, shared)
            # Between opening and locking, the folder may have been replaced or removed.
            with suppress(FileNotFoundError):
                if _identity(os.stat(path)) == key:
                    return key, descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise RunError(f"{folder} is replaced again and again by other processes: choose another folder")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _lock(descriptor: int, folder: Path, shared: bool = False) -> None:
    """Lock a file; RunError if another process has it."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.lockf(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return  # a file system without locks
        process = _holder(descriptor)
        by = f"process {process}" if process else "another process"
        raise RunError(
            f"{folder} is being written by {by}: wait until it ends, stop it, or choose another folder"
        ) from None


def _holder(descriptor: int) -> int | None:
    """The process that holds the lock of a file, where the layout of the answer is known."""
    if sys.platform != "linux" or struct.calcsize("P") != 8:
        return None
    import fcntl

    layout = "hhqqi4x"  # struct flock: type, whence, start, length, process
    asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with suppress(OSError):
        return int(struct.unpack(layout, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[4]) or None
    return None
