"""Candidates that a search found for a block of queries, and the context that filters judge them in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.errors import UsageError
from hardneg.index.base import ScoredVectors
from hardneg.storage.arrays import Float, Int, Mask, SharedLists

if TYPE_CHECKING:
    from hardneg.mining.kept_features import KeptFeatures
    from hardneg.mining.teachers import Teachers

NEAREST_FOUND = 10  # nearest documents of each query in `Context.nearest`


@dataclass(frozen=True)
class Listed:
    """Which of s sources listed each candidate of n queries, and how high.

    Attributes:
        labels: the name of each source, as in the columns of the run.
        ranks: int32 `[s, n, K]`, the rank that the source gave, from 1; 0 where it did not list the candidate.
        scores: float32 `[s, n, K]`, the score that the source gave; NaN where it did not list the candidate, or has no scores.
        fused: float32 `[n, K]`, the score of the fused list, highest first; NaN where there is no document.
    """

    labels: tuple[str, ...]
    ranks: NDArray[np.int32]
    scores: Float
    fused: Float

    def rows(self, rows: NDArray[np.integer] | slice) -> Listed:
        """The same of the queries in these rows of the block."""
        return Listed(self.labels, self.ranks[:, rows], self.scores[:, rows], self.fused[rows])

    def cut(self, width: int) -> Listed:
        """The same of the first `width` candidates."""
        return Listed(self.labels, self.ranks[:, :, :width], self.scores[:, :, :width], self.fused[:, :width])

    def wide(self, width: int) -> Listed:
        """The same, padded to `width` candidates."""
        extra = ((0, 0), (0, width - self.fused.shape[1]))
        return Listed(
            self.labels,
            np.pad(self.ranks, ((0, 0), *extra)),
            np.pad(self.scores, ((0, 0), *extra), constant_values=np.nan),
            np.pad(self.fused, extra, constant_values=np.nan),
        )

    @classmethod
    def joined(cls, blocks: list[Listed]) -> Listed:
        """Concatenate blocks of queries, padded to the widest."""
        width = max(block.fused.shape[1] for block in blocks)
        blocks = [block.wide(width) for block in blocks]
        ranks, scores = (np.concatenate([getattr(b, name) for b in blocks], axis=1) for name in ("ranks", "scores"))
        return cls(blocks[0].labels, ranks, scores, np.concatenate([b.fused for b in blocks]))


@dataclass(frozen=True)
class Candidates:
    """Documents retrieved for n queries, first those that rank highest: the nearest ones, unless several sources were fused.

    Attributes:
        queries: int64 `[n]`, rows of the dataset's queries.
        documents: int32 `[n, K]`, rows of the corpus; -1 where a query has fewer than K.
        scores: float32 `[n, K]`, those of the encoder, whatever listed the document: higher is nearer; -inf where there is none.
        positive_scores: float32 `[n]`, the lowest score of a query's positives; NaN without positives.
        vectors: float32 `[n, d]`, the queries' embeddings.
        listed: what the sources say of each candidate; None if the search by the encoder was the only source. With it, scores
            need not fall from rank to rank.
    """

    queries: Int
    documents: NDArray[np.int32]
    scores: Float
    positive_scores: Float
    vectors: Float
    listed: Listed | None = None

    @property
    def real(self) -> Mask:
        """bool `[n, K]`: True where there is a document."""
        return self.documents >= 0

    @property
    def ranks(self) -> NDArray[np.int32]:
        """int32 `[K]`: the rank of each column, from 1: the order of the scores, or that of the fused list."""
        return np.arange(1, self.documents.shape[1] + 1, dtype=np.int32)

    def columns(self, documents: NDArray[np.integer]) -> NDArray[np.int64]:
        """int64 `[n, k]`: the column of each of these documents `[n, k]` of the corpus; -1 where it is no candidate of its query."""
        out = np.full(documents.shape, -1, np.int64)
        for j in range(documents.shape[1]):
            match = (self.documents == documents[:, j, None]) & (documents[:, j, None] >= 0)
            out[:, j] = np.where(match.any(1), match.argmax(1), -1)
        return out

    def rows(self, rows: NDArray[np.integer]) -> Candidates:
        """The candidates of the queries in these rows of the block."""
        return Candidates(
            self.queries[rows],
            self.documents[rows],
            self.scores[rows],
            self.positive_scores[rows],
            self.vectors[rows],
            None if self.listed is None else self.listed.rows(rows),
        )

    def cut(self, width: int) -> Candidates:
        """The first `width` candidates of each query."""
        listed = None if self.listed is None else self.listed.cut(width)
        return replace(self, documents=self.documents[:, :width], scores=self.scores[:, :width], listed=listed)

    @cached_property
    def by_score(self) -> NDArray[np.int64] | None:
        """int64 `[n, K]`: the columns in the order of the scores, nearest first; None: they are in this order already."""
        return None if self.listed is None else np.argsort(-self.scores, axis=1, kind="stable")


@dataclass
class Context:
    """Everything that filters can use besides the candidates themselves.

    Attributes:
        pairs: the dataset.
        open_index: returns the vectors that were searched, to score further pairs.
        known: the positives of each query, and of queries with the same text.
        embed: returns (query vectors, document vectors) of another encoder, for guide filters.
        find_nearest: returns int32 `[n, m]`, the first few documents found for every query of the dataset, -1 where there
            are fewer, for filters that look across queries.
        kept: features that were computed for the candidates earlier, if they come from a run.
        taught: the scores of teachers that the run keeps, if the candidates come from one.
        cache: storage that filters share between blocks, such as loaded models.
    """

    pairs: Pairs
    open_index: Callable[[], ScoredVectors]
    known: SharedLists
    embed: Callable[[str], tuple[Any, ScoredVectors]] | None = None
    find_nearest: Callable[[], NDArray[np.int32]] | None = None
    kept: KeptFeatures | None = None
    taught: Teachers | None = None
    cache: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def titled(self) -> bool:
        """Whether any document has a title, so that its body differs from the whole text."""
        return not np.array_equal(self.pairs.body_keys, self.pairs.document_keys)

    @cached_property
    def copied(self) -> Mask:
        """bool `[N]`, whether a document has the same text (folded) as another one; empty texts are copies of none."""
        keys = self.pairs.document_keys
        ordered = np.sort(keys)
        repeated = np.unique(ordered[1:][(ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)])
        del ordered
        return (
            np.asarray(repeated[np.searchsorted(repeated, keys).clip(max=len(repeated) - 1)] == keys)
            if len(repeated)
            else np.zeros(len(keys), bool)
        )

    @cached_property
    def nearest(self) -> NDArray[np.int32]:
        """The result of `find_nearest`, computed once; UsageError if the context has no `find_nearest`."""
        if self.find_nearest is None:
            raise UsageError(
                "comparing queries needs Context(find_nearest=...), a function that returns the nearest documents of all"
            )
        return self.find_nearest()

    @cached_property
    def index(self) -> ScoredVectors:
        """The result of `open_index`, opened once."""
        return self.open_index()
