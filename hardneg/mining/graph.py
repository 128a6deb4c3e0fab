"""Who has the same neighbours: the sign of relevance that no score of a pair can give.

Two texts that mean the same may lie somewhat apart, but they lie in the same crowd (shared nearest neighbours,
Jarvis and Patrick 1973).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardneg.index.base import others
from hardneg.index.choose import make_index
from hardneg.index.corpus import Corpus
from hardneg.index.kernels import Float

_BLOCK = 16384  # documents whose neighbours are searched at once
_TABLE = 64 << 20  # cells of the table that sets are looked up in
_GATHERED = 1 << 22  # neighbours looked up at once


def neighbour_graph(corpus: Corpus, k: int) -> NDArray[np.int32]:
    """int32 `[N, k]`: the nearest other documents of every document, nearest first; -1 where there are fewer."""
    index, _ = make_index("auto", corpus.documents, corpus.metric, k=min(k + 1, corpus.size), threads=corpus.threads)
    graph = np.full((corpus.size, k), -1, np.int32)
    for start in range(0, corpus.size, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, corpus.size), dtype=np.int32)
        found = index.search(np.asarray(corpus.documents[rows], np.float32), min(k + 1, corpus.size)).documents
        near = others(found, rows)
        graph[rows, : near.shape[1]] = near
    return graph


def shared_neighbours(near: NDArray[np.integer], documents: NDArray[np.integer], graph: NDArray[np.int32]) -> Float:
    """How many neighbours each candidate has in common with its query.

    Args:
        near: `[n, k]`, the query's neighbours, -1 where there is none.
        documents: `[n, K]`, candidates, -1 where there is none.
        graph: `[N, k]`, see `neighbour_graph`.

    Returns:
        float32 `[n, K]`: the share of the candidate's k neighbours that are among the query's, 0 to 1.
    """
    size, k = graph.shape
    shares = np.zeros(documents.shape, np.float32)
    step = max(1, min(_TABLE // (size + 1), _GATHERED // max(1, documents.shape[1] * k)))
    # One row a query, with a mark for each of its neighbours; the last column is where -1 looks.
    table = np.zeros((min(step, max(1, len(near))), size + 1), bool)
    for start in range(0, len(near), step):
        rows = slice(start, min(start + step, len(near)))
        count = rows.stop - rows.start
        here, line = near[rows], np.arange(count)[:, None]
        table[line, here] = True
        table[:, size] = False
        looked_up = graph[documents[rows]].astype(np.int64)
        looked_up[looked_up < 0] = size
        looked_up += (size + 1) * line[:, :, None]
        shares[rows] = table.ravel()[looked_up].sum(2, dtype=np.int32) / np.float32(k)
        table[line, here] = False
    shares[documents < 0] = 0
    return shares
