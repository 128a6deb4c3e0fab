"""What a finding is, and the base of the rules that find them: a subclass is a finding of your own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from hardneg.diagnostics.estimates import Measurements
from hardneg.diagnostics.findings.thresholds import Thresholds
from hardneg.diagnostics.subject import Subject

SEVERITIES = ("info", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        code: a short name that stays the same.
        severity: one of `SEVERITIES`.
        text: what is wrong, in a sentence.
        number: the name of what was measured; value: what it is; threshold: what it was compared with.
        ids: queries or documents to look at.
        fix: the command or option that would help.
    """

    code: str
    severity: str
    text: str
    number: str
    value: float
    threshold: float
    ids: list[str] = field(default_factory=list)
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class FindingRule(ABC):
    """One kind of finding: `hardneg.diagnose(run, rules=[MyRule()])` asks it after the built-in ones.

    `measure` may measure something new; `check` says whether a measurement is a finding.
    """

    def measure(self, subject: Subject, rng: np.random.Generator) -> Measurements:
        """Numbers, and ids to look at, by name; by default nothing beyond the built-in measurements.

        Args:
            subject: the negatives of the run, as arrays.
            rng: for samples.
        """
        return Measurements()

    @abstractmethod
    def check(self, measured: Measurements, thresholds: Thresholds, run: str) -> Finding | None:
        """The finding, if there is one.

        Args:
            measured: everything that was measured, by the built-in measures and by the rules.
            thresholds: the limits that the user set.
            run: the run's folder, for commands that would help.
        """
