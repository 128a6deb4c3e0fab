"""Files at URLs, of any file system that fsspec knows (s3://, gs://, hf://, https://, file://, memory://): copied, then read as files.

A copy is what every reader needs that goes back in a file, as those of Parquet and of vectors do. It goes on where it broke off:
each file is copied to `NAME.part`, which gets its name when it is whole, and one that is there with the size and the version that the
store tells is not copied again.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hardneg.errors import DataError, HardnegError, MissingDependencyError, UsageError
from hardneg.storage.arrow import brief
from hardneg.storage.files import check_name
from hardneg.storage.json_files import read_json, write_json
from hardneg.storage.remote_failures import Changed, failed, is_final

ATTEMPTS = 6  # to read a file on, when the connection breaks; then the error is raised

_WAIT = 0.5  # seconds before the second attempt; twice as long before each further one

_READ = 1 << 23  # bytes that are read at once

_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/{1,3}(?=[^/])")

_ANSWERED = ("ETag", "Last-Modified")  # the version in the headers of an answer

_SIGNS = (
    "ETag",
    "Last-Modified",
    "Content-MD5",
    "etag",
    "md5Hash",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
    "blob_id",
)  # of a version


Result = TypeVar("Result")


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether a place is a URL. A path made of one, which has one slash less, counts too, unless there is such a file.

    >>> is_url("s3://bucket/a.jsonl"), is_url(Path("s3://bucket/a.jsonl")), is_url("builtin:pycode"), is_url("C:/x")
    (True, True, False, False)
    """
    text = os.fspath(place)
    if _URL.match(text) is None:
        return False
    # `hf:/home/me/saved` is a saved dataset, and not on the hub.
    return "://" in text or not (os.path.lexists(text) or os.path.lexists(text.removeprefix("hf:")))


def as_url(place: str | os.PathLike[str]) -> str:
    """The URL as it was before it became a path.

    >>> as_url(Path("s3://bucket/a")), as_url(Path("file:///tmp/a"))
    ('s3://bucket/a', 'file:///tmp/a')
    """
    text = os.fspath(place)
    match = _URL.match(text)
    assert match is not None
    return (
        text if "://" in text else f"{match[1]}://{'/' if match[1] in ('file', 'local') else ''}{text[match.end() :]}"
    )


def refuse_url(place: str | os.PathLike[str], what: str) -> None:
    """UsageError if something is to be written to a URL, or under a name that is not UTF-8."""
    check_name(place)
    if is_url(place):
        raise UsageError(
            f"{as_url(place)} is a URL: {what} has to be on a disk of this machine, because it is locked, mapped into memory and "
            f"replaced in one step. Give a folder here, and copy what is finished, as with 'aws s3 cp --recursive'"
        )
    check_name(os.path.realpath(place))  # Arrow is given the whole path


@contextmanager
def naming(url: str, local: Path) -> Iterator[None]:
    """Let errors name the URL in place of its copy."""
    try:
        yield
    except HardnegError as error:
        if str(local) not in str(error):
            raise
        error.args = (str(error).replace(str(local), url.rstrip("/")),)
        raise


def fetch(place: str | os.PathLike[str], folder: Path, notes: list[str], resumable: bool = True) -> Path:
    """Copy the file, the folder or the files of a pattern that a URL names.

    Args:
        place: the URL; it may hold `*`, `?` and `**`.
        folder: where to copy it to, below a name of its own.
        notes: a sentence is added if reading was begun again, or if a file changed meanwhile and was copied anew.
        resumable: whether `folder` stays, so that another call with --resume goes on with what is in it.

    Returns:
        The copy: a file, a folder, or a pattern.

    Raises:
        DataError: there is no such file, the store refuses it, the connection keeps breaking, or the file keeps changing. What was
            copied is kept in `folder`.
        MissingDependencyError: fsspec, or its package for this kind of store, is not installed.
    """
    url = as_url(place)
    system, path = _opened(url)
    root = folder / _short(url)
    tries = _Tries(url, root if resumable else None)
    base, files = tries.of(lambda: _files(system, path))
    if not files:
        raise DataError(f"{url} does not exist, or names no file")
    broken, changed = tries.broken, 0
    for name in files:
        inside = name[len(base) :].lstrip("/")
        inside = inside.partition("?")[0] if "http" in system.protocol else inside
        if any(part in ("", "..") or "\0" in part for part in inside.split("/")):
            raise DataError(f"{url}: it names the file {name!r}, which is outside of it")
        tries = _Tries(url if len(files) == 1 else f"{url} ({inside})", root if resumable else None)
        copy = _Copy(system, name, root / inside)
        tries.of(copy.take)
        broken, changed = broken + tries.broken, changed + tries.changed
    if broken:
        notes.append(f"{url}: reading broke off {broken} times, and went on from there")
    if changed:
        notes.append(f"{url}: it changed while it was copied, and was copied anew {changed} times")
    return root if not glob.has_magic(path) and base == path.rstrip("/") else copy_of(url, folder)


def copy_of(place: str | os.PathLike[str], folder: Path) -> Path:
    """Where `fetch` puts the file, or the files of a pattern, that a URL names."""
    url = as_url(place)
    path = url.partition("?")[0] if url.startswith("http") else url
    parts = path.split("/")
    first = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return folder.joinpath(_short(url), *parts[first:])


def _short(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:16]


def _opened(url: str) -> tuple[Any, str]:
    """(the file system, the path in it)."""
    try:
        import fsspec
    except ImportError:
        raise MissingDependencyError("fsspec", "remote", url) from None
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
        return found
    except ImportError as error:  # it says which package: s3fs, gcsfs, ...
        raise UsageError(f"{url}: {brief(error)}: pip install it") from None
    except ValueError as error:
        raise UsageError(f"{url}: {brief(error)}") from None
    except Exception as error:
        raise failed(url, error) from error


def _files(system: Any, path: str) -> tuple[str, list[str]]:
    """(the folder that names are relative to, the names of all files, sorted)."""
    web = "http" in system.protocol  # where ? begins a query, and folders cannot be listed
    if glob.has_magic(path.partition("?")[0] if web else path):
        found = [name for name in system.glob(path) if not system.isdir(name)]
        parts = path.split("/")
        first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        return "/".join(parts[:first]), sorted(found)
    if not web and system.isdir(path):
        return path.rstrip("/"), sorted(system.find(path))
    system.info(path)
    return path.rpartition("/")[0], [path]


class _Tries:
    """Tries something again after failures that may pass, with longer and longer pauses.

    Args:
        shown: what messages call the file.
        root: where copies are kept for another call; None: they are removed.

    Attributes:
        broken: how often the store or the connection failed.
        changed: how often a file changed meanwhile.
    """

    def __init__(self, shown: str, root: Path | None) -> None:
        self.shown, self.root = shown, root
        self.broken = self.changed = 0

    def of(self, action: Callable[[], Result]) -> Result:
        """What the action returns; DataError if it fails for good."""
        while True:
            try:
                return action()
            except HardnegError:
                raise
            except Exception as error:  # each store has errors of its own
                done = self.broken + self.changed
                if is_final(error) or done + 1 == ATTEMPTS:
                    raise failed(self.shown, error, done + 1, holds_copies(self.root)) from error
                if isinstance(error, Changed):
                    self.changed += 1
                else:
                    self.broken += 1
                time.sleep(_WAIT * 2**done)


def holds_copies(root: Path | None) -> bool:
    """Whether there is a copy, whole or not, that another call goes on with."""
    found: Iterable[Path] = root.rglob("*") if root is not None else ()
    return any(path.is_file() and path.suffix != ".version" and path.stat().st_size for path in found)


class _Copy:
    """Copies one file; `take` goes on where it broke off, and begins anew if the file is another one now."""

    def __init__(self, system: Any, name: str, target: Path) -> None:
        self.system, self.name, self.target = system, name, target
        self.part = target.with_name(f"{target.name}.part")
        self.record = target.with_name(f"{target.name}.version")
        self.seen: dict[str, str] = {}  # the version in the answers to requests over HTTP
        self.block = _READ  # 0: read it in one go

    def take(self) -> None:
        version = self._version()
        same = self.record.is_file() and read_json(self.record) == version
        if same and self.target.is_file() and self.target.stat().st_size == version["size"]:
            return
        self.target.parent.mkdir(parents=True, exist_ok=True)
        if not same:
            self.target.unlink(missing_ok=True)
            self._forget()
            write_json(self.record, version)
        try:
            whole = self._read_on()
            if version["size"] is not None and whole < version["size"] and self._version() == version:
                raise ConnectionError(f"it ended after {whole:,} of {version['size']:,} bytes")
            # A file that was replaced meanwhile would be a mixture of both: its beginning is of the old one.
            if self._version() != version or (version["size"] is not None and whole != version["size"]):
                raise Changed
        except Changed:
            self._forget()
            raise
        os.replace(self.part, self.target)

    def _version(self) -> dict[str, Any]:
        """What the store tells of the file now: its size, and what changes with its content."""
        self.system.invalidate_cache()  # some stores answer from a list that they keep
        info = self.system.info(self.name)
        return {"size": info.get("size"), **{sign: str(info[sign]) for sign in _SIGNS if sign in info}}

    def _read_on(self) -> int:
        """Append what is missing to the part, and return its size."""
        with open(self.part, "ab") as out, self.system.open(self.name, "rb", block_size=self.block) as source:
            if hasattr(source, "async_fetch_range"):
                source.session = _Watched(source.session, self.seen)
            try:
                if out.tell():
                    source.seek(out.tell())
                while data := source.read(_READ):
                    out.write(data)
            except ValueError:
                if "http" in self.system.protocol:  # a server that gives no part of a file
                    self.block = 0
                    self._forget()
                raise
            return out.tell()

    def _forget(self) -> None:
        """Begin anew."""
        self.seen.clear()
        self.part.unlink(missing_ok=True)


class _Watched:
    """The session of a file over HTTP. `get` raises `Changed` for an answer that is of another version than those before."""

    def __init__(self, session: Any, seen: dict[str, str]) -> None:
        self._session, self._seen = session, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    async def get(self, url: Any, **options: Any) -> Any:
        answer = await self._session.get(url, **options)
        if answer.status in (200, 206):
            found = {sign: answer.headers[sign].removeprefix("W/") for sign in _ANSWERED if sign in answer.headers}
            if any(self._seen.setdefault(sign, value) != value for sign, value in found.items()):
                answer.close()
                raise Changed
        return answer
