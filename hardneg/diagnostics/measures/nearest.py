"""The nearest others of a sample of vectors, searched among all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.diagnostics.estimates import sampled, unit
from hardneg.index.exact import ExactIndex
from hardneg.index.vectors import checked_norms
from hardneg.storage.arrays import Float, Rows

_COMPARED = 1 << 26  # pairs of vectors that are compared

_MOST, _LEAST = 4000, 500  # vectors in a sample


def nearest_others(
    vectors: Any, what: str, k: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], Float, int]:
    """The k nearest others, by cosine, of a sample of vectors.

    The sample is searched among all: whether a vector's only neighbor is in another sample would depend on their number. The more
    there are, the smaller the sample.

    Args:
        vectors: float `[n, d]`. Zero vectors have no cosine, and are left out.
        what: whose vectors these are, for messages.
        k: neighbors of each.
        rng: draws the sample.

    Returns:
        (int64 `[m]`, rows in the sample; int64 `[m, k + 1]`, rows of the neighbors, -1 for none and for itself; float32
        `[m, k + 1]`, their cosines, -inf likewise; the number of vectors that are not zero). The sample is empty if there are
        fewer than two.
    """
    usable = np.flatnonzero(checked_norms(vectors, what, zero_allowed=True) > 0)
    size = len(usable)
    places = sampled(size, int(np.clip(_COMPARED // max(1, size), _LEAST, _MOST)), rng)
    rows = usable[places]
    if size < 2:
        return rows[:0], np.empty((0, k + 1), np.int64), np.empty((0, k + 1), np.float32), size
    index = ExactIndex(vectors if size == len(vectors) else Rows(vectors, usable), "cosine")
    found = index.search(unit(vectors, rows), min(k + 1, size))
    others = np.where(found.documents >= 0, usable[np.maximum(found.documents, 0)], -1)
    none = (others < 0) | (others == rows[:, None])
    return rows, np.where(none, -1, others), np.where(none, np.float32(-np.inf), found.scores), size
