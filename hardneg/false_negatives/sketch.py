"""Sketches: the posterior as one inner product per pair, cheap enough for a whole memory bank and for the loss.

A posterior of shared neighbors is linear in three cosines of sparse vectors. Hashing these vectors with random signs to a few
hundred components keeps their inner products up to noise of about 1 / sqrt(components) (count sketch, Charikar, Chen and
Farach-Colton 2002; feature hashing, Weinberger et al. 2009, arXiv 0902.2206). The weighted sum of a query's three neighbor
vectors is then one vector, and P(relevant) of any document is a logistic function of one inner product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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

_ROWS = 4096  # neighbor vectors hashed at once


@dataclass(frozen=True)
class Sketch:
    """Vectors whose inner products are log odds of relevance.

    Attributes:
        queries: float32 `[n, m]`, one row for each query of the dataset.
        documents: float32 `[N, m]`, one row for each document.
        intercept: intercept of the log odds.
    """

    queries: torch.Tensor
    documents: torch.Tensor
    intercept: float

    @classmethod
    def blank(cls, queries: int, documents: int) -> Sketch:
        """A sketch that gives no document any probability of relevance."""
        return cls(torch.zeros(queries, 1), torch.zeros(documents, 1), -float(np.finfo(np.float32).max))

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Sketch:
        """The same sketch on another device, or in another number format."""
        return Sketch(self.queries.to(device, dtype), self.documents.to(device, dtype), self.intercept)

    def logit(self, queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        """Log odds of relevance, float32.

        Args:
            queries: int64 `[B]`, rows of the dataset's queries.
            documents: int64 `[S]`, rows of the corpus that every query is compared with: the result is `[B, S]`. Or `[B, K]`, rows for
                each query: the result is `[B, K]`.
        """
        mine, theirs = self.queries[queries], self.documents[documents]
        if documents.ndim == 1:
            return (mine @ theirs.T).float() + self.intercept
        return torch.einsum("bm,bkm->bk", mine, theirs).float() + self.intercept

    def probability(self, queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        """P(relevant), in the shape of `logit`. Drop negatives above a threshold, or weight each by 1 minus it."""
        return torch.sigmoid(self.logit(queries, documents))


def make_sketch(posterior: Posterior, context: Context, components: int = 512, seed: int = 0) -> Sketch:
    """Make the sketches of all queries and documents of a dataset.

    Args:
        posterior: a posterior of shared-neighbor features only, which `hardneg calibrate` gives by default.
        context: the context of the dataset. `find_nearest` gives the documents found for every query, at least the best ten.
        components: m. The log odds carry noise of about the size of the weights / sqrt(m).
        seed: random seed of the hash.

    Raises:
        UsageError: the posterior has other features, too.
    """
    others = [name for name in posterior.features if name not in SHARED_FEATURES]
    if others:
        raise UsageError(
            f"a posterior of {', '.join(others)} is no inner product: calibrate with shared-neighbor features only to use it online"
        )
    if components < 1:
        raise UsageError(f"components={components} must be 1 or more")
    weights = dict(zip(posterior.features, posterior.weights, strict=True))
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
    return Sketch(torch.from_numpy(queries), torch.from_numpy(documents), posterior.intercept)


def _of_queries(
    features: PairFeatures,
    rows: NDArray[np.int64],
    weights: Mapping[str, float],
    places: NDArray[np.int64],
    signs: NDArray[np.int8],
    components: int,
) -> Float:
    """The weighted sums of the queries' neighbor vectors. The query's own vector replaces a missing one, as in the features."""
    graph, nearest = features.graph, features.context.nearest
    own = _hashed(graph.of_queries(nearest[rows]), places, signs, components)
    parts = {"shared_query": own}
    if "shared_positive" in weights:
        known = features.positives.take(rows)
        # Several positives: their mean direction, where the exact feature takes the highest of them.
        each = _hashed(graph.vectors.take(known.values), places, signs, components)
        mean = np.zeros_like(own)
        np.add.at(mean, known.row_numbers(), each)
        lengths = np.linalg.norm(mean, axis=1, keepdims=True)
        parts["shared_positive"] = np.where(known.lengths[:, None] > 0, mean / np.maximum(lengths, 1e-9), own)
    if "shared_votes" in weights:
        votes = features.votes.of(rows)
        spoken = votes.counts.max(1, initial=0)[:, None] > 0
        parts["shared_votes"] = np.where(spoken, _hashed(votes, places, signs, components), own)
    total = np.zeros_like(own)
    for name, weight in weights.items():
        total += np.float32(weight) * parts[name]
    return total


def _hash(size: int, components: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """(component, sign) of every document as an entry of a neighbor vector, and one more, with weight 0, for none."""
    bits = mix(np.arange(size, dtype=np.uint64) + mix(np.array([seed], np.uint64)))
    places = (bits % np.uint64(components)).astype(np.int64)
    signs = np.where(bits >> np.uint64(63), 1, -1).astype(np.int8)
    return np.append(places, 0), np.append(signs, np.int8(0))


def _hashed(vectors: NeighborVectors, places: NDArray[np.int64], signs: NDArray[np.int8], components: int) -> Float:
    """float32 `[n, components]`: the neighbor vectors, normalized and hashed."""
    n = len(vectors.members)
    values = vectors.counts * signs[vectors.members] / np.maximum(vectors.lengths, 1)[:, None]
    cells = np.arange(n)[:, None] * components + places[vectors.members]
    return np.bincount(cells.ravel(), values.ravel(), n * components).reshape(n, components).astype(np.float32)
