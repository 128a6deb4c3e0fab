"""The protocol that every index implements, and the result of a search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hardneg.errors import UsageError, first_few
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


def checked_answer(index: Index, answer: Any, queries: int, k: int) -> Neighbors:
    """What `index.search` returned, after a check that it is what the protocol promises.

    An index of the user's own can return anything. Unchecked, a wrong row would be read as another document, and a NaN
    score would pass every filter.

    Args:
        index: the index that was searched. The answer of an index of this library is not checked.
        answer: what `search` returned.
        queries: the number of queries, n.
        k: the number of neighbors that were asked for.

    Returns:
        The answer, with int32 rows.

    Raises:
        UsageError: the answer is no `Neighbors`, has another shape or another number format, holds rows that are not
            in the corpus or repeat, NaN scores, or neighbors that are not in the order of their scores. The message
            names the class of the index.
    """
    if type(index).__module__.partition(".")[0] == "hardneg" and isinstance(answer, Neighbors):
        return answer
    scores, rows = getattr(answer, "scores", None), getattr(answer, "documents", None)
    if not isinstance(scores, np.ndarray) or not isinstance(rows, np.ndarray):
        found = "None" if answer is None else f"an object of the type {type(answer).__name__!r}"
        raise _wrong_answer(index, f"returned {found}, expected Neighbors(scores, documents) of two arrays")
    for name, array, kind in (("scores", scores, "float32"), ("documents", rows, "int32")):
        if array.shape != (queries, k):
            raise _wrong_answer(index, f"returned {name} of the shape {list(array.shape)}, expected {[queries, k]}")
        if array.dtype != kind and not (kind == "int32" and array.dtype.kind == "i"):
            raise _wrong_answer(index, f"returned {name} in the number format {array.dtype}, expected {kind}")
    faults = (
        ((rows < -1) | (rows >= index.size), f"rows that are not in the corpus of {index.size:,} documents"),
        ((rows >= 0) & ~np.isfinite(scores), "scores that are NaN or infinite"),
        ((rows < 0) & (scores != -np.inf), "scores other than -inf where there is no document"),
        (scores[:, 1:] > scores[:, :-1], "neighbors that are not in the order of their scores"),
        (_repeated(rows), "documents that repeat"),
    )
    for wrong, what in faults:
        if wrong.any():
            where = np.flatnonzero(wrong.any(axis=1))
            raise _wrong_answer(
                index, f"returned {what}, for {len(where):,} of {queries:,} queries: queries {first_few(where)}"
            )
    return Neighbors(scores, rows.astype(np.int32, copy=False))


def _repeated(rows: NDArray[np.integer]) -> NDArray[np.bool_]:
    """bool `[n, k - 1]`: for each neighbor but the first, in the order of rows, whether it repeats the one before."""
    ordered = np.sort(rows, axis=1)
    repeated: NDArray[np.bool_] = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    return repeated


def _wrong_answer(index: Index, what: str) -> UsageError:
    return UsageError(f"the search of the index {type(index).__name__} {what}: see hardneg.index.Index")


# Ways to name an index: its name, the index itself, or a function (or class) that builds it from vectors and a metric.
IndexSpec = str | Index | Callable[[Any, str], Index]
