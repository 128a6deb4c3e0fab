"""Exact search on a GPU: half-precision products, maxima of blocks, and float32 for the documents that can matter.

The method is that of the CPU (see `exact`), adapted to a GPU. In each tile, products are grouped in blocks of 16. The k-th
largest of the block maxima is a score that k documents reach. Documents within the error bound of it, or of the k-th true score
so far, are scored again in float32. No document of the answer can be lost.

The corpus stays in host memory. Its tiles are copied through pinned memory while the previous tile is searched, so that it may
be larger than the device's memory. Rounded tiles stay on the device as long as they fit.
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

_TILE_ROWS = 65536

_QUERIES = 1024  # queries multiplied with a tile at once

_BLOCK = 16  # products in a block, of which only the largest is examined first

_PAIRS = 1 << 21  # pairs scored again at once


class DeviceIndex(VectorStore):
    """An index that compares every query with every document on a torch device.

    Scores are float32 sums computed on the device. They differ from those of a CPU by rounding; `pair_scores` gives the same scores
    as `search`, bit for bit.

    Args:
        documents, metric: see `VectorStore`.
        device: `cuda`, `cuda:1`, ... or `cpu`, which is meant for tests.
        resident_bytes: bytes of rounded documents that may stay on the device; by default half of its free memory.

    Raises:
        UsageError: the device does not exist.
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
            first = str(error).strip().splitlines()[0]
            raise UsageError(f"the device {str(device)!r} cannot be used: {first}") from None
        if resident_bytes is None:
            resident_bytes = torch.cuda.mem_get_info(self.device)[0] // 2 if self.device.type == "cuda" else 0
        self._budget = resident_bytes
        self._kept: dict[int, _Tile] = {}
        # Squared distances of distant points need all 24 bits.
        self._dtype = torch.float32 if self.squared else torch.float16
        norms = self._inverse_norms[self._inverse_norms > 0]
        self._largest = float(1 / norms.min()) if len(norms) else 1.0

    def search(self, queries: NDArray[np.floating], k: int, progress: Advance | None = None) -> Neighbors:
        """See `ExactIndex.search`."""
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
        """See `VectorStore.pair_scores`; computed in the device's arithmetic."""
        exact = torch.from_numpy(self.prepared(queries)).to(self.device)
        out = np.full(documents.shape, -np.inf, np.float32)
        rows, columns = np.nonzero(documents >= 0)
        chunk = max(1, (64 << 20) // (4 * self.dimension))
        with torch.inference_mode():
            for start in range(0, len(rows), chunk):
                r, c = rows[start : start + chunk], columns[start : start + chunk]
                wanted, place = np.unique(documents[r, c], return_inverse=True)
                vectors = torch.from_numpy(self.vectors(wanted)).to(self.device)
                scale = torch.from_numpy(self._inverse_norms[wanted]).to(self.device)
                left, right = (torch.from_numpy(np.ascontiguousarray(side)).to(self.device) for side in (r, place))
                out[r, c] = self._scores(exact, left, vectors, right, scale).cpu().numpy()
        return out

    def _scores(
        self, exact: torch.Tensor, left: torch.Tensor, vectors: torch.Tensor, right: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        """float32 `[m]`: true scores of rows `left` of the queries with rows `right` of the vectors."""
        made = []
        for start in range(0, len(left), _PAIRS):
            q, d = exact[left[start : start + _PAIRS]], vectors[right[start : start + _PAIRS]]
            made.append(-(q - d).square().sum(1) if self.squared else (q * d).sum(1))
        scores = torch.cat(made) if made else torch.empty(0, device=exact.device)
        return scores * scale[right] if self.metric == "cosine" else scores

    def _rounded_queries(self, exact: torch.Tensor) -> _Queries:
        norms = exact.norm(dim=1)
        unit = exact / norms.clamp(min=1e-30)[:, None]  # so that half precision neither overflows nor vanishes
        values = unit.to(self._dtype)
        return _Queries(values, norms, (unit - values.float()).norm(dim=1) + 1e-7)

    # Tiles.

    def _tiles(self) -> Iterator[_Tile]:
        """Yield the tiles one after the other. The next one is copied while one is searched."""
        starts = range(0, self.size, _TILE_ROWS)
        with ThreadPoolExecutor(1) as reader:
            coming: Future[_Tile] = reader.submit(self._tile, 0)
            for start in starts:
                tile = coming.result()
                if start + _TILE_ROWS < self.size:
                    coming = reader.submit(self._tile, start + _TILE_ROWS)
                tile.ready()
                yield tile

    def _tile(self, start: int) -> _Tile:
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
        """Documents divided by the largest length (for cosine, each by its own), so that none is longer than 1."""
        factor = scale[:, None] if self.metric == "cosine" else 1 / self._largest
        unit = vectors * factor
        values = unit.to(self._dtype)
        error = (unit - values.float()).norm(dim=1).max() + 1e-7
        half = 0.5 * unit.square().sum(1) if self.squared else None
        return _Tile(start, vectors, values, scale, error, half, None)

    # One tile, one block of queries.

    def _merge(self, tile: _Tile, exact: torch.Tensor, queries: _Queries, best: torch.Tensor) -> None:
        """Merge the tile's nearest documents into the best `[n, k]`, in place."""
        k = best.shape[1]
        products = torch.mm(queries.values, tile.values.t())
        unit = queries.norms * (1.0 if self.metric == "cosine" else self._largest)  # true score of 1 in the products
        dimension = exact.shape[1]
        bound = queries.errors + tile.error + 4 * (dimension + 8) * UNIT_ROUNDOFF
        floor = unpack(best.min(dim=1).values)[0]
        if tile.half_lengths is not None:
            # Only what orders the documents: q.d - |d|^2 / (2 |q|), in units of |q| times the largest length.
            ratio = self._largest / queries.norms.clamp(min=1e-30)
            products = products - ratio[:, None] * tile.half_lengths
            # True scores are rounded at the size of (|q| + |d|)^2, whichever of the two is longer.
            bound = bound * (1 + ratio) ** 2 * (1 + 1 / ratio)
            floor = (floor + queries.norms.square()) / 2
        elif self._dtype != torch.float32:
            bound = bound + 2.0**-10  # the product itself is rounded to 11 bits; no product is larger than 1
        floor = torch.where(floor.isneginf(), floor, floor / unit.clamp(min=1e-30))
        lowest = torch.maximum(floor - bound, self._reached(products, k) - 2 * bound)
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

    def _reached(self, products: torch.Tensor, k: int) -> torch.Tensor:
        """float32 `[n]`: a value that k of the products `[n, T]` reach; -inf if there are fewer.

        It is the k-th largest of the block maxima: k blocks each hold a product that large.
        """
        size = products.shape[1]
        block = next(b for b in (_BLOCK, 4, 1) if size // b >= 2 * k or b == 1)
        if size // block < k:
            return torch.full((len(products),), -torch.inf, device=products.device)
        whole = size - size % block
        maxima = products[:, :whole].reshape(len(products), -1, block).amax(2).float()
        kth: torch.Tensor = maxima.topk(k, dim=1, sorted=False).values.amin(1)
        return kth


@dataclass(frozen=True)
class _Queries:
    """Unit vectors in half precision `[n, d]`, and their lengths and rounding errors `[n]`."""

    values: torch.Tensor
    norms: torch.Tensor
    errors: torch.Tensor

    def rows(self, rows: slice) -> _Queries:
        return _Queries(self.values[rows], self.norms[rows], self.errors[rows])


@dataclass(frozen=True)
class _Tile:
    """Documents on the device: unrounded `[T, d]`, rounded, and what their scores need."""

    start: int
    vectors: torch.Tensor
    values: torch.Tensor
    scale: torch.Tensor  # [T] inverse lengths
    error: torch.Tensor  # the largest rounding error
    half_lengths: torch.Tensor | None  # [T] half the squared lengths: l2 only
    copied: torch.cuda.Event | None

    def ready(self) -> None:
        """Make the current stream wait until the copy is complete, and keep its memory while that stream uses it."""
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
