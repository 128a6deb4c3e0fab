"""Hardness and effective rank of one training batch, and the collapse of its vectors."""

from __future__ import annotations

import torch
from torch import Tensor

COLLAPSE = 0.25  # share of the initial effective rank below which the space has collapsed


@torch.no_grad()
def effective_rank(vectors: Tensor) -> float:
    """exp of the entropy of the normalized singular values (Roy and Vetterli 2007): the number of directions in use.

    Args:
        vectors: `[n, d]`.

    Returns:
        1 if all vectors are alike, at most min(n, d).

    >>> round(effective_rank(torch.eye(4)), 6)
    4.0
    """
    values = torch.linalg.svdvals(vectors.float())
    total = values.sum()
    if not float(total) > 0:
        return 1.0
    shares = values / total
    return float(torch.exp(-(shares * torch.log(shares.clamp(min=1e-12))).sum()))


@torch.no_grad()
def batch_hardness(queries: Tensor, documents: Tensor, mined: Tensor) -> dict[str, float]:
    """Measure how near the mined negatives of a batch are.

    Args:
        queries: `[B, d]`.
        documents: `[B + M, d]`, the positives first.
        mined: int64 `[B, K]`, rows of `documents`; -1 where there is none.

    Returns:
        `negative`: mean cosine of the negatives. `margin`: mean cosine of the positive minus that of the hardest negative.
        `violations`: share of queries whose hardest negative is nearer than the positive.
    """
    real = mined >= 0
    some = real.any(1) if mined.numel() else real.new_zeros(len(queries))
    if not bool(some.any()):
        return {}
    q, d = (torch.nn.functional.normalize(x.float(), dim=1) for x in (queries, documents))
    positive = (q * d[: len(q)]).sum(1)
    negative = torch.einsum("bd,bkd->bk", q, d[mined.clamp(min=0)])
    hardest = negative.masked_fill(~real, -torch.inf).amax(1)[some]
    return {
        "negative": float(negative[real].mean()),
        "margin": float((positive[some] - hardest).mean()),
        "violations": float((hardest > positive[some]).float().mean()),
    }


class Collapse:
    """Warns once when the document vectors have collapsed to few directions.

    Attributes:
        first: effective rank of the first measured batches.
        said: whether it has warned.
    """

    def __init__(self) -> None:
        self.first: float | None = None
        self.said = False

    def look(self, rank: float) -> str | None:
        self.first = self.first if self.first is not None else rank
        if self.said or rank >= COLLAPSE * self.first:
            return None
        self.said = True
        return (
            f"the vectors collapse: their effective rank fell from {self.first:.1f} to {rank:.1f}. Lower the learning rate, "
            f"raise the temperature, or mine less hard negatives"
        )
