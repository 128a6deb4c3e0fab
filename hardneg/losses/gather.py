"""Gathering over ranks: the rows of all ranks with their gradients, but never the logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """The ranks that share a batch.

    Attributes:
        size: number of ranks; 1 without torch.distributed.
        lengths: for each kind of rows (and of lists) the number (or the width) on each rank.
        rank: this one.
    """

    size: int
    lengths: Mapping[str, list[int]] = field(default_factory=dict)
    rank: int = 0

    @classmethod
    def here(cls, lengths: Mapping[str, int], device: torch.device) -> Ranks:
        """The ranks, as seen from this one. Every rank must call this: all numbers are exchanged at once.

        Args:
            lengths: numbers of this rank, by name; the same names on all ranks.
            device: where collective operations find their tensors.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls(1, {name: [n] for name, n in lengths.items()})
        own = torch.tensor(list(lengths.values()), dtype=torch.int64, device=device)
        all_ = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(all_, own)
        table: list[list[int]] = torch.stack(all_).tolist()  # the only wait for the device in a call of the loss
        return cls(len(table), {name: [row[i] for row in table] for i, name in enumerate(lengths)}, dist.get_rank())

    @property
    def start(self) -> int:
        """The number of queries on the ranks before this one."""
        return sum(self.lengths["queries"][: self.rank])

    def gathered(self, rows: Tensor, kind: str, *, lists: str | None = None) -> Tensor:
        """The rows of all ranks, in their order, with gradients. Ranks may have different numbers of rows.

        Args:
            rows: `[n, ...]`.
            kind: the entry of `lengths` that counts them.
            lists: rows `[n, k]` are lists of ids, and this entry of `lengths` counts k; they are filled up with -1.
        """
        if self.size == 1:
            return rows
        if lists is not None and rows.ndim == 2:
            rows = torch.nn.functional.pad(rows, (0, max(self.lengths[lists]) - rows.shape[1]), value=-1)
        gathered: Tensor = _Gather.apply(rows, self.lengths[kind], self.rank)  # type: ignore[no-untyped-call]
        return gathered

    def share(self, losses: Tensor) -> Tensor:
        """This rank's share of the mean over the queries of all ranks, from the sum of the losses of its own.

        It is scaled so that gradients averaged by DistributedDataParallel are those of the loss over all queries.
        """
        return losses * (self.size / sum(self.lengths["queries"]))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], rank: int) -> Tensor:
        ctx.counts, ctx.rank = counts, rank
        sent = rows.to(torch.uint8) if rows.dtype == torch.bool else rows.contiguous()
        padded = _padded(sent, max(counts))
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        # Every rank's loss has a gradient for every row; their sum is the gradient of the whole loss.
        counts, rank = ctx.counts, ctx.rank
        if dist.get_backend() == "nccl":
            longest = max(counts)
            parts = [_padded(part, longest) for part in torch.split(gradient, counts)]
            mine = torch.empty_like(parts[rank])
            dist.reduce_scatter_tensor(mine, torch.cat(parts))
            return mine[: counts[rank]], None, None
        total = gradient.contiguous().clone()  # gloo has no reduce-scatter
        dist.all_reduce(total)
        start = sum(counts[:rank])
        return total[start : start + counts[rank]], None, None


def _padded(rows: Tensor, longest: int) -> Tensor:
    if len(rows) == longest:
        return rows.contiguous()
    return torch.cat([rows, rows.new_zeros((longest - len(rows), *rows.shape[1:]))])
