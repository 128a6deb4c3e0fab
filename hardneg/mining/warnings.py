"""Warnings about a dataset and its filters: for `run.json`, and told to who calls from Python."""

from __future__ import annotations

import sys
import warnings as python_warnings
from collections.abc import Iterable, Mapping
from typing import Any

from hardneg.data.notes import counted, notes_of
from hardneg.data.pairs import Pairs
from hardneg.errors import HardnegWarning
from hardneg.mining.filters.base import with_found
from hardneg.mining.filters.identity import Group
from hardneg.mining.options import MineOptions
from hardneg.mining.specs import parse_filters


def warnings(pairs: Pairs, options: MineOptions, depth: int, fingerprints: Mapping[str, Any]) -> list[str]:
    """Return the warnings for `run.json`, one sentence each. `depth` and `fingerprints` say what candidates were found in."""
    chain = parse_filters(options.filters, options.default_filters)
    messages = chain.notes(with_found(options.to_json(), depth, fingerprints))
    messages += notes_of(pairs)
    without_positive = int((pairs.positives.lengths == 0).sum())
    if without_positive:
        said = "{} [query has|queries have] no positive: margins and guides do not apply to [it|them]"
        messages.append(counted(said, without_positive))
    uses_groups = any(isinstance(f, Group) for f in chain.filters)
    without = 0 if pairs.document_groups is None else int((pairs.document_groups < 0).sum())
    if uses_groups and without:
        messages.append(
            f"{without:,} of {len(pairs.document_ids):,} documents have no group: the filter 'group' keeps all of them"
        )
    if pairs.document_groups is not None and not uses_groups:
        messages.append(
            "the dataset has groups that no filter uses: --filter group rejects documents of the query's group"
        )
    return messages


def tell(messages: Iterable[str], command: list[str] | None) -> None:
    """Give a `HardnegWarning` for each message, at the place outside of hardneg that called it.

    Args:
        messages: those of `run.json`.
        command: the command line, which prints them itself; None: there is none.
    """
    if command is not None:
        return
    level, frame = 1, sys._getframe()
    # `contextlib` stands between a function and its caller where a context manager decorates it.
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in (
        "hardneg",
        "contextlib",
    ):
        level, frame = level + 1, frame.f_back
    for message in messages:
        python_warnings.warn(HardnegWarning(message), stacklevel=level)
