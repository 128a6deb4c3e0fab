"""The protocol that every index implements, and the result of a search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hardneg.progress import Advance

METRICS = ("cosine", "ip", "l2")


class Neighbors(NamedTuple):
    """The k nearest documents of each of n queries, nearest first.

    Documents with equal scores are ordered by row, so that every run gives the same answer. If an approximate index
    finds fewer than k documents, the rest of the row has the score -inf and the document -1.

    Attributes:
        scores: float32 `[n, k]`; a higher score is nearer. The score is the cosine, the inner product or, for the
            metric `l2`, the negative squared Euclidean distance.
        documents: int32 `[n, k]`, the row of each document in the corpus.
    """

    scores: NDArray[np.float32]
    documents: NDArray[np.int32]


@runtime_checkable
class ScoredVectors(Protocol):
    """The vectors of the documents, and the scores of (query, document) pairs. This is an index without the search."""

    @property
    def documents(self) -> Any:
        """The vectors `[N, d]`, float16 or float32. They can be indexed by a slice or by an integer array of rows."""
        ...

    @property
    def metric(self) -> str:
        """`cosine`, `ip` or `l2`."""
        ...

    @property
    def threads(self) -> int:
        """The number of worker threads."""
        ...

    @property
    def size(self) -> int:
        """The number of documents, N."""
        ...

    @property
    def dimension(self) -> int:
        """The number of components of each vector, d."""
        ...

    def pair_scores(self, queries: NDArray[np.floating], documents: NDArray[np.integer]) -> NDArray[np.float32]:
        """The scores of each query with p given documents.

        Args:
            queries: float `[n, d]`.
            documents: int `[n, p]`, rows of the corpus. -1 stands for no document.

        Returns:
            float32 `[n, p]`; -inf where there is no document. The scores equal those of `search`, bit for bit.
        """
        ...


@runtime_checkable
class Index(ScoredVectors, Protocol):
    """A corpus of vectors that can be searched. It has everything that mining, refreshing and diagnosing need.

    `hardneg.index.VectorStore` implements everything but `search`. To write your own index, make a subclass of it that
    adds this one method.
    """

    @property
    def name(self) -> str:
        """The name of this kind of index. `run.json` and `--index` use it."""
        ...

    @property
    def resident(self) -> bool:
        """Whether `search` uses data that the index keeps in memory.

        Any other index reads all documents at each call of `search`, so callers pass it many queries at once.
        """
        ...

    def search(self, queries: NDArray[np.floating], k: int, progress: Advance | None = None) -> Neighbors:
        """The `k` nearest documents of each query.

        Args:
            queries: float `[n, d]`.
            k: number of neighbors, at most N.
            progress: called with the number of (query, document) pairs that were finished since its last call.
        """
        ...


# Ways to name an index: its name, the index itself, or a function (or class) that builds it from vectors and a metric.
IndexSpec = str | Index | Callable[[Any, str], Index]
