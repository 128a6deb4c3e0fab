"""Whether the search finds the positives, and which pairs look mislabelled because theirs is nowhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hardneg.diagnostics.estimates import LISTED, Estimate, Measurements, names_of, sampled, unit
from hardneg.diagnostics.subject import Subject
from hardneg.storage.arrays import Ragged

_PAIRS = 4096  # pairs of query and positive that are compared with random ones

_RANDOM = 512  # random positives that they are compared with

_FEWEST = 100  # different positives, below which all documents are compared with

_LAMBDA = 0.8  # p-value from which pairs are counted

_LISTED_PAIRS = 50  # pairs that are listed as perhaps mislabelled


def found_positives(subject: Subject, rng: np.random.Generator) -> Measurements:
    """Measure how often the positive is found, and how many pairs are mislabelled.

    The numbers are as follows. The first six are of the queries in `subject.retrieved` (at most 24,576).

    - `searched`: how many queries these are, and `searched_depth`: how many candidates each has.
    - `hit_rate`: the share of queries with a positive among their candidates. `hit_at_10`: among the nearest ten.
    - `mrr`: 1 / rank of the nearest positive, 0 if none is among the candidates; mean over queries.
    - `positives_nowhere`: the share of pairs whose positive is not among the candidates of its query.
    - `mislabelled`: the estimated share of pairs whose positive has nothing to do with the query. The positive of such a pair is
      as near as that of another query: its p-value, the share of 512 random positives that are nearer, is uniform between 0 and 1.
      (With fewer than 100 positives, random documents. Documents that no query is about are no measure: all are alike far from a
      query, and a positive that is a little farther still would count as one of the farthest.) A true positive almost never has one
      above 0.8. So the share is five times that of the pairs above 0.8 (Storey 2002, "A direct approach to false discovery rates",
      with lambda = 0.8). Each document's cosine is taken less its mean with random queries, so that documents far from everything
      do not count as mislabelled. It is an upper limit for an encoder that ranks true positives so low. At most 4,096 pairs; needs
      vectors.
    - `mislabelled_pairs`: the pairs with the largest p-values above 0.8 whose positive is nowhere, as [query id, document id,
      p-value].

    The ids are `lost_queries`: queries of those pairs, or else some without a positive among the candidates.
    """
    out = Measurements()
    nowhere = _ranks(subject, out)
    if subject.vectors is not None:
        _mislabelled(subject, nowhere, rng, out)
    return out


def _ranks(subject: Subject, out: Measurements) -> NDArray[np.int64]:
    """The numbers that need ranks. Returns int64: the place among all positives of each pair that is nowhere, sorted."""
    seen, positives = subject.retrieved, subject.pairs.positives
    if seen is None or len(seen.ranks) == 0:
        return np.empty(0, np.int64)
    mine = positives.take(seen.queries)
    best = nearest(mine, seen.ranks)
    labelled = best >= 0
    of = best[labelled]
    whole = len(subject.pairs) if len(seen.queries) == len(subject.pairs) else None
    total = None if whole is None else len(of)
    out.numbers |= {
        "searched": len(of),
        "searched_depth": seen.depth,
        "hit_rate": Estimate.share_of(of > 0, total),
        "hit_at_10": Estimate.share_of((of > 0) & (of <= 10), total),
        "mrr": Estimate.mean_of(np.where(of > 0, 1 / np.maximum(of, 1), 0.0)),
        "positives_nowhere": Estimate.share_of(seen.ranks == 0, None if whole is None else len(seen.ranks)),
    }
    lost = seen.queries[labelled][of == 0]
    out.ids["lost_queries"] = names_of(subject.pairs.query_ids, lost[:LISTED])
    lost_places: NDArray[np.int64] = positives.places(seen.queries)[seen.ranks == 0]
    return lost_places


def nearest(positives: Ragged, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 `[n]`: the lowest rank among the positives of each query; 0 if none was found, -1 without positives.

    >>> nearest(Ragged(np.array([0, 2, 3, 3]), np.array([5, 6, 7])), np.array([0, 4, 0])).tolist()
    [4, 0, -1]
    """
    far = np.iinfo(np.int64).max
    best = np.full(len(positives), far)
    np.minimum.at(best, positives.row_numbers(), np.where(ranks > 0, ranks, far))
    found: NDArray[np.int64] = np.where(positives.lengths == 0, -1, np.where(best == far, 0, best))
    return found


def _mislabelled(subject: Subject, nowhere: NDArray[np.int64], rng: np.random.Generator, out: Measurements) -> None:
    assert subject.vectors is not None
    pairs = subject.pairs
    queries, documents = pairs.positives.row_numbers(), pairs.positives.values
    total = len(pairs.document_ids)
    if len(documents) == 0 or total < 20:
        return
    # The lost pairs are looked at first, so that as many as possible can be listed; the estimate is from the sample alone.
    sample = sampled(len(documents), _PAIRS, rng)
    more = nowhere[sampled(len(nowhere), _PAIRS, rng)] if len(nowhere) else nowhere
    looked = np.union1d(sample, more)
    # Of all random draws, the queries' come first: how near a document is to queries at large.
    mean = unit(subject.vectors[0], sampled(len(pairs), _RANDOM, rng)).mean(0)
    about = np.unique(documents)  # what queries are about
    about = about if len(about) >= _FEWEST else np.arange(total)
    random = unit(subject.vectors[1], about[sampled(len(about), _RANDOM, rng)])
    q, own = unit(subject.vectors[0], queries[looked]), unit(subject.vectors[1], documents[looked])
    scores = (q * own).sum(1) - own @ mean
    against = q @ random.T - random @ mean
    above = (against > scores[:, None] + 1e-6).mean(1)
    p = above + (np.abs(against - scores[:, None]) <= 1e-6).mean(1) / 2
    one, times = Estimate.share_of(p[np.isin(looked, sample)] > _LAMBDA), 1 / (1 - _LAMBDA)
    whole = {name: min(1.0, times * getattr(one, name)) for name in ("value", "low", "high")}
    out.numbers["mislabelled"] = replace(one, **whole)
    suspects = np.flatnonzero((p > _LAMBDA) & (np.isin(looked, nowhere) | (subject.retrieved is None)))
    suspects = suspects[np.argsort(-p[suspects], kind="stable")][:_LISTED_PAIRS]
    places = looked[suspects]
    asked, given = names_of(pairs.query_ids, queries[places]), names_of(pairs.document_ids, documents[places])
    out.numbers["mislabelled_pairs"] = [
        [a, b, round(float(c), 3)] for a, b, c in zip(asked, given, p[suspects], strict=True)
    ]
    if asked:
        out.ids["lost_queries"] = list(dict.fromkeys(asked))[:LISTED]
