"""A posterior moved by judgements."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from hardneg.false_negatives.model import LogisticModel
from hardneg.false_negatives.offset import MOVED, fit_offset

START = LogisticModel(("score", "score>0.5"), (3.0, 2.0), -2.0)


def pairs(
    seed: int, count: int, slope: float = 1.0, shift: float = 0.0, margin: float = 0.0
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Judged pairs whose log odds are those of START, moved."""
    rng = np.random.default_rng(seed)
    values = {name: rng.standard_normal(count).astype(np.float32) for name in MOVED}
    values["score"] = rng.standard_normal(count).astype(np.float32)
    odds = slope * START.logit({"score": values["score"].astype(np.float64)}) + shift - margin * values["margin"]
    return values, rng.random(count) < expit(odds)


def loss(model: LogisticModel, values: dict[str, np.ndarray], relevant: np.ndarray) -> float:
    p = model.probability(values).clip(1e-6, 1 - 1e-6)
    return float(-np.mean(np.where(relevant, np.log(p), np.log(1 - p))))


@pytest.mark.parametrize(("slope", "shift", "margin"), [(1.0, 1.5, 0.0), (0.5, 0.0, 0.0), (1.0, 0.0, 1.5)])
def test_some_hundred_judgements_mend_level_slope_and_weights(slope: float, shift: float, margin: float) -> None:
    values, relevant = pairs(0, 400, slope, shift, margin)
    model, report = fit_offset(START, values, relevant, np.ones(400), np.arange(400) % 90)
    fresh, truth = pairs(1, 20_000, slope, shift, margin)
    odds = slope * START.logit({"score": fresh["score"].astype(np.float64)}) + shift - margin * fresh["margin"]
    best = float(-np.mean(np.where(truth, np.log(expit(odds)), np.log(expit(-odds)))))
    before, after = loss(START, fresh, truth), loss(model, fresh, truth)
    assert report["moved"]
    assert report["log_loss"] < report["log_loss_before"]
    assert after - best < 0.3 * (before - best)


def test_ten_judgements_do_not_hurt() -> None:
    fresh, truth = pairs(1, 20_000)
    harm = []
    for seed in range(30):
        values, relevant = pairs(seed + 2, 10)
        model, _ = fit_offset(START, values, relevant, np.ones(10), np.arange(10))
        harm.append(loss(model, fresh, truth) - loss(START, fresh, truth))
    assert np.mean(harm) < 0.01
    assert max(harm) < 0.05


def test_what_is_right_stays_as_it_is() -> None:
    values, relevant = pairs(5, 600)
    model, report = fit_offset(START, values, relevant, np.ones(600), np.arange(600) % 120)
    assert report["judged"] == 600
    fresh, truth = pairs(6, 20_000)
    assert loss(model, fresh, truth) - loss(START, fresh, truth) < 0.005


def test_weights_count_as_copies() -> None:
    values, relevant = pairs(7, 300, shift=1.0)
    twice = {name: np.concatenate([value, value]) for name, value in values.items()}
    once, _ = fit_offset(START, values, relevant, np.ones(300), np.arange(300) % 60)
    heavy = np.where(np.arange(300) < 150, 2.0, 1.0)
    used = np.concatenate([np.ones(300, bool), np.arange(300) < 150])
    weighted, _ = fit_offset(START, values, relevant, heavy, np.arange(300) % 60)
    copied, _ = fit_offset(
        START, {n: v[used] for n, v in twice.items()}, np.concatenate([relevant, relevant])[used], np.ones(450),
        np.concatenate([np.arange(300) % 60] * 2)[used],
    )  # fmt: skip
    near = np.abs(weighted.probability(values) - copied.probability(values)).mean()
    assert near < 0.5 * np.abs(weighted.probability(values) - once.probability(values)).mean() + 0.01


def test_judgements_of_one_query_change_nothing() -> None:
    values, relevant = pairs(8, 30)
    found, report = fit_offset(START, values, relevant, np.ones(30), np.zeros(30, np.int64))
    assert found == START
    assert report["moved"] is False
