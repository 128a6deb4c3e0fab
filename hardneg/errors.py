"""One small tree of exceptions. Every message says what was wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HardnegError(Exception):
    """Base of everything hardneg raises on purpose."""


class DataError(HardnegError):
    """The dataset, the embeddings or an input file is bad (CLI exit code 1)."""


class RunError(HardnegError):
    """A run folder is missing, foreign, damaged, or belongs to other inputs (CLI exit code 1)."""


class UsageError(HardnegError):
    """An option or an argument has a value that cannot be used (CLI exit code 2)."""


class MissingDependencyError(UsageError):
    """An optional extra is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f"Install it with: pip install 'hardneg[{extra}]'"
        )


def suggestion(value: str, known: Iterable[str]) -> str:
    """`` Did you mean 'margin'?`` when something close to `value` is known, else the list of what is known."""
    names = list(known)
    near = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known: {', '.join(names)}."


def first_few(items: Iterable[object], total: int | None = None, limit: int = 5) -> str:
    """The first few items for a message: ``3, 17, 20 and 4 more``."""
    shown = []
    count = 0
    for item in items:
        if count < limit:
            shown.append(str(item))
        count += 1
    more = (total if total is not None else count) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "")
