"""Drift compensation: a refresh that encodes part of the corpus and corrects the vectors of the rest.

While an encoder is trained, its whole space turns and stretches, and most of that change is one linear map. The map is
learned from a random sample of documents that are encoded again, and applied to the vectors that are not (compare
Yu et al. 2020, Semantic Drift Compensation for Class-Incremental Learning, which shifts by averages). The rest of the
budget goes to the documents that are retrieved most. benchmarks/RESULTS.md says what that is worth.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.storage.arrays import Int

_RANDOM = 0.25  # share of the encoded documents that is a random sample, from which the map is learned

_LEAST = 512  # documents in that sample, at least

_RIDGE = 0.01  # weight of the identity, in units of the mean squared length of the sample's components

_ROWS = 16384  # moved at once


def rows_to_encode(share: float, old: Int, encoded_at: Int, retrieved: Int, seed: int) -> tuple[Int, Int]:
    """Choose the documents to encode again.

    Args:
        share: share of all documents to encode.
        old: int64 `[N]`, their rows in the previous generation, -1 for new documents.
        encoded_at: int64 `[M]`, the step at which each row of that generation was last encoded.
        retrieved: int64 `[M]`, how often each row was among the neighbors of a query.
        seed: of the random sample.

    Returns:
        (the rows to encode, ascending; those of the random sample). The first are all new documents, the random sample, and
        the documents retrieved most; among equally often retrieved ones, those that were not encoded for longest.
    """
    known = np.flatnonzero(old >= 0)
    generator = np.random.default_rng(seed)
    count = max(round(share * len(old)), min(len(known), _LEAST))
    size = min(len(known), max(_LEAST, round(_RANDOM * count)))
    sampled = np.sort(generator.choice(known, size, replace=False))
    rest = np.setdiff1d(known, sampled)
    order = np.lexsort((encoded_at[old[rest]], -retrieved[old[rest]]))
    room = max(0, count - size - int((old < 0).sum()))
    return np.unique(np.concatenate([np.flatnonzero(old < 0), sampled, rest[order[:room]]])), sampled


def compensate(
    vectors: NDArray[np.floating], encoded: Int, fresh: NDArray[np.floating], trial: Int, rest: Int
) -> tuple[NDArray[Any], float]:
    """Move old vectors to where the encoder would put them now.

    Args:
        vectors: `[N, d]` of the previous generation.
        encoded: its rows that were encoded again, giving `fresh` `[m, d]`.
        fresh: the new vectors of those rows.
        trial: random positions in `encoded`, on which a map that is learned from the others is tested.
        rest: rows to move, `[r]`.

    Returns:
        (float32 `[r, d]`; 1 - mean cosine of moved and fresh vectors in the trial).
    """
    learned = np.ones(len(encoded), bool)
    learned[trial] = False
    error = 0.0
    sums = _Sums(vectors, fresh, encoded, np.flatnonzero(learned))
    held_out = _Sums(vectors, fresh, encoded, np.flatnonzero(~learned))
    if learned.any() and not learned.all():
        before, after = (np.asarray(v, np.float64) for v in (vectors[encoded[trial]], fresh[trial]))
        tried = before @ sums.linear_map()
        norms = np.linalg.norm(tried, axis=1) * np.linalg.norm(after, axis=1)
        error = float(1 - ((tried * after).sum(1) / np.maximum(norms, 1e-30)).mean())
    sums.add(held_out)
    moving = sums.linear_map().astype(np.float32)
    # Ridge regression shrinks vectors: restore the old lengths, scaled as the lengths of the sample have changed.
    stretch = sums.lengths[1] / max(sums.lengths[0], 1e-30)
    out = np.empty((len(rest), vectors.shape[1]), np.float32)
    for start in range(0, len(rest), _ROWS):
        old = np.asarray(vectors[rest[start : start + _ROWS]], np.float32)
        moved = old @ moving
        lengths = np.linalg.norm(old, axis=1) * stretch / np.maximum(np.linalg.norm(moved, axis=1), 1e-30)
        out[start : start + _ROWS] = moved * lengths[:, None].astype(np.float32)
    return out, error


class _Sums:
    """What ridge regression needs of pairs of old and fresh vectors, summed block by block, so that no copy of them is made.

    Args:
        vectors, fresh, encoded: as in `compensate`.
        chosen: the pairs to sum, positions in `encoded`.
    """

    def __init__(
        self, vectors: NDArray[np.floating], fresh: NDArray[np.floating], encoded: Int, chosen: NDArray[np.int64]
    ) -> None:
        d = vectors.shape[1]
        self.inner: NDArray[np.float64] = np.zeros((d, d))
        self.outer: NDArray[np.float64] = np.zeros((d, d))
        self.lengths: NDArray[np.float64] = np.zeros(2)
        for start in range(0, len(chosen), _ROWS):
            rows = chosen[start : start + _ROWS]
            before, after = (np.asarray(v, np.float64) for v in (vectors[encoded[rows]], fresh[rows]))
            self.inner += before.T @ before
            self.outer += before.T @ after
            for i, side in enumerate((before, after)):
                self.lengths[i] += np.linalg.norm(side, axis=1).sum()

    def add(self, other: _Sums) -> None:
        self.inner += other.inner
        self.outer += other.outer
        self.lengths += other.lengths

    def linear_map(self) -> NDArray[np.float64]:
        """`[d, d]` W that minimises |before W - after|^2 + r |W - 1|^2: ridge regression towards the identity."""
        dimension = len(self.inner)
        weight = _RIDGE * float(np.trace(self.inner)) / dimension + 1e-12
        identity = weight * np.eye(dimension)
        return np.asarray(np.linalg.solve(self.inner + identity, self.outer + identity), np.float64)
