"""What a source is taken for: its format, its columns, its counts, a few examples, and what is odd about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hardneg.data.notes import counted, notes_of
from hardneg.data.options import ReadOptions
from hardneg.data.pairs import Pairs
from hardneg.data.read import read_pairs
from hardneg.data.readers.pair_rows import RELEVANCE_COLUMNS
from hardneg.progress import Progress
from hardneg.storage.arrays import Ragged

# Roles of columns that are nothing to a pair, and why.
_UNREAD = {
    "not read": "no option names it",
    "perhaps groups": "few values that repeat: --group-column would make groups of it",
}

_LONGEST = 300  # characters of a text in an example


def inspect(
    source: str, options: ReadOptions | None = None, examples: int = 3, *, progress: Progress | bool = False
) -> dict[str, Any]:
    """Read a source, and say what it was taken for.

    Args:
        source, options, progress: as for `read_pairs`.
        examples: number of queries to show.

    Returns:
        `source`, `format`, `columns` (by role), `why` (of each role, and of the `format`), `groups` (what they are made of, if of
        no column), `counts`,
        `examples` (`query`, `positives`, `judged_negatives`, `group`),
        and `warnings`.

    Raises:
        DataError, UsageError: as for `read_pairs`.
    """
    options = options or ReadOptions()
    pairs = read_pairs(source, options, progress=progress)
    chosen = np.flatnonzero(pairs.positives.lengths > 0)[:examples]
    return {
        "source": source,
        "format": pairs.reading.get("format", ""),
        "columns": pairs.reading.get("columns", {}),
        "why": reasons(pairs.reading, vars(options)),
        **({"groups": pairs.reading["groups"]} if "groups" in pairs.reading else {}),
        "counts": counts_of(pairs),
        "examples": [_example(pairs, int(row)) for row in chosen],
        "warnings": [*notes_of(pairs), *_oddities(pairs)],
    }


def counts_of(pairs: Pairs) -> dict[str, int]:
    """How much of what a dataset holds."""
    groups = pairs.document_groups
    return {
        "queries": len(pairs),
        "documents": len(pairs.document_ids),
        "pairs": len(pairs.positives.values),
        "queries_without_positives": int((pairs.positives.lengths == 0).sum()),
        "judged_negatives": len(pairs.judged_negatives.values),
        "groups": 0 if groups is None else len(np.unique(groups[groups >= 0])),
        "documents_without_group": 0 if groups is None else int((groups < 0).sum()),
        "documents_in_the_largest_group": 0 if groups is None else int(np.bincount(groups[groups >= 0]).max(initial=0)),
    }


def reasons(reading: Mapping[str, Any], read: Mapping[str, Any]) -> dict[str, str]:
    """Why a source was taken for what it was: of the `format`, and of each column by its role.

    Args:
        reading: `Pairs.reading`.
        read: the options for reading, by name.

    >>> reasons({"format": "pairs", "columns": {"query": "q", "relevance": "label"}}, {"format": "auto", "query_column": "q"})
    {'format': 'told by its content', 'query': 'as asked', 'relevance': 'its values are judgements'}
    """
    found = {"format": "told by its content" if read.get("format", "auto") == "auto" else "as asked"}
    for role, column in reading.get("columns", {}).items():
        option = {"corpus text": "text", "corpus group": "group"}.get(role, role)
        if role in _UNREAD:
            found[role] = _UNREAD[role]
        elif read.get(f"{option}_column") is not None:
            found[role] = "as asked"
        elif role == "relevance" and str(column).lower() not in RELEVANCE_COLUMNS:
            found[role] = "its values are judgements"
        elif role == "group" and str(column).lower() != "group":
            found[role] = "its values are classes"
        else:
            found[role] = "by its name"
    return found


def _example(pairs: Pairs, row: int) -> dict[str, Any]:
    here = np.array([row])

    def texts(lists: Ragged) -> list[str]:
        return [_short(text) for text in pairs.documents.take(lists.take(here).values[:3])]

    number = -1 if pairs.query_groups is None else int(pairs.query_groups[row])
    group = (pairs.group_names[number] if pairs.group_names else number) if number >= 0 else None
    return {
        "id": pairs.query_ids[row].as_py(),
        "query": _short(pairs.queries.take(here)[0]),
        "positives": texts(pairs.positives),
        "judged_negatives": texts(pairs.judged_negatives),
        "group": group,
    }


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _oddities(pairs: Pairs) -> list[str]:
    """What may be meant otherwise: one text under several ids, queries that are documents, ids in both."""
    said = []
    keys = pairs.document_keys[pairs.document_keys != 0]
    copies = len(keys) - len(np.unique(keys))
    if copies:
        text = "{} [document has|documents have] the text of another one, under another id or in another spelling (case, white space)"
        said.append(counted(text, copies))
    both = int(np.isin(pairs.query_keys[pairs.query_keys != 0], keys).sum())
    if both:
        said.append(
            counted("{} [query is a document|queries are documents], too ([its text is|their texts are] equal)", both)
        )
    ids = set(pairs.document_ids.to_pylist())
    shared = sum(id in ids for id in pairs.query_ids.to_pylist())
    if shared:
        said.append(
            counted("{} [id names|ids name] a query and a document; they are taken for different things", shared)
        )
    return said
