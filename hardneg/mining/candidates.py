"""What a search found for a block of queries, before and after it was judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Int, Pairs, Ragged
from hardneg.errors import UsageError
from hardneg.index.corpus import Corpus

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Candidates:
    """Documents retrieved for n queries, nearest first.

    Attributes:
        queries: int64 `[n]`, rows of the dataset's queries.
        documents: int32 `[n, K]`, rows of the corpus; -1 where a query has fewer than K.
        scores: float32 `[n, K]`, higher is nearer; -inf where there is no document.
        positive_scores: float32 `[n]`, the lowest score of a query's positives; NaN without positives.
        vectors: float32 `[n, d]`, the queries' embeddings.
    """

    queries: Int
    documents: NDArray[np.int32]
    scores: Float
    positive_scores: Float
    vectors: Float

    @property
    def real(self) -> Mask:
        return self.documents >= 0

    @property
    def ranks(self) -> NDArray[np.int32]:
        """int32 `[K]`: rank 1 is the nearest."""
        return np.arange(1, self.documents.shape[1] + 1, dtype=np.int32)

    def rows(self, rows: NDArray[np.integer]) -> Candidates:
        return Candidates(
            self.queries[rows],
            self.documents[rows],
            self.scores[rows],
            self.positive_scores[rows],
            self.vectors[rows],
        )


@dataclass
class Context:
    """What filters may look at besides the candidates.

    Attributes:
        pairs: the dataset.
        open_index: gives the index that was searched, for scores of further pairs.
        known: the positives of each query, and of those with the same text.
        embed: gives (query vectors, index of the documents) of another encoder, for guide filters.
        find_nearest: gives int32 `[n, m]`, the first few documents found for every query of the dataset, -1 where
            there are fewer: for what looks across queries.
        cache: what filters keep between blocks.
    """

    pairs: Pairs
    open_index: Callable[[], Corpus]
    known: Ragged
    embed: Callable[[str], tuple[Any, Corpus]] | None = None
    find_nearest: Callable[[], NDArray[np.int32]] | None = None
    cache: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def titled(self) -> bool:
        """Whether a document has a title, so that its body is another text than the whole."""
        return not np.array_equal(self.pairs.body_keys, self.pairs.document_keys)

    @cached_property
    def nearest(self) -> NDArray[np.int32]:
        if self.find_nearest is None:
            raise UsageError(
                "what other queries' positives say needs Context(find_nearest=...): the documents nearest to each"
            )
        return self.find_nearest()

    @cached_property
    def index(self) -> Corpus:
        return self.open_index()


def members(values: NDArray[np.integer], sets: Ragged) -> Mask:
    """bool `[n, K]`: whether `values[i, j]` is one of row i of `sets`.

    Work is proportional to K times the number of set members, or K log of it for rows with many.
    """
    found = np.zeros(values.shape, bool)
    lengths = sets.lengths
    for j in range(min(8, int(lengths.max(initial=0)))):
        rows = np.flatnonzero(lengths > j)
        member = sets.values[sets.offsets[rows] + j][:, None]
        if len(rows) == len(values):  # the usual case, without copies
            found |= values == member
        else:
            found[rows] |= values[rows] == member
    many = np.flatnonzero(lengths > 8)
    if len(many):
        # One sorted array of (row, value) keys serves all long rows at once.
        part = sets.take(many)
        uniques, codes = np.unique(part.values, return_inverse=True)
        width = len(uniques)
        keys = np.sort(part.row_numbers() * width + codes.ravel())
        place = np.searchsorted(uniques, values[many]).clip(max=width - 1)
        wanted = np.arange(len(many))[:, None] * width + place
        hit = keys[np.searchsorted(keys, wanted).clip(max=len(keys) - 1)] == wanted
        found[many] |= hit & (uniques[place] == values[many])
    return found
