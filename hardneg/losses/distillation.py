"""Distillation: an encoder learns the scores that a teacher, such as a cross-encoder, gives the listed documents of a query.

KL divergence over the lists (as in RocketQAv2, arXiv 2110.07367, and BGE), and MarginMSE (Hofstätter et al. 2020, arXiv 2010.02666).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hardneg.errors import UsageError

SIMILARITIES = ("cosine", "dot")
KINDS = ("kl", "margin-mse")


def distillation_loss(
    queries: Tensor, documents: Tensor, teacher: Tensor, kind: str = "kl", *, scale: Tensor | float = 20.0,
    teacher_temperature: float = 1.0, similarity: str = "cosine",
) -> Tensor:  # fmt: skip
    """The loss, `[]`: 0 where nothing can be compared.

    The encoder's scores are cosines, or inner products, times `scale`, s. With the teacher's scores t of a query's L listed documents:

    - `kl`: sum over the list of p log(p / q), with p = softmax(t / teacher_temperature) and q = softmax(s);
    - `margin-mse`: mean over the negatives x of ((s(positive) - s(x)) - (t(positive) - t(x)) / teacher_temperature)^2.

    Both are averaged over the queries. A document that the teacher has not scored is left out of its list; a query whose list has
    fewer than two documents, or for MarginMSE no scored positive, is left out.

    Args:
        queries: `[B, d]`.
        documents: `[B, L, d]`, first the positive of each query, then its negatives.
        teacher: float `[B, L]`; NaN: not scored.
        kind: `kl` or `margin-mse`.
        scale: 1 / temperature of the encoder's scores.
        teacher_temperature: what the teacher's scores are divided by.
        similarity: `cosine` or `dot`.

    Raises:
        UsageError: another kind or similarity, or shapes that do not fit.

    >>> q, d = torch.eye(1, 2), torch.eye(2)[None]
    >>> float(distillation_loss(q, d, torch.tensor([[20.0, 0.0]]), "margin-mse"))
    0.0
    """
    if kind not in KINDS:
        raise UsageError(f"distillation {kind!r} must be one of {', '.join(KINDS)}")
    if similarity not in SIMILARITIES:
        raise UsageError(f"similarity must be one of {', '.join(SIMILARITIES)}, not {similarity!r}")
    if documents.shape[:2] != teacher.shape or documents.shape[::2] != queries.shape:
        raise UsageError(
            f"queries {list(queries.shape)}, documents {list(documents.shape)} and teacher {list(teacher.shape)}: expected "
            f"[B, d], [B, L, d] and [B, L]"
        )
    compared = [vectors.float() for vectors in (queries, documents)]
    if similarity == "cosine":
        compared = [torch.nn.functional.normalize(vectors, dim=-1) for vectors in compared]
    scores = torch.einsum("bd,bld->bl", *compared) * scale
    known = torch.isfinite(teacher)
    wanted = torch.where(known, teacher.float() / teacher_temperature, 0.0)
    if kind == "kl":
        counted = known.sum(1) >= 2
        low = torch.finfo(torch.float32).min
        target = torch.log_softmax(wanted.masked_fill(~known, low), dim=1)
        own = torch.log_softmax(scores.masked_fill(~known, low), dim=1)
        rows = torch.where(known, target.exp() * (target - own), 0.0).sum(1)
    else:
        pairs = known[:, :1] & known[:, 1:]
        counted = pairs.any(1)
        error = (scores[:, :1] - scores[:, 1:]) - (wanted[:, :1] - wanted[:, 1:])
        rows = torch.where(pairs, error.square(), 0.0).sum(1) / pairs.sum(1).clamp(min=1)
    return torch.where(counted, rows, 0.0).sum() / counted.sum().clamp(min=1)
