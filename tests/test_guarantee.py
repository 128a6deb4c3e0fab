"""The guarantee's arithmetic, against numbers that are counted one by one."""

from __future__ import annotations

import dataclasses
import math
from math import comb

import numpy as np
import pytest

from hardneg.false_negatives.guarantee import Test as Tested
from hardneg.false_negatives.guarantee import certify, judgements_needed, level_of, p_value


def chance_of_at_most(false: int, judged: int, negatives: int, relevant: int) -> float:
    """Counted: the ways to draw so few, of all ways to draw."""
    ways = sum(comb(relevant, k) * comb(negatives - relevant, judged - k) for k in range(false + 1) if judged - k >= 0)
    return ways / comb(negatives, judged)


@pytest.mark.parametrize(
    ("judged", "negatives", "alpha"), [(10, 40, 0.1), (40, 40, 0.1), (25, 60, 0.05), (30, 100, 0.29)]
)
def test_the_chance_of_so_few_false_ones(judged: int, negatives: int, alpha: float) -> None:
    """The share above alpha under which so few are the most likely, found by trying all."""
    for false in range(judged + 1):
        above = [f for f in range(negatives + 1) if f / negatives > alpha]
        expected = max(chance_of_at_most(false, judged, negatives, f) for f in above)
        assert p_value(false, judged, negatives, alpha) == pytest.approx(expected, abs=1e-12)


def test_a_share_of_just_alpha_is_not_above_it() -> None:
    for negatives in range(1, 400):
        for alpha in (0.01, 0.05, 0.1, 0.3):
            false = round(alpha * negatives)
            if abs(false - alpha * negatives) < 1e-9:
                assert p_value(false, negatives, negatives, alpha) == 0.0
                assert p_value(false + 1, negatives, negatives, alpha) == 1.0


def test_when_all_are_judged_nothing_is_left_to_chance() -> None:
    tests = certify([0.1, 0.2, 0.3], [100, 100, 100], [100, 100, 100], [5, 6, 0], 0.05, 0.999)
    assert [test.passed for test in tests] == [True, False, False]  # a threshold after one that fails is not tested


def test_no_false_one_among_the_judged_certifies() -> None:
    assert certify([0.1], [2000], [70], [0], 0.05, 0.95)[0].passed
    assert not certify([0.1], [2000], [40], [0], 0.05, 0.95)[0].passed
    assert not certify([0.1], [0], [0], [0], 0.05, 0.95)[0].passed


def test_the_levels_of_all_looks_add_up() -> None:
    assert sum(level_of(look, 0.95) for look in range(1, 60)) == pytest.approx(0.05)


@pytest.mark.parametrize("looks", [1, 3, 10])
def test_looking_again_breaks_no_promise(looks: int) -> None:
    """The share is just above alpha. At each look more are judged, and the first pass is taken."""
    rng, negatives, alpha, broken = np.random.default_rng(0), 3000, 0.05, 0
    truth = np.arange(negatives) < alpha * negatives + 1
    for _ in range(600):
        drawn = rng.permutation(truth)
        sizes = [200 * (look + 1) for look in range(looks)]
        broken += any(
            certify([0.1], [negatives], [size], [int(drawn[:size].sum())], alpha, 0.95, look + 1)[0].passed
            for look, size in enumerate(sizes)
        )
    assert broken / 600 < 0.05


@pytest.mark.parametrize(
    ("share", "first"),
    [(0.02, 150), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((0.01, 60), (0.025, 225)))],
)
def test_the_advised_number_is_enough_in_nine_of_ten(share: float, first: int) -> None:
    rng, negatives, alpha = np.random.default_rng(1), 20_000, 0.05
    truth = np.arange(negatives) < share * negatives
    enough, advised = 0, 0
    for _ in range(50):
        drawn = rng.permutation(truth)
        test = certify([0.1], [negatives], [first], [int(drawn[:first].sum())], alpha, 0.95)[0]
        if test.passed:
            continue
        more, chance = judgements_needed(test, alpha, 0.95, first)
        if more is None:
            assert chance < 0.9
            continue
        advised += 1
        enough += certify([0.1], [negatives], [more], [int(drawn[:more].sum())], alpha, 0.95, 2)[0].passed
    assert advised >= 5
    assert enough / advised >= 0.8  # given a refusal, the share looked higher than it is: more is advised than needed


def test_what_no_number_can_certify() -> None:
    more, chance = judgements_needed(Tested(0.1, 5000, 200, 20, 1.0, 1, False), 0.05, 0.95, 200)
    assert more is None
    assert chance < 0.01
    assert judgements_needed(Tested(0.1, 1000, 0, 0, 1.0, 1, False), 0.05, 0.95, 0) == (None, 0.0)
    # All are judged: there is nothing more to judge.
    assert judgements_needed(Tested(0.1, 100, 100, 10, 1.0, 1, False), 0.05, 0.95, 100) == (None, 0.0)


def test_the_advice_counts_judgements_of_other_thresholds() -> None:
    test = Tested(0.1, 5000, 100, 1, 0.1, 1, False)
    alone, _ = judgements_needed(test, 0.05, 0.95, 100)
    among, _ = judgements_needed(test, 0.05, 0.95, 300)
    assert alone is not None
    assert among is not None
    assert among == pytest.approx(3 * alone, abs=3)
    assert math.isfinite(among)


def test_pytest_does_not_take_the_class_of_tests_for_one() -> None:
    assert Tested.__test__ is False
    assert "__test__" not in {each.name for each in dataclasses.fields(Tested)}
