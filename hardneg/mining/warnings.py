"""Warnings about a dataset and its filters, for `run.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hardneg.data.notes import notes_of
from hardneg.data.pairs import Pairs
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
        messages.append(f"{without_positive:,} queries have no positive: margins and guides do not apply to them")
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
