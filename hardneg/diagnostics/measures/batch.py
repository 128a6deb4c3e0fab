"""Measurements of one training batch: hardness, effective rank, and collapse of the vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from hardneg.diagnostics.measures.gradient import TEACHES

COLLAPSE = 0.25  # the vectors have collapsed below this share of the first measured effective rank


@torch.no_grad()
def effective_rank(vectors: Tensor) -> float:
    """The number of directions that vectors use: exp of the entropy of their normalized singular values.

    Source: Roy and Vetterli 2007, "The effective rank".

    Args:
        vectors: `[n, d]`.

    Returns:
        A number between 1 (all vectors are parallel) and min(n, d).

    >>> round(effective_rank(torch.eye(4)), 6)
    4.0
    """
    wide = (vectors.cpu() if vectors.device.type == "mps" else vectors).double()  # mps has no float64
    # The squares of the singular values, much faster than these: in float64, what is lost is below 1e-7 of the largest.
    squares = torch.linalg.eigvalsh(wide.T @ wide if wide.shape[0] >= wide.shape[1] else wide @ wide.T)
    values = squares.clamp(min=0).sqrt()
    total = values.sum()
    if not float(total) > 0:
        return 1.0
    shares = values / total
    return float(torch.exp(-(shares * torch.log(shares.clamp(min=1e-12))).sum()))


@torch.no_grad()
def batch_hardness(
    queries: Tensor, documents: Tensor, mined: Tensor, temperature: float | None = None, metric: str = "cosine"
) -> dict[str, float]:
    """Measure how near the mined negatives of a batch are to their queries.

    Args:
        queries: `[B, d]`.
        documents: `[B + M, d]`: the positive of each query, then the mined negatives.
        mined: int64 `[B, K]`, the rows of `documents` that are the mined negatives of each query; -1 is padding.
        temperature: that of the loss, to measure what the negatives teach; None: it is not measured.
        metric: `cosine`, or `ip`: then all that is called a cosine here is an inner product.

    Returns:
        `negative`: the mean cosine of a query and its mined negatives. `margin`: the cosine of the positive minus the
        cosine of the hardest mined negative; mean over queries. `violations`: the share of queries whose hardest mined
        negative is nearer than the positive. With a temperature also `teaching`, the share of mined negatives with a softmax
        weight of at least 0.01 among the positive and the mined negatives of their query, as in `gradient`; and
        `negative_weight`, the sum of these weights: what the mined negatives move, 0 to 1. Means over queries. Empty if there
        are no mined negatives.

    >>> batch_hardness(torch.eye(2), torch.eye(2), torch.tensor([[1], [0]]))
    {'negative': 0.0, 'margin': 1.0, 'violations': 0.0}
    """
    real = mined >= 0
    with_mined = real.any(1) if mined.numel() else real.new_zeros(len(queries))
    if not bool(with_mined.any()):
        return {}
    q, d = queries.float(), documents.float()
    if metric == "cosine":
        q, d = (torch.nn.functional.normalize(x, dim=1) for x in (q, d))
    positive = (q * d[: len(q)]).sum(1)
    negative = torch.einsum("bd,bkd->bk", q, d[mined.clamp(min=0)])
    hardest = negative.masked_fill(~real, -torch.inf).amax(1)[with_mined]
    more = {}
    if temperature is not None:
        logits = torch.cat([positive[:, None], negative.masked_fill(~real, -torch.inf)], 1) / temperature
        weights = torch.softmax(logits, 1)[:, 1:]
        share = ((weights >= TEACHES) & real).sum(1) / real.sum(1).clamp(min=1)
        more = {
            "teaching": float(share[with_mined].mean()),
            "negative_weight": float(weights.sum(1)[with_mined].mean()),
        }
    return {
        "negative": float(negative[real].mean()),
        "margin": float((positive[with_mined] - hardest).mean()),
        "violations": float((hardest > positive[with_mined]).float().mean()),
        **more,
    }


class Collapse:
    """Warns once when the document vectors have collapsed to a few directions.

    Attributes:
        first: the effective rank at the first call; None before it.
        said: True once it has warned.

    >>> collapse = Collapse()
    >>> [collapse.look(rank) is not None for rank in (100.0, 30.0, 20.0, 10.0)]
    [False, False, True, False]
    """

    def __init__(self) -> None:
        self.first: float | None = None
        self.said = False

    def look(self, rank: float) -> str | None:
        """Compare an effective rank with the first one.

        Returns:
            A warning at the first rank below `COLLAPSE` times the first one; otherwise None.
        """
        self.first = self.first if self.first is not None else rank
        if self.said or rank >= COLLAPSE * self.first:
            return None
        self.said = True
        return (
            f"the vectors collapse: their effective rank fell from {self.first:.1f} to {rank:.1f}. Lower the learning rate, "
            f"raise the temperature, or mine less hard negatives"
        )
