"""First passes: fast approximate products of documents with a block of queries, and how wrong they can be.

Each kernel multiplies in a cheap number format and says, per query, by how much its approximate score
can differ from the true one. The bound is what makes a search built on them exact: a document whose
approximate score is more than a bound below the k-th best true score cannot belong to the top k.

With q' and d' the rounded vectors, ``q.d - q'.d' = (q - q').d + q'.(d - d')``, so by Cauchy-Schwarz
``|q.d - q'.d'| <= |q - q'| |d| + |q'| |d - d'|``; the norms on the right are measured, not assumed.
Sums of d products in float32 add at most ``d 2^-24 |q| |d|`` (Higham, Accuracy and Stability of
Numerical Algorithms, 2nd ed., section 3.1).
"""

from __future__ import annotations

import functools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Float = NDArray[np.float32]
Int = NDArray[np.int64]

Spread = Callable[[Callable[[slice], Any], list[slice]], Iterable[Any]]

KERNELS = ("float32", "bfloat16", "int8")
LEVELS = 254  # steps between the threshold and the highest score there can be
_UNIT_ROUNDOFF = 2.0**-24


@dataclass(frozen=True)
class Tile:
    """Documents of one tile, rounded: `values` `[T, d]`, and what the error bound needs."""

    values: torch.Tensor
    largest_norm: float  # of the unrounded vectors, centred if the kernel centres
    largest_error: float  # norm of the rounding error
    unit: float = 1.0  # true value of 1 in `values`
    bias: torch.Tensor | None = None  # [T, 1] added to the products: l2 only

    def rows(self, rows: slice | Int) -> Tile:
        """Some of the documents; a slice gives a view."""
        return replace(self, values=self.values[rows], bias=None if self.bias is None else self.bias[rows])


@dataclass(frozen=True)
class QueryBlock:
    """Queries, rounded: approximate score = product * `unit` * `tile.unit` + `offset`, wrong by at most `bound`."""

    values: torch.Tensor  # [n, d], or packed
    norms: Float  # [n] of the unrounded vectors
    rounded_norms: Float  # [n]
    errors: Float  # [n] norm of the rounding error
    unit: Float  # [n]
    offset: Float  # [n]
    sums: Float  # [n] of the components of `values`, and of their absolute values
    absolute_sums: Float

    def rows(self, rows: NDArray[np.integer]) -> QueryBlock:
        """Some of the queries, as long as they are not packed."""
        values = self.values[torch.from_numpy(rows)]
        return QueryBlock(values, *(getattr(self, f.name)[rows] for f in fields(self)[1:]))


class Scale(NamedTuple):
    """Scores as levels: level i of query q is the score `lowest[q] + i * step[q]`; level 0 is anything below."""

    lowest: Float  # [n]; +inf: nothing is wanted
    step: Float  # [n]

    def rows(self, rows: NDArray[np.integer]) -> Scale:
        return Scale(self.lowest[rows], self.step[rows])


class Kernel(ABC):
    """A number format.

    `sample` `[m, d]` (some documents) is where a kernel looks before it chooses how to round.
    """

    name: str
    bytes_a_product: int

    def __init__(self, sample: Float) -> None:
        self.dimension = sample.shape[1]

    @abstractmethod
    def tile(self, documents: Float, scale: Float | None = None, spread: Spread = map) -> Tile:
        """Round documents `[T, d]`, each multiplied by its `scale` `[T]`; `spread` as `map`, perhaps by many workers."""

    @abstractmethod
    def rounded(self, queries: Float) -> QueryBlock:
        """Round queries `[n, d]`."""

    def packed(self, queries: QueryBlock) -> QueryBlock:
        """Rounded queries in the order in which the product reads them; what the other methods take."""
        return queries

    @abstractmethod
    def scores(self, queries: QueryBlock, tile: Tile) -> Float:
        """float32 `[T, n]`: approximate scores."""

    @abstractmethod
    def levels(
        self, queries: QueryBlock, tile: Tile, scale: Scale, workspace: Workspace
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Documents that reach their query's threshold.

        Returns:
            (int32 positions in `[T, n]`, flattened; uint8 levels, 1 or more), in order of position. A level
            is the approximate score but for one step at most.
        """

    def bound(self, queries: QueryBlock, tile: Tile) -> Float:
        """float32 `[n]`: how far an approximate score can be from the float32 score of the re-ranking."""
        rounding = queries.errors * tile.largest_norm + queries.rounded_norms * tile.largest_error
        # Both the product here and the float32 re-ranking sum d terms in float32; the factor 4 covers
        # the two of them, the rotation or centring before, and the thresholds' own arithmetic.
        summation = (
            4 * (self.dimension + 8) * _UNIT_ROUNDOFF * (queries.norms * tile.largest_norm + abs(queries.offset))
        )
        total: Float = (rounding + summation + self.output_error(queries, tile)).astype(np.float32)
        return total

    def output_error(self, queries: QueryBlock, tile: Tile) -> Float:
        """float32 `[n]`: what writing the result down adds."""
        return np.zeros(len(queries.norms), np.float32)


class Workspace:
    """One worker's buffer, used again and again: fresh pages would cost as much as the product."""

    def __init__(self) -> None:
        self._buffer: torch.Tensor | None = None

    def take(self, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
        if self._buffer is None or self._buffer.dtype != dtype or self._buffer.numel() < rows * columns:
            self._buffer = torch.empty(rows * columns, dtype=dtype)
        return self._buffer[: rows * columns].view(rows, columns)


class FloatKernel(Kernel):
    """float32 as it is, or rounded to bfloat16 with float32 sums."""

    def __init__(self, sample: Float, dtype: torch.dtype) -> None:
        super().__init__(sample)
        self.dtype = dtype
        self.bytes_a_product = dtype.itemsize
        self.name = str(dtype).removeprefix("torch.")

    def tile(self, documents: Float, scale: Float | None = None, spread: Spread = map) -> Tile:
        values = torch.empty(len(documents), self.dimension, dtype=self.dtype)

        def round_part(span: slice) -> tuple[float, float]:
            part = _part(documents, span, scale)
            values[span] = part
            norm = _largest_norm(part)
            return norm, 0.0 if self.dtype == torch.float32 else _largest_norm(part.sub_(values[span].float()))

        norms, errors = zip(*spread(round_part, spans(len(documents))), strict=True)
        return Tile(values, max(norms), max(errors))

    def rounded(self, queries: Float) -> QueryBlock:
        exact = torch.from_numpy(queries)
        values = exact.to(self.dtype)
        back = values.float()
        zeros = np.zeros(len(queries), np.float32)
        errors = zeros if self.dtype == torch.float32 else _norms(exact - back).numpy()
        return QueryBlock(values, _norms(exact).numpy(), _norms(back).numpy(), errors, zeros + 1, zeros, zeros, zeros)

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
        # The result is rounded to 8 significant bits: half a unit in the last place is 2^-9 of it.
        return (2.0**-8 * queries.rounded_norms * (tile.largest_norm + tile.largest_error)).astype(np.float32)


class Int8Kernel(Kernel):
    """8-bit integers, exact integer sums; what is below the threshold leaves the product as zero.

    Documents share one step, so that their integer scores compare without another pass; each query has
    its own. Two exact transformations keep the step small whatever the encoder: documents are centred
    (q.d = q.(d - m) + q.m, and q.m is one number a query), and the space is rotated when a few
    components dominate, as they do in many transformers.

    The product is oneDNN's quantized linear layer, with the queries as its weights. Its epilogue scales a
    query's scores, subtracts its threshold (the bias) and rounds to an unsigned byte, so that memory sees one
    byte a pair, nearly always zero, instead of four that have to be compared.
    """

    name = "int8"
    bytes_a_product = 1

    def __init__(self, sample: Float) -> None:
        super().__init__(sample)
        self._width = self.dimension + -self.dimension % 4  # integer products take four at a time
        self.center = np.zeros(self.dimension, np.float32)
        mean = sample.mean(0, dtype=np.float64).astype(np.float32)
        if np.linalg.norm(sample - mean, axis=1).mean() < 0.9 * np.linalg.norm(sample, axis=1).mean():
            self.center = mean
        # Rotating parts of the space spreads a large component as well as rotating the whole, and costs less.
        part = max(size for size in range(1, 65) if self.dimension % size == 0)
        if part < 16:
            part = self.dimension
        noise = torch.from_numpy(np.random.default_rng(0).standard_normal((part, part)))
        self.rotation: torch.Tensor | None = torch.linalg.qr(noise).Q.float()
        centred = torch.from_numpy(sample - self.center)
        if self._turn(centred).abs().max() > 0.8 * centred.abs().max():
            self.rotation = None
        # Of all documents the largest component is somewhat larger than of the sample.
        self._step = 1.1 * max(float(self._turn(centred).abs().max()), 1e-30) / 127

    def _turn(self, vectors: torch.Tensor) -> torch.Tensor:
        if self.rotation is None:
            return vectors
        return (vectors.reshape(-1, len(self.rotation)) @ self.rotation).view_as(vectors)

    def tile(self, documents: Float, scale: Float | None = None, spread: Spread = map) -> Tile:
        center = torch.from_numpy(self.center)

        values = torch.full((len(documents), self._width), _ZERO, dtype=torch.uint8)

        def round_all(step: float) -> list[tuple[float, float, float]]:
            def round_part(span: slice) -> tuple[float, float, float]:
                part = self._turn(_part(documents, span, scale).sub_(center))
                norm, ends = _largest_norm(part), torch.aminmax(part)
                rounded = (part / step).round_().clamp_(-127, 127)
                error = _largest_norm(part.sub_(rounded, alpha=step))
                values[span, : self.dimension] = rounded.add_(_ZERO)
                return norm, error, max(float(ends.max), -float(ends.min))

            return list(spread(round_part, spans(len(documents))))

        # The sample's step fits nearly always: one pass. Its error, clipping included, is measured like any other.
        step = self._step
        numbers = np.array(round_all(step))
        largest = max(float(numbers[:, 2].max()), 1e-30)
        if not 0.7 < largest / (127 * step) < 1.02:
            step = largest / 127
            numbers = np.array(round_all(step))
        return Tile(values, float(numbers[:, 0].max()), float(numbers[:, 1].max()), step)

    def rounded(self, queries: Float) -> QueryBlock:
        values = torch.zeros(len(queries), self._width, dtype=torch.int8)
        numbers = torch.empty(7, len(queries))
        center = torch.from_numpy(self.center)
        for span in spans(len(queries), 256):
            part = torch.from_numpy(queries[span])
            turned = self._turn(part)
            step = turned.abs().amax(1).clamp_(min=1e-30) / 127
            rounded = (turned / step[:, None]).round_()
            values[span, : self.dimension] = rounded
            numbers[0, span], numbers[1, span], numbers[2, span] = step, torch.mv(part, center), _norms(part)
            numbers[3, span], numbers[4, span] = rounded.sum(1), rounded.abs().sum(1)
            numbers[5, span] = _norms(rounded) * step
            numbers[6, span] = _norms(rounded.mul_(step[:, None]).sub_(turned))
        unit, offset, norms, sums, absolute, rounded_norms, errors = numbers.numpy()
        return QueryBlock(values, norms, rounded_norms, errors, unit, offset, sums, absolute)

    def packed(self, queries: QueryBlock) -> QueryBlock:
        return replace(queries, values=torch.ops.onednn.qlinear_prepack(queries.values, None))

    def scores(self, queries: QueryBlock, tile: Tile) -> Float:
        factor = queries.unit * np.float32(tile.unit)
        scores: Float = _linear(queries, tile, factor, queries.offset, torch.float32).numpy()
        return scores

    def levels(
        self, queries: QueryBlock, tile: Tile, scale: Scale, workspace: Workspace
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        factor = queries.unit * np.float32(tile.unit) / scale.step
        offset = np.where(np.isposinf(scale.lowest), np.float32(-1e9), (queries.offset - scale.lowest) / scale.step)
        levels = _linear(queries, tile, factor, offset, torch.uint8).numpy()
        # Eight at a time: nearly all are zero.
        words = levels.reshape(-1).view(np.int64)
        found = np.flatnonzero(words != 0)
        parts = words[found].view(np.uint8)
        inside = np.flatnonzero(parts != 0)
        first = (found << 3).astype(np.int32)
        return first[inside >> 3] + (inside & 7).astype(np.int32), parts[inside]

    def output_error(self, queries: QueryBlock, tile: Tile) -> Float:
        # The epilogue's float32 arithmetic on integers as large as 255 sum |q|.
        unit = queries.unit * np.float32(tile.unit)
        return (4 * 255 * _UNIT_ROUNDOFF * unit * queries.absolute_sums).astype(np.float32)


_ZERO = 128  # documents are stored as unsigned bytes: integer products of unsigned with signed need no correction


def _linear(queries: QueryBlock, tile: Tile, factor: Float, offset: Float, dtype: torch.dtype) -> torch.Tensor:
    """`[T, n]`: factor * (integer product) + offset, rounded and saturated where `dtype` is an integer's."""
    n = len(factor)
    bias = offset - _ZERO * queries.sums * factor
    made: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        tile.values,
        1.0,
        0,
        queries.values,
        torch.from_numpy(np.ascontiguousarray(factor)),
        torch.zeros(n, dtype=torch.int64),
        torch.from_numpy(bias.astype(np.float32)),
        1.0,
        0,
        dtype,
        "none",
        [],
        "",
    )
    return made


_BY_NAME: dict[str, Callable[[Float], Kernel]] = {
    "float32": lambda sample: FloatKernel(sample, torch.float32),
    "bfloat16": lambda sample: FloatKernel(sample, torch.bfloat16),
    "int8": Int8Kernel,
}


def make_kernel(name: str, sample: Float) -> Kernel:
    """The kernel called `name` (one of `KERNELS`), fitted to a sample of the documents."""
    return _BY_NAME[name](sample)


@functools.cache
def fastest_kernel(dimension: int) -> str:
    """The name of the kernel that is fastest here, by a short measurement (a tenth of a second, once).

    A coarse format leaves more candidates to re-rank, so it has to win clearly. An int8 product that is
    not exact (some processors saturate its partial sums) is not used: the bound would not hold.
    """
    handicaps = {"float32": 1.0, "bfloat16": 1.2}
    if int8_is_exact(dimension):
        handicaps["int8"] = 1.3
    runs = {name: _product(name, dimension) for name in handicaps}
    seconds = dict.fromkeys(handicaps, math.inf)
    for _ in range(6):  # in turns: a busy moment of the machine must not decide
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return min(handicaps, key=lambda name: seconds[name] * handicaps[name])


def _product(name: str, dimension: int) -> Callable[[], object]:
    """One product as a search does it, ready to run."""
    generator = np.random.default_rng(0)
    documents = generator.standard_normal((1024, dimension), np.float32)
    queries = generator.standard_normal((512, dimension), np.float32)
    kernel = make_kernel(name, documents[:64])
    tile, block, workspace = kernel.tile(documents), kernel.packed(kernel.rounded(queries)), Workspace()
    scale = Scale(4 * block.norms, block.norms)  # four standard deviations: few reach it
    kernel.levels(block, tile, scale, workspace)
    return lambda: kernel.levels(block, tile, scale, workspace)


@functools.cache
def int8_is_exact(dimension: int) -> bool:
    """Whether this processor and this torch have the int8 product, and it comes out exact on the largest values."""
    if dimension > 1 << 15:  # sums would leave 32 bits
        return False
    width = dimension + -dimension % 4
    values = torch.full((32, width), 255, dtype=torch.uint8)
    values[1::2, 1::3] = 0
    signs = torch.full((16, width), 127, dtype=torch.int8)
    signs[1::2] = -127
    signs[2:, 1::5] = 3
    truth = values.double() @ signs.double().t()
    ones = np.ones(16, np.float32)
    zeros = 0 * ones
    try:
        packed = torch.ops.onednn.qlinear_prepack(signs, None)
        block = QueryBlock(packed, ones, ones, zeros, ones, zeros, zeros, zeros)
        whole = _linear(block, Tile(values, 1, 0), ones, zeros, torch.float32).double()
        half = float(truth.abs().max()) / 2
        levels = _linear(block, Tile(values, 1, 0), ones / np.float32(half / 100), 50 * ones, torch.uint8).double()
    except (AttributeError, RuntimeError, TypeError):
        return False
    wanted = (truth / (half / 100) + 50).clamp(0, 255)
    # Sums above 2^24 are rounded on their way to float32, which the bound allows for.
    close = (whole - truth).abs() <= truth.abs() * 2.0**-24
    return bool(close.all()) and bool(((levels - wanted).abs() <= 0.51).all())


def spans(rows: int, most: int = 512) -> list[slice]:
    """Some rows at a time: temporaries stay small."""
    return [slice(start, min(start + most, rows)) for start in range(0, rows, most)]


def _part(documents: Float, span: slice, scale: Float | None) -> torch.Tensor:
    """Some documents, scaled, as a copy."""
    part = torch.tensor(documents[span])
    return part if scale is None else part.mul_(torch.from_numpy(scale[span, None]))


def _norms(vectors: torch.Tensor) -> torch.Tensor:
    norms: torch.Tensor = torch.linalg.vector_norm(vectors, dim=1)
    return norms


def _largest_norm(vectors: torch.Tensor) -> float:
    # Computed in float32 like everything that it bounds; a hair more covers its own rounding.
    return float(torch.linalg.vector_norm(vectors, dim=1).max()) * (1 + 1e-5)
