"""What a posterior announced: the share of false negatives that it expects, and the selection that it was said for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hardneg.false_negatives.model import changes, selection_of
from hardneg.storage.json_files import is_number

_APART = 0.1  # relative: what a share may differ by, with the same selection, before it is said


@dataclass(frozen=True)
class Announced:
    """The expectation in the report of a posterior.

    Attributes:
        expected: the share of negatives that are expected to be false.
        corrected: this share, divided by the mean probability of these negatives: 1 without judgements, which correct it.
        selection: the selection that it was said for, as `selection_of` writes it; empty if the file does not tell.
    """

    expected: float
    corrected: float
    selection: dict[str, Any]

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Announced | None:
        """What this report announces; None if it announces nothing, as one with a guarantee does.

        >>> Announced.of({"expected": 0.05}), Announced.of({"expected": "much"})
        (Announced(expected=0.05, corrected=1.0, selection={}), None)
        """
        expected, corrected = (
            _positive(report.get(name, other)) for name, other in (("expected", 0.0), ("corrected", 1.0))
        )
        chosen = report.get("selection")
        if expected is None or corrected is None:
            return None
        return cls(expected, corrected, dict(chosen) if isinstance(chosen, Mapping) else {})

    def changed(self, config: Mapping[str, Any]) -> list[str]:
        """How this configuration selects otherwise, such as `negatives 7 then, 3 now`; empty if it does not, or it is not known."""
        return changes(self.selection, selection_of(config))

    def differs(self, probability: float, config: Mapping[str, Any]) -> bool:
        """Whether negatives with this mean probability are others than those that the share was announced for."""
        return bool(self.changed(config)) or abs(probability * self.corrected - self.expected) > _APART * self.expected


def _positive(value: Any) -> float | None:
    """A number from a file; None if it is no positive, finite one."""
    return float(value) if is_number(value) and value > 0 else None
