"""Hardness: how near the negatives are, compared with positives and random documents."""

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
    """Measure how near the negatives are, compared with the positives and with random documents.

    `margin`: mean of the lowest positive's score minus the score of a negative. `above_positive`: share of negatives that score
    higher than the positive. `relative`: (negatives - random) / (positives - random) of mean cosines; 0 for random negatives, 1 for
    negatives as near as positives. `score_by_place`, `margin_by_place`: the same by position in the run, hardest first. `overlap`:
    the probability that a random negative scores higher than a random positive (Mann and Whitney 1947).
    """
    out = Measurements()
    gap = subject.positive[:, None] - subject.scores
    judged = np.isfinite(gap)
    per_query = row_means(gap)
    out.numbers["margin"] = Estimate.mean_of(per_query)
    out.numbers["above_positive"] = Estimate.share_of(row_means(np.where(judged, gap < 0, np.nan)))
    with np.errstate(invalid="ignore"):
        out.numbers["score_by_place"] = [float(x) for x in column_means(subject.scores)]
        out.numbers["margin_by_place"] = [float(x) for x in column_means(gap)]
    negative, positive = subject.scores[subject.real], subject.positive[np.isfinite(subject.positive)]
    out.numbers["negative_score"] = float(negative.mean()) if len(negative) else np.nan
    out.numbers["positive_score"] = float(positive.mean()) if len(positive) else np.nan
    if len(negative) and len(positive):
        some = np.sort(rng.choice(positive, min(len(positive), 20000), replace=False))
        picked = rng.choice(negative, min(len(negative), 20000), replace=False)
        below = (np.searchsorted(some, picked, "left") + np.searchsorted(some, picked, "right")) / 2
        out.numbers["overlap"] = float(below.mean() / len(some))
    if subject.vectors is not None:
        rows = sampled(len(subject.pairs), 2000, rng)
        other = rng.integers(0, len(subject.pairs.document_ids), len(rows))
        q = unit(subject.vectors[0], rows)
        random = float((q * unit(subject.vectors[1], other)).sum(1).mean())
        first = np.where(subject.real[rows].any(1), subject.documents[rows, 0], -1)
        has = (first >= 0) & (subject.pairs.positives.lengths[rows] > 0)
        if has.any():
            all_negatives = np.where(subject.real[rows], subject.documents[rows], 0)
            flat = unit(subject.vectors[1], all_negatives.ravel()).reshape(*all_negatives.shape, -1)
            near = np.where(subject.real[rows], np.einsum("bd,bkd->bk", q, flat), np.nan)
            mine = subject.pairs.positives.take(rows[has])
            own = (q[has] * unit(subject.vectors[1], mine.values[mine.offsets[:-1]])).sum(1)
            spread = float(own.mean()) - random
            out.numbers["random_cosine"] = random
            out.numbers["relative"] = (float(np.nanmean(near)) - random) / spread if abs(spread) > 1e-6 else np.nan
    hardest = np.flatnonzero(np.isfinite(per_query))
    order = hardest[np.argsort(per_query[hardest], kind="stable")][:LISTED]
    out.ids["smallest_margin_queries"] = names_of(subject.pairs.query_ids, order)
    return out
