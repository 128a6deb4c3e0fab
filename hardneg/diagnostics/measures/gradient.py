"""The share of the InfoNCE gradient that each negative contributes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardneg.diagnostics.estimates import Estimate, Measurements, normalized, sampled
from hardneg.diagnostics.findings.thresholds import Thresholds
from hardneg.diagnostics.subject import Subject
from hardneg.storage.arrays import members

TEACHES = 0.01  # softmax weight from which a negative teaches

_LEAST_EFFECTIVE = 0.25  # of the negatives that count at a temperature that suits them

_LEAST_TEACHING = Thresholds.teaching  # of them that teach there, so that no advice makes another finding

_ALIKE = 0.8  # effective share from which near and far negatives count for about the same

_SPREAD = 0.1  # standard deviation of the cosines of a query's negatives, within a factor of two

_BATCH = 32  # of which all but one are other queries' documents, random ones for a query

_BLOCK = 256  # queries that are scored with the same random documents

_QUERIES = 2048  # that are


def weights(scores: NDArray[np.floating], positive: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """The softmax weight p_ij of each negative j of query i, which is the size of its gradient times the temperature.

    Args:
        scores: `[n, K]`, of the negatives; -inf is padding.
        positive: `[n]`, of the positives.
        temperature: of the loss.

    Returns:
        float64 `[n, K]`, NaN for a query whose positive is not finite: exp(s_ij / t) / (exp(s_ip / t) + sum_k exp(s_ik / t)).

    >>> weights(np.array([[0.0, -np.inf]]), np.array([0.0]), 0.05).tolist()
    [[0.5, 0.0]]
    """
    logits = np.concatenate([positive[:, None], scores], axis=1).astype(np.float64) / temperature
    logits[~np.isfinite(positive)] = np.nan
    logits -= logits.max(1, keepdims=True)
    shares = np.exp(logits)
    found: NDArray[np.float64] = shares[:, 1:] / shares.sum(1, keepdims=True)
    return found


def gradient(subject: Subject, temperature: float) -> Measurements:
    """Measure how much each negative contributes to the gradient of InfoNCE at a temperature t.

    The gradient with respect to the score s_j of a negative is w_j / t. The softmax weight w_j is
    exp(s_j / t) / (exp(s_p / t) + sum_k exp(s_k / t)), where s_p is the score of the positive and k runs over the
    negatives (Wang and Liu 2021, arXiv 2012.09740). Queries without a positive or with one negative are left out.

    The numbers are:

    - `temperature`: the given temperature; `temperature_outside`: how many times it is above `temperature_high`, or below
      `temperature_low` as a negative number; 0 between them.
    - `effective_negatives`: exp of the entropy of the weights of a query's negatives, after these are normalized to sum
      to 1; mean over queries.
    - `effective_share`: the same, divided by the number of the query's negatives.
    - `positive_weight`: the mean softmax weight of the positive. At 1, nothing is left to learn.
    - `teaching`: the share of a query's negatives that still teach, with w_j of at least 0.01; mean over queries. The others together
      move the encoder by less than a hundredth each of what one wholly confused negative would.
    - `effective_by_temperature`: (temperature, effective number) for 40 temperatures from 0.002 to 1. Where vectors are compared by
      inner products or distances, 60 temperatures that follow the spread of the scores.
    - `temperature_low`, `temperature_high`: the lowest and the highest of these temperatures that suit the negatives: the effective
      share is at least 0.25, half of the negatives still teach, and near ones count for more than far ones: among the query's
      negatives and 31 random documents, which stand for the others of a batch of 32, the effective share is still below 0.8. The
      random documents need the vectors of the run. Neither is there if no temperature suits.
    """
    out = Measurements()
    rows = np.flatnonzero(np.isfinite(subject.positive) & (subject.counts > 1))
    if len(rows) == 0:
        return out
    scores = np.where(subject.real[rows], subject.scores[rows], -np.inf)
    positive, count = subject.positive[rows], subject.counts[rows]
    numbers = effective(scores, temperature)
    shares = weights(scores, positive, temperature)
    out.numbers |= {
        "temperature": temperature,
        "effective_negatives": Estimate.mean_of(numbers),
        "effective_share": float((numbers / count).mean()),
        "teaching": Estimate.share_of((shares >= TEACHES).sum(1) / count),
        "positive_weight": float((1 - shares.sum(1)).mean()),
    }
    ladder = _ladder(subject, scores)
    sample = sampled(len(rows), 5000, np.random.default_rng(0))
    scores, count = scores[sample], count[sample]
    by_temperature = [effective(scores, t) for t in ladder]
    out.numbers["effective_by_temperature"] = [
        [float(t), float(n.mean())] for t, n in zip(ladder, by_temperature, strict=True)
    ]
    at = np.array([float((n / count).mean()) for n in by_temperature])
    suit = (at >= _LEAST_EFFECTIVE) & _suiting(subject, rows[sample], scores, positive[sample], count, ladder)
    if not suit.any():
        return out
    low, high = (float(ladder[suit][end]) for end in (0, -1))
    outside = temperature / high if temperature > high else -low / temperature if temperature < low else 0.0
    out.numbers |= {"temperature_low": low, "temperature_high": high, "temperature_outside": float(outside)}
    return out


def _ladder(subject: Subject, scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """The temperatures that are tried. Scores that are no cosines spread by any factor, of which they reach a decade to both sides."""
    if subject.metric == "cosine":
        return np.geomspace(0.002, 1.0, 40)
    spread = float(np.nanmean(np.nanstd(np.where(np.isfinite(scores), scores, np.nan), axis=1)))
    scale = float(4.0 ** np.round(np.log(spread / _SPREAD) / np.log(4.0))) if spread > 0 else 1.0
    return np.geomspace(0.0005 * scale, 8.0 * scale, 60)


def effective(scores: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """float64 `[n]`: the effective number of negatives, of their scores `[n, K]`; -inf is padding."""
    logits = scores.astype(np.float64) / temperature
    logits -= logits.max(1, keepdims=True)
    w = np.exp(logits)
    w /= w.sum(1, keepdims=True)
    number: NDArray[np.float64] = np.exp(-(w * np.log(np.maximum(w, 1e-300))).sum(1))
    return number


def _suiting(
    subject: Subject, rows: NDArray[np.integer], scores: NDArray[np.floating], positive: NDArray[np.floating],
    count: NDArray[np.integer], ladder: NDArray[np.float64],
) -> NDArray[np.bool_]:  # fmt: skip
    """bool, for each temperature: whether half of the negatives teach, and near ones count for more than far ones."""
    some = slice(0, _QUERIES)
    others = _random_scores(subject, rows[some])
    out = np.zeros(len(ladder), bool)
    for i, t in enumerate(ladder):
        teaching = (weights(scores, positive, t) >= TEACHES).sum(1) / count
        alike = effective(np.concatenate([scores[some], others], 1), t) / (count[some] + np.isfinite(others).sum(1))
        out[i] = teaching.mean() >= _LEAST_TEACHING and alike.mean() < _ALIKE
    return out


def _random_scores(subject: Subject, rows: NDArray[np.integer]) -> NDArray[np.float64]:
    """float64 `[n, 31]`: the scores of random documents, -inf for positives; `[n, 0]` without vectors."""
    documents = len(subject.pairs.document_ids)
    if subject.vectors is None:
        return np.empty((len(rows), 0))
    rng = np.random.default_rng(0)
    out = np.empty((len(rows), _BATCH - 1))
    for start in range(0, len(rows), _BLOCK):
        here = rows[start : start + _BLOCK]
        drawn = np.sort(rng.integers(0, documents, _BATCH - 1))
        q, d = (np.asarray(each[at], np.float32) for each, at in zip(subject.vectors, (here, drawn), strict=True))
        q, d = (normalized(each) if subject.metric == "cosine" else each for each in (q, d))
        found = q @ d.T
        if subject.metric == "l2":  # the negative squared distance, as in the scores of the run
            found = 2 * found - (q**2).sum(1, keepdims=True) - (d**2).sum(1)
        positives = members(np.broadcast_to(drawn, (len(here), len(drawn))), subject.pairs.positives.take(here))
        out[start : start + _BLOCK] = np.where(positives, -np.inf, found)
    return out
