"""Exact search on a GPU: half-precision products, and float32 scores for the few documents that can matter.

The method is that of the CPU (see `exact`), adapted to a GPU. The products of a query with a tile are split into groups
of 16 documents. The k-th largest of the group maxima is an approximate score that k documents reach. A document that is
further below this score, or below the k-th best true score so far, than the error bounds allow cannot belong to the top
k. All others are rescored in float32, so no document of the answer can be lost.

The corpus stays in host memory and may be larger than the memory of the device. Each tile is copied through pinned
memory while the tile before it is searched. Rounded tiles stay on the device for the next search, as long as they fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from hardneg.errors import UsageError
from hardneg.index.base import Neighbors
from hardneg.index.kernels import UNIT_ROUNDOFF
from hardneg.index.topk import NOTHING, pack, unpack
from hardneg.index.vectors import Documents, VectorStore
from hardneg.progress import Advance

_TILE_ROWS = 65536  # documents in one tile

_QUERIES = 1024  # queries that are multiplied with a tile at once

_GROUP = 16  # products in a group, of which only the largest is examined at first

_PAIRS = 1 << 21  # pairs that are rescored at once


class DeviceIndex(VectorStore):
    """An index that compares every query with every document, on a torch device such as a GPU.

    Scores are float32 sums that the device computes. They differ from the scores of a CPU by rounding. `search` and
    `pair_scores` give the same scores, bit for bit.

    Args:
        documents, metric: see `VectorStore`.
        device: `cuda`, `cuda:1` and so on; `cpu` is meant for tests.
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
        resident_bytes: int | None = None,
    ) -> None:
        super().__init__(documents, metric)
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

    def search(self, queries: NDArray[np.floating], k: int, progress: Advance | None = None) -> Neighbors:
        """The `k` nearest documents of each query. Arguments and errors are those of `ExactIndex.search`."""
        exact = torch.from_numpy(self.prepared(queries, k)).to(self.device)
        best = torch.full((len(exact), k), NOTHING, dtype=torch.int64, device=self.device)
        with torch.inference_mode(), _full_precision():
            rounded = self._rounded_queries(exact)
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
        return scores * scale[right] if self.metric == "cosine" else scores

    def _rounded_queries(self, exact: torch.Tensor) -> _Queries:
        """Divide queries by their lengths, and round them."""
        norms = exact.norm(dim=1)
        unit = exact / norms.clamp(min=1e-30)[:, None]  # so that half precision neither overflows nor underflows
        values = unit.to(self._dtype)
        return _Queries(values, norms, (unit - values.float()).norm(dim=1) + 1e-7)

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
        half = 0.5 * unit.square().sum(1) if self.squared else None
        return _Tile(start, vectors, values, scale, error, half, None)

    # One tile, one block of queries.

    def _merge(self, tile: _Tile, exact: torch.Tensor, queries: _Queries, best: torch.Tensor) -> None:
        """Merge the nearest documents of the tile into `best` `[n, k]`, the packed neighbors so far, in place."""
        k = best.shape[1]
        products = torch.mm(queries.values, tile.values.t())
        # The score that a product of 1 stands for.
        unit = queries.norms * (1.0 if self.metric == "cosine" else self._largest)
        dimension = exact.shape[1]
        bound = queries.errors + tile.error + 4 * (dimension + 8) * UNIT_ROUNDOFF
        floor = unpack(best.min(dim=1).values)[0]
        if tile.half_lengths is not None:
            # Of -|q - d|^2, only q.d - |d|^2 / 2 depends on the document. Its unit is |q| times the largest length.
            ratio = self._largest / queries.norms.clamp(min=1e-30)
            products = products - ratio[:, None] * tile.half_lengths
            # The rounding error of a true score grows with (|q| + |d|)^2, whichever of the two vectors is longer.
            bound = bound * (1 + ratio) ** 2 * (1 + 1 / ratio)
            floor = (floor + queries.norms.square()) / 2
        elif self._dtype != torch.float32:
            bound = bound + 2.0**-10  # products are at most 1 and are stored with 11 significant bits
        floor = torch.where(floor.isneginf(), floor, floor / unit.clamp(min=1e-30))
        lowest = torch.maximum(floor - bound, self._kth_maximum(products, k) - 2 * bound)
        passed = (products.float() >= lowest[:, None]).nonzero()
        left, right = passed[:, 0], passed[:, 1]
        keys = pack(self._scores(exact, left, tile.vectors, right, tile.scale), right + tile.start)
        counts = torch.bincount(left, minlength=len(exact))
        width = int(counts.max())
        table = torch.full((len(exact), k + width), NOTHING, dtype=torch.int64, device=exact.device)
        table[:, :k] = best
        first = counts.cumsum(0) - counts
        table[left, k + torch.arange(len(left), device=exact.device) - first[left]] = keys
        best.copy_(table.topk(k, dim=1, sorted=False).values)

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
    half_lengths: torch.Tensor | None  # float32 [T], half the squared lengths after scaling; only for l2
    copied: torch.cuda.Event | None  # marks the end of copying and rounding; None on a CPU

    def ready(self) -> None:
        """Make the current stream wait until the tile is complete, and keep its memory while that stream uses it."""
        if self.copied is None:
            return
        stream = torch.cuda.current_stream(self.vectors.device)
        stream.wait_event(self.copied)
        for tensor in (self.vectors, self.values, self.scale, self.error, self.half_lengths):
            if tensor is not None:
                tensor.record_stream(stream)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Compute float32 products in full float32, and sum half-precision products in float32."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32, matmul.allow_fp16_reduced_precision_reduction
    matmul.allow_tf32 = matmul.allow_fp16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.allow_tf32, matmul.allow_fp16_reduced_precision_reduction = before
