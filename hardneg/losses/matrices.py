"""Losses of rows of score matrices that never exist as a whole, and their gradients in the same pass.

A loss of contrastive learning needs few numbers of each row: the log of a sum over its entries, and the like. So rows are taken
in blocks: their entries are computed and summed, the losses of the block follow, and with them the slope of each entry while
the entries are still at hand: three products of matrices in all, where computing the entries again for the gradient (as in
Inf-CL, arXiv 2410.17243) needs four. Memory grows with the number of rows and of columns, not with their product.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hardneg.losses.tiles import Matrix, RowWeights, Sums, Tiles, TorchWeights, add_product, product, spans

Tail = Callable[[Mapping[str, Sums], Tensor, Tensor], Tensor]
"""(sums of a block by matrix, logits `[q, P]` of its positives, scale `[]`) -> the loss of each query, `[q]`. Differentiable."""


@dataclass(frozen=True)
class _Plan:
    matrices: Mapping[str, Matrix]
    places: Mapping[str, tuple[int, int]]  # of rows and columns among the tensors
    tail: Tail
    tiles: Tiles
    totals: bool


@torch.compiler.disable  # type: ignore[untyped-decorator]
def summed_losses(
    matrices: Mapping[str, Matrix], scale: Tensor, logits: Tensor, tail: Tail, tiles: Tiles, *, totals: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of the losses of all queries, with gradients to all vectors, `scale` and `logits`.

    Args:
        matrices: by name, for `tail`.
        scale: `[]`, 1 / temperature.
        logits: `[q, P]`, of the positives of each query.
        tail: makes the losses of some queries from the sums of their rows; called once for each block of queries.
        tiles: see `Tiles`.
        totals: whether `tail` uses `Sums.total`.

    Returns:
        (`[]`, for each matrix how many entries of each row count, `[rows]`).
    """
    tensors: list[Tensor] = []

    def place(tensor: Tensor) -> int:
        found = next((i for i, other in enumerate(tensors) if other is tensor), None)
        if found is None:
            tensors.append(tensor)
        return len(tensors) - 1 if found is None else found

    places = {name: (place(each.rows), place(each.columns)) for name, each in matrices.items()}
    plan = _Plan(matrices, places, tail, tiles, totals)
    total, *counts = _SummedLosses.apply(plan, scale, logits, *tensors)  # type: ignore[no-untyped-call]
    return total, dict(zip(matrices, counts, strict=True))


def _without_autocast(function: Any) -> Any:
    """Turn autocast off inside: number formats are chosen product by product, and `Tiles.dtype` already follows autocast."""

    @functools.wraps(function)
    def plain(ctx: Any, *arguments: Any) -> Any:
        kind = next(
            (each.device.type for each in arguments if isinstance(each, Tensor)), "cpu"
        )  # none: nothing is done
        with torch.autocast(kind, enabled=False):
            return function(ctx, *arguments)

    return plain


def _back_end(matrix: Matrix, scale: Tensor, tiles: Tiles, most: int, store: bool, totals: bool) -> RowWeights:
    if tiles.backend != "torch":
        from hardneg.losses.fused import fused_weights

        fused = fused_weights(matrix, scale, tiles, most, store, totals)
        if fused is not None:
            return fused
    return TorchWeights(matrix, scale, tiles, most, store, totals)


class _Pass:
    """One pass over all blocks: the losses, and the gradients of what wants one."""

    def __init__(self, plan: _Plan, scale: Tensor, logits: Tensor, tensors: tuple[Tensor, ...], needs: Any) -> None:
        self.plan, self.logits = plan, logits.detach()
        wide = next(iter(plan.matrices.values())).wide
        self.scale = scale.detach().to(wide)
        self.needs = needs
        self.differentiate = any(needs)
        self.most = max(1, min(len(logits), *(m.most_rows(plan.tiles) // m.each for m in plan.matrices.values())))
        self.works = {
            name: _back_end(m, self.scale * m.factor, plan.tiles, self.most * m.each, self.differentiate, plan.totals)
            for name, m in plan.matrices.items()
        }
        self.total = self.scale.new_zeros(())
        self.counts = {name: self.scale.new_zeros(len(m.rows)) for name, m in plan.matrices.items()}
        self.to_scale = self.scale.new_zeros(())
        self.to_logits = torch.zeros_like(self.logits)
        self.gradients = [
            torch.zeros(x.shape, dtype=wide, device=x.device) if need else None
            for x, need in zip(tensors, needs[2:], strict=True)
        ]

    def run(self) -> None:
        for block in spans(len(self.logits), self.most):
            sums, references = {}, {}
            logits = self.logits[block]
            for name, matrix in self.plan.matrices.items():
                rows = slice(block.start * matrix.each, block.stop * matrix.each)
                guess = logits.flatten() if matrix.each > 1 or logits.shape[1] == 1 else logits.mean(1)
                sums[name], references[name] = self.works[name].weigh(rows, guess * matrix.factor)
                self.counts[name][rows] = sums[name].count
            if not self.differentiate:
                self.total += self.plan.tail(sums, logits, self.scale).sum()
                continue
            slopes = self._losses(block, sums, logits)
            for name, (of_sum, of_total) in slopes.items():
                self._products(name, block, sums[name], references[name], of_sum, of_total)

    def _losses(self, block: slice, sums: dict[str, Sums], logits: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Add the losses of a block, and return their derivatives by log sum and by total of each row."""
        with torch.enable_grad():
            leaves = [logits.detach().requires_grad_(), self.scale.detach().requires_grad_()]
            watched = {}
            for name, found in sums.items():
                watched[name] = replace(
                    found, log_sum=found.log_sum.detach().requires_grad_(), total=found.total.detach().requires_grad_()
                )
                leaves += [watched[name].log_sum, watched[name].total]
            value = self.plan.tail(watched, leaves[0], leaves[1]).sum()
        of_logits, of_scale, *rest = torch.autograd.grad(value, leaves, allow_unused=True)
        self.total += value.detach()
        if of_logits is not None:
            self.to_logits[block] = of_logits
        if of_scale is not None:
            self.to_scale += of_scale
        return {
            name: (rest[2 * i], rest[2 * i + 1] if self.plan.totals else None)
            for i, name in enumerate(watched)
            if rest[2 * i] is not None
        }

    def _products(
        self, name: str, block: slice, sums: Sums, reference: Tensor, of_sum: Tensor, of_total: Tensor | None
    ) -> None:
        """Add what the entries of a block give to the gradients of rows, columns and scale."""
        work, matrix = self.works[name], self.plan.matrices[name]
        rows = slice(block.start * matrix.each, block.stop * matrix.each)
        weights = work.weights[: rows.stop - rows.start]
        # An entry's slope is of_sum * exp(logit - log sum), and exp(logit - reference) is at hand.
        none = torch.isneginf(sums.log_sum)
        slope = torch.where(none, 0, of_sum * torch.exp(reference - torch.where(none, 0, sums.log_sum)))
        if of_total is not None:
            counted = (weights > 0) * of_total[:, None].to(weights.dtype)
            weights.mul_(slope[:, None].to(weights.dtype)).add_(counted)
            slope = torch.ones_like(slope)
        slope = slope * matrix.factor
        mine, theirs = self.plan.places[name]
        of_rows, of_columns = self.gradients[mine], self.gradients[theirs]
        if of_rows is not None or self.needs[0]:
            part = product(weights, work.columns, self.scale.dtype)
            if self.needs[0]:
                along = (part * work.rows[rows]).sum(1)
                self.to_scale += torch.dot(along, slope)
            if of_rows is not None:
                of_rows[rows].addcmul_(part, (slope * self.scale)[:, None])
        if of_columns is not None:
            free = len(of_columns) - matrix.fixed
            scaled = (work.rows[rows] * (slope * self.scale)[:, None]).to(weights.dtype)
            add_product(of_columns[:free], weights[:, :free].T, scaled)


class _SummedLosses(torch.autograd.Function):
    @staticmethod
    @_without_autocast
    def forward(ctx: Any, plan: _Plan, scale: Tensor, logits: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        done = _Pass(plan, scale, logits, tensors, ctx.needs_input_grad[1:])
        done.run()
        if done.differentiate:
            formats = (scale, logits, *tensors)
            found = (done.to_scale, done.to_logits, *done.gradients)
            # Half precision loses small gradients before what comes from above (a loss scale) makes them larger.
            ctx.formats = [x.dtype for x in formats]
            kept = [
                g if g is None or dtype == torch.float16 else g.to(dtype)
                for g, dtype in zip(found, ctx.formats, strict=True)
            ]
            ctx.save_for_backward(*kept)
        counts = tuple(done.counts.values())
        ctx.mark_non_differentiable(*counts)
        ctx.set_materialize_grads(False)
        return done.total, *counts

    @staticmethod
    @once_differentiable
    @_without_autocast
    def backward(ctx: Any, of_total: Tensor | None, *_: Any) -> Any:  # type: ignore[override]
        if of_total is None:
            return (None,) * (1 + len(ctx.saved_tensors))
        wanted = ctx.needs_input_grad[1:]
        found = (
            (g * of_total.to(g.dtype)).to(dtype) if need else None
            for g, need, dtype in zip(ctx.saved_tensors, wanted, ctx.formats, strict=True)
        )
        return None, *found
