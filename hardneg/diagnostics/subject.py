"""The subject of a diagnosis: the negatives of a run as arrays, with the vectors and labels that exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.errors import RunError
from hardneg.mining.reopen import open_run_vectors
from hardneg.mining.run import Run
from hardneg.storage.arrays import Float
from hardneg.storage.arrow import values_of

Int32 = NDArray[np.int32]


@dataclass(frozen=True)
class Subject:
    """Negatives of n queries, and what is known about them.

    Attributes:
        name: a name for people.
        pairs: the dataset.
        documents: int32 `[n, K]`, rows of the corpus, in the order of the run; -1 where a query has fewer than K.
        scores: float32 `[n, K]`, NaN where there is none.
        ranks: int32 `[n, K]`, ranks among the candidates; 0 where there is none.
        probability: float32 `[n, K]`, the posterior's probability of being relevant, NaN where it is unknown; None without a
            posterior.
        positive: float32 `[n]`, the lowest score of a positive; NaN without one.
        asked: the requested number of negatives per query.
        vectors: (queries `[n, d]`, documents `[N, d]`); None if they are not available.
        info: the contents of the run's `run.json`.
        told_by: the source of `probability`.
    """

    name: str
    pairs: Pairs
    documents: Int32
    scores: Float
    ranks: Int32
    probability: Float | None
    positive: Float
    asked: int
    vectors: tuple[Any, Any] | None
    info: dict[str, Any]
    told_by: str = "posterior"

    @property
    def real(self) -> NDArray[np.bool_]:
        return self.documents >= 0

    @property
    def counts(self) -> NDArray[np.int64]:
        """`[n]`: number of negatives of each query."""
        counts: NDArray[np.int64] = self.real.sum(1)
        return counts

    @classmethod
    def of_run(cls, run: Run) -> Subject:
        """Read a run. Raises RunError if its files do not belong together."""
        pairs, table = run.pairs(), run.negatives().combine_chunks()
        if len(table) != len(pairs):
            raise RunError(f"{run.folder}: negatives of {len(table):,} queries, but the dataset has {len(pairs):,}")
        column = table["negative_ids"].combine_chunks()
        lengths = values_of(pc.list_value_length(column)).astype(np.int64)
        width = max(int(lengths.max(initial=0)), 1)
        inside = np.arange(width) < lengths[:, None]
        places = pc.index_in(pc.list_flatten(column), value_set=pairs.document_ids.cast(pa.string()))
        if places.null_count:
            raise RunError(
                f"{run.folder}: negatives.parquet names documents that the dataset has not: the run is damaged"
            )

        def wide(values: NDArray[Any], fill: float, dtype: type) -> NDArray[Any]:
            out: NDArray[Any] = np.full((len(pairs), width), fill, dtype)
            out[inside] = values
            return out

        probability = table["negative_false_probability"].combine_chunks()
        known = probability.null_count == 0 and int(lengths.sum()) > 0
        positive_scores = table["positive_scores"].combine_chunks()
        many = values_of(pc.list_value_length(positive_scores)).astype(np.int64)
        lowest = np.full(len(pairs), np.nan, np.float32)
        some = np.flatnonzero(many > 0)
        if len(some):
            flat = values_of(pc.list_flatten(positive_scores))
            lowest[some] = np.minimum.reduceat(flat, (np.cumsum(many) - many)[some])
        vectors = open_run_vectors(run, pairs, "queries"), open_run_vectors(run, pairs, "documents")
        return cls(
            str(run.folder), pairs, wide(values_of(places), -1, np.int32),
            wide(values_of(pc.list_flatten(table["negative_scores"].combine_chunks())), np.nan, np.float32),
            wide(values_of(pc.list_flatten(table["negative_ranks"].combine_chunks())), 0, np.int32),
            wide(values_of(pc.list_flatten(probability)), np.nan, np.float32) if known else None,
            lowest, int(run.info["config"]["negatives"]),
            None if vectors[0] is None or vectors[1] is None else (vectors[0], vectors[1]), run.info,
        )  # fmt: skip
