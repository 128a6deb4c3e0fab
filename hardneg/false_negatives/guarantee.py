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
    """The probability of finding at most `false` false negatives if their share were alpha or more.

    Each of the `negatives` was judged with chance `judged_share`, without replacement. The number of false ones found is then at
    most as spread as a Poisson number of the same mean (Hoeffding 1956; Anderson and Samuels 1967: the lower tail of a
    Poisson-binomial number is below the Poisson tail, up to its mean less 1).
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
    """The total number of judgements, drawn the same way, that would probably certify a threshold; None if no number would.

    It goes by the strictest threshold and the share of false ones found there (with half a one added). The number gives an even
    chance of passing.
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
