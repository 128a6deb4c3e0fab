"""Unit vectors and scores of positives, summed in float32 whatever the inputs are, with few passes over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hardneg.losses.fused import has_kernels

_SHORTEST = 1e-12  # the length below which a vector has no direction


def unit(vectors: Tensor) -> Tensor:
    """The vectors `[..., d]` divided by their lengths, in their own number format.

    A vector of zeros stays one, and gets no gradient: it has no direction that could be turned.

    >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    made: Tensor = _Unit.apply(vectors)  # type: ignore[no-untyped-call]
    return made


def positive_scores(queries: Tensor, positives: Tensor) -> Tensor:
    """Inner products of each query `[B, d]` with its own positives `[B, P, d]`: `[B, P]`, in float32, or float64."""
    scores: Tensor = _PositiveScores.apply(queries, positives)  # type: ignore[no-untyped-call]
    return scores


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        if has_kernels(vectors):
            from hardneg.losses.kernel import unit_rows

            rows = vectors.reshape(-1, vectors.shape[-1]).contiguous()
            made, inverse = torch.empty_like(rows), torch.empty(len(rows), device=rows.device)
            unit_rows(rows, made, inverse)
            made, inverse = made.view(vectors.shape), inverse.view(*vectors.shape[:-1], 1)
        else:
            wide = _wide(vectors)
            length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
            inverse = torch.where(length > _SHORTEST, 1 / length, 0)
            made = (wide * inverse).to(vectors.dtype)
        ctx.save_for_backward(made, inverse)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        made, inverse = ctx.saved_tensors
        if has_kernels(made):
            from hardneg.losses.kernel import unit_gradient

            rows = made.view(-1, made.shape[-1])
            found = torch.empty_like(rows)
            unit_gradient(rows, gradient.reshape(rows.shape).contiguous(), inverse.flatten(), found)
            return found.view(made.shape)
        u, g = _wide(made), _wide(gradient)
        along = (u * g).sum(-1, keepdim=True)
        turned: Tensor = ((g - u * along) * inverse).to(made.dtype)
        return turned


class _PositiveScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, positives: Tensor) -> Tensor:
        ctx.save_for_backward(queries, positives)
        if has_kernels(queries) and positives.shape[1] == 1:
            from hardneg.losses.kernel import row_dots

            scores = torch.empty(len(queries), 1, device=queries.device)
            row_dots(queries.contiguous(), positives.contiguous(), scores)
            return scores
        with torch.autocast(queries.device.type, enabled=False):
            return (_wide(queries)[:, None] * _wide(positives)).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        queries, positives = ctx.saved_tensors
        to_queries, to_positives = ctx.needs_input_grad
        if has_kernels(queries) and positives.shape[1] == 1:
            from hardneg.losses.kernel import scaled_rows

            found = []
            for rows, needed in ((positives, to_queries), (queries, to_positives)):
                out = torch.empty_like(rows, memory_format=torch.contiguous_format) if needed else None
                if out is not None:
                    scaled_rows(rows.contiguous(), gradient.contiguous(), out)
                found.append(out)
            return (
                None if found[0] is None else found[0].view(queries.shape),
                None if found[1] is None else found[1].view(positives.shape),
            )
        wide = gradient[..., None]
        return (
            (wide * _wide(positives)).sum(1).to(queries.dtype) if to_queries else None,
            (wide * _wide(queries)[:, None]).to(positives.dtype) if to_positives else None,
        )
