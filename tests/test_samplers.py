"""Samplers: what they draw, how often, and that nothing but the seed and the query's id decides it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardneg.mining.candidates import Candidates
from hardneg.mining.samplers import draw, gumbel, query_keys
from hardneg.mining.specs import parse_sampler

KEYS = [0, 1804080386290714614, 6672259073711928006, 5530769819440781648, 3315331203940148561]
SPECS = ("top", "uniform", "softmax:temperature=0.1", "simans:a=10,b=0.1")


def candidates_of(scores: np.ndarray, positive: np.ndarray | None = None) -> Candidates:
    n, width = scores.shape
    documents = np.tile(np.arange(width, dtype=np.int32), (n, 1))
    lowest = np.full(n, 0.5, np.float32) if positive is None else positive
    return Candidates(np.arange(n), documents, scores.astype(np.float32), lowest, np.zeros((n, 1), np.float32))


@settings(max_examples=100, deadline=None)
@given(data=st.data(), spec=st.sampled_from(SPECS))
def test_draws_are_kept_distinct_and_in_order(data: st.DataObject, spec: str) -> None:
    n, width, count = (data.draw(st.integers(1, high)) for high in (6, 12, 15))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    scores = -np.sort(-rng.uniform(-1, 1, (n, width)), axis=1)
    kept = rng.random((n, width)) < 0.6
    keys = query_keys(pa.array([f"q{i}" for i in range(n)]))
    chosen = draw(parse_sampler(spec), candidates_of(scores), kept, count, 0, keys)
    assert chosen.shape == (n, count)
    for i in range(n):
        real = chosen[i][chosen[i] >= 0]
        assert len(real) == min(count, kept[i].sum())
        assert (chosen[i][: len(real)] >= 0).all()
        assert (np.diff(real) > 0).all()
        assert kept[i][real].all()
        if spec == "top":
            assert real.tolist() == np.flatnonzero(kept[i])[:count].tolist()


@pytest.mark.parametrize("spec", SPECS)
def test_subset_and_order_change_nothing(spec: str) -> None:
    rng = np.random.default_rng(0)
    scores = -np.sort(-rng.uniform(-1, 1, (50, 40)), axis=1)
    kept = rng.random((50, 40)) < 0.7
    ids = pa.array([f"query {i} ü" for i in range(50)])
    sampler = parse_sampler(spec)
    whole = draw(sampler, candidates_of(scores), kept, 5, 7, query_keys(ids))
    rows = rng.permutation(50)[:20]
    part = draw(sampler, candidates_of(scores[rows]), kept[rows], 5, 7, query_keys(ids.take(pa.array(rows))))
    assert part.tolist() == whole[rows].tolist()
    if spec != "top":
        other = draw(sampler, candidates_of(scores), kept, 5, 8, query_keys(ids))
        assert other.tolist() != whole.tolist()


@pytest.mark.parametrize("spec", SPECS[1:])
def test_frequencies_follow_the_weights(spec: str) -> None:
    """One draw each for 40,000 queries with the same scores: shares against the stated weights."""
    n = 40_000
    row = np.array([0.9, 0.7, 0.65, 0.5, 0.2])
    weights = {
        "uniform": np.ones(5),
        "softmax:temperature=0.1": np.exp(row / 0.1),
        "simans:a=10,b=0.1": np.exp(-10 * (row - 0.5 - 0.1) ** 2),
    }[spec]
    keys = query_keys(pa.array([str(i) for i in range(n)]))
    chosen = draw(parse_sampler(spec), candidates_of(np.tile(row, (n, 1))), np.ones((n, 5), bool), 1, 3, keys)
    shares = np.bincount(chosen[:, 0], minlength=5) / n
    expected = weights / weights.sum()
    assert (np.abs(shares - expected) < 5 * np.sqrt(expected * (1 - expected) / n) + 1e-4).all()


def test_simans_without_a_positive_is_uniform() -> None:
    n = 20_000
    row = np.linspace(0.9, 0.1, 4)
    candidates = candidates_of(np.tile(row, (n, 1)), np.full(n, np.nan, np.float32))
    keys = query_keys(pa.array([str(i) for i in range(n)]))
    chosen = draw(parse_sampler("simans"), candidates, np.ones((n, 4), bool), 1, 0, keys)
    assert (np.abs(np.bincount(chosen[:, 0], minlength=4) / n - 0.25) < 0.02).all()


def test_noise_is_gumbel() -> None:
    noise = gumbel(1, query_keys(pa.array([str(i) for i in range(2000)])), 50)
    assert abs(noise.mean() - np.euler_gamma) < 0.02
    assert abs(noise.var() - np.pi**2 / 6) < 0.05
    assert abs(np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]) < 0.08
    assert abs(np.corrcoef(noise[:-1, 0], noise[1:, 0])[0, 1]) < 0.08


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=30, unique=True))
def test_keys_are_distinct_and_depend_on_the_id_alone(ids: list[str]) -> None:
    ids = [i.encode("utf-8", "replace").decode() for i in ids]
    column = pa.array(ids)
    keys = query_keys(column)
    assert len(set(keys.tolist())) == len(set(ids))
    assert query_keys(column.slice(len(ids) // 2)).tolist() == keys[len(ids) // 2 :].tolist()


def test_keys_stay_the_same_in_every_version() -> None:
    """Draws depend on them: with other keys, the same seed would give other negatives."""
    ids = pa.array(["", "a", "b", "query 12", "größe"])
    assert query_keys(ids).tolist() == KEYS
    assert query_keys(pa.array(["x", *ids.to_pylist()])).tolist()[1:] == KEYS
    assert query_keys(ids.slice(2)).tolist() == KEYS[2:]
