"""What a training tells of itself: a line of numbers every few steps, for the log, TensorBoard and people."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from hardneg.errors import MissingDependencyError

COLLAPSE = 0.25  # of the effective rank at the start: below that the model is said to collapse


class Callback(Protocol):
    """Who wants to know. `HardnegError` stops the training."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Scalars of a step, by name; of an evaluation, `evaluation/ndcg@10` and so on."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Watcher(Callback, Protocol):
    """Who wants to see every step's vectors, too: `hardneg.Diagnostics`."""

    def batch(self, step: int, queries: Tensor, documents: Tensor, mined: Tensor | None = None, **more: Any) -> Any: ...


@torch.no_grad()
def effective_rank(vectors: Tensor) -> float:
    """exp of the entropy of the normalized singular values (Roy and Vetterli 2007): how many directions are in use.

    Args:
        vectors: `[n, d]`; 1 if all are alike, min(n, d) at most.
    """
    values = torch.linalg.svdvals(vectors.float())
    total = values.sum()
    if not float(total) > 0:
        return 1.0
    shares = values / total
    return float(torch.exp(-(shares * torch.log(shares.clamp(min=1e-12))).sum()))


@torch.no_grad()
def hardness(queries: Tensor, documents: Tensor, mined: Tensor) -> dict[str, float]:
    """How near the mined negatives of a batch are.

    Args:
        queries: `[B, d]`, documents: `[B + M, d]`: the positives first.
        mined: int64 `[B, K]`, rows of `documents`, -1: none.

    Returns:
        `negative`: their mean cosine; `margin`: mean cosine of the positive less that of the hardest; `violations`: share of
        queries whose hardest is nearer than the positive.
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
    """Says once that the vectors of the documents have come to lie in few directions.

    Attributes:
        first: effective rank of the first batches that were looked at.
        said: whether it was said.
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


class LogFile:
    """`log.jsonl`: one JSON object an entry. Entries after `step` are dropped: a resumed training writes them again."""

    def __init__(self, path: Path, step: int) -> None:
        kept = []
        if path.exists():
            for line in path.read_text("utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    if entry["step"] <= step:
                        kept.append(line)
                except (ValueError, KeyError, TypeError):
                    continue  # cut off where the process was killed
        path.write_text("".join(line + "\n" for line in kept), "utf-8")
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def log(self, step: int, values: dict[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.file.write(json.dumps({"step": step, **finite}) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class TensorBoard:
    """Scalars for TensorBoard, in a folder."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingDependencyError("tensorboard", "tensorboard", "writing for TensorBoard") from None
        self.writer: Any = SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def close(self) -> None:
        self.writer.close()


def mean_of(rows: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Means of the loss's statistics over some batches."""
    return {name: float(torch.stack([row[name].float() for row in rows]).mean()) for name in rows[0]} if rows else {}
