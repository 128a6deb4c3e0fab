"""Search quality: whether the index found the nearest documents, and whether they are still the nearest ones."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hardneg.diagnostics.estimates import Estimate, Measurements, sampled, unit
from hardneg.diagnostics.measures.nearest import blocks, unit_blocks
from hardneg.diagnostics.subject import Subject
from hardneg.refresh.staleness import Staleness, staleness_between
from hardneg.storage.arrays import Float

_QUERIES = 256  # the largest number of queries to search exactly

_OPERATIONS = 2e11  # floating-point operations to spend on the exact search; with a large corpus, fewer queries fit

_CLOSE = 1e-5  # scores s and t count as equal if |s - t| <= _CLOSE * (1 + |t|)


def search_quality(subject: Subject, rng: np.random.Generator) -> Measurements:
    """Check the search of a run against the run's own vectors, on a sample of the queries.

    The numbers are:

    - `index`: the kind of the index.
    - `recall`: the share of documents that the index found, among those at least as near as a query's farthest
      negative, and of the query's source in a mixture. If that negative has rank r and n documents are nearer, this is
      r / (n + 1). Without vectors, and for a run whose candidates come from several sources (their fusion leaves near
      documents out on purpose), it equals `recall_said`.
    - `recall_said`: the recall recorded in the run.
    - `score_error`: the mean absolute difference between the scores in the run and those of its vectors. Measured for
      the cosine metric only.
    - `stale_scores`: the share of these differences that are above 0.01, which is more than float16 rounding explains.
      If it is high, the run was searched with other vectors.
    """
    resolved = subject.info["resolved"]
    stored_recall = float(resolved["recall"]["measured"])
    out = Measurements({"index": resolved["index"], "recall": stored_recall, "recall_said": stored_recall})
    if subject.vectors is None:
        return out
    metric = subject.info["config"]["metric"]
    rows = np.flatnonzero(subject.counts > 0)
    rows = rows[sampled(len(rows), 1000, rng)]
    if metric == "cosine":
        documents = np.maximum(subject.documents[rows], 0)
        flat = unit(subject.vectors[1], documents.ravel()).reshape(*documents.shape, subject.vectors[1].shape[1])
        difference = np.abs(np.einsum("bd,bkd->bk", unit(subject.vectors[0], rows), flat) - subject.scores[rows])
        known = np.isfinite(difference)
        out.numbers["score_error"] = float(difference[known].mean()) if known.any() else 0.0
        out.numbers["stale_scores"] = float((difference[known] > 0.01).mean()) if known.any() else 0.0
    if len(rows) and not resolved.get("sources"):
        size = len(subject.pairs.document_ids) * subject.vectors[1].shape[1]
        rows = rows[sampled(len(rows), int(np.clip(_OPERATIONS / (2 * size), 16, _QUERIES)), rng)]
        out.numbers["recall"] = Estimate.share_of(_recall(subject, rows, metric))
    return out


def _recall(subject: Subject, rows: NDArray[np.int64], metric: str) -> NDArray[np.float64]:
    """float64 `[m]`: the recall for each of the queries in `rows`, as defined in `search_quality`."""
    assert subject.vectors is not None
    last = subject.ranks[rows].argmax(1)
    rank = subject.ranks[rows, last].astype(np.float64)
    queries = _vectors(subject.vectors[0], rows, metric)
    limit = torch.from_numpy(
        _scores(queries, _vectors(subject.vectors[1], subject.documents[rows, last], metric), metric)
    )
    q, nearer = torch.from_numpy(queries), np.zeros(len(rows), np.int64)
    limit = limit + _CLOSE * (1 + limit.abs())
    mixed = subject.pairs.mixed
    for start, documents in unit_blocks(subject.vectors[1]) if metric == "cosine" else blocks(subject.vectors[1]):
        scores = documents @ q.T
        if metric == "l2":
            scores = 2 * scores - (documents**2).sum(1, keepdim=True)
        above = (scores > limit).numpy()
        if mixed is not None:  # each source was searched by itself
            above &= mixed.documents[start : start + len(documents), None] == mixed.queries[rows]
        nearer += np.count_nonzero(above, axis=0)
    recall: NDArray[np.float64] = np.minimum(rank / (nearer + 1), 1)
    return recall


def _vectors(vectors: NDArray[np.generic], rows: NDArray[np.integer], metric: str) -> Float:
    """float32 `[m, d]`: the given rows of `vectors`, normalized if the metric is cosine."""
    return unit(vectors, rows) if metric == "cosine" else np.asarray(vectors[np.asarray(rows)], np.float32)


def _scores(queries: Float, documents: Float, metric: str) -> Float:
    """float32 `[m]`: the score of each query and the document in the same row.

    For l2, this is the negative squared distance plus |query|^2, which is the same for all documents of a query.
    """
    products: Float = (queries * documents).sum(1)
    return products if metric != "l2" else 2 * products - (documents**2).sum(1)


def moved(subject: Subject, fresh: NDArray[np.floating], rows: NDArray[np.int64]) -> Staleness:
    """Compare the run's vectors of the documents in `rows` with fresh vectors `[m, d]` of the same documents."""
    assert subject.vectors is not None
    return staleness_between(np.asarray(subject.vectors[1][rows], np.float32), np.asarray(fresh, np.float32), 0)


def staleness(subject: Subject, fresh: NDArray[np.floating], rows: NDArray[np.int64]) -> Measurements:
    """Measure how far the encoder has moved since the run was mined.

    Args:
        subject: negatives with vectors.
        fresh: `[m, d]`, vectors of a sample of the documents from the encoder in its present state.
        rows: int64 `[m]`, the rows of these documents.

    Returns:
        `drift` and `overlap_with_fresh`: the drift and overlap of the document vectors, as defined by `Staleness`.
        `fresh_sample`: the number of documents in the sample.
    """
    change = moved(subject, fresh, rows)
    return Measurements({"drift": change.drift, "overlap_with_fresh": change.overlap, "fresh_sample": change.sample})
