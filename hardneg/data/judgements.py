"""The judgements of a dataset as arrays: the positives and the judged negatives of each query, and what was given in an order."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardneg.storage.arrays import Int, Mask, Ragged, pair_keys


@dataclass(frozen=True)
class Judgements:
    """What was judged of pairs of a query and a document.

    Attributes:
        positives, negatives: documents of each query, each once. If judgements of a pair disagree, relevant wins.
        grades: float64 `[m]`, the highest grade of each positive, in the order of `positives.values`.
        contradicted: number of judged negatives that are positives too.
    """

    positives: Ragged
    negatives: Ragged
    grades: NDArray[np.float64]
    contradicted: int

    @classmethod
    def of(
        cls, relations: tuple[array[int], array[int], array[float]], total: int, width: int, asked: Mask | None = None
    ) -> Judgements:
        """From rows of queries, rows of documents, and grades; `total` queries and `width` documents.

        `asked`, bool `[total]`: the queries that have a text. What was judged of the others is left out: nothing was asked there.
        """
        q, d = (np.array(column, np.int64) for column in relations[:2])
        scores = np.array(relations[2], np.float64)
        if asked is not None and not asked.all():
            said = asked[q]
            q, d, scores = q[said], d[said], scores[said]
        relevant = scores > 0
        positives = Ragged.from_pairs(q[relevant], d[relevant], total)
        negatives = Ragged.from_pairs(q[~relevant], d[~relevant], total)
        kept = _without(negatives, positives, width)
        grades = _grades(positives, q[relevant], d[relevant], scores[relevant], width)
        return cls(positives, kept, grades, len(negatives.values) - len(kept.values))

    def arrays(self) -> dict[str, Int]:
        """The arrays by the names that they are stored under; grades only where one of them is not 1."""
        found = {
            "positive_offsets": self.positives.offsets,
            "positive_values": self.positives.values,
            "negative_offsets": self.negatives.offsets,
            "negative_values": self.negatives.values,
        }
        if (self.grades != 1).any():
            found["positive_grades"] = self.grades.view(np.int64)  # all labels are stored as int64
        return found


def _grades(
    positives: Ragged, queries: np.ndarray, documents: np.ndarray, scores: np.ndarray, width: int
) -> np.ndarray:
    """float64 `[m]`: the highest grade of each positive, in the order of `positives.values`."""
    grades = np.zeros(len(positives.values))
    keys = pair_keys(positives.row_numbers(), positives.values, width)
    np.maximum.at(grades, np.searchsorted(keys, pair_keys(queries, documents, width)), scores)
    return grades


def in_order(pairs: tuple[array[int], array[int]], total: int, width: int) -> dict[str, np.ndarray]:
    """The given documents of each query, each once, in the order in which they were named; nothing if there are none."""
    if not len(pairs[0]):
        return {}
    rows, values = (np.array(column, np.int64) for column in pairs)
    first = np.sort(np.unique(pair_keys(rows, values, width), return_index=True)[1])
    rows, values = rows[first], values[first]
    order = np.argsort(rows, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=total))])
    return {"given_offsets": offsets.astype(np.int64), "given_values": np.ascontiguousarray(values[order])}


def _without(negatives: Ragged, positives: Ragged, width: int) -> Ragged:
    """The judged negatives that are not also positives of the query: if judgements disagree, relevant wins."""
    rows = negatives.row_numbers()
    own, others = pair_keys(rows, negatives.values, width), pair_keys(positives.row_numbers(), positives.values, width)
    contradicted = np.isin(own, others)
    return Ragged.from_pairs(rows[~contradicted], negatives.values[~contradicted], len(negatives))
