"""Whether texts and vectors belong together: positives have to score better than documents drawn at random."""

from __future__ import annotations

import numpy as np

from hardneg.data.pairs import Pairs
from hardneg.errors import DataError
from hardneg.index.base import ScoredVectors

_QUERIES, _RANDOM = 2048, 16
FEWEST = 20  # queries with a positive: fewer tell too little
_CERTAIN = 200  # queries; vectors are refused from so many on, and doubted below
_CHANCE = 0.6  # a positive beats a random document half of the time by chance


def beats_random(pairs: Pairs, queries: np.ndarray, index: ScoredVectors, seed: int) -> tuple[float, float, int]:
    """How often the positive of a query scores above a random document.

    Args:
        pairs: the dataset.
        queries: `[n, d]`, the vectors of its queries.
        index: the index over its documents.
        seed: seed of the sample.

    Returns:
        (the share, 0.5 by chance; its standard error; number of queries in the sample).
    """
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(pairs.positives.lengths > 0)
    rows = np.sort(rng.permutation(rows)[:_QUERIES])
    if len(rows) == 0:
        return 1.0, 0.0, 0
    first = pairs.positives.values[pairs.positives.offsets[rows]]
    others = rng.integers(0, len(pairs.document_ids), (len(rows), _RANDOM))
    scores = index.pair_scores(np.asarray(queries[rows], np.float32), np.concatenate([first[:, None], others], 1))
    better = (scores[:, :1] > scores[:, 1:]) + 0.5 * (scores[:, :1] == scores[:, 1:])
    share = better.mean(1)
    return float(share.mean()), float(share.std() / np.sqrt(len(rows))), len(rows)


def check_positives(
    pairs: Pairs, queries: np.ndarray, index: ScoredVectors, seed: int, given: bool, force: bool
) -> list[str]:
    """A warning if positives score like random documents, as far as the sample of queries tells.

    Args:
        given: whether the vectors were given, and not made by an encoder here. Then they most likely belong to other rows.
        force: warn in any case.

    Raises:
        DataError: they certainly do, the vectors were given, and `force` is not set.
    """
    share, error, count = beats_random(pairs, queries, index, seed)
    if count < FEWEST or share + 2 * error >= _CHANCE:
        return []
    said = f"the positives score no better than random documents (above them in {share:.1%} of the cases, of {count:,} queries)"
    if given and (count < _CERTAIN or share + 4 * error >= _CHANCE):
        return [
            f"{said}: if the vectors belong to other texts, or are in another order than the source, mine again with the right ones"
        ]
    if given and not force:
        raise DataError(
            f"{said}: the vectors belong to other texts, or are in another order. They have to be in the order of the source: "
            f"one row for each query, and one for each document as it first appears. Mine all the same with --force"
        )
    return [f"{said}: negatives of such an encoder teach nothing"]
