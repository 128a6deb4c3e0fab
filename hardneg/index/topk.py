"""The running top-k: the best documents of some queries while documents stream by.

Found documents wait in a list and are merged in batches, because merging each of them at once would cost more than scoring it.

An example with k = 2. A query has the neighbors 0.80 and 0.77, so its floor is 0.77. The documents 0.79 and 0.60 are found: 0.60
is below the floor and dropped at once, 0.79 waits. The next merge leaves 0.80 and 0.79, and raises the floor to 0.79.
"""

from __future__ import annotations

from collections.abc import Iterator

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardneg.storage.arrays import Float, Int

NOTHING = int(np.iinfo(np.int64).min)  # sorts after every real neighbor

_TABLE = 1 << 22  # cells of a table that is filled up to its longest row


class RunningTopK:
    """The best k documents of n queries so far, and the found documents that are not merged yet.

    Args:
        exact: the queries, float32 `[n, d]`; rows after the first `real` are padding.
        best: int64 `[real, k]`, the best neighbors so far, unsorted (see `pack`); changed in place.
        floor: float32 `[n]`, scores that k documents of the corpus are known to reach; -inf if none is known.

    Attributes:
        floor: float32 `[n]`: no document that scores less can belong to the k best.
        waiting: number of found documents that are not merged yet.
    """

    def __init__(self, exact: Float, best: Int, floor: Float | None = None) -> None:
        self.exact, self.best = exact, best
        self.n, self.real, self.k = len(exact), *best.shape
        self.floor = np.full(self.n, -np.inf, np.float32) if floor is None else floor.copy()
        self._found: list[tuple[NDArray[np.int32], Int]] = []
        self.waiting = 0
        self._raise_floor()

    def _raise_floor(self) -> None:
        floor = self.floor[: self.real]
        np.maximum(floor, unpacked(self.best.min(1))[0], out=floor)

    def add(self, columns: NDArray[np.int32], scores: Float, documents: Int) -> None:
        """Add documents `[m]` (rows of the corpus) with their true scores for the queries `columns` `[m]`. No pair may occur twice."""
        wanted = np.flatnonzero(scores >= self.floor[columns])
        self._found.append(
            (columns[wanted], pack(torch.from_numpy(scores[wanted]), torch.from_numpy(documents[wanted])).numpy())
        )
        self.waiting += len(wanted)

    def merge(self) -> None:
        """Merge the waiting documents into the neighbors."""
        found, self._found, self.waiting = self._found, [], 0
        if not found:
            return
        columns, keys = (np.concatenate(parts) for parts in zip(*found, strict=True))
        lengths = np.bincount(columns, minlength=self.real)
        # Group queries with similar numbers of pairs, so that their tables are full: some have many times more than most.
        by_length = np.argsort(lengths, kind="stable")
        lengths = lengths[by_length]
        rank = np.empty(self.real, np.uint16)  # 16 bits: a radix sort
        rank[by_length] = np.arange(self.real)
        keys = keys[np.argsort(rank[columns], kind="stable")]
        ends = np.cumsum(lengths)
        for start, stop in _groups(lengths):
            low, high = ends[start] - lengths[start], ends[stop - 1]
            here, rows = lengths[start:stop], by_length[start:stop]
            table = np.full((stop - start, self.k + int(here[-1])), NOTHING, np.int64)
            table[:, : self.k] = self.best[rows]
            table[:, self.k :][np.arange(here[-1]) < here[:, None]] = keys[low:high]
            table.partition(table.shape[1] - self.k, axis=1)
            self.best[rows] = table[:, table.shape[1] - self.k :]
        self._raise_floor()

    def neighbors(self) -> tuple[Float, NDArray[np.int32]]:
        """(scores, documents), both `[real, k]`, nearest first."""
        self.merge()
        self.best.sort(axis=1)
        return unpacked(self.best[:, ::-1])


def _groups(lengths: Int) -> Iterator[tuple[int, int]]:
    """Spans of similar values in ascending `lengths`; zeros are left out."""
    start = int(np.searchsorted(lengths, 1))
    while start < len(lengths):
        widest = max(16, int(1.3 * lengths[start]))
        stop = min(int(np.searchsorted(lengths, widest, "right")), start + max(1, _TABLE // widest))
        yield start, stop
        start = stop


def pair_products(
    queries: Float, left: NDArray[np.integer], documents: Float, right: NDArray[np.integer], squared: bool
) -> Float:
    """float32 `[m]`: inner products (or squared distances) of rows `left` of `queries` with rows `right` of `documents`.

    Whole searches and single pairs both use this function, so their scores are equal bit for bit.
    """
    products = np.empty(len(left), np.float32)
    pairwise = faiss.pairwise_indexed_L2sqr if squared else faiss.pairwise_indexed_inner_product
    left, right = (np.ascontiguousarray(rows, np.int64) for rows in (left, right))
    pairwise(
        queries.shape[1],
        len(products),
        faiss.swig_ptr(queries),
        faiss.swig_ptr(left),
        faiss.swig_ptr(documents),
        faiss.swig_ptr(right),
        faiss.swig_ptr(products),
    )
    return products


def pack(scores: Tensor, documents: Tensor) -> Tensor:
    """Pack each neighbor into one integer; larger is better. It holds the score in order-preserving bits, then the row.

    Args:
        scores: float32 `[...]`.
        documents: int64 `[...]`, rows of the corpus.

    Returns:
        int64 `[...]`. Of equal scores, the lower row is larger.

    >>> keys = pack(torch.tensor([0.5, 0.5, -1.0]), torch.tensor([7, 3, 0]))
    >>> torch.argsort(keys, descending=True).tolist()  # equal scores: the lower row first
    [1, 0, 2]
    """
    bits = (scores + 0.0).view(torch.int32)  # + 0: minus zero equals zero
    bits ^= (bits >> 31) & 0x7FFFFFFF
    keys = bits.long()
    keys <<= 32
    keys |= 0xFFFFFFFF - documents
    return keys


def unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Unpack neighbors to (scores, int32 documents); -inf and -1 where there is none."""
    bits = (keys >> 32).int()
    bits ^= (bits >> 31) & 0x7FFFFFFF
    documents = (0xFFFFFFFF - (keys & 0xFFFFFFFF)).int()
    missing = keys == NOTHING
    return bits.view(torch.float32).masked_fill_(missing, -torch.inf), documents.masked_fill_(missing, -1)


def unpacked(keys: Int) -> tuple[Float, NDArray[np.int32]]:
    """`unpack` for numpy arrays."""
    scores, documents = unpack(torch.from_numpy(keys.copy()))  # torch takes no reversed arrays
    return scores.numpy(), documents.numpy()
