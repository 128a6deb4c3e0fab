"""Several sources whose columns have different names: the options that name columns hold for the sources that have these columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .plain import plain
from .reading import read_options

if TYPE_CHECKING:
    from hardneg.data.pairs import Pairs
    from hardneg.progress import Progress

# Columns of a source itself. Those of --corpus and of pictures are the same for all.
_OF_SOURCES = (
    "query_column", "positive_column", "id_column", "document_id_column", "group_column", "relevance_column",
)  # fmt: skip

Given = dict[str, Any]


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def read_own(
    spec: str, given: Given, split: str | None = None, progress: Progress | None = None
) -> tuple[Pairs, Given, list[str]]:
    """Read one of several sources, without the options that name columns which it lacks.

    Args:
        spec: the source.
        given: the options of the command.
        split: the split to read; None: that of the options.
        progress: as in `hardneg.progress`; None: silent.

    Returns:
        (the pairs, the options that they were read with, the names of those that were left out).

    Raises:
        DataError: the source cannot be read; where options were left out, the message says what to do.
    """
    from hardneg.data.columns import MissingColumnError
    from hardneg.data.read import read_pairs
    from hardneg.data.readers.image_sources import is_image_source
    from hardneg.errors import DataError

    given = dict(given)
    left: list[str] = []
    while True:
        try:
            return read_pairs(spec, read_options(given, split), progress=progress or False), given, left
        except MissingColumnError as error:
            named = [name for name in _OF_SOURCES if given[name] == error.given]
            if not named or is_image_source(
                Path(spec), read_options(given, split)
            ):  # whose rows are looked at one by one
                raise
            given |= dict.fromkeys(named)
            left += named
        except DataError as error:
            if not left:
                raise
            reason = error.typed.partition(" Name yours with")[0]  # which was done
            raise DataError(
                f"{reason.removesuffix('.')}. This source has other columns than those of {', '.join(map(_option, left))}, and no "
                f"usual names in their place: rename its columns, or mix the sources from Python, each read with its own names: "
                f"hardneg.mixture([hardneg.read_pairs(source, hardneg.ReadOptions(...)), ...])"
            ) from None


def read_each(
    specs: Mapping[str, str], given: Given, progress: Progress, tell: Callable[[str], None]
) -> tuple[dict[str, Pairs], dict[str, Given]]:
    """Read several sources by name, and say by which names the columns of a source were found that lacks given ones.

    Returns:
        (the pairs of each source, the options that each was read with).

    Raises:
        UsageError: a column that was named is in no source. DataError: see `read_own`.
    """
    read: dict[str, Pairs] = {}
    own: dict[str, Given] = {}
    lacking: dict[str, list[str]] = {}
    for name, spec in specs.items():
        read[name], own[name], lacking[name] = read_own(spec, given, progress=progress)
    for option in dict.fromkeys(each for left in lacking.values() for each in left):
        found = [name for name in read if given[option] in _columns(read[name])]
        if not found:
            raise click.UsageError(
                f"no source has the column {plain(repr(given[option]))} ({_option(option)}): 'hardneg inspect SOURCE' shows the "
                f"columns of each"
            )
    for name, left in lacking.items():
        if left:
            tell(f"source {name}: {said_of_columns(read[name], given, left)}")
    return read, own


def said_of_columns(pairs: Pairs, given: Given, left: Sequence[str]) -> str:
    """What is said of a source that lacks columns which were named, such as: no column 'a' (--query-column); read as query = b."""
    lacks = ", ".join(f"{given[each]!r} ({_option(each)})" for each in left)
    columns = ", ".join(f"{role} = {column}" for role, column in pairs.reading["columns"].items() if role != "not read")
    return f"no column {lacks}, so it is read by its own names: {columns or pairs.reading['format']}"


def _columns(pairs: Pairs) -> list[str]:
    """The columns that a source was read by."""
    return [column for role, column in pairs.reading["columns"].items() if role != "not read"]
