"""Guarantees for the share of false negatives: learn then test.

A threshold is certified by rejecting the hypothesis that the share of false negatives among its negatives is above alpha (Learn
then Test, Angelopoulos, Bates, Candes, Jordan and Lei 2021, arXiv 2110.01052). The strictest threshold is tested first, then the
next, until one fails. All thresholds that passed hold together, at the same confidence, without a correction for their number
(fixed sequence testing).

Who judges more after a refusal looks at the data again, and would find, sooner or later, a lucky look. So each look has a level of
its own, and all looks together have the level 1 - confidence (alpha spending, Lan and DeMets 1983): the first gets 70 % of it, the
second 70 % of the rest, and so on. A threshold that passes at any look is certified. The looks are those of the file: `hardneg
judge --judged` notes for each pair the look that it was drawn for.

Assumptions: the judgements are right; the pairs were drawn as `hardneg judge` draws them, so that each pair that could become a
negative had the same chance; and neither the posterior nor the thresholds were chosen with these judgements. Nothing is assumed
about the posterior: a bad one only leaves easier negatives. The guarantee covers the negatives of that run, as selected with
that threshold, sampler and number.

An example: 160 of 1,600 negatives of a threshold were judged, and 2 of them were relevant. Were more than a share of alpha = 0.05
false, so few as 2 would have a probability of 0.0086 or less, which is below 0.035: the threshold passes at the first look with a
confidence of 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.stats import betabinom, hypergeom

FIRST_LOOK = 0.7  # of the level that is left, for each look

_PRIOR = 40.0  # judgements that what the posterior expects is worth, for the advice

_ENOUGH = 0.9  # chance that the advised number of judgements is enough


@dataclass(frozen=True)
class Test:
    """The test of one threshold at one look.

    Attributes:
        threshold: a threshold of the posterior.
        negatives: number of negatives with this threshold.
        judged: how many of these were judged.
        false: how many of the judged ones were relevant.
        p: the highest probability of so few, if the share were above alpha.
        look: which look, from 1.
        passed: whether this and all stricter thresholds passed at this look.
    """

    __test__: ClassVar[bool] = False  # pytest is not to take it for tests

    threshold: float
    negatives: int
    judged: int
    false: int
    p: float
    look: int
    passed: bool


def level_of(look: int, confidence: float) -> float:
    """The level of a look, from 1. The levels of all looks add up to 1 - confidence.

    >>> [round(level_of(look, confidence=0.95), 5) for look in (1, 2, 3)]
    [0.035, 0.0105, 0.00315]
    """
    return (1 - confidence) * FIRST_LOOK * (1 - FIRST_LOOK) ** (look - 1)


def p_value(false: int, judged: int, negatives: int, alpha: float) -> float:
    """The p-value: the highest probability of at most `false` false ones among the judged, if the share were above alpha.

    The judged negatives are a simple random sample without replacement. So with F false ones among the negatives, the number among
    the judged is hypergeometric, and so few are the most likely for the smallest F above alpha.

    Args:
        false: the number of judged negatives that are relevant.
        judged: the number of judged negatives.
        negatives: the number of negatives, judged or not.
        alpha: the allowed share of false negatives.

    >>> round(p_value(false=2, judged=160, negatives=1600, alpha=0.05), 4)
    0.0086
    """
    if judged == 0:
        return 1.0
    return float(hypergeom.cdf(false, negatives, fewest_above(negatives, alpha), judged))


def fewest_above(negatives: int, alpha: float) -> int:
    """The smallest number of false ones whose share is above alpha."""
    # alpha * negatives may be a whole number that rounding puts a little above or below.
    return min(negatives, math.floor(alpha * negatives * (1 + 1e-12)) + 1)


def certify(
    thresholds: Sequence[float],
    negatives: Sequence[int],
    judged: Sequence[int],
    false: Sequence[int],
    alpha: float,
    confidence: float,
    look: int = 1,
) -> list[Test]:
    """Test all thresholds, which must ascend, at one look; see `Test`."""
    tests, passing = [], True
    for threshold, count, seen, found in zip(thresholds, negatives, judged, false, strict=True):
        p = p_value(found, seen, count, alpha)
        passing = passing and p <= level_of(look, confidence)
        tests.append(Test(float(threshold), int(count), int(seen), int(found), p, look, passing))
    return tests


def judgements_needed(
    test: Test, alpha: float, confidence: float, now: int, expected: float | None = None
) -> tuple[int | None, float]:
    """The total number of judgements that certify a threshold at the next look in nine cases of ten.

    What further judgements find is foretold from those there are: beta-binomial. The prior of the share is what the posterior
    expects, worth 40 judgements; Jeffreys' prior without it. A wrong prior makes the advice wrong, never the guarantee.

    Args:
        test: the last test of the strictest threshold.
        alpha: the allowed share of false negatives.
        confidence: the confidence of the guarantee.
        now: the number of judgements so far, of this and other thresholds.
        expected: the share of false negatives that the posterior expects with this threshold.

    Returns:
        (the total number, its chance); or (None, the best chance that any number has).
    """
    if test.judged == 0 or test.judged >= test.negatives:
        return None, 0.0  # nothing is known, or all is
    level, best = level_of(test.look + 1, confidence), 0.0
    share = 0.5 if expected is None else min(max(expected, 1e-3), 1 - 1e-3)
    worth = 1.0 if expected is None else _PRIOR
    prior = (test.false + worth * share, test.judged - test.false + worth * (1 - share))
    for seen in np.unique(np.geomspace(test.judged + 1, max(test.negatives, test.judged + 1), 100).astype(int)):
        critical = _most_passing(int(seen), test.negatives, alpha, level)
        chance = float(betabinom.cdf(critical - test.false, int(seen) - test.judged, *prior))
        best = max(best, chance)
        if chance >= _ENOUGH:
            return max(now + 1, math.ceil(float(seen) * now / test.judged)), chance
    return None, best


def _most_passing(judged: int, negatives: int, alpha: float, level: float) -> int:
    """The largest number of false ones that passes; -1 if none does."""
    most = int(hypergeom.ppf(level, negatives, fewest_above(negatives, alpha), judged))
    while most >= 0 and p_value(most, judged, negatives, alpha) > level:
        most -= 1
    return most
