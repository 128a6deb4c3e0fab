"""Findings, and the base class of the rules that report them. To report your own, write a subclass of `FindingRule`."""

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
        code: a short name of the problem. It stays the same in all versions.
        severity: one of `SEVERITIES`.
        text: the problem, in a sentence.
        number: the name of the measurement that shows the problem.
        value: the value of that measurement.
        threshold: the limit that the value was compared with.
        ids: ids of example queries or documents.
        fix: a command or a change that would help.
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
        """The finding as JSON values."""
        return asdict(self)


class FindingRule(ABC):
    """A rule that reports one kind of finding.

    `measure` may add measurements. `check` decides from all measurements whether there is a finding. To use your own
    rule, call `hardneg.diagnose(run, rules=[MyRule()])`, which applies it after the built-in rules.

    >>> class FewQueries(FindingRule):
    ...     def check(self, measured, thresholds, run):
    ...         n = measured.numbers["queries"]
    ...         return Finding("few-queries", "info", f"only {n} queries", "queries", n, 100) if n < 100 else None
    >>> FewQueries().check(Measurements({"queries": 20}), Thresholds(), "run").text
    'only 20 queries'
    """

    def measure(self, subject: Subject, rng: np.random.Generator) -> Measurements:
        """Measure what `check` needs in addition to the built-in measurements; by default, nothing.

        Args:
            subject: the negatives of the run, as arrays.
            rng: the random generator for drawing samples.

        Returns:
            The additional numbers and example ids, by name.
        """
        return Measurements()

    @abstractmethod
    def check(self, measured: Measurements, thresholds: Thresholds, run: str) -> Finding | None:
        """Decide whether there is a finding.

        Args:
            measured: all measurements: the built-in ones, and those of all rules.
            thresholds: the limits that the user set, or the default limits.
            run: the folder of the run, for use in the command of `Finding.fix`.

        Returns:
            The finding; None if there is none.
        """
