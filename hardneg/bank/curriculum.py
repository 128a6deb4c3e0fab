"""A curriculum: from random negatives to mined ones."""

from __future__ import annotations

from dataclasses import dataclass

from hardneg.losses.arguments import number, whole


@dataclass(frozen=True)
class Curriculum:
    """From easy to hard: the share of mined negatives grows from `start` to `end` over `batches` batches; the rest is random.

    Raises:
        UsageError: a share is not 0 to 1, or the number of batches is below 1.
    """

    start: float = 1.0
    end: float = 1.0
    batches: int = 1

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            number(f"curriculum: {name}", getattr(self, name), 0, 1)
        whole("curriculum: batches", self.batches, 1)

    def share(self, batch: int) -> float:
        """The share of mined negatives in batch number `batch`, counted from 0 over all epochs."""
        return self.start + (self.end - self.start) * min(1.0, batch / self.batches)
