"""Sketches: a posterior as one inner product per pair, cheap enough for a whole memory bank and for the loss.

The logit of a shared-neighbor posterior is a weighted sum of three cosines of sparse neighbor vectors. Every neighbor
vector is hashed, with random signs, to a dense vector of a few hundred components. This keeps inner products up to
noise of about 1 / sqrt(components) (count sketch, Charikar, Chen and Farach-Colton 2002; feature hashing, Weinberger
et al. 2009, arXiv 0902.2206). The three weighted vectors of a query are added to one vector. P(relevant) of any
document is then a logistic function of one inner product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hardneg.errors import UsageError
from hardneg.false_negatives.features import SHARED_FEATURES, PairFeatures
from hardneg.false_negatives.model import Posterior
from hardneg.false_negatives.shared_neighbors import NeighborVectors
from hardneg.hashing import mix
from hardneg.mining.candidates import Context
from hardneg.storage.arrays import Float

_ROWS = 4096  # neighbor vectors that are hashed at once

_STEP, _MOST_STEPS = 0.125, 120  # of the log odds, by which a level is lowered

_LIMITS = 0.02, 0.2  # between these a document becomes suspect, whatever the threshold; 0.2 is that of training


@dataclass(frozen=True)
class Sketch:
    """Vectors of queries and documents whose inner products, plus the intercept, are the log odds of relevance.

    Attributes:
        queries: float32 `[n, m]`, one row for each query of the dataset. `to` may change the dtype.
        documents: float32 `[N, m]`, one row for each document.
        intercept: the intercept of the log odds.

    Raises:
        UsageError: a number is NaN or infinite, as in float16 those above 65,504 are: their products would be NaN.

    >>> sketch = Sketch(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 2.0]]), intercept=-1.0)
    >>> sketch.logit(torch.tensor([0]), torch.tensor([0, 1]))
    tensor([[ 1., -1.]])
    """

    queries: torch.Tensor
    documents: torch.Tensor
    intercept: float

    def __post_init__(self) -> None:
        for side in ("queries", "documents"):
            vectors = getattr(self, side)
            if not bool(torch.isfinite(vectors).all()):
                raise UsageError(
                    f"the sketch of the {side} holds NaN or infinity as {str(vectors.dtype).removeprefix('torch.')}: make it anew, or "
                    f"keep it as float32"
                )
        if not math.isfinite(self.intercept):
            raise UsageError(f"the intercept of the sketch is {self.intercept}, expected a finite number")

    @classmethod
    def blank(cls, queries: int, documents: int) -> Sketch:
        """A sketch that gives every pair a probability of 0."""
        return cls(torch.zeros(queries, 1), torch.zeros(documents, 1), -float(np.finfo(np.float32).max))

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Sketch:
        """A copy of the sketch on another device, or with another dtype."""
        return Sketch(self.queries.to(device, dtype), self.documents.to(device, dtype), self.intercept)

    def logit(self, queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        """The log odds of relevance.

        Args:
            queries: int64 `[B]`, rows of the dataset's queries.
            documents: int64 `[S]`, rows of the corpus; every query is compared with all of them. Or int64 `[B, K]`:
                each query is compared with its own K documents.

        Returns:
            float32 `[B, S]` or `[B, K]`.
        """
        query_vectors, document_vectors = self.queries[queries], self.documents[documents]
        if documents.ndim == 1:
            return (query_vectors @ document_vectors.T).float() + self.intercept
        return torch.einsum("bm,bkm->bk", query_vectors, document_vectors).float() + self.intercept

    def probability(self, queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        """P(relevant), with the arguments and the shape of `logit`.

        Use it in a loss to drop negatives above a threshold, or to weight each negative by 1 - P(relevant).
        """
        return torch.sigmoid(self.logit(queries, documents))


def make_sketch(posterior: Posterior, context: Context, components: int = 512, seed: int = 0) -> Sketch:
    """Make the sketch of a dataset.

    If more documents of a query would be suspect (above the posterior's threshold) than the posterior expects to be relevant, the
    intercept is lowered until they are not.

    Args:
        posterior: a posterior with `in_loss`, as `hardneg calibrate` learns it by default, or with shared-neighbor features
            only.
        context: the context of the dataset. Its `find_nearest` returns the nearest documents of every query, ten or
            more.
        components: m, the number of components. The noise of the log odds is about the size of the weights / sqrt(m).
        seed: the random seed of the hash.

    Raises:
        UsageError: the posterior has other features, `components` is below 1, or the context has no `find_nearest`.
    """
    model = posterior if posterior.in_loss is None else posterior.in_loss
    others = [name for name in model.features if name not in SHARED_FEATURES]
    if others:
        raise UsageError(
            f"a posterior of {', '.join(others)} is no inner product: to use a posterior in training, calibrate with "
            f"shared-neighbor features only"
        )
    if components < 1:
        raise UsageError(f"components={components} must be 1 or more")
    weights = dict(zip(model.features, model.weights, strict=True))
    features = PairFeatures(context)
    size, total = features.graph.size, len(context.pairs)
    places, signs = _hash(size, components, seed)
    documents = np.empty((size, components), np.float32)
    for start in range(0, size, _ROWS):
        rows = slice(start, start + _ROWS)
        documents[rows] = _hashed(features.graph.vectors.take(rows), places, signs, components)
    queries = np.empty((total, components), np.float32)
    for start in range(0, total, _ROWS):
        chosen = np.arange(start, min(start + _ROWS, total))
        queries[chosen] = _of_queries(features, chosen, weights, places, signs, components)
    made = Sketch(torch.from_numpy(queries), torch.from_numpy(documents), model.intercept)
    expected = _expected_of_a_query(posterior.report)
    return made if expected is None else _not_above(made, expected, posterior.threshold, seed)


def _expected_of_a_query(report: Mapping[str, Any]) -> float | None:
    """How many relevant documents a query has by the posterior's report, at most; None if it does not say (or is damaged)."""
    try:
        found = float(report["relevant_per_query_range"][1]) + float(report["relevant_not_found"])
        found *= math.exp(min(max(float(report.get("level", {"shift": 0.0})["shift"]), 0.0), 10.0))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None
    return found if 0 < found < math.inf else None


def _not_above(sketch: Sketch, expected: float, limit: float, seed: int) -> Sketch:
    """Lower the intercept until those who are suspect are no more than the posterior expects to be relevant.

    The model for the loss was learned from near documents, and meets all others as well. Where many of these share neighbors with a
    query (few documents, deep candidates, broad topics), it would find most of them likely to be relevant.

    Args:
        sketch: the sketch.
        expected: relevant documents of a query, at most.
        limit: the probability above which a document is suspect.
        seed: of the sample of queries and documents that is looked at.
    """
    rng = np.random.default_rng(seed)
    size = len(sketch.documents)
    rows, columns = (
        torch.from_numpy(np.sort(rng.permutation(n)[:most])) for n, most in ((len(sketch.queries), 256), (size, 16_384))
    )
    if not len(rows) or not len(columns):
        return sketch
    log_odds, each = sketch.logit(rows, columns), size / len(columns) / len(rows)
    limit = min(max(limit, _LIMITS[0]), _LIMITS[1])
    # In steps, so that the last bits of the products decide nothing.
    for step in range(_MOST_STEPS):
        p = torch.sigmoid(log_odds - step * _STEP)
        if float(torch.where(p > limit, p, 0).sum(dtype=torch.float64)) * each <= expected:
            break
    return replace(sketch, intercept=sketch.intercept - step * _STEP)


def _of_queries(
    features: PairFeatures,
    rows: NDArray[np.int64],
    weights: Mapping[str, float],
    places: NDArray[np.int64],
    signs: NDArray[np.int8],
    components: int,
) -> Float:
    """float32 `[len(rows), components]`: the weighted sums of the queries' hashed neighbor vectors.

    Where a query has no positive or no votes, its own neighbor vector is used instead, as in `PairFeatures`.
    """
    graph, nearest = features.graph, features.context.nearest
    from_query = _hashed(graph.of_queries(nearest[rows]), places, signs, components)
    parts = {"shared_query": from_query}
    if "shared_positive" in weights:
        positives = features.positives.take(rows)
        # With several positives, the sketch uses their mean direction. The exact feature is the highest cosine.
        hashed = _hashed(graph.vectors.take(positives.values), places, signs, components)
        mean = np.zeros_like(from_query)
        np.add.at(mean, positives.row_numbers(), hashed)
        lengths = np.linalg.norm(mean, axis=1, keepdims=True)
        parts["shared_positive"] = np.where(
            positives.lengths[:, None] > 0, mean / np.maximum(lengths, 1e-9), from_query
        )
    if "shared_votes" in weights:
        votes = features.votes.of(rows)
        has_votes = votes.counts.max(1, initial=0)[:, None] > 0
        parts["shared_votes"] = np.where(has_votes, _hashed(votes, places, signs, components), from_query)
    total = np.zeros_like(from_query)
    for name, weight in weights.items():
        total += np.float32(weight) * parts[name]
    return total


def _hash(size: int, components: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """(int64 component, int8 sign) of each of the `size` entries of a neighbor vector.

    One more entry has the sign 0. It stands for "no document".
    """
    bits = mix(np.arange(size, dtype=np.uint64) + mix(np.array([seed], np.uint64)))
    places = (bits % np.uint64(components)).astype(np.int64)
    signs = np.where(bits >> np.uint64(63), 1, -1).astype(np.int8)
    return np.append(places, 0), np.append(signs, np.int8(0))


def _hashed(vectors: NeighborVectors, places: NDArray[np.int64], signs: NDArray[np.int8], components: int) -> Float:
    """float32 `[n, components]`: the neighbor vectors, with unit length before hashing."""
    n = len(vectors.members)
    values = vectors.counts * signs[vectors.members] / np.maximum(vectors.lengths, 1)[:, None]
    cells = np.arange(n)[:, None] * components + places[vectors.members]
    return np.bincount(cells.ravel(), values.ravel(), n * components).reshape(n, components).astype(np.float32)
