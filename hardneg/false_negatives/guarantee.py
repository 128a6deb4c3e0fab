"""How sure one can be of the share of false negatives: learn then test.

A threshold is certified by rejecting the hypothesis that the share of false negatives among its negatives is above alpha
(Learn then Test, Angelopoulos, Bates, Candes, Jordan and Lei 2021, arXiv 2110.01052). Thresholds are tested from the
strictest on, until one fails: so all that passed hold together, at the same confidence, without a correction for their
number (fixed sequence testing).

Assumed: the judgements are right; the pairs were drawn as `hardneg judge` draws them, with every pair that could become
a negative having the same chance; and neither the posterior nor the thresholds were chosen by these judgements. Nothing
is assumed of the posterior: a bad one only leaves easier negatives. The guarantee is for the negatives of that run, as
they are selected with that threshold, sampler and number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import poisson


@dataclass(frozen=True)
class Test:
    """What judgements say of one threshold.

    Attributes:
        threshold: of the posterior.
        negatives: how many there are with it.
        judged: how many of them were judged.
        false: how many of those were relevant.
        p: the largest probability of so few, were the share above alpha.
        passed: whether this and all stricter thresholds passed.
    """

    threshold: float
    negatives: int
    judged: int
    false: int
    p: float
    passed: bool


def p_value(false: int, judged_share: float, negatives: int, alpha: float) -> float:
    """Probability of finding at most `false` false negatives, were their share alpha or more.

    Each of the `negatives` was judged with chance `judged_share`, without replacement. The number of false ones found
    is then at most as spread as a Poisson number of the same mean (Hoeffding 1956; Anderson and Samuels 1967: the lower
    tail of a Poisson-binomial number is below the Poisson tail, up to its mean less 1).
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
    """Tests of all thresholds, which ascend; see `Test`."""
    tests, passing = [], True
    for threshold, count, seen, found in zip(thresholds, negatives, judged, false, strict=True):
        p = p_value(found, judged_share, count, alpha)
        passing = passing and p <= 1 - confidence
        tests.append(Test(float(threshold), int(count), int(seen), int(found), p, passing))
    return tests


def judgements_needed(tests: Sequence[Test], alpha: float, confidence: float, now: int) -> int | None:
    """How many judgements in all would probably do, drawn the same way; None: no number would, as it looks.

    Goes by the strictest threshold, and by the share of false ones found there (half a one added): enough for an even
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
