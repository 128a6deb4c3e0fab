"""Findings while training: the rules of a diagnosis, with the same words, applied to the numbers of its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from hardneg.diagnostics.estimates import Measurements
from hardneg.diagnostics.findings.base import Finding, FindingRule
from hardneg.diagnostics.findings.rules import RULES
from hardneg.diagnostics.findings.thresholds import Thresholds

IN_BATCHES = ("taught-out", "masked-much")  # findings whose numbers a batch has

LIVE = (*IN_BATCHES, "stale")  # findings whose numbers a training measures, too

TIMES = 3  # a finding is said when so many measurements in a row show it: a single batch may be unlucky

_NAMES = {"overlap": "overlap_with_fresh"}  # what the log of a training calls otherwise


class Streak(TypedDict):
    """Since which step a finding holds, in how many measurements, and whether it was said."""

    since: int
    times: int
    said: bool


class LiveFindings:
    """Applies rules to one measurement after another.

    Args:
        thresholds: the limits; None: the default limits.
        codes: the built-in findings to look for.
        rules: your own rules. They see the numbers of the training by their names in its log.
        drawn_by: how the training draws negatives, such as `simans`, which no fix recommends then; None: not known.

    Attributes:
        streaks: the findings that hold now, by code.

    >>> live = LiveFindings()
    >>> [bool(live.look(step, {"teaching": 0.2, "temperature": 0.05})) for step in (100, 200, 300, 400)]
    [False, False, True, False]
    """

    def __init__(
        self,
        thresholds: Thresholds | None = None,
        codes: Sequence[str] = LIVE,
        rules: Sequence[FindingRule] = (),
        drawn_by: str | None = None,
    ) -> None:
        self.drawn_by = drawn_by
        self.thresholds = thresholds or Thresholds()
        self.rules = [rule for rule in RULES if getattr(rule, "code", None) in codes] + list(rules)
        self.streaks: dict[str, Streak] = {}

    def look(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Look at the numbers of a step. Returns a sentence for each finding that now holds for the third time in a row."""
        found = self.found(values)
        self.streaks = {code: streak for code, streak in self.streaks.items() if code in found}
        said = []
        for code, finding in found.items():
            streak = self.streaks.setdefault(code, {"since": step, "times": 0, "said": False})
            streak["times"] += 1
            if streak["times"] >= TIMES and not streak["said"]:
                streak["said"] = True
                said.append(sentence(finding, streak["since"]))
        return said

    def found(self, values: Mapping[str, float]) -> dict[str, Finding]:
        """The findings in these numbers, by code."""
        measured = Measurements({_NAMES.get(name, name): value for name, value in values.items()})
        if self.drawn_by is not None:
            measured.numbers["drawn_by"] = self.drawn_by
        each = [rule.check(measured, self.thresholds, "") for rule in self.rules if _measured(rule, measured)]
        return {finding.code: finding for finding in reversed(each) if finding is not None}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {code: dict(streak) for code, streak in self.streaks.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned. Raises KeyError, TypeError or ValueError for anything else."""
        if not isinstance(state, Mapping) or not all(isinstance(each, Mapping) for each in state.values()):
            raise ValueError("the findings while training are no streaks by code")
        self.streaks = {
            str(code): {"since": int(each["since"]), "times": int(each["times"]), "said": bool(each["said"])}
            for code, each in state.items()
        }


def _measured(rule: FindingRule, measured: Measurements) -> bool:
    """Whether the number of a built-in rule was measured; a rule of one's own decides itself."""
    number = getattr(rule, "number", None)
    return number is None or measured.numbers.get(number) is not None


def sentence(finding: Finding, since: int) -> str:
    """A finding, since when it holds, and what would help."""
    return f"{told(finding, since)}. {finding.fix[:1].upper()}{finding.fix[1:]}"


def told(finding: Finding, since: int) -> str:
    """A finding, and since when it holds."""
    return f"since step {since:,}: {finding.text}"
