"""Self-supervised pairs: every document is its own query, seen through the encoder's dropout (SimCSE, arXiv 2104.08821)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hardneg.data.pairs import Pairs
from hardneg.storage.arrays import Ragged
from hardneg.storage.arrow import numbers


def two_views(pairs: Pairs) -> Pairs:
    """The documents of a dataset, each the query for itself and the only one that is relevant to it.

    What the dataset says of relevance is not looked at. Two views differ by what the encoder leaves out at random while it
    is trained: `HashedEncoder(dropout=0.3)`, or a transformer's own dropout. Empty documents are left out.
    """
    rows = np.flatnonzero(pairs.document_keys != 0)
    none = np.empty(0, np.int64)
    return replace(
        pairs,
        query_ids=pairs.document_ids.take(numbers(rows)),
        queries=pairs.documents.select(rows),
        positives=Ragged(np.arange(len(rows) + 1), rows),
        judged_negatives=Ragged(np.zeros(len(rows) + 1, np.int64), none),
        query_keys=pairs.document_keys[rows],
        query_groups=None if pairs.document_groups is None else pairs.document_groups[rows],
        query_rows=pairs.document_rows[rows],
        source_query_rows=pairs.source_document_rows,
        digests={**pairs.digests, "queries": pairs.digests["documents"]},
        name=f"{pairs.name}, two views of each document",
    )
