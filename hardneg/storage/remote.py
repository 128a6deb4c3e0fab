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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hardneg.errors import DataError, HardnegError, MissingDependencyError, UsageError, reason_of
from hardneg.storage.arrow import brief
from hardneg.storage.json_files import read_json, write_json

ATTEMPTS = 6  # to read a file on, when the connection breaks; then the error is raised

_WAIT = 0.5  # seconds before the second attempt; twice as long before each further one

_READ = 1 << 23  # bytes that are read at once

_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/{1,3}(?=[^/])")

_REFUSED = re.compile(r"\b(?:40[13]|Forbidden|Access ?Denied|Unauthorized)\b")

_SIGNS = (
    "ETag",
    "etag",
    "md5Hash",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
    "blob_id",
)  # of a version


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
    """UsageError if something is to be written to a URL."""
    if is_url(place):
        raise UsageError(
            f"{as_url(place)} is a URL: {what} has to be on a disk of this machine, because it is locked, mapped into memory and "
            f"replaced in one step. Give a folder here, and copy what is finished, as with 'aws s3 cp --recursive'"
        )


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


def fetch(place: str | os.PathLike[str], folder: Path, notes: list[str]) -> Path:
    """Copy the file, the folder or the files of a pattern that a URL names.

    Args:
        place: the URL; it may hold `*`, `?` and `**`.
        folder: where to copy it to, below a name of its own.
        notes: a sentence is added if reading was begun again.

    Returns:
        The copy: a file, a folder, or a pattern.

    Raises:
        DataError: there is no such file, the store refuses it, or the connection keeps breaking. What was copied is kept in `folder`.
        MissingDependencyError: fsspec, or its package for this kind of store, is not installed.
    """
    url = as_url(place)
    system, path = _opened(url)
    root = folder / _short(url)
    try:
        base, files = _files(system, path)
    except Exception as error:  # each store has errors of its own
        raise _failed(url, error) from error
    if not files:
        raise DataError(f"{url} does not exist, or names no file")
    retried = 0
    for name in files:
        inside = name[len(base) :].lstrip("/")
        inside = inside.partition("?")[0] if "http" in system.protocol else inside
        if any(part in ("", "..") or "\0" in part for part in inside.split("/")):
            raise DataError(f"{url}: it names the file {name!r}, which is outside of it")
        retried += _copy(system, name, root / inside, url if len(files) == 1 else f"{url} ({inside})")
    if retried:
        notes.append(f"{url}: reading broke off {retried} times, and went on from there")
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
        raise _failed(url, error) from error


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


def _copy(system: Any, name: str, target: Path, shown: str) -> int:
    """Copy one file, and return how often reading was begun again."""
    retried, part, record = 0, target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.version")
    target.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            info = system.info(name)
            version = {"size": info.get("size"), **{sign: str(info[sign]) for sign in _SIGNS if sign in info}}
            same = record.is_file() and read_json(record) == version
            if same and target.is_file() and target.stat().st_size == version["size"]:
                return retried
            if not same:
                target.unlink(missing_ok=True)
                part.unlink(missing_ok=True)
                write_json(record, version)
            with open(part, "ab") as out, system.open(name, "rb", block_size=_READ) as source:
                if out.tell():
                    source.seek(out.tell())
                while data := source.read(_READ):
                    out.write(data)
                whole = out.tell()
            if version["size"] is not None and whole < version["size"]:
                raise ConnectionError(f"it ended after {whole:,} of {version['size']:,} bytes")
            os.replace(part, target)
            return retried
        except HardnegError:
            raise
        except Exception as error:  # each store has errors of its own
            if _is_final(error) or retried + 1 == ATTEMPTS:
                raise _failed(shown, error, retried + 1) from error
            time.sleep(_WAIT * 2**retried)
            retried += 1


def _is_final(error: Exception) -> bool:
    """Whether another attempt is of no use: the file is not there, is refused, or the disk here is full."""
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotImplementedError) or _refused(
        error
    ):
        return True
    return isinstance(error, OSError) and error.errno in (28, 122)  # no space, quota


def _refused(error: BaseException | None) -> bool:
    """Whether the store does not let us read; the reason may be that of an error of fsspec's own.

    A name is no reason: a port may be 40177, and a file `Forbidden.jsonl`.
    """
    if error is None:
        return False
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, PermissionError) or status in (401, 403) or _refused(error.__cause__):
        return True
    if status is not None or isinstance(error, FileNotFoundError):
        return False
    return _REFUSED.search(re.sub(r"\S*/\S*", "", str(error))[:200]) is not None


def _failed(url: str, error: Exception, attempts: int = 1) -> DataError:
    said = brief(error) if isinstance(error, OSError) else reason_of(error)
    if _refused(error):
        return DataError(
            f"{url} is refused ({said}): check the credentials that its store needs, and your right to read it"
        )
    if isinstance(error, FileNotFoundError):
        return DataError(f"{url} does not exist")
    again = f", {attempts} times" if attempts > 1 else ""
    return DataError(f"{url} cannot be read ({said}{again}): try again; with --resume, what was copied is kept")
