"""Retrieval: every query that has a positive, against the whole corpus."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.encoders.base import Encoder
from hardneg.encoders.embed import embed, fit
from hardneg.encoders.factory import checked_encoder
from hardneg.encoders.report import encoding_of, metric_notes
from hardneg.errors import DataError, UsageError, suggestion
from hardneg.evaluation.ranking import parse_measures, rank_measures
from hardneg.evaluation.zero_shot import zero_shot as classified
from hardneg.index.base import METRICS
from hardneg.index.exact import ExactIndex
from hardneg.progress import Progress, with_progress
from hardneg.storage.arrays import members

DEFAULT = ("ndcg@10", "mrr@10", "recall@10", "recall@100")

_BLOCK = 4096


@dataclass(frozen=True)
class Evaluation:
    """Means over queries.

    Attributes:
        means: mean by measure.
        errors: standard errors of the means.
        queries: number of evaluated queries.
        without_positives: number of queries without a positive, which cannot be evaluated.
        documents: number of documents in the corpus.
        encoding: how the texts were encoded: prompts, number format and why; None if vectors were given.
        notes: what went wrong while encoding and was done again.
        values: float64 `[queries]` by measure: each query's own, in the order of the dataset, for tests of differences.
    """

    means: dict[str, float]
    errors: dict[str, float]
    queries: int
    without_positives: int
    documents: int
    encoding: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    values: dict[str, NDArray[np.float64]] = field(default_factory=dict, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "queries": self.queries,
            "queries_without_positives": self.without_positives,
            "documents": self.documents,
            "means": self.means,
            "standard_errors": self.errors,
            **({} if self.encoding is None else {"encoder": self.encoding}),
            **({} if not self.notes else {"warnings": self.notes}),
        }


def evaluate_vectors(
    pairs: Pairs, queries: Any, documents: Any, names: Sequence[str] = DEFAULT, metric: str = "cosine"
) -> Evaluation:
    """Evaluate the vectors of a dataset, by exact search.

    A document with the id and the text of the query is the query itself, and left out of its ranking.

    Args:
        pairs: the dataset.
        queries: `[n, d]`, one row per query of the dataset, in its order.
        documents: `[N, d]`, one row per document of the dataset, in its order.
        names: names of measures, see `rank_measures`.
        metric: `cosine`, `ip` or `l2`.

    Raises:
        DataError: no query has a positive, or the vectors are not those of this dataset.
    """
    _check_vectors(pairs, queries, documents)
    depth = max(depth for _, depth in parse_measures(names))
    rows = np.flatnonzero(pairs.positives.lengths > 0)
    if len(rows) == 0:
        raise DataError("no query of this split has a positive: there is nothing to be found")
    index = ExactIndex(documents, metric)
    own = _same_ids(pairs)
    found: list[dict[str, NDArray[np.float64]]] = []
    for start in range(0, len(rows), _BLOCK):
        here = rows[start : start + _BLOCK]
        near = index.search(np.asarray(queries[here], np.float32), min(depth + 1, index.size)).documents
        grades = pairs.positive_grades
        if grades is not None:
            grades = grades[pairs.positives.places(here)]
        ranking = _without(near, own[here])[:, :depth]
        found.append(rank_measures(ranking, pairs.positives.take(here), names, grades))
    values = {name: np.concatenate([part[name] for part in found]) for name in names}
    return Evaluation(
        {name: float(each.mean()) for name, each in values.items()},
        {name: float(each.std() / np.sqrt(len(each))) for name, each in values.items()},
        len(rows),
        len(pairs) - len(rows),
        len(pairs.document_ids),
        values=values,
    )


@with_progress
def evaluate(
    pairs: Pairs,
    encoder: Encoder | Any,
    names: Sequence[str] = DEFAULT,
    *,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    metric: str = "cosine",
    cache: Path | None = None,
    devices: tuple[str, ...] = (),
    zero_shot: bool = False,
    progress: Progress | bool = False,
) -> Evaluation:
    """Encode a dataset and evaluate it.

    Args:
        pairs: the dataset.
        encoder: the encoder, which is fitted first if it has to be; or a `SentenceTransformer`.
        names: names of measures, see `rank_measures`.
        query_prompt, document_prompt: text that is put before each query and each document; None: the encoder's own.
        metric: the score of two vectors: `cosine`, `ip` or `l2`.
        cache: a folder that keeps the vectors, under a hash of the encoder's weights, in float16 as a mining pass does, which finds
            them there; None: they are not kept, and are float32.
        devices: devices that encode at the same time, see `hardneg.encoders.devices.parse_devices`; none: the encoder's own.
        zero_shot: also classify each document by its nearest query, see `hardneg.evaluation.zero_shot`.
        progress: True for bars, or called with the progress of each stage.

    Raises:
        UsageError: a measure or the metric is unknown, or `encoder` is none. DataError: no query has a positive, or the
            encoder returned something else than vectors.
    """
    assert callable(progress)  # see `with_progress`
    parse_measures(names)
    check_metric(metric)
    encoder = checked_encoder(encoder, "encoder", precision="auto")
    fit(encoder, pairs, progress)
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        queries, documents, _ = embed(
            encoder, pairs, cache or Path(place), query_prompt=query_prompt, document_prompt=document_prompt,
            precision="float32" if cache is None else "float16", progress=progress, devices=devices, notes=notes,
        )  # fmt: skip
        evaluation = evaluate_vectors(pairs, queries, documents, names, metric)
        if zero_shot:
            shares = classified(pairs, queries, documents)
            judged = len(np.unique(pairs.positives.values))
            errors = {name: float(np.sqrt(share * (1 - share) / judged)) for name, share in shares.items()}
            evaluation = replace(evaluation, means=evaluation.means | shares, errors=evaluation.errors | errors)
    encoding = encoding_of(encoder, query_prompt, document_prompt)
    return replace(evaluation, encoding=encoding, notes=[*notes, *metric_notes(encoding, metric)])


def _check_vectors(pairs: Pairs, queries: Any, documents: Any) -> None:
    """DataError if these are not real vectors of the dataset's queries and documents; UsageError if it is a mixture."""
    if pairs.mixed is not None:
        raise UsageError(
            f"{pairs.name!r} is a mixture: its sources are evaluated each by itself, as they come from hardneg.data.parts_of(pairs)"
        )
    for what, vectors, count in (("queries", queries, len(pairs)), ("documents", documents, len(pairs.document_ids))):
        shape = tuple(vectors.shape)
        if shape != (count, documents.shape[-1]) or np.dtype(vectors.dtype).kind not in "fiu":
            raise DataError(
                f"the vectors of the {what} have shape {list(shape)} and type {vectors.dtype}, expected real numbers "
                f"[{count}, d], with the same d for both sides"
            )


def check_metric(metric: str) -> None:
    """UsageError if there is no such metric."""
    if metric not in METRICS:
        raise UsageError(f"unknown metric {metric!r}.{suggestion(str(metric), METRICS)}")


def _same_ids(pairs: Pairs) -> NDArray[np.int64]:
    """int64 `[n]`: the document that is the query itself, with its id and its text, -1 where there is none.

    In many datasets, the ids of queries and of documents are numbers that have nothing to do with each other. And a
    document that was judged relevant is found like any other.
    """
    own = pairs.document_rows_of.of(pairs.query_ids)
    same = (pairs.document_keys[own] == pairs.query_keys) | (pairs.body_keys[own] == pairs.query_keys)
    judged = members(own[:, None], pairs.positives)[:, 0]
    return np.where((own >= 0) & same & ~judged, own, -1)


def _without(near: NDArray[np.int32], own: NDArray[np.int64]) -> NDArray[np.int32]:
    """`near` without each row's own document; the row is filled up with -1."""
    found = (near == own[:, None]) & (own[:, None] >= 0)
    order = np.argsort(found, axis=1, kind="stable")
    moved = np.take_along_axis(np.where(found, -1, near), order, axis=1)
    return np.asarray(moved, np.int32)
