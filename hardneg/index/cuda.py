"""Exact search on a GPU: half-precision products, and float32 scores for the few documents that can matter.

The method is that of the CPU (see `exact`), adapted to a GPU. The products of a query with a tile are split into groups
of 16 documents. The k-th largest of the group maxima is an approximate score that k documents reach. A document that is
further below this score, or below the k-th best true score so far, than the error bounds allow cannot belong to the top
k. All others are rescored in float32, so no document of the answer can be lost.

Approximate scores have units of their own, so that numbers of any size fit into half precision. Queries are divided by
their lengths, and documents are scaled to lengths of at most 1. A product of 1 then stands for the score |q| |d|, where
|d| is the length that the documents were divided by. For l2 the unit is (|q| + |d|)^2, because no distance is larger:

    -|q - d|^2 = 2 |q| |d| p - |d|^2 s - |q|^2,    p the product and s the squared length of the scaled document.

The corpus stays in host memory and may be larger than the memory of the device. Each tile is copied through pinned
memory while the tile before it is searched. Rounded tiles stay on the device for the next search, as long as they fit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from hardneg.ambient import own_settings
from hardneg.errors import UsageError
from hardneg.index.base import Neighbors
from hardneg.index.kernels import SMALLEST, UNIT_ROUNDOFF
from hardneg.index.topk import NOTHING, pack, unpack
from hardneg.index.vectors import Documents, VectorStore
from hardneg.products import matrix_product
from hardneg.progress import Advance

_TILE_ROWS = 65536  # documents in one tile

_QUERIES = 1024  # queries that are multiplied with a tile at once

_GROUP = 16  # products in a group, of which only the largest is examined at first

_PAIRS = 1 << 21  # pairs that are rescored at once

_SPLIT_ERROR = 2.0**-19  # largest error of a product of unit vectors that are split in two (see `device_product`)

_MOST_PASSED = 1 << 24  # pairs of one tile and block that may pass; with more, the block is halved


class DeviceIndex(VectorStore):
    """An index that compares every query with every document, on a torch device such as a GPU.

    Scores are float32 sums that the device computes. They differ from the scores of a CPU by rounding. `search` and
    `pair_scores` give the same scores, bit for bit.

    Args:
        documents, metric: see `VectorStore`.
        device: `cuda`, `cuda:1` and so on; `cpu` is meant for tests.
        threads: the number of worker threads of callers that also compute on the processor.
        resident_bytes: bytes of documents that may stay on the device between searches; by default half of its free
            memory.

    Raises:
        DataError: as for `VectorStore`.
        UsageError: the metric is unknown, or the device cannot be used.
    """

    name = "exact"
    resident = False

    def __init__(
        self,
        documents: Documents,
        metric: str = "cosine",
        *,
        device: str | torch.device = "cuda",
        threads: int | None = None,
        resident_bytes: int | None = None,
    ) -> None:
        super().__init__(documents, metric, threads)
        try:
            self.device = torch.device(device)
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise UsageError(f"the device {str(device)!r} cannot be used: {first_line}") from None
        if resident_bytes is None:
            resident_bytes = torch.cuda.mem_get_info(self.device)[0] // 2 if self.device.type == "cuda" else 0
        self._budget = resident_bytes
        self._kept: dict[int, _Tile] = {}
        # Half precision is too coarse for squared distances, which are small differences of large numbers.
        self._dtype = torch.float32 if self.squared else torch.float16
        norms = self._inverse_norms[self._inverse_norms > 0]
        self._largest = float(1 / norms.min()) if len(norms) else 1.0

    @own_settings()
    def search(self, queries: NDArray[np.floating], k: int, progress: Advance | None = None) -> Neighbors:
        """The `k` nearest documents of each query. Arguments and errors are those of `ExactIndex.search`."""
        prepared = self.prepared(queries, k)
        exact = torch.from_numpy(prepared).to(self.device)
        best = torch.full((len(exact), k), NOTHING, dtype=torch.int64, device=self.device)
        with torch.inference_mode():
            rounded = self._rounded_queries(prepared)
            for tile in self._tiles():
                for start in range(0, len(exact), _QUERIES):
                    rows = slice(start, min(start + _QUERIES, len(exact)))
                    self._merge(tile, exact[rows], rounded.rows(rows), best[rows])
                    if progress is not None:
                        progress((rows.stop - rows.start) * len(tile.vectors))
            scores, documents = unpack(best.sort(dim=1, descending=True).values)
        return Neighbors(scores.cpu().numpy(), documents.cpu().numpy())

    def pair_scores(self, queries: NDArray[np.floating], documents: NDArray[np.integer]) -> NDArray[np.float32]:
        """float32 `[n, p]`: as in `VectorStore.pair_scores`, but computed on the device."""
        exact = torch.from_numpy(self.prepared(queries)).to(self.device)
        out = np.full(documents.shape, -np.inf, np.float32)
        rows, columns = np.nonzero(documents >= 0)
        chunk = max(1, (64 << 20) // (4 * self.dimension))
        with torch.inference_mode():
            for start in range(0, len(rows), chunk):
                r, c = rows[start : start + chunk], columns[start : start + chunk]
                distinct, place = np.unique(documents[r, c], return_inverse=True)
                vectors = torch.from_numpy(self.vectors(distinct)).to(self.device)
                scale = torch.from_numpy(self._inverse_norms[distinct]).to(self.device)
                left, right = (torch.from_numpy(np.ascontiguousarray(side)).to(self.device) for side in (r, place))
                out[r, c] = self._scores(exact, left, vectors, right, scale).cpu().numpy()
        return out

    def _scores(
        self, exact: torch.Tensor, left: torch.Tensor, vectors: torch.Tensor, right: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        """float32 `[m]`: the true scores of m pairs, rows `left` of the queries with rows `right` of the vectors."""
        parts = []
        for start in range(0, len(left), _PAIRS):
            q, d = exact[left[start : start + _PAIRS]], vectors[right[start : start + _PAIRS]]
            parts.append(-(q - d).square().sum(1) if self.squared else (q * d).sum(1))
        scores = torch.cat(parts) if parts else torch.empty(0, device=exact.device)
        # Adding 0 turns -0 into 0, as in the answer of a search (see `topk.pack`).
        return (scores * scale[right] if self.metric == "cosine" else scores) + 0.0

    def _rounded_queries(self, exact: NDArray[np.float32]) -> _Queries:
        """Divide queries by their lengths, and round them."""
        # In float64, because the squares of small components are too small for float32.
        norms = np.maximum(np.linalg.norm(exact.astype(np.float64), axis=1), SMALLEST)
        unit = torch.from_numpy((exact / norms[:, None]).astype(np.float32)).to(self.device)
        values = unit.to(self._dtype)
        lengths = torch.from_numpy(norms.astype(np.float32)).to(self.device)
        return _Queries(values, lengths, (unit - values.float()).norm(dim=1) + 1e-7)

    # Tiles.

    def _tiles(self) -> Iterator[_Tile]:
        """Yield the tiles in order. While one is searched, the next one is copied to the device."""
        starts = range(0, self.size, _TILE_ROWS)
        with ThreadPoolExecutor(1) as reader:
            next_tile: Future[_Tile] = reader.submit(self._tile, 0)
            for start in starts:
                tile = next_tile.result()
                if start + _TILE_ROWS < self.size:
                    next_tile = reader.submit(self._tile, start + _TILE_ROWS)
                tile.ready()
                yield tile

    def _tile(self, start: int) -> _Tile:
        """The tile that begins at row `start`. It is copied to the device unless it is there already."""
        if start in self._kept:
            return self._kept[start]
        rows = slice(start, min(start + _TILE_ROWS, self.size))
        host = torch.from_numpy(self.vectors(rows))
        scale = torch.from_numpy(self._inverse_norms[rows])
        event = None
        if self.device.type == "cuda":
            stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            with torch.cuda.stream(stream), torch.inference_mode():
                tile = self._rounded(start, host.pin_memory().to(self.device, non_blocking=True), scale.to(self.device))
                event = stream.record_event()
            tile = replace(tile, copied=event)
        else:
            with torch.inference_mode():
                tile = self._rounded(start, host, scale)
        size = tile.vectors.numel() * 4 + tile.values.numel() * tile.values.element_size()
        if (len(self._kept) + 1) * size <= self._budget:
            self._kept[start] = tile
        return tile

    def _rounded(self, start: int, vectors: torch.Tensor, scale: torch.Tensor) -> _Tile:
        """Round the documents of a tile. First scale them to lengths of at most 1.

        For cosine each document is divided by its own length, for the other metrics by the largest length in the
        corpus.
        """
        factor = scale[:, None] if self.metric == "cosine" else 1 / self._largest
        unit = vectors * factor
        values = unit.to(self._dtype)
        error = (unit - values.float()).norm(dim=1).max() + 1e-7
        squares = unit.square().sum(1) if self.squared else None
        return _Tile(start, vectors, values, scale, error, squares, None)

    # One tile, one block of queries.

    def _merge(self, tile: _Tile, exact: torch.Tensor, queries: _Queries, best: torch.Tensor) -> None:
        """Merge the nearest documents of the tile into `best` `[n, k]`, the packed neighbors so far, in place."""
        k = best.shape[1]
        products = device_product(queries.values, tile.values.t())
        # Scores are measured in units of the product of these two lengths. They are divided by one after the other,
        # because their product can be too small for float32.
        first, second = self._unit(queries.norms)
        dimension = exact.shape[1]
        summation = 4 * (dimension + 8) * UNIT_ROUNDOFF
        bound = queries.errors + tile.error + summation
        if tile.squares is not None:
            query, document = queries.norms / first, self._largest / first
            products = (2 * query * document)[:, None] * products
            products -= document.square()[:, None] * tile.squares
            products -= query.square()[:, None]
            # The first term is what the products of the other metrics are. The second one is for the additions above,
            # and for the true scores, whose rounding errors are relative to the unit.
            bound = 2 * query * document * (bound + _SPLIT_ERROR) + 2 * summation
        elif self._dtype != torch.float32:
            bound = bound + 2.0**-10  # products are at most 1 and are stored with 11 significant bits
        # An operation of a true score can also lose a number that is too small for float32.
        bound = bound + 4 * (dimension + 8) * (SMALLEST / first / second)
        floor = unpack(best.min(dim=1).values)[0] / first / second
        lowest = torch.maximum(floor - bound, self._kth_maximum(products, k) - 2 * bound)
        passed = (products.float() >= lowest[:, None]).nonzero()
        if len(passed) > _MOST_PASSED and len(exact) > 1:
            for half in (slice(0, len(exact) // 2), slice(len(exact) // 2, len(exact))):
                self._merge(tile, exact[half], queries.rows(half), best[half])
            return
        left, right = passed[:, 0], passed[:, 1]
        keys = pack(self._scores(exact, left, tile.vectors, right, tile.scale), right + tile.start)
        counts = torch.bincount(left, minlength=len(exact))
        width = int(counts.max())
        table = torch.full((len(exact), k + width), NOTHING, dtype=torch.int64, device=exact.device)
        table[:, :k] = best
        first = counts.cumsum(0) - counts
        table[left, k + torch.arange(len(left), device=exact.device) - first[left]] = keys
        best.copy_(table.topk(k, dim=1, sorted=False).values)

    def _unit(self, norms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two lengths for each query, float32 `[n]`. The unit of its scores is their product."""
        if self.squared:
            return norms + self._largest, norms + self._largest
        return norms, torch.full_like(norms, 1.0 if self.metric == "cosine" else self._largest)

    def _kth_maximum(self, products: torch.Tensor, k: int) -> torch.Tensor:
        """float32 `[n]`: a value that at least k of the products `[n, T]` of each query reach; -inf if T is below k.

        It is the k-th largest of the group maxima: k groups have a product that large.
        """
        size = products.shape[1]
        group = next(g for g in (_GROUP, 4, 1) if size // g >= 2 * k or g == 1)
        if size // group < k:
            return torch.full((len(products),), -torch.inf, device=products.device)
        whole = size - size % group
        maxima = products[:, :whole].reshape(len(products), -1, group).amax(2).float()
        kth: torch.Tensor = maxima.topk(k, dim=1, sorted=False).values.amin(1)
        return kth


@dataclass(frozen=True)
class _Queries:
    """Queries that were divided by their lengths and rounded."""

    values: torch.Tensor  # [n, d], float16, or float32 for l2
    norms: torch.Tensor  # float32 [n], the lengths
    errors: torch.Tensor  # float32 [n], bounds on the norms of the rounding errors

    def rows(self, rows: slice) -> _Queries:
        """Some of the queries."""
        return _Queries(self.values[rows], self.norms[rows], self.errors[rows])


@dataclass(frozen=True)
class _Tile:
    """The documents of one tile, on the device."""

    start: int  # the row of the first document in the corpus
    vectors: torch.Tensor  # float32 [T, d], not scaled
    values: torch.Tensor  # [T, d], scaled to lengths of at most 1 and rounded: float16, or float32 for l2
    scale: torch.Tensor  # float32 [T], inverse lengths
    error: torch.Tensor  # a bound on the norm of every rounding error
    squares: torch.Tensor | None  # float32 [T], the squared lengths after scaling; only for l2
    copied: torch.cuda.Event | None  # marks the end of copying and rounding; None on a CPU

    def ready(self) -> None:
        """Make the current stream wait until the tile is complete, and keep its memory while that stream uses it."""
        if self.copied is None:
            return
        stream = torch.cuda.current_stream(self.vectors.device)
        stream.wait_event(self.copied)
        for tensor in (self.vectors, self.values, self.scale, self.error, self.squares):
            if tensor is not None:
                tensor.record_stream(stream)


def device_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`[n, T]`: the product of `left` `[n, d]` and `right` `[d, T]` in their number format, with float32 sums.

    The process can allow torch to be less exact than the error bounds here assume: to round float32 to TF32, which
    keeps 11 significant bits, and to sum float16 products in float16. These settings belong to the whole process, and
    another thread may be training with them.

    The setting for float32 is not touched. If it allows TF32, the vectors are split into a high part of at most 11
    significant bits and a low part, the rest, and three products of parts are added. The rounding of a low part and the
    product of two low parts, which is left out, err by at most 2^-21 and 2^-20 of the product of the lengths.
    """
    if left.dtype != torch.float32:
        with _float32_sums():
            return torch.mm(left, right)
    if left.device.type == "cpu":
        return matrix_product(left, right)
    if not _may_use_tf32():
        return torch.mm(left, right)
    return _split_product(left, right)


def _split_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The product of two float32 matrices that is nearly the same whether or not torch rounds them to TF32."""
    high_left, high_right = (side.view(torch.int32).bitwise_and(~0x1FFF).view(torch.float32) for side in (left, right))
    low = torch.mm(left - high_left, high_right) + torch.mm(high_left, right - high_right)
    return low.add_(torch.mm(high_left, high_right))


def _may_use_tf32() -> bool:
    """Whether the process allows float32 products on a GPU to be computed in TF32."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # since torch 2.9, which refuses to read `allow_tf32` after this was set
        return matmul.fp32_precision not in ("none", "ieee")
    return bool(matmul.allow_tf32)


_FLOAT16_SUMS = ("allow_fp16_reduced_precision_reduction", "allow_fp16_accumulation")  # settings of torch

_CHANGING = threading.Lock()  # held while these settings are changed


@contextmanager
def _float32_sums() -> Iterator[None]:
    """Sum float16 products in float32 while the block starts one.

    torch reads its settings when a product is started, not when the device computes it. So the block takes some
    microseconds, and what other threads start later has their own settings. The lock keeps two searches from taking
    each other's change for the setting of the process.
    """
    matmul = torch.backends.cuda.matmul
    with _CHANGING:
        allowed = [name for name in _FLOAT16_SUMS if getattr(matmul, name, False)]
        try:
            for name in allowed:
                setattr(matmul, name, False)
            yield
        finally:
            for name in allowed:
                setattr(matmul, name, True)
