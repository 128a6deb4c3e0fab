"""The subject of a diagnosis: the negatives of a run as arrays, with their scores, labels and vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.errors import RunError
from hardneg.false_negatives.announced import Announced
from hardneg.false_negatives.model import Posterior
from hardneg.mining.reopen import open_run_vectors
from hardneg.mining.run import Run
from hardneg.mining.run_folder import located_filters
from hardneg.storage.arrays import Float
from hardneg.storage.arrow import values_of

Int32 = NDArray[np.int32]


@dataclass(frozen=True)
class Retrieved:
    """What the search found for m queries of a run; see `hardneg.diagnostics.retrieved`.

    Attributes:
        queries: int64 `[m]`, rows of the dataset.
        ranks: int64 `[p]`, the rank of each positive of these queries, in their order; 0 for one that is no candidate.
        times: int64 `[N]`, how many of these queries have each document as a candidate.
        depth: the number of candidates that were searched for each query.
    """

    queries: NDArray[np.int64]
    ranks: NDArray[np.int64]
    times: NDArray[np.int64]
    depth: int


@dataclass(frozen=True)
class Subject:
    """The negatives of n queries, and what is known about them.

    The arrays have one row per query and K columns, where K is the largest number of negatives of a query. Rows of
    queries with fewer negatives are padded.

    Attributes:
        name: a name for titles and messages. For a run, this is its folder.
        pairs: the dataset.
        documents: int32 `[n, K]`, the row of each negative in the corpus, in the order of the run; -1 is padding.
        scores: float32 `[n, K]`, the similarity of the query and each negative; NaN is padding.
        ranks: int32 `[n, K]`, the rank of each negative among the candidates of the query, from 1; 0 is padding.
        probability: float32 `[n, K]`, the estimated probability that each negative is relevant; NaN where it is
            unknown. None if nothing estimates it.
        positive: float32 `[n]`, the lowest score among the positives of each query; NaN for a query without positives.
        asked: the number of negatives per query that the run was asked for.
        vectors: the embeddings of queries `[n, d]` and documents `[N, d]`; None if they are not available.
        info: the contents of the run's `run.json`.
        told_by: the source of `probability`: `posterior` or `hidden positives`.
        level_range: what may have to be added to all log odds of `probability`, at least and at most; None: not known.
        retrieved: what the search found, for a sample of the queries; None if only the negatives are known.
        announced: what the posterior of `probability` announced of the selection that it was calibrated for; None: nothing, or a
            guarantee.
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
    level_range: tuple[float, float] | None = None
    retrieved: Retrieved | None = None
    announced: Announced | None = None

    @property
    def real(self) -> NDArray[np.bool_]:
        """bool `[n, K]`: True for a negative, False for padding."""
        return self.documents >= 0

    @property
    def metric(self) -> str:
        """How the run compares vectors; `cosine` where it is not said."""
        return str(self.info.get("config", {}).get("metric", "cosine"))

    @property
    def counts(self) -> NDArray[np.int64]:
        """int64 `[n]`: the number of negatives of each query."""
        counts: NDArray[np.int64] = self.real.sum(1)
        return counts

    @classmethod
    def of_run(cls, run: Run) -> Subject:
        """Read the negatives of a run. Raises RunError if its files do not match its dataset."""
        pairs = run.pairs()
        table = run.negatives(pairs).combine_chunks()
        column = table["negative_ids"].combine_chunks()
        lengths = values_of(pc.list_value_length(column)).astype(np.int64)
        width = max(int(lengths.max(initial=0)), 1)
        filled = np.arange(width) < lengths[:, None]
        rows = pairs.document_rows_of.of(pc.list_flatten(column))

        def padded(values: NDArray[Any], fill: float, dtype: type) -> NDArray[Any]:
            out: NDArray[Any] = np.full((len(pairs), width), fill, dtype)
            out[filled] = values
            return out

        probability = table["negative_false_probability"].combine_chunks()
        known = probability.null_count == 0 and int(lengths.sum()) > 0
        positive_scores = table["positive_scores"].combine_chunks()
        positives = values_of(pc.list_value_length(positive_scores)).astype(np.int64)
        lowest = np.full(len(pairs), np.nan, np.float32)
        with_positives = np.flatnonzero(positives > 0)
        if len(with_positives):
            flat = values_of(pc.list_flatten(positive_scores))
            lowest[with_positives] = np.minimum.reduceat(flat, (np.cumsum(positives) - positives)[with_positives])
        report = _report(run) if known else {}
        vectors = open_run_vectors(run, pairs, "queries"), open_run_vectors(run, pairs, "documents")
        return cls(
            str(run.folder), pairs, padded(rows, -1, np.int32),
            padded(values_of(pc.list_flatten(table["negative_scores"].combine_chunks())), np.nan, np.float32),
            padded(values_of(pc.list_flatten(table["negative_ranks"].combine_chunks())), 0, np.int32),
            padded(values_of(pc.list_flatten(probability)), np.nan, np.float32) if known else None,
            lowest, int(run.info["config"]["negatives"]),
            None if vectors[0] is None or vectors[1] is None else (vectors[0], vectors[1]), run.info,
            level_range=_level_range(report) if known else None,
            announced=Announced.of(report) if known and not report.get("guaranteed") else None,
        )  # fmt: skip


def _report(run: Run) -> dict[str, Any]:
    """What is reported of the posterior that the negatives were selected with, if its file is still there; with `guaranteed`."""
    try:
        filters = located_filters(run.folder, run.info)
        files = [spec.partition(":")[2].split(",")[0] for spec in filters if spec.startswith("posterior:")]
        posterior = Posterior.load(files[-1]) if files else None
    except RunError:
        return {}
    return {} if posterior is None else {**posterior.report, "guaranteed": posterior.guarantee is not None}


def _level_range(report: dict[str, Any]) -> tuple[float, float] | None:
    """The range of levels of a posterior, if its report tells it."""
    given = report.get("level_range")
    numbers = (
        isinstance(given, list | tuple) and len(given) == 2 and all(isinstance(each, int | float) for each in given)
    )
    return (float(given[0]), float(given[1])) if numbers and given is not None else None
