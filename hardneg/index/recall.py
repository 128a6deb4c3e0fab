"""Recall: the share of the true neighbors that an index finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def shares_found(found: NDArray[np.integer], truth: NDArray[np.integer]) -> NDArray[np.float64]:
    """float64 `[n]`: the share of the true neighbors `truth` `[n, k]` among the found ones `found` `[n, j]`."""
    size = int(max(truth.max(initial=0), found.max(initial=0))) + 2
    rows = np.arange(len(truth))[:, None] * np.int64(size)
    shares: NDArray[np.float64] = np.isin(truth + rows, found + rows).mean(1)
    return shares


def others(found: NDArray[np.int32], rows: NDArray[np.integer]) -> NDArray[np.int32]:
    """`[n, k - 1]`: the neighbors `[n, k]` of documents without the documents themselves, which have these rows.

    If a document is missing among its own neighbors, because copies came first, the last neighbor is dropped instead.
    """
    own = found == rows[:, None]
    own[~own.any(1), -1] = True
    rest: NDArray[np.int32] = found[~own].reshape(len(found), -1)
    return rest


@dataclass(frozen=True)
class Recall:
    """The measured recall of an index.

    Attributes:
        measured: recall@k on queries that were not used for tuning; 1 for an exact index, which is not measured.
        error: standard error of `measured`.
        target: the requested recall.
        k: number of neighbors per query.
        queries: number of queries in the measurement.
    """

    measured: float
    error: float
    target: float
    k: int
    queries: int

    @property
    def reached(self) -> bool:
        """Whether the target is reached, within the error of the measurement."""
        return self.measured + self.error >= self.target

    def to_json(self) -> dict[str, Any]:
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}
