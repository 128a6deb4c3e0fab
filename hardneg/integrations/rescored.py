"""Filters for `mine_hard_negatives`: limits of a cross-encoder's scores, and a window of ranks among what is left."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.mining.candidates import Candidates, Context
from hardneg.mining.cross_encoder import cross_encoder_scores
from hardneg.mining.filters.base import Filter, lowest_scores
from hardneg.mining.filters.limits import below_margin
from hardneg.storage.arrays import Mask


@dataclass(frozen=True, kw_only=True)
class Rescored(Filter):
    """Keeps candidates by the scores of a cross-encoder that is at hand.

    Attributes:
        model: the cross-encoder, an object with `predict(pairs, batch_size=..., show_progress_bar=...)`.
        batch_size: pairs that it reads at once.
        absolute_margin, relative_margin: how far below the lowest positive's score a candidate must score.
        max_score, min_score: the highest and the lowest score of a candidate.
    """

    name = "cross-encoder"
    model: Any = field(compare=False, repr=False)
    batch_size: int = 32
    absolute_margin: float | None = None
    relative_margin: float | None = None
    max_score: float | None = None
    min_score: float | None = None

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        context.cache.setdefault("cross-encoder:given", self._predict)
        scores = cross_encoder_scores(context, "given", candidates.queries, np.where(alive, candidates.documents, -1))
        high = math.inf if self.max_score is None else self.max_score
        low = -math.inf if self.min_score is None else self.min_score
        keep: Mask = (scores <= np.float32(high)) & (scores >= np.float32(low))
        if self.absolute_margin is not None or self.relative_margin is not None:
            positives = context.pairs.positives.take(candidates.queries).padded()
            lowest = lowest_scores(cross_encoder_scores(context, "given", candidates.queries, positives))
            keep &= below_margin(scores, lowest[:, None], self.absolute_margin, self.relative_margin)
        return keep

    def _predict(self, pairs: list[tuple[str, str]]) -> Any:
        return self.model.predict(pairs, batch_size=self.batch_size, show_progress_bar=False)


@dataclass(frozen=True, kw_only=True)
class Window(Filter):
    """Keeps the candidates at the places `first` + 1 to `last` among those that no other filter rejected.

    Attributes:
        first: number of the nearest ones that are left out.
        last: the last place.
    """

    name = "window"
    guesses = False
    first: int = 0
    last: int

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        place = np.cumsum(alive, axis=1)
        keep: Mask = (place > self.first) & (place <= self.last)
        return keep

    def more_may_pass(self, candidates: Candidates) -> NDArray[np.bool_]:
        return np.zeros(len(candidates.queries), bool)
