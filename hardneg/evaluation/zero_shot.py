"""Zero-shot classification: each document is classified by its nearest query."""

from __future__ import annotations

from typing import Any

import numpy as np

from hardneg.data.pairs import Pairs
from hardneg.index.exact import ExactIndex
from hardneg.storage.arrays import Ragged, members


def zero_shot(pairs: Pairs, queries: Any, documents: Any, metric: str = "cosine") -> dict[str, float]:
    """Classify documents by queries, and return the shares that are right.

    `zero-shot@1` counts documents whose nearest query is relevant. With groups, `zero-shot-group@1` also counts those whose nearest
    query is of their group.

    Args:
        pairs: the dataset. Documents that are relevant to no query are left out.
        queries: `[n, d]`.
        documents: `[N, d]`.
        metric: what vectors are compared by, `cosine`, `ip` or `l2`.
    """
    relevant = Ragged.from_pairs(pairs.positives.values, pairs.positives.row_numbers(), len(pairs.document_ids))
    rows = np.flatnonzero(relevant.lengths > 0)
    nearest = ExactIndex(queries, metric).search(np.asarray(documents[rows], np.float32), 1).documents
    right = members(nearest, relevant.take(rows))[:, 0]
    found = {"zero-shot@1": float(right.mean())}
    if pairs.query_groups is not None and pairs.document_groups is not None:
        theirs = pairs.document_groups[rows]
        alike = right | ((pairs.query_groups[nearest[:, 0]] == theirs) & (theirs >= 0))
        found["zero-shot-group@1"] = float(alike.mean())
    return found
