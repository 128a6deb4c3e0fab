"""Ranking measures. Relevance is binary; every measure is the mean over the queries."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hardneg.errors import UsageError
from hardneg.storage.arrays import Ragged, members

Double = NDArray[np.float64]

MEASURES = ("ndcg", "mrr", "recall")


def parse_measures(names: Sequence[str]) -> list[tuple[str, int]]:
    """Parse names of measures: `ndcg@10` -> ("ndcg", 10). Raises UsageError for unknown measures."""
    out = []
    for name in names:
        kind, _, depth = name.lower().partition("@") if isinstance(name, str) else ("", "", "")
        if kind not in MEASURES or not re.fullmatch(r"[0-9]{1,9}", depth) or int(depth) < 1:
            raise UsageError(f"unknown measure {name!r}: written {', '.join(f'{each}@K' for each in MEASURES)}")
        out.append((kind, int(depth)))
    return out


def rank_measures(found: NDArray[np.integer], relevant: Ragged, names: Sequence[str]) -> dict[str, Double]:
    """Compute measures of n rankings.

    Args:
        found: int `[n, K]`, documents, best first, -1 where there is none. K is at least the depth of the deepest measure, or the
            size of the corpus.
        relevant: the relevant documents of every query, at least one each.
        names: `ndcg@K`: the sum of 1 / log2(r + 1) over the ranks r of relevant documents, divided by the largest possible sum
            (Jarvelin and Kekalainen 2002, binary gains). `mrr@K`: 1 / rank of the first relevant document, 0 if there is none in
            the first K. `recall@K`: the share of the relevant documents in the first K.

    Returns:
        float64 `[n]` by name.
    """
    hits = members(found, relevant) & (found >= 0)
    ranks = np.arange(1, found.shape[1] + 1)
    gains = 1 / np.log2(ranks + 1)
    # The largest possible gain of m relevant documents is that of the first m ranks.
    ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(1, int(relevant.lengths.max(initial=0)) + 1) + 1))])
    out: dict[str, Double] = {}
    for name, (kind, depth) in zip(names, parse_measures(names), strict=True):
        top = hits[:, :depth]
        if kind == "ndcg":
            out[name] = (top * gains[:depth]).sum(1) / ideal[np.minimum(relevant.lengths, depth)]
        elif kind == "mrr":
            first = np.where(top.any(1), top.argmax(1) + 1, np.inf)
            out[name] = 1 / first
        else:
            out[name] = top.sum(1) / relevant.lengths
    return out
