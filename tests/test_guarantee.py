"""The guarantee's arithmetic, against numbers that are counted one by one."""

from __future__ import annotations

import math

import pytest
from scipy.stats import poisson

from hardneg.false_negatives.guarantee import Test as Tested
from hardneg.false_negatives.guarantee import certify, judgements_needed, p_value


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
    tests = [Tested(0.1, 1000, judged, false, 0.5, False)]
    found, wanted = judgements_needed(tests, alpha, confidence, now), needed(judged, false, alpha, confidence, now)
    if wanted is None:
        assert found is None
    else:
        assert found == pytest.approx(wanted, rel=0.05)  # the estimate looks at 400 numbers only


def test_nothing_is_known_without_a_judgement() -> None:
    assert judgements_needed([Tested(0.1, 1000, 0, 0, 1.0, False)], 0.05, 0.95, 0) is None


def test_the_chance_of_so_few_false_ones() -> None:
    """The Poisson bound holds up to one below the mean; at the mean and above, nothing is shown."""
    given = {"judged_share": 0.1, "negatives": 1000, "alpha": 0.05}  # 5 are expected
    for false in range(5):
        assert p_value(false=false, **given) == pytest.approx(poisson.cdf(false, 5))
    for false in (5, 6, 50):
        assert p_value(false=false, **given) == 1.0


def test_when_all_are_judged_nothing_is_left_to_chance() -> None:
    for false, wanted in ((0, 0.0), (5, 0.0), (6, 1.0)):
        assert p_value(false=false, judged_share=1.0, negatives=100, alpha=0.05) == wanted
    tests = certify([0.1, 0.2, 0.3], [100, 100, 100], [100, 100, 100], [5, 6, 0], 1.0, 0.05, 1.0)
    assert [test.passed for test in tests] == [True, False, False]  # a threshold after one that fails is not tested
