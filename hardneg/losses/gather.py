"""Gathering over ranks: the rows of all ranks with their gradients, but never the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """The ranks that share a batch.

    Attributes:
        size: number of ranks; 1 without torch.distributed.
        start: number of queries on the ranks before this one.
        total: number of queries on all ranks.
        mine: number of queries on this rank.
    """

    size: int
    start: int
    total: int
    mine: int

    @classmethod
    def here(cls, queries: int, device: torch.device) -> Ranks:
        """The ranks, as seen from this one. Every rank must call this, because it exchanges the numbers of queries."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls(1, 0, queries, queries)
        counts = _lengths(queries, device)
        before = sum(counts[: dist.get_rank()])
        return cls(len(counts), before, sum(counts), queries)

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, in the order of the ranks, with gradients. Ranks may have different numbers of rows."""
        if self.size == 1:
            return rows
        gathered: Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
        return gathered

    def gathered_lists(self, lists: Tensor) -> Tensor:
        """Lists of ids `[n]` or `[n, k]` of all ranks, which may differ in k; they are filled up with -1."""
        if self.size == 1 or lists.ndim == 1:
            return self.gathered(lists)
        longest = max(_lengths(lists.shape[1], lists.device))
        return self.gathered(torch.nn.functional.pad(lists, (0, longest - lists.shape[1]), value=-1))

    def mean(self, losses: Tensor) -> Tensor:
        """This rank's share of the mean over the queries of all ranks.

        It is scaled so that gradients averaged by DistributedDataParallel are those of the loss over all queries.
        """
        return losses.sum() * (self.size / self.total)


def _lengths(mine: int, device: torch.device) -> list[int]:
    own = torch.tensor([mine], dtype=torch.int64, device=device)
    all_ = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(all_, own)
    return [int(each) for each in all_]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        counts = _lengths(len(rows), rows.device)
        longest = max(counts)
        padded = rows.new_zeros(
            (longest, *rows.shape[1:]), dtype=torch.uint8 if rows.dtype == torch.bool else rows.dtype
        )
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded.contiguous())
        ctx.counts = counts
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every rank's loss has a gradient for every row; their sum is the gradient of the whole loss.
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        rank = dist.get_rank()
        start = sum(ctx.counts[:rank])
        return total[start : start + ctx.counts[rank]]
