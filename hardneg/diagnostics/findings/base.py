"""Findings, and the base class of the rules that make them. Your own finding is a subclass of `FindingRule`."""

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
    """A problem of the negatives.

    Attributes:
        code: a short name that never changes.
        severity: one of `SEVERITIES`.
        text: the problem, in a sentence.
        number: the name of the measurement.
        value: the measured value.
        threshold: the limit that the value was compared with.
        ids: example queries or documents.
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
    """A kind of finding. `hardneg.diagnose(run, rules=[MyRule()])` applies it after the built-in rules.

    `measure` may add measurements; `check` decides whether they are a finding.
    """

    def measure(self, subject: Subject, rng: np.random.Generator) -> Measurements:
        """Numbers by name, and ids of examples by name. By default there are none in addition to the built-in measurements.

        Args:
            subject: the negatives of the run, as arrays.
            rng: random generator for samples.
        """
        return Measurements()

    @abstractmethod
    def check(self, measured: Measurements, thresholds: Thresholds, run: str) -> Finding | None:
        """The finding; None if there is none.

        Args:
            measured: all measurements, of the built-in measures and of the rules.
            thresholds: the limits that the user set.
            run: the folder of the run, for commands that would help.
        """
