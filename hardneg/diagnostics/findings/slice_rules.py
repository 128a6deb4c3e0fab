"""The built-in rule about slices: queries of one kind that are far worse than the others, and what helps them."""

from __future__ import annotations

import shlex
from typing import Any

from hardneg.diagnostics.estimates import Estimate, Measurements
from hardneg.diagnostics.findings.base import Finding, FindingRule
from hardneg.diagnostics.findings.thresholds import Thresholds

_FAR_Z = 4.0  # standard errors by which a slice must differ: of 100 slices, one differs so much by chance in 300 runs

_NEARLY_ALL = 0.9  # share from which a slice as a whole is at fault, rather than some of its queries

# What tells most comes first: where the positive is not found, everything else follows from that.
_SAID = {
    "positive_lost": "the positive of {:.0%} is not found",
    "few": "{:.0%} have fewer negatives than asked for",
    "false_share": "{:.0%} of their negatives are relevant",
    "above_positive": "{:.0%} of their negatives score above the positive",
}


class WorstSlice(FindingRule):
    """Reports the slice of the queries that is worst, if it is much worse than all queries together."""

    def check(self, measured: Measurements, thresholds: Thresholds, run: str) -> Finding | None:
        """Look for the first slice with a measure that is far from that of the others, and high."""
        for row in measured.numbers.get("slices", []):
            limits = {name: limit for name in _SAID if (limit := _limit(row, name, measured, thresholds)) is not None}
            if not limits:
                continue
            first = next(iter(limits))
            said = [_SAID[name].format(row[name]["value"]) for name in limits]
            said[0] += f" ({row[first]['low']:.0%} to {row[first]['high']:.0%}), {_whole(measured, first):.0%} of all"
            text = f"queries with {row['by']} {row['value']!r} ({row['queries']:,}) are far worse than the others: {'; '.join(said)}"
            value = float(row[first]["value"])
            fix = _fix(first, value, measured, run)
            return Finding("slice", "warning", text, "slices", value, limits[first], list(row.get("ids", [])), fix)
        return None


def _limit(row: dict[str, Any], name: str, measured: Measurements, thresholds: Thresholds) -> float | None:
    """The limit that a measure of a slice is above; None if it is not, or not far from that of the other queries."""
    whole = _whole(measured, name)
    if name not in row or whole is None or row[name]["z"] < _FAR_Z:
        return None
    limit = max(thresholds.slice_times * whole, whole + thresholds.slice_more)
    return limit if row[name]["value"] > limit else None


def _fix(name: str, value: float, measured: Measurements, run: str) -> str:
    """What helps queries of which a measure is bad."""
    if name in ("positive_lost", "above_positive") and value >= _NEARLY_ALL:
        return (
            "look at these queries: do labels, ids and vectors of this slice belong together (hardneg inspect shows documents as they "
            "are read)? Else the encoder knows nothing of them"
        )
    if name == "few":
        most = measured.numbers.get("rejects_most") or "with most verdicts"
        return f"look at these queries: which verdicts have their candidates? Loosen the filter {most}, or mine deeper (--depth)"
    if name == "false_share":
        place, posterior = shlex.quote(run), shlex.quote(f"posterior:{run}/posterior.json")
        if measured.numbers.get("false_source") == "groups":
            return f"hardneg select {place} --add-filter group --out {shlex.quote(run + '-2')}"
        return f"hardneg calibrate {place} && hardneg select {place} --add-filter {posterior} --out {shlex.quote(run + '-2')}"
    return "look at these queries: are their positives right? Else take an encoder that knows such queries, or train without them"


def _whole(measured: Measurements, name: str) -> float | None:
    """The measure of all queries together; None if it was not measured."""
    if name == "positive_lost":
        hits = measured.numbers.get("hit_rate")
        return None if hits is None else 1 - float(hits.value)
    number = measured.numbers.get(name)
    if number is None:
        return None
    return float(number.value if isinstance(number, Estimate) else number)
