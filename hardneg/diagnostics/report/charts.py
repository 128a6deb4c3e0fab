"""The charts of a report, as Vega-Lite specifications. They hold binned data, so that large runs have small reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.diagnostics.compare import Comparison
from hardneg.diagnostics.diagnose import Diagnosis
from hardneg.diagnostics.estimates import Estimate, row_means, unit
from hardneg.diagnostics.measures.slices import Slicing
from hardneg.diagnostics.subject import Subject
from hardneg.errors import MissingDependencyError

Spec = dict[str, Any]

_BINS = 60

_COLORS = {"positive": "#2a9d8f", "negative": "#e76f51", "rejected": "#7b6cb5", "random": "#8d99ae"}

_DRAWN = 4000  # pairs of a query and a random document

_RANKS = 12  # groups of ranks

_SLICES = 8  # slices of one kind, the largest


def charts(found: Diagnosis, rejected: Sequence[float] = (), slicings: Sequence[Slicing] = ()) -> dict[str, Spec]:
    """The charts of a diagnosis, by name. A chart without data is left out.

    Args:
        found: the diagnosis.
        rejected: the scores of a sample of the candidates that filters rejected.
        slicings: the queries, divided.
    """
    alt = _altair()
    drawn = {
        "scores": _scores(alt, found, rejected),
        "ranks": _ranks(alt, found),
        "margins": _margins(alt, found),
        "slices": _slices(alt, found, slicings),
        "verdicts": _verdicts(alt, found),
        "temperature": _temperature(alt, found),
        "hubs": _hubs(alt, found),
    }
    return {name: chart.to_dict() for name, chart in drawn.items() if chart is not None}


def comparison_charts(found: Comparison) -> dict[str, Spec]:
    """The charts of a comparison, by name. A chart without data is left out."""
    alt = _altair()
    rows = [
        {"before": before, "after": after, "candidates": count}
        for before, row in found.flow.items()
        for after, count in row.items()
    ]
    base = _chart(alt, rows, "Verdicts before (rows) and after (columns)").encode(
        x=alt.X("after:N", axis=alt.Axis(labelAngle=-30)), y=alt.Y("before:N")
    )
    heat = base.mark_rect().encode(
        color=alt.Color("candidates:Q", scale=alt.Scale(type="symlog", scheme="tealblues"), legend=None),
        tooltip=["before:N", "after:N", alt.Tooltip("candidates:Q", format=",")],
    )
    # White letters on the dark cells, dark ones on the light cells; the color is a logarithm of the count.
    half = max((count for row in found.flow.values() for count in row.values()), default=0) ** 0.5
    readable = alt.condition(f"datum.candidates > {half}", alt.value("#ffffff"), alt.value("#10202b"))
    counts = base.mark_text().encode(text=alt.Text("candidates:Q", format=".3~s"), color=readable)
    flow = {"flow": (heat + counts).to_dict()} if rows else {}
    scores = {}
    for name, diagnosis in (("before", found.before), ("after", found.after)):
        subject = diagnosis.subject
        scores[name] = subject.scores[subject.real]
    chart = _histograms(alt, scores, {"before": "#8d99ae", "after": "#e76f51"}, "Scores of the negatives")
    return flow | ({} if chart is None else {"scores": chart.to_dict()})


def _altair() -> Any:
    try:
        import altair
    except ImportError:
        raise MissingDependencyError("altair", "report", "the HTML report") from None
    return altair


def _chart(alt: Any, rows: list[dict[str, Any]], title: str) -> Any:
    # Pass inline data: Altair limits the number of rows of a data frame.
    return alt.Chart(alt.Data(values=rows), title=title).properties(width="container", height=230)


def _scores(alt: Any, found: Diagnosis, rejected: Sequence[float]) -> Any:
    subject = found.subject
    kinds = {
        "random": _at_random(subject),
        "rejected": np.asarray(rejected, np.float32),
        "negative": subject.scores[subject.real],
        "positive": subject.positive[np.isfinite(subject.positive)],
    }
    return _histograms(alt, kinds, _COLORS, "Scores of positives, negatives and others")


def _at_random(subject: Subject) -> NDArray[np.float32]:
    """The scores of pairs of a query and a random document, if the run's scores are cosines of its vectors."""
    if subject.vectors is None or subject.metric != "cosine":
        return np.empty(0, np.float32)
    rng = np.random.default_rng(0)
    rows, documents = (rng.integers(0, len(each), _DRAWN) for each in subject.vectors)
    scores: NDArray[np.float32] = (unit(subject.vectors[0], rows) * unit(subject.vectors[1], documents)).sum(1)
    return scores


def _ranks(alt: Any, found: Diagnosis) -> Any:
    """P(relevant) of the negatives by their rank: the mean, and the middle four fifths."""
    subject = found.subject
    if subject.probability is None:
        return None
    known = subject.real & np.isfinite(subject.probability)
    ranks, chances = subject.ranks[known], subject.probability[known]
    if len(ranks) == 0:
        return None
    edges = np.unique(np.geomspace(1, int(ranks.max()) + 1, _RANKS + 1).round().astype(int))
    rows = []
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        here = chances[(ranks >= low) & (ranks < high)]
        if len(here):
            name = f"{low}" if high == low + 1 else f"{low}-{high - 1}"
            few, many = np.quantile(here, [0.1, 0.9])
            rows.append(
                {
                    "ranks": name,
                    "mean": float(here.mean()),
                    "low": float(few),
                    "high": float(many),
                    "negatives": len(here),
                }
            )
    base = _chart(alt, rows, "P(relevant) of the negatives by rank").encode(
        x=alt.X("ranks:O", title="rank", sort=None, axis=alt.Axis(labelAngle=0)),
        tooltip=["ranks:O", alt.Tooltip("mean:Q", format=".3f"), alt.Tooltip("negatives:Q", format=",")],
    )
    spread = base.mark_rule(color=_COLORS["random"], strokeWidth=2).encode(
        y=alt.Y("low:Q", title="P(relevant)"), y2="high:Q"
    )
    return spread + base.mark_point(filled=True, size=60, color=_COLORS["negative"]).encode(y="mean:Q")


def _histograms(alt: Any, kinds: dict[str, NDArray[Any]], colors: dict[str, str], title: str) -> Any:
    """A chart with a histogram for each kind of value; the bars of a kind sum to 1. None if there are no values."""
    kinds = {name: values for name, values in kinds.items() if len(values)}
    if not kinds:
        return None
    low, high = (f(float(f_(v)) for v in kinds.values()) for f, f_ in ((min, np.min), (max, np.max)))
    edges = np.linspace(low, high if high > low else low + 1e-3, _BINS + 1)
    rows = []
    for name, values in kinds.items():
        share = np.histogram(values, edges)[0] / len(values)
        rows += [
            {"from": float(a), "to": float(b), "share": float(s), "kind": name}
            for a, b, s in zip(edges[:-1], edges[1:], share, strict=True)
        ]
    scale = alt.Scale(domain=list(kinds), range=[colors[name] for name in kinds])
    return _chart(alt, rows, title).mark_bar(opacity=0.6).encode(
        x=alt.X("from:Q", title="score", bin="binned"), x2="to:Q",
        y=alt.Y("share:Q", title="share", stack=None, axis=alt.Axis(format="%")),
        color=alt.Color("kind:N", title=None, scale=scale),
        tooltip=[alt.Tooltip("kind:N"), alt.Tooltip("from:Q", format=".3f"), alt.Tooltip("share:Q", format=".2%")],
    )  # fmt: skip


def _slices(alt: Any, found: Diagnosis, slicings: Sequence[Slicing]) -> Any:
    """The hardness of each slice of the queries: the mean score of their negatives, with its 95 % interval."""
    subject = found.subject
    scores = row_means(np.where(subject.real, subject.scores, np.nan))
    rows = []
    for slicing in slicings:
        for number, value in enumerate(slicing.values[:_SLICES]):
            mean = Estimate.mean_of(scores[slicing.labels == number])
            if mean.sample > 1:
                name = f"{slicing.by}: {value}"[:40]
                rows.append(
                    {"slice": name, "score": mean.value, "low": mean.low, "high": mean.high, "queries": mean.sample}
                )
    if not rows:
        return None
    base = _chart(alt, rows, "Mean score of the negatives by slice").encode(
        y=alt.Y("slice:N", title=None, sort=None, axis=alt.Axis(labelLimit=170)),
        tooltip=["slice:N", alt.Tooltip("score:Q", format=".3f"), alt.Tooltip("queries:Q", format=",")],
    )
    x = alt.X("low:Q", title="score", scale=alt.Scale(zero=False))
    spread = base.mark_rule(color=_COLORS["random"], strokeWidth=2).encode(x=x, x2="high:Q")
    return spread + base.mark_point(filled=True, size=60, color=_COLORS["negative"]).encode(x="score:Q")


def _margins(alt: Any, found: Diagnosis) -> Any:
    values = found.measured.numbers.get("margin_by_place", [])
    rows = [{"place": i + 1, "margin": v} for i, v in enumerate(values) if np.isfinite(v)]
    if not rows:
        return None
    chart = _chart(alt, rows, "Positive minus negative, hardest first")
    return chart.mark_line(point=True, color=_COLORS["negative"]).encode(
        x=alt.X("place:O", title="place among the negatives", axis=alt.Axis(labelAngle=0)), y=alt.Y("margin:Q", title="mean margin"),
        tooltip=["place:O", alt.Tooltip("margin:Q", format=".4f")],
    )  # fmt: skip


def _verdicts(alt: Any, found: Diagnosis) -> Any:
    counts = found.subject.info["counts"]["verdicts"]
    rows = [{"verdict": name, "candidates": int(n)} for name, n in counts.items() if n]
    if not rows:
        return None
    return _chart(alt, rows, "Verdicts on the candidates").mark_bar(color="#457b9d").encode(
        x=alt.X("candidates:Q", axis=alt.Axis(format="~s")), y=alt.Y("verdict:N", title=None, sort="-x"),
        tooltip=["verdict:N", alt.Tooltip("candidates:Q", format=",")],
    )  # fmt: skip


def _temperature(alt: Any, found: Diagnosis) -> Any:
    numbers = found.measured.numbers
    curve = numbers.get("effective_by_temperature")
    if not curve:
        return None
    rows = [{"temperature": t, "negatives": n} for t, n in curve]
    title = "Effective number of negatives, by temperature"
    base = _chart(alt, rows, title)
    line = base.mark_line(color="#6d597a").encode(
        x=alt.X("temperature:Q", title="temperature", scale=alt.Scale(type="log")), y=alt.Y("negatives:Q", title="effective number"),
        tooltip=[alt.Tooltip("temperature:Q", format=".3f"), alt.Tooltip("negatives:Q", format=".2f")],
    )  # fmt: skip
    rule = (
        alt.Chart(alt.Data(values=[{"now": numbers["temperature"]}]))
        .mark_rule(strokeDash=[4, 4])
        .encode(x=alt.X("now:Q", title="temperature"))
    )
    return (line + rule).properties(width="container", height=230, title=title)


def _hubs(alt: Any, found: Diagnosis) -> Any:
    subject = found.subject
    times = np.bincount(subject.documents[subject.real], minlength=1)
    order = np.argsort(-times, kind="stable")[:15]
    rows = [
        {"document": subject.pairs.document_ids[int(i)].as_py()[:60], "queries": int(times[i])}
        for i in order
        if times[i] > 0
    ]
    if not rows:
        return None
    return _chart(alt, rows, "Documents that are negatives of the most queries").mark_bar(color="#b56576").encode(
        x=alt.X("queries:Q", title="queries"), tooltip=["document:N", "queries:Q"],
        y=alt.Y("document:N", title=None, sort="-x", axis=alt.Axis(labelLimit=170)),
    )  # fmt: skip
