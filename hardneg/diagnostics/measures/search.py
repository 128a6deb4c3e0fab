"""Search quality: whether the search found the nearest documents, for the run's own vectors and for the encoder as it is now."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hardneg.diagnostics.estimates import Estimate, Measurements, sampled, unit
from hardneg.diagnostics.subject import Subject
from hardneg.refresh.staleness import Staleness, staleness_between
from hardneg.storage.arrays import Float

_QUERIES = 256  # queries that are searched exactly; fewer if the corpus is so large that it would take longer than

_OPERATIONS = 2e11

_BLOCK = 16384  # documents compared at once

_CLOSE = 1e-5  # scores closer than this count as equal; for large scores, a relative difference


def search_quality(subject: Subject, rng: np.random.Generator) -> Measurements:
    """Measure the search on a sample, with the run's vectors.

    `recall`: share of the documents at least as near as a query's farthest negative that the index found. If that negative has rank r
    and n documents are nearer, this is r / (n + 1). `recall_said`: the recall that the index measured itself; it replaces `recall`
    if the run has no vectors. `score_error`: mean difference between the scores in the run and those of its vectors.
    `stale_scores`: share of scores that differ by more than float16 rounding. Such a run was searched with other vectors.
    """
    resolved = subject.info["resolved"]
    said = float(resolved["recall"]["measured"])
    out = Measurements({"index": resolved["index"], "recall": said, "recall_said": said})
    if subject.vectors is None:
        return out
    metric = subject.info["config"]["metric"]
    rows = np.flatnonzero(subject.counts > 0)
    rows = rows[sampled(len(rows), 1000, rng)]
    if metric == "cosine":
        documents = np.maximum(subject.documents[rows], 0)
        flat = unit(subject.vectors[1], documents.ravel()).reshape(*documents.shape, -1)
        difference = np.abs(np.einsum("bd,bkd->bk", unit(subject.vectors[0], rows), flat) - subject.scores[rows])
        known = np.isfinite(difference)
        out.numbers["score_error"] = float(difference[known].mean()) if known.any() else 0.0
        out.numbers["stale_scores"] = float((difference[known] > 0.01).mean()) if known.any() else 0.0
    if len(rows):
        size = len(subject.pairs.document_ids) * subject.vectors[1].shape[1]
        rows = rows[sampled(len(rows), int(np.clip(_OPERATIONS / (2 * size), 16, _QUERIES)), rng)]
        out.numbers["recall"] = Estimate.share_of(_recall(subject, rows, metric))
    return out


def _recall(subject: Subject, rows: NDArray[np.int64], metric: str) -> NDArray[np.float64]:
    """float64 `[m]`: for each query, the share found of the documents at least as near as its farthest negative."""
    assert subject.vectors is not None
    last = subject.ranks[rows].argmax(1)
    rank = subject.ranks[rows, last].astype(np.float64)
    queries = _vectors(subject.vectors[0], rows, metric)
    limit = torch.from_numpy(
        _scores(queries, _vectors(subject.vectors[1], subject.documents[rows, last], metric), metric)
    )
    q, nearer = torch.from_numpy(queries), torch.zeros(len(rows), dtype=torch.int64)
    for start in range(0, len(subject.pairs.document_ids), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(subject.pairs.document_ids)))
        documents = torch.from_numpy(_vectors(subject.vectors[1], block, metric))
        scores = q @ documents.T
        if metric == "l2":
            scores = 2 * scores - (documents**2).sum(1)
        nearer += (scores > (limit + _CLOSE * (1 + limit.abs()))[:, None]).sum(1)
    found: NDArray[np.float64] = np.minimum(rank / (nearer.numpy() + 1), 1)
    return found


def _vectors(vectors: NDArray[np.generic], rows: NDArray[np.integer], metric: str) -> Float:
    return unit(vectors, rows) if metric == "cosine" else np.asarray(vectors[np.asarray(rows)], np.float32)


def _scores(queries: Float, documents: Float, metric: str) -> Float:
    """float32 `[m]`, row by row; for l2, without the part that is equal for all documents of a query."""
    products: Float = (queries * documents).sum(1)
    return products if metric != "l2" else 2 * products - (documents**2).sum(1)


def moved(subject: Subject, fresh: NDArray[np.floating], rows: NDArray[np.int64]) -> Staleness:
    """How far the documents have moved: the run's vectors against new ones `[m, d]` of these rows."""
    assert subject.vectors is not None
    return staleness_between(np.asarray(subject.vectors[1][rows], np.float32), np.asarray(fresh, np.float32), 0)


def staleness(subject: Subject, fresh: NDArray[np.floating], rows: NDArray[np.int64]) -> Measurements:
    """`drift` and `overlap` (see `Staleness`) between the run's document vectors and new ones of the same rows."""
    found = moved(subject, fresh, rows)
    return Measurements({"drift": found.drift, "overlap_with_fresh": found.overlap, "fresh_sample": found.sample})
