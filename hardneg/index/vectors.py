"""The vectors of a corpus and the scores of pairs, which all indexes share."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from hardneg.errors import DataError, UsageError, first_few, suggestion
from hardneg.index.base import METRICS
from hardneg.index.int8 import int8_is_exact
from hardneg.index.kernel_choice import KERNELS, fastest_kernel, make_kernel
from hardneg.index.kernels import Kernel, Spread, Tile
from hardneg.index.topk import pair_products
from hardneg.storage.arrays import Float, Rows, Sharded

Documents = NDArray[np.floating] | Sharded | Rows


TILE_BYTES = 96 << 20  # bytes of the float32 documents of one tile


class VectorStore:
    """The vectors of a corpus, with a metric.

    Args:
        documents: float16 or float32 `[N, d]`, an array or a memory map; not copied.
        metric: `cosine`, `ip` (inner product) or `l2` (the score is the negative squared distance).
        threads: number of worker threads; by default as many as torch uses.

    Raises:
        DataError: there are no documents, or a vector has a NaN or infinite value, or is zero with the metric `cosine`.
        UsageError: the metric is unknown.

    >>> store = VectorStore(np.eye(3, dtype=np.float32))
    >>> store.pair_scores(np.eye(3, dtype=np.float32)[:1], np.array([[0, 1]])).tolist()
    [[1.0, 0.0]]
    """

    name = "vectors"

    def __init__(self, documents: Documents, metric: str = "cosine", threads: int | None = None) -> None:
        if metric not in METRICS:
            raise UsageError(f"unknown metric {metric!r}.{suggestion(metric, METRICS)}")
        if documents.ndim != 2 or documents.size == 0:
            raise DataError(f"the corpus holds no vectors: expected an array [N, d], got shape {documents.shape}")
        self.documents = documents
        self.metric = metric
        self.threads = threads if threads is not None else torch.get_num_threads()
        self._inverse_norms = checked_norms(documents, "corpus", zero_allowed=metric != "cosine")
        np.divide(1.0, self._inverse_norms, out=self._inverse_norms, where=self._inverse_norms > 0)

    @property
    def resident(self) -> bool:
        """Whether the index searches in its own memory; see `Index.resident`."""
        return False

    @property
    def size(self) -> int:
        return len(self.documents)

    @property
    def dimension(self) -> int:
        return int(self.documents.shape[1])

    @property
    def squared(self) -> bool:
        """Whether scores are negative squared distances."""
        return self.metric == "l2"

    @property
    def one_length(self) -> bool:
        """Whether all documents count as equally long, so that every metric orders them like cosine."""
        shortest = float(self._inverse_norms.max())
        return self.metric == "cosine" or 0 < shortest <= 1.002 * float(self._inverse_norms.min())

    def pair_scores(self, queries: NDArray[np.floating], documents: NDArray[np.integer]) -> Float:
        """float32 `[n, p]` scores of `queries` `[n, d]` with `documents` `[n, p]` (-1: none, gives -inf)."""
        exact = self.prepared(queries)
        out = np.full(documents.shape, -np.inf, np.float32)
        rows, columns = np.nonzero(documents >= 0)
        chunk = max(1, (16 << 20) // (4 * self.dimension))
        for start in range(0, len(rows), chunk):
            r, c = rows[start : start + chunk], columns[start : start + chunk]
            wanted, place = np.unique(documents[r, c], return_inverse=True)
            vectors = np.ascontiguousarray(self.documents[wanted], np.float32)
            scores = pair_products(exact, r, vectors, place, self.squared)
            out[r, c] = self.finish(scores, wanted[place])
        return out

    def prepared(self, queries: NDArray[np.floating], k: int | None = None) -> Float:
        """float32 `[n, d]`: the queries, normalized for cosine. Raises DataError or UsageError for queries that cannot be searched."""
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise DataError(
                f"queries have shape {list(queries.shape)}, but the corpus has {self.dimension} dimensions: "
                f"embed both with the same encoder"
            )
        if k is not None and not 1 <= k <= self.size:
            raise UsageError(
                f"k={k} neighbors asked of a corpus of {self.size:,} documents: k must be 1 to {self.size:,}"
            )
        exact = np.array(queries, np.float32, order="C")
        norms = checked_norms(exact, "queries", zero_allowed=self.metric != "cosine")
        if self.metric == "cosine":
            exact /= norms[:, None]
        return exact

    def finish(self, products: Float, documents: NDArray[np.integer]) -> Float:
        """Convert float32 products (squared distances for l2) with these rows of the corpus to scores."""
        if self.metric == "cosine":
            scaled: Float = products * self._inverse_norms[documents]
            return scaled
        signed: Float = -products if self.squared else products
        return signed

    def vectors(self, rows: slice | NDArray[np.integer]) -> Float:
        """float32 `[m, d]`: documents as the products read them, before `finish`."""
        return np.ascontiguousarray(self.documents[rows], np.float32)

    def scaled(self, rows: slice | NDArray[np.integer]) -> Float:
        """float32 `[m, d]`: documents, normalized for cosine."""
        vectors = np.array(self.documents[rows], np.float32)
        if self.metric == "cosine":
            vectors *= self._inverse_norms[rows, None]
        return vectors

    def make_kernel(self, name: str) -> Kernel:
        """Make the kernel called `name`, or the fastest one on this machine for `auto`, fitted to a sample of the documents."""
        if name not in ("auto", *KERNELS):
            raise UsageError(f"unknown kernel {name!r}.{suggestion(name, ('auto', *KERNELS))}")
        if name == "int8" and not int8_is_exact(self.dimension):
            raise UsageError(
                "kernel 'int8': this processor or this torch has no exact 8-bit product of that size; use 'auto'"
            )
        if self.squared:  # squared lengths span too wide a range for a coarse format to be worth its re-ranking
            name = "float32"
        elif name == "auto":
            name = fastest_kernel(self.dimension)
        return make_kernel(name, self.scaled(slice(0, None, max(1, self.size // 4096))))

    def tile(self, kernel: Kernel, vectors: Float, rows: slice | NDArray[np.integer], spread: Spread = map) -> Tile:
        """Round `vectors` `[T, d]`, which are these rows of the corpus."""
        tile = kernel.tile(vectors, self._inverse_norms[rows] if self.metric == "cosine" else None, spread)
        if self.squared:
            bias = -0.5 * np.einsum("ij,ij->i", vectors, vectors)
            tile = replace(tile, bias=torch.from_numpy(bias[:, None]))
        return tile

    @property
    def tile_rows(self) -> int:
        """Number of documents in one tile."""
        return min(65536, max(1, TILE_BYTES // (4 * self.dimension)))


@contextmanager
def workers(threads: int) -> Iterator[Executor]:
    """A pool of threads that multiply and select independently: while one selects, another multiplies."""
    outer = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, initializer=_single_thread) as pool:
            yield pool
    finally:
        torch.set_num_threads(outer[0])
        faiss.omp_set_num_threads(outer[1])


def _single_thread() -> None:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


def checked_norms(vectors: NDArray[np.floating] | Sharded | Rows, what: str, zero_allowed: bool = False) -> Float:
    """float32 `[n]` Euclidean norms. Raises DataError that names the first rows with NaN, an infinite value or only zeros."""
    norms = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), 16384):
        part = np.asarray(vectors[start : start + 16384], np.float32)
        norms[start : start + 16384] = np.sqrt(np.einsum("ij,ij->i", part, part))
    # Rows as they stand in the file, where these are some of a file's rows.
    names = vectors.rows if isinstance(vectors, Rows) else np.arange(len(vectors))
    bad = names[~np.isfinite(norms)]
    if len(bad):
        raise DataError(
            f"{len(bad):,} of {len(vectors):,} {what} vectors hold NaN or infinite values (or overflow): "
            f"rows {first_few(bad)}. Embed those texts again or remove them"
        )
    zero = names[norms == 0]
    if len(zero) and not zero_allowed:
        raise DataError(
            f"{len(zero):,} of {len(vectors):,} {what} vectors are all zero, so they have no direction and no cosine: "
            f"rows {first_few(zero)}. Embed those texts again, remove them, or use another metric"
        )
    return norms
