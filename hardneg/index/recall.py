"""How many of the true neighbors an index finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def shares_found(found: NDArray[np.integer], truth: NDArray[np.integer]) -> NDArray[np.float64]:
    """float64 `[n]`: recall, the share of the true neighbors `truth` `[n, k]` among those `found` `[n, j]`."""
    size = int(max(truth.max(initial=0), found.max(initial=0))) + 2
    rows = np.arange(len(truth))[:, None] * np.int64(size)
    shares: NDArray[np.float64] = np.isin(truth + rows, found + rows).mean(1)
    return shares


def others(found: NDArray[np.int32], rows: NDArray[np.integer]) -> NDArray[np.int32]:
    """`[n, k - 1]`: what was found `[n, k]` for documents, without the documents themselves, which stand in these rows.

    Where copies came before the document itself, the last is left out instead.
    """
    own = found == rows[:, None]
    own[~own.any(1), -1] = True
    rest: NDArray[np.int32] = found[~own].reshape(len(found), -1)
    return rest


@dataclass(frozen=True)
class Recall:
    """How many of the true neighbors an index finds.

    Attributes:
        measured: recall@k on queries that were not used to tune; 1 for an exact index, which need not be measured.
        error: standard error of it.
        target: what was asked for.
        k: neighbors a query.
        queries: how many it was measured on.
    """

    measured: float
    error: float
    target: float
    k: int
    queries: int

    @property
    def reached(self) -> bool:
        """Whether the target is reached, but for the error of the measurement."""
        return self.measured + self.error >= self.target

    def to_json(self) -> dict[str, Any]:
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}
