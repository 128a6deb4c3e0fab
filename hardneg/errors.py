"""The exceptions of hardneg. Every message says what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from hardneg.flags import with_arguments

_DIGITS = 4300  # of a whole number at most: Python does not write those of more, and so no message could


class HardnegError(Exception):
    """Base class of all exceptions that hardneg raises on purpose.

    As a text, the message names each option both as in Python and as on the command line; `typed` names it as it is typed.

    >>> error = UsageError("raise --depth to 20")
    >>> str(error), error.typed
    ('raise depth (--depth) to 20', 'raise --depth to 20')
    """

    def __str__(self) -> str:
        return with_arguments(super().__str__())

    @property
    def typed(self) -> str:
        """The message for the command line."""
        return super().__str__()


class HardnegWarning(UserWarning):
    """What a function noticed about the data or a run, and the command line prints as a note; `run.info["warnings"]` keeps it."""

    def __str__(self) -> str:
        return with_arguments(super().__str__())


class DataError(HardnegError):
    """The dataset, the embeddings or an input file is invalid (CLI exit code 1)."""


RUN_DAMAGED = "the run is damaged: mine again, or restore a copy"  # how messages about a damaged run end


class RunError(HardnegError):
    """A run folder is missing or damaged, was not written by hardneg, or belongs to other inputs (CLI exit code 1)."""


class UsageError(HardnegError):
    """An option or an argument has an invalid value (CLI exit code 2)."""


class MissingDependencyError(UsageError):
    """A package that belongs to an optional extra is needed but not installed.

    Args:
        package: name of the package.
        extra: the extra of hardneg that installs it.
        purpose: what needs the package, as the subject of the message.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f"Install it with: pip install 'hardneg[{extra}]'"
        )


def reason_of(error: BaseException) -> str:
    """Why something of another library failed: the first line of its message, or the name of the error if there is none.

    >>> reason_of(ValueError("\\n no such file\\n  at line 3")), reason_of(KeyError())
    ('no such file', 'KeyError')
    """
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def suggestion(value: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the most similar known name or, if none is similar, all of them.

    >>> suggestion("margni", ["margin", "rank"])
    " Did you mean 'margin'?"
    >>> suggestion("x", ["margin", "rank"])
    ' Known: margin, rank.'
    """
    names = list(known)
    similar = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    if similar:
        return f" Did you mean {similar[0]!r}?"
    return f" Known: {', '.join(names)}."


def first_few(items: Iterable[object], total: int | None = None, limit: int = 5) -> str:
    """The first few items, for a message. `total` is the number of all items, if `items` holds only some of them.

    >>> first_few([3, 17, 20, 21], limit=2)
    '3, 17 and 2 more'
    """
    listed = []
    count = 0
    for item in items:
        if count < limit:
            listed.append(str(item))
        count += 1
    more = (total if total is not None else count) - len(listed)
    return ", ".join(listed) + (f" and {more:,} more" if more > 0 else "")


def no_giants(options: Any) -> None:
    """UsageError if an option is a whole number of more digits than Python writes, or holds one.

    Args:
        options: an object with an attribute for each option.
    """
    for name, value in vars(options).items():
        if _has_giant(value, 4):
            raise UsageError(
                f"the option {name} holds a whole number of more than {_DIGITS:,} digits: give a smaller one"
            )


def _has_giant(value: Any, levels: int) -> bool:
    """Whether a value is such a number, or a list or dict that holds one within so many levels."""
    if isinstance(value, int):
        return value.bit_length() > 3.32 * _DIGITS
    if not levels or not isinstance(value, list | tuple | dict):
        return False
    return any(_has_giant(each, levels - 1) for each in (value.values() if isinstance(value, dict) else value))
