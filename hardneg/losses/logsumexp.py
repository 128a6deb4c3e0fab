"""Log-sum-exp over a score matrix that never exists as a whole: its tiles are computed, used, and recomputed for the gradient.

Memory grows with the number of rows and of columns, not with their product (as in Inf-CL, arXiv 2410.17243, and in the
online softmax of Milakov and Gimelshein 2018).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class LogitMask(Protocol):
    """Says which entries of the score matrix count, and how much; see `hardneg.losses.masks`."""

    def bias(self, rows: slice, columns: slice, scores: Tensor) -> Tensor | None:
        """What to add to the logits of this tile, `[r, c]`, without gradient: -inf for an entry that does not count.

        `scores` are the similarities of the tile, `[r, c]`, before the temperature. None: every entry counts as it is.
        """
        ...


@dataclass(frozen=True)
class Tiles:
    """The size of a tile, and the number format of its products.

    Attributes:
        rows, columns: of a tile.
        dtype: of the factors of products; None: that of the inputs. Sums and everything else are float32.
    """

    rows: int
    columns: int
    dtype: torch.dtype | None = None

    @classmethod
    def fitting(cls, device: torch.device, dtype: torch.dtype | None = None) -> Tiles:
        """Tiles that fit the device: on a CPU they stay in its cache, on a GPU they keep the matrix units busy."""
        return cls(512, 2048, dtype) if device.type == "cpu" else cls(8192, 16384, dtype)


def row_logsumexp(
    rows: Tensor, columns: Tensor, scale: Tensor, masks: Sequence[LogitMask] = (), tiles: Tiles | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log of the sum over all columns of exp(scale * rows . columns + bias), for every row.

    Args:
        rows: `[n, d]`, columns: `[m, d]`; float32, float64, bfloat16 or float16.
        scale: `[]`, 1 / temperature.
        masks: see `LogitMask`; their biases are added.
        tiles: None: as fits the device.

    Returns:
        `[n]` each: the log-sum-exp (-inf where nothing counts), the sum of the logits that count (with their biases), and how
        many count. Gradients of the first two flow to rows, columns and scale.

    >>> lse, total, count = row_logsumexp(torch.eye(2), torch.eye(2), torch.tensor(1.0))
    >>> [round(x, 4) for x in lse.tolist()]
    [1.3133, 1.3133]
    """
    tiles = tiles or Tiles.fitting(rows.device)
    if len(columns) == 0:
        empty = rows.new_zeros(len(rows), dtype=torch.float64 if rows.dtype == torch.float64 else torch.float32)
        return empty - torch.inf, empty, empty
    lse, total, count = _RowLogSumExp.apply(rows, columns, scale, tuple(masks), tiles)  # type: ignore[no-untyped-call]
    return lse, total, count


def _spans(total: int, step: int) -> Iterator[slice]:
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


class _Tile:
    """Buffers of one tile, used again and again, because allocating new ones would cost as much as the arithmetic."""

    def __init__(
        self, rows: Tensor, columns: Tensor, scale: Tensor, masks: tuple[LogitMask, ...], tiles: Tiles
    ) -> None:
        self.wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
        factor = tiles.dtype or rows.dtype
        if self.wide == torch.float64:
            factor = torch.float64
        self.rows, self.columns = rows.detach().to(factor), columns.detach().to(factor)
        self.scale = scale.detach().to(self.wide)
        self.masks = masks
        self.buffer = torch.empty(min(tiles.rows, len(rows)) * min(tiles.columns, len(columns)), dtype=self.wide,
                                  device=rows.device)  # fmt: skip
        self.narrow = None if factor == self.wide else self.buffer.new_empty(len(self.buffer), dtype=factor)

    def scores(self, i: slice, j: slice) -> Tensor:
        """Similarities of these rows and columns, in the wide format."""
        r, c = self.rows[i], self.columns[j]
        out = self.buffer[: len(r) * len(c)].view(len(r), len(c))
        if self.narrow is None:
            return torch.mm(r, c.T, out=out)
        narrow = self.narrow[: out.numel()].view(out.shape)
        torch.mm(r, c.T, out=narrow)
        return out.copy_(narrow)

    def logits(self, i: slice, j: slice) -> tuple[Tensor, Tensor | None]:
        """(scale * similarity + bias, a bool mask of what counts; None: everything)."""
        scores = self.scores(i, j)
        bias = None
        for mask in self.masks:
            more = mask.bias(i, j, scores)
            if more is not None:
                bias = more if bias is None else bias + more
        logits = scores.mul_(self.scale)
        if bias is None:
            return logits, None
        return logits.add_(bias), ~torch.isneginf(bias)

    def slopes(self, i: slice, j: slice, lse: Tensor, of_lse: Tensor, of_total: Tensor | None) -> Tensor:
        """The derivative of the loss by each logit, `[r, c]`."""
        logits, counts = self.logits(i, j)
        slopes = logits.sub_(lse[:, None]).exp_().mul_(of_lse[:, None])
        if of_total is not None:
            slopes += of_total[:, None] if counts is None else of_total[:, None] * counts
        return slopes

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """The product of a tile with rows or columns, in their number format, summed in the wide one."""
        return (left.to(right.dtype) @ right).to(self.wide)


def _without_autocast(function: Any) -> Any:
    """Turn autocast off inside: number formats are chosen tile by tile, and `Tiles.dtype` already follows autocast."""

    @functools.wraps(function)
    def plain(ctx: Any, *arguments: Any) -> Any:
        kind = next(each.device.type for each in arguments if isinstance(each, Tensor))
        with torch.autocast(kind, enabled=False):
            return function(ctx, *arguments)

    return plain


class _RowLogSumExp(torch.autograd.Function):
    @staticmethod
    @_without_autocast
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, masks: tuple[LogitMask, ...], tiles: Tiles
    ) -> tuple[Tensor, Tensor, Tensor]:
        tile = _Tile(rows, columns, scale, masks, tiles)
        n = len(rows)
        highest = rows.new_full((n,), -torch.inf, dtype=tile.wide)
        sums, total = (rows.new_zeros(n, dtype=tile.wide) for _ in range(2))
        count = rows.new_zeros(n, dtype=tile.wide)
        for i in _spans(n, tiles.rows):
            for j in _spans(len(columns), tiles.columns):
                logits, counts = tile.logits(i, j)
                if counts is None:
                    count[i] += logits.shape[1]
                    total[i] += logits.sum(1)
                else:
                    count[i] += counts.sum(1)
                    total[i] += torch.where(counts, logits, 0).sum(1)
                before = highest[i]
                now = torch.maximum(before, logits.amax(1))
                # Where nothing has counted so far, there is no sum to rescale.
                shift = torch.where(torch.isneginf(now), 0, now)
                part = logits.sub_(shift[:, None]).exp_().sum(1)
                sums[i] = sums[i] * torch.exp(before - shift) + part
                highest[i] = now
        lse = torch.log(sums) + torch.where(torch.isneginf(highest), 0, highest)
        ctx.save_for_backward(rows, columns, scale, lse)
        ctx.masks, ctx.tiles = masks, tiles
        ctx.mark_non_differentiable(count)
        ctx.set_materialize_grads(False)  # most losses do not use the sum of the logits
        return lse, total, count

    @staticmethod
    @once_differentiable
    @_without_autocast
    def backward(ctx: Any, of_lse: Tensor | None, of_total: Tensor | None, _: None) -> Any:  # type: ignore[override]
        rows, columns, scale, lse = ctx.saved_tensors
        tile = _Tile(rows, columns, scale, ctx.masks, ctx.tiles)
        of_lse = torch.zeros_like(lse) if of_lse is None else of_lse
        safe = torch.where(torch.isneginf(lse), 0, lse)
        to_rows = torch.zeros(rows.shape, dtype=tile.wide, device=rows.device)
        to_columns = torch.zeros(columns.shape, dtype=tile.wide, device=rows.device)
        wants_rows, wants_columns, wants_scale = ctx.needs_input_grad[:3]
        for i in _spans(len(rows), ctx.tiles.rows):
            for j in _spans(len(columns), ctx.tiles.columns):
                slope = tile.slopes(i, j, safe[i], of_lse[i], None if of_total is None else of_total[i])
                if wants_rows or wants_scale:
                    to_rows[i] += tile.product(slope, tile.columns[j])
                if wants_columns:
                    to_columns[j] += tile.product(slope.T, tile.rows[i])
        # The scale multiplies every score, so its derivative is the sum over all entries of score times slope.
        to_scale = torch.dot(to_rows.ravel(), tile.rows.to(tile.wide).ravel()) if wants_scale else None
        return (
            to_rows.mul_(tile.scale).to(rows.dtype) if wants_rows else None,
            to_columns.mul_(tile.scale).to(columns.dtype) if wants_columns else None,
            to_scale.to(scale.dtype) if to_scale is not None else None,
            None,
            None,
        )
