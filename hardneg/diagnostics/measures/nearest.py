"""The near others of a sample of vectors, looked for among all of them; and vectors block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardneg.diagnostics.estimates import sampled
from hardneg.index.vectors import LONGEST, SHORTEST, checked_norms
from hardneg.storage.arrays import Float

_COMPARED = 1 << 25  # pairs of vectors that are compared

# Vectors in a sample. Of 400, a share of 0.2 (the limit of near copies) has an interval of 0.16 to 0.24.
_MOST, _LEAST = 4000, 400

_BLOCK = 8192  # vectors that are read at once


def near_others(
    vectors: Any, what: str, above: float, k: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Of a sample of vectors, the k nearest others with a cosine above a limit.

    The sample is searched among all: whether a vector's only neighbor is in another sample would depend on their number. The more
    there are, the smaller the sample. Few others are that near, so that nothing has to be sorted but those.

    Args:
        vectors: float `[n, d]`. Zero vectors have no cosine, and are left out.
        what: whose vectors these are, for messages.
        above: the limit, above 0.
        k: others of each, at most.
        rng: draws the sample.

    Returns:
        (int64 `[m]`, rows in the sample; int64 `[m, k]`, rows of the others, the nearest first, -1 for none; the number of vectors
        that are not zero). The sample is empty if there are fewer than two.

    Raises:
        DataError: a vector has a NaN or infinite value.
    """
    total = len(vectors)
    rows = sampled(total, int(np.clip(_COMPARED // max(1, total), _LEAST, _MOST)), rng)
    norms = _norms(np.asarray(vectors[rows], np.float32)) if total else np.empty(0)
    rows = rows[norms >= SHORTEST]
    sample = np.asarray(vectors[rows], np.float32) if len(rows) else np.empty((0, 0), np.float32)
    queries = torch.from_numpy(sample / norms[norms >= SHORTEST, None])
    own, size, sound = torch.from_numpy(rows), 0, bool((norms <= LONGEST).all())
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for start, block, lengths in _unit_blocks(vectors):
        size += int((lengths >= SHORTEST).sum())
        sound &= bool((lengths <= LONGEST).all())
        if not (len(rows) and sound):
            continue
        cosines = block @ queries.T
        here = torch.nonzero((own >= start) & (own < start + len(block))).ravel()
        cosines[own[here] - start, here] = -1  # nothing is its own neighbor
        found.append(_hits(cosines, above, k, start))
    if not sound:
        checked_norms(vectors, what, zero_allowed=True)  # says where
    if size < 2:
        return rows[:0], np.empty((0, k), np.int64), size
    return rows, _best([torch.cat(each).numpy() for each in zip(*found, strict=True)], len(rows), k), size


def _hits(cosines: Tensor, above: float, k: int, start: int) -> tuple[Tensor, Tensor, Tensor]:
    """The entries of a block of cosines `[b, m]` above the limit: int64 in the sample, int64 among all, float32 cosines.

    Of each in the sample, about k at most.
    """
    near = (cosines > above).numpy()
    if np.count_nonzero(near) > k * near.shape[1]:  # a collapsed space: all are near
        values, others = cosines.topk(min(k, len(cosines)), 0)
        places, rows = torch.nonzero(values > above, as_tuple=True)
        return rows, others[places, rows] + start, values[places, rows]
    others, rows = (torch.from_numpy(each) for each in np.nonzero(near))
    return rows, others + start, cosines[others, rows]


def _best(found: list[NDArray[Any]], count: int, k: int) -> NDArray[np.int64]:
    """int64 `[count, k]`: of each row the columns with the highest values, the lower column first among equals; -1 for none."""
    rows, columns, values = found
    order = np.lexsort((columns, -values, rows))
    rows, columns = rows[order], columns[order]
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)
    out = np.full((count, k), -1, np.int64)
    first = place < k
    out[rows[first], place[first]] = columns[first]
    return out


def blocks(vectors: Any) -> Iterator[tuple[int, Tensor]]:
    """The vectors block by block: (the row of the first, float32 `[b, d]`)."""
    for start in range(0, len(vectors), _BLOCK):
        # Copied, because a mapped file may not be written to, and turned into float32 by torch, which is faster at it.
        yield start, torch.from_numpy(np.array(vectors[start : start + _BLOCK])).float()


def unit_blocks(vectors: Any) -> Iterator[tuple[int, Tensor]]:
    """The vectors block by block, normalized to length 1: (the row of the first, float32 `[b, d]`)."""
    for start, block, _ in _unit_blocks(vectors):
        yield start, block


def _unit_blocks(vectors: Any) -> Iterator[tuple[int, Tensor, Float]]:
    """The same, with the lengths that they had."""
    for start, block in blocks(vectors):
        lengths = torch.linalg.vector_norm(block, dim=1).numpy()
        if lengths.min() < 1e-15:  # such squares are too small for float32
            lengths = _norms(block.numpy())
        yield start, block.mul_(torch.from_numpy(1 / np.maximum(lengths, SHORTEST))[:, None]), lengths


def _norms(vectors: Float) -> Float:
    """float32 `[n]`: the length of each vector."""
    with np.errstate(over="ignore", invalid="ignore"):
        found: Float = np.linalg.norm(vectors.astype(np.float64), axis=1).astype(np.float32)
    return found
