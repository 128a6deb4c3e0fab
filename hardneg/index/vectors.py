"""The vectors of a corpus, and the scores of (query, document) pairs. All indexes are built on this."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from hardneg.ambient import own_settings
from hardneg.errors import DataError, UsageError, first_few, suggestion
from hardneg.index.base import METRICS
from hardneg.index.int8 import int8_is_exact
from hardneg.index.kernel_choice import KERNELS, fastest_kernel, make_kernel
from hardneg.index.kernels import UNIT_ROUNDOFF, Kernel, Spread, Tile, is_float32, spans
from hardneg.index.topk import pair_products
from hardneg.products import pool_of_cores
from hardneg.storage.arrays import Float, Rows, Sharded
from hardneg.storage.arrow import check_whole

# The vectors of documents: an array, several arrays that are read as one, or selected rows of an array.
Documents = NDArray[np.floating] | Sharded | Rows

TILE_BYTES = 96 << 20  # bytes of the documents of one tile, in float32

MOST_THREADS = 1024  # worker threads; with many more, the libraries below fail to start theirs, and the process crashes

LONGEST = 1e18  # the largest norm of a vector; scores of longer ones, or their error bounds, can overflow float32

SHORTEST = 1e-30  # the smallest norm for cosines; the products of shorter vectors are too small for float32


class VectorStore:
    """The vectors of a corpus, with a metric. This is the base class of all indexes.

    Args:
        documents: float16 or float32 `[N, d]`, an array or a memory map. It is not copied.
        metric: `cosine`, `ip` (the inner product) or `l2` (the negative squared Euclidean distance).
        threads: the number of worker threads; by default as many as torch uses.
        like: an index over the same documents, whose norms are taken in place of reading all documents once more.

    Raises:
        DataError: there are no documents, a vector has a NaN or infinite value, or, for the metric `cosine`, a vector
            is zero.
        UsageError: the metric is unknown, or the number of threads is out of range.

    >>> store = VectorStore(np.eye(3, dtype=np.float32))
    >>> store.pair_scores(np.eye(3, dtype=np.float32)[:1], np.array([[0, 1]])).tolist()
    [[1.0, 0.0]]
    """

    name = "vectors"

    @own_settings()
    def __init__(
        self,
        documents: Documents,
        metric: str = "cosine",
        threads: int | None = None,
        *,
        like: VectorStore | None = None,
    ) -> None:
        if metric not in METRICS:
            raise UsageError(f"unknown metric {metric!r}.{suggestion(metric, METRICS)}")
        if documents.ndim != 2 or documents.size == 0:
            raise DataError(f"the corpus holds no vectors: expected an array [N, d], got shape {documents.shape}")
        self.documents = documents
        self.metric = metric
        self.threads = checked_threads(threads)
        if like is not None and like.documents is documents and like.metric == metric:
            self._inverse_norms: Float = like._inverse_norms
            return
        self._inverse_norms = self.norms()
        # The inverse of a smaller norm can be too large for float32. It is left out as if it were zero.
        self._inverse_norms[self._inverse_norms < SHORTEST] = 0
        np.divide(1.0, self._inverse_norms, out=self._inverse_norms, where=self._inverse_norms > 0)

    def norms(self) -> Float:
        """float32 `[N]`, in memory of its own: the norms of the documents, checked. A subclass may know them already."""
        return checked_norms(self.documents, "corpus", zero_allowed=self.metric != "cosine")

    @property
    def resident(self) -> bool:
        """Whether `search` uses data that the index keeps in memory; see `Index.resident`."""
        return False

    @property
    def size(self) -> int:
        """The number of documents, N."""
        return len(self.documents)

    @property
    def dimension(self) -> int:
        """The number of components of each vector, d."""
        return int(self.documents.shape[1])

    @property
    def squared(self) -> bool:
        """Whether scores are negative squared distances."""
        return self.metric == "l2"

    @property
    def one_length(self) -> bool:
        """Whether all documents are about equally long (within 0.2%), or their lengths do not matter, as for cosine.

        Then every metric orders them like cosine.
        """
        shortest = float(self._inverse_norms.max())
        return self.metric == "cosine" or 0 < shortest <= 1.002 * float(self._inverse_norms.min())

    @own_settings()
    def pair_scores(self, queries: NDArray[np.floating], documents: NDArray[np.integer]) -> Float:
        """The scores of each query with p given documents.

        Args:
            queries: float `[n, d]`.
            documents: int `[n, p]`, rows of the corpus. -1 stands for no document.

        Returns:
            float32 `[n, p]`; -inf where there is no document.

        Raises:
            DataError: the queries have another dimension than the documents, a query has a NaN or infinite value, or,
                for the metric `cosine`, a query is zero.
        """
        exact = self.prepared(queries)
        out = np.full(documents.shape, -np.inf, np.float32)
        rows, columns = np.nonzero(documents >= 0)
        chunk = max(1, (16 << 20) // (4 * self.dimension))
        for start in range(0, len(rows), chunk):
            r, c = rows[start : start + chunk], columns[start : start + chunk]
            distinct, place = np.unique(documents[r, c], return_inverse=True)
            vectors = self.vectors(distinct)
            products = pair_products(exact, r, vectors, place, self.squared)
            out[r, c] = self.finish(products, distinct[place])
        return out

    def prepared(self, queries: NDArray[np.floating], k: int | None = None) -> Float:
        """float32 `[n, d]`: the queries, normalized for cosine; or themselves, if nothing about them has to be changed.

        Raises:
            DataError: the queries have another dimension than the documents, a query has a NaN or infinite value, or,
                for the metric `cosine`, a query is zero.
            UsageError: `k` is not between 1 and N.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise DataError(
                f"queries have shape {list(queries.shape)}, but the corpus has {self.dimension} dimensions: "
                f"embed both with the same encoder"
            )
        if k is not None and not 1 <= k <= self.size:
            raise UsageError(
                f"k={k} neighbors were requested from a corpus of {self.size:,} documents: k must be 1 to {self.size:,}"
            )
        check_whole(queries, DataError)
        kept = self.metric != "cosine" and isinstance(queries, np.ndarray) and queries.flags.writeable
        exact = _plain(np.array(queries, np.float32, order="C", copy=None if kept else True))
        norms = checked_norms(exact, "query", zero_allowed=self.metric != "cosine")
        if self.metric == "cosine":
            exact /= norms[:, None]
        return exact

    def finish(self, products: Float, documents: NDArray[np.integer]) -> Float:
        """Convert products to scores.

        Args:
            products: float32 `[m]`, inner products of queries with documents, or squared distances for l2.
            documents: int `[m]`, the rows of these documents in the corpus.

        Returns:
            float32 `[m]`.
        """
        if self.metric == "cosine":
            scores: Float = products * self._inverse_norms[documents]
        else:
            scores = -products if self.squared else products.copy()
        scores += 0.0  # turns -0 into 0, as in the answer of a search (see `topk.pack`)
        return scores

    def vectors(self, rows: slice | NDArray[np.integer]) -> Float:
        """float32 `[m, d]`: the vectors of these documents as they are stored."""
        check_whole(mapped(self.documents), DataError)
        return _plain(np.ascontiguousarray(self.documents[rows], np.float32))

    def scaled(self, rows: slice | NDArray[np.integer]) -> Float:
        """float32 `[m, d]`: a copy of the vectors of these documents, normalized for cosine."""
        check_whole(mapped(self.documents), DataError)
        vectors = np.array(self.documents[rows], np.float32, order="C")
        if self.metric == "cosine":
            vectors *= self._inverse_norms[rows, None]
        return vectors

    def make_kernel(self, name: str) -> Kernel:
        """Make the first-pass kernel of a search, fitted to a sample of the documents (see `kernels`).

        Args:
            name: one of `KERNELS`, or `auto` for the fastest on this machine. The metric `l2` always uses `float32`.

        Raises:
            UsageError: the kernel is unknown, or this machine cannot run it.
        """
        if name not in ("auto", *KERNELS):
            raise UsageError(f"unknown kernel {name!r}.{suggestion(name, ('auto', *KERNELS))}")
        if name == "int8" and not int8_is_exact(self.dimension):
            raise UsageError(
                f"kernel 'int8': this processor or this version of torch has no exact 8-bit product of "
                f"{self.dimension:,} dimensions: use the kernel 'auto'"
            )
        if self.squared:  # squared lengths range too widely: a coarse format would leave too many documents to rescore
            name = "float32"
        elif name == "auto":
            name = fastest_kernel(self.dimension)
        return make_kernel(name, self.scaled(slice(0, None, max(1, self.size // 4096))))

    def tile(self, kernel: Kernel, vectors: Float, rows: slice | NDArray[np.integer], spread: Spread = map) -> Tile:
        """Round the documents `rows` of the corpus, whose vectors are `vectors` `[T, d]`. See `Kernel.tile`."""
        scale = self._inverse_norms[rows] if self.metric == "cosine" else None
        tile = (
            self._as_they_are(vectors, rows, scale, spread)
            if is_float32(kernel)
            else kernel.tile(vectors, scale, spread)
        )
        if self.squared:
            bias = -0.5 * np.einsum("ij,ij->i", vectors, vectors)
            tile = replace(tile, bias=torch.from_numpy(bias[:, None]))
        return tile

    def _as_they_are(
        self, vectors: Float, rows: slice | NDArray[np.integer], scale: Float | None, spread: Spread
    ) -> Tile:
        """What `Kernel.tile` makes for a kernel that rounds nothing, without reading the vectors for their norms once more."""
        if scale is not None:
            scaled = np.empty_like(vectors)

            def scale_part(span: slice) -> None:
                np.multiply(vectors[span], scale[span, None], out=scaled[span])

            list(spread(scale_part, spans(len(vectors))))
            largest = 1.0
        else:
            # torch takes no array that must not be written to, such as a part of a memory map.
            scaled = vectors if vectors.flags.writeable else vectors.copy()
            inverse = self._inverse_norms[rows]
            largest = 1 / float(inverse.min(where=inverse > 0, initial=1 / SHORTEST))
        # The surplus covers the rounding of the norms, float32 sums of d squares, of their inverses, and of the products.
        surplus = 1 + 4 * (self.dimension + 8) * UNIT_ROUNDOFF
        return Tile(torch.from_numpy(scaled), max(largest, SHORTEST) * surplus, 0.0)

    @property
    def tile_rows(self) -> int:
        """The number of documents in one tile."""
        return min(65536, max(1, TILE_BYTES // (4 * self.dimension)))


def _plain(vectors: Float) -> Float:
    """The same memory with strides that torch accepts: where an array has one row or column, numpy does not mind a negative one."""
    return vectors.reshape(-1).reshape(vectors.shape)


def checked_threads(threads: int | None) -> int:
    """The number of worker threads; by default as many as torch uses. UsageError unless it is 1 to `MOST_THREADS`."""
    if threads is None:
        return min(torch.get_num_threads(), MOST_THREADS)
    if isinstance(threads, bool) or not isinstance(threads, int | np.integer) or not 1 <= threads <= MOST_THREADS:
        raise UsageError(
            f"threads={threads!r}: it must be a whole number from 1 to {MOST_THREADS:,}; more threads than processor "
            f"cores are never faster"
        )
    return int(threads)


@contextmanager
def workers(threads: int) -> Iterator[Executor]:
    """A pool of threads, each of which computes on one processor core, with faiss too: while one selects, another multiplies."""
    before = faiss.omp_get_max_threads()
    try:
        with pool_of_cores(threads, lambda: faiss.omp_set_num_threads(1)) as pool:
            yield pool
    finally:
        faiss.omp_set_num_threads(before)


def checked_norms(vectors: NDArray[np.floating] | Sharded | Rows, what: str, zero_allowed: bool = False) -> Float:
    """The Euclidean norm of each vector, float32 `[n]`.

    Args:
        vectors: float `[n, d]`.
        what: what the vectors are, for the message: `corpus` or `query`.
        zero_allowed: whether vectors may be zero.

    Raises:
        DataError: a vector has a NaN or infinite value, is longer than `LONGEST`, or is shorter than `SHORTEST` and zero
            is not allowed. The message names the first such rows.
    """
    norms = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), 16384):
        check_whole(mapped(vectors), DataError)
        with np.errstate(over="ignore"):  # of float64, reported below
            # Rows in one piece: other orders, as that of Fortran, are summed in another order.
            part = np.ascontiguousarray(vectors[start : start + 16384], np.float32)
        found = norms[start : start + 16384]
        with np.errstate(over="ignore", invalid="ignore"):  # reported below
            np.sqrt(np.einsum("ij,ij->i", part, part), out=found)
        small = np.flatnonzero(found < 1e-15)
        found[small] = np.linalg.norm(part[small].astype(np.float64), axis=1)  # such squares are too small for float32
    # If these are selected rows of a file, the message names their rows in the file.
    names = vectors.rows if isinstance(vectors, Rows) else np.arange(len(vectors))
    bad = names[~(norms <= LONGEST)]
    if len(bad):
        raise DataError(
            f"{len(bad):,} of {len(vectors):,} {what} vectors hold NaN or infinite values, or are longer than "
            f"{LONGEST:g}, so that scores overflow: rows {first_few(bad)}{_first_place(vectors, bad)}. Embed those texts again or "
            f"remove them"
        )
    zero = names[norms < SHORTEST]
    if len(zero) and not zero_allowed:
        raise DataError(
            f"{len(zero):,} of {len(vectors):,} {what} vectors are all zero or shorter than {SHORTEST:g}, so they have "
            f"no direction and no cosine: rows {first_few(zero)}{_first_place(vectors, zero)}. Embed those texts "
            f"again, remove them, or use another metric"
        )
    return norms


def mapped(vectors: Any) -> Any:
    """The array that selected rows are of, or the array itself."""
    return vectors.array if isinstance(vectors, Rows) else vectors


def _first_place(vectors: NDArray[np.floating] | Sharded | Rows, rows: NDArray[np.integer]) -> str:
    """Where the first of these rows is, if the vectors are in several files; or else nothing."""
    whole = mapped(vectors)
    place = whole.place_of(int(rows[0])) if isinstance(whole, Sharded) else ""
    return f" (the first is {place})" if place else ""
