"""The posterior without judgements as it was up to version 0.1: three shared neighborhoods, and the highest share of known ones.

Kept to compare with. It is biased high where its assumption fails (somewhere nearly all candidates are relevant), and cannot order
candidates where neighborhoods show the topic rather than relevance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import beta
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from hardneg.errors import DataError
from hardneg.false_negatives.features import SHARED_FEATURES
from hardneg.false_negatives.learn import LEAST, Double, Values, _Scaled
from hardneg.false_negatives.model import LogisticModel
from hardneg.storage.arrays import Mask

# Features of the query alone. They recognize known positives without using the positive itself.
TELLING = ("shared_query", "score", "log_rank", "local_score_query")

_BINS = 40  # of a view, each with the same number of candidates

_FEWEST = 20  # known positives above a cut from which the share of known ones is read

_UNSURE = 0.005  # chance that a bound of that share is wrong; small, as the best of many bounds is taken

_GENTLE = 2e-4


def fit_known(values: Values, known: Mask, *, hidden: bool = False) -> tuple[LogisticModel, dict[str, Any]]:
    """Fit a logistic model without any judgement (positive-unlabelled learning).

    The known positives are assumed to be a random sample of all relevant documents (selected completely at random, Elkan and Noto
    2008). Then the share of known positives among candidates, at each value of a feature, is the share of relevant ones times a
    constant. The constant is read where the share of known ones is highest, as if all candidates were relevant there (best bin
    estimation, Garg et al. 2021, arXiv 2111.00980). If they are not all relevant, the posterior is too high: it rejects too much
    rather than too little. To find that place, everything that the query says about a candidate is used (`TELLING`): the purer the
    place, the smaller the error.

    This calibrates `shared_query`, the view of the query. The features that compare a candidate with the positive say nothing about
    the positive itself, so they cannot be calibrated alone. But all three shared-neighbor cosines are measured in the same way, so
    they get the same weight. The model is a logistic function of their sum. Its level and slope are chosen so that its mean agrees
    with the calibrated view at each value of that view (generalized expectation criteria, Mann and McCallum 2010).

    Args:
        values: `SHARED_FEATURES` and `TELLING` of m candidates, by name.
        known: bool `[m]`, True for known positives.
        hidden: whether the known positives were hidden when the features were computed. The sum is then calibrated directly.

    Raises:
        DataError: fewer than 20 known positives are among the candidates.
    """
    if known.sum() < _FEWEST:
        raise DataError(
            f"only {int(known.sum())} known positives are among the candidates, too few to learn from: "
            f"raise --depth, or judge candidates (hardneg judge)"
        )
    total = np.sum([values[name].astype(np.float64) for name in SHARED_FEATURES], axis=0)
    seen = total if hidden else values["shared_query"].astype(np.float64)
    telling = _Scaled(values, TELLING)
    found_by = LogisticRegression(max_iter=1000).fit(telling.table, known)
    rate, bounds = _labelled_rate(np.asarray(found_by.decision_function(telling.table), np.float64), known)
    unknown = ~known
    view = _view(seen[unknown], _unlabelled(seen, known, rate)(seen[unknown]))
    slope, level = _agreeing(total[unknown], view)
    found, rest = int(known.sum()), int(unknown.sum())
    report = {
        "known_positives": found,
        "candidates": rest,
        "relevant_share": float(view.target @ view.count / view.count.sum()),
        # Known and unknown ones together, minus the known ones.
        "relevant_share_range": [max(0.0, (found / bound - found) / rest) for bound in bounds],
        "assumption": "known positives are a random sample of the relevant, and somewhere nearly all candidates are "
        "relevant; if not, the posterior is too high and too much is rejected",
    }
    return LogisticModel(SHARED_FEATURES, (slope,) * len(SHARED_FEATURES), level), report


def _labelled_rate(seen: Double, known: Mask) -> tuple[float, tuple[float, float]]:
    """The share of known positives among relevant candidates, and two bounds of it.

    It is the highest lower bound (Clopper-Pearson) of the share of known positives among candidates that look at least this
    relevant. The two bounds of that share follow, the larger first.
    """
    order = np.argsort(-seen, kind="stable")
    hits = np.cumsum(known[order])
    total = np.arange(1, len(hits) + 1)
    cuts = np.flatnonzero(hits >= _FEWEST)
    cuts = np.unique(cuts[np.geomspace(1, len(cuts), min(len(cuts), 200)).astype(int) - 1])
    low = beta.ppf(_UNSURE, hits[cuts], total[cuts] - hits[cuts] + 1)
    best = cuts[int(np.argmax(low))]
    high = float(beta.ppf(1 - _UNSURE, hits[best] + 1, max(total[best] - hits[best], 1)))
    return float(low.max()), (high, float(low.max()))


def _unlabelled(seen: Double, known: Mask, rate: float) -> Callable[[Double], Double]:
    """P(relevant | not known, the view), as a function that is isotonic in the view."""
    share = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(seen, known.astype(np.float64))

    def probability(at: Double) -> Double:
        labelled = np.minimum(share.predict(at), rate * (1 - 1e-9))
        return np.asarray((labelled / rate * (1 - rate) / (1 - labelled)).clip(LEAST, 1 - LEAST))

    return probability


@dataclass(frozen=True)
class _View:
    """Candidates in bins of one view, with the share of relevant ones that the view expects in each bin."""

    bin: NDArray[np.int64]
    count: Double
    target: Double


def _view(seen: Double, expected: Double) -> _View:
    edges = np.unique(np.quantile(seen, np.linspace(0, 1, _BINS + 1)))
    place = np.searchsorted(edges[1:-1], seen, side="right")
    count = np.bincount(place, minlength=max(1, len(edges) - 1)).astype(np.float64)
    target = np.bincount(place, expected, minlength=len(count)) / np.maximum(count, 1)
    return _View(place, count, target.clip(LEAST, 1 - LEAST))


def _agreeing(total: Double, view: _View) -> tuple[float, float]:
    """(slope, level) of the logistic model of `total` whose mean agrees with the view: least cross-entropy over the bins."""
    m = len(total)

    def loss(x: Double) -> tuple[float, Double]:
        p = expit(x[0] * total + x[1])
        mean = (np.bincount(view.bin, p, minlength=len(view.count)) / np.maximum(view.count, 1)).clip(1e-9, 1 - 1e-9)
        value = -view.count @ (view.target * np.log(mean) + (1 - view.target) * np.log(1 - mean)) / m
        gap = ((1 - view.target) / (1 - mean) - view.target / mean) / m
        pull = gap[view.bin] * p * (1 - p)
        # A weak prior for small slopes: with perfectly separated classes, the slope would grow without limit.
        return float(value) + _GENTLE * x[0] ** 2, np.array([total @ pull + 2 * _GENTLE * x[0], pull.sum()])

    found = minimize(loss, np.array([3.0, -4.0]), jac=True, method="L-BFGS-B", bounds=[(0.0, None), (None, None)]).x
    return float(found[0]), float(found[1])
