"""Guarantees for the share of false negatives: learn then test.

A threshold is certified by rejecting the hypothesis that the share of false negatives among its negatives is above alpha (Learn
then Test, Angelopoulos, Bates, Candes, Jordan and Lei 2021, arXiv 2110.01052). The strictest threshold is tested first, then the
next, until one fails. All thresholds that passed hold together, at the same confidence, without a correction for their number
(fixed sequence testing).

Assumptions: the judgements are right; the pairs were drawn as `hardneg judge` draws them, so that each pair that could become a
negative had the same chance; and neither the posterior nor the thresholds were chosen with these judgements. Nothing is assumed
about the posterior: a bad one only leaves easier negatives. The guarantee covers the negatives of that run, as selected with
that threshold, sampler and number.

An example: 160 of the negatives of a threshold were judged, and 2 of them were relevant. Were a share of alpha = 0.05 false, 8
would be expected. So few as 2 have a Poisson probability of about 0.014, which is below 0.05: the threshold passes at a
confidence of 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import poisson


@dataclass(frozen=True)
class Test:
    """The test of one threshold.

    Attributes:
        threshold: a threshold of the posterior.
        negatives: number of negatives with this threshold.
        judged: how many of these were judged.
        false: how many of the judged ones were relevant.
        p: the highest probability of so few, if the share were above alpha.
        passed: whether this and all stricter thresholds passed.
    """

    threshold: float
    negatives: int
    judged: int
    false: int
    p: float
    passed: bool


def p_value(false: int, judged_share: float, negatives: int, alpha: float) -> float:
    """The p-value: a bound of the probability to find at most `false` false negatives if their share were above alpha.

    The negatives to judge are drawn without replacement. The number of false ones among them has a lighter lower tail
    than a Poisson number with the same mean (Hoeffding 1956; Anderson and Samuels 1967: up to its mean less 1, the
    lower tail of a Poisson-binomial number is below the Poisson tail). So the p-value is the Poisson tail if `false`
    is at most the mean less 1, and otherwise 1. If all negatives were judged, their share is known, and the p-value is
    0 or 1.

    Args:
        false: the number of judged negatives that are relevant.
        judged_share: the chance of each negative to be judged.
        negatives: the number of negatives, judged or not.
        alpha: the allowed share of false negatives.

    >>> round(p_value(false=2, judged_share=0.1, negatives=1600, alpha=0.05), 3)
    0.014
    """
    mean = alpha * negatives * judged_share
    if judged_share >= 1:
        return 0.0 if false <= alpha * negatives else 1.0
    return float(poisson.cdf(false, mean)) if false <= mean - 1 else 1.0


def certify(
    thresholds: Sequence[float],
    negatives: Sequence[int],
    judged: Sequence[int],
    false: Sequence[int],
    judged_share: float,
    alpha: float,
    confidence: float,
) -> list[Test]:
    """Test all thresholds, which must ascend; see `Test`."""
    tests, passing = [], True
    for threshold, count, seen, found in zip(thresholds, negatives, judged, false, strict=True):
        p = p_value(found, judged_share, count, alpha)
        passing = passing and p <= 1 - confidence
        tests.append(Test(float(threshold), int(count), int(seen), int(found), p, passing))
    return tests


def judgements_needed(tests: Sequence[Test], alpha: float, confidence: float, now: int) -> int | None:
    """Estimate the total number of judgements that would certify a threshold.

    The estimate assumes that further judgements are drawn in the same way, and that the share of false negatives stays
    as it is at the strictest threshold (with half a false one added). With this number, about one test in two passes.

    Args:
        tests: the results of `certify`.
        alpha: the allowed share of false negatives.
        confidence: the confidence of the guarantee.
        now: the number of judgements so far.

    Returns:
        The total number, or None if no number would probably be enough.
    """
    strictest = tests[0]
    if strictest.judged == 0:
        return None
    rate = (strictest.false + 0.5) / (strictest.judged + 1)
    if rate >= alpha * 0.95:
        return None
    covered = strictest.judged / max(now, 1)
    for seen in np.unique(np.geomspace(10, 1e6, 400).astype(int)):
        likely = poisson.ppf(0.5, rate * seen)
        if likely <= alpha * seen - 1 and poisson.cdf(likely, alpha * seen) <= 1 - confidence:
            return max(now + 1, math.ceil(float(seen) / covered))
    return None
