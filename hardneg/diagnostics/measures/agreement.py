"""Agreement with a second encoder: are the negatives hard for another model as well?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardneg.diagnostics.estimates import LISTED, Estimate, Measurements, names_of, normalized, row_means, sampled
from hardneg.diagnostics.subject import Subject
from hardneg.encoders.base import Encoder, prompt_of
from hardneg.encoders.embed import fit
from hardneg.progress import Progress

_QUERIES = 200  # the largest number of queries that are encoded

_NEGATIVES = 10  # the first negatives of each that are encoded

_RANDOM = 200  # random documents that are encoded


def agreement(subject: Subject, encoder: Encoder, rng: np.random.Generator, progress: Progress) -> Measurements:
    """Score a sample of the negatives with a second encoder. At most 200 queries, their positive, their first ten negatives and 200
    random documents are encoded, whatever the size of the corpus.

    The numbers are of the second encoder's cosines; means over queries.

    - `second_relative`: (negatives - random) / (positives - random): hardness as in `relative`. 0: no nearer than random documents;
      1: as near as positives.
    - `second_above_positive`: the share of negatives above the positive. `both_above_positive`: the share that both encoders put above
      it, and `both_expected`: the product of the two shares, which is what encoders that err independently would have in common.
      Far above it, these negatives are likely relevant.
    - `second_agreement`: the rank correlation (Spearman) of the two encoders over a query's negatives: 1 the same order, 0 none.
      Queries with at least three negatives.
    """
    pairs, out = subject.pairs, Measurements()
    rows = np.flatnonzero((subject.counts > 0) & (pairs.positives.lengths > 0))
    if len(rows) == 0:
        return out
    rows = rows[sampled(len(rows), _QUERIES, rng)]
    fit(encoder, pairs, progress)
    positives = pairs.positives.take(rows)
    first = positives.values[positives.offsets[:-1]]
    negatives = subject.documents[rows, :_NEGATIVES]
    random = sampled(len(pairs.document_ids), _RANDOM, rng)
    wanted = np.unique(np.concatenate([first, random, negatives[negatives >= 0]]))
    prompts = {side: prompt_of(encoder, side, None) for side in ("query", "document")}
    q = normalized(encoder.encode(pairs.queries.take(rows), prompt=prompts["query"]))
    d = normalized(encoder.encode(pairs.documents.take(wanted), prompt=prompts["document"]))
    real = negatives >= 0
    near = np.einsum("bd,bkd->bk", q, d[np.searchsorted(wanted, np.maximum(negatives, 0)).clip(max=len(wanted) - 1)])
    near = np.where(real, near, np.nan)
    positive = (q * d[np.searchsorted(wanted, first)]).sum(1)
    far = (q @ d[np.searchsorted(wanted, random)].T).mean(1)
    spread = float((positive - far).mean())
    if abs(spread) > 1e-6:
        out.numbers["second_relative"] = Estimate.mean_of((row_means(near) - far) / spread)
    above = near > positive[:, None]
    out.numbers["second_above_positive"] = Estimate.share_of(row_means(np.where(real, above, np.nan)))
    own = subject.scores[rows, :_NEGATIVES] > subject.positive[rows, None]
    known = real & np.isfinite(subject.positive[rows, None])
    both = row_means(np.where(known, above & own, np.nan))
    if known.any():
        out.numbers["both_expected"] = float(above[known].mean() * own[known].mean())
    out.numbers["both_above_positive"] = Estimate.share_of(both)
    out.numbers["second_agreement"] = Estimate.mean_of(_spearman(near, subject.scores[rows, :_NEGATIVES], real))
    worst = np.argsort(-np.nan_to_num(both), kind="stable")[:LISTED]
    out.ids["both_above_queries"] = names_of(pairs.query_ids, rows[worst[np.nan_to_num(both)[worst] > 0]])
    return out


def _spearman(a: NDArray[np.floating], b: NDArray[np.floating], real: NDArray[np.bool_]) -> NDArray[np.float64]:
    """float64 `[n]`: the rank correlation of each row of `a` and `b`; NaN for fewer than three values, or equal ones.

    >>> _spearman(np.array([[1.0, 2, 3]]), np.array([[5.0, 6, 9]]), np.ones((1, 3), bool)).tolist()
    [1.0]
    """
    from scipy.stats import rankdata  # half a second to import

    out = np.full(len(a), np.nan)
    for i, mask in enumerate(real):
        x, y = (rankdata(each[i][mask]) for each in (a, b))
        if len(x) >= 3 and x.std() > 0 and y.std() > 0:
            out[i] = round(float(np.corrcoef(x, y)[0, 1]), 12)
    return out
