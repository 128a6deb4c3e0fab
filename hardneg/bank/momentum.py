"""A momentum encoder (MoCo, He et al. 2020, arXiv 1911.05722): a copy of the model that follows it slowly."""

from __future__ import annotations

import copy

import torch
from torch import nn

from hardneg.losses.arguments import number


class MomentumEncoder(nn.Module):
    """A copy of an encoder that follows it slowly, to fill a bank with vectors that drift less (MoCo).

    Args:
        model: the model that is trained; the parameters of the copy have no gradients.
        momentum: share of itself that the copy keeps at each `update`.

    The copy is always in evaluation mode: dropout would make the vectors of a bank noisier than those they stand for.

    Raises:
        UsageError: `momentum` is not in [0, 1).
    """

    def __init__(self, model: nn.Module, momentum: float = 0.999) -> None:
        super().__init__()
        self.momentum = number("momentum", momentum, 0, 1, below=True)
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> MomentumEncoder:
        """Do nothing but note the mode: the copy stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards `model`, once after each optimizer step; buffers (running means) are copied."""
        for mine, theirs in zip(self.model.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs.detach().to(mine), 1 - self.momentum)
        for kept, now in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(now)

    @torch.no_grad()
    def forward(self, *inputs: object, **named: object) -> object:
        return self.model(*inputs, **named)
