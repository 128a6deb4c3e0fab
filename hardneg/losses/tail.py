"""From the sums of a row to its loss: the variants of InfoNCE."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hardneg.losses.tiles import Sums
from hardneg.losses.variants import Variants


@dataclass(frozen=True)
class RowLosses:
    """The losses of queries, from the sums of their rows in each matrix (`InfoNCE` names them) and from their positives."""

    variants: Variants

    def __call__(self, sums: Mapping[str, Sums], logits: Tensor, scale: Tensor) -> Tensor:
        """The loss of each query, `[q]`; `logits` `[q, P]` are those of its positives."""
        negatives = _of_positives(sums["documents"], logits.shape)
        if self.variants.beta:
            negatives = _tilted(negatives, _of_positives(sums["tilts"], logits.shape), self.variants.beta)
        for name in ("queries", "positives"):
            if name in sums:
                negatives = _added(negatives, _of_positives(sums[name], logits.shape))
        loss = self._against(logits, negatives, scale)
        if "back" in sums:
            back = self._against(logits, _of_positives(sums["back"], logits.shape), scale, plain=True)
            loss = (loss + back) / 2
        return loss.mean(1)

    def _against(self, logits: Tensor, negatives: Sums, scale: Tensor, plain: bool = False) -> Tensor:
        """The loss of each positive, `[q, P]`, against the sums over its negatives.

        `plain` leaves out the corrections for negatives of queries, which do not apply to documents.
        """
        v = self.variants
        some = negatives.count > 0
        log_sum = torch.where(some, negatives.log_sum, 0)
        if v.tau_plus and not plain:
            log_sum = _debiased(log_sum, logits, torch.where(some, negatives.mass, 1), v.tau_plus, scale)
        gap = log_sum - logits
        loss = gap if v.decoupled else nn.functional.softplus(gap)
        if v.label_smoothing:
            entire = torch.logaddexp(log_sum, logits)
            mean = (negatives.total + logits) / (negatives.count + 1)
            loss = (1 - v.label_smoothing) * loss + v.label_smoothing * (entire - mean)
        return torch.where(some, loss, 0)


def _of_positives(sums: Sums, shape: torch.Size) -> Sums:
    """One sum for each positive, `[q, P]`: all positives of a query share the sums of its row."""
    if len(sums.count) == shape.numel():
        return Sums(*(x.view(shape) for x in (sums.log_sum, sums.total, sums.mass, sums.count)))
    return Sums(*(x[:, None].expand(shape) for x in (sums.log_sum, sums.total, sums.mass, sums.count)))


def _tilted(raised: Sums, tilts: Sums, beta: float) -> Sums:
    """Each entry weighted by exp(beta * logit), with the weights' mean 1 (HCL, arXiv 2010.04592), in logarithms.

    With w the weights that the entries have anyway: sum(w) * sum(w exp((1 + beta) logit)) / sum(w exp(beta logit)).
    """
    some = raised.count > 0
    mass = torch.where(some, raised.mass, 1)
    log_sum = torch.where(some, raised.log_sum, 0) - torch.where(some, tilts.log_sum, 0) + torch.log(mass)
    return Sums(torch.where(some, log_sum, -torch.inf), raised.total / (1 + beta), raised.mass, raised.count)


def _added(first: Sums, second: Sums) -> Sums:
    """The sums over both. log(exp + exp) where either may be a sum of nothing: logaddexp has no gradient there."""
    here, there = first.count > 0, second.count > 0
    a, b = torch.where(here, first.log_sum, 0), torch.where(there, second.log_sum, 0)
    both = torch.where(here, torch.where(there, torch.logaddexp(a, b), a), b)
    log_sum = torch.where(here | there, both, -torch.inf)
    return Sums(log_sum, first.total + second.total, first.mass + second.mass, first.count + second.count)


def _debiased(log_sum: Tensor, logits: Tensor, mass: Tensor, tau_plus: float, scale: Tensor) -> Tensor:
    """log of max((sum - N tau+ exp(positive)) / (1 - tau+), N exp(-1 / t)), arXiv 2007.00224, computed in logarithms.

    N is the number of negatives, or the sum of their weights.
    """
    rest = math.log(tau_plus) + torch.log(mass) + logits - log_sum  # log of the share that is taken away
    floor = torch.log(mass) - scale
    with torch.no_grad():
        left = rest < 0
        corrected = log_sum + torch.log1p(-torch.exp(torch.where(left, rest, -1.0))) - math.log(1 - tau_plus)
        used = left & (corrected > floor)
    # Where the floor is used, the correction gets a harmless share, so that its gradient is 0 and not 0 times infinity.
    share = torch.exp(torch.where(used, rest, -1.0))
    return torch.where(used, log_sum + torch.log1p(-share) - math.log(1 - tau_plus), floor)
