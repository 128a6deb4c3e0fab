"""Diagnosis during training: hardness and age of the negatives, and collapse of the space, at regular steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hardneg.bank.memory_bank import MemoryBank
from hardneg.diagnostics.measures.batch import Collapse, batch_hardness, effective_rank
from hardneg.errors import UsageError
from hardneg.refresh.refreshed_index import RefreshedIndex


class Diagnostics:
    """Measures batches during training, as a callback of `hardneg.train` or in your own loop.

    Args:
        writer: a TensorBoard writer (`torch.utils.tensorboard.SummaryWriter`), or any object with `add_scalar` and `add_histogram`;
            None: the numbers are only kept in `history`.
        every: steps between two measurements.
        rows: the largest number of rows of a batch that are measured; it bounds the cost.
    """

    def __init__(self, writer: Any = None, *, every: int = 50, rows: int = 512) -> None:
        if every < 1 or rows < 2:
            raise UsageError(f"every={every} must be 1 or more, rows={rows} 2 or more")
        self.writer, self.every, self.rows = writer, every, rows
        self.history: list[dict[str, float]] = []
        self.warnings: list[str] = []
        self._collapse = Collapse()

    @torch.no_grad()
    def batch(
        self, step: int, queries: Tensor, documents: Tensor, mined: Tensor | None = None, *, bank: MemoryBank | None = None,
        index: RefreshedIndex | None = None, statistics: dict[str, Tensor] | None = None,
    ) -> dict[str, float] | None:  # fmt: skip
        """Measure a step if it is due.

        Args:
            step: number of the step, from 1.
            queries: `[B, d]`.
            documents: `[B + M, d]`: the positives first, then mined negatives.
            mined: int64 `[B, K]`, rows of `documents` that are the negatives of each query; -1 where there is none.
            bank, index: the memory bank and the refreshed index, if there are any.
            statistics: statistics of the loss (`InfoNCE.statistics`).

        Returns:
            The measurements by name; None if the step is not due.
        """
        if step % self.every:
            return None
        size = min(len(queries), self.rows)
        rank = effective_rank(documents[: self.rows])
        values = {"effective_rank": rank}
        if mined is not None:
            values |= batch_hardness(queries[:size], documents, mined[:size].to(documents.device))
        for name in ("loss", "temperature", "masked"):
            if statistics and name in statistics:
                values[name] = float(statistics[name])
        if bank is not None:
            ages = bank.statistics()
            values |= {"bank_rows": ages["rows"], "bank_age": ages["mean_age"]}
        if index is not None:
            values |= {"age": float(index.age), "drift": index.staleness.drift, "overlap": index.staleness.overlap}
        said = self._collapse.look(rank)
        if said is not None:
            self.warnings.append(f"step {step}: {said}")
        self.history.append({"step": step, **values})
        if self.writer is not None:
            self._write(step, values, queries[:size], documents, None if mined is None else mined[:size], bank)
        return values

    def log(self, step: int, values: dict[str, float]) -> None:
        """Does nothing: the trainer's own numbers are written elsewhere."""

    def close(self) -> None:
        if self.writer is not None and hasattr(self.writer, "flush"):
            self.writer.flush()

    def _write(
        self, step: int, values: dict[str, float], queries: Tensor, documents: Tensor, mined: Tensor | None,
        bank: MemoryBank | None,
    ) -> None:  # fmt: skip
        for name, value in values.items():
            self.writer.add_scalar(f"negatives/{name}", value, step)
        q, d = (torch.nn.functional.normalize(x.float(), dim=1).cpu() for x in (queries, documents))
        self.writer.add_histogram("negatives/positive_scores", (q * d[: len(q)]).sum(1), step)
        if mined is not None and bool((mined >= 0).any()):
            scores = torch.einsum("bd,bkd->bk", q, d[mined.cpu().clamp(min=0)])[mined.cpu() >= 0]
            self.writer.add_histogram("negatives/mined_scores", scores, step)
        if bank is not None and len(bank):
            self.writer.add_histogram("negatives/bank_ages", bank.view().ages.cpu(), step)
