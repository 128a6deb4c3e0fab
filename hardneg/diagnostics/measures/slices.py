"""Slices: the same measurements for the short and the long queries, for each language, group and source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.diagnostics.estimates import LISTED, Estimate, Measurements, names_of, row_means, sampled
from hardneg.diagnostics.measures.false_share import shares_of
from hardneg.diagnostics.measures.found_positives import nearest
from hardneg.diagnostics.measures.languages import guessed_language
from hardneg.diagnostics.subject import Subject

_TEXTS = 10_000  # the largest number of queries whose texts are read

_LEAST = 30  # queries of a slice that is measured

_MOST = 20  # slices of one kind, the largest


@dataclass(frozen=True)
class Slicing:
    """The queries, divided in one way.

    Attributes:
        by: what they are divided by: `length`, `language`, `group` or `source`.
        values: the name of each slice.
        labels: int32 `[n]`, the slice of each query; -1 for a query that is in none, or was not looked at.
    """

    by: str
    values: list[str]
    labels: NDArray[np.int32]


def slicings(subject: Subject) -> list[Slicing]:
    """Divide the queries of a run in every way that the dataset allows. The same for the same run.

    - `length`: four slices by the number of characters of the query.
    - `language`: see `guessed_language`, a guess.
    - `group`: the groups of the dataset, by their names; by their numbers in a run of an earlier version, or of more than 10,000.
    - `source`: what stands before the first `:` or `/` in the ids of the queries, as in mixtures of datasets (`nq/17`).

    Texts are read of 10,000 queries at most. Slices of fewer than 30 queries, and all but the 20 largest of a kind, are left out; a
    single slice that holds all queries is none.
    """
    pairs = subject.pairs
    rows = sampled(len(pairs), _TEXTS, np.random.default_rng(0))
    found: list[Slicing] = []
    if not pairs.queries.pictures:  # the name of a picture is neither long nor in a language
        texts = pairs.queries.take(rows)
        found.append(_by_length(rows, texts, len(pairs)))
        found.append(_named("language", rows, [guessed_language(t) for t in texts], len(pairs)))
    if pairs.query_groups is not None:
        groups = pairs.query_groups
        inside = np.flatnonzero(groups >= 0)
        names = _group_names(pairs.group_names, int(groups.max(initial=-1)) + 1)
        found.append(_named("group", inside, [names[each] for each in groups[inside].tolist()], len(pairs)))
    ids = [pairs.query_ids[int(row)].as_py() for row in rows]
    places = [min((i for i in (each.find(":"), each.find("/")) if i > 0), default=0) for each in ids]
    if all(places):
        found.append(
            _named("source", rows, [each[:place] for each, place in zip(ids, places, strict=True)], len(pairs))
        )
    return [each for each in found if len(each.values) > 1]


def _by_length(rows: NDArray[np.int64], texts: list[str], total: int) -> Slicing:
    sizes = np.array([len(text) for text in texts])
    edges = np.unique(np.quantile(sizes, [0.25, 0.5, 0.75]).astype(int)) if len(sizes) else np.empty(0, int)
    bounds = [0, *edges.tolist(), int(sizes.max(initial=0))]
    names = [f"{low + 1} to {high} characters" for low, high in pairwise(bounds)]
    names[0] = f"up to {bounds[1]} characters"
    return _named("length", rows, [names[i] for i in np.searchsorted(edges, sizes, "left")], total)


def _group_names(known: Sequence[str], count: int) -> list[str]:
    """A name for each of `count` groups, all different: their own where it is known, else their number.

    >>> _group_names(["lost card", "top up", "top up"], 4)
    ['lost card', 'top up (1)', 'top up (2)', '3']
    """
    times = Counter(known)
    return [
        str(i) if i >= len(known) else known[i] if times[known[i]] == 1 else f"{known[i]} ({i})" for i in range(count)
    ]


def _named(by: str, rows: NDArray[np.int64], names: list[str], total: int) -> Slicing:
    """The slicing with these names of queries, the largest slices first."""
    values, codes, counts = np.unique(np.array(names, object).astype(str), return_inverse=True, return_counts=True)
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i] >= _LEAST][:_MOST]
    new = np.full(len(values), -1, np.int32)
    new[order] = np.arange(len(order))
    labels = np.full(total, -1, np.int32)
    labels[rows] = new[codes.ravel()] if len(rows) else -1
    return Slicing(by, [str(values[i]) for i in order], labels)


def slice_measures(subject: Subject) -> dict[str, NDArray[np.float64]]:
    """The measures of slices: for each, float64 `[n]` with a value per query, NaN where it is not known.

    - `false_share`: the share of its negatives that are relevant (see `false_negatives`), where something tells it.
    - `above_positive`: the share of its negatives that score above its lowest positive.
    - `positive_lost`: 1 if none of its positives is among its candidates, else 0; for the queries in `subject.retrieved`.
    - `few`: 1 if it has fewer negatives than asked for, else 0.
    """
    margins = subject.positive[:, None] - subject.scores
    out = {}
    shares, _ = shares_of(subject)
    if shares is not None:
        out["false_share"] = row_means(shares)
    out["above_positive"] = row_means(np.where(np.isfinite(margins), margins < 0, np.nan))
    seen = subject.retrieved
    if seen is not None:
        best = nearest(subject.pairs.positives.take(seen.queries), seen.ranks)
        out["positive_lost"] = np.full(len(subject.pairs), np.nan)
        out["positive_lost"][seen.queries] = np.where(best < 0, np.nan, best == 0)
    out["few"] = (subject.counts < subject.asked).astype(np.float64)
    return out


def slices(subject: Subject) -> Measurements:
    """Measure every slice of the queries.

    The number `slices` is a list, the worst first: for each slice `by`, `value`, `queries` (how many), the measures of
    `slice_measures` as {value, low, high, z}, with `z` the difference from the other queries, divided by its standard error;
    `worst`, the measure with the highest `z`, and that `z`; and `ids`, some of its queries, those first that are worst in all
    measures together.
    `sliced_queries` is the number of queries whose texts were read.
    """
    measures = slice_measures(subject)
    out: list[dict[str, Any]] = []
    for slicing in slicings(subject):
        inside = slicing.labels >= 0
        for number, value in enumerate(slicing.values):
            here = slicing.labels == number
            row: dict[str, Any] = {"by": slicing.by, "value": value, "queries": int(here.sum())}
            scores = {}
            for name, values in measures.items():
                estimate = Estimate.share_of(values[here])
                if not np.isfinite(estimate.value):
                    continue
                scores[name] = _z(values[here], values[inside & ~here])
                row[name] = {"value": estimate.value, "low": estimate.low, "high": estimate.high, "z": scores[name]}
            worst = max(scores, key=lambda name: scores[name], default=None)
            row |= {"worst": worst, "z": None if worst is None else scores[worst]}
            members = np.flatnonzero(here)
            order = np.argsort(-np.nansum([values[members] for values in measures.values()], axis=0), kind="stable")
            row["ids"] = names_of(subject.pairs.query_ids, members[order[:LISTED]])
            out.append(row)
    out.sort(key=lambda row: -np.inf if row["z"] is None else -row["z"])
    return Measurements({"slices": out, "sliced_queries": min(len(subject.pairs), _TEXTS)})


def _z(here: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """The difference of two means, divided by its standard error; 0 if one of them is not known."""
    a, b = (each[np.isfinite(each)] for each in (here, others))
    if len(a) < 2 or len(b) < 2:
        return 0.0
    # Of equal values the spread is not 0, as far as so few tell: at least that of one other value among them.
    spread = [max(float(each.var()), (1 - 1 / len(each)) / len(each)) / len(each) for each in (a, b)]
    return float((a.mean() - b.mean()) / np.sqrt(sum(spread)))
