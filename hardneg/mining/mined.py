"""Mined candidates in memory, from which a training draws negatives: those of a run, or of a refreshed index."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.errors import RunError, UsageError
from hardneg.index.base import Neighbors
from hardneg.mining.candidates import Candidates, Context
from hardneg.mining.filters.base import Chain
from hardneg.mining.filters.identity import Known
from hardneg.mining.reopen import Reopened
from hardneg.mining.run import Run
from hardneg.storage.arrays import Float, Mask, members

_ROWS = 4096  # queries filtered at once


@dataclass(frozen=True)
class Mined:
    """Candidates of every query of a dataset, and which of them may be negatives.

    Attributes:
        documents: int32 `[n, K]`, rows of the corpus, in the order of their ranks; -1 where a query has fewer than K.
        scores: float32 `[n, K]`, higher is nearer; -inf where there is no document.
        positive_scores: float32 `[n]`, the lowest score of a query's positives; NaN without positives.
        kept: bool `[n, K]`, True where the candidate may be a negative.
        rejected: how many candidates each filter was the first to reject, by name; empty if nobody counted.
    """

    documents: NDArray[np.int32]
    scores: Float
    positive_scores: Float
    kept: Mask
    rejected: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of_run(cls, run: Run) -> Mined:
        """The candidates of a run: all of them, not only its negatives, so that every epoch can draw others."""
        parts = list(Reopened(run))
        width = max((part.kept.shape[1] for part in parts), default=0)

        def wide(table: NDArray[np.generic], fill: float) -> NDArray[np.generic]:
            return np.pad(table, ((0, 0), (0, width - table.shape[1])), constant_values=fill)

        return cls(
            np.concatenate([wide(part.candidates.documents, -1) for part in parts]).astype(np.int32),
            np.concatenate([wide(part.candidates.scores, -np.inf) for part in parts]).astype(np.float32),
            np.concatenate([part.candidates.positive_scores for part in parts]),
            np.concatenate([wide(part.kept, False) for part in parts]).astype(bool),
        )

    @classmethod
    def of_neighbors(
        cls, neighbors: Neighbors, ids: NDArray[np.int64], pairs: Pairs, context: Context | None = None,
        chain: Chain | None = None,
    ) -> Mined:  # fmt: skip
        """The candidates that a generation of a refreshed index found for the queries of `pairs`.

        Args:
            neighbors: the neighbors of every query (`generation.neighbors`).
            ids: int64, the document (row of the corpus) of each row of the generation (`generation.ids`).
            pairs: the dataset; its known positives are never kept.
            context: what filters can use besides the candidates (`hardneg.refresh.context_of`); needed if there is a chain.
            chain: the filters (`hardneg.mining.parse_filters`); None: reject only known positives.

        Raises:
            UsageError: the neighbors are of another number of queries, or a chain comes without a context.
            RunError: the generation has documents that the dataset does not have.
        """
        if len(neighbors.documents) != len(pairs):
            raise UsageError(f"neighbors of {len(neighbors.documents):,} queries for a dataset of {len(pairs):,}")
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(pairs.document_ids):
            raise RunError(
                f"the generation numbers its documents {ids.min():,} to {ids.max():,}, but the dataset has "
                f"{len(pairs.document_ids):,}: it is damaged, or of another dataset; refresh the index anew"
            )
        rows = neighbors.documents
        documents = np.where(rows >= 0, ids[rows], -1).astype(np.int32)
        real = documents >= 0
        # A positive among the neighbors has its score there. Any other scores below the last neighbor: use that score. A query
        # without any neighbor has no such score, and its candidates have no margin.
        last = np.where(real, neighbors.scores, np.inf).min(1, initial=np.inf).astype(np.float32)
        last = np.where(np.isposinf(last), np.float32(np.nan), last)
        lowest = np.full(len(pairs), np.nan, np.float32)
        for j in range(int(pairs.positives.lengths.max(initial=0))):
            having, positives = pairs.positives.column(j)
            match = documents[having] == positives[:, None]
            found = np.take_along_axis(neighbors.scores[having], match.argmax(1)[:, None], 1)[:, 0]
            lowest[having] = np.fmin(lowest[having], np.where(match.any(1), found, last[having]))
        kept = real & ~members(documents, pairs.known_positives())
        mined = cls(documents, neighbors.scores, lowest, kept, {Known.name: int((real & ~kept).sum())})
        if chain is None:
            return mined
        if context is None:
            raise UsageError("filters need a context: give hardneg.refresh.context_of(generation, pairs)")
        return mined.filtered(chain, context)

    def filtered(self, chain: Chain, context: Context) -> Mined:
        """The same candidates; those that the chain rejects are no longer kept."""
        kept = self.kept.copy()
        counts = np.zeros(len(chain.names), np.int64)
        for start in range(0, len(kept), _ROWS):
            rows = np.arange(start, min(start + _ROWS, len(kept)))
            verdicts = chain.verdicts(self.candidates(rows), context)
            counts += np.bincount(verdicts[kept[rows]], minlength=len(counts))
            kept[rows] &= verdicts == 0
        rejected = dict(self.rejected)
        for name, count in zip(chain.names[1:], counts[1:].tolist(), strict=True):
            rejected[name] = rejected.get(name, 0) + count
        return replace(self, kept=kept, rejected=rejected)

    def candidates(self, rows: NDArray[np.integer]) -> Candidates:
        """The candidates of these queries."""
        queries = rows.astype(np.int64)
        empty = np.empty((len(rows), 0), np.float32)
        return Candidates(queries, self.documents[rows], self.scores[rows], self.positive_scores[rows], empty)
