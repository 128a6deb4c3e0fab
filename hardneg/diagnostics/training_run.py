"""Diagnose a training from its folder: what its log says about the negatives, over time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hardneg import registry
from hardneg.diagnostics.findings.base import SEVERITIES, Finding, FindingRule
from hardneg.diagnostics.findings.thresholds import Thresholds
from hardneg.diagnostics.live_findings import TIMES, LiveFindings, told
from hardneg.diagnostics.measures.batch import COLLAPSE
from hardneg.errors import RunError, UsageError
from hardneg.storage.json_files import decode_json, is_number

LOG_BYTES = 1 << 30  # a larger log is refused


@dataclass(frozen=True)
class TrainingDiagnosis:
    """What the log of a training says.

    Attributes:
        name: the folder of the training.
        entries: the numbers of each logged step, by name, with its number as `step`, in order of steps.
        finished: whether the training has ended.
        warnings: what the training itself warned of; empty for one that is under way.
        findings: the findings at the last step that has their number, each with the step since which it holds in its text, the most
            severe first.
        unreadable: the number of lines of the log that are no entry, such as one cut off by a kill.
    """

    name: str
    entries: list[dict[str, float]]
    finished: bool
    warnings: list[str]
    findings: list[Finding]
    unreadable: int

    @property
    def steps(self) -> int:
        """The last logged step."""
        return int(self.entries[-1]["step"]) if self.entries else 0

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of each entry that has a number.

        Args:
            name: the name in the log, such as `loss`, `evaluation/ndcg@10` or `rejected/margin`.
        """
        return [(int(each["step"]), each[name]) for each in self.entries if name in each]

    def names(self, start: str = "") -> list[str]:
        """The names of all numbers in the log that begin so, in order of their appearance."""
        found = dict.fromkeys(name for each in self.entries for name in each if name != "step")
        return [name for name in found if name.startswith(start)]

    @property
    def refreshes(self) -> list[int]:
        """The steps at which new negatives came into use, after the first ones."""
        return [step for step, _ in self.series("swap_seconds")]

    def fails(self, level: str) -> bool:
        """Whether any finding has this severity or a higher one. Raises UsageError for an unknown severity."""
        if level not in SEVERITIES:
            raise UsageError(f"unknown severity {level!r}; known: {', '.join(SEVERITIES)}")
        return any(SEVERITIES.index(each.severity) >= SEVERITIES.index(level) for each in self.findings)

    def to_html(self, path: str | Path) -> None:
        """Write a page with curves of all numbers as one HTML file without scripts.

        Raises:
            DataError: another file is at `path`.
        """
        registry.verb("training_page")(self, path)

    def to_json(self) -> dict[str, Any]:
        """The diagnosis as printed by `hardneg diagnose --json`."""
        last = {name: self.series(name)[-1][1] for name in self.names()}
        return {
            "training": self.name,
            "steps": self.steps,
            "finished": self.finished,
            "refreshes": self.refreshes,
            "numbers": last,
            "first": {name: self.series(name)[0][1] for name in self.names()},
            "warnings": self.warnings,
            "findings": [each.to_json() for each in self.findings],
            "unreadable_lines": self.unreadable,
        }


def is_training_log(folder: str | Path) -> bool:
    """Whether a folder holds a training rather than a run."""
    return (Path(folder) / "train.json").is_file() and not (Path(folder) / "run.json").exists()


def diagnose_training(
    folder: str | Path, *, thresholds: Thresholds | None = None, rules: Sequence[FindingRule] = ()
) -> TrainingDiagnosis:
    """Read the log of a training, finished or not, and report what its negatives lack.

    The findings are those of a run with the same words, from the numbers that a training logs: `teaching`, `masked`, `drift` and
    `overlap`; and vectors that collapsed. A finding is reported if the last three entries that have its number show it.

    Args:
        folder: the folder of the training.
        thresholds: the limits beyond which a number becomes a finding; None for the default limits.
        rules: your own rules, which see the numbers of each entry by their names in the log.

    Raises:
        RunError: there is no training, or its log cannot be read.
    """
    where = Path(folder)
    head = decode_json(where / "train.json")
    if not str(head.get("schema", "")).startswith("hardneg-train"):
        raise RunError(f"{where} is no training: its train.json has no schema of one")
    entries, unreadable = read_log(where / "log.jsonl")
    warnings = head.get("warnings", [])
    told = [str(each) for each in warnings] if isinstance(warnings, list) else []
    options = head.get("options")
    drawn_by = options.get("negative_sampling") if isinstance(options, dict) else None
    findings = _findings(entries, thresholds, rules, drawn_by if isinstance(drawn_by, str) else None)
    findings += [] if (gap := _too_little(entries, unreadable)) is None else [gap]
    return TrainingDiagnosis(str(where), entries, head.get("finished") is True, told, findings, unreadable)


def read_log(path: Path) -> tuple[list[dict[str, float]], int]:
    """(the entries of a training's log in order of steps, only their finite numbers; the number of lines that are no entry).

    Raises:
        RunError: there is no such file, or it has more than 1 GB.
    """
    try:
        if path.stat().st_size > LOG_BYTES:
            raise RunError(f"{path} has more than {LOG_BYTES >> 20} MB")
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError as error:
        raise RunError(
            f"{path} cannot be read ({error.strerror or error}): has the training logged a step yet?"
        ) from None
    entries, bad = [], 0
    for line in lines:
        try:
            value = json.loads(line)
            step = value["step"]
            if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 1 << 63:
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            bad += 1
            continue
        numbers = {str(name): float(number) for name, number in value.items() if is_number(number)}
        entries.append(numbers)
    return sorted(entries, key=lambda each: each["step"]), bad


def _findings(
    entries: Sequence[dict[str, float]],
    thresholds: Thresholds | None,
    rules: Sequence[FindingRule],
    drawn_by: str | None,
) -> list[Finding]:
    live, last = LiveFindings(thresholds, rules=rules, drawn_by=drawn_by), {}
    for entry in entries:
        if any(name.startswith("evaluation/") for name in entry):
            continue  # an evaluation says nothing of the negatives
        live.look(int(entry["step"]), entry)
        last = live.found(entry)
    kept = [(code, streak["since"]) for code, streak in live.streaks.items() if streak["times"] >= TIMES]
    found = [replace(last[code], text=told(last[code], since)) for code, since in kept]
    collapsed = _collapsed(entries)
    found += [] if collapsed is None else [collapsed]
    return sorted(found, key=lambda each: -SEVERITIES.index(each.severity))


def _too_little(entries: Sequence[dict[str, float]], unreadable: int) -> Finding | None:
    """A finding if the log is too short, or too damaged, to tell anything."""
    readable = len([each for each in entries if len(each) > 1])
    if readable >= TIMES and unreadable <= readable:
        return None
    text = (
        f"the log tells too little: {readable:,} entries can be read and {unreadable:,} lines cannot, and a finding needs {TIMES} "
        f"entries that show it"
    )
    fix = "log more often (--log-every), or train longer"
    return Finding(
        "short-log", "warning" if not readable or unreadable else "info", text, "entries", readable, TIMES, [], fix
    )


def _collapsed(entries: Sequence[dict[str, float]]) -> Finding | None:
    """A finding if the effective rank fell below a quarter of the first one, and stayed there."""
    ranks = [(int(each["step"]), each["effective_rank"]) for each in entries if "effective_rank" in each]
    if not ranks or ranks[-1][1] >= COLLAPSE * ranks[0][1]:
        return None
    first, now = ranks[0][1], ranks[-1][1]
    since = ranks[-1][0]
    for step, value in reversed(ranks):
        if value >= COLLAPSE * first:
            break
        since = step
    text = (
        f"since step {since:,}: the vectors use few directions: their effective rank fell from {first:.1f} to {now:.1f}"
    )
    fix = "train with a higher temperature or a lower learning rate, or mine less hard negatives"
    return Finding("collapse", "error", text, "effective_rank", now, COLLAPSE * first, [], fix)
