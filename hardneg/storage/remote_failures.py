"""Why a file at a URL was not read, told from the errors of many packages, and whether it is worth trying again."""

from __future__ import annotations

import errno
import http
import re
from collections.abc import Iterator

from hardneg.errors import DataError, reason_of
from hardneg.storage.arrow import brief

_REFUSED = re.compile(r"\b(?:40[13]|Forbidden|Access ?Denied|Unauthorized)\b")

_PASSING = (408, 425, 429)  # answers that may be others soon, as those from 500 are


class Changed(Exception):
    """What was read is of several versions of a file."""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it comes from: fsspec raises errors of its own, some of which tell nothing."""
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: BaseException) -> int | None:
    """The status with which a store answered; None: it is not known."""
    for each in _chain(error):
        answer = getattr(each, "response", None)
        found = getattr(each, "status", None) or getattr(answer, "status_code", None)
        if found is None and isinstance(answer, dict):  # of botocore
            found = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(found, int):
            return found
    return None


def is_final(error: Exception) -> bool:
    """Whether another attempt is of no use: the file is not there, is refused, or the disk here is full."""
    if _refused(error) or _missing(error) or isinstance(error, IsADirectoryError | NotImplementedError):
        return True
    status = _status(error)
    if status is not None and 400 <= status < 500 and status not in _PASSING:
        return True
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _missing(error: Exception) -> bool:
    """Whether the file is not there. fsspec says so of every URL that it gets no answer from, too."""
    status = _status(error)
    if status is not None:
        return status in (404, 410)
    causes = [each for each in _chain(error) if not isinstance(each, FileNotFoundError)]
    return isinstance(error, FileNotFoundError) and not any(_of_connection(each) for each in causes)


def _of_connection(error: BaseException) -> bool:
    return isinstance(error, OSError | EOFError) or type(error).__module__.partition(".")[0] == "aiohttp"


def _refused(error: BaseException) -> bool:
    """Whether the store does not let us read; the reason may be that of an error of fsspec's own.

    A name is no reason: a port may be 40177, and a file `Forbidden.jsonl`.
    """
    status = _status(error)
    if status is not None:
        return status in (401, 403)
    return any(
        isinstance(each, PermissionError)
        or (
            not isinstance(each, FileNotFoundError)
            and _REFUSED.search(re.sub(r"\S*/\S*", "", str(each))[:200]) is not None
        )
        for each in _chain(error)
    )


def _reason(error: Exception) -> str:
    """Why it failed: the status and its words, or what the first error in the chain says that says more than a name."""
    status = _status(error)
    if status is not None:
        words = {each.value: each.phrase for each in http.HTTPStatus}.get(status, "")
        return f"HTTP {status} {words}".rstrip()
    telling = next((each for each in _chain(error) if not isinstance(each, FileNotFoundError)), error)
    return brief(telling) if isinstance(telling, OSError) else reason_of(telling)


def failed(url: str, error: Exception, attempts: int = 1, copied: bool = False) -> DataError:
    """The error that says why a URL was not read, and what to do.

    Args:
        url: what messages call the file.
        error: what the store, or its package, raised in the end.
        attempts: how often it was tried.
        copied: whether a part was copied that another call goes on with.
    """
    if isinstance(error, Changed):
        return DataError(
            f"{url} changes while it is copied ({attempts} times in a row): wait until it is written, or copy it to this machine first"
        )
    if _refused(error):
        return DataError(
            f"{url} is refused ({_reason(error)}): check the credentials that its store needs, and your right to read it"
        )
    if _missing(error):
        return DataError(f"{url} does not exist")
    again = f", {attempts} times" if attempts > 1 else ""
    advice = "try again; with --resume, what was copied is kept" if copied else "check the URL, or try again"
    return DataError(f"{url} cannot be read ({_reason(error)}{again}): {advice}")
