"""First passes in 8-bit integers, with the processor's quantized linear layer."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from hardneg.index.kernels import (
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
from hardneg.storage.arrays import Float


class Int8Kernel(Kernel):
    """8-bit integers with exact integer sums. Scores below the threshold leave the product as zero.

    All documents share one step, so that their integer scores compare without another pass; each query has its own step. Two exact
    transformations keep the steps small for every encoder. Documents are centered: q.d = q.(d - m) + q.m, and q.m is one number per
    query. And the space is rotated if a few components dominate, as they do in many transformers.

    The product is oneDNN's quantized linear layer, with the queries as its weights. Its epilogue scales the scores of a query,
    subtracts its threshold (the bias) and rounds to an unsigned byte. So each pair writes one byte to memory, nearly always zero,
    instead of four bytes that must be compared.
    """

    name = "int8"
    bytes_a_product = 1

    def __init__(self, sample: Float) -> None:
        super().__init__(sample)
        self._width = self.dimension + -self.dimension % 4  # integer products take four values at a time
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
                part = self._turn(scaled_part(documents, span, scale).sub_(center))
                norm, ends = largest_norm(part), torch.aminmax(part)
                rounded = (part / step).round_().clamp_(-127, 127)
                error = largest_norm(part.sub_(rounded, alpha=step))
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
            numbers[0, span], numbers[1, span], numbers[2, span] = step, torch.mv(part, center), row_norms(part)
            numbers[3, span], numbers[4, span] = rounded.sum(1), rounded.abs().sum(1)
            numbers[5, span] = row_norms(rounded) * step
            numbers[6, span] = row_norms(rounded.mul_(step[:, None]).sub_(turned))
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
        return (4 * 255 * UNIT_ROUNDOFF * unit * queries.absolute_sums).astype(np.float32)


_ZERO = 128  # documents are stored as unsigned bytes: integer products of unsigned with signed need no correction


def _linear(queries: QueryBlock, tile: Tile, factor: Float, offset: Float, dtype: torch.dtype) -> torch.Tensor:
    """`[T, n]`: factor * (integer product) + offset, rounded and saturated if `dtype` is an integer type."""
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


@functools.cache
def int8_is_exact(dimension: int) -> bool:
    """Whether this processor and this torch have the int8 product, and it is exact for the largest values."""
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
    close = (whole - truth).abs() <= truth.abs() * UNIT_ROUNDOFF
    return bool(close.all()) and bool(((levels - wanted).abs() <= 0.51).all())
