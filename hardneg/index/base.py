"""What every index answers, whatever it does inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hardneg.progress import Advance

METRICS = ("cosine", "ip", "l2")


class Neighbors(NamedTuple):
    """The nearest documents of each query, nearest first.

    `scores` is float32 `[n, k]`, higher is nearer: cosine, inner product, or minus the squared
    Euclidean distance for the metric `l2`. `documents` is int32 `[n, k]`: row numbers of the corpus.
    Equal scores are ordered by row number, so the answer is one and the same on every run.
    """

    scores: NDArray[np.float32]
    documents: NDArray[np.int32]


@runtime_checkable
class ScoredVectors(Protocol):
    """Vectors of documents, and how pairs with them are scored: an index without its search."""

    @property
    def documents(self) -> Any:
        """The vectors `[N, d]`, float16 or float32, read by slices and by integer rows."""
        ...

    @property
    def metric(self) -> str:
        """`cosine`, `ip` or `l2`."""
        ...

    @property
    def threads(self) -> int:
        """Worker threads."""
        ...

    @property
    def size(self) -> int:
        """Number of documents N."""
        ...

    @property
    def dimension(self) -> int:
        """Number of components d of each vector."""
        ...

    def pair_scores(self, queries: NDArray[np.floating], documents: NDArray[np.integer]) -> NDArray[np.float32]:
        """Scores of given pairs.

        `queries` is `[n, d]`, `documents` is `[n, p]` of corpus rows, -1 where there is none.
        Returns float32 `[n, p]`, -inf where there is none, bit for bit the scores that `search` gives.
        """
        ...


@runtime_checkable
class Index(ScoredVectors, Protocol):
    """A searchable corpus of vectors: everything that mining, refreshing and diagnosing ask of an index.

    `hardneg.index.VectorStore` has all of it but `search`, so an index of your own is a subclass with that one method.
    """

    @property
    def name(self) -> str:
        """How the index is written down."""
        ...

    @property
    def resident(self) -> bool:
        """Whether the index searches in memory of its own.

        One that does not reads all documents at each call of `search`, and is therefore asked for many queries at once.
        """
        ...

    def search(self, queries: NDArray[np.floating], k: int, progress: Advance | None = None) -> Neighbors:
        """The `k` nearest documents of each row of `queries` `[n, d]`; `progress` is told of (query, document) pairs."""
        ...


# An index by name, one that is built, or a function (or class) that builds one from vectors and a metric.
IndexSpec = str | Index | Callable[[Any, str], Index]
