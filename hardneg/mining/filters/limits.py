"""Filters that limit rank and score."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardneg.errors import UsageError
from hardneg.mining.candidates import Candidates, Context
from hardneg.mining.filters.base import Filter
from hardneg.mining.spec_options import SpecOptions
from hardneg.storage.arrays import Float, Mask


@dataclass(frozen=True, kw_only=True)
class Rank(Filter):
    """Keeps ranks from `min` to `max`. Rank 1 is the nearest document; known positives count as well."""

    name = "rank"
    min: int = 1
    max: int | None = None

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        ranks = candidates.ranks
        inside = ranks >= self.min if self.max is None else (ranks >= self.min) & (ranks <= self.max)
        return np.broadcast_to(inside, candidates.documents.shape)

    def more_may_pass(self, candidates: Candidates) -> NDArray[np.bool_]:
        more = self.max is None or candidates.documents.shape[1] < self.max
        return np.full(len(candidates.queries), more)


@dataclass(frozen=True, kw_only=True)
class Score(Filter):
    """Keeps scores from `min` to `max`."""

    name = "score"
    min: float = -math.inf
    max: float = math.inf

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        kept: Mask = (candidates.scores >= np.float32(self.min)) & (candidates.scores <= np.float32(self.max))
        return kept

    def more_may_pass(self, candidates: Candidates) -> NDArray[np.bool_]:
        if candidates.listed is not None:  # further down, scores may be higher
            return np.ones(len(candidates.queries), bool)
        more: Mask = candidates.scores[:, -1] >= np.float32(self.min)
        return more


def below_margin(scores: Float, positive: Float, absolute: float | None, relative: float | None) -> Mask:
    """bool like `scores`: True at least a margin below the positive's score (NV-Retriever, arXiv 2407.15831).

    `absolute`: s <= p - absolute. `relative`: s <= p - |p| * relative, which asks for a lower score whatever the sign of p.
    A NaN positive means that there is none, and rejects nothing.

    >>> below_margin(np.array([0.7, 0.79], np.float32), np.array([0.8], np.float32), 0.05, None).tolist()
    [True, False]
    """
    keep: Mask = np.ones(np.broadcast_shapes(scores.shape, positive.shape), bool)
    if absolute is not None:
        keep &= ~(scores > positive - np.float32(absolute))
    if relative is not None:
        keep &= ~(scores > positive - np.abs(positive) * np.float32(relative))
    return keep


@dataclass(frozen=True, kw_only=True)
class Margin(Filter):
    """Keeps candidates that score at least a margin below the query's positive; with several positives, below the lowest.

    Queries without a positive have no margin, and all their candidates stay.

    Attributes:
        absolute: margin in units of the score.
        relative: margin as a share of the positive's score; see `below_margin`.
    """

    name = "margin"
    absolute: float | None = None
    relative: float | None = None

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        return below_margin(candidates.scores, candidates.positive_scores[:, None], self.absolute, self.relative)


@dataclass(frozen=True, kw_only=True)
class Window(Filter):
    """Keeps the candidates at the places `first` + 1 to `last` among those that no filter before it rejected.

    Unlike `rank`, it does not count candidates that other filters reject, nor known positives.

    Attributes:
        first: number of the nearest ones that are left out.
        last: the last place; None: no limit.
    """

    name = "window"
    guesses = False
    first: int = 0
    last: int | None = None

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        place = np.cumsum(alive, axis=1)
        keep: Mask = (place > self.first) & (place <= (np.inf if self.last is None else self.last))
        return keep


def window_from_spec(v: SpecOptions) -> Filter:
    first, last = v.integer("first", 0, 0), v.integer("last", None, 1)
    v.no_other_options()
    assert first is not None
    if last is not None and last <= first:
        raise UsageError(f"filter {v.spec!r}: last must be above first")
    return Window(first=first, last=last)


def rank_from_spec(v: SpecOptions) -> Filter:
    low, high = v.integer("min", 1, 1), v.integer("max", None, 1)
    assert low is not None
    if high is not None and high < low:
        raise UsageError(f"filter {v.spec!r}: max is below min")
    return Rank(min=low, max=high)


def score_from_spec(v: SpecOptions) -> Filter:
    low, high = v.number("min"), v.number("max")
    v.no_other_options()
    if low is None and high is None:
        raise UsageError(f"filter {v.spec!r}: give min=, max= or both")
    if low is not None and high is not None and high < low:
        raise UsageError(f"filter {v.spec!r}: max is below min")
    return Score(min=-math.inf if low is None else low, max=math.inf if high is None else high)


def margin_from_spec(v: SpecOptions) -> Filter:
    absolute, relative = v.number("absolute", low=0), v.number("relative", low=0)
    v.no_other_options()
    if absolute is None and relative is None:
        raise UsageError(f"filter {v.spec!r}: give absolute=, relative= or both, as in margin:relative=0.05")
    return Margin(absolute=absolute, relative=relative)
