"""Logistic regression around a centre: weights stay where they are unless what was seen moves them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from hardneg.storage.arrays import Float

Double = NDArray[np.float64]

_STEPS = 50

_ENOUGH = 1e-9  # gain of the loss: steps that gain less are the last

_SMALLEST = 1e-4  # part of a Newton step


def fit_around(
    columns: Float | Double,
    target: Double,
    weights: Double,
    centre: Double,
    precision: Double,
    offset: Double | float = 0.0,
) -> Double:
    """The most likely weights of the columns, by Newton's method: the loss is convex.

    Args:
        columns: float32 or float64 `[m, c]`; products of matrices have this type.
        target: float64 `[m]`, 0 to 1: what happened, or the probability of it.
        weights: float64 `[m]`, the weight of each row.
        centre, precision: float64 `[c]`, mean and 1 / variance of the Gaussian prior of each column's weight. The search starts
            at the centre.
        offset: added to the log odds of each row.

    Returns:
        float64 `[c]`.
    """
    kind = columns.dtype

    def logit_of(at: Double) -> Double:
        return np.asarray(columns @ at.astype(kind), np.float64) + offset

    def loss_of(at: Double, logit: Double) -> float:
        return float(weights @ (np.logaddexp(0, logit) - target * logit) + precision @ (at - centre) ** 2 / 2)

    at = centre.copy()
    logit = logit_of(at)
    loss = loss_of(at, logit)
    for _ in range(_STEPS):
        p = expit(logit)
        gradient = (columns.T @ (weights * (p - target)).astype(kind)).astype(np.float64) + precision * (at - centre)
        scaled = columns * np.sqrt(weights * p * (1 - p)).astype(kind)[:, None]
        step = np.linalg.solve((scaled.T @ scaled).astype(np.float64) + np.diag(precision), gradient)
        size, before = 1.0, loss
        while size > _SMALLEST:
            tried = at - size * step
            tried_logit = logit_of(tried)
            tried_loss = loss_of(tried, tried_logit)
            if tried_loss < before:
                at, logit, loss = tried, tried_logit, tried_loss
                break
            size /= 2
        if before - loss < _ENOUGH:
            break
    return at
