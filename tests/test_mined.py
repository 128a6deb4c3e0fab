"""Candidates of a generation: the score that margins are measured from, where the positive is not among the neighbors."""

from __future__ import annotations

import numpy as np

from hardneg import Pairs
from hardneg.data.builder import Builder
from hardneg.index import ExactIndex, Neighbors
from hardneg.mining import Context
from hardneg.mining.filters import Margin
from hardneg.mining.filters.base import Chain
from hardneg.mining.mined import Mined


def test_a_query_with_few_neighbors_keeps_its_candidates() -> None:
    """The score of a positive that was not found is that of the last document found, not the -inf of the padding."""
    builder = Builder(None)
    for i in range(4):
        builder.add_document(f"d{i}", f"d{i}", where="")
    queries = [builder.add_query(f"q{i}", f"q{i}", where="") for i in range(4)]
    for query in queries[:3]:
        builder.relate(query, 3, 1)
    pairs = Pairs.from_contents(builder.finish("x"))
    infinite = -np.inf
    neighbors = Neighbors(
        np.array([[0.9, 0.5, infinite], [0.9, 0.5, 0.4], [infinite] * 3, [0.9, infinite, infinite]], np.float32),
        np.array([[0, 1, -1], [0, 3, 1], [-1, -1, -1], [0, -1, -1]], np.int32),
    )
    context = Context(pairs, lambda: ExactIndex(np.eye(4, dtype=np.float32)), pairs.known_positives())
    mined = Mined.of_neighbors(neighbors, np.arange(4), pairs, context, Chain([Margin(absolute=0.0)]))
    np.testing.assert_array_equal(mined.positive_scores, np.array([0.5, 0.5, np.nan, np.nan], np.float32))
    # 0.5 is at most the positive's score; a query without a positive, or without neighbors, has no margin.
    assert mined.kept.tolist() == [[False, True, False], [False, False, True], [False] * 3, [True, False, False]]
