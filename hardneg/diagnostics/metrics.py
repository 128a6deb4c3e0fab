"""What is measured of negatives: each function one property, as arrays, with its source.

Where the full cost would be quadratic, a random sample is taken and an interval of 95 % given.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hardneg.diagnostics.subject import Subject
from hardneg.index.exact import ExactIndex
from hardneg.mining.candidates import Float
from hardneg.training.monitor import effective_rank

Ids = list[str]
_LISTED = 10  # ids named with a finding


@dataclass(frozen=True)
class Estimate:
    """A number that was estimated from a sample.

    Attributes:
        value: the estimate; low, high: ends of an interval of 95 % (normal approximation).
        sample: what it rests on.
    """

    value: float
    low: float
    high: float
    sample: int

    @classmethod
    def mean_of(cls, values: NDArray[Any]) -> Estimate:
        """Of the mean of independent values; all NaN without any."""
        found = np.asarray(values, np.float64)
        found = found[np.isfinite(found)]
        if len(found) == 0:
            return cls(np.nan, np.nan, np.nan, 0)
        mean, half = float(found.mean()), 1.96 * float(found.std()) / float(np.sqrt(len(found)))
        return cls(mean, mean - half, mean + half, len(found))

    @classmethod
    def share_of(cls, values: NDArray[Any]) -> Estimate:
        """The same of values between 0 and 1, with an interval that is within them."""
        found = cls.mean_of(values)
        return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0)) if found.sample else found


@dataclass
class Measured:
    """Numbers by name, and ids to look at by name."""

    numbers: dict[str, Any] = field(default_factory=dict)
    ids: dict[str, Ids] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        numbers = {n: asdict(v) if isinstance(v, Estimate) else v for n, v in self.numbers.items()}
        return {"numbers": _finite(numbers), "ids": self.ids}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def sampled(total: int, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """At most so many of `total` rows, sorted."""
    return np.arange(total) if total <= most else np.sort(rng.choice(total, most, replace=False))


def unit(vectors: Any, rows: NDArray[np.integer]) -> Float:
    """float32 `[m, d]`: these rows, of length 1."""
    chosen = np.asarray(vectors[np.asarray(rows)], np.float32)
    of_length_one: Float = chosen / np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-12)
    return of_length_one


def hardness(subject: Subject, rng: np.random.Generator) -> Measured:
    """How near the negatives are, compared with the positives and with random documents.

    `margin`: mean of the lowest positive's score less a negative's; `above_positive`: share of negatives that score higher than
    it; `relative`: (negatives - random) / (positives - random) of mean cosines, 0 for random negatives, 1 for those as near as
    positives; `score_by_place`, `margin_by_place`: in the order of the run, the hardest first; `overlap`: probability that a
    random negative scores higher than a random positive (Mann and Whitney 1947).
    """
    out = Measured()
    gap = subject.positive[:, None] - subject.scores
    judged = np.isfinite(gap)
    per_query = _row_means(gap)
    out.numbers["margin"] = Estimate.mean_of(per_query)
    out.numbers["above_positive"] = Estimate.share_of(_row_means(np.where(judged, gap < 0, np.nan)))
    with np.errstate(invalid="ignore"):
        out.numbers["score_by_place"] = [float(x) for x in _column_means(subject.scores)]
        out.numbers["margin_by_place"] = [float(x) for x in _column_means(gap)]
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
    order = hardest[np.argsort(per_query[hardest], kind="stable")][:_LISTED]
    out.ids["smallest_margin_queries"] = _names(subject.pairs.query_ids, order)
    return out


def false_negatives(subject: Subject) -> Measured:
    """The share of negatives that are relevant. `false_source` says on what it rests.

    `posterior`: mean of `negative_false_probability`. `groups`: share in the query's group, where the dataset has groups and
    they were not filtered by. `hidden positives`: mean of the posterior that those teach (see `with_hidden_positives`). Else
    `range`: from none to those that score above the positive.
    """
    out = Measured()
    real = subject.real
    if subject.probability is not None:
        shares, source = np.where(real, subject.probability, np.nan), subject.told_by
    elif subject.pairs.query_groups is not None and subject.pairs.document_groups is not None:
        mine, theirs = subject.pairs.query_groups[:, None], subject.pairs.document_groups[subject.documents]
        shares, source = np.where(real & (mine >= 0), (mine == theirs) & (mine >= 0), np.nan), "groups"
    else:
        above = np.where(
            real & np.isfinite(subject.positive)[:, None], subject.scores > subject.positive[:, None], np.nan
        )
        out.numbers |= {"false_source": "range", "false_low": 0.0, "false_high": float(_mean(above))}
        return out
    per_query = _row_means(shares)
    out.numbers |= {"false_source": source, "false_share": Estimate.share_of(per_query)}
    worst = np.flatnonzero(np.nan_to_num(per_query) > 0)
    worst = worst[np.argsort(-per_query[worst], kind="stable")][:_LISTED]
    out.ids["most_false_queries"] = _names(subject.pairs.query_ids, worst)
    return out


def gradient(subject: Subject, temperature: float) -> Measured:
    """What each negative contributes to the gradient of InfoNCE: softmax weights of its negatives at a temperature.

    dL/ds_j = w_j / t with w_j = exp(s_j / t) / (exp(s_p / t) + sum exp(s / t)) (Wang and Liu 2021, arXiv 2012.09740).
    `effective_negatives`: exp of the entropy of the w_j among a query's negatives, mean over queries. `positive_weight`: mean
    of the positive's own softmax weight, 1 = nothing left to learn. `temperature_low`, `temperature_high`: where the effective
    number is a quarter and four fifths of the negatives; `effective_by_temperature`: the number along a ladder of them.
    """
    out = Measured()
    rows = np.flatnonzero(np.isfinite(subject.positive) & (subject.counts > 1))
    if len(rows) == 0:
        return out
    scores = np.where(subject.real[rows], subject.scores[rows], -np.inf)
    positive, count = subject.positive[rows], subject.counts[rows]

    def effective(t: float) -> NDArray[np.float64]:
        logits = scores.astype(np.float64) / t
        logits -= logits.max(1, keepdims=True)
        w = np.exp(logits)
        w /= w.sum(1, keepdims=True)
        number: NDArray[np.float64] = np.exp(-(w * np.log(np.maximum(w, 1e-300))).sum(1))
        return number

    at = effective(temperature)
    hardest = scores.max(1)
    high = np.maximum(hardest, positive)
    total = np.exp((scores - high[:, None]) / temperature).sum(1) + np.exp((positive - high) / temperature)
    out.numbers |= {
        "temperature": temperature,
        "effective_negatives": Estimate.mean_of(at),
        "effective_share": float((at / count).mean()),
        "positive_weight": float((np.exp((positive - high) / temperature) / total).mean()),
    }
    ladder = np.geomspace(0.002, 1.0, 40)
    some = sampled(len(rows), 5000, np.random.default_rng(0))
    scores, count = scores[some], count[some]
    along = [effective(t) for t in ladder]
    shares = np.array([float((numbers / count).mean()) for numbers in along])
    out.numbers["effective_by_temperature"] = [[float(t), float(n.mean())] for t, n in zip(ladder, along, strict=True)]
    for name, target in (("temperature_low", 0.25), ("temperature_high", 0.8)):
        place = int(np.searchsorted(shares, target))
        out.numbers[name] = float(ladder[min(place, len(ladder) - 1)])
    return out


def diversity(subject: Subject, rng: np.random.Generator) -> Measured:
    """Whether the negatives are many different ones.

    `distinct`: distinct documents of all negatives, as a share; `coverage`: share of the corpus that is a negative;
    `near_duplicates`: share of a query's negatives that have a cosine above 0.95 with an earlier one of them;
    `corpus_near_duplicates`: share of documents whose nearest other one is that near (of a sample against a sample);
    `cluster_coverage`: share of the corpus's clusters (k-means of a sample, 64 of them, fewer where it is small) that hold a
    negative; `cluster_entropy`: entropy of negatives over clusters, over that of the documents: 1 = spread as the corpus is.
    """
    out = Measured()
    used = np.unique(subject.documents[subject.real])
    total = int(subject.real.sum())
    out.numbers["distinct"] = len(used) / max(1, total)
    out.numbers["coverage"] = len(used) / max(1, len(subject.pairs.document_ids))
    if subject.vectors is None:
        return out
    rows = sampled(len(subject.pairs), 2000, rng)
    documents = subject.documents[rows]
    flat = unit(subject.vectors[1], np.maximum(documents, 0).ravel()).reshape(*documents.shape, -1)
    near = np.einsum("bid,bjd->bij", flat, flat) > 0.95
    near &= np.tri(near.shape[1], k=-1, dtype=bool) & (documents >= 0)[:, None, :]
    repeated = np.where(documents >= 0, near.any(2), np.nan)
    out.numbers["near_duplicates"] = Estimate.share_of(_row_means(repeated))
    some = sampled(len(subject.pairs.document_ids), 4000, rng)
    everything = sampled(len(subject.pairs.document_ids), 50000, rng)
    vectors = unit(subject.vectors[1], everything)
    found = ExactIndex(vectors).search(unit(subject.vectors[1], some), min(2, len(everything)))
    other = found.scores[np.arange(len(some)), -1] if found.scores.shape[1] > 1 else np.zeros(len(some))
    out.numbers["corpus_near_duplicates"] = Estimate.share_of(other > 0.95)
    repeated_rows = some[other > 0.95][:_LISTED]
    out.ids["near_duplicate_documents"] = _names(subject.pairs.document_ids, repeated_rows)
    out.numbers |= _clusters(subject, vectors, rng)
    return out


def _clusters(subject: Subject, vectors: Float, rng: np.random.Generator) -> dict[str, float]:
    """Where negatives and documents (of a sample, `[m, d]`) lie among clusters of the documents."""
    assert subject.vectors is not None
    import faiss

    count = min(64, len(vectors) // 39)  # fewer points a cluster than that, faiss finds too few
    if count < 2:
        return {}
    few = np.ascontiguousarray(vectors[sampled(len(vectors), 20000, rng)])
    kmeans = faiss.Kmeans(few.shape[1], count, niter=10, seed=0, spherical=True)
    kmeans.train(few)
    negatives = subject.documents[subject.real]
    if len(negatives) == 0:
        return {}
    chosen = rng.choice(negatives, min(len(negatives), 20000), replace=False)
    counts = [
        np.bincount(ExactIndex(kmeans.centroids).search(rows, 1).documents[:, 0], minlength=count).astype(np.float64)
        for rows in (unit(subject.vectors[1], chosen), few)
    ]
    shares = [each / each.sum() for each in counts]
    entropies = [float(-(s[s > 0] * np.log(s[s > 0])).sum()) for s in shares]
    return {
        "cluster_coverage": float((counts[0] > 0).sum() / max(1, (counts[1] > 0).sum())),
        "cluster_entropy": entropies[0] / entropies[1] if entropies[1] > 0 else 1.0,
    }


def hubness(subject: Subject) -> Measured:
    """Documents that are negatives of very many queries (Radovanovic et al. 2010, JMLR 11).

    `hub_skew`: skewness of how often a document is a negative; `hub_share`: share of queries that the most frequent one is a
    negative of.
    """
    times = np.bincount(subject.documents[subject.real], minlength=len(subject.pairs.document_ids)).astype(np.float64)
    spread = times.std()
    order = np.argsort(-times, kind="stable")[:_LISTED]
    skew = float((((times - times.mean()) / spread) ** 3).mean()) if spread > 0 else 0.0
    queries = max(1, int((subject.counts > 0).sum()))
    return Measured(
        {
            "hub_skew": skew,
            "hub_share": float(times.max(initial=0) / queries),
            "hub_expected": float(subject.counts.mean() / max(1, len(times))),
        },
        {"hubs": _names(subject.pairs.document_ids, order[times[order] > 0])},
    )


def geometry(subject: Subject, rng: np.random.Generator) -> Measured:
    """The space itself: `alignment`, mean squared distance of query and positive, and `uniformity`, log of the mean of
    exp(-2 |x - y|^2) over documents (Wang and Isola 2020, arXiv 2005.10242); `effective_rank` of the documents (Roy and
    Vetterli 2007), `dimension`, how many there could be, and `rank_share` of these; `mean_cosine` of two random documents.
    """
    out = Measured()
    if subject.vectors is None:
        return out
    rows = sampled(len(subject.pairs.document_ids), 4096, rng)
    vectors = unit(subject.vectors[1], rows)
    with_positive = np.flatnonzero(subject.pairs.positives.lengths > 0)
    chosen = with_positive[sampled(len(with_positive), 4096, rng)]
    if len(chosen):
        mine = subject.pairs.positives.take(chosen)
        cosine = (unit(subject.vectors[0], chosen) * unit(subject.vectors[1], mine.values[mine.offsets[:-1]])).sum(1)
        out.numbers["alignment"] = Estimate.mean_of(2 - 2 * cosine)
    if len(vectors) > 1:
        cosines = vectors @ vectors.T
        pairs = cosines[np.triu_indices(len(vectors), 1)]
        out.numbers["uniformity"] = float(np.log(np.exp(-2 * (2 - 2 * pairs.astype(np.float64))).mean()))
        out.numbers["mean_cosine"] = float(pairs.mean())
    out.numbers["effective_rank"] = effective_rank(torch.from_numpy(vectors))
    out.numbers["dimension"] = int(vectors.shape[1])
    out.numbers["rank_share"] = out.numbers["effective_rank"] / out.numbers["dimension"]
    return out


def completeness(subject: Subject) -> Measured:
    """`few`: share of queries with fewer negatives than asked, `none`: without any, `no_positive`: without a positive."""
    counts = subject.counts
    total = max(1, len(counts))
    few = np.flatnonzero(counts < subject.asked)
    return Measured(
        {
            "queries": len(counts),
            "documents": len(subject.pairs.document_ids),
            "asked": subject.asked,
            "few": len(few) / total,
            "none": float((counts == 0).mean()) if len(counts) else 0.0,
            "no_positive": float((subject.pairs.positives.lengths == 0).mean()) if len(counts) else 0.0,
        },
        {"queries_with_few": _names(subject.pairs.query_ids, few[np.argsort(counts[few], kind="stable")][:_LISTED])},
    )


def _names(ids: Any, rows: NDArray[np.integer]) -> Ids:
    return [ids[int(row)].as_py() for row in rows]


def _mean(values: NDArray[Any]) -> float:
    found = values[np.isfinite(values)]
    return float(found.mean()) if len(found) else np.nan


def _row_means(values: NDArray[Any]) -> NDArray[np.float64]:
    """Mean of each row's finite values, NaN without any."""
    known = np.isfinite(values)
    count = known.sum(1)
    total = np.where(known, values, 0).astype(np.float64).sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _column_means(values: NDArray[Any]) -> NDArray[np.float64]:
    return _row_means(values.T)
