"""Rows of a score matrix, tile by tile: the sum of each row, and the weight of each entry in it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hardneg.errors import UsageError
from hardneg.losses.arguments import whole
from hardneg.losses.masks import Mask

BACKENDS = ("auto", "torch", "triton")

_MEMORY = {"cpu": 32 << 20, "other": 1 << 30}  # bytes of the weights that exist at once
_FEWEST = {"cpu": 64, "other": 256}  # rows that a product needs to be worth it, even where they take more memory
_TINY = 2.0**-126  # an entry that counts weighs at least this, so that it can be told from one that does not


@dataclass(frozen=True)
class Tiles:
    """How score matrices are computed.

    Attributes:
        rows: at most so many rows at once.
        columns: of a tile (back end `torch`).
        dtype: of the factors of the products that make gradients, and on a GPU of those that make scores; None: that of the
            inputs. Sums and everything else are float32, or float64 for inputs in float64.
        backend: `torch`: tiles by torch's own operations, on any device. `triton`: scores, masks and sums in one kernel, on a
            GPU. `auto`: triton on a GPU for half formats, where it knows all masks and there are 16 million scores or more.
    """

    rows: int
    columns: int
    dtype: torch.dtype | None = None
    backend: str = "auto"

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise UsageError(f"backend must be one of {', '.join(BACKENDS)}, not {self.backend!r}")
        whole("tiles.rows", self.rows, 1)
        whole("tiles.columns", self.columns, 1)
        if self.dtype is not None and not self.dtype.is_floating_point:
            raise UsageError(f"tiles of {self.dtype}: products are made of real numbers")

    @classmethod
    def fitting(cls, device: torch.device, dtype: torch.dtype | None = None) -> Tiles:
        """Tiles that fit the device: on a CPU they stay in its cache, on a GPU they keep the matrix units busy."""
        return cls(512, 2048, dtype) if device.type == "cpu" else cls(16384, 16384, dtype)


@dataclass(frozen=True)
class Sums:
    """Of the entries of each row that count, `[r]` each.

    Attributes:
        log_sum: log of the sum of exp(logit + log weight); -inf where nothing counts.
        total: the sum of the logits, with their log weights.
        mass: the sum of the weights.
        count: how many there are.
    """

    log_sum: Tensor
    total: Tensor
    mass: Tensor
    count: Tensor


@dataclass(frozen=True)
class Matrix:
    """A score matrix: the similarities of rows and columns, what counts in it, and what it is scaled with.

    Attributes:
        rows: `[q * each, d]`, columns: `[m, d]`.
        masks: see `Mask`.
        factor: the logits are similarity * scale * factor.
        each: how many rows belong to one query.
        fixed: how many of the last columns get no gradient, such as those of a bank.
    """

    rows: Tensor
    columns: Tensor
    masks: Sequence[Mask] = ()
    factor: float = 1.0
    each: int = 1
    fixed: int = 0

    @property
    def wide(self) -> torch.dtype:
        return torch.float64 if self.rows.dtype == torch.float64 else torch.float32

    def narrow(self, tiles: Tiles) -> torch.dtype:
        """The format of the factors of products."""
        return self.wide if self.wide == torch.float64 else tiles.dtype or self.rows.dtype

    def most_rows(self, tiles: Tiles) -> int:
        """Rows whose weights fit the memory that is meant for them."""
        kind = "cpu" if self.rows.device.type == "cpu" else "other"
        size = torch.finfo(self.narrow(tiles)).bits // 8 if kind == "other" else 4
        fitting = _MEMORY[kind] // (size * max(1, len(self.columns)))
        return max(1, min(tiles.rows, max(fitting, _FEWEST[kind])))


class RowWeights(Protocol):
    """The back end of one score matrix."""

    weights: Tensor  # `[most, m]`, of the rows of the last call: exp(logit - reference), 0 for what does not count
    rows: Tensor  # `[n, d]` and `[m, d]`, in the number format of the weights
    columns: Tensor

    def weigh(self, rows: slice, guess: Tensor) -> tuple[Sums, Tensor]:
        """(the sums of these rows, the reference of each); `guess` `[r]`: logits that may be near the highest of each."""
        ...


def gradient_format(narrow: torch.dtype, device: torch.device) -> torch.dtype:
    """The format of the factors that make gradients.

    float16 cannot hold a slope of 1 / B. Processors without instructions for bfloat16 emulate its products, at a hundredth
    of the speed of float32.
    """
    if narrow not in (torch.float16, torch.bfloat16):
        return narrow
    return torch.float32 if device.type == "cpu" and not _has_bfloat16() else torch.bfloat16


@functools.cache
def _has_bfloat16() -> bool:
    """Whether this processor multiplies matrices of bfloat16 itself."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a torch without oneDNN
        return False


def spans(total: int, step: int) -> Iterator[slice]:
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


class TorchWeights:
    """The back end of torch's own operations.

    On a CPU, scores are products in the wide format whatever the inputs: torch would round narrow ones to the inputs' format.

    Args:
        matrix: see `Matrix`.
        scale: `[]`, without gradient, with the matrix's factor.
        tiles: see `Tiles`.
        most: rows of the longest block.
        store: whether weights are wanted, or sums alone.
        totals: whether `Sums.total` is wanted.
    """

    def __init__(self, matrix: Matrix, scale: Tensor, tiles: Tiles, most: int, store: bool, totals: bool) -> None:
        self.masks, self.scale, self.step, self.totals, self.store = matrix.masks, scale, tiles.columns, totals, store
        narrow = matrix.narrow(tiles)
        scored = matrix.wide if matrix.rows.device.type == "cpu" else narrow
        self.scored = [x.detach().to(scored) for x in (matrix.rows, matrix.columns)]
        self.rows, self.columns = (
            x.detach().to(gradient_format(narrow, x.device)) for x in (matrix.rows, matrix.columns)
        )
        m = len(self.columns)
        self.logits = torch.empty(most, m, dtype=matrix.wide, device=matrix.rows.device)
        self.weights = self.logits
        if store and self.rows.dtype != matrix.wide:
            self.weights = torch.empty(most, m, dtype=self.rows.dtype, device=matrix.rows.device)

    def weigh(self, rows: slice, guess: Tensor) -> tuple[Sums, Tensor]:
        logits = self.logits[: rows.stop - rows.start]
        highest = torch.full_like(guess, -torch.inf)
        total, mass, count = (torch.zeros_like(guess) for _ in range(3))
        for j in spans(logits.shape[1], self.step):
            tile = logits[:, j]
            scores(self.scored[0][rows], self.scored[1][j], tile)
            hidden, weights = self._said(rows, j, tile)
            tile.mul_(self.scale)
            if weights is not None:
                tile += weights
            here = torch.full_like(guess, tile.shape[1])
            if hidden is not None:
                hidden = hidden.expand(tile.shape)
                here -= hidden.sum(1)
            count += here
            if self.totals:
                total += tile.sum(1) if hidden is None else tile.masked_fill(hidden, 0).sum(1)
            if weights is not None:
                shares = weights.exp().expand(tile.shape)
                here = (shares if hidden is None else shares.masked_fill(hidden, 0)).sum(1)
            mass += here
            if hidden is not None:
                tile.masked_fill_(hidden, -torch.inf)
            highest = torch.maximum(highest, tile.amax(1))
        reference = torch.where(torch.isneginf(highest), 0, highest)
        log_sum = torch.log(self._exponentials(logits, reference)) + reference
        return Sums(log_sum, total, mass, count), reference

    def _said(self, rows: slice, columns: slice, scores: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """(what does not count, log weights) of a tile; None: everything, equally."""
        hidden = weights = None
        for mask in self.masks:
            said = mask.tile(rows, columns, scores)
            if said is None:
                continue
            if said.dtype == torch.bool:
                hidden = said if hidden is None else hidden | said
            else:
                weights = said if weights is None else weights + said
        return hidden, weights

    def _exponentials(self, logits: Tensor, reference: Tensor) -> Tensor:
        """The sum of each row's weights, which are left in `weights`."""
        sums = torch.zeros_like(reference)
        for j in spans(logits.shape[1], self.step):
            tile = logits[:, j]
            nothing = torch.isneginf(tile) if self.totals else None
            tile.sub_(reference[:, None]).exp_()
            sums += tile.sum(1)
            if nothing is not None:
                tile.clamp_(min=_TINY).masked_fill_(nothing, 0)
            if self.store and self.weights is not self.logits:
                self.weights[: len(tile), j] = tile
        return sums


def scores(rows: Tensor, columns: Tensor, out: Tensor) -> None:
    """The similarities of rows `[r, d]` and columns `[c, d]`, summed in the wide format of `out` `[r, c]`."""
    if rows.dtype == out.dtype:
        torch.mm(rows, columns.T, out=out)
    else:
        out.copy_(product(rows, columns.T, out.dtype))


def product(left: Tensor, right: Tensor, wide: torch.dtype) -> Tensor:
    """left @ right, in the wide format."""
    if left.dtype == wide:
        return left @ right
    if left.device.type == "cuda":
        wider: Tensor = torch.mm(left, right, out_dtype=wide)
        return wider
    return (left @ right).to(wide)


def add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """out += left @ right, summed in the wide format of `out`."""
    if left.dtype == out.dtype:
        out.addmm_(left, right)
    elif left.device.type == "cuda":
        torch.addmm(out, left, right, out_dtype=out.dtype, out=out)
    else:
        out += left @ right
