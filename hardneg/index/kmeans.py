"""k-means: the centroids of a corpus, and the lists that each query probes.

Lloyd's algorithm on a sample (as in faiss; Jegou et al. 2011, Product quantization for nearest neighbor search, section IV).
Products are computed in bfloat16 where the processor supports it. A vector between two lists may then land in the farther one.
That can cost recall, which is measured, but never gives a wrong score.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hardneg.index.kernels import spans
from hardneg.index.vectors import VectorStore
from hardneg.storage.arrays import Float, Int

_ROWS = 1024  # vectors compared at once

_ITERATIONS = 8

_POINTS = 64  # vectors of the sample per centroid


@functools.cache
def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively. This is not measured, because an index must be the same every time."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in names)


class Centroids:
    """The centroids of the inverted lists.

    Args:
        centroids: float32 `[L, d]`.
        metric: the metric by which queries choose lists.
    """

    def __init__(self, centroids: Float, metric: str) -> None:
        self.vectors, self.metric = centroids, metric
        mean = centroids.mean(0)
        # The largest of q.c is the largest of q.(c - mean), of which less is lost by rounding.
        centred = centroids - mean
        bias = np.zeros(len(centroids), np.float32)
        if metric != "cosine":
            bias = (-0.5 * np.einsum("ij,ij->i", centred, centred)).astype(np.float32)
        self._mean = mean
        self._factor = torch.from_numpy(centred).to(torch.bfloat16 if has_bfloat16() else torch.float32).t()
        self._bias = torch.from_numpy(bias).to(self._factor.dtype)

    @classmethod
    def train(cls, corpus: VectorStore, count: int, seed: int, pool: Executor) -> Centroids:
        """Train `count` centroids on a sample of the corpus. They are directions if all documents are of one length."""
        metric = "cosine" if corpus.one_length else corpus.metric
        generator = np.random.default_rng(seed)
        chosen = generator.choice(corpus.size, min(corpus.size, _POINTS * count), replace=False)
        sample = corpus.scaled(np.sort(chosen))
        centroids = sample[np.sort(generator.choice(len(sample), count, replace=False))]
        for _ in range(_ITERATIONS):
            nearest = cls(centroids, metric).assign(lambda rows: sample[rows], len(sample), pool.map)
            centroids = _means(sample, nearest, centroids, generator)
            if metric == "cosine":
                norms = np.sqrt(np.einsum("ij,ij->i", centroids, centroids))
                centroids /= np.maximum(norms, np.float32(1e-12))[:, None]
        return cls(centroids, metric)

    def __len__(self) -> int:
        return len(self.vectors)

    def _compare(self, vectors: Float, inner: bool) -> torch.Tensor:
        """`[n, L]`: the comparison of queries with centroids, larger is nearer; by inner product alone if `inner`."""
        if self.metric == "cosine" or inner:
            return torch.mm(torch.from_numpy(vectors).to(self._factor.dtype), self._factor)
        centred = torch.from_numpy(vectors - self._mean).to(self._factor.dtype)
        return torch.addmm(self._bias, centred, self._factor)

    def assign(
        self, read: Callable[[slice], Float], size: int, spread: Callable[..., Iterable[Any]] = map
    ) -> NDArray[np.int32]:
        """int32 `[size]`: the list of each vector. `read` returns vectors by row."""
        out = np.empty(size, np.int32)

        def some(rows: slice) -> None:
            out[rows] = _order_bits(self._compare(read(rows), inner=False)).argmax(1)

        list(spread(some, spans(size, _ROWS)))
        return out

    def probe(
        self, queries: Float, margin: float | Float, spread: Callable[..., Iterable[Any]] = map
    ) -> tuple[Int, NDArray[np.int32], NDArray[np.int32]]:
        """The lists whose centroid compares at most `margin` (a number, or `[n]`) worse than the best one.

        The number of lists depends on the query: one in a dense place needs few, one between many centroids needs many. At equal
        recall a margin reads a half to a quarter of the documents that a fixed number of lists reads.

        Returns:
            (int64 `[p]` queries ascending, int32 `[p]` their lists, int32 `[n]` the best list of each query).
        """
        best = np.empty(len(queries), np.int32)
        margin = np.broadcast_to(np.asarray(margin, np.float32), len(queries))

        def some(rows: slice) -> tuple[Int, NDArray[np.int32]]:
            behind = self._behind(queries[rows])
            best[rows] = behind.argmin(1)
            mine, lists = np.nonzero(behind <= margin[rows, None])
            return mine + rows.start, lists.astype(np.int32)

        found = list(spread(some, spans(len(queries), _ROWS)))
        if not found:
            return np.empty(0, np.int64), np.empty(0, np.int32), best
        return np.concatenate([part[0] for part in found]), np.concatenate([part[1] for part in found]), best

    def margins(self, queries: Float, lists: NDArray[np.integer], spread: Callable[..., Iterable[Any]] = map) -> Float:
        """float32 `[n, k]`: the smallest margin with which each query probes those lists `[n, k]`."""
        parts = spread(
            lambda rows: np.take_along_axis(self._behind(queries[rows]), lists[rows], 1), spans(len(queries), _ROWS)
        )
        return np.concatenate([np.empty((0, lists.shape[1]), np.float32), *parts])

    def _behind(self, queries: Float) -> Float:
        """float32 `[n, L]`: how much worse each centroid compares than the query's best one."""
        if self.metric != "l2":  # so that one margin suits queries of any length
            lengths = np.sqrt(np.einsum("ij,ij->i", queries, queries))
            queries = queries / np.maximum(lengths, np.float32(1e-30))[:, None]
        values = self._compare(queries, inner=self.metric == "ip").float().numpy()
        behind: Float = values.max(1, keepdims=True) - values
        return behind


def _means(sample: Float, nearest: NDArray[np.int32], before: Float, generator: np.random.Generator) -> Float:
    """float32 `[L, d]`: the mean of the vectors of each list. An empty list gets a random vector."""
    counts = np.bincount(nearest, minlength=len(before)).astype(np.float32)
    # One thread gives one order of summation.
    sums = torch.zeros(before.shape).index_add_(0, torch.from_numpy(nearest), torch.from_numpy(sample))
    means: Float = (sums / torch.from_numpy(np.maximum(counts, 1))[:, None]).numpy()
    empty = np.flatnonzero(counts == 0)
    means[empty] = sample[generator.choice(len(sample), len(empty))]
    return means


def _order_bits(values: torch.Tensor) -> NDArray[Any]:
    """The bits of floats as integers with the same order, because numpy finds the largest integer at memory speed."""
    bits: NDArray[Any] = values.view(torch.int16 if values.dtype == torch.bfloat16 else torch.int32).numpy()
    info = np.iinfo(bits.dtype)
    sign = bits >> (info.bits - 1)
    sign &= bits.dtype.type(info.max)
    bits ^= sign
    return bits


def by_list(lists: NDArray[np.integer], count: int) -> tuple[Int, Int]:
    """(positions, offsets): positions[offsets[l]:offsets[l + 1]] are the positions where `lists` is l, ascending."""
    order = np.argsort(lists.astype(np.uint16), kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(lists, minlength=count))])
    return order, offsets
