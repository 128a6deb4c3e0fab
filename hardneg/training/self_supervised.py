"""Self-supervised pairs: every document is its own query, seen through dropout (SimCSE, arXiv 2104.08821)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hardneg.data.pairs import Pairs
from hardneg.errors import UsageError
from hardneg.storage.arrays import Ragged
from hardneg.storage.arrow import numbers


def two_views(pairs: Pairs) -> Pairs:
    """A dataset without labels, in which every document is a query whose only relevant document is itself.

    The queries and judgements of `pairs` are ignored, and empty documents get no query. The encoder needs dropout, such
    as `HashedEncoder(dropout=0.3)` or that of a transformer: it makes two different vectors of the same text while
    training.

    Raises:
        UsageError: `pairs` is a mixture.

    >>> pairs = two_views(Pairs.from_columns(["question"], ["answer"], corpus=["another text"]))
    >>> pairs.queries.slice(0, 2)
    ['answer', 'another text']
    """
    if pairs.mixed is not None:
        raise UsageError(
            "two views of each document (--self-supervised) need one source: read all documents as one corpus (--corpus), or train on "
            "each source by itself"
        )
    rows = np.flatnonzero(pairs.document_keys != 0)
    none = np.empty(0, np.int64)
    return replace(
        pairs,
        query_ids=pairs.document_ids.take(numbers(rows)),
        queries=pairs.documents.select(rows),
        positives=Ragged(np.arange(len(rows) + 1), rows),
        positive_grades=None,
        judged_negatives=Ragged(np.zeros(len(rows) + 1, np.int64), none),
        query_keys=pairs.document_keys[rows],
        query_groups=None if pairs.document_groups is None else pairs.document_groups[rows],
        query_rows=pairs.document_rows[rows],
        source_query_rows=pairs.source_document_rows,
        digests={**pairs.digests, "queries": pairs.digests["documents"]},
        name=f"{pairs.name}, two views of each document",
    )
