"""Show a posterior."""

from __future__ import annotations

import re
from typing import Any

from rich.table import Table

from . import show
from .plain import quoted

_DISAGREE = 0.01  # chance of such differences, if what was learned is right

_FEW_TERMS = 8  # weights of a posterior that are shown one by one


def print_posterior(value: dict[str, Any], run: str, path: str) -> None:
    """Print a posterior (as JSON values) that was learned from `run` and saved to `path`."""
    console = show._console()
    report, guarantee = value["report"], value["guarantee"]
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    show._row(table, "learned from", value["source"])
    for label, key, form in (
        ("known positives among the candidates", "known_positives", "{:,}"),
        ("judged pairs", "judged", "{:,}"),
        ("judged pairs that are relevant", "relevant", "{:,}"),
        ("relevant candidates (estimate)", "relevant_share", "{:.1%}"),
        ("expected calibration error", "ece", "{:.3f}"),
    ):
        if key in report:
            show._row(table, label, form.format(report[key]))
    if "relevant_share_range" in report:
        low, high = report["relevant_share_range"]
        show._row(table, "  interval of that estimate", f"{low:.1%} to {high:.1%}")
    if "relevant_per_query" in report:
        low, high = report["relevant_per_query_range"]
        said = f"{report['relevant_per_query']:.1f} ({low:.1f} to {high:.1f})"
        show._row(table, "relevant candidates a query, the known one included", said)
        show._row(table, "relevant documents a query that were not found", f"{report['relevant_not_found']:.1f}")
    if len(value["features"]) <= _FEW_TERMS:
        for name, weight in value["features"].items():
            show._row(table, f"weight of {name}", f"{weight:.3f}")
    else:
        features = dict.fromkeys(re.split("[<>]", name)[0] for name in value["features"])
        show._row(table, f"{len(value['features'])} terms of {len(features)} features", ", ".join(features))
    show._row(table, "threshold", f"{value['threshold']:.7g}")
    if "rejected" in report:
        show._row(table, "candidates that it rejects", f"{report['rejected']:,}" if report["rejected"] else "none")
    if guarantee is None:
        show._row(table, "guarantee", "none")
    else:
        show._row(
            table, "guarantee", f"at most {guarantee['alpha']:.1%} false, confidence {guarantee['confidence']:.0%}"
        )
        show._row(table, "  evidence", f"{guarantee['false']} false of {guarantee['judged']} judged negatives")
    if "judge" in report:
        for label, said in _judge_rows(report["judge"]):
            show._row(table, label, said)
    show._show(console, f"posterior {path}", table)
    for line in (*_remarks(report, guarantee is None, run), *_next(value, run, path)):
        show._print(console, line)


def _remarks(report: dict[str, Any], uncertified: bool, run: str) -> list[str]:
    """What is to be known about what was learned, in sentences."""
    lines = []
    if "uninformative" in report:
        lines.append(f"{report['uninformative'][0].upper()}{report['uninformative'][1:]}")
    elif uncertified and "expected" in report:
        lines.append(_expectation(report, run))
    if report.get("moved") is False:
        lines.append(
            "What was judged changes nothing yet: what it teaches about some queries does not foretell the others."
        )
    if "agreement" in report and "uninformative" not in report:
        groups = ", ".join(f"{expected:.0f}/{seen}" for _, expected, seen in report["reliability"])
        well = "agree" if report["agreement"] > _DISAGREE else "DIFFER: take the numbers above with care"
        lines.append(
            f"Check: learned from half of the queries, where are the known positives of the other half? Foretold/found, in ten "
            f"groups of candidates from the least to the most suspected: {groups}. They {well}."
        )
    if "assumption" in report:
        lines.append(f"Assumption: {report['assumption']}.")
    return lines


def _next(value: dict[str, Any], run: str, path: str) -> list[str]:
    """The next command: to use the posterior, unless it rejects nothing."""
    report = value["report"]
    if value["guarantee"] is None and ("uninformative" in report or report.get("rejected") == 0):
        judge = f"hardneg judge {quoted(run)} --sample 300 --out {quoted(f'{run}-judged.csv')}"
        return [
            "The posterior rejects nothing: selecting with it keeps every negative. Judgements tell more.",
            f"next: {judge}",
        ]
    return [f"next: hardneg select {quoted(run)} --add-filter {quoted(f'posterior:{path}')}"]


def _judge_rows(judge: dict[str, Any]) -> list[tuple[str, str]]:
    """How a model that judged compares with a person."""
    agreement = judge["agreement"]
    kappa, (low, high) = agreement["kappa"], agreement["kappa_interval"]
    rows = [(f"judged by {', '.join(judge['names'])}", f"{judge['pairs']:,} pairs")]
    if judge["without_answer"]:
        rows.append(("  without an answer, taken for relevant", f"{judge['without_answer']:,}"))
    said = "unknown" if kappa is None else f"{kappa:.2f} ({low:.2f} to {high:.2f})"
    rows.append((f"  Cohen's kappa with {agreement['of']}, {agreement['pairs']:,} pairs", said))
    for label, name in (
        ("  relevant, and missed by it", "missed"),
        ("  not relevant, and accused by it", "false_alarms"),
    ):
        rate = agreement[name]
        said = f"{rate['share'] or 0:.0%} ({rate['low']:.0%} to {rate['high']:.0%})"
        rows.append((label, "unknown" if rate["share"] is None else said))
    return rows


def _expectation(report: dict[str, Any], run: str) -> str:
    """What is expected at the threshold, in sentences."""
    said = f"With this threshold, {report['expected']:.1%} of the negatives are expected to be false"
    if "expected_range" in report:
        low, high = report["expected_range"]
        said += f" (between {low:.1%} and {high:.1%})"
    said += ". This is an estimate, not a guarantee."
    if report["expected"] > report["alpha"] * 1.001:
        said += (
            f" It is more than {report['alpha']:.1%}: a stricter threshold would leave more than 5% of the wanted negatives missing. "
            f"A deeper search (--depth) or fewer --negatives leave more to choose from."
        )
    if "judged" not in report and "tests" not in report:
        said += f" For a guarantee, judge some candidates: hardneg judge {quoted(run)} --out F.csv"
    return said
