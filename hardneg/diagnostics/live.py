"""Diagnostics during training: hardness and age of the negatives, and collapse of the vectors, every few steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hardneg.bank.memory_bank import MemoryBank
from hardneg.diagnostics.measures.batch import Collapse, batch_hardness, effective_rank
from hardneg.errors import UsageError
from hardneg.refresh.refreshed_index import RefreshedIndex


class Diagnostics:
    """Measures training batches, as a callback of `hardneg.train` or in your own training loop.

    Args:
        writer: a TensorBoard writer (`torch.utils.tensorboard.SummaryWriter`), or any object with `add_scalar` and
            `add_histogram`. None keeps the numbers in `history` only.
        every: the number of steps from one measurement to the next.
        rows: the largest number of rows of a batch to measure. It limits the cost of a measurement.

    Attributes:
        history: the measurements of each measured step, by name, with its number as `step`.
        warnings: one message if the vectors have collapsed.

    Raises:
        UsageError: `every` is below 1, or `rows` below 2.

    >>> watch = Diagnostics(every=10)
    >>> queries = torch.eye(3)
    >>> watch.batch(10, queries, queries, mined=torch.tensor([[1], [2], [0]]))["margin"]
    1.0
    """

    def __init__(self, writer: Any = None, *, every: int = 50, rows: int = 512) -> None:
        if every < 1 or rows < 2:
            raise UsageError(f"every={every} must be 1 or more, and rows={rows} must be 2 or more")
        self.writer, self.every, self.rows = writer, every, rows
        self.history: list[dict[str, float]] = []
        self.warnings: list[str] = []
        self._collapse = Collapse()

    @torch.no_grad()
    def batch(
        self, step: int, queries: Tensor, documents: Tensor, mined: Tensor | None = None, *, bank: MemoryBank | None = None,
        index: RefreshedIndex | None = None, statistics: dict[str, Tensor] | None = None,
    ) -> dict[str, float] | None:  # fmt: skip
        """Measure a step if its number is a multiple of `every`.

        Args:
            step: the number of the step, from 1.
            queries: `[B, d]`, the query vectors.
            documents: `[B + M, d]`, the document vectors: the positive of each query, then the mined negatives.
            mined: int64 `[B, K]`, the rows of `documents` that are the mined negatives of each query; -1 is padding.
            bank: the memory bank, to measure the age of its rows.
            index: the refreshed index, to measure its age and staleness.
            statistics: the statistics of the loss (`InfoNCE.statistics`).

        Returns:
            The measurements by name; None if the step is not measured.
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
        warning = self._collapse.look(rank)
        if warning is not None:
            self.warnings.append(f"step {step}: {warning}")
        self.history.append({"step": step, **values})
        if self.writer is not None:
            self._write(step, values, queries[:size], documents, None if mined is None else mined[:size], bank)
        return values

    def log(self, step: int, values: dict[str, float]) -> None:
        """Do nothing. The trainer calls this with its own numbers, which other callbacks write."""

    def close(self) -> None:
        """Flush the writer."""
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
