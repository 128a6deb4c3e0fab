"""The int8 kernel: products of 8-bit integers, computed by oneDNN's quantized linear layer."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from hardneg.index.kernels import (
    SMALLEST,
    UNIT_ROUNDOFF,
    Kernel,
    QueryBlock,
    Scale,
    Spread,
    Tile,
    Workspace,
    largest_norm,
    row_norms,
    scaled_part,
    spans,
)
from hardneg.products import matrix_product
from hardneg.storage.arrays import Float


class Int8Kernel(Kernel):
    """A kernel for vectors that are rounded to 8-bit integers. The sums of their products are exact.

    A vector is divided by a step and rounded to integers from -127 to 127. All documents of a tile share one step, so
    that their integer scores for a query can be compared directly; each query has its own step. Two transformations
    keep the steps small for every encoder, and both leave the scores as they are. The mean m of the documents is
    subtracted if this shortens them clearly: q.d = q.(d - m) + q.m, where q.m is one number for each query. The space
    is rotated if a few components dominate, as they do in many transformers.

    The product is oneDNN's quantized linear layer, with the queries as its weights. Its last step scales each score,
    subtracts the threshold of the query (as a bias) and rounds to an unsigned byte, which is the level. So each pair
    writes one byte to memory, which is nearly always 0, instead of four bytes that are then compared with a threshold.
    """

    name = "int8"
    bytes_a_product = 1

    def __init__(self, sample: Float) -> None:
        super().__init__(sample)
        self.width = self.dimension + -self.dimension % 4  # integer products read four components at a time
        self.center = np.zeros(self.dimension, np.float32)
        mean = sample.mean(0, dtype=np.float64).astype(np.float32)
        if np.linalg.norm(sample - mean, axis=1).mean() < 0.9 * np.linalg.norm(sample, axis=1).mean():
            self.center = mean
            self.center_norm = float(np.linalg.norm(mean.astype(np.float64)))
        # Rotating parts of the space, of at most 64 components each, spreads a large component as well as rotating the
        # whole space, and costs less. If the dimension has no suitable divisor, the whole space is rotated.
        part = max(size for size in range(1, 65) if self.dimension % size == 0)
        if part < 16:
            part = self.dimension
        noise = torch.from_numpy(np.random.default_rng(0).standard_normal((part, part)))
        self.rotation: torch.Tensor | None = torch.linalg.qr(noise).Q.float()
        centered = torch.from_numpy(sample - self.center)
        if self._rotated(centered).abs().max() > 0.8 * centered.abs().max():
            self.rotation = None
        else:
            # A rotated vector x has errors of at most (p + 1) u times the components of |x| |R|, p = part, from the
            # sums and from rounding the rotation R to float32. The norm of |R| is at most the Frobenius norm √p of R.
            self.rotation_error = 2 * (part + 1) * part**0.5 * UNIT_ROUNDOFF  # of both vectors
        # The largest component of all documents is probably somewhat larger than that of the sample.
        self._step = 1.1 * max(float(self._rotated(centered).abs().max()), 1e-30) / 127

    def _rotated(self, vectors: torch.Tensor) -> torch.Tensor:
        if self.rotation is None:
            return vectors
        return matrix_product(vectors.reshape(-1, len(self.rotation)), self.rotation).view_as(vectors)

    def tile(self, documents: Float, scale: Float | None = None, spread: Spread = map) -> Tile:
        center = torch.from_numpy(self.center)

        values = torch.full((len(documents), self.width), _ZERO, dtype=torch.uint8, device="cpu")

        def round_all(step: float) -> list[tuple[float, float, float]]:
            def round_part(span: slice) -> tuple[float, float, float]:
                part = self._rotated(scaled_part(documents, span, scale).sub_(center))
                norm, ends = largest_norm(part), torch.aminmax(part)
                rounded = (part / step).round_().clamp_(-127, 127)
                error = largest_norm(part.sub_(rounded, alpha=step))
                values[span, : self.dimension] = rounded.add_(_ZERO)
                return norm, error, max(float(ends.max), -float(ends.min))

            return list(spread(round_part, spans(len(documents))))

        # The step of the sample nearly always fits, so that one pass is enough. The error of clipping is measured too.
        step = self._step
        numbers = np.array(round_all(step))
        largest = max(float(numbers[:, 2].max()), 1e-30)
        if not 0.7 < largest / (127 * step) < 1.02:
            step = largest / 127
            numbers = np.array(round_all(step))
        return Tile(values, float(numbers[:, 0].max()), float(numbers[:, 1].max()), step)

    def rounded(self, queries: Float) -> QueryBlock:
        values = torch.zeros(len(queries), self.width, dtype=torch.int8, device="cpu")
        numbers = torch.empty(7, len(queries), dtype=torch.float32, device="cpu")
        center = torch.from_numpy(self.center)
        for span in spans(len(queries), 256):
            part = torch.from_numpy(queries[span])
            rotated = self._rotated(part)
            step = rotated.abs().amax(1).clamp_(min=1e-30) / 127
            rounded = (rotated / step[:, None]).round_()
            values[span, : self.dimension] = rounded
            offset = matrix_product(part, center[:, None])[:, 0]
            numbers[0, span], numbers[1, span], numbers[2, span] = step, offset, row_norms(part)
            numbers[3, span], numbers[4, span] = rounded.sum(1), rounded.abs().sum(1)
            numbers[5, span] = row_norms(rounded) * step
            numbers[6, span] = row_norms(rounded.mul_(step[:, None]).sub_(rotated))
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
        # Nearly all levels are 0, so eight of them are compared at a time.
        words = levels.reshape(-1).view(np.int64)
        nonzero = np.flatnonzero(words != 0)
        parts = words[nonzero].view(np.uint8)
        inside = np.flatnonzero(parts != 0)
        first = (nonzero << 3).astype(np.int32)
        return first[inside >> 3] + (inside & 7).astype(np.int32), parts[inside]

    def output_error(self, queries: QueryBlock, tile: Tile) -> Float:
        # The linear layer scales integer sums as large as 255 times the sum of |q| in float32. If the two units are
        # tiny, their product can be too small for float32.
        error = UNIT_ROUNDOFF * queries.unit * np.float32(tile.unit) + SMALLEST
        return (4 * 255 * error * queries.absolute_sums).astype(np.float32)


# The byte that stands for 0. Documents are stored as unsigned bytes, because the processor multiplies unsigned with
# signed bytes.
_ZERO = 128


def _linear(queries: QueryBlock, tile: Tile, factor: Float, offset: Float, dtype: torch.dtype) -> torch.Tensor:
    """`[T, n]`: factor * (integer product) + offset, rounded and saturated if `dtype` is an integer type.

    `factor` and `offset` are float32 `[n]`, one number for each query.
    """
    n = len(factor)
    bias = offset - _ZERO * queries.sums * factor
    products: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        tile.values,
        1.0,
        0,
        queries.values,
        torch.from_numpy(np.ascontiguousarray(factor)),
        torch.zeros(n, dtype=torch.int64, device="cpu"),
        torch.from_numpy(bias.astype(np.float32)),
        1.0,
        0,
        dtype,
        "none",
        [],
        "",
    )
    return products


@functools.cache
def int8_is_exact(dimension: int) -> bool:
    """Whether this processor and version of torch have an int8 product that is exact even for the largest values."""
    if dimension > 1 << 15:  # the sums would need more than 32 bits
        return False
    width = dimension + -dimension % 4
    values = torch.full((32, width), 255, dtype=torch.uint8, device="cpu")
    values[1::2, 1::3] = 0
    signs = torch.full((16, width), 127, dtype=torch.int8, device="cpu")
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
    expected = (truth / (half / 100) + 50).clamp(0, 255)
    # Sums above 2^24 are rounded when they are converted to float32. The error bound allows for that.
    close = (whole - truth).abs() <= truth.abs() * UNIT_ROUNDOFF
    return bool(close.all()) and bool(((levels - expected).abs() <= 0.51).all())
