"""Posteriors learned from data whose truth is known; the guarantee against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import hypergeom

from hardneg.errors import DataError
from hardneg.false_negatives.features import SHARED_FEATURES
from hardneg.false_negatives.guarantee import certify, judgements_needed, p_value
from hardneg.false_negatives.learn import LADDER, calibration, fit_judged
from hardneg.false_negatives.model import LogisticModel

NAMES = (*SHARED_FEATURES, "margin", "local_score_query", "local_score_positive")


def pairs(
    seed: int, m: int, weights: dict[str, float], level: float = -3.0
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    values = {name: rng.random(m).astype(np.float32) for name in NAMES}
    odds = level + sum(weight * values[name] for name, weight in weights.items())
    return values, rng.random(m) < expit(odds)


def test_judged_pairs_give_back_the_model_that_made_them() -> None:
    truth = {"shared_query": 3.0, "shared_positive": 2.0, "shared_votes": 1.0}
    values, relevant = pairs(0, 40_000, truth)
    model, report = fit_judged(values, relevant, np.ones(40_000), np.arange(40_000) % 900, SHARED_FEATURES)
    assert dict(zip(model.features, model.weights, strict=True)) == pytest.approx(truth, abs=0.2)
    assert model.intercept == pytest.approx(-3, abs=0.15)
    assert report["ece"] < 0.02
    assert report["judged"] == 40_000
    assert report["relevant"] == relevant.sum()
    assert sum(row[2] for row in report["reliability"]) == 40_000


def test_weights_undo_a_biased_sample() -> None:
    """Relevant pairs drawn ten times as often; their weights say so."""
    values, relevant = pairs(1, 60_000, {"shared_query": 3.0})
    rng = np.random.default_rng(0)
    chance = np.where(relevant, 1.0, 0.1)
    taken = rng.random(60_000) < chance
    some = {name: value[taken] for name, value in values.items()}
    model, _ = fit_judged(some, relevant[taken], 1 / chance[taken], np.arange(taken.sum()) % 800, SHARED_FEATURES)
    assert model.intercept == pytest.approx(-3, abs=0.2)
    unweighted, _ = fit_judged(
        some, relevant[taken], np.ones(taken.sum()), np.arange(taken.sum()) % 800, SHARED_FEATURES
    )
    assert unweighted.intercept > -1.5


def test_longer_models_have_to_earn_it() -> None:
    values, relevant = pairs(2, 20_000, {"shared_query": 3.0})
    model, _ = fit_judged(values, relevant, np.ones(20_000), np.arange(20_000) % 700)
    assert model.features == LADDER[0]
    values, relevant = pairs(3, 20_000, {"shared_query": 1.0, "margin": -6.0})
    model, _ = fit_judged(values, relevant, np.ones(20_000), np.arange(20_000) % 700)
    assert "margin" in model.features


def test_what_must_rise_does_not_fall() -> None:
    values, relevant = pairs(4, 5_000, {"shared_query": -3.0, "shared_positive": 5.0})
    model, _ = fit_judged(values, relevant, np.ones(5_000), np.arange(5_000) % 100, SHARED_FEATURES)
    weights = dict(zip(model.features, model.weights, strict=True))
    assert weights["shared_query"] == 0
    assert weights["shared_positive"] > 3
    values, relevant = pairs(5, 5_000, {"shared_query": -3.0}, level=1.0)
    model, _ = fit_judged(values, relevant, np.ones(5_000), np.arange(5_000) % 100, ("shared_query",))
    assert model.weights == (0.0,)


@pytest.mark.parametrize("relevant", [np.zeros(50, bool), np.ones(50, bool), np.zeros(0, bool)])
def test_one_class_teaches_nothing(relevant: np.ndarray) -> None:
    values, _ = pairs(0, len(relevant), {})
    with pytest.raises(DataError, match="from one class"):
        fit_judged(values, relevant, np.ones(len(relevant)), np.arange(len(relevant)))


def test_one_query_is_not_enough() -> None:
    values, relevant = pairs(0, 50, {"shared_query": 6.0})
    with pytest.raises(DataError, match="all of one query"):
        fit_judged(values, relevant, np.ones(50), np.zeros(50, int))


def test_calibration_error_of_known_probabilities() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(100_000)
    y = rng.random(100_000) < p
    assert calibration(p, y, np.ones(100_000))["ece"] < 0.01
    assert calibration(p**2, y, np.ones(100_000))["ece"] == pytest.approx(np.mean(p - p**2), abs=0.01)


def test_logistic_is_a_logistic_function() -> None:
    model = LogisticModel(("score", "margin"), (2.0, -1.0), 0.5)
    values = {"score": np.array([0.3], np.float32), "margin": np.array([0.1], np.float32)}
    assert model.probability(values)[0] == pytest.approx(1 / (1 + np.exp(-(0.5 + 0.6 - 0.1))), abs=1e-6)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    negatives=st.integers(50, 5000),
    share=st.floats(0.005, 0.9),
    alpha=st.sampled_from([0.01, 0.05, 0.2]),
    level=st.sampled_from([0.05, 0.1]),
)
def test_the_test_errs_as_seldom_as_it_says(negatives: int, share: float, alpha: float, level: float) -> None:
    """Exactly: over all samples of that size, a share just above alpha passes with at most that probability."""
    drawn = max(1, round(share * negatives))
    false = int(np.floor(alpha * negatives)) + 1
    counts = np.arange(0, drawn + 1)
    passes = np.array([p_value(int(n), drawn, negatives, alpha) <= level for n in counts])
    assert hypergeom(negatives, false, drawn).pmf(counts)[passes].sum() <= level + 1e-12


def test_p_values_rise_with_what_was_found() -> None:
    values = [p_value(n, 200, 2000, 0.05) for n in range(12)]
    assert values == sorted(values)
    assert values[0] < 1e-4


def test_thresholds_pass_until_one_fails() -> None:
    tests = certify([0.1, 0.2, 0.3], [2000] * 3, [200] * 3, [1, 9, 2], 0.05, 0.95)
    assert [test.passed for test in tests] == [True, False, False]
    assert tests[2].p < 0.035  # it would have passed alone


def test_how_many_more_judgements() -> None:
    (test,) = certify([0.1], [2000], [40], [0], 0.05, 0.95)
    assert not test.passed
    needed, chance = judgements_needed(test, 0.05, 0.95, 100, expected=0.01)
    assert needed is not None
    assert chance >= 0.9
    assert 150 < needed < 700
    (hopeless,) = certify([0.1], [2000], [40], [8], 0.05, 0.95)
    assert judgements_needed(hopeless, 0.05, 0.95, 100)[0] is None
