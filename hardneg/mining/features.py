"""What a posterior looks at: numbers that say something about the relevance of a (query, candidate) pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Ragged
from hardneg.errors import UsageError, suggestion
from hardneg.mining.candidates import Candidates, Context, Float
from hardneg.mining.cross_encoder import cross_encoder_scores
from hardneg.mining.crowds import Crowd, Crowds, Votes

if TYPE_CHECKING:
    from hardneg.mining.lexical import Lexical

FEATURES = {
    "crowd_query": "how much the candidate's crowd is the query's",
    "crowd_positive": "how much the candidate's crowd is a positive's (the highest)",
    "crowd_votes": "how much it is that of the positives of queries which find the same documents",
    "score": "score of query and candidate",
    "positive_score": "score of a positive and the candidate (the highest)",
    "margin": "the lowest positive's score less the candidate's",
    "reach_query": "score, less the score of the farthest of the candidate's 50 nearest documents",
    "reach_positive": "positive_score, less that",
    "log_rank": "natural logarithm of the rank",
    "lexical_query": "TF-IDF cosine of the texts of query and candidate",
    "lexical_positive": "TF-IDF cosine of the texts of a positive and the candidate (the highest)",
    "guide:": "score of query and candidate by another encoder, written guide:st:NAME",
    "cross-encoder:": "score of query and candidate by a cross-encoder, written cross-encoder:NAME",
}
CROWDS = ("crowd_query", "crowd_positive", "crowd_votes")
# More of these never makes a candidate less likely to be relevant.
RISING = frozenset(FEATURES) - {"margin", "log_rank"}


def check_features(names: Sequence[str]) -> None:
    """UsageError for a feature that there is not."""
    for name in names:
        kind, colon, model = name.partition(":")
        if (kind + colon) not in FEATURES or (colon and not model):
            raise UsageError(f"unknown feature {name!r}.{suggestion(name, FEATURES)}")


def rises(name: str) -> bool:
    """Whether relevance can only become more likely as this feature grows."""
    kind, colon, _ = name.partition(":")
    return kind + colon in RISING


class PairFeatures:
    """Features of the candidates of any block of queries.

    What is made once for all blocks (crowds, votes, vectors of guides) is made when it is first asked for.

    Args:
        context: of the pass.
        positives: of every query; None: those of the dataset. Fewer of them where some are hidden to be found again.
    """

    def __init__(self, context: Context, positives: Ragged | None = None) -> None:
        self.context = context
        self.positives = context.pairs.positives if positives is None else positives
        # What is made stands with the context, not here: all blocks share it, and it dies with the pass.
        self.cache: dict[str, Any] = context.cache if positives is None else {}

    @property
    def crowds(self) -> Crowds:
        if "crowds" not in self.context.cache:
            self.context.cache["crowds"] = Crowds.of(self.context.index)
        made: Crowds = self.context.cache["crowds"]
        return made

    @property
    def votes(self) -> Votes:
        if "votes" not in self.cache:
            self.cache["votes"] = Votes(self.crowds, self.context.nearest, self.positives)
        made: Votes = self.cache["votes"]
        return made

    @property
    def lexical(self) -> Lexical:
        from hardneg.mining.lexical import Lexical  # loads scikit-learn, which mining alone does not need

        if "lexical" not in self.context.cache:
            self.context.cache["lexical"] = Lexical(self.context.pairs)
        made: Lexical = self.context.cache["lexical"]
        return made

    def of(
        self, names: Sequence[str], candidates: Candidates, columns: NDArray[np.integer] | None = None
    ) -> dict[str, Float]:
        """Features by name, float32 `[n, K]` each.

        Args:
            names: see `FEATURES`.
            candidates: of n queries.
            columns: int `[n, c]`, only these of the candidates, -1 where there is none; the answer is `[n, c]` then.
        """
        return _Block(self, candidates, columns).of(names)


class _Block:
    """Features of one block of queries; what several of them need is computed once."""

    def __init__(self, features: PairFeatures, candidates: Candidates, columns: NDArray[np.integer] | None) -> None:
        self.all, self.candidates = features, candidates
        self.queries = candidates.queries
        if columns is None:
            self.documents, self.scores = candidates.documents, candidates.scores
            self.ranks = np.broadcast_to(candidates.ranks, self.documents.shape)
        else:
            real, place = columns >= 0, np.maximum(columns, 0)
            self.documents = np.where(real, np.take_along_axis(candidates.documents, place, 1), -1).astype(np.int32)
            self.scores = np.where(real, np.take_along_axis(candidates.scores, place, 1), -np.inf).astype(np.float32)
            self.ranks = (place + 1).astype(np.int32)
        self.positives = features.positives.take(self.queries).padded()
        self.with_positive: NDArray[np.bool_] = np.any(self.positives >= 0, axis=1)

    def of(self, names: Sequence[str]) -> dict[str, Float]:
        made: dict[str, Float] = {}
        for name in names:
            kind, _, model = name.partition(":")
            if name in CROWDS:
                if name not in made:
                    made |= self._crowds([each for each in CROWDS if each in names])
            elif kind == "guide":
                made[name] = self._guide(model)
            elif kind == "cross-encoder":
                made[name] = self._cross_encoder(model)
            else:
                made[name] = self._simple(name)
        for values in made.values():
            values[self.documents < 0] = 0
        return {name: made[name] for name in names}

    def _crowds(self, names: list[str]) -> dict[str, Float]:
        crowds = self.all.crowds
        around = {"crowd_query": crowds.around(self.candidates.documents)}
        # Where there is no positive, and where nobody votes, what the query itself says stands for it.
        if "crowd_positive" in names:
            around["crowd_positive"] = _instead(
                crowds.crowd.take(self.positives[:, 0] if self.positives.shape[1] else np.full(len(self.queries), -1)),
                self.with_positive,
            )
        if "crowd_votes" in names:
            around["crowd_votes"] = self.all.votes.of(self.queries)
        values = dict(zip(around, crowds.similarities(list(around.values()), self.documents), strict=True))
        if "crowd_positive" in names:
            for j in range(1, self.positives.shape[1]):
                rows = np.flatnonzero(self.positives[:, j] >= 0)
                other = crowds.crowd.take(self.positives[rows, j])
                (more,) = crowds.similarities([other], self.documents[rows])
                values["crowd_positive"][rows] = np.maximum(values["crowd_positive"][rows], more)
            alone = ~self.with_positive
            values["crowd_positive"][alone] = values["crowd_query"][alone]
        if "crowd_votes" in names:
            silent = around["crowd_votes"].counts.max(1, initial=0) == 0
            values["crowd_votes"][silent] = values["crowd_query"][silent]
        return values

    def _simple(self, name: str) -> Float:
        simple: dict[str, Callable[[], Float]] = {
            "score": lambda: self.scores.copy(),
            "positive_score": lambda: self.positive_score.copy(),
            "margin": lambda: self.known[:, None] - self.scores,
            "reach_query": lambda: self.scores - self.all.crowds.reach[self.documents],
            "reach_positive": lambda: self.positive_score - self.all.crowds.reach[self.documents],
            "log_rank": lambda: np.log(self.ranks).astype(np.float32),
            "lexical_query": lambda: self.all.lexical.with_queries(self.queries, self.documents),
            "lexical_positive": lambda: self._highest(self.all.lexical.with_documents, "lexical_query"),
        }
        with np.errstate(invalid="ignore"):  # scores of -inf where there is no document
            return simple[name]()

    @cached_property
    def known(self) -> Float:
        """float32 `[n]`: the lowest positive's score; without one, that of the nearest document."""
        lowest = self.candidates.positive_scores
        return np.where(np.isnan(lowest), self.candidates.scores[:, 0], lowest)

    @cached_property
    def positive_score(self) -> Float:
        index = self.all.context.index

        def scores(rows: NDArray[np.integer], documents: NDArray[np.integer]) -> Float:
            return index.pair_scores(np.asarray(index.documents[rows], np.float32), documents)

        return self._highest(scores, "score")

    def _highest(self, compare: Callable[[NDArray[np.integer], NDArray[np.integer]], Float], without: str) -> Float:
        """The highest of what the positives say; the feature `without` where there is none."""
        best = np.full(self.documents.shape, -np.inf, np.float32)
        for j in range(self.positives.shape[1]):
            rows = np.flatnonzero(self.positives[:, j] >= 0)
            best[rows] = np.maximum(best[rows], compare(self.positives[rows, j], self.documents[rows]))
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

    def _cross_encoder(self, model: str) -> Float:
        return cross_encoder_scores(self.all.context, model, self.queries, self.documents)


def _instead(crowd: Crowd, there: NDArray[np.bool_]) -> Crowd:
    """`crowd` with nothing in the rows that are not `there`."""
    return Crowd(crowd.members, np.where(there[:, None], crowd.counts, 0).astype(np.uint8))
