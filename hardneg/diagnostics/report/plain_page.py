"""Pages without scripts: the course of a training, and the ranking of runs. Charts are SVG in the page itself."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path

from hardneg.diagnostics.findings.base import Finding
from hardneg.diagnostics.labels import ranking_rows, scored_lines
from hardneg.diagnostics.ranking import Ranking
from hardneg.diagnostics.training_run import TrainingDiagnosis
from hardneg.storage.files import atomic_path
from hardneg.storage.outputs import check_replaceable

_CHARTS = (  # title; the names in the log, or how they begin
    ("Loss", ("loss",)),
    ("Evaluation", ("evaluation/",)),
    ("Scores of positives and negatives", ("positive", "negative")),
    ("Margin of the hardest negative", ("margin",)),
    ("Negatives that still teach, and their weight", ("teaching", "negative_weight")),
    ("Queries whose hardest negative is above the positive", ("violations",)),
    ("Share of candidates that each filter rejects", ("rejected/",)),
    ("Share of masked entries", ("masked",)),
    ("Age of the negatives, in steps", ("age",)),
    ("Age of the bank, in steps", ("bank_age",)),
    ("Drift of the encoder since", ("drift",)),
    ("Nearest documents that stayed", ("overlap",)),
    ("Effective rank", ("effective_rank",)),
    ("Temperature", ("temperature",)),
    ("Learning rate", ("learning_rate",)),
)

_COLORS = ("#1d6fa5", "#e76f51", "#2a9d8f", "#6d597a", "#b46a00", "#c1121f", "#8d99ae", "#457b9d")

_WIDTH, _HEIGHT, _LEFT = 420, 170, 52

_POINTS = 400  # of a curve that are drawn; of a longer one, evenly spaced entries

_STYLE = """
:root { --ink: #1d2433; --soft: #5c667a; --paper: #fbfbfd; --card: #fff; --line: #dfe3ec; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaf2; --soft: #9aa4b8; --paper: #14171f; --card: #1c212c; --line: #313949; } }
body { margin: 0 auto; max-width: 1120px; padding: 1rem; font: 15px/1.5 system-ui, sans-serif;
  color: var(--ink); background: var(--paper); }
h1 { font-size: 1.45rem; overflow-wrap: anywhere; } h2 { font-size: 1rem; margin: .2rem 0; } .soft { color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .8rem 1rem; margin: .6rem 0; overflow-x: auto; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: .8rem; } svg { width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: right; padding: .25rem .5rem; border-bottom: 1px solid var(--line); }
td:nth-child(2), th:nth-child(2) { text-align: left; overflow-wrap: anywhere; } text { fill: var(--soft); font-size: 11px; }
"""


def write_training(found: TrainingDiagnosis, path: str | Path) -> None:
    """Write the course of a training as one HTML file: findings, and a curve of every number that its log has.

    Vertical lines mark the steps at which new negatives came into use. The file is written completely or not at all.

    Raises:
        DataError: another file is at `path`.
    """
    state = "finished" if found.finished else "not finished"
    lead = f"{found.steps:,} steps, {state}; negatives mined again {len(found.refreshes)} times."
    if found.unreadable:
        lead += f" {found.unreadable:,} lines of the log could not be read."
    charts = []
    for title, starts in _CHARTS:
        names = [n for s in starts for n in (found.names(s) if s.endswith("/") else [s] * (s in found.names()))]
        curves = {name: found.series(name) for name in names if not name.endswith("/seconds")}
        if curves:
            charts.append(f"<div class='card'><h2>{_safe(title)}</h2>{_chart(title, curves, found.refreshes)}</div>")
    warned = "".join(f"<p class='card'>{_safe(each)}</p>" for each in found.warnings)
    body = _findings(found.findings) + (f"<h2>What the training warned of</h2>{warned}" if warned else "")
    _write(f"Training {found.name}", lead, f"{body}<div class='grid'>{''.join(charts)}</div>", path)


def write_ranking(found: Ranking, path: str | Path) -> None:
    """Write a ranking of runs as one HTML file. The file is written completely or not at all.

    Raises:
        DataError: another file is at `path`.
    """
    value = found.to_json()
    heads, rows = ranking_rows(value)
    told = "not known" if found.false_by == "unknown" else f"told by {found.false_by}"
    head = "".join(f"<th>{_safe(each)}</th>" for each in heads)
    lines = "".join(f"<tr>{''.join(f'<td>{_safe(cell)}</td>' for cell in row)}</tr>" for row in rows)
    notes = "".join(f"<p class='soft'>{_safe(each)}</p>" for each in (*scored_lines(value), *found.notes))
    meaning = (
        "useful: the softmax weight of a query's negatives, false ones counted against it; 1 is the most a query can learn. "
        "Intervals of 95 % are of the differences, paired by query."
    )
    body = f"<div class='card'><table><tr>{head}</tr>{lines}</table></div>{notes}<p class='soft'>{_safe(meaning)}</p>"
    _write(
        "Runs by what their negatives promise to teach",
        f"{found.queries:,} queries; false negatives {told}.",
        body,
        path,
    )


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return "<p class='card'>No problems found.</p>"
    return "".join(
        f"<p class='card'><b>{_safe(each.severity)}</b> {_safe(each.text)}<br><span class='soft'>Fix: {_safe(each.fix)}</span></p>"
        for each in findings
    )


def _chart(title: str, curves: dict[str, list[tuple[int, float]]], marks: Sequence[int]) -> str:
    """Curves over the steps as SVG. Values are finite."""
    steps = [step for curve in curves.values() for step, _ in curve]
    values = [value for curve in curves.values() for _, value in curve]
    left, right, low, high = min(steps), max(steps), min(values), max(values)
    pad = (high - low) * 0.05 or max(abs(high) * 0.05, 1e-9)
    low, high = low - pad, high + pad

    def x(step: float) -> float:
        return _LEFT + (step - left) / max(1, right - left) * (_WIDTH - _LEFT - 8)

    def y(value: float) -> float:
        return 8 + (high - value) / (high - low) * (_HEIGHT - 32)

    parts = [
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT + 16 * math.ceil(len(curves) / 2)}' role='img' aria-label='{_safe(title)}'>"
    ]
    parts += [
        f"<line x1='{x(m):.1f}' x2='{x(m):.1f}' y1='8' y2='{_HEIGHT - 24}' stroke='#8d99ae' stroke-dasharray='2 4'/>"
        for m in marks
    ]
    for value in (low + pad, high - pad):
        parts.append(f"<text x='{_LEFT - 4}' y='{y(value) + 4:.1f}' text-anchor='end'>{value:.3g}</text>")
    parts.append(f"<text x='{_LEFT}' y='{_HEIGHT - 8}'>{left:,}</text>")
    parts.append(f"<text x='{_WIDTH - 8}' y='{_HEIGHT - 8}' text-anchor='end'>step {right:,}</text>")
    for i, (name, curve) in enumerate(curves.items()):
        color = _COLORS[i % len(_COLORS)]
        step = max(1, math.ceil(len(curve) / _POINTS))
        drawn = [*curve[::step], curve[-1]]
        points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in drawn)
        parts.append(f"<polyline points='{points}' fill='none' stroke='{color}' stroke-width='1.6'/>")
        if len(curve) == 1:
            parts.append(f"<circle cx='{x(curve[0][0]):.1f}' cy='{y(curve[0][1]):.1f}' r='3' fill='{color}'/>")
        place = (_LEFT + (i % 2) * (_WIDTH - _LEFT) / 2, _HEIGHT + 8 + 16 * (i // 2))
        parts.append(
            f"<text x='{place[0]:.0f}' y='{place[1]}' style='fill:{color}'>{_safe(name)}: {curve[-1][1]:.4g}</text>"
        )
    return "".join([*parts, "</svg>"])


def _write(title: str, lead: str, body: str, path: str | Path) -> None:
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    text = (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>\n"
        f"<meta http-equiv='Content-Security-Policy' content=\"{policy}\">\n"
        f"<meta name='viewport' content='width=device-width, initial-scale=1'><title>{_safe(title)}</title>\n"
        f"<!-- Report by hardneg --><style>{_STYLE}</style></head>\n<body><p class='soft'>Report by hardneg</p><h1>{_safe(title)}</h1>"
        f"<p class='soft'>{_safe(lead)}</p>{body}</body></html>\n"
    )
    check_replaceable(Path(path), "report", b"Report by hardneg")
    with atomic_path(Path(path)) as temporary:
        temporary.write_text(text, "utf-8")


def _safe(text: object) -> str:
    """A text of unknown origin, for HTML, in elements and in attributes."""
    return html.escape(str(text).encode("utf-8", "replace").decode("utf-8"))
