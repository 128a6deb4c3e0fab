"""Show a diagnosis, a comparison, a ranking, and the diagnosis of a training."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from hardneg.diagnostics.labels import SLICE_MEASURES, USEFUL, comparison_rows, number_rows, ranking_rows, scored_lines
from hardneg.diagnostics.live_findings import TIMES

from . import show

_COLORS = {"error": "bold red", "warning": "yellow", "info": "cyan"}


def print_diagnosis(value: dict[str, Any]) -> None:
    """Print the numbers and findings of a diagnosis."""
    console = show._console()
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, style="dim")
    for row in number_rows(value["numbers"]):
        show._row(table, *row)
    show._show(console, f"diagnosed {value['run']}", table)
    _slices(console, value["numbers"].get("slices", []))
    _findings(console, value["findings"])
    if value.get("alternatives"):
        _alternatives(console, value["alternatives"])


def _findings(console: Any, findings: list[dict[str, Any]], none: str = "no problems found") -> None:
    if not findings:
        show._print(console, (none, "green"))
    for finding in findings:
        color = _COLORS[finding["severity"]]
        show._print(console, (finding["severity"], color), f" {finding['text']}")
        if finding["ids"]:
            show._print(console, f"    look at: {', '.join(finding['ids'][:5])}")
        if finding["fix"]:
            show._print(console, f"    fix: {finding['fix']}")


def _slices(console: Any, slices: list[dict[str, Any]]) -> None:
    """Print the three worst slices of the queries, if they differ at all."""
    for row in [each for each in slices[:3] if each["z"] is not None and each["z"] > 2]:
        each = row[row["worst"]]
        text = f"{SLICE_MEASURES[row['worst']]} {each['value']:.1%} ({each['low']:.1%} to {each['high']:.1%})"
        show._print(console, f"slice by {row['by']}, {row['value']} ({row['queries']:,} queries): {text}")


def print_training_diagnosis(value: dict[str, Any]) -> None:
    """Print what the log of a training says."""
    console = show._console()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("number", "first", "last"):
        table.add_column(name, justify="left" if name == "number" else "right", no_wrap=True)
    for name, last in value["numbers"].items():
        show._row(table, name, f"{value['first'][name]:.4g}", f"{last:.4g}")
    state = "finished" if value["finished"] else "not finished"
    show._show(console, f"diagnosed the training {value['training']}: {value['steps']:,} steps, {state}", table)
    if value["unreadable_lines"]:
        show._print(console, ("note:", "yellow"), f" {value['unreadable_lines']:,} lines of the log could not be read")
    for warning in value["warnings"]:
        show._print(console, ("warned:", "yellow"), f" {warning}")
    _findings(console, value["findings"], f"no problem that the last {TIMES} entries all show")


def _alternatives(console: Any, tried: list[dict[str, Any]]) -> None:
    """Print what the fixes would do, side by side."""
    table = Table()
    table.add_column("filters added", overflow="fold")  # where there is little room, the numbers stay whole
    for name in ("false", "score", "above", "teach", "near", "short"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in tried:
        false = "?" if each["false_share"] is None else f"{each['false_share']:.1%}"
        other = f"none: sampler {each['sampler']}" if each.get("sampler") else "none"
        show._row(
            table, " ".join(each["added"]) or other, false, f"{each['mean_score']:.3f}", f"{each['above_positive']:.1%}",
            "?" if each["teaching"] is None else f"{each['teaching']:.1%}",
            "?" if each["near_duplicates"] is None else f"{each['near_duplicates']:.1%}", f"{each['short']:.1%}",
        )  # fmt: skip
    show._show(console, "tried on these candidates", table)
    show._print(
        console,
        "score: the mean; above: that score above the positive; teach: that still teach; near: with nearly the vector of one before "
        "them; short: queries left with too few",
    )


def print_comparison(value: dict[str, Any]) -> None:
    """Print what changed between two runs."""
    console = show._console()
    names = [value[side]["run"] for side in ("before", "after")]
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for name in ("before", "after"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in comparison_rows(value):
        show._row(table, *row)
    show._show(console, f"{names[1]} compared with {names[0]}", table)
    flow = [(before, after, n) for before, each in value["verdict_flow"].items() for after, n in each.items()]
    for before, after, count in sorted(flow, key=lambda row: -row[2]):
        if before != after:
            show._print(console, f"{count:>10,} candidates: {before} -> {after}")
    for change in value["changes"]:
        color = _COLORS[change["severity"]]
        show._print(console, f"{change['change']}: ", (change["severity"], color), f" {change['text']}")
    if not value["changes"]:
        show._print(console, "no finding has changed")
    print_ranking(value["ranking"])


def print_ranking(value: dict[str, Any]) -> None:
    """Print which runs promise to teach most."""
    console = show._console()
    heads, rows = ranking_rows(value)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in heads:
        table.add_column(name, justify="left" if name == "run" else "right", no_wrap=True)
    for row in rows:
        show._row(table, *row)
    told = f"false negatives by {value['false_by']}" if value["false_by"] != "unknown" else "false negatives not known"
    show._show(console, f"what the negatives promise to teach, of {value['queries']:,} queries ({told})", table)
    show._print(console, USEFUL)
    for line in scored_lines(value):
        show._print(console, line)
    for note in value["notes"]:
        show._print(console, ("note:", "yellow"), f" {note}")
