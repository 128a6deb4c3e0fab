"""The known positive as one draw: the likelihood, its slopes, and what is learned from it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from hardneg.errors import DataError
from hardneg.false_negatives.draws import Draws, _State, at_level, fit_draws, improved, score_draws
from hardneg.false_negatives.known import ASKED, POSITIVE, SKETCHED, Learnable, fit_known


def some_draws(seed: int = 0, queries: int = 30, width: int = 12, terms: int = 3) -> Draws:
    """Draws of queries with different numbers of candidates, of which some were not found and some stand for several."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, width, queries)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    counts = rng.choice([0.0, 1.0, 8.0], lengths.sum(), p=[0.1, 0.6, 0.3])
    drawn = np.where(rng.random(queries) < 0.3, -1, starts + rng.integers(lengths))
    table = rng.standard_normal((lengths.sum(), terms)).astype(np.float32)
    return Draws(table, counts, starts, drawn, np.array([1, -1, 0][:terms]))


def naive_log_likelihood(draws: Draws, weights: np.ndarray, intercept: float, a: float, b: float) -> float:
    """As written in the module's text, one query after the other."""
    total = 0.0
    ends = [*draws.starts[1:], len(draws.table)]
    for start, end, drawn in zip(draws.starts, ends, draws.drawn, strict=True):
        pi = [
            1 / (1 + np.exp(-(float(row @ weights) + intercept))) for row in draws.table[start:end].astype(np.float64)
        ]
        relevant = sum(count * p for count, p in zip(draws.counts[start:end], pi, strict=True))
        outside = np.exp(a) * (1 + relevant) ** b
        chance = outside if drawn < 0 else pi[drawn - start]
        total += np.log(chance / (relevant + outside))
    return total


def test_the_likelihood_is_the_formula() -> None:
    draws = some_draws()
    weights = np.array([0.4, -0.7, 0.3])
    state = _State(draws, np.array([*weights, -0.6, 0.3, -0.8]), 0.0)
    prior = (0.01 * 0.3**2 + 0.5 * 0.8**2) / 2
    assert -state.loss + prior == pytest.approx(naive_log_likelihood(draws, weights, -0.6, 0.3, -0.8), rel=1e-6)


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    draws, at = some_draws(1), np.array([0.4, -0.7, 0.3, -0.6, 0.3, -0.8])
    gradient = _State(draws, at, 0.7).gradient()
    for i in range(len(at)):
        step = np.zeros(len(at))
        step[i] = 1e-3
        slope = (_State(draws, at + step, 0.7).loss - _State(draws, at - step, 0.7).loss) / 2e-3
        assert gradient[i] == pytest.approx(slope, abs=2e-3)


def test_the_information_is_positive_definite() -> None:
    for seed in range(5):
        state = _State(some_draws(seed), np.array([0.4, -0.7, 0.3, -0.6, 0.3, -0.8]), 0.5)
        assert np.linalg.eigvalsh(state.information()).min() > 0


def test_a_fit_has_no_slope_left_and_the_required_signs() -> None:
    draws = some_draws(2, queries=400)
    fit = fit_draws(draws)
    assert fit.weights[0] >= 0 >= fit.weights[1]
    gradient = _State(draws, fit.parameters, 0.5).gradient()
    free = np.array([fit.weights[0] > 1e-6, fit.weights[1] < -1e-6, True])
    assert np.abs(gradient[:3][free]).max() < 1.0
    assert improved(draws, fit).loss <= fit.loss
    for level in (fit.intercept - 1, fit.intercept + 1):
        other = at_level(draws, fit, level)
        assert other.intercept == pytest.approx(level)
        assert other.loss >= fit.loss - 0.5  # random draws: nearly flat


def test_parts_are_scored_as_the_whole() -> None:
    draws = some_draws(3)
    fit = fit_draws(draws)
    half = np.arange(len(draws.starts)) % 3 > 0
    whole = score_draws(draws, fit)
    np.testing.assert_allclose(score_draws(draws.part(half), fit), whole[half], rtol=1e-6)
    np.testing.assert_allclose(score_draws(draws.part(~half), fit), whole[~half], rtol=1e-6)


def world(
    seed: int, queries: int, depth: int = 60, share: float = 0.25, *, informed: bool = True, known: int = 1
) -> tuple[Learnable, np.ndarray]:
    """Candidates of which `share` are relevant; `known` random relevant ones of each query are known.

    Returns:
        What is learned from, and bool `[m]`, which candidates are relevant.
    """
    rng = np.random.default_rng(seed)
    relevant = rng.random((queries, depth)) < share
    relevant[:, 0] |= ~relevant.any(1)
    away = 1.0 if informed else 0.0
    values = {}
    for name in (*ASKED, POSITIVE):
        values[name] = (away * (0.5 * relevant - 0.3) + 0.15 * rng.standard_normal(relevant.shape)).astype(np.float32)
    for name in ("best_score", "score_mean", "score_spread"):
        values[name] = np.repeat(rng.random((queries, 1)), depth, 1).astype(np.float32)
    values["log_rank"] = np.repeat(np.log(np.arange(1, depth + 1))[None], queries, 0).astype(np.float32)
    is_known = np.zeros_like(relevant)
    for i in range(queries):
        at = np.flatnonzero(relevant[i])
        is_known[i, rng.choice(at, min(known, len(at)), replace=False)] = True
    values[POSITIVE][is_known] = (
        1.0  # the positive stands in the middle of its own neighborhood: not to be learned from
    )
    data = Learnable(
        {name: value.ravel() for name, value in values.items()},
        is_known.ravel(),
        np.repeat(np.arange(queries), depth),
        np.tile(np.arange(depth, dtype=np.int32), queries),
        np.ones(relevant.size),
        np.repeat(is_known.sum(1), depth),
    )
    return data, relevant.ravel()


@pytest.mark.parametrize(
    ("share", "known"),
    [(0.05, 1), (0.25, 3), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((0.25, 1), (0.6, 1)))],
)
def test_known_positives_alone_tell_order_and_level(share: float, known: int) -> None:
    data, relevant = world(0, 500, share=share, known=known)
    model, report = fit_known(data)
    unknown = ~data.known
    p = model.probability(data.values)[unknown]
    truth = relevant[unknown]
    assert "uninformative" not in report
    assert p.mean() == pytest.approx(truth.mean(), rel=0.25)
    assert report["relevant_share"] == pytest.approx(truth.mean(), rel=0.25)
    low, high = report["relevant_share_range"]
    assert low <= report["relevant_share"] <= high
    assert low / 1.3 <= truth.mean() <= high * 1.3
    assert p[truth].mean() > 0.8
    assert p[~truth].mean() < 0.1


def test_hidden_positives_teach_what_the_others_say() -> None:
    data, relevant = world(1, 500)
    rng = np.random.default_rng(0)
    hidden = dict(data.values)
    # The value of a hidden positive is as that of any relevant document: the others are still known.
    fresh = (0.2 + 0.15 * rng.standard_normal(len(relevant))).astype(np.float32)
    hidden[POSITIVE] = np.where(data.known, fresh, hidden[POSITIVE])
    model, _ = fit_known(
        Learnable(hidden, data.known, data.query, data.document, data.counts, data.positives), hidden=True
    )
    weights = [w for name, w in zip(model.features, model.weights, strict=True) if name.startswith(POSITIVE)]
    assert weights
    assert min(weights) >= 0
    p = model.probability(hidden)[~data.known]
    assert p.mean() == pytest.approx(relevant[~data.known].mean(), rel=0.25)


def test_where_nothing_tells_it_says_so_and_suspects_nobody() -> None:
    data, _ = world(2, 500, informed=False)
    model, report = fit_known(data)
    assert "neither scores nor shared neighbors" in report["uninformative"]
    p = model.probability(data.values)
    assert p.min() == p.max() < 0.05


def test_random_candidates_teach_nothing_whatever_the_seed() -> None:
    for seed in range(20, 24):
        data, _ = world(seed, 100, informed=False)
        assert "uninformative" in fit_known(data, seed=seed)[1]


def test_a_sample_of_the_deeper_candidates_says_the_same() -> None:
    data, relevant = world(3, 400, depth=120)
    rng = np.random.default_rng(0)
    deep = np.tile(np.arange(120) >= 60, 400)
    counts = np.where(deep, np.where(rng.random(len(deep)) < 0.25, 4.0, 0.0), 1.0)
    used = (counts > 0) | data.known
    thinned = Learnable(
        {name: value[used] for name, value in data.values.items()},
        data.known[used], data.query[used], data.document[used], counts[used], data.positives[used],
    )  # fmt: skip
    whole, all_report = fit_known(data)
    some, report = fit_known(thinned)
    assert report["relevant_per_query"] == pytest.approx(all_report["relevant_per_query"], rel=0.1)
    unknown = ~data.known
    assert some.probability(data.values)[unknown].mean() == pytest.approx(relevant[unknown].mean(), rel=0.25)
    assert np.abs(some.probability(data.values) - whole.probability(data.values)).mean() < 0.05


def test_the_reliability_table_counts_what_was_foretold() -> None:
    data, _ = world(4, 700)
    _, report = fit_known(data)
    table = np.array(report["reliability"])
    assert table[:, 1].sum() == pytest.approx(table[:, 2].sum(), rel=0.1)
    assert (np.abs(table[:, 1] - table[:, 2]) < 4 * np.sqrt(table[:, 1]) + 2).all()


def test_a_feature_that_hardly_differs_gets_no_weight() -> None:
    """Where every query finds its own text, its best score is 1, but for rounding."""
    data, _ = world(5, 500)
    rounding = np.random.default_rng(0).integers(-1, 2, 500).repeat(60)
    data.values["best_score"][:] = (1 + 1e-7 * rounding).astype(np.float32)
    model, _ = fit_known(data)
    assert "best_score" not in model.features


def test_few_queries_are_told_with_the_highest_level() -> None:
    data, _ = world(6, 80)
    model, report = fit_known(data)
    assert report["relevant_per_query"] == report["relevant_per_query_range"][1]
    assert len(model.features) < 30


def test_the_model_of_the_loss_has_shared_neighbors_only() -> None:
    data, _ = world(7, 500)
    model, _ = fit_known(data, names=SKETCHED, hinged=False)
    assert set(model.features) <= {*SKETCHED, POSITIVE}
    p = model.probability(data.values)
    assert np.corrcoef(p, expit(model.logit(data.values)))[0, 1] > 0.999


def test_equal_seeds_give_equal_models() -> None:
    data, _ = world(8, 300, known=2)
    first, second = fit_known(data, seed=3)[0], fit_known(data, seed=3)[0]
    assert first == second


def test_too_few_known_positives() -> None:
    data, _ = world(9, 19)
    with pytest.raises(DataError, match="only 19 of 19 queries.*too few to learn from"):
        fit_known(data)


def test_one_query_with_many_known_positives_is_too_few() -> None:
    data, _ = world(10, 1, depth=200, share=0.5, known=60)
    with pytest.raises(DataError, match="only 1 of 1 queries.*give more pairs"):
        fit_known(data)


def test_queries_of_which_nothing_is_left() -> None:
    """All candidates are known, and the drawn one was not found."""
    data, _ = world(11, 40, depth=5)
    every = Learnable(
        data.values,
        np.ones_like(data.known),
        data.query,
        data.document,
        data.counts,
        np.full_like(data.positives, 10**6),
    )
    with pytest.raises(DataError, match="only 0 of 40 queries.*raise depth .--depth."):
        fit_known(every)


def test_a_positive_that_says_nothing_gets_no_weight() -> None:
    data, _ = world(12, 200)
    data.values[POSITIVE][:] = 1.0
    model, report = fit_known(data)
    assert report["positive_weight"] == 0.0
    assert np.isfinite(model.weights).all()


def test_the_number_of_threads_changes_no_bit() -> None:
    from threadpoolctl import threadpool_limits

    data, _ = world(13, 300)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(fit_known(data)[0])
    assert found[0] == found[1]


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_what_is_said_lies_within_its_range(share: float) -> None:
    """Also where hardly any is relevant but the known ones."""
    data, _ = world(14, 500, share=share)
    _, report = fit_known(data)
    assert 0 < report["relevant_share"] < 1  # also where the known ones alone are more than the fit finds in all
    others = report["relevant_share"] * report["candidates"] / report["queries"]
    assert report["relevant_per_query"] == pytest.approx(report["known_positives"] / report["queries"] + others)
    low, high = report["level_range"]
    assert low <= 1e-6
    assert high >= -1e-6
    low, high = report["relevant_per_query_range"]
    assert low <= report["relevant_per_query"] <= high
    assert report["relevant_per_query"] >= report["known_positives"] / report["queries"]
