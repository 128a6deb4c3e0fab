"""Diversity: how many different documents the negatives are, and whether some are negatives of very many queries."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.diagnostics.estimates import LISTED, Estimate, Measurements, names_of, row_means, sampled, skewness, unit
from hardneg.diagnostics.measures.nearest import near_others
from hardneg.diagnostics.subject import Subject
from hardneg.storage.arrays import Float

_NEAR = 0.95  # cosine above which two documents are near copies

# Documents, and negatives, that are divided into clusters: the entropy over 64 clusters is then known to 0.003.
_CLUSTERED = 10_000


def diversity(subject: Subject, rng: np.random.Generator) -> Measurements:
    """Measure how many different documents the negatives are.

    The numbers are as follows. All but the first two need vectors.

    - `distinct`: the number of different documents among the negatives, divided by the number of negatives.
    - `coverage`: the share of the corpus that is a negative of any query.
    - `near_duplicates`: the share of a query's negatives whose cosine with an earlier negative of the query is above
      0.95; mean over queries. Of two that are nearly the same one counts: what could be left out.
    - `corpus_near_duplicates`: the share of documents whose cosine with the nearest other document of the corpus is above 0.95.
      A sample of the documents is searched in the whole corpus.
    - `cluster_coverage`: the share of the corpus's clusters that contain a negative. The clusters come from k-means on
      a sample of the documents. There are 64, or fewer for a small corpus.
    - `cluster_entropy`: the entropy of the negatives over the clusters, divided by that of the documents. It is 1 if
      the negatives are spread like the corpus.
    """
    out = Measurements()
    used = np.unique(subject.documents[subject.real])
    total = int(subject.real.sum())
    out.numbers["distinct"] = len(used) / max(1, total)
    out.numbers["coverage"] = len(used) / max(1, len(subject.pairs.document_ids))
    if subject.vectors is None:
        return out
    rows = sampled(len(subject.pairs), 2000, rng)
    out.numbers["near_duplicates"] = Estimate.share_of(repeated(subject.vectors[1], subject.documents[rows]))
    out.numbers["corpus_near_duplicates"], repeated_rows = _copied(subject, rng)
    out.ids["near_duplicate_documents"] = names_of(subject.pairs.document_ids, repeated_rows[:LISTED])
    sample = sampled(len(subject.pairs.document_ids), _CLUSTERED, rng)
    out.numbers |= _clusters(subject, unit(subject.vectors[1], sample), rng)
    return out


def repeated(vectors: Any, documents: NDArray[np.integer]) -> NDArray[np.float64]:
    """float64 `[n]`: of each query's negatives, the share with a cosine above 0.95 with an earlier one; NaN for a query without any.

    Args:
        vectors: float `[N, d]`, those of the documents.
        documents: int `[n, K]`, the negatives; -1 is padding.
    """
    flat = unit(vectors, np.maximum(documents, 0).ravel()).reshape(*documents.shape, -1)
    near = flat @ flat.transpose(0, 2, 1) > _NEAR
    near &= np.tri(near.shape[1], k=-1, dtype=bool) & (documents >= 0)[:, None, :]
    return row_means(np.where(documents >= 0, near.any(2), np.nan))


def _copied(subject: Subject, rng: np.random.Generator) -> tuple[Estimate, NDArray[np.int64]]:
    """The share of documents that have a near copy, and those of the sample that have one."""
    assert subject.vectors is not None
    rows, near, size = near_others(subject.vectors[1], "corpus", _NEAR, 1, rng)
    copied = near[:, 0] >= 0
    return Estimate.share_of(copied, size), rows[copied]


def _clusters(subject: Subject, vectors: Float, rng: np.random.Generator) -> dict[str, float]:
    """`cluster_coverage` and `cluster_entropy`. `vectors` are those of a sample of the documents, float32 `[m, d]`."""
    assert subject.vectors is not None
    import faiss

    count = min(64, len(vectors) // 39)  # faiss warns if a cluster has fewer than 39 points
    if count < 2:
        return {}
    kmeans = faiss.Kmeans(vectors.shape[1], count, niter=10, seed=0, spherical=True)
    kmeans.train(vectors)
    negatives = subject.documents[subject.real]
    if len(negatives) == 0:
        return {}
    chosen = negatives[sampled(len(negatives), _CLUSTERED, rng)]
    counts = [
        np.bincount((rows @ kmeans.centroids.T).argmax(1), minlength=count).astype(np.float64)
        for rows in (unit(subject.vectors[1], chosen), vectors)
    ]
    shares = [each / each.sum() for each in counts]
    entropies = [float(-(s[s > 0] * np.log(s[s > 0])).sum()) for s in shares]
    return {
        "cluster_coverage": float((counts[0] > 0).sum() / max(1, (counts[1] > 0).sum())),
        "cluster_entropy": entropies[0] / entropies[1] if entropies[1] > 0 else 1.0,
    }


def hubness(subject: Subject) -> Measurements:
    """Measure hubs: documents that are negatives of very many queries (Radovanovic et al. 2010, JMLR 11).

    The numbers are:

    - `hub_skew`: the skewness of the number of times that each document is a negative.
    - `hub_share`: the share of queries that have the most frequent negative. Of all queries with a positive or negatives, so that
      a filter that left negatives to a few alone makes no hubs.
    - `hub_expected`: the share of queries that a document is a negative of by chance.
    """
    times = np.bincount(subject.documents[subject.real], minlength=len(subject.pairs.document_ids)).astype(np.float64)
    order = np.argsort(-times, kind="stable")[:LISTED]
    queries = max(1, int(((subject.counts > 0) | (subject.pairs.positives.lengths > 0)).sum()))
    return Measurements(
        {
            "hub_skew": skewness(times),
            "hub_share": float(times.max(initial=0) / queries),
            "hub_expected": float(subject.counts.mean() / max(1, len(times))),
        },
        {"hubs": names_of(subject.pairs.document_ids, order[times[order] > 0])},
    )
