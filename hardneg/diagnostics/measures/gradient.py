"""The share of the InfoNCE gradient that each negative contributes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardneg.diagnostics.estimates import Estimate, Measurements, sampled
from hardneg.diagnostics.subject import Subject


def gradient(subject: Subject, temperature: float) -> Measurements:
    """Measure what each negative contributes to the gradient of InfoNCE: its softmax weight at a temperature.

    dL/ds_j = w_j / t with w_j = exp(s_j / t) / (exp(s_p / t) + sum exp(s / t)) (Wang and Liu 2021, arXiv 2012.09740).
    `effective_negatives`: exp of the entropy of the w_j of a query's negatives, mean over queries. `positive_weight`: mean softmax
    weight of the positive; at 1 nothing is left to learn. `temperature_low`, `temperature_high`: the temperatures at which the
    effective number is a quarter and four fifths of the negatives. `effective_by_temperature`: the effective number on a ladder of
    temperatures.
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
