"""Kernels: fast approximate scores of documents for a block of queries, with a bound on their error.

A kernel is the first pass of a search. It multiplies in a cheap number format, and states for each query how far its
approximate scores can be from the true ones. This bound keeps the search exact. If the approximate score of a document
is more than the bound below the k-th best true score, the document cannot belong to the top k. The few other documents
are *rescored*: their true scores are computed in float32.

The bound: let q' and d' be the rounded vectors. Then ``q.d - q'.d' = (q - q').d + q'.(d - d')`` and, by Cauchy-Schwarz,
``|q.d - q'.d'| <= |q - q'| |d| + |q'| |d - d'|``. The norms on the right are measured on the vectors, not assumed.
Float32 sums of n products add about ``n 2^-24 |q| |d|`` (Higham, Accuracy and Stability of Numerical Algorithms, 2nd
ed., section 3.1). Here d is the document itself, even if the kernel subtracts a center from it before rounding.

An example in two dimensions, with a format that keeps one decimal:

    query     q = (0.62, 0.78)  becomes  q' = (0.6, 0.8)  with the error  |q - q'| = 0.028
    document  d = (0.96, 0.27)  becomes  d' = (1.0, 0.3)  with the error  |d - d'| = 0.050

The true score is q.d = 0.806 and the approximate score is q'.d' = 0.840, so the error is 0.034. The norms are |d| =
0.997 and |q'| = 1, so the bound is 0.028 * 0.997 + 1 * 0.050 = 0.078. The true score is therefore at most 0.840 + 0.078
= 0.918. If the k-th best true score is 0.95, the document is excluded. If it is 0.90, the document is rescored.

In a search, a kernel returns *levels* instead of scores: one byte for each (document, query) pair. The search sets a
threshold for each query (see `thresholds`). Level 0 means that the score is below the threshold, and the pair is
dropped. Level 1 is the threshold, level 255 is the highest score there can be, and the levels between them are equal
steps. If the threshold is 0.680 and the highest possible score is 1.188, a step is 0.508 / 254 = 0.002. The score 0.780
is 50 steps above the threshold, so its level is 51.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray

from hardneg.products import matrix_product
from hardneg.storage.arrays import Float, Int

Spread = Callable[[Callable[[slice], Any], list[slice]], Iterable[Any]]  # `map`, or a pool's `map` with many workers

LEVELS = 254  # steps from the threshold (level 1) to the highest possible score (level 255)

UNIT_ROUNDOFF = 2.0**-24  # largest relative error of rounding to float32

SMALLEST = 2.0**-126  # smallest float32 with full precision; some processors turn smaller numbers into zero


@dataclass(frozen=True)
class Tile:
    """The rounded documents of one tile, and the numbers that the error bound needs."""

    values: torch.Tensor  # [T, d], in the number format of the kernel; int8 pads d
    largest_norm: float  # largest norm of a vector before rounding, but after centering if the kernel centers
    largest_error: float  # largest norm of a rounding error
    unit: float = 1.0  # what a step of 1 in `values` is worth
    bias: torch.Tensor | None = None  # float32 [T, 1]: -|d|^2 / 2, added to the products; only for the metric l2

    def rows(self, rows: slice | Int) -> Tile:
        """Some of the documents. A slice gives a view, an array of rows a copy."""
        return replace(self, values=self.values[rows], bias=None if self.bias is None else self.bias[rows])


@dataclass(frozen=True)
class QueryBlock:
    """A block of rounded queries, and the numbers that scores and their error bound need.

    The approximate score of a pair is its product times `unit` times `Tile.unit`, plus `offset`. `Kernel.bound` bounds
    its error.
    """

    values: torch.Tensor  # [n, d] in the number format of the kernel, or what `Kernel.packed` made of it
    norms: Float  # float32 [n], like all below: norms before rounding
    rounded_norms: Float  # norms after rounding
    errors: Float  # norms of the rounding errors
    unit: Float  # what a step of 1 in `values` is worth
    offset: Float  # added to the scores
    sums: Float  # sums of the components of `values`; only int8 uses them
    absolute_sums: Float  # sums of the absolute values of these components

    def rows(self, rows: NDArray[np.integer]) -> QueryBlock:
        """A copy of some of the queries. The block must not be packed yet (see `Kernel.packed`)."""
        values = self.values[torch.from_numpy(rows)]
        return QueryBlock(values, *(getattr(self, f.name)[rows] for f in fields(self)[1:]))


class Scale(NamedTuple):
    """What the levels mean: level i of query q is the score `lowest[q] + i * step[q]`. The threshold is level 1."""

    lowest: Float  # float32 [n], one step below the threshold; +inf lets no document pass
    step: Float  # float32 [n]

    def rows(self, rows: NDArray[np.integer]) -> Scale:
        """The scale of some of the queries."""
        return Scale(self.lowest[rows], self.step[rows])


class Kernel(ABC):
    """Base class of the kernels. A kernel rounds vectors to one number format and multiplies in it.

    Args:
        sample: float32 `[m, d]`, some of the documents. A kernel may fit its rounding to them.
    """

    name: str  # one of `kernel_choice.KERNELS`
    bytes_a_product: int  # memory of one product
    center_norm = 0.0  # the norm of the center that is subtracted from the documents
    rotation_error = 0.0  # the relative error of a product that comes from rotating both vectors

    def __init__(self, sample: Float) -> None:
        self.dimension = self.width = sample.shape[1]  # d, and the number of components that `Tile.values` stores

    @abstractmethod
    def tile(self, documents: Float, scale: Float | None = None, spread: Spread = map) -> Tile:
        """Round the documents of a tile.

        Args:
            documents: float32 `[T, d]`.
            scale: float32 `[T]`, a factor for each document; by default 1.
            spread: works like `map`, possibly with many workers.
        """

    @abstractmethod
    def rounded(self, queries: Float) -> QueryBlock:
        """Round queries, float32 `[n, d]`."""

    def packed(self, queries: QueryBlock) -> QueryBlock:
        """Arrange rounded queries in memory as the product reads them. `scores` and `levels` take packed queries."""
        return queries

    @abstractmethod
    def scores(self, queries: QueryBlock, tile: Tile) -> Float:
        """float32 `[T, n]`: the approximate scores of all pairs."""

    @abstractmethod
    def levels(
        self, queries: QueryBlock, tile: Tile, scale: Scale, workspace: Workspace
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """The pairs that reach the threshold of their query, and their levels.

        Returns:
            (int32 positions of these pairs in the flattened `[T, n]`, ascending; their uint8 levels, 1 or more). The
            score that a level stands for differs from the approximate score by at most one step, except that level 255
            includes all higher scores.
        """

    def bound(self, queries: QueryBlock, tile: Tile) -> Float:
        """float32 `[n]`: the error bound, the most by which an approximate score can differ from the rescored one."""
        rounding = queries.errors * tile.largest_norm + queries.rounded_norms * tile.largest_error
        # Both this product and the rescoring sum d terms in float32. The rescoring multiplies with the document itself,
        # so its error is d u |q| |document|, with the unit roundoff u. The offset q.m of a kernel that subtracts the
        # center m has the error d u |q| |m|. Neither shrinks with |q.m|, which is 0 if q is orthogonal to m, nor with
        # the norm after centering. But |document| is at most that norm plus |m|, so the two sums err by at most
        # 2 d u |q| (norm + |m|). The factor 4 instead of 2 covers the rounding of the documents when they are scaled
        # and centered, that of the norms, and the arithmetic with thresholds.
        lengths = tile.largest_norm + self.center_norm
        summation = 4 * (self.dimension + 8) * UNIT_ROUNDOFF * queries.norms * lengths
        rotation = self.rotation_error * queries.norms * tile.largest_norm
        # Each operation can also lose a number below `SMALLEST`: a component of a vector, a product or a sum.
        underflow = 4 * (self.dimension + 8) * SMALLEST * (1 + queries.norms) * (1 + lengths)
        total: Float = rounding + summation + rotation + underflow + self.output_error(queries, tile)
        return total.astype(np.float32, copy=False)

    def output_error(self, queries: QueryBlock, tile: Tile) -> Float:
        """float32 `[n]`: a bound on the error that arises when the kernel stores its result."""
        return np.zeros(len(queries.norms), np.float32)


class Workspace:
    """A buffer that one worker reuses for its products. Fresh memory pages would cost as much as the product itself."""

    def __init__(self) -> None:
        self._buffer: torch.Tensor | None = None

    def take(self, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
        """A tensor `[rows, columns]` with arbitrary content. The next call reuses its memory."""
        if self._buffer is None or self._buffer.dtype != dtype or self._buffer.numel() < rows * columns:
            self._buffer = torch.empty(rows * columns, dtype=dtype, device="cpu")
        return self._buffer[: rows * columns].view(rows, columns)


_OF_THREAD = threading.local()


def own_workspace() -> Workspace:
    """The workspace of the calling thread, which lives as long as the thread does."""
    if not hasattr(_OF_THREAD, "workspace"):
        _OF_THREAD.workspace = Workspace()
    workspace: Workspace = _OF_THREAD.workspace
    return workspace


class FloatKernel(Kernel):
    """A kernel for float32, without rounding, or for bfloat16, with float32 sums."""

    def __init__(self, sample: Float, dtype: torch.dtype) -> None:
        super().__init__(sample)
        self.dtype = dtype
        self.bytes_a_product = dtype.itemsize
        self.name = str(dtype).removeprefix("torch.")

    def tile(self, documents: Float, scale: Float | None = None, spread: Spread = map) -> Tile:
        values = torch.empty(len(documents), self.dimension, dtype=self.dtype, device="cpu")

        def round_part(span: slice) -> tuple[float, float]:
            part = scaled_part(documents, span, scale)
            values[span] = part
            norm = largest_norm(part)
            return norm, 0.0 if self.dtype == torch.float32 else largest_norm(part.sub_(values[span].float()))

        norms, errors = zip(*spread(round_part, spans(len(documents))), strict=True)
        return Tile(values, max(norms), max(errors))

    def rounded(self, queries: Float) -> QueryBlock:
        exact = torch.from_numpy(queries)
        values = exact.to(self.dtype)
        back = values.float()
        zeros = np.zeros(len(queries), np.float32)
        errors = zeros if self.dtype == torch.float32 else row_norms(exact - back).numpy()
        return QueryBlock(
            values, row_norms(exact).numpy(), row_norms(back).numpy(), errors, zeros + 1, zeros, zeros, zeros
        )

    def scores(self, queries: QueryBlock, tile: Tile) -> Float:
        products = self._products(queries, tile, Workspace())
        scores: Float = (
            products.float().mul_(torch.from_numpy(queries.unit)).add_(torch.from_numpy(queries.offset)).numpy()
        )
        return scores

    def score_rows(self, queries: QueryBlock, tile: Tile) -> Float:
        """The scores by query, float32 `[n, T]`, of a float32 kernel. They lie in `own_workspace`, until it is used again."""
        out = own_workspace().take(len(queries.norms), len(tile.values), self.dtype)
        bias = None if tile.bias is None else tile.bias.t()
        scores: Float = matrix_product(queries.values, tile.values.t(), bias, out).numpy()
        if (queries.unit != 1).any() or queries.offset.any():
            scores *= queries.unit[:, None]
            scores += queries.offset[:, None]
        return scores

    def _products(self, queries: QueryBlock, tile: Tile, workspace: Workspace) -> torch.Tensor:
        """`[T, n]` products, plus the tile's bias, in the kernel's number format."""
        out = workspace.take(len(tile.values), len(queries.norms), self.dtype)
        return matrix_product(tile.values, queries.values.t(), tile.bias, out)

    def levels(
        self, queries: QueryBlock, tile: Tile, scale: Scale, workspace: Workspace
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        products = self._products(queries, tile, workspace)
        lowest = torch.from_numpy((scale.lowest - queries.offset) / queries.unit)
        if self.dtype != torch.float32:  # rounding to bfloat16 must not raise it
            lowest = torch.where(lowest.isinf(), lowest, lowest - lowest.abs() * 2.0**-7).to(self.dtype)
        positions = np.flatnonzero((products >= lowest).numpy())
        columns = positions % products.shape[1]
        values = torch.take(products, torch.from_numpy(positions)).float().numpy()
        scores = values * queries.unit[columns] + queries.offset[columns]
        levels = np.rint((scores - scale.lowest[columns]) / scale.step[columns])
        reached = levels >= 1
        return positions[reached].astype(np.int32), np.minimum(levels[reached], 255).astype(np.uint8)

    def output_error(self, queries: QueryBlock, tile: Tile) -> Float:
        if self.dtype == torch.float32:
            return super().output_error(queries, tile)
        # bfloat16 rounds the result to 8 significant bits, which changes it by at most 2^-8 of its size.
        return (2.0**-8 * queries.rounded_norms * (tile.largest_norm + tile.largest_error)).astype(np.float32)


def is_float32(kernel: Kernel) -> TypeGuard[FloatKernel]:
    """Whether the kernel multiplies the vectors as they are."""
    return isinstance(kernel, FloatKernel) and kernel.dtype == torch.float32


def spans(rows: int, most: int = 512) -> list[slice]:
    """Split `rows` rows into slices of at most `most` rows, so that temporary arrays stay small.

    >>> spans(5, most=2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(start, min(start + most, rows)) for start in range(0, rows, most)]


def scaled_part(documents: Float, span: slice, scale: Float | None) -> torch.Tensor:
    """A float32 copy of the documents in `span`, each multiplied by its `scale`."""
    part = torch.from_numpy(documents[span].copy())
    return part if scale is None else part.mul_(torch.from_numpy(scale[span, None]))


def row_norms(vectors: torch.Tensor) -> torch.Tensor:
    """The Euclidean norm of each row, float32 `[n]`."""
    norms: torch.Tensor = torch.linalg.vector_norm(vectors, dim=1)
    small = norms < _SHORT
    if small.any():  # the squares of such components are too small for float32
        norms[small] = torch.linalg.vector_norm(vectors[small], dim=1, dtype=torch.float64).float()
    return norms


_SHORT = 1e-15  # norms below this are computed in float64


def largest_norm(vectors: torch.Tensor) -> float:
    """The largest Euclidean norm of a row, rounded up."""
    # The surplus covers the rounding of the norm itself, a float32 sum of d squares.
    return float(row_norms(vectors).max()) * (1 + (vectors.shape[1] + 8) * UNIT_ROUNDOFF)
