"""A posterior moved by judgements: how far the one that known positives teach is from the truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from hardneg.false_negatives.learn import LEAST, calibration, clipped_weights, left_out, log_losses
from hardneg.false_negatives.logistic import fit_around
from hardneg.false_negatives.model import LogisticModel
from hardneg.storage.arrays import Float, Mask

Double = NDArray[np.float64]

# What may be worth more, or less, than known positives can tell.
MOVED = ("shared_positive", "margin", "score_z", "log_rank")

# Standard deviations of the prior: of the slope around 1, of the shift around 0, of the weights of `MOVED` around 0. So that ten
# judgements move little, and some hundred decide.
_SLOPE, _SHIFT, _WEIGHT = 0.3, 1.0, 0.5

_LARGEST = 12.0  # log odds


def fit_offset(
    start: LogisticModel,
    values: Mapping[str, Float],
    relevant: Mask,
    weights: Double,
    queries: NDArray[np.integer],
    seed: int = 0,
) -> tuple[LogisticModel, dict[str, Any]]:
    """Move a model by judged pairs: logit P = slope * logit(start) + shift + weights of `MOVED`, near 1, 0 and 0.

    It is left as it is if the moved one, cross-validated by query, is no better, or if all pairs are of one query.

    Args:
        start: the model to move.
        values: the features of `start` and `MOVED` of m judged pairs, float32 `[m]` by name.
        relevant: bool `[m]`.
        weights: float64 `[m]`, the number of candidates that each pair represents (1 / inclusion probability).
        queries: int `[m]`, the query of each pair.
        seed: seed of the folds.

    Returns:
        The model, and a report with its cross-validated log loss and calibration.
    """
    clipped = clipped_weights(weights)
    logit = np.asarray(start.logit({n: values[n].astype(np.float64) for n in start.needed}), np.float64)
    odds = np.broadcast_to(logit, relevant.shape).clip(-_LARGEST, _LARGEST)
    table = np.stack([values[name].astype(np.float64) for name in MOVED], 1)
    mean, deviation = table.mean(0), table.std(0)
    deviation = np.where(deviation > 1e-9, deviation, 1.0)
    design = np.concatenate([odds[:, None], np.ones((len(odds), 1)), (table - mean) / deviation], 1)
    predicted = np.empty(len(odds))
    before = expit(odds)
    several = len(np.unique(queries)) > 1
    for train, test in left_out(queries, seed) if several else ():
        predicted[test] = expit(design[test] @ _fitted(design[train], relevant[train], clipped[train]))
    predicted = predicted if several else before
    losses = [log_losses(p.clip(LEAST, 1 - LEAST), relevant, clipped) for p in (before, predicted)]
    moved = losses[1].mean() < losses[0].mean()
    report = {
        "judged": len(relevant),
        "relevant": int(relevant.sum()),
        "log_loss": float(losses[int(moved)].mean()),
        "log_loss_before": float(losses[0].mean()),
        "moved": bool(moved),
        **calibration(predicted if moved else before, relevant, clipped),
    }
    if not moved:
        return start, report
    found = _fitted(design, relevant, clipped)
    plain = found[2:] / deviation
    total = dict(zip(start.features, (found[0] * w for w in start.weights), strict=True))
    for name, weight in zip(MOVED, plain.tolist(), strict=True):
        total[name] = total.get(name, 0.0) + weight
    intercept = found[0] * start.intercept + found[1] - float(plain @ mean)
    return LogisticModel(tuple(total), tuple(map(float, total.values())), float(intercept)), report


def _fitted(design: Double, relevant: Mask, weights: Double) -> Double:
    """The most likely slope, shift and weights."""
    centre = np.zeros(design.shape[1])
    centre[0] = 1.0
    precision = np.array([_SLOPE, _SHIFT, *[_WEIGHT] * (design.shape[1] - 2)]) ** -2.0
    return fit_around(design, relevant.astype(np.float64), weights, centre, precision)
