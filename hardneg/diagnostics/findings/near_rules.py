"""Findings that take near vectors for near texts. Where all vectors are near one another, they are held back."""

from __future__ import annotations

from collections.abc import Sequence

from hardneg.diagnostics.estimates import Measurements
from hardneg.diagnostics.findings.base import Finding
from hardneg.diagnostics.findings.thresholds import Thresholds

_OF = {"duplicates": "documents", "duplicate-corpus": "documents", "translations": "documents", "near-query": "queries"}

_MEANS = {"documents": "mean_cosine", "queries": "query_mean_cosine"}


def without_closeness(found: Sequence[Finding], measured: Measurements, thresholds: Thresholds) -> list[Finding]:
    """The findings, with one in place of those that near vectors say nothing of.

    If two random documents have a cosine of 0.9, one of 0.95 tells nothing of their texts. Nor does it in a space of a few directions.

    Args:
        found: the findings.
        measured: all measurements, for the mean cosines of documents and of queries.
        thresholds: the limits; `all_near` is the one of the mean cosines.
    """
    collapse = next((each for each in found if each.code == "collapse"), None)
    near = {what: float(measured.numbers.get(number, 0.0)) for what, number in _MEANS.items()}
    held = [
        each
        for each in found
        if each.code in _OF and (collapse is not None or near[_OF[each.code]] > thresholds.all_near)
    ]
    if not held:
        return list(found)
    far = [what for what in (_OF[each.code] for each in held) if near[what] > thresholds.all_near]
    if far:
        why = f"two random {far[0]} have a cosine of {near[far[0]]:.2f} already"
        number, value, limit = _MEANS[far[0]], near[far[0]], thresholds.all_near
    else:
        assert collapse is not None
        why, number, value, limit = "the space has collapsed", collapse.number, collapse.value, collapse.threshold
    text = (
        f"near vectors tell nothing of near copies here, because {why}; not taken for findings: "
        f"{', '.join(f'{each.code} ({each.value:.0%})' for each in held)}"
    )
    ids = next((each.ids for each in held if each.ids), [])
    fix = "look at the ids: are they copies? Vectors of another encoder, or these less their mean, would tell"
    kept = [each for each in found if each not in held]
    return [*kept, Finding("all-near", "info", text, number, value, limit, ids, fix)]
