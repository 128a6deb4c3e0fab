"""First passes: fast approximate scores of documents for a block of queries, with a bound on their error.

Each kernel multiplies in a cheap number format and states, per query, how much its approximate score can differ from the true
one. This bound makes the search exact: if the approximate score of a document is more than the bound below the k-th best true
score, the document cannot belong to the top k.

With q' and d' the rounded vectors, ``q.d - q'.d' = (q - q').d + q'.(d - d')``. By Cauchy-Schwarz, ``|q.d - q'.d'| <=
|q - q'| |d| + |q'| |d - d'|``. The norms on the right are measured on the vectors, not assumed.

An example in two dimensions, with a format that keeps one decimal. The query (0.62, 0.78) becomes (0.6, 0.8), with an error of
norm 0.028; the document (0.31, 0.95) becomes (0.3, 1.0), with an error of norm 0.051. The true product is 0.933 and the
approximate one 0.98. They differ by 0.047, and the bound allows 0.028 * 0.999 + 1.0 * 0.051 = 0.079. If the k-th best true score
is 1.10, the document is out, because 0.98 + 0.079 < 1.10. The float32 score need not be computed.

Float32 sums of d products add at most ``d 2^-24 |q| |d|`` (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.,
section 3.1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hardneg.storage.arrays import Float, Int

Spread = Callable[[Callable[[slice], Any], list[slice]], Iterable[Any]]

LEVELS = 254  # steps between the threshold and the highest score there can be

UNIT_ROUNDOFF = 2.0**-24


@dataclass(frozen=True)
class Tile:
    """The rounded documents of one tile, `values` `[T, d]`, and the numbers that the error bound needs."""

    values: torch.Tensor
    largest_norm: float  # of the unrounded vectors; they are centered if the kernel centres
    largest_error: float  # largest norm of a rounding error
    unit: float = 1.0  # the number that 1 stands for in `values`
    bias: torch.Tensor | None = None  # [T, 1] added to the products: l2 only

    def rows(self, rows: slice | Int) -> Tile:
        """Select documents. A slice gives a view."""
        return replace(self, values=self.values[rows], bias=None if self.bias is None else self.bias[rows])


@dataclass(frozen=True)
class QueryBlock:
    """Rounded queries. The approximate score is product * `unit` * `tile.unit` + `offset`; `Kernel.bound` bounds its error."""

    values: torch.Tensor  # [n, d], or packed
    norms: Float  # [n] of the unrounded vectors
    rounded_norms: Float  # [n]
    errors: Float  # [n] norm of the rounding error
    unit: Float  # [n]
    offset: Float  # [n]
    sums: Float  # [n] of the components of `values`, and of their absolute values
    absolute_sums: Float

    def rows(self, rows: NDArray[np.integer]) -> QueryBlock:
        """Select queries. This works only before `Kernel.packed`."""
        values = self.values[torch.from_numpy(rows)]
        return QueryBlock(values, *(getattr(self, f.name)[rows] for f in fields(self)[1:]))


class Scale(NamedTuple):
    """Scores as levels: level i of query q is the score `lowest[q] + i * step[q]`. Level 0 is every score below level 1."""

    lowest: Float  # [n]; +inf: no document is wanted
    step: Float  # [n]

    def rows(self, rows: NDArray[np.integer]) -> Scale:
        return Scale(self.lowest[rows], self.step[rows])


class Kernel(ABC):
    """Base class of the first passes. A kernel rounds vectors to one number format and multiplies in it.

    `sample` `[m, d]` holds some of the documents. A kernel chooses its rounding by them.
    """

    name: str
    bytes_a_product: int

    def __init__(self, sample: Float) -> None:
        self.dimension = sample.shape[1]

    @abstractmethod
    def tile(self, documents: Float, scale: Float | None = None, spread: Spread = map) -> Tile:
        """Round documents `[T, d]`, each multiplied by its `scale` `[T]`. `spread` works like `map`, possibly with many workers."""

    @abstractmethod
    def rounded(self, queries: Float) -> QueryBlock:
        """Round queries `[n, d]`."""

    def packed(self, queries: QueryBlock) -> QueryBlock:
        """Reorder rounded queries for the product. All other methods take packed queries."""
        return queries

    @abstractmethod
    def scores(self, queries: QueryBlock, tile: Tile) -> Float:
        """float32 `[T, n]`: approximate scores."""

    @abstractmethod
    def levels(
        self, queries: QueryBlock, tile: Tile, scale: Scale, workspace: Workspace
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Find the documents that reach the threshold of each query.

        Returns:
            (int32 positions in the flattened `[T, n]`; uint8 levels of 1 or more), in order of position. A level differs from the
            approximate score by at most one step.
        """

    def bound(self, queries: QueryBlock, tile: Tile) -> Float:
        """float32 `[n]`: the largest possible difference between an approximate score and the float32 score of the rescoring."""
        rounding = queries.errors * tile.largest_norm + queries.rounded_norms * tile.largest_error
        # Both the product here and the float32 re-ranking sum d terms in float32; the factor 4 covers
        # the two of them, the rotation or centring before, and the thresholds' own arithmetic.
        summation = 4 * (self.dimension + 8) * UNIT_ROUNDOFF * (queries.norms * tile.largest_norm + abs(queries.offset))
        total: Float = (rounding + summation + self.output_error(queries, tile)).astype(np.float32)
        return total

    def output_error(self, queries: QueryBlock, tile: Tile) -> Float:
        """float32 `[n]`: the error that is added when the result is stored."""
        return np.zeros(len(queries.norms), np.float32)


class Workspace:
    """The buffer of one worker. It is reused, because fresh memory pages would cost as much as the product."""

    def __init__(self) -> None:
        self._buffer: torch.Tensor | None = None

    def take(self, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
        if self._buffer is None or self._buffer.dtype != dtype or self._buffer.numel() < rows * columns:
            self._buffer = torch.empty(rows * columns, dtype=dtype)
        return self._buffer[: rows * columns].view(rows, columns)


class FloatKernel(Kernel):
    """float32 unchanged, or rounded to bfloat16 with float32 sums."""

    def __init__(self, sample: Float, dtype: torch.dtype) -> None:
        super().__init__(sample)
        self.dtype = dtype
        self.bytes_a_product = dtype.itemsize
        self.name = str(dtype).removeprefix("torch.")

    def tile(self, documents: Float, scale: Float | None = None, spread: Spread = map) -> Tile:
        values = torch.empty(len(documents), self.dimension, dtype=self.dtype)

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

    def _products(self, queries: QueryBlock, tile: Tile, workspace: Workspace) -> torch.Tensor:
        out = workspace.take(len(tile.values), len(queries.norms), self.dtype)
        if tile.bias is None:
            return torch.mm(tile.values, queries.values.t(), out=out)
        return torch.addmm(tile.bias, tile.values, queries.values.t(), out=out)

    def levels(
        self, queries: QueryBlock, tile: Tile, scale: Scale, workspace: Workspace
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        products = self._products(queries, tile, workspace)
        least = torch.from_numpy((scale.lowest - queries.offset) / queries.unit)
        if self.dtype != torch.float32:  # rounding must not lift the threshold
            least = torch.where(least.isinf(), least, least - least.abs() * 2.0**-7).to(self.dtype)
        positions = np.flatnonzero((products >= least).numpy())
        columns = positions % products.shape[1]
        values = torch.take(products, torch.from_numpy(positions)).float().numpy()
        scores = values * queries.unit[columns] + queries.offset[columns]
        levels = np.rint((scores - scale.lowest[columns]) / scale.step[columns])
        reached = levels >= 1
        return positions[reached].astype(np.int32), np.minimum(levels[reached], 255).astype(np.uint8)

    def output_error(self, queries: QueryBlock, tile: Tile) -> Float:
        if self.dtype == torch.float32:
            return super().output_error(queries, tile)
        # bfloat16 rounds the result to 8 significant bits: half a unit in the last place is 2^-9 of it.
        return (2.0**-8 * queries.rounded_norms * (tile.largest_norm + tile.largest_error)).astype(np.float32)


def spans(rows: int, most: int = 512) -> list[slice]:
    """Split rows into spans, so that temporary arrays stay small."""
    return [slice(start, min(start + most, rows)) for start in range(0, rows, most)]


def scaled_part(documents: Float, span: slice, scale: Float | None) -> torch.Tensor:
    """A scaled copy of some documents."""
    part = torch.tensor(documents[span])
    return part if scale is None else part.mul_(torch.from_numpy(scale[span, None]))


def row_norms(vectors: torch.Tensor) -> torch.Tensor:
    norms: torch.Tensor = torch.linalg.vector_norm(vectors, dim=1)
    return norms


def largest_norm(vectors: torch.Tensor) -> float:
    # Computed in float32 like everything that it bounds; a small surplus covers its own rounding.
    return float(torch.linalg.vector_norm(vectors, dim=1).max()) * (1 + 1e-5)
