"""Unit vectors and scores of positives, summed in float32 whatever the inputs are, with few passes over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hardneg.losses.fused import has_kernels
from hardneg.losses.tiles import spans

_ROWS = 2048  # at once, where there is no kernel: what lies between has no memory of its own
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
            made = torch.empty_like(vectors, memory_format=torch.contiguous_format)
            inverse = torch.empty(*vectors.shape[:-1], 1, dtype=_wide(vectors[:0]).dtype, device=vectors.device)
            for i in spans(len(vectors), _ROWS):
                wide = _wide(vectors[i])
                largest = wide.abs().amax(-1, keepdim=True).clamp_(min=1)  # squares overflow above 1e19
                length = torch.linalg.vector_norm(wide / largest, dim=-1, keepdim=True) * largest
                inverse[i] = torch.where(length > _SHORTEST, 1 / length, 0)
                made[i] = wide * inverse[i]
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
        turned = torch.empty_like(made)
        for i in spans(len(made), _ROWS):
            u, g = _wide(made[i]), _wide(gradient[i])
            turned[i] = torch.addcmul(g, u, (u * g).sum(-1, keepdim=True), value=-1).mul_(inverse[i])
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
            parts = [(_wide(queries[i])[:, None] * _wide(positives[i])).sum(-1) for i in spans(len(queries), _ROWS)]
            return torch.cat(parts)

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
        of_queries = torch.empty_like(queries) if to_queries else None
        of_positives = torch.empty_like(positives) if to_positives else None
        for i in spans(len(queries), _ROWS):
            wide = gradient[i, :, None]
            if of_queries is not None:
                of_queries[i] = (wide * _wide(positives[i])).sum(1)
            if of_positives is not None:
                of_positives[i] = wide * _wide(queries[i])[:, None]
        return of_queries, of_positives
