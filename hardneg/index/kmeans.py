"""k-means: the centroids of an inverted file (see `ivf`), and the choice of the lists that a query probes.

The centroids are trained by Lloyd's algorithm on a sample of the documents, as in faiss (Jegou et al. 2011, Product
quantization for nearest neighbor search, section IV). The first iterations, after which the centroids still move far,
take a quarter of the sample. Products are computed in bfloat16 where the processor supports it. Rounding may then put
a vector that lies between two centroids into the list of the farther one. This can lower the recall, which is measured,
but it never makes a score wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hardneg.index.kernels import own_workspace, spans
from hardneg.index.vectors import VectorStore
from hardneg.products import matrix_product
from hardneg.storage.arrays import Float, Int

_ROWS = 1024  # vectors that are compared with the centroids at once

# The iterations of Lloyd's algorithm: each takes one in so many documents of the sample.
_STEPS = (4,) * 5 + (1,) * 3

_POINTS = 64  # documents of the sample for each centroid


@functools.cache
def has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 products.

    Their speed is not measured, because a measurement could choose differently every time, and an index must not
    change.
    """
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in names)


class Centroids:
    """The centroids of L lists. They assign documents to lists, and choose the lists that a query probes.

    Args:
        centroids: float32 `[L, d]`.
        metric: the metric that compares vectors with centroids: `cosine`, `ip` or `l2`.
    """

    def __init__(self, centroids: Float, metric: str) -> None:
        self.vectors, self.metric = centroids, metric
        mean = centroids.mean(0)
        # For each query q, q.c and q.(c - mean) order the centroids alike, but rounding c - mean loses less.
        centered = centroids - mean
        bias = np.zeros(len(centroids), np.float32)
        if metric != "cosine":
            bias = (-0.5 * np.einsum("ij,ij->i", centered, centered)).astype(np.float32)
        self._mean = mean
        self._factor = torch.from_numpy(centered).to(torch.bfloat16 if has_bfloat16() else torch.float32).t()
        self._bias = torch.from_numpy(bias).to(self._factor.dtype)

    @classmethod
    def train(cls, store: VectorStore, count: int, seed: int, pool: Executor) -> Centroids:
        """Train `count` centroids on a sample of the documents. For documents of equal length, they are normalized."""
        metric = "cosine" if store.one_length else store.metric
        generator = np.random.default_rng(seed)
        chosen = generator.choice(store.size, min(store.size, _POINTS * count), replace=False)
        sample = store.scaled(np.sort(chosen))
        centroids = sample[np.sort(generator.choice(len(sample), count, replace=False))]
        for step in _STEPS:
            part = sample[::step] if len(sample) == _POINTS * count else sample  # of few documents always all
            nearest = cls(centroids, metric).assign(part.__getitem__, len(part), pool.map)
            centroids = _means(part, nearest, centroids, generator)
            if metric == "cosine":
                norms = np.sqrt(np.einsum("ij,ij->i", centroids, centroids))
                centroids /= np.maximum(norms, np.float32(1e-12))[:, None]
        return cls(centroids, metric)

    def __len__(self) -> int:
        return len(self.vectors)

    def _compare(self, vectors: Float, inner: bool) -> torch.Tensor:
        """`[n, L]`: a number for each vector and centroid that is larger for a nearer centroid of the same vector.

        With `inner`, vectors and centroids are compared by inner product, whatever the metric. The numbers lie in the
        thread's own workspace until the next call: fresh memory would take as long as the product.
        """
        plain = self.metric == "cosine" or inner
        compared = torch.from_numpy(vectors if plain else vectors - self._mean).to(self._factor.dtype)
        out = own_workspace().take(len(vectors), len(self), self._factor.dtype)
        return matrix_product(compared, self._factor, None if plain else self._bias, out)

    def assign(
        self, read: Callable[[slice], Float], size: int, spread: Callable[..., Iterable[Any]] = map
    ) -> NDArray[np.int32]:
        """The list of each vector, that of its nearest centroid.

        Args:
            read: returns the vectors of a slice of rows, float32 `[m, d]`.
            size: the number of vectors.
            spread: works like `map`, possibly with many workers.

        Returns:
            int32 `[size]`.
        """
        out = np.empty(size, np.int32)

        def assign_rows(rows: slice) -> None:
            out[rows] = _order_bits(self._compare(read(rows), inner=False)).argmax(1)

        list(spread(assign_rows, spans(size, _ROWS)))
        return out

    def probe(
        self, queries: Float, margin: float | Float, spread: Callable[..., Iterable[Any]] = map
    ) -> tuple[Int, NDArray[np.int32], NDArray[np.int32]]:
        """Choose the lists that each query probes, by the probe margin (see `ivf`).

        Args:
            queries: float32 `[n, d]`.
            margin: the probe margin, one number or float32 `[n]`.
            spread: works like `map`, possibly with many workers.

        Returns:
            The p (query, list) pairs, in two arrays, and the best list of each query: (int64 `[p]`, ascending; int32
            `[p]`; int32 `[n]`).
        """
        best = np.empty(len(queries), np.int32)
        margin = np.broadcast_to(np.asarray(margin, np.float32), len(queries))

        def probe_rows(rows: slice) -> tuple[Int, NDArray[np.int32]]:
            values, allowed = self._compared(queries[rows]), margin[rows]
            highest = values.max(1)
            # Few centroids come near to the margin; only of these the difference is computed, as `_behind` does.
            near = highest - (allowed + np.float32(2.0**-20) * (allowed + np.abs(highest)))
            positions = np.flatnonzero(values >= near[:, None])
            probing = positions // values.shape[1]
            lists = (positions - probing * values.shape[1]).astype(np.int32)
            behind = highest[probing] - values.ravel()[positions]
            nearest = np.flatnonzero(behind == 0)
            best[rows] = lists[nearest[np.searchsorted(probing[nearest], np.arange(len(values)))]]
            kept = behind <= allowed[probing]
            return probing[kept] + rows.start, lists[kept]

        parts = list(spread(probe_rows, spans(len(queries), _ROWS)))
        if not parts:
            return np.empty(0, np.int64), np.empty(0, np.int32), best
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]), best

    def margins(self, queries: Float, lists: NDArray[np.integer], spread: Callable[..., Iterable[Any]] = map) -> Float:
        """float32 `[n, k]`: the smallest probe margin with which each query `[n, d]` probes its `lists` `[n, k]`."""
        parts = spread(
            lambda rows: np.take_along_axis(self._behind(queries[rows]), lists[rows], 1), spans(len(queries), _ROWS)
        )
        return np.concatenate([np.empty((0, lists.shape[1]), np.float32), *parts])

    def _compared(self, queries: Float) -> Float:
        """float32 `[n, L]`: how well each centroid compares with the direction of each query; for l2, with the query."""
        if self.metric != "l2":  # normalize, so that one margin suits queries of any length
            lengths = np.sqrt(np.einsum("ij,ij->i", queries, queries))
            queries = queries / np.maximum(lengths, np.float32(1e-30))[:, None]
        values: Float = self._compare(queries, inner=self.metric == "ip").float().numpy()
        return values

    def _behind(self, queries: Float) -> Float:
        """float32 `[n, L]`: how much worse each centroid compares with the query than the best centroid does."""
        values = self._compared(queries)
        behind: Float = values.max(1, keepdims=True) - values
        return behind


def _means(sample: Float, nearest: NDArray[np.int32], before: Float, generator: np.random.Generator) -> Float:
    """float32 `[L, d]`: the mean of the vectors in each list. For an empty list, it is a random vector of the sample.

    `sample` is float32 `[m, d]`, `nearest` int32 `[m]` the list of each vector, and `before` float32 `[L, d]` the last
    centroids.
    """
    counts = np.bincount(nearest, minlength=len(before)).astype(np.float32)
    # The caller has set torch to one thread, so the order of summation is always the same.
    sums = torch.from_numpy(np.zeros_like(before)).index_add_(0, torch.from_numpy(nearest), torch.from_numpy(sample))
    means: Float = (sums / torch.from_numpy(np.maximum(counts, 1))[:, None]).numpy()
    empty = np.flatnonzero(counts == 0)
    means[empty] = sample[generator.choice(len(sample), len(empty))]
    return means


def _order_bits(values: torch.Tensor) -> NDArray[Any]:
    """Integers in the same order as these floats, made from their bits. The memory of `values` is overwritten.

    numpy finds the largest integer faster than the largest float.
    """
    bits: NDArray[Any] = values.view(torch.int16 if values.dtype == torch.bfloat16 else torch.int32).numpy()
    info = np.iinfo(bits.dtype)
    sign = bits >> (info.bits - 1)
    sign &= bits.dtype.type(info.max)
    bits ^= sign
    return bits


def by_list(lists: NDArray[np.integer], count: int) -> tuple[Int, Int]:
    """Sort positions by their list.

    Args:
        lists: int `[n]`, the list at each position, from 0 to `count` - 1.
        count: the number of lists, at most 65,536.

    Returns:
        (int64 positions `[n]`, int64 offsets `[count + 1]`). The positions of list l are
        `positions[offsets[l]:offsets[l + 1]]`, ascending.

    >>> positions, offsets = by_list(np.array([1, 0, 1]), count=2)
    >>> positions.tolist(), offsets.tolist()
    ([1, 0, 2], [0, 1, 3])
    """
    order = np.argsort(lists.astype(np.uint16), kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(lists, minlength=count))])
    return order, offsets
