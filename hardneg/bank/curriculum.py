"""A curriculum: from random negatives to mined ones."""

from __future__ import annotations

from dataclasses import dataclass

from hardneg.errors import UsageError


@dataclass(frozen=True)
class Curriculum:
    """From easy to hard: the share of mined negatives grows from `start` to `end` over `batches` batches; the rest is random."""

    start: float = 1.0
    end: float = 1.0
    batches: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.start <= 1 and 0 <= self.end <= 1 and self.batches >= 1):
            raise UsageError("the shares of a curriculum must be 0 to 1, its batches 1 or more")

    def share(self, batch: int) -> float:
        """The share of mined negatives in batch number `batch`, counted from 0 over all epochs."""
        return self.start + (self.end - self.start) * min(1.0, batch / self.batches)
