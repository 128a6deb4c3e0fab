"""Labels of measurements, for the tables on the terminal and in reports."""

from __future__ import annotations

from typing import Any

_NUMBERS = (
    ("positives nearer than random documents", "beats_random", "{:.1%}"),
    ("hardness (0 random, 1 as positives)", "relative", "{:.2f}"),
    ("mean margin of the positive", "margin", "{:.3f}"),
    ("a negative above a random positive", "overlap", "{:.2f}"),
    ("negatives above their positive", "above_positive", "{:.1%}"),
    ("false negatives, by {}", "false_share", "{:.1%}"),
    ("false negatives, by groups", "false_by_groups", "{:.1%}"),
    ("  announced when it was calibrated", "false_announced", "{:.1%}"),
    ("negatives that count, of the softmax", "effective_negatives", "{:.2f}"),
    ("weight of the positive in it", "positive_weight", "{:.2f}"),
    ("distinct documents of the negatives", "distinct", "{:.1%}"),
    ("documents that are a negative", "coverage", "{:.1%}"),
    ("clusters of documents with a negative", "cluster_coverage", "{:.1%}"),
    ("negatives near another one's vector", "near_duplicates", "{:.1%}"),
    ("documents near another one's vector", "corpus_near_duplicates", "{:.1%}"),
    ("queries that the worst hub is for", "hub_share", "{:.1%}"),
    ("told apart by looks (AUC)", "surface_auc", "{:.2f}"),
    ("told apart by words (AUC)", "lexical_auc", "{:.2f}"),
    ("length, negatives over positives", "length_ratio", "{:.2f}"),
    ("alignment (0: query = positive)", "alignment", "{:.3f}"),
    ("uniformity (lower: more spread)", "uniformity", "{:.2f}"),
    ("effective rank", "effective_rank", "{:.0f}"),
    ("recall of the index", "recall", "{:.3f}"),
    ("drift of the encoder since", "drift", "{:.3f}"),
    ("queries with too few negatives", "few", "{:.1%}"),
    ("negatives that still teach", "teaching", "{:.1%}"),
    ("queries whose positive is found", "hit_rate", "{:.1%}"),
    ("  among the nearest ten", "hit_at_10", "{:.1%}"),
    ("MRR of the positives", "mrr", "{:.3f}"),
    ("pairs that look mislabelled", "mislabelled", "{:.1%}"),
    ("negatives: positives of other queries", "others_positives", "{:.1%}"),
    ("  share of all documents", "others_expected", "{:.1%}"),
    ("  of nearly the same query", "near_query_positives", "{:.1%}"),
    ("negatives equal to a positive", "copied_equal", "{:.1%}"),
    ("  nearly so", "copied_near", "{:.1%}"),
    ("  chunks that overlap with it", "chunk_overlap", "{:.1%}"),
    ("  near it without common words", "translations", "{:.1%}"),
    ("skewness of negatives a document", "hub_skew", "{:.1f}"),
    ("documents that are no candidate", "never_retrieved", "{:.1%}"),
    ("  expected by chance", "never_expected", "{:.1%}"),
    ("negatives that BM25 finds as well", "bm25_also", "{:.1%}"),
    ("  above the positive by BM25", "bm25_above_positive", "{:.1%}"),
    ("positives that BM25 finds", "bm25_positive", "{:.1%}"),
    ("hardness for the second encoder", "second_relative", "{:.2f}"),
    ("  above the positive for both", "both_above_positive", "{:.1%}"),
    ("  rank correlation of the two", "second_agreement", "{:.2f}"),
    ("evaluation queries in training", "leaked_queries", "{:.2%}"),
    ("  together with their answer", "leaked_pairs", "{:.2%}"),
    ("evaluation positives in training", "leaked_positives", "{:.2%}"),
)


# What a source of candidates found: the share of the negatives, and the rate among its own.
_SOURCES = (
    ("share of the negatives", "negatives", "alone", "by it alone"),
    ("share of the hard ones", "hard", "hard_rate", "of its own are hard"),
    ("share of the false ones", "false", "false_rate", "of its own are false"),
)


# The measures of a slice of the queries, see `hardneg.diagnostics.measures.slices`.
SLICE_MEASURES = {
    "false_share": "false negatives",
    "above_positive": "negatives above their positive",
    "positive_lost": "queries whose positive was not found",
    "few": "queries with too few negatives",
}


def number_rows(numbers: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Label the numbers of a diagnosis.

    Args:
        numbers: the value of `numbers` in the JSON of the diagnosis.

    Returns:
        (label, value, remark) for each number that was measured. The remark of an estimate is its interval.

    >>> number_rows({"recall": 0.987, "beats_random": {"value": 0.99, "low": 0.97, "high": 1.01}})
    [('positives nearer than random documents', '99.0%', '97.0% to 100.0%'), ('recall of the index', '0.987', '')]
    """
    rows = []
    for template, name, form in _NUMBERS:
        number, label = numbers.get(name), template.format(numbers.get("false_source"))
        if isinstance(number, dict) and number["value"] is not None:
            sides = number["low"], number["high"]
            if "%" in form and None not in sides:  # a share: the interval of a mean can reach beyond what is possible
                sides = max(sides[0], 0.0), min(sides[1], 1.0)
            interval = "" if None in sides else " to ".join(map(form.format, sides))
            rows.append((label, form.format(number["value"]), interval))
        elif number is not None and not isinstance(number, dict):
            rows.append((label, form.format(number), ""))
    for label, found in (numbers.get("sources") or {}).items():
        rows += [
            (f"{label}: {words}", f"{found[name]:.1%}", "" if found[rate] is None else f"{found[rate]:.1%} {what}")
            for words, name, rate, what in _SOURCES
            if found[name] is not None
        ]
    if numbers.get("temperature_low") is not None:
        suitable = f"{numbers['temperature_low']:.3g} to {numbers['temperature_high']:.3g} suit them"
        rows.append(("temperature of the loss, as assumed", f"{numbers['temperature']:.3g}", suitable))
    return rows


USEFUL = (
    "useful: the softmax weight of a query's negatives at the temperature of the loss, false ones counted against it; 1 is the most a "
    "query can learn, below 0 most of it would be false"
)


def comparison_rows(value: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Label the numbers of a comparison.

    Args:
        value: the JSON of the comparison.

    Returns:
        (label, before, after) for each number of the two diagnoses, then (label, value, "") for what the runs share.
    """
    sides = [
        {label: number for label, number, _ in number_rows(value[name]["numbers"])} for name in ("before", "after")
    ]
    rows = [(label, sides[0].get(label, "-"), sides[1].get(label, "-")) for label in {**sides[0], **sides[1]}]
    shared, shift = value["overlap"], value["hardness_shift"]
    if shared["value"] is not None:
        rows.append(("negatives that both have", f"{shared['value']:.1%}", ""))
        rows.append(("scores of negatives, after - before", f"{shift['value']:+.4f}", ""))
    if value["staleness"] is not None:
        rows.append(("drift of the documents' vectors", f"{value['staleness']['drift']:.3f}", ""))
        rows.append(("neighborhoods that stayed", f"{value['staleness']['overlap']:.1%}", ""))
    return rows


def ranking_rows(value: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The heads and the rows of a ranking's table.

    Args:
        value: the JSON of the ranking.
    """
    heads = ("place", "run", "useful", "behind the first (95 %)", "false", "hardest - positive", "teach", "short")
    rows: list[tuple[str, ...]] = []
    for run in value["runs"]:
        measures, behind = run["measures"], run["behind"]

        def said(name: str, form: str, of: dict[str, Any] = measures) -> str:
            return "?" if of.get(name) is None or of[name]["value"] is None else form.format(of[name]["value"])

        less = (
            "?"
            if run["place"] is None
            else "-"
            if not behind["value"]
            else f"{behind['value']:.3f} ({behind['low']:+.3f} to {behind['high']:+.3f})"
        )
        cells = [
            "?" if run["place"] is None else str(run["place"]),
            run["name"],
            said("useful", "{:.3f}"),
            less,
            said("false_share", "{:.1%}"),
        ]
        rows.append((*cells, said("hardness", "{:+.3f}"), said("teaching", "{:.1%}"), said("few", "{:.1%}")))
    return heads, rows


def scored_lines(value: dict[str, Any]) -> list[str]:
    """Whose vectors scored the runs of a ranking; with those of several encoders, what each says.

    Args:
        value: the JSON of the ranking.
    """
    names = value.get("scored_by", [])
    if not names:
        return ["Each run is scored by its own encoder."]
    if len(names) == 1:
        return [f"All are scored by the vectors of {names[0]}."]
    lines = [
        "Scored by the vectors of each encoder, as a run's own negatives look hardest to its own. The table has the means, and an "
        "interval holds that of each encoder."
    ]
    for name in names:
        useful = [(run["name"], run["useful_by"].get(name, {}).get("value")) for run in value["runs"]]
        said = ", ".join(f"{run} {number:.3f}" for run, number in useful if number is not None)
        lines.append(f"useful by the vectors of {name}: {said}")
    return lines
