"""Training by plain torch: in-batch negatives with the whole matrix, in the order of the sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import hardneg


def train_naively(
    pairs: hardneg.Pairs,
    model: Any,
    steps: int,
    temperature: float = 1.0,
    before: Callable[[torch.optim.Optimizer, int], None] = lambda optimizer, step: None,
    clip: float | None = None,
) -> None:
    """Train by AdamW at 0.01 on batches of 16; `before(optimizer, step)` is called before each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0)
    sampler = hardneg.MemoryBankSampler(pairs, batch_size=16, negatives=0, drop_last=True)
    step = 0
    while step < steps:
        for batch in sampler:
            if step == steps:
                break
            before(optimizer, step)
            queries = model.vectors(pairs.queries.take(np.array([e.query for e in batch])))
            documents = model.vectors(pairs.documents.take(np.array([e.positive for e in batch])))
            loss = nn.functional.cross_entropy(queries @ documents.T / temperature, torch.arange(len(batch)))
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            step += 1
        sampler.end_epoch()
