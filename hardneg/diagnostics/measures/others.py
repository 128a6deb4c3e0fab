"""Negatives that are positives of other queries, and documents that the search never retrieves."""

from __future__ import annotations

import numpy as np

from hardneg.diagnostics.estimates import LISTED, Estimate, Measurements, names_of, row_means, skewness
from hardneg.diagnostics.measures.nearest import near_others
from hardneg.diagnostics.subject import Subject
from hardneg.storage.arrays import members

_NEAR = 0.95  # cosine above which two queries ask nearly the same

_NEIGHBORS = 10  # nearest queries that are looked at


def others_positives(subject: Subject, rng: np.random.Generator) -> Measurements:
    """Measure how many negatives are positives of other queries, which happens wherever queries share a corpus.

    The numbers are:

    - `others_positives`: the share of a query's negatives that are a positive of another query, by id or by equal text; mean over
      queries. High values are common, and harmless as long as the other query asks something else.
    - `others_expected`: the share of documents that are a positive of any query: what random negatives would have.
    - `near_query_positives`: the share of a query's negatives that are a positive of a query with a cosine above 0.95 to
      it (among its ten nearest queries); these are relevant. On a sample of queries; needs vectors.
    """
    pairs, out = subject.pairs, Measurements()
    keys = pairs.document_keys
    positive = np.zeros(len(pairs.document_ids), bool)
    positive[pairs.positives.values] = True
    texts = np.unique(keys[positive & (keys != 0)])
    positive |= np.isin(keys, texts)
    out.numbers["others_expected"] = float(positive.mean()) if len(positive) else 0.0
    shares = np.where(subject.real, positive[np.maximum(subject.documents, 0)], np.nan)
    out.numbers["others_positives"] = Estimate.share_of(row_means(shares))
    if subject.vectors is not None and len(pairs) > 1:
        out.numbers |= _of_near_queries(subject, rng, out)
    return out


def _of_near_queries(subject: Subject, rng: np.random.Generator, out: Measurements) -> dict[str, Estimate]:
    assert subject.vectors is not None
    pairs = subject.pairs
    rows, near, _ = near_others(subject.vectors[0], "queries", _NEAR, _NEIGHBORS, rng)
    if len(rows) == 0:
        return {}
    hit = np.zeros(subject.documents[rows].shape, bool)
    for column in near.T:
        some = np.flatnonzero(column >= 0)
        if len(some):
            hit[some] |= members(subject.documents[rows[some]], pairs.positives.take(column[some]))
    per_query = row_means(np.where(subject.real[rows], hit, np.nan))
    worst = np.argsort(-np.nan_to_num(per_query), kind="stable")
    worst = worst[np.nan_to_num(per_query)[worst] > 0][:LISTED]
    out.ids["near_query_queries"] = names_of(pairs.query_ids, rows[worst])
    return {"near_query_positives": Estimate.share_of(per_query)}


def never_retrieved(subject: Subject) -> Measurements:
    """Measure which documents no query retrieves (antihubs: Radovanovic et al. 2010, JMLR 11), for the queries in
    `subject.retrieved`.

    The numbers are:

    - `never_retrieved`: the share of documents that are a candidate of none of these queries.
    - `never_expected`: the same if every query drew its candidates at random.
    - `candidate_skew`: the skewness of the number of queries that have a document as a candidate (k-occurrence). It is about 0 for
      random candidates; above 1.4 a space is commonly said to have hubs.
    """
    seen = subject.retrieved
    if seen is None or len(seen.times) == 0:
        return Measurements()
    times = seen.times.astype(np.float64)
    mean = times.mean()
    never = np.flatnonzero(seen.times == 0)
    return Measurements(
        {
            "never_retrieved": len(never) / len(times),
            "never_expected": float((1 - min(1.0, mean / max(1, len(seen.queries)))) ** len(seen.queries)),
            "candidate_skew": skewness(times),
        },
        {"never_retrieved_documents": names_of(subject.pairs.document_ids, never[:LISTED])},
    )
