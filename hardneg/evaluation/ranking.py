"""Ranking measures, as trec_eval counts them. Every measure is the mean over the queries."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hardneg.errors import UsageError
from hardneg.storage.arrays import Ragged, members

Double = NDArray[np.float64]

MEASURES = ("ndcg", "map", "mrr", "recall")


def parse_measures(names: Sequence[str]) -> list[tuple[str, int]]:
    """Parse names of measures: `ndcg@10` -> ("ndcg", 10). Raises UsageError for unknown measures."""
    out = []
    for name in names:
        kind, _, depth = name.lower().partition("@") if isinstance(name, str) else ("", "", "")
        if kind not in MEASURES or not re.fullmatch(r"[0-9]{1,9}", depth) or int(depth) < 1:
            raise UsageError(f"unknown measure {name!r}: written {', '.join(f'{each}@K' for each in MEASURES)}")
        out.append((kind, int(depth)))
    return out


def rank_measures(
    found: NDArray[np.integer], relevant: Ragged, names: Sequence[str], grades: Double | None = None
) -> dict[str, Double]:
    """Compute measures of n rankings.

    Args:
        found: int `[n, K]`, documents, best first, -1 where there is none. K is at least the depth of the deepest measure, or the
            size of the corpus.
        relevant: the relevant documents of every query, at least one each.
        names: `ndcg@K`: the sum of g / log2(r + 1) over the ranks r of relevant documents with grade g, divided by the largest
            possible sum (Jarvelin and Kekalainen 2002). `map@K`: the sum of the precisions at the ranks of relevant documents
            in the first K, divided by the number of relevant documents. `mrr@K`: 1 / rank of the first relevant document, 0 if
            there is none in the first K. `recall@K`: the share of the relevant documents in the first K.
        grades: float64 `[m]`, above 0: the grade of each of `relevant.values`; None: all are 1.

    Returns:
        float64 `[n]` by name.
    """
    hits = members(found, relevant) & (found >= 0)
    ranks = np.arange(1, found.shape[1] + 1)
    gains = hits * (1.0 if grades is None else _grades_of(found, relevant, grades))
    out: dict[str, Double] = {}
    for name, (kind, depth) in zip(names, parse_measures(names), strict=True):
        top = hits[:, :depth]
        if kind == "ndcg":
            out[name] = (gains[:, :depth] / np.log2(ranks[:depth] + 1)).sum(1) / _ideal(relevant, grades, depth)
        elif kind == "map":
            out[name] = (top * np.cumsum(top, 1) / ranks[:depth]).sum(1) / relevant.lengths
        elif kind == "mrr":
            first = np.where(top.any(1), top.argmax(1) + 1, np.inf)
            out[name] = 1 / first
        else:
            out[name] = top.sum(1) / relevant.lengths
    return out


def _grades_of(found: NDArray[np.integer], relevant: Ragged, grades: Double) -> Double:
    """float64 `[n, K]`: the grade of each document found; anything where it is not relevant."""
    width = int(max(relevant.values.max(initial=0), found.max(initial=0))) + 1
    keys = relevant.row_numbers() * width + relevant.values
    places = np.searchsorted(keys, np.arange(len(found))[:, None] * width + np.maximum(found, 0))
    of_found: Double = grades[np.minimum(places, len(keys) - 1)]
    return of_found


def _ideal(relevant: Ragged, grades: Double | None, depth: int) -> Double:
    """float64 `[n]`: the largest possible gain in the first `depth` ranks, that of the highest grades first."""
    longest = int(relevant.lengths.max(initial=0))
    table = np.zeros((len(relevant), longest))
    table[np.arange(longest) < relevant.lengths[:, None]] = 1.0 if grades is None else grades
    best = -np.sort(-table, axis=1)[:, :depth]
    ideal: Double = (best / np.log2(np.arange(1, best.shape[1] + 1) + 1)).sum(1)
    return ideal
