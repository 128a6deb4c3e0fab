"""A small judge for all pairs, then a large one for those where its answer would change most."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardneg.judges.base import NO_ANSWER

SMALL_ERROR = 0.1  # how often the small judge is taken to err, in both directions


def most_open(
    probability: NDArray[np.floating], relevant: NDArray[np.int8], count: int, error: float = SMALL_ERROR
) -> NDArray[np.int64]:
    """int64 `[count]`: the pairs where another opinion is most likely to change the verdict, most likely first.

    By Bayes' rule, with the posterior's P(relevant) before the small judge, and its answer with an error rate in both directions.
    The verdict is the more likely side, so the chance that the truth is the other one is at most a half.

    Args:
        probability: P(relevant) of each pair before it was judged, float `[m]`.
        relevant: what the small judge says, int8 `[m]`; -1: no answer, which changes nothing.
        count: how many pairs.
        error: the error rate of the small judge.

    >>> most_open(np.array([0.01, 0.1, 0.9]), np.array([0, 1, 1], np.int8), 2).tolist()
    [1, 2]
    """
    before = np.asarray(probability, np.float64).clip(1e-6, 1 - 1e-6)
    likelihood = np.where(relevant == 1, (1 - error) / error, error / (1 - error))
    odds = before / (1 - before) * np.where(relevant == NO_ANSWER, 1.0, likelihood)
    after = odds / (1 + odds)
    return np.argsort(-np.minimum(after, 1 - after), kind="stable")[:count].astype(np.int64)
