"""First passes: fast approximate products of a block of queries with a tile of documents, and how wrong they can be.

Each kernel multiplies in a cheap number format and says, per query, by how much its approximate score
can differ from the true one. The bound is what makes a search built on them exact: a document whose
approximate score is more than two bounds below the k-th best cannot belong to the top k.

With q' and d' the rounded vectors, ``q.d - q'.d' = (q - q').d + q'.(d - d')``, so by Cauchy-Schwarz
``|q.d - q'.d'| <= |q - q'| |d| + |q'| |d - d'|``; the norms on the right are measured, not assumed.
Sums of d products in float32 add at most ``d 2^-24 |q| |d|`` (Higham, Accuracy and Stability of
Numerical Algorithms, 2nd ed., section 3.1).
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Float = NDArray[np.float32]

BLOCK = 16  # documents whose best score is looked at first: tiles hold a multiple of it
KERNELS = ("float32", "bfloat16", "int8")
_UNIT_ROUNDOFF = 2.0**-24


@dataclass(frozen=True)
class Tile:
    """Documents of one tile, rounded: `values` `[T, d]`, and what the error bound needs."""

    values: torch.Tensor
    largest_norm: float  # of the unrounded vectors, centred if the kernel centres
    largest_error: float  # norm of the rounding error
    unit: float  # true value of 1 in `values`


@dataclass(frozen=True)
class QueryBlock:
    """Queries, rounded: `values` `[n, d]`; approximate score = product * `unit` + `offset`, wrong by at most `bound`."""

    values: torch.Tensor
    norms: Float  # [n] of the unrounded vectors
    rounded_norms: Float  # [n]
    errors: Float  # [n] norm of the rounding error
    unit: Float  # [n]
    offset: Float  # [n]


class Kernel:
    """Exact float32 products; the other kernels differ in how they round.

    `sample` `[m, d]` (some documents) is where a kernel looks before it chooses how to round.
    """

    name = "float32"
    dtype = torch.float32

    def __init__(self, sample: Float) -> None:
        self.dimension = sample.shape[1]

    def tile(self, documents: Float, scale: Float | None = None) -> Tile:
        """Round documents `[T, d]`, each multiplied by its `scale` `[T]`; rows of zeros fill up to a multiple of 16."""
        values = np.zeros((_padded(len(documents)), self.dimension), np.float32)
        norm = 0.0
        for span, part in _chunks(documents, scale):
            values[span] = part
            norm = max(norm, float(_norms(part).max()))
        return Tile(torch.from_numpy(values), norm, 0.0, 1.0)

    def queries(self, queries: Float) -> QueryBlock:
        norms = _norms(queries)
        n = len(queries)
        zeros = np.zeros(n, np.float32)
        return QueryBlock(torch.from_numpy(queries), norms, norms, zeros, np.ones(n, np.float32), zeros)

    def product(self, queries: QueryBlock, tile: Tile, out: torch.Tensor) -> torch.Tensor:
        return torch.mm(queries.values, tile.values.t(), out=out)

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
        return np.zeros(len(queries.norms), np.float32)


class BFloat16Kernel(Kernel):
    """bfloat16 inputs and output, float32 sums."""

    name = "bfloat16"
    dtype = torch.bfloat16

    def tile(self, documents: Float, scale: Float | None = None) -> Tile:
        values = torch.zeros(_padded(len(documents)), self.dimension, dtype=torch.bfloat16)
        norm = error = 0.0
        for span, part in _chunks(documents, scale):
            values[span] = torch.tensor(part).bfloat16()  # a copy: part may be a read-only map
            norm = max(norm, float(_norms(part).max()))
            error = max(error, float(_norms(part - values[span].float().numpy()).max()))
        return Tile(values, norm, error, 1.0)

    def queries(self, queries: Float) -> QueryBlock:
        rounded = torch.from_numpy(queries).bfloat16()
        back = rounded.float().numpy()
        n = len(queries)
        return QueryBlock(
            rounded,
            _norms(queries),
            _norms(back),
            _norms(queries - back),
            np.ones(n, np.float32),
            np.zeros(n, np.float32),
        )

    def output_error(self, queries: QueryBlock, tile: Tile) -> Float:
        # The result is rounded to 8 significant bits: half a unit in the last place is 2^-9 of it.
        return (2.0**-8 * queries.rounded_norms * (tile.largest_norm + tile.largest_error)).astype(np.float32)


class Int8Kernel(Kernel):
    """8-bit integers, exact integer sums.

    Documents share one step, so that their integer scores compare without another pass; each query has
    its own. Two exact transformations keep the step small whatever the encoder: documents are centred
    (q.d = q.(d - m) + q.m, and q.m is one number a query), and the space is rotated when a few
    components dominate, as they do in many transformers.
    """

    name = "int8"
    dtype = torch.int32

    def __init__(self, sample: Float) -> None:
        super().__init__(sample)
        self._width = (
            self.dimension + -self.dimension % 4
        )  # integer products take four at a time; d = 1 comes out wrong
        self.center = np.zeros(self.dimension, np.float32)
        mean = sample.mean(0, dtype=np.float64).astype(np.float32)
        if np.mean(_norms(sample - mean)) < 0.9 * np.mean(_norms(sample)):
            self.center = mean
        centred = sample - self.center
        generator = np.random.default_rng(0)
        rotation = np.linalg.qr(generator.standard_normal((self.dimension, self.dimension)))[0].astype(np.float32)
        rotated = _multiply(centred, rotation)
        self.rotation = rotation if np.abs(rotated).max(initial=0) < 0.8 * np.abs(centred).max(initial=0) else None

    def _turn(self, vectors: Float) -> Float:
        return vectors if self.rotation is None else _multiply(vectors, self.rotation)

    def tile(self, documents: Float, scale: Float | None = None) -> Tile:
        largest = 0.0  # the step is known only after all documents were seen: two readings
        for _, turned in self._turned(documents, scale):
            lowest, highest = torch.aminmax(turned)
            largest = max(largest, float(highest), -float(lowest))
        step = max(largest, 1e-30) / 127
        values = torch.zeros(_padded(len(documents)), self._width, dtype=torch.int8)
        norm = error = 0.0
        for span, turned in self._turned(documents, scale):
            norm = max(norm, _largest_norm(turned))
            rounded = (turned / step).round_().clamp_(-127, 127)
            values[span, : self.dimension] = rounded
            error = max(error, _largest_norm(turned.sub_(rounded, alpha=step)))
        return Tile(values, norm, error, step)

    def _turned(self, documents: Float, scale: Float | None) -> Iterator[tuple[slice, torch.Tensor]]:
        for span, part in _chunks(documents, scale):
            centred = torch.from_numpy(part - self.center)
            yield span, centred if self.rotation is None else centred @ torch.from_numpy(self.rotation)

    def queries(self, queries: Float) -> QueryBlock:
        turned = self._turn(queries)
        steps = np.maximum(np.abs(turned).max(1), 1e-30).astype(np.float32) / 127
        rounded = np.rint(turned / steps[:, None]).clip(-127, 127)
        back = rounded * steps[:, None]
        values = np.zeros((len(queries), self._width), np.int8)
        values[:, : self.dimension] = rounded
        return QueryBlock(
            torch.from_numpy(values),
            _norms(queries),
            _norms(back),
            _norms(turned - back),
            steps,
            queries @ self.center,
        )

    def product(self, queries: QueryBlock, tile: Tile, out: torch.Tensor) -> torch.Tensor:
        return torch._int_mm(queries.values, tile.values.t(), out=out)


_BY_NAME: dict[str, type[Kernel]] = {"float32": Kernel, "bfloat16": BFloat16Kernel, "int8": Int8Kernel}


def make_kernel(name: str, sample: Float) -> Kernel:
    """The kernel called `name` (one of `KERNELS`), fitted to a sample of the documents."""
    return _BY_NAME[name](sample)


@functools.cache
def fastest_kernel(dimension: int) -> str:
    """The name of the kernel that is fastest here, by a short measurement (a tenth of a second, once).

    A coarse format leaves more candidates to re-rank, so it has to win clearly. An int8 product that is
    not exact (some processors saturate its partial sums) is not used: the bound would not hold.
    """
    kinds: dict[type[Kernel], float] = {Kernel: 1.0, BFloat16Kernel: 1.3}
    if dimension <= 2048 and _int8_is_exact(dimension):
        kinds[Int8Kernel] = 1.6
    runs = {kind: _product(kind, dimension) for kind in kinds}
    seconds = dict.fromkeys(kinds, math.inf)
    for _ in range(6):  # in turns: a busy moment of the machine must not decide
        for kind, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[kind] = min(seconds[kind], time.perf_counter() - start)
    return min(kinds, key=lambda kind: seconds[kind] * kinds[kind]).name


def _product(kind: type[Kernel], dimension: int) -> Callable[[], torch.Tensor]:
    """One product of the size that a search uses, ready to run."""
    generator = np.random.default_rng(0)
    documents = generator.standard_normal((4096, dimension), np.float32)
    kernel = kind(documents[:64])
    tile, block = kernel.tile(documents), kernel.queries(documents[:128].copy())
    out = torch.empty(128, len(documents), dtype=kernel.dtype)
    kernel.product(block, tile, out)
    return lambda: kernel.product(block, tile, out)


def _int8_is_exact(dimension: int) -> bool:
    """Whether int8 products come out exact, tried on the largest values there are."""
    try:
        ones = torch.full((32, dimension), 127, dtype=torch.int8)
        signs = ones.clone()
        signs[:, 1::3] = -127
        for left in (ones, -ones):
            got = torch._int_mm(left, signs.t())
            if not torch.equal(got, (left.int() @ signs.int().t())):
                return False
    except (AttributeError, RuntimeError):
        return False
    return True


def _padded(rows: int) -> int:
    return rows + -rows % BLOCK


def _chunks(documents: Float, scale: Float | None) -> Iterator[tuple[slice, Float]]:
    """Some rows at a time, scaled: temporaries stay small."""
    for start in range(0, len(documents), 512):
        span = slice(start, min(start + 512, len(documents)))
        yield span, documents[span] if scale is None else documents[span] * scale[span, None]


def _norms(vectors: Float) -> Float:
    norms: Float = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return norms


def _largest_norm(vectors: torch.Tensor) -> float:
    # Computed in float32 like everything that it bounds; a hair more covers its own rounding.
    return float(torch.linalg.vector_norm(vectors, dim=1).max()) * (1 + 1e-5)


def _multiply(left: Float, right: Float) -> Float:
    product: Float = torch.mm(torch.from_numpy(left), torch.from_numpy(right)).numpy()
    return product
