"""Completeness: queries with too few negatives."""

from __future__ import annotations

import numpy as np

from hardneg.diagnostics.estimates import LISTED, Measurements, names_of
from hardneg.diagnostics.subject import Subject


def completeness(subject: Subject) -> Measurements:
    """Shares of queries: `few`, with fewer negatives than requested; `none`, without any; `no_positive`, without a positive."""
    counts = subject.counts
    total = max(1, len(counts))
    few = np.flatnonzero(counts < subject.asked)
    return Measurements(
        {
            "queries": len(counts),
            "documents": len(subject.pairs.document_ids),
            "asked": subject.asked,
            "few": len(few) / total,
            "none": float((counts == 0).mean()) if len(counts) else 0.0,
            "no_positive": float((subject.pairs.positives.lengths == 0).mean()) if len(counts) else 0.0,
        },
        {"queries_with_few": names_of(subject.pairs.query_ids, few[np.argsort(counts[few], kind="stable")][:LISTED])},
    )
