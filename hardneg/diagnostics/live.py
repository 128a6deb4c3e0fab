"""Diagnostics during training: hardness and age of the negatives, and collapse of the vectors, every few steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hardneg.bank.memory_bank import MemoryBank
from hardneg.diagnostics.findings.base import FindingRule
from hardneg.diagnostics.findings.thresholds import Thresholds
from hardneg.diagnostics.live_findings import LiveFindings
from hardneg.diagnostics.measures.batch import Collapse, batch_hardness, effective_rank
from hardneg.errors import UsageError
from hardneg.refresh.refreshed_index import RefreshedIndex
from hardneg.refresh.staleness import movement_of

ALLOWED = 1.0  # seconds that measurements may take in any case, so that a short training is measured as well


class Diagnostics:
    """Measures training batches, as a callback of `hardneg.train` or in your own training loop.

    The cost is bounded: a measurement is put off while all of them together have taken more than one second and `budget` of the
    time since the first step, 2 % unless another is given. Which steps are measured then depends on the machine; the
    training itself does not.

    Args:
        writer: a TensorBoard writer (`torch.utils.tensorboard.SummaryWriter`, or any object with `add_scalar` and
            `add_histogram`), or one with `write(step, values)`: `hardneg.diagnostics.JsonLines(path)` or
            `hardneg.diagnostics.Wandb(run)`; or a list of several. None keeps the numbers in `history` only.
        every: the number of steps from one measurement to the next.
        rows: the largest number of rows of a batch to measure. It limits the cost of a measurement.
        budget: the largest share of the time that measurements may take; 1 for no limit.
        thresholds: the limits beyond which a number becomes a finding; None: the default limits.
        rules: your own rules, which see the numbers of each measurement.
        warn: called with each warning.

    Attributes:
        history: the measurements of each measured step, by name, with its number as `step`.
        warnings: what was found, with the step: collapsed vectors, and the findings of `LiveFindings`.
        put_off: the number of measurements that were left out to keep within the budget.

    Raises:
        UsageError: `every` is below 1, `rows` below 2, `budget` not above 0, or a writer has none of these methods.

    >>> watch = Diagnostics(every=10)
    >>> queries = torch.eye(3)
    >>> watch.batch(10, queries, queries, mined=torch.tensor([[1], [2], [0]]))["margin"]
    1.0
    """

    def __init__(
        self, writer: Any = None, *, every: int = 50, rows: int = 512, budget: float = 0.02, thresholds: Thresholds | None = None,
        rules: Sequence[FindingRule] = (), warn: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        if every < 1 or rows < 2 or not budget > 0:
            raise UsageError(f"every={every} must be 1 or more, rows={rows} 2 or more, and budget={budget} above 0")
        self.writers = [] if writer is None else list(writer) if isinstance(writer, list | tuple) else [writer]
        for each in self.writers:
            if not hasattr(each, "write") and not (hasattr(each, "add_scalar") and hasattr(each, "add_histogram")):
                raise UsageError(
                    f"the writer {each!r} has neither write(step, values) nor add_scalar and add_histogram"
                )
        self.every, self.rows, self.budget, self.warn = every, rows, budget, warn
        self.history: list[dict[str, float]] = []
        self.warnings: list[str] = []
        self.put_off = 0
        self._collapse, self._findings = Collapse(), LiveFindings(thresholds, rules=rules)
        self._began: float | None = None
        self._spent = 0.0

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
        start = time.perf_counter()
        if self._began is None:
            self._began = start
        if step % self.every:
            return None
        if self._spent > ALLOWED + self.budget * (start - self._began):
            self.put_off += 1
            return None
        values = self._values(queries, documents, mined, bank, index, statistics)
        found = [self._collapse.look(values["effective_rank"]), *self._findings.look(step, values)]
        for warning in found:
            if warning is not None:
                self.warnings.append(f"step {step}: {warning}")
                if self.warn is not None:
                    self.warn(self.warnings[-1])
        self.history.append({"step": step, **values})
        size = min(len(queries), self.rows)
        for writer in self.writers:
            if hasattr(writer, "write"):
                writer.write(step, values)
            else:
                self._write(
                    writer, step, values, queries[:size], documents, None if mined is None else mined[:size], bank
                )
        self._spent += time.perf_counter() - start
        return values

    def _values(
        self, queries: Tensor, documents: Tensor, mined: Tensor | None, bank: MemoryBank | None, index: RefreshedIndex | None,
        statistics: dict[str, Tensor] | None,
    ) -> dict[str, float]:  # fmt: skip
        size = min(len(queries), self.rows)
        values = {"effective_rank": effective_rank(documents[: self.rows])}
        if mined is not None:
            temperature = float(statistics["temperature"]) if statistics and "temperature" in statistics else None
            values |= batch_hardness(queries[:size], documents, mined[:size].to(documents.device), temperature)
        for name in ("loss", "temperature", "masked"):
            if statistics and name in statistics:
                values[name] = float(statistics[name])
        if bank is not None:
            ages = bank.statistics()
            values |= {"bank_rows": ages["rows"], "bank_age": ages["mean_age"]}
        if index is not None:
            values |= {"age": float(index.age), **movement_of(index)}
        return values

    def log(self, step: int, values: dict[str, float]) -> None:
        """Do nothing. The trainer calls this with its own numbers, which other callbacks write."""

    def close(self) -> None:
        """Flush the writers."""
        for writer in self.writers:
            if hasattr(writer, "flush"):
                writer.flush()

    def _write(
        self, writer: Any, step: int, values: dict[str, float], queries: Tensor, documents: Tensor, mined: Tensor | None,
        bank: MemoryBank | None,
    ) -> None:  # fmt: skip
        for name, value in values.items():
            writer.add_scalar(f"negatives/{name}", value, step)
        q, d = (torch.nn.functional.normalize(x.float(), dim=1).cpu() for x in (queries, documents))
        writer.add_histogram("negatives/positive_scores", (q * d[: len(q)]).sum(1), step)
        if mined is not None and bool((mined >= 0).any()):
            scores = torch.einsum("bd,bkd->bk", q, d[mined.cpu().clamp(min=0)])[mined.cpu() >= 0]
            writer.add_histogram("negatives/mined_scores", scores, step)
        if bank is not None and len(bank):
            writer.add_histogram("negatives/bank_ages", bank.view().ages.cpu(), step)
