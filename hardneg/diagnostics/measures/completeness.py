"""Completeness: how many queries have too few negatives."""

from __future__ import annotations

import numpy as np

from hardneg.diagnostics.commands import mine_again, mine_deeper, rejects_most, with_other_encoder
from hardneg.diagnostics.estimates import LISTED, Measurements, names_of
from hardneg.diagnostics.subject import Subject


def completeness(subject: Subject) -> Measurements:
    """Measure how many queries have too few negatives.

    The numbers are:

    - `queries`, `documents`: the size of the dataset.
    - `asked`: the requested number of negatives per query.
    - `mine_again`: the command that mines the run again, for fixes; `mine_otherwise`: the same with another encoder; `mine_deeper`:
      twice as deep, empty if all documents are candidates; `mine_exact`: with an exact index.
    - `rejects_most`: the filter that rejects most candidates, and how many.
    - `sampler`: how negatives were drawn; `distinct_used`: whether the filter `distinct` was used.
    - `few`: the share of queries with fewer negatives than requested.
    - `none`: the share of queries without negatives.
    - `no_positive`: the share of queries without positives.
    - `items`: what the documents are, for the words of findings: `texts` or `pictures`.
    """
    counts, config = subject.counts, subject.info.get("config", {})
    total = max(1, len(counts))
    few = np.flatnonzero(counts < subject.asked)
    return Measurements(
        {
            "queries": len(counts),
            "documents": len(subject.pairs.document_ids),
            "asked": subject.asked,
            "mine_again": mine_again(subject.info, subject.name),
            "mine_otherwise": with_other_encoder(subject.info, subject.name, "st:NAME"),
            "mine_deeper": mine_deeper(subject.info, subject.name, len(subject.pairs.document_ids)),
            "mine_exact": f"{mine_again(subject.info, subject.name, ('--index', '--recall'))} --index exact",
            "rejects_most": rejects_most(subject.info),
            "sampler": str(config.get("sampler", "")),
            "distinct_used": bool(config.get("default_filters", True)) or "distinct" in config.get("filters", ()),
            "few": len(few) / total,
            "none": float((counts == 0).mean()) if len(counts) else 0.0,
            "no_positive": float((subject.pairs.positives.lengths == 0).mean()) if len(counts) else 0.0,
            "items": "pictures" if subject.pairs.documents.pictures else "texts",
        },
        {"queries_with_few": names_of(subject.pairs.query_ids, few[np.argsort(counts[few], kind="stable")][:LISTED])},
    )
