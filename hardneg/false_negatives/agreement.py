"""How well a judge agrees with a person: Cohen's kappa, and the rates of its two errors."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import beta

from hardneg.storage.arrays import Mask


@dataclass(frozen=True)
class Agreement:
    """A judge held against a person, on pairs that both judged.

    Attributes:
        pairs: number of pairs.
        both, judge_only, person_only, neither: how many were called relevant by whom.
        unanswered: how many more the person judged, and the judge did not answer.
        of: the person's, or what was taken for the truth.
    """

    pairs: int
    both: int
    judge_only: int
    person_only: int
    neither: int
    unanswered: int = 0
    of: str = "a person"

    @classmethod
    def between(cls, judge: Mask, person: Mask, unanswered: int = 0, of: str = "a person") -> Agreement:
        """From the answers of both, bool `[m]`."""
        parts = (judge & person, judge & ~person, ~judge & person, ~judge & ~person)
        both, judge_only, person_only, neither = (int(part.sum()) for part in parts)
        return cls(len(judge), both, judge_only, person_only, neither, unanswered, of)

    @property
    def kappa(self) -> float:
        """Cohen's kappa (1960): 1 is perfect agreement, 0 that of chance; NaN where both always give one and the same answer.

        >>> round(Agreement(50, 20, 5, 10, 15).kappa, 3)
        0.4
        """
        observed, chance = self._shares()
        return float("nan") if chance == 1 else (observed - chance) / (1 - chance)

    def _shares(self) -> tuple[float, float]:
        n = max(self.pairs, 1)
        judge, person = (self.both + self.judge_only) / n, (self.both + self.person_only) / n
        return (self.both + self.neither) / n, judge * person + (1 - judge) * (1 - person)

    @property
    def kappa_interval(self) -> tuple[float, float]:
        """A 95 % interval of kappa for large samples (Fleiss, Cohen and Everitt 1969)."""
        n = max(self.pairs, 1)
        kappa, (_, chance) = self.kappa, self._shares()
        if math.isnan(kappa):
            return -1.0, 1.0
        cells = np.array([[self.both, self.judge_only], [self.person_only, self.neither]]) / n
        rows, columns = cells.sum(1), cells.sum(0)
        same = sum(cells[i, i] * (1 - (rows[i] + columns[i]) * (1 - kappa)) ** 2 for i in (0, 1))
        other = (1 - kappa) ** 2 * sum(cells[i, 1 - i] * (columns[i] + rows[1 - i]) ** 2 for i in (0, 1))
        variance = (same + other - (kappa - chance * (1 - kappa)) ** 2) / (n * (1 - chance) ** 2)
        half = 1.96 * math.sqrt(max(float(variance), 0.0))
        return max(-1.0, kappa - half), min(1.0, kappa + half)

    @property
    def missed(self) -> tuple[float, float, float]:
        """(share, low, high) of the relevant documents that the judge calls not relevant, with an exact 95 % interval."""
        return _rate(self.person_only, self.both + self.person_only)

    @property
    def false_alarms(self) -> tuple[float, float, float]:
        """(share, low, high) of the documents that are not relevant that the judge calls relevant."""
        return _rate(self.judge_only, self.judge_only + self.neither)

    def to_json(self) -> dict[str, Any]:
        """The counts and the rates, with None where nothing can be said."""
        names = ("share", "low", "high")
        kappa = self.kappa
        return {
            **asdict(self),
            "kappa": None if math.isnan(kappa) else kappa,
            "kappa_interval": list(self.kappa_interval),
            **{
                name: {key: None if math.isnan(value) else value for key, value in zip(names, rate, strict=True)}
                for name, rate in (("missed", self.missed), ("false_alarms", self.false_alarms))
            },
        }


def _rate(count: int, of: int) -> tuple[float, float, float]:
    """A share with its exact 95 % interval (Clopper and Pearson 1934).

    >>> [round(value, 3) for value in _rate(0, 30)]
    [0.0, 0.0, 0.116]
    """
    low = 0.0 if count == 0 else float(beta.ppf(0.025, count, of - count + 1))
    high = 1.0 if count == of else float(beta.ppf(0.975, count + 1, of - count))
    return count / of if of else float("nan"), low, high
