"""The features of a posterior: numbers that indicate the relevance of a (query, candidate) pair."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from hardneg.errors import UsageError, suggestion
from hardneg.false_negatives.listed import KINDS, listed_feature
from hardneg.false_negatives.shared_neighbors import NeighborGraph, NeighborVectors, Votes
from hardneg.mining.candidates import Candidates, Context
from hardneg.mining.cross_encoder import cross_encoder_scores
from hardneg.storage.arrays import Float, Ragged

if TYPE_CHECKING:
    from hardneg.false_negatives.lexical import Lexical

A = TypeVar("A")

FEATURES = {
    "shared_query": "cosine of the candidate's neighbor vector and the query's",
    "shared_positive": "cosine of the candidate's neighbor vector and a positive's (the highest)",
    "shared_votes": "its cosine with the pooled neighbor vectors of the positives of queries that find the same documents",
    "score": "score of query and candidate",
    "positive_score": "score of a positive and the candidate (the highest)",
    "margin": "the lowest positive's score less the candidate's",
    "local_score_query": "score, less the score of the farthest of the candidate's 50 nearest documents",
    "local_score_positive": "positive_score, less that",
    "log_rank": "natural logarithm of the rank by score",
    "score_below": "score, less the score of the query's nearest document",
    "score_z": "score, less score_mean, divided by score_spread",
    "score_gap": "score, less that of the next candidate, divided by score_spread",
    "best_score": "score of the query's nearest document",
    "score_mean": "mean of the query's scores at the ranks 11 to 60",
    "score_spread": "standard deviation of the query's scores at the ranks 11 to 60",
    "lexical_query": "TF-IDF cosine of the texts of query and candidate",
    "lexical_positive": "TF-IDF cosine of the texts of a positive and the candidate (the highest)",
    "guide:": "score of query and candidate by another encoder, written guide:st:NAME",
    "cross-encoder:": "score of query and candidate by a cross-encoder, written cross-encoder:NAME",
    "source_rank:": "natural logarithm of the rank by a source of candidates, written source_rank:LABEL",
    "source_score:": "score by a source of candidates, scaled to 0 to 1, written source_score:LABEL",
    "teacher:": "score of query and candidate by a teacher of the run, written teacher:HASH",
}

SHARED_FEATURES = ("shared_query", "shared_positive", "shared_votes")

# What takes long to compute, and is kept in a run.
KEPT = frozenset((*SHARED_FEATURES, "lexical_query", "lexical_positive"))

# More of these never makes a candidate more likely to be relevant.
FALLING = frozenset({"margin", "log_rank", "source_rank:"})

# They say how easy a query is, which may point either way.
OF_QUERY = frozenset({"best_score", "score_mean", "score_spread"})

# More of these never makes a candidate less likely to be relevant.
RISING = frozenset(FEATURES) - FALLING - OF_QUERY

_MIDDLE = slice(10, 60)  # columns of the candidates that tell how the scores of a query spread

_TIGHT = np.float32(1e-6)  # added to score_spread, which divides


@dataclass(frozen=True)
class Term:
    """One term of a posterior: a feature, or the part of it beyond a knot (a hinge; piecewise linear splines are sums of them).

    Written as `score`, `score>0.5` for max(0, score - 0.5), or `log_rank<2.3` for max(0, 2.3 - log_rank).

    Attributes:
        feature: the name of the feature.
        side: `>` or `<`; empty for the feature itself.
        knot: where the hinge starts.
    """

    feature: str
    side: str = ""
    knot: float = 0.0

    def __str__(self) -> str:
        return f"{self.feature}{self.side}{self.knot!r}" if self.side else self.feature

    @classmethod
    def parse(cls, name: str) -> Term:
        """Read a term as `str` writes it. Raises UsageError for an unknown feature or a knot that is no number."""
        if not isinstance(name, str):
            raise UsageError(f"a feature is written as its name, not {name!r}. Known: {', '.join(FEATURES)}.")
        kind, colon, model = name.partition(":")
        if colon:
            if (kind + colon) not in FEATURES or not model:
                raise UsageError(f"unknown feature {name!r}.{suggestion(name, FEATURES)}")
            if kind not in KINDS:  # names of models may hold anything
                return cls(name)
        side = next((each for each in "<>" if each in name), "")
        feature, _, knot = name.partition(side) if side else (name, "", "0")
        if not colon and feature not in FEATURES:
            raise UsageError(f"unknown feature {feature!r}.{suggestion(feature, FEATURES)}")
        try:
            number = float(knot)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UsageError(f"the term {name!r} has no number behind {side!r}")
        return cls(feature, side, number)

    def of(self, values: Mapping[str, A]) -> A:
        """The value of the term; numpy arrays and torch tensors of any shape, by the names of the features."""
        value: Any = values[self.feature]
        if not self.side:
            return cast(A, value)
        return cast(A, (value - self.knot if self.side == ">" else self.knot - value).clip(min=0))

    @property
    def direction(self) -> int:
        """1: more of it never makes relevance less likely; -1: never more likely; 0: either."""
        if rises(self.feature):
            return 1
        if self.feature in OF_QUERY:
            return 0
        return 1 if self.side == "<" else -1  # a falling one


def check_features(names: Sequence[str]) -> None:
    """Raise UsageError for unknown features."""
    if isinstance(names, str):
        raise UsageError(f"features is a list of names, not one name: write features=({names!r},)")
    for name in names:
        Term.parse(name)


def rises(name: str) -> bool:
    """Whether relevance can only become more likely as this feature grows."""
    kind, colon, _ = name.partition(":")
    return kind + colon in RISING


class PairFeatures:
    """Computes the features of candidates, for any block of queries.

    The neighbor graph, the votes and the TF-IDF vectors are computed when they are first needed. All blocks share
    them.

    Args:
        context: the context of the mining pass.
        positives: the positives of every query, or None for those of the dataset. To hide some, pass only the others.
    """

    def __init__(self, context: Context, positives: Ragged | None = None) -> None:
        self.context = context
        self.positives = context.pairs.positives if positives is None else positives
        # These are stored with the context: all blocks share them, and they are freed with the pass.
        self.cache: dict[str, Any] = context.cache if positives is None else {}
        self.kept = context.kept if positives is None else None

    @property
    def graph(self) -> NeighborGraph:
        if "neighbor graph" not in self.context.cache:
            self.context.cache["neighbor graph"] = NeighborGraph.kept(self.context)
        made: NeighborGraph = self.context.cache["neighbor graph"]
        return made

    @property
    def votes(self) -> Votes:
        if "votes" not in self.cache:
            self.cache["votes"] = Votes(self.graph, self.context.nearest, self.positives)
        made: Votes = self.cache["votes"]
        return made

    @property
    def lexical(self) -> Lexical:
        from hardneg.false_negatives.lexical import Lexical  # loads scikit-learn, which mining alone does not need

        if "lexical" not in self.context.cache:
            self.context.cache["lexical"] = Lexical(self.context.pairs)
        made: Lexical = self.context.cache["lexical"]
        return made

    def of(
        self, names: Sequence[str], candidates: Candidates, columns: NDArray[np.integer] | None = None
    ) -> dict[str, Float]:
        """Compute features of candidates.

        Args:
            names: the names of the features, see `FEATURES`.
            candidates: the candidates of n queries, `[n, K]`.
            columns: int `[n, c]`, the columns of the candidates to use, -1 for none. None: all columns.

        Returns:
            float32 `[n, K]` for each name, or `[n, c]` if `columns` is given; 0 where there is no document.

        Raises:
            UsageError: a guide is among the features, and the dataset has no texts.
        """
        return _Block(self, candidates, columns).of(names)


@dataclass(frozen=True)
class Spread:
    """How the scores of each query spread, float32 `[n, 1]`.

    Attributes:
        best: the highest score.
        mean, deviation: of the scores at the ranks 11 to 60; of all scores if there are fewer.
    """

    best: Float
    mean: Float
    deviation: Float

    @classmethod
    def of(cls, scores: Float) -> Spread:
        """The spread of scores `[n, K]`, highest first, -inf where there is no document."""
        scores = scores[:, : _MIDDLE.stop]  # so that the depth of a search changes no bit
        real = np.isfinite(scores)
        middle = np.zeros_like(real)
        middle[:, _MIDDLE] = real[:, _MIDDLE]
        few = middle.sum(1) < 2
        middle[few] = real[few]
        count = np.maximum(middle.sum(1, keepdims=True), 1)
        values = np.where(middle, scores, 0).astype(np.float64)
        mean = values.sum(1, keepdims=True) / count
        variance = (np.where(middle, values - mean, 0) ** 2).sum(1, keepdims=True) / count
        best = np.where(real[:, :1], scores[:, :1], 0)
        return cls(best, mean.astype(np.float32), np.sqrt(variance).astype(np.float32) + _TIGHT)


class _Block:
    """The features of one block of queries. What several of them need is computed once."""

    def __init__(self, features: PairFeatures, candidates: Candidates, columns: NDArray[np.integer] | None) -> None:
        self.all, self.candidates = features, candidates
        self.queries = candidates.queries
        if columns is None:
            self.documents, self.scores = candidates.documents, candidates.scores
            self.ranks = _ranks(candidates)
            self.place = None
        else:
            real, place = columns >= 0, np.maximum(columns, 0)
            self.documents = np.where(real, np.take_along_axis(candidates.documents, place, 1), -1).astype(np.int32)
            self.scores = np.where(real, np.take_along_axis(candidates.scores, place, 1), -np.inf).astype(np.float32)
            self.ranks = np.take_along_axis(_ranks(candidates), place, 1)
            self.place = place
        self.positives = features.positives.take(self.queries)
        self.with_positive: NDArray[np.bool_] = self.positives.lengths > 0

    def of(self, names: Sequence[str]) -> dict[str, Float]:
        made = self._kept(names)
        costly = [name for name in names if name in KEPT and name not in made]
        for name in names:
            if name in made:
                continue
            kind, _, model = name.partition(":")
            if name in SHARED_FEATURES:
                made |= self._shared([each for each in SHARED_FEATURES if each in names and each not in made])
            elif kind == "guide":
                made[name] = self._guide(model)
            elif kind == "cross-encoder":
                made[name] = cross_encoder_scores(self.all.context, model, self.queries, self.documents)
            elif kind in KINDS:
                whole = listed_feature(name, self.candidates, self.all.context)
                made[name] = whole if self.place is None else np.take_along_axis(whole, self.place, 1)
            else:
                made[name] = self._simple(name)
        for values in made.values():
            values[self.documents < 0] = 0
        if self.all.kept is not None and self.place is None and costly:
            self.all.kept.keep(self.queries, self.candidates.documents, {name: made[name] for name in costly})
        return {name: made[name] for name in names}

    def _kept(self, names: Sequence[str]) -> dict[str, Float]:
        """Those of the features that the run keeps."""
        if self.all.kept is None or not any(name in KEPT for name in names):
            return {}
        found = self.all.kept.of([name for name in names if name in KEPT], self.queries, self.candidates.documents)
        if self.place is None:
            return found
        return {name: np.take_along_axis(values, self.place, 1) for name, values in found.items()}

    def _shared(self, names: list[str]) -> dict[str, Float]:
        graph = self.all.graph
        anchors = {"shared_query": graph.of_queries(self.candidates.documents)}
        # Without a positive, or without voters, the value for the query itself takes their place.
        if "shared_positive" in names:
            first = np.full(len(self.queries), -1)
            having, positives = self.positives.column(0)
            first[having] = positives
            anchors["shared_positive"] = _blanked(graph.vectors.take(first), self.with_positive)
        if "shared_votes" in names:
            anchors["shared_votes"] = self.all.votes.of(self.queries)
        values = dict(zip(anchors, graph.similarities(list(anchors.values()), self.documents), strict=True))
        if "shared_positive" in names:
            for j in range(1, int(self.positives.lengths.max(initial=0))):
                rows, others = self.positives.column(j)
                (more,) = graph.similarities([graph.vectors.take(others)], self.documents[rows])
                values["shared_positive"][rows] = np.maximum(values["shared_positive"][rows], more)
            alone = ~self.with_positive
            values["shared_positive"][alone] = values["shared_query"][alone]
        if "shared_votes" in names:
            unvoted = anchors["shared_votes"].counts.max(1, initial=0) == 0
            values["shared_votes"][unvoted] = values["shared_query"][unvoted]
        return values

    def _simple(self, name: str) -> Float:
        simple: dict[str, Callable[[], Float]] = {
            "score": lambda: self.scores.copy(),
            "positive_score": lambda: self.positive_score.copy(),
            "margin": lambda: self.known[:, None] - self.scores,
            "local_score_query": lambda: self.scores - self.all.graph.farthest_score[self.documents],
            "local_score_positive": lambda: self.positive_score - self.all.graph.farthest_score[self.documents],
            "log_rank": lambda: np.log(self.ranks).astype(np.float32),
            "score_below": lambda: self.scores - self.spread.best,
            "score_z": lambda: (self.scores - self.spread.mean) / self.spread.deviation,
            "score_gap": self._gap,
            "best_score": lambda: np.broadcast_to(self.spread.best, self.scores.shape).copy(),
            "score_mean": lambda: np.broadcast_to(self.spread.mean, self.scores.shape).copy(),
            "score_spread": lambda: np.broadcast_to(self.spread.deviation, self.scores.shape).copy(),
            "lexical_query": lambda: self.all.lexical.with_queries(self.queries, self.documents),
            "lexical_positive": lambda: self._highest(self.all.lexical.with_documents, "lexical_query"),
        }
        with np.errstate(invalid="ignore"):  # scores of -inf where there is no document
            return simple[name]()

    @cached_property
    def spread(self) -> Spread:
        return Spread.of(self.falling)

    @cached_property
    def falling(self) -> Float:
        """The scores of all candidates, highest first."""
        order = self.candidates.by_score
        return self.candidates.scores if order is None else np.take_along_axis(self.candidates.scores, order, 1)

    def _gap(self) -> Float:
        scores, order = self.falling, self.candidates.by_score
        after = np.where(np.isfinite(scores[:, 1:]), scores[:, 1:], scores[:, :-1])
        gap = np.zeros(scores.shape, np.float32)
        gap[:, :-1] = scores[:, :-1] - after
        if order is not None:
            sorted_gap, gap = gap, np.empty_like(gap)
            np.put_along_axis(gap, order, sorted_gap, 1)
        if self.place is not None:
            gap = np.take_along_axis(gap, self.place, 1)
        return gap / self.spread.deviation

    @cached_property
    def known(self) -> Float:
        """float32 `[n]`: the lowest score of a positive; without a positive, the score of the nearest document."""
        lowest = self.candidates.positive_scores
        return np.where(np.isnan(lowest), self.falling[:, 0], lowest)

    @cached_property
    def positive_score(self) -> Float:
        index = self.all.context.index

        def scores(rows: NDArray[np.integer], documents: NDArray[np.integer]) -> Float:
            return index.pair_scores(np.asarray(index.documents[rows], np.float32), documents)

        return self._highest(scores, "score")

    def _highest(self, compare: Callable[[NDArray[np.integer], NDArray[np.integer]], Float], without: str) -> Float:
        """The highest value over the positives; the feature `without` where there is no positive."""
        best = np.full(self.documents.shape, -np.inf, np.float32)
        for j in range(int(self.positives.lengths.max(initial=0))):
            rows, positives = self.positives.column(j)
            best[rows] = np.maximum(best[rows], compare(positives, self.documents[rows]))
        alone = ~self.with_positive
        if alone.any():
            best[alone] = self._simple(without)[alone]
        return best

    def _guide(self, model: str) -> Float:
        embed = self.all.context.embed
        if embed is None:
            raise UsageError("a guide as a feature needs the texts of the dataset: mine with a dataset that has them")
        vectors, index = embed(model)
        return index.pair_scores(np.asarray(vectors[self.queries], np.float32), self.documents)


def _ranks(candidates: Candidates) -> NDArray[np.int32]:
    """int32 `[n, K]`: the rank of each candidate in the order of the scores."""
    ranks = np.broadcast_to(candidates.ranks, candidates.documents.shape)
    if candidates.by_score is None:
        return ranks
    out = np.empty(candidates.documents.shape, np.int32)
    np.put_along_axis(out, candidates.by_score, ranks, 1)
    return out


def _blanked(vectors: NeighborVectors, keep: NDArray[np.bool_]) -> NeighborVectors:
    """`vectors` with counts of 0 in the rows where `keep` is False."""
    return NeighborVectors(vectors.members, np.where(keep[:, None], vectors.counts, 0).astype(np.uint8))
