"""Maps of neighborhoods: a query, its positives and its candidates in the plane, as near to one another as in their space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardneg.diagnostics.estimates import unit
from hardneg.diagnostics.subject import Subject
from hardneg.storage.arrays import Float


@dataclass(frozen=True)
class Map:
    """Points in the plane.

    Attributes:
        points: float64 `[m, 2]`, the query, then its positives, then its candidates; within -1 and 1, the query at 0.
        share: how much of the squared distances the plane shows, from 0 to 1.
    """

    points: NDArray[np.float64]
    share: float


def neighborhood(
    subject: Subject, rows: NDArray[np.int64], positives: Sequence[NDArray[np.integer]], candidates: Sequence[NDArray[np.integer]]
) -> list[Map | None]:  # fmt: skip
    """The map of each query in `rows`; None without vectors."""
    if subject.vectors is None or len(rows) == 0:
        return [None] * len(rows)
    documents = [np.concatenate([a, b]).astype(np.int64) for a, b in zip(positives, candidates, strict=True)]
    needed = np.unique(np.concatenate(documents))
    vectors = unit(subject.vectors[1], needed)
    queries = unit(subject.vectors[0], rows)
    return [
        flattened(np.concatenate([queries[i : i + 1], vectors[np.searchsorted(needed, each)]]))
        for i, each in enumerate(documents)
    ]


def flattened(vectors: Float) -> Map:
    """The plane through the query, the first of the vectors `[m, d]`, in which the most of their distances is seen.

    These are the two first principal components of the differences to the query (Pearson 1901).

    >>> found = flattened(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], np.float32))
    >>> round(found.share, 3), found.points[0].tolist()
    (1.0, [0.0, 0.0])
    """
    differences = vectors.astype(np.float64) - vectors[0]
    left, values, right = np.linalg.svd(differences, full_matrices=False)
    points = np.zeros((len(vectors), 2))
    count = min(2, len(values))
    # The sign of a component is arbitrary: the largest part of its direction is positive.
    signs = np.sign(right[np.arange(count), np.abs(right[:count]).argmax(1)])
    points[:, :count] = left[:, :count] * values[:count] * signs
    points -= points[0]
    total = float((values**2).sum())
    largest = float(np.abs(points).max(initial=0.0))
    return Map(
        points / largest if largest > 0 else points, float((values[:count] ** 2).sum()) / total if total > 0 else 1.0
    )
