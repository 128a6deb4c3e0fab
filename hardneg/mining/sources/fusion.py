"""Fusion: one ranking from those of several sources."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hardneg.errors import UsageError
from hardneg.index.base import Neighbors
from hardneg.mining.candidates import Listed
from hardneg.mining.spec_options import SpecOptions, written_spec

Double = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Fusion(ABC):
    """Base class of all fusions. A subclass says what a place in the list of a source is worth.

    Attributes:
        name: the name in a spec.
        highest: whether a document is worth what its best source gives it; else the sum over its sources.
    """

    name: ClassVar[str] = "fusion"
    highest: ClassVar[bool] = False

    @property
    def spec(self) -> str:
        """The fusion as text: its name, and the fields that differ from their defaults."""
        text, weights = written_spec(self, self.name), getattr(self, "weights", ())
        if not weights:
            return text
        return text + ("," if ":" in text else ":") + "weights=" + "/".join(f"{each:g}" for each in weights)

    @abstractmethod
    def worth(self, scores: Double, real: NDArray[np.bool_], source: int, sources: int) -> Double:
        """What each place of one source is worth, float64 `[n, k]`.

        Args:
            scores: float64 `[n, k]`, the scores of the source, best first; NaN if it has none.
            real: bool `[n, k]`, where there is a document.
            source: the place of the source among all, from 0.
            sources: their number.
        """


@dataclass(frozen=True, kw_only=True)
class ReciprocalRank(Fusion):
    """The sum of 1 / (k + rank) over the sources (reciprocal rank fusion, Cormack et al. 2009).

    Attributes:
        k: the larger, the less the first ranks count.
        weights: one for each source, in their order; empty: 1 each.
    """

    name: ClassVar[str] = "rrf"
    k: float = 60.0
    weights: tuple[float, ...] = field(default=(), repr=False)

    def worth(self, scores: Double, real: NDArray[np.bool_], source: int, sources: int) -> Double:
        rank = np.arange(1, scores.shape[1] + 1, dtype=np.float64)
        return np.broadcast_to(_weight(self, self.weights, source, sources) / (self.k + rank), scores.shape)


@dataclass(frozen=True, kw_only=True)
class Scores(Fusion):
    """The sum of scores, each scaled to 0 to 1 in the list of its source and query (CombSUM, Fox and Shaw 1994; min-max).

    Where all scores of a list are equal, or the source has none, each document of the list counts 1.

    Attributes:
        weights: one for each source, in their order; empty: 1 each.
    """

    name: ClassVar[str] = "scores"
    weights: tuple[float, ...] = field(default=(), repr=False)

    def worth(self, scores: Double, real: NDArray[np.bool_], source: int, sources: int) -> Double:
        known = np.where(real & np.isfinite(scores), scores, np.nan)
        low = np.where(np.isnan(known), np.inf, known).min(1, initial=np.inf)[:, None]
        high = np.where(np.isnan(known), -np.inf, known).max(1, initial=-np.inf)[:, None]
        with np.errstate(invalid="ignore", over="ignore"):
            # Halved first, so that no difference of two finite scores overflows.
            spread = high / 2 - low / 2
            scaled = np.where(spread > 0, (known / 2 - low / 2) / np.where(spread > 0, spread, 1.0), 1.0)
        scaled = np.where(np.isnan(scaled), 1.0, scaled)
        return np.asarray(_weight(self, self.weights, source, sources) * scaled, np.float64)


@dataclass(frozen=True, kw_only=True)
class Interleave(Fusion):
    """The first of each source in turn, then the second of each, and so on; what is listed twice keeps its first place."""

    name: ClassVar[str] = "interleave"
    highest: ClassVar[bool] = True

    def worth(self, scores: Double, real: NDArray[np.bool_], source: int, sources: int) -> Double:
        place = np.arange(scores.shape[1], dtype=np.float64) * sources + source + 1
        return np.broadcast_to(1 / place, scores.shape)


def fuse(
    fusion: Fusion, labels: Sequence[str], lists: Sequence[Neighbors], depth: int
) -> tuple[NDArray[np.int32], Listed]:
    """Fuse the rankings of s sources.

    Args:
        fusion: what a place is worth.
        labels: the names of the sources.
        lists: what each source found for n queries, best first, each document once; -1 where there is none.
        depth: number of documents to keep.

    Returns:
        int32 `[n, K]`, the documents of the highest worth, -1 where there are fewer; equal ones in the order of their rows. K is
        the largest number of documents of a query, at most `depth`. And what the sources say of each.
    """
    n, sources = len(lists[0].documents), len(lists)
    documents = np.concatenate([each.documents for each in lists], 1).astype(np.int64)
    worth = np.concatenate(
        [fusion.worth(each.scores.astype(np.float64), each.documents >= 0, i, sources) for i, each in enumerate(lists)],
        axis=1,
    )
    widths = [each.documents.shape[1] for each in lists]
    source = np.repeat(np.arange(sources), widths)
    rank = np.concatenate([np.arange(1, width + 1) for width in widths])
    # Sorted by document, the places of one document stand together, in the order of the sources.
    order = np.argsort(np.where(documents >= 0, documents, np.iinfo(np.int64).max), axis=1, kind="stable")
    documents, worth = np.take_along_axis(documents, order, 1), np.take_along_axis(worth, order, 1)
    total = worth.copy()
    for j in range(1, sources):
        same = np.zeros(documents.shape, bool)
        same[:, :-j] = documents[:, j:] == documents[:, :-j]
        more = np.zeros(worth.shape)
        more[:, :-j] = worth[:, j:]
        total = np.where(same, np.maximum(total, more) if fusion.highest else total + more, total)
    first = documents >= 0
    first[:, 1:] &= documents[:, 1:] != documents[:, :-1]
    total = np.where(first, total, -np.inf)
    kept = min(depth, int(first.sum(1).max(initial=0)))
    best = np.argsort(-total, axis=1, kind="stable")[:, :kept]  # stable: equal ones in the order of documents
    real = np.take_along_axis(first, best, 1)
    found = np.where(real, np.take_along_axis(documents, best, 1), -1).astype(np.int32)
    fused = np.where(real, np.take_along_axis(total, best, 1), np.nan).astype(np.float32)
    ranks, scores = np.zeros((sources, n, kept), np.int32), np.full((sources, n, kept), np.nan, np.float32)
    given = np.take_along_axis(np.concatenate([each.scores for each in lists], 1), order, 1)
    row, column = np.nonzero(real)
    for j in range(sources):
        place = best[row, column] + j
        inside = place < documents.shape[1]
        inside[inside] = documents[row[inside], place[inside]] == found[row[inside], column[inside]]
        r, c, p = row[inside], column[inside], place[inside]
        ranks[source[order[r, p]], r, c] = rank[order[r, p]]
        scores[source[order[r, p]], r, c] = given[r, p]
    return found, Listed(tuple(labels), ranks, scores, fused)


def _weight(fusion: Fusion, weights: tuple[float, ...], source: int, sources: int) -> float:
    if weights and len(weights) != sources:
        raise UsageError(
            f"the fusion {fusion.spec!r} has {len(weights)} weights for {sources} sources: give one for each"
        )
    return weights[source] if weights else 1.0


def _weights(v: SpecOptions) -> tuple[float, ...]:
    text = v.text("weights")
    if text is None:
        return ()
    try:
        weights = tuple(float(each) for each in text.split("/"))
    except ValueError:
        weights = ()
    if not weights or not all(math.isfinite(each) and each >= 0 for each in weights) or not any(weights):
        raise UsageError(
            f"fusion {v.spec!r}: weights are numbers of 0 or more with a slash between them, as in weights=2/1"
        )
    return weights


def rrf_from_spec(v: SpecOptions) -> Fusion:
    k = v.number("k", 60.0, 0)
    assert k is not None
    return ReciprocalRank(k=k, weights=_weights(v))


def scores_from_spec(v: SpecOptions) -> Fusion:
    return Scores(weights=_weights(v))


def interleave_from_spec(v: SpecOptions) -> Fusion:
    return Interleave()
