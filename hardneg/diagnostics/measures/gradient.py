"""The share of the InfoNCE gradient that each negative contributes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardneg.diagnostics.estimates import Estimate, Measurements, sampled
from hardneg.diagnostics.subject import Subject

TEACHES = 0.01  # softmax weight from which a negative teaches


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
    - `effective_by_temperature`: (temperature, effective number) for 40 temperatures from 0.002 to 1.
    - `temperature_low`, `temperature_high`: the lowest of these temperatures at which the effective share is at least
      0.25, and at least 0.8.
    """
    out = Measurements()
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

    numbers = effective(temperature)
    shares = weights(scores, positive, temperature)
    out.numbers |= {
        "temperature": temperature,
        "effective_negatives": Estimate.mean_of(numbers),
        "effective_share": float((numbers / count).mean()),
        "teaching": Estimate.share_of((shares >= TEACHES).sum(1) / count),
        "positive_weight": float((1 - shares.sum(1)).mean()),
    }
    ladder = np.geomspace(0.002, 1.0, 40)
    sample = sampled(len(rows), 5000, np.random.default_rng(0))
    scores, count = scores[sample], count[sample]
    by_temperature = [effective(t) for t in ladder]
    at = np.array([float((n / count).mean()) for n in by_temperature])
    out.numbers["effective_by_temperature"] = [
        [float(t), float(n.mean())] for t, n in zip(ladder, by_temperature, strict=True)
    ]
    for name, target in (("temperature_low", 0.25), ("temperature_high", 0.8)):
        step = int(np.searchsorted(at, target))
        out.numbers[name] = float(ladder[min(step, len(ladder) - 1)])
    low, high = out.numbers["temperature_low"], out.numbers["temperature_high"]
    outside = temperature / high if temperature > high else -low / temperature if temperature < low else 0.0
    out.numbers["temperature_outside"] = float(outside)
    return out
