"""The progress of a training: its step, what was evaluated, and what was said."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Progressed:
    """The progress of a training, as checkpoints keep it.

    Attributes:
        step: number of weight updates so far.
        evaluations: the measures of each evaluation by name, with its `step`.
        best: the evaluation whose first measure is the highest; None: there was no evaluation yet.
        warnings: all warnings so far.
        before: the measures of the encoder before the first step; None: they were not taken.
    """

    step: int = 0
    evaluations: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] | None = None
    warnings: list[str] = field(default_factory=list)
    before: dict[str, float] | None = None

    def record(self, measures: dict[str, float], first: str) -> bool:
        """Keep an evaluation; returns whether it is the best so far, by the measure `first`."""
        self.evaluations.append(measures)
        if self.best is not None and measures[first] <= self.best[first]:
            return False
        self.best = measures
        return True

    def no_better(self, first: str, patience: int | None) -> bool:
        """Whether the last evaluations, as many as `patience`, were no better than the best one before them."""
        scores = [each[first] for each in self.evaluations]
        return patience is not None and len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])

    def harm(self, first: str) -> str | None:
        """A warning, if no evaluation was as good as the one before the first step."""
        if self.before is None or self.best is None or self.best[first] >= self.before[first]:
            return None
        return (
            f"the training made the encoder worse: {first} was {self.before[first]:.4f} before it and {self.best[first]:.4f} at "
            f"best. Keep the encoder from before, and try a lower learning rate, fewer epochs (with a loss near 0, pairs are learned "
            f"by heart), or other filters, if many negatives may be false"
        )
