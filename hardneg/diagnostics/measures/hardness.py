"""Hardness: how near the negatives are to their queries, compared with positives and random documents."""

from __future__ import annotations

import numpy as np

from hardneg.diagnostics.estimates import (
    LISTED,
    Estimate,
    Measurements,
    column_means,
    names_of,
    row_means,
    sampled,
    unit,
)
from hardneg.diagnostics.subject import Subject


def hardness(subject: Subject, rng: np.random.Generator) -> Measurements:
    """Measure how near the negatives are to their queries, compared with positives and random documents.

    The numbers are:

    - `margin`: the lowest score of a positive minus the score of a negative; mean over queries.
    - `above_positive`: the share of a query's negatives that score above its lowest positive; mean over queries.
    - `score_by_place`, `margin_by_place`: the mean score and margin of each query's first negative, second, and so on.
    - `negative_score`, `positive_score`: the mean scores.
    - `overlap`: the probability that a random negative scores above a random positive (Mann and Whitney 1947).
    - `random_cosine`: the mean cosine of a query and a random document.
    - `beats_random`: how often a positive is nearer to its query than a random document is; 0.5 by chance.
    - `relative`: (negatives - random) / (positives - random), where each stands for its mean cosine with the query. It
      is 0 if negatives are no nearer than random documents, and 1 if they are as near as positives.
    """
    out = Measurements()
    margins = subject.positive[:, None] - subject.scores
    known = np.isfinite(margins)
    per_query = row_means(margins)
    out.numbers["margin"] = Estimate.mean_of(per_query)
    out.numbers["above_positive"] = Estimate.share_of(row_means(np.where(known, margins < 0, np.nan)))
    with np.errstate(invalid="ignore"):
        out.numbers["score_by_place"] = [float(x) for x in column_means(subject.scores)]
        out.numbers["margin_by_place"] = [float(x) for x in column_means(margins)]
    negative, positive = subject.scores[subject.real], subject.positive[np.isfinite(subject.positive)]
    out.numbers["negative_score"] = float(negative.mean()) if len(negative) else np.nan
    out.numbers["positive_score"] = float(positive.mean()) if len(positive) else np.nan
    if len(negative) and len(positive):
        ordered = np.sort(rng.choice(positive, min(len(positive), 20000), replace=False))
        picked = rng.choice(negative, min(len(negative), 20000), replace=False)
        below = (np.searchsorted(ordered, picked, "left") + np.searchsorted(ordered, picked, "right")) / 2
        out.numbers["overlap"] = float(below.mean() / len(ordered))
    if subject.vectors is not None:
        rows = sampled(len(subject.pairs), 2000, rng)
        other = rng.integers(0, len(subject.pairs.document_ids), len(rows))
        q = unit(subject.vectors[0], rows)
        at_random = (q * unit(subject.vectors[1], other)).sum(1)
        random = float(at_random.mean())
        first = np.where(subject.real[rows].any(1), subject.documents[rows, 0], -1)
        has = (first >= 0) & (subject.pairs.positives.lengths[rows] > 0)
        if has.any():
            all_negatives = np.where(subject.real[rows], subject.documents[rows], 0)
            flat = unit(subject.vectors[1], all_negatives.ravel()).reshape(*all_negatives.shape, -1)
            near = np.where(subject.real[rows], np.einsum("bd,bkd->bk", q, flat), np.nan)
            positives = subject.pairs.positives.take(rows[has])
            cosines = (q[has] * unit(subject.vectors[1], positives.values[positives.offsets[:-1]])).sum(1)
            better = (cosines > at_random[has]) + 0.5 * (cosines == at_random[has])
            out.numbers["beats_random"] = Estimate.mean_of(better)
            spread = float(cosines.mean()) - random
            out.numbers["random_cosine"] = random
            out.numbers["relative"] = (float(np.nanmean(near)) - random) / spread if abs(spread) > 1e-6 else np.nan
    measured = np.flatnonzero(np.isfinite(per_query))
    order = measured[np.argsort(per_query[measured], kind="stable")][:LISTED]
    out.ids["smallest_margin_queries"] = names_of(subject.pairs.query_ids, order)
    return out
