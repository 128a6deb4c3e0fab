"""Recall: the share of the true nearest neighbors that an index finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def shares_found(found: NDArray[np.integer], truth: NDArray[np.integer]) -> NDArray[np.float64]:
    """The share of the true neighbors that was found, for each query.

    Args:
        found: int `[n, j]`, the documents that a search found.
        truth: int `[n, k]`, the true neighbors.

    Returns:
        float64 `[n]`.

    >>> shares_found(np.array([[4, 7, 9]]), truth=np.array([[7, 8]])).tolist()
    [0.5]
    """
    size = int(max(truth.max(initial=0), found.max(initial=0))) + 2
    rows = np.arange(len(truth))[:, None] * np.int64(size)
    shares: NDArray[np.float64] = np.isin(truth + rows, found + rows).mean(1)
    return shares


def others(found: NDArray[np.int32], rows: NDArray[np.integer]) -> NDArray[np.int32]:
    """The neighbors of documents, without the documents themselves.

    A document that was searched for its own neighbors is normally the first of them. If it is missing because copies of
    it came first, its last neighbor is dropped instead.

    Args:
        found: int32 `[n, k]`, the neighbors of n documents.
        rows: int `[n]`, the rows of these n documents.

    Returns:
        int32 `[n, k - 1]`.

    >>> others(np.array([[5, 2, 8], [1, 5, 2]], np.int32), rows=np.array([5, 6])).tolist()
    [[2, 8], [1, 5]]
    """
    dropped = found == rows[:, None]
    dropped[~dropped.any(1), -1] = True
    kept: NDArray[np.int32] = found[~dropped].reshape(len(found), -1)
    return kept


@dataclass(frozen=True)
class Recall:
    """The measured recall of an index.

    Attributes:
        measured: the recall@k, from 0 to 1, on queries that were not used for tuning. An exact index is not measured;
            its recall is 1.
        error: the standard error of `measured`.
        target: the recall that was requested.
        k: the number of neighbors per query.
        queries: the number of queries that `measured` is an average of; 0 for an exact index.

    >>> Recall(measured=0.94, error=0.02, target=0.95, k=10, queries=500).reached
    True
    """

    measured: float
    error: float
    target: float
    k: int
    queries: int

    @property
    def reached(self) -> bool:
        """Whether `measured` plus its standard error is at least the target."""
        return self.measured + self.error >= self.target

    def to_json(self) -> dict[str, Any]:
        """The attributes as a dict, with floats rounded to four digits."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}
