"""What every index answers, whatever it does inside."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

METRICS = ("cosine", "ip", "l2")


class Neighbours(NamedTuple):
    """The nearest documents of each query, nearest first.

    `scores` is float32 `[n, k]`, higher is nearer: cosine, inner product, or minus the squared
    Euclidean distance for the metric `l2`. `documents` is int32 `[n, k]`: row numbers of the corpus.
    Equal scores are ordered by row number, so the answer is one and the same on every run.
    """

    scores: NDArray[np.float32]
    documents: NDArray[np.int32]


@runtime_checkable
class Index(Protocol):
    """A searchable corpus of vectors."""

    @property
    def size(self) -> int:
        """Number of documents N."""
        ...

    @property
    def dimension(self) -> int:
        """Number of components d of each vector."""
        ...

    def search(self, queries: NDArray[np.floating], k: int) -> Neighbours:
        """The `k` nearest documents of each row of `queries` `[n, d]`."""
        ...

    def pair_scores(self, queries: NDArray[np.floating], documents: NDArray[np.integer]) -> NDArray[np.float32]:
        """Scores of given pairs.

        `queries` is `[n, d]`, `documents` is `[n, p]` of corpus rows, -1 where there is none.
        Returns float32 `[n, p]`, -inf where there is none, bit for bit the scores that `search` gives.
        """
        ...


def shares_found(found: NDArray[np.integer], truth: NDArray[np.integer]) -> NDArray[np.float64]:
    """float64 `[n]`: recall, the share of the true neighbours `truth` `[n, k]` among those `found` `[n, j]`."""
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
