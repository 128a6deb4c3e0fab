"""Learn a posterior from judged pairs: a logistic model of the features. See `known` for one without judgements."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from hardneg.errors import DataError
from hardneg.false_negatives.features import SHARED_FEATURES, rises
from hardneg.false_negatives.model import LogisticModel
from hardneg.storage.arrays import Float, Mask

Double = NDArray[np.float64]

Values = Mapping[str, Float]

# Feature sets to try on judged pairs, simplest first.
LADDER: tuple[tuple[str, ...], ...] = (
    SHARED_FEATURES,
    (*SHARED_FEATURES, "margin"),
    (*SHARED_FEATURES, "margin", "local_score_query", "local_score_positive"),
)

LEAST = 1e-4  # probability: below, nothing can be said


class _Scaled:
    """Features as columns, each with mean 0 and standard deviation 1."""

    def __init__(self, values: Values, names: Sequence[str]) -> None:
        self.names = tuple(names)
        table = np.stack([values[name].astype(np.float64) for name in names], 1)
        self.mean, deviation = table.mean(0), table.std(0)
        self.deviation = np.where(deviation > 1e-9, deviation, 1.0)
        self.table = (table - self.mean) / self.deviation

    def logistic(self, weights: Double, intercept: float) -> LogisticModel:
        """The same model for unscaled features."""
        plain = weights / self.deviation
        return LogisticModel(self.names, tuple(map(float, plain)), float(intercept - plain @ self.mean))


def fit_judged(
    values: Values,
    relevant: Mask,
    weights: Double,
    queries: NDArray[np.integer],
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[LogisticModel, dict[str, Any]]:
    """Fit a logistic model to judged pairs.

    Args:
        values: features of m pairs, by name.
        relevant: bool `[m]`.
        weights: `[m]`, the number of candidates that each pair represents (1 / inclusion probability).
        queries: `[m]`, the query of each pair. Pairs of one query are left out together in cross-validation.
        names: features to use; None: the rung of `LADDER` with the best cross-validated log loss. A longer rung must beat a shorter
            one by a standard error (Breiman et al. 1984).
        seed: random seed of the folds.

    Returns:
        The model, and a report with its cross-validated log loss and calibration.

    Raises:
        DataError: all judgements are of one class.
    """
    check_classes(relevant)
    clipped = clipped_weights(weights)
    best: tuple[Double, Double, tuple[str, ...]] | None = None
    for rung in LADDER if names is None else [tuple(names)]:
        predicted = _cross_validated(values, relevant, clipped, queries, rung, seed)
        loss = log_losses(predicted, relevant, clipped)
        gain = None if best is None else best[1] - loss
        if best is None or gain is None or gain.mean() > gain.std() / np.sqrt(len(gain)):
            best = predicted, loss, rung
    assert best is not None
    predicted, loss, rung = best
    model = _fit(values, relevant, clipped, rung)
    report = {
        "judged": len(relevant),
        "relevant": int(relevant.sum()),
        "log_loss": float(loss.mean()),
        **calibration(predicted, relevant, clipped),
    }
    return model, report


def clipped_weights(weights: Double) -> Double:
    """The weights with a mean of 1, none above 10: with weights that differ a hundredfold, a few pairs would decide everything."""
    return np.minimum(weights / np.mean(weights), 10.0)


def log_losses(predicted: Double, relevant: Mask, weights: Double) -> Double:
    """The log loss of each pair, weighted."""
    return np.asarray(-np.where(relevant, np.log(predicted), np.log(1 - predicted)) * weights)


def left_out(queries: NDArray[np.integer], seed: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Up to five folds, as positions (to learn from, to predict). Pairs of one query are left out together.

    Raises:
        DataError: all pairs are of one query.
    """
    folds = min(5, len(np.unique(queries)))
    if folds < 2:
        raise DataError("the judged pairs are all of one query: judge pairs of several")
    mixed = np.random.default_rng(seed).permutation(int(queries.max()) + 1)[queries]
    yield from GroupKFold(folds).split(mixed, groups=mixed)


def check_classes(relevant: Mask) -> None:
    """Raise DataError unless there are both relevant and irrelevant pairs."""
    if len(relevant) == 0 or relevant.all() or not relevant.any():
        which = "relevant" if len(relevant) and relevant.all() else "not relevant"
        raise DataError(
            f"all {len(relevant):,} judged pairs are {which}: nothing can be learned from one class. "
            f"Judge more pairs, or calibrate without judgements"
        )


def _cross_validated(
    values: Values, relevant: Mask, weights: Double, queries: NDArray[np.integer], names: Sequence[str], seed: int
) -> Double:
    """P(relevant) of each pair, by a model that was fitted without the pairs of its query."""
    predicted = np.empty(len(relevant))
    for train, test in left_out(queries, seed):
        if relevant[train].all() or not relevant[train].any():
            share = float(np.average(relevant[train], weights=weights[train]))
            predicted[test] = share
            continue
        model = _fit({n: values[n][train] for n in names}, relevant[train], weights[train], names)
        predicted[test] = model.probability({n: values[n][test] for n in names})
    return np.asarray(predicted.clip(LEAST, 1 - LEAST))


def _fit(values: Values, relevant: Mask, weights: Double, names: Sequence[str]) -> LogisticModel:
    """Fit a logistic model whose weights have the required sign. Features whose weight has the other sign are left out."""
    used = list(names)
    while True:
        scaled = _Scaled(values, used)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = LogisticRegression(C=1.0, max_iter=1000).fit(scaled.table, relevant, weights)
        found = fitted.coef_[0]
        wrong = [name for name, weight in zip(used, found, strict=True) if weight < 0 and rises(name)]
        if not wrong or len(used) == 1:
            model = scaled.logistic(np.where(np.isin(used, wrong), 0.0, found), float(fitted.intercept_[0]))
            break
        used = [name for name in used if name not in wrong] or used[:1]
    weight_of = dict(zip(model.features, model.weights, strict=True))
    return LogisticModel(tuple(names), tuple(weight_of.get(name, 0.0) for name in names), model.intercept)


def calibration(predicted: Double, relevant: Mask, weights: Double, bins: int = 10) -> dict[str, Any]:
    """Measure how far predicted probabilities are from the observed shares.

    `ece` is the expected calibration error (Naeini et al. 2015): the mean gap between the predicted and the observed share over
    `bins` groups of equal size. `reliability` holds the groups as [predicted, observed, pairs].
    """
    groups = np.array_split(np.argsort(predicted, kind="stable"), min(bins, len(predicted)))
    rows = [
        [
            float(np.average(predicted[g], weights=weights[g])),
            float(np.average(relevant[g], weights=weights[g])),
            len(g),
        ]
        for g in groups
    ]
    total = [weights[g].sum() for g in groups]
    ece = sum(abs(p - o) * t for (p, o, _), t in zip(rows, total, strict=True)) / sum(total)
    return {"ece": float(ece), "reliability": rows}
