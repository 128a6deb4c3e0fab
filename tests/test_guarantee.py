"""The guarantee's arithmetic, against numbers that are counted one by one."""

from __future__ import annotations

import math

import pytest
from scipy.stats import poisson

from hardneg.false_negatives.guarantee import Test, judgements_needed


def needed(judged: int, false: int, alpha: float, confidence: float, now: int) -> int | None:
    """The smallest number of judged negatives at which a likely number of false ones passes the test, counted up from 10."""
    rate = (false + 0.5) / (judged + 1)
    if rate >= alpha * 0.95:
        return None
    for seen in range(10, 200_000):
        likely = poisson.ppf(0.5, rate * seen)
        if likely <= alpha * seen - 1 and poisson.cdf(likely, alpha * seen) <= 1 - confidence:
            return max(now + 1, math.ceil(seen * now / judged))
    return None


@pytest.mark.parametrize(
    ("judged", "false", "alpha", "confidence", "now"),
    [(100, 2, 0.05, 0.95, 300), (100, 0, 0.05, 0.95, 100), (60, 2, 0.1, 0.9, 200),
     (400, 5, 0.03, 0.95, 400), (100, 5, 0.05, 0.95, 300)],
)  # fmt: skip
def test_how_many_judgements_are_needed(judged: int, false: int, alpha: float, confidence: float, now: int) -> None:
    tests = [Test(0.1, 1000, judged, false, 0.5, False)]
    found, wanted = judgements_needed(tests, alpha, confidence, now), needed(judged, false, alpha, confidence, now)
    if wanted is None:
        assert found is None
    else:
        assert found == pytest.approx(wanted, rel=0.05)  # the estimate looks at 400 numbers only


def test_nothing_is_known_without_a_judgement() -> None:
    assert judgements_needed([Test(0.1, 1000, 0, 0, 1.0, False)], 0.05, 0.95, 0) is None
