"""What filters and samplers of users return is checked once, after the call, and refused with the name of the part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from hardneg import Pairs, UsageError
from hardneg.index import ExactIndex
from hardneg.mining import Candidates, Context, Filter, parse_sampler
from hardneg.mining.filters.base import Chain
from hardneg.mining.samplers import SimANS, Softmax, draw, query_keys

N, K = 3, 5


@dataclass(frozen=True, kw_only=True)
class Answers(Filter):
    """Returns what it is given."""

    name = "answers"
    kept: Any = None
    more: Any = None
    probability: Any = None

    def keep(self, candidates: Candidates, context: Context, alive: Any) -> Any:
        return self.kept

    def more_may_pass(self, candidates: Candidates) -> Any:
        return self.more

    def false_probability(self, candidates: Candidates, context: Context, columns: Any = None) -> Any:
        return self.probability


@dataclass(frozen=True)
class Weighs:
    """Returns what it is given."""

    weights: Any

    def log_weights(self, candidates: Candidates) -> Any:
        return self.weights


def candidates_of(scores: np.ndarray, positive: float = 0.5) -> Candidates:
    n, width = scores.shape
    documents = np.tile(np.arange(width, dtype=np.int32), (n, 1))
    lowest = np.full(n, positive, np.float32)
    return Candidates(np.arange(n), documents, scores.astype(np.float32), lowest, np.zeros((n, 1), np.float32))


def context_of() -> Context:
    pairs = Pairs.from_columns([f"q{i}" for i in range(N)], [f"d{i}" for i in range(N)], corpus=["x", "y"])
    return Context(pairs, lambda: ExactIndex(np.eye(5, dtype=np.float32)), pairs.known_positives())


WRONG = [
    None, True, [[True] * K] * N, np.ones((N, K)), np.ones((N, 1), bool), np.ones((1, K), bool), np.ones((K, N), bool),
    torch.ones((N, K), dtype=torch.bool), np.ones((N, K), np.uint8),
]  # fmt: skip


@pytest.mark.parametrize("kept", WRONG, ids=lambda each: f"{type(each).__name__}{getattr(each, 'shape', '')}")
def test_keep(kept: Any) -> None:
    chain = Chain([Answers(kept=kept)])
    with pytest.raises(
        UsageError, match=r"the filter 'answers': its keep must return .* bool of shape \(3, 5\), but it returned"
    ):
        chain.verdicts(candidates_of(np.zeros((N, K))), context_of())


def test_other_answers_of_filters() -> None:
    candidates, context, columns = candidates_of(np.zeros((N, K))), context_of(), np.zeros((N, 2), np.int64)
    for more in (None, True, np.ones(N), np.ones((N, 1), bool)):
        with pytest.raises(UsageError, match="'answers': its more_may_pass must return"):
            Chain([Answers(more=more)]).more_may_pass(candidates)
    for probability in (0.5, np.zeros((N, K), np.float32), np.zeros((N, 2), int), [[0.5, 0.5]] * N):
        with pytest.raises(UsageError, match="'answers': its false_probability must return"):
            Chain([Answers(probability=probability)]).false_probability(candidates, context, columns)
    assert Chain([Answers()]).false_probability(candidates, context, columns) is None


def drawn(sampler: Any, scores: np.ndarray, kept: np.ndarray | None = None, count: int = 3) -> np.ndarray:
    keys = query_keys(pa.array([f"q{i}" for i in range(len(scores))]))
    return draw(sampler, candidates_of(scores), np.ones(scores.shape, bool) if kept is None else kept, count, 0, keys)


@pytest.mark.parametrize(
    "weights", [0.0, [[0.0] * K] * N, np.zeros((N, 1)), np.zeros(K), torch.zeros((N, K)), np.zeros((N, K), bool)],
    ids=lambda each: f"{type(each).__name__}{getattr(each, 'shape', '')}",
)  # fmt: skip
def test_log_weights(weights: Any) -> None:
    with pytest.raises(UsageError, match=r"the sampler 'Weighs': its log_weights must return .*shape \(3, 5\)"):
        drawn(Weighs(weights), np.zeros((N, K)))


def test_integers_are_log_weights_too() -> None:
    chosen = drawn(Weighs(np.tile(1000 * np.arange(K), (N, 1))), np.zeros((N, K)), count=2)
    assert chosen.tolist() == [[3, 4]] * N


def test_nan_weights_are_refused_for_kept_candidates_only() -> None:
    weights, kept = np.zeros((N, K)), np.ones((N, K), bool)
    weights[1, 2] = np.nan
    with pytest.raises(UsageError, match="the sampler 'Weighs' gives 1 candidates the log weight NaN"):
        drawn(Weighs(weights), np.zeros((N, K)))
    kept[1, 2] = False
    assert (drawn(Weighs(weights), np.zeros((N, K)), kept) >= 0).all()


def test_minus_infinity_is_never_drawn_and_hides_nothing() -> None:
    """A candidate that cannot be drawn was once tied with the rejected ones, and took the place of a negative."""
    weights, kept = np.zeros((N, K)), np.ones((N, K), bool)
    weights[:, 0], kept[:, 1] = -np.inf, False
    chosen = drawn(Weighs(weights), np.zeros((N, K)), kept, count=4)
    assert chosen.tolist() == [[2, 3, 4, -1]] * N
    assert drawn(Weighs(np.full((N, K), -np.inf)), np.zeros((N, K))).tolist() == [[-1] * 3] * N


@pytest.mark.parametrize("spec", ["simans:b=-1e200", "simans:b=1e200", "simans:a=1e300,b=1e300", "simans:a=0,b=1e200"])
def test_extreme_settings_lose_no_negatives(spec: str) -> None:
    scores, kept = np.linspace(0.9, 0.1, N * K).reshape(N, K), np.ones((N, K), bool)
    kept[:, 0] = False
    scores[0, -1] = -np.inf
    kept[0, -1] = False
    chosen = drawn(parse_sampler(spec), scores, kept)
    assert (chosen > 0).all()


@pytest.mark.parametrize(
    "make",
    [lambda: Softmax(0.0), lambda: Softmax(float("nan")), lambda: Softmax("0.1"), lambda: SimANS(a=-1.0),
     lambda: SimANS(b=float("inf")), lambda: SimANS(a=True)],
)  # fmt: skip
def test_settings_of_sampler_objects(make: Any) -> None:
    with pytest.raises(UsageError, match="sampler 's"):
        make()
