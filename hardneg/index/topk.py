"""The running top-k: the k best documents of each query so far, while a search goes through the corpus.

The *floor* of a query is a score that k documents are known to reach. A document that scores less than the floor cannot
belong to the k best, so it is dropped at once. Other documents wait in a list and are merged in batches, because a
merge for every single document would cost more than its score. The floor is -inf at first. After each merge it is at
least the k-th best score.

A neighbor is packed into one 64-bit integer. The upper 32 bits are the bits of its score, changed so that they sort
like the score. The lower 32 bits are 0xFFFFFFFF minus its row. The larger integer is the better neighbor: the higher
score or, for equal scores, the lower row.

An example with k = 2. A query gets three documents, which are packed as follows:

    row 3, score 0.75: 0x3F400000FFFFFFFC
    row 7, score 0.50: 0x3F000000FFFFFFF8
    row 9, score 0.25: 0x3E800000FFFFFFF6

The floor is -inf, so all three wait. The merge keeps the two largest integers, rows 3 and 7, and raises the floor to
0.50. Then come row 1 with the score 0.40 and row 2 with the score 0.50. Row 1 is below the floor and is dropped. Row 2
waits. The next merge replaces row 7 with row 2, because their scores are equal and row 2 is lower. The floor stays at
0.50.
"""

from __future__ import annotations

from collections.abc import Iterator

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardneg.storage.arrays import Float, Int

NOTHING = int(np.iinfo(np.int64).min)  # stands for a missing neighbor; worse than every packed neighbor

_TABLE = 1 << 22  # cells of one table of `RunningTopK.merge`, which is as wide as its longest row


class RunningTopK:
    """The k best documents of each query so far, and the documents that wait to be merged.

    Args:
        exact: the queries in float32, `[n, d]`. The first `real` of them are queries, the others are padding.
        best: int64 `[real, k]`, the packed neighbors so far, unsorted (see `pack`); `NOTHING` where one is missing.
            Changed in place.
        floor: float32 `[n]`, the floor of each query, if it is known from elsewhere; -inf where it is not.

    Attributes:
        floor: float32 `[n]`, the floor of each query: a document that scores less cannot belong to the k best.
        waiting: the number of documents that wait to be merged, over all queries.
    """

    def __init__(self, exact: Float, best: Int, floor: Float | None = None) -> None:
        self.exact, self.best = exact, best
        self.n, self.real, self.k = len(exact), *best.shape
        self.floor = np.full(self.n, -np.inf, np.float32) if floor is None else floor.copy()
        self._unmerged: list[tuple[NDArray[np.int32], Int]] = []
        self.waiting = 0
        self._raise_floor()

    def _raise_floor(self) -> None:
        """Raise the floor of each query to its k-th best score, where that is higher."""
        floor = self.floor[: self.real]
        np.maximum(floor, unpacked(self.best.min(1))[0], out=floor)

    def add(self, columns: NDArray[np.int32], scores: Float, documents: Int) -> None:
        """Keep pairs for the next merge, except those below the floor.

        Args:
            columns: int32 `[m]`, the query of each pair.
            scores: float32 `[m]`, the true score of each pair.
            documents: int64 `[m]`, the document of each pair, a row of the corpus. No pair may be added twice.
        """
        kept = np.flatnonzero(scores >= self.floor[columns])
        self._unmerged.append(
            (columns[kept], pack(torch.from_numpy(scores[kept]), torch.from_numpy(documents[kept])).numpy())
        )
        self.waiting += len(kept)

    def merge(self) -> None:
        """Merge the waiting documents into `best`, and raise the floor."""
        unmerged, self._unmerged, self.waiting = self._unmerged, [], 0
        if not unmerged:
            return
        columns, keys = (np.concatenate(parts) for parts in zip(*unmerged, strict=True))
        lengths = np.bincount(columns, minlength=self.real)
        # Some queries have many times more waiting documents than most. Queries with similar numbers share a table, so
        # that few of its cells are empty.
        by_length = np.argsort(lengths, kind="stable")
        lengths = lengths[by_length]
        rank = np.empty(self.real, np.uint16)  # numpy sorts 16-bit integers with a radix sort, which is faster
        rank[by_length] = np.arange(self.real)
        keys = keys[np.argsort(rank[columns], kind="stable")]
        ends = np.cumsum(lengths)
        for start, stop in _groups(lengths):
            low, high = ends[start] - lengths[start], ends[stop - 1]
            counts, rows = lengths[start:stop], by_length[start:stop]
            table = np.full((stop - start, self.k + int(counts[-1])), NOTHING, np.int64)
            table[:, : self.k] = self.best[rows]
            table[:, self.k :][np.arange(counts[-1]) < counts[:, None]] = keys[low:high]
            table.partition(table.shape[1] - self.k, axis=1)
            self.best[rows] = table[:, table.shape[1] - self.k :]
        self._raise_floor()

    def neighbors(self) -> tuple[Float, NDArray[np.int32]]:
        """(float32 scores, int32 documents), both `[real, k]`, nearest first. Merges the waiting documents first."""
        self.merge()
        return sorted_keys(self.best)


def _groups(lengths: Int) -> Iterator[tuple[int, int]]:
    """Split ascending `lengths` into spans (start, stop) of similar values. Zeros are left out."""
    start = int(np.searchsorted(lengths, 1))
    while start < len(lengths):
        widest = max(16, int(1.3 * lengths[start]))
        stop = min(int(np.searchsorted(lengths, widest, "right")), start + max(1, _TABLE // widest))
        yield start, stop
        start = stop


def sorted_keys(best: Int) -> tuple[Float, NDArray[np.int32]]:
    """(float32 scores, int32 documents), both `[n, k]`, nearest first, of packed neighbors `[n, k]`, which are sorted in place."""
    best.sort(axis=1)
    return unpacked(best[:, ::-1])


def best_keys(columns: NDArray[np.int32], scores: Float, documents: Int, shape: tuple[int, int]) -> Int:
    """The k best documents of n queries, packed, unsorted; `NOTHING` where a query has fewer.

    Args:
        columns: int32 `[m]`, the query of each pair, ascending.
        scores: float32 `[m]`.
        documents: int64 `[m]`, rows of the corpus.
        shape: (n, k).

    Returns:
        int64 `[n, k]`.
    """
    n, k = shape
    counts = np.bincount(columns, minlength=n)
    width = max(k, int(counts.max(initial=0)))
    table = np.full((n, width), NOTHING, np.int64)
    table[np.arange(width) < counts[:, None]] = pack(torch.from_numpy(scores), torch.from_numpy(documents)).numpy()
    if width > k:
        table.partition(width - k, axis=1)
    return table[:, width - k :]


def best_of(some: Int, others: Int) -> Int:
    """int64 `[n, k]`, unsorted: the k best of two times k packed documents of n queries, of which none stands twice."""
    table = np.concatenate([some, others], axis=1)
    table.partition(some.shape[1], axis=1)
    return table[:, some.shape[1] :]


def pair_products(
    queries: Float, left: NDArray[np.integer], documents: Float, right: NDArray[np.integer], squared: bool
) -> Float:
    """The float32 products of m pairs of vectors.

    `search` and `pair_scores` both use this function, so their scores are equal, bit for bit.

    Args:
        queries: float32 `[n, d]`.
        left: int `[m]`, the row of `queries` in each pair.
        documents: float32 `[T, d]`.
        right: int `[m]`, the row of `documents` in each pair.
        squared: compute squared Euclidean distances instead of inner products.

    Returns:
        float32 `[m]`.
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
    """Pack the score and the row of each neighbor into one integer. A larger integer is a better neighbor.

    Args:
        scores: float32 `[...]`.
        documents: int64 `[...]`, rows of the corpus.

    Returns:
        int64 `[...]`. Of two neighbors with equal scores, the one with the lower row has the larger integer.

    >>> keys = pack(torch.tensor([0.5, 0.5, -1.0]), torch.tensor([7, 3, 0]))
    >>> torch.argsort(keys, descending=True).tolist()  # equal scores: the lower row first
    [1, 0, 2]
    """
    bits = (scores + 0.0).view(torch.int32)  # adding 0 turns -0 into 0, so that the two are equal
    bits ^= (bits >> 31) & 0x7FFFFFFF
    keys = bits.long()
    keys <<= 32
    keys |= 0xFFFFFFFF - documents
    return keys


def unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Undo `pack`: (float32 scores, int32 documents), with -inf and -1 where a key is `NOTHING`.

    >>> unpack(pack(torch.tensor([0.5]), torch.tensor([7])))
    (tensor([0.5000]), tensor([7], dtype=torch.int32))
    """
    bits = (keys >> 32).int()
    bits ^= (bits >> 31) & 0x7FFFFFFF
    documents = (0xFFFFFFFF - (keys & 0xFFFFFFFF)).int()
    missing = keys == NOTHING
    return bits.view(torch.float32).masked_fill_(missing, -torch.inf), documents.masked_fill_(missing, -1)


def unpacked(keys: Int) -> tuple[Float, NDArray[np.int32]]:
    """`unpack` for numpy arrays."""
    scores, documents = unpack(torch.from_numpy(keys.copy()))  # a copy, because torch does not accept reversed arrays
    return scores.numpy(), documents.numpy()
