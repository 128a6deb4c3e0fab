"""Batches in which nothing stands twice."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator

import numpy as np

from hardneg.storage.arrays import Int

_FEW = 8  # repetitions of a text that never stand in one batch


def distinct_batches(
    queries: Int, documents: Int, size: int, batches: int, drop_last: bool = False, pairs: Int | None = None
) -> Iterator[Int]:
    """Go through pairs in order, and put no query and no document into one batch twice. A repeated one waits for a later batch.

    Only one that is repeated so often that the batches would not suffice (in more than 4 of 5) may stand in a batch several times.

    Args:
        queries, documents: int64 `[m]`, a key for the query and the document of each pair; equal texts have equal keys.
        size: pairs in a batch.
        batches: number of batches that there would be without repetitions.
        drop_last: leave out a batch that is not full.
        pairs: int64 `[m]`, the number of each pair, if pairs come several times: none stands twice in a batch, whatever its texts.

    Returns:
        For each batch the places of its pairs, int64.

    >>> [batch.tolist() for batch in distinct_batches(np.array([1, 1, 2, 3]), np.array([5, 6, 7, 8]), 2, 2)]
    [[0, 2], [1, 3]]
    """
    numbered = [np.unique(each, return_inverse=True)[1].ravel() for each in (queries, documents)]
    copies = 1.0 if pairs is None else len(pairs) / max(1, len(np.unique(pairs)))
    most = [_most_in_a_batch(each, batches, copies) for each in numbered]
    waiting: deque[int] = deque()
    following = iter(range(len(queries)))
    while True:
        taken: list[int] = []
        seen: tuple[Counter[int], Counter[int]] = Counter(), Counter()
        held: set[int] = set()
        late: list[int] = []
        while len(taken) < size:
            place = waiting.popleft() if waiting else next(following, None)
            if place is None:
                break
            q, d = int(numbered[0][place]), int(numbered[1][place])
            if (
                seen[0][q] >= most[0][q]
                or seen[1][d] >= most[1][d]
                or (pairs is not None and int(pairs[place]) in held)
            ):
                late.append(place)
                continue
            if pairs is not None:
                held.add(int(pairs[place]))
            seen[0][q] += 1
            seen[1][d] += 1
            taken.append(place)
        waiting.extendleft(reversed(late))
        if not taken or (len(taken) < size and drop_last):
            return
        yield np.array(taken, np.int64)


def _most_in_a_batch(numbers: Int, batches: float, copies: float = 1.0) -> Int:
    """int64: how often each of the numbers 0 to n - 1 may stand in one batch, so that the batches of an epoch suffice.

    What counts is how often it stands in one of so many `copies` of the same pairs, and the batches of that copy. Those in more than
    4 of 5 batches get room to catch up: pairs come in random order, and late ones have to go somewhere. A few repetitions may take a
    few more batches.
    """
    counts, batches = np.bincount(numbers) / copies, batches / copies
    often = counts > max(_FEW, 0.8 * batches)
    return np.where(often, np.maximum(1, np.ceil(1.25 * counts / max(1, batches))), 1).astype(np.int64)
