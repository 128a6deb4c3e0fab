"""Faults of vectors that look like faults of texts: one vector for many texts, and documents that are near to all by their length."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.diagnostics.estimates import LISTED, Measurements, names_of, sampled
from hardneg.diagnostics.subject import Subject

_READ = 20_000  # the largest number of vectors of a side that are compared


def vector_faults(subject: Subject, rng: np.random.Generator) -> Measurements:
    """Measure what can be wrong with vectors whatever their texts are. Needs the vectors of the run.

    The numbers are:

    - `one_vector_queries_share`, `one_vector_documents_share`: the share of queries (documents) in the largest group that has one
      vector, the same bit for bit, though its texts differ. The ids `queries_of_one_vector`, `documents_of_one_vector` name some.
    - `hub_length`: where vectors are compared by inner products, how many times as long as the median document the document is that
      is a negative of the most queries. A long vector has a large product with all queries that point to its side at all.
    """
    out = Measurements()
    if subject.vectors is None:
        return out
    keys = subject.pairs.query_keys, subject.pairs.document_keys
    ids = subject.pairs.query_ids, subject.pairs.document_ids
    for side, vectors, texts, names in zip(("queries", "documents"), subject.vectors, keys, ids, strict=True):
        rows = sampled(len(vectors), _READ, rng)
        group = _largest_group(np.asarray(vectors[rows]), np.asarray(texts)[rows])
        out.numbers[f"one_vector_{side}_share"] = len(group) / max(1, len(rows))
        out.ids[f"{side}_of_one_vector"] = names_of(names, rows[group[:LISTED]])
    times = np.bincount(subject.documents[subject.real], minlength=len(subject.pairs.document_ids))
    if subject.metric == "ip" and times.any():
        lengths = _lengths(subject.vectors[1], sampled(len(times), _READ, rng))
        median = float(np.median(lengths))
        hub = float(_lengths(subject.vectors[1], np.array([times.argmax()]))[0])
        out.numbers["hub_length"] = hub / median if median > 0 else float("nan")
    return out


def _lengths(vectors: Any, rows: NDArray[np.integer]) -> NDArray[np.floating]:
    found: NDArray[np.floating] = np.linalg.norm(np.asarray(vectors[rows], np.float32), axis=1)
    return found


def _largest_group(vectors: NDArray[Any], keys: NDArray[np.integer]) -> NDArray[np.int64]:
    """The rows of the largest group of equal vectors with at least two different texts, by their keys; empty if there is none."""
    if len(vectors) == 0:
        return np.empty(0, np.int64)
    whole = np.ascontiguousarray(vectors).view(np.dtype((np.void, vectors.dtype.itemsize * vectors.shape[1]))).ravel()
    _, group, counts = np.unique(whole, return_inverse=True, return_counts=True)
    pairs = np.unique(np.stack([group, keys]), axis=1)[0]
    texts = np.bincount(pairs, minlength=len(counts))
    best = int(np.where(texts > 1, counts, 0).argmax())
    return np.flatnonzero(group == best) if texts[best] > 1 else np.empty(0, np.int64)
