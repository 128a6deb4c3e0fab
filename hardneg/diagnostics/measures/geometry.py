"""Geometry of the embedding space: alignment, uniformity and effective rank."""

from __future__ import annotations

import numpy as np
import torch

from hardneg.diagnostics.estimates import Estimate, Measurements, sampled, unit
from hardneg.diagnostics.measures.batch import effective_rank
from hardneg.diagnostics.subject import Subject


def geometry(subject: Subject, rng: np.random.Generator) -> Measurements:
    """Measure the embedding space.

    `alignment`: mean squared distance of query and positive. `uniformity`: log of the mean of exp(-2 |x - y|^2) over documents (both:
    Wang and Isola 2020, arXiv 2005.10242). `effective_rank` of the documents (Roy and Vetterli 2007); `dimension`, its largest
    possible value; `rank_share`, the ratio of the two. `mean_cosine`: mean cosine of two random documents.
    """
    out = Measurements()
    if subject.vectors is None:
        return out
    rows = sampled(len(subject.pairs.document_ids), 4096, rng)
    vectors = unit(subject.vectors[1], rows)
    with_positive = np.flatnonzero(subject.pairs.positives.lengths > 0)
    chosen = with_positive[sampled(len(with_positive), 4096, rng)]
    if len(chosen):
        mine = subject.pairs.positives.take(chosen)
        cosine = (unit(subject.vectors[0], chosen) * unit(subject.vectors[1], mine.values[mine.offsets[:-1]])).sum(1)
        out.numbers["alignment"] = Estimate.mean_of(2 - 2 * cosine)
    if len(vectors) > 1:
        cosines = vectors @ vectors.T
        pairs = cosines[np.triu_indices(len(vectors), 1)]
        out.numbers["uniformity"] = float(np.log(np.exp(-2 * (2 - 2 * pairs.astype(np.float64))).mean()))
        out.numbers["mean_cosine"] = float(pairs.mean())
    out.numbers["effective_rank"] = effective_rank(torch.from_numpy(vectors))
    out.numbers["dimension"] = int(vectors.shape[1])
    out.numbers["rank_share"] = out.numbers["effective_rank"] / out.numbers["dimension"]
    return out
