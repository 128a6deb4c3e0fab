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

_SKETCHED = 64  # components of which a first bound of a cosine is made

_ROUNDING = 1e-3  # what float32 and float16 may take from such a bound


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
    sketch = _Sketch(queries)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for start, block, lengths in _unit_blocks(vectors):
        size += int((lengths >= SHORTEST).sum())
        sound &= bool((lengths <= LONGEST).all())
        if not (len(rows) and sound):
            continue
        found.append(_hits(sketch, block, own - start, above, k, start))
    if not sound:
        checked_norms(vectors, what, zero_allowed=True)  # says where
    if size < 2:
        return rows[:0], np.empty((0, k), np.int64), size
    return rows, _best([torch.cat(each).numpy() for each in zip(*found, strict=True)], len(rows), k), size


class _Sketch:
    """Upper bounds of cosines, from few components: those that hold most of the sample.

    With x split into x1 in a subspace and x2 orthogonal to it, a.b = a1.b1 + a2.b2 <= a1.b1 + |a2| |b2| (Cauchy-Schwarz). The second
    term is one more component, so that a bound is a product of vectors of 65 components.

    Args:
        queries: float32 `[m, d]`, of length 1.
    """

    def __init__(self, queries: Tensor) -> None:
        self.queries = queries
        self.basis: Tensor | None = None
        if len(queries) and queries.shape[1] > 2 * _SKETCHED:
            _, axes = torch.linalg.eigh((queries.T @ queries).double())
            self.basis = axes[:, -_SKETCHED:].float().contiguous()
            self._bounds = self._of(queries).T.contiguous()

    def _of(self, vectors: Tensor) -> Tensor:
        """float32 `[n, 65]` of vectors of length 1."""
        assert self.basis is not None
        head = vectors @ self.basis
        rest = (1 - (head**2).sum(1, keepdim=True)).clamp(min=0).sqrt()
        return torch.cat([head, rest], 1)

    def near(self, block: Tensor, above: float) -> tuple[Tensor, Tensor] | None:
        """The pairs (row of the block, query) whose bound is above a limit; None if they are too many to be of use."""
        if self.basis is None:
            return None
        may = ((self._of(block) @ self._bounds) > above - _ROUNDING).numpy()
        if np.count_nonzero(may) > may.size // 50:
            return None
        rows, columns = np.nonzero(may)
        return torch.from_numpy(rows), torch.from_numpy(columns)


def _hits(
    sketch: _Sketch, block: Tensor, own: Tensor, above: float, k: int, start: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of the sample and a block of vectors with a cosine above the limit, without those of a vector and itself.

    Args:
        sketch: of the sample, m vectors.
        block: float32 `[b, d]`, of length 1; the first is in row `start` of all.
        own: int64 `[m]`, the rows of the sample in the block, where they are in it.
        above, k: as in `near_others`.

    Returns:
        (int64, in the sample; int64, among all; float32, the cosines). Of each in the sample, about k at most.
    """
    maybe = sketch.near(block, above)
    if maybe is not None:
        others, rows = maybe
        values = (block[others] * sketch.queries[rows]).sum(1)
        kept = (values > above) & (others != own[rows])
        return rows[kept], others[kept] + start, values[kept]
    cosines = block @ sketch.queries.T
    here = torch.nonzero((own >= 0) & (own < len(block))).ravel()
    cosines[own[here], here] = -1
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
