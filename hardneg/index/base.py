"""The protocol that every index implements, and the result of a search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hardneg.progress import Advance

METRICS = ("cosine", "ip", "l2")


class Neighbors(NamedTuple):
    """The nearest documents of each query, nearest first.

    `scores` is float32 `[n, k]`, higher is nearer: cosine, inner product, or the negative squared Euclidean distance for the metric
    `l2`. `documents` is int32 `[n, k]`: rows of the corpus. Equal scores are ordered by row, so that every run gives the same
    answer.
    """

    scores: NDArray[np.float32]
    documents: NDArray[np.int32]


@runtime_checkable
class ScoredVectors(Protocol):
    """Vectors of documents, and the scores of pairs with them: an index without the search."""

    @property
    def documents(self) -> Any:
        """The vectors `[N, d]`, float16 or float32. Slices and arrays of integer rows select from them."""
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

        Args:
            queries: float `[n, d]`.
            documents: int `[n, p]`, rows of the corpus; -1 where there is none.

        Returns:
            float32 `[n, p]`, -inf where there is none. The scores equal those of `search`, bit for bit.
        """
        ...


@runtime_checkable
class Index(ScoredVectors, Protocol):
    """A searchable corpus of vectors, with all that mining, refreshing and diagnosing need.

    `hardneg.index.VectorStore` implements everything but `search`. Your own index is a subclass that adds this one method.
    """

    @property
    def name(self) -> str:
        """The name of the kind of index, as in `run.json` and `--index`."""
        ...

    @property
    def resident(self) -> bool:
        """Whether the index searches in its own memory.

        Other indexes read all documents at each call of `search`; callers pass them many queries at once.
        """
        ...

    def search(self, queries: NDArray[np.floating], k: int, progress: Advance | None = None) -> Neighbors:
        """The `k` nearest documents of each row of `queries` `[n, d]`. `progress` receives numbers of (query, document) pairs."""
        ...


# The name of an index, an index, or a function (or class) that builds one from vectors and a metric.
IndexSpec = str | Index | Callable[[Any, str], Index]
