"""Geometry of the embedding space: alignment, uniformity and effective rank."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hardneg.diagnostics.estimates import Estimate, Measurements, sampled, unit
from hardneg.diagnostics.measures.batch import effective_rank
from hardneg.diagnostics.subject import Subject
from hardneg.storage.arrays import Float


def geometry(subject: Subject, rng: np.random.Generator) -> Measurements:
    """Measure the embedding space on samples of the normalized vectors. Without vectors, nothing is measured.

    The numbers are:

    - `alignment`: the mean squared distance between a query and its positive (Wang and Isola 2020, arXiv 2005.10242).
    - `uniformity`: the log of the mean of exp(-2 |x - y|^2) over pairs of documents (from the same paper).
    - `mean_cosine`: the mean cosine of two random documents; `query_mean_cosine`: of two random queries with a positive.
    - `effective_rank`: the effective rank of the documents (Roy and Vetterli 2007).
    - `dimension`: the number of components of a vector.
    - `rank_share`: `effective_rank` divided by the largest that it can be: `dimension`, or the number of documents that were
      measured if there are fewer.
    """
    out = Measurements()
    if subject.vectors is None:
        return out
    rows = sampled(len(subject.pairs.document_ids), 4096, rng)
    vectors = unit(subject.vectors[1], rows)
    with_positive = np.flatnonzero(subject.pairs.positives.lengths > 0)
    chosen = with_positive[sampled(len(with_positive), 4096, rng)]
    if len(chosen):
        positives = subject.pairs.positives.take(chosen)
        first = positives.values[positives.offsets[:-1]]
        asked = unit(subject.vectors[0], chosen)
        cosine = (asked * unit(subject.vectors[1], first)).sum(1)
        out.numbers["alignment"] = Estimate.mean_of(2 - 2 * cosine)
        if len(asked) > 1:
            out.numbers["query_mean_cosine"] = _of_pairs(_few(asked))["mean_cosine"]
    if len(vectors) > 1:
        out.numbers |= _of_pairs(_few(vectors))
    out.numbers["effective_rank"] = effective_rank(torch.from_numpy(vectors))
    out.numbers["dimension"] = int(vectors.shape[1])
    out.numbers["rank_share"] = out.numbers["effective_rank"] / max(1, min(vectors.shape))
    return out


def _few(vectors: Float) -> Tensor:
    """At most 2,048 of the vectors. Of more, means over pairs would be known no better than anybody needs: to about 0.001."""
    return torch.from_numpy(vectors[:: -(-len(vectors) // 2048)])


def _of_pairs(vectors: Tensor) -> dict[str, float]:
    """`uniformity` and `mean_cosine` of all pairs of these vectors, float32 `[m, d]`, m at least 2."""
    count = len(vectors)
    cosines = vectors @ vectors.T
    cosines.fill_diagonal_(0)
    total = cosines.sum(dtype=torch.float64)
    energy = (4 * cosines - 4).exp_().fill_diagonal_(0).sum(dtype=torch.float64)  # exp(-2 |x - y|^2)
    pairs = count * (count - 1)
    return {"uniformity": float(torch.log(energy / pairs)), "mean_cosine": float(total / pairs)}
