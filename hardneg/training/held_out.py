"""Queries that a training does not learn from, to choose the best encoder by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hardneg.data.pairs import Pairs
from hardneg.data.texts import distinct_keys
from hardneg.storage.arrays import Int, Ragged

_FEWEST = 40  # queries with a positive; of fewer, what is held out would be missed more than it could tell


def hold_out(pairs: Pairs, share: float = 0.05, seed: int = 0, most: int = 2000) -> tuple[Pairs, Pairs] | None:
    """Split a dataset into pairs to train on and pairs to evaluate on.

    Queries with equal texts stay together. The documents are all in both parts: a document of a query that is held out may
    be a negative of others, as any may.

    Args:
        pairs: the dataset.
        share: of the queries that have a positive.
        seed: of the choice.
        most: at most so many queries are held out.

    Returns:
        (the dataset in which the chosen queries have no positives, the chosen queries alone); None: there are too few queries.

    >>> pairs = Pairs.from_columns([f"q{i}" for i in range(100)], [f"d{i}" for i in range(100)])
    >>> train, held = hold_out(pairs)
    >>> len(train), int((train.positives.lengths > 0).sum()), len(held)
    (100, 95, 5)
    """
    trainable = np.flatnonzero(pairs.positives.lengths > 0)
    count = min(most, round(share * len(trainable)))
    if len(trainable) < _FEWEST or count < 1:
        return None
    keys = distinct_keys(pairs.query_keys[trainable], trainable)
    _, classes = np.unique(keys, return_inverse=True)
    order = np.random.default_rng([seed, 1]).permutation(int(classes.max()) + 1)
    sizes = np.bincount(classes.ravel())[order]
    chosen = order[: max(1, int(np.searchsorted(np.cumsum(sizes), count, side="right")))]
    rows = trainable[np.isin(classes.ravel(), chosen)]
    return _without_positives(pairs, rows), replace(pairs.of_queries(rows), digests=_digests(pairs, rows, "of"))


def hold_out_each(sources: Mapping[str, Pairs], seed: int = 0) -> tuple[dict[str, Pairs], dict[str, Pairs], int]:
    """Hold out queries of each source of a mixture, before they are mixed.

    A question that is held out of one source is not trained on in another one either.

    Args:
        sources: by name.
        seed: of the choices.

    Returns:
        (the sources to train on, the held-out queries of each that has enough of them, the number of queries that are not trained on
        because another source holds their question out).
    """
    parts = {name: hold_out(pairs, seed=seed) for name, pairs in sources.items()}
    held = {name: each[1] for name, each in parts.items() if each is not None}
    keys = np.unique(np.concatenate([np.zeros(0, np.int64), *(each.query_keys for each in held.values())]))
    trained, others = {}, 0
    for name, pairs in sources.items():
        own = parts[name]
        left = pairs if own is None else own[0]
        rows = np.flatnonzero((left.positives.lengths > 0) & np.isin(left.query_keys, keys[keys != 0]))
        others += len(rows)
        trained[name] = _without_positives(left, rows) if len(rows) else left
    return trained, held, others


def _without_positives(pairs: Pairs, rows: Int) -> Pairs:
    kept = ~np.isin(pairs.positives.row_numbers(), rows)
    positives = Ragged.from_pairs(pairs.positives.row_numbers()[kept], pairs.positives.values[kept], len(pairs))
    grades = None if pairs.positive_grades is None else pairs.positive_grades[kept]
    return replace(pairs, positives=positives, positive_grades=grades, digests=_digests(pairs, rows, "without"))


def _digests(pairs: Pairs, rows: Int, how: str) -> dict[str, str]:
    """Those of the dataset, with labels that are others."""
    text = f"{pairs.digests.get('labels')} {how} ".encode() + np.ascontiguousarray(rows, np.int64).tobytes()
    return {**pairs.digests, "labels": hashlib.sha256(text).hexdigest()}
