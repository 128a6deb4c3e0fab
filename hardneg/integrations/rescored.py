"""Negatives ranked by a cross-encoder, as `mine_hard_negatives` of sentence-transformers does where one is given with limits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.errors import UsageError
from hardneg.mining.filters.limits import below_margin
from hardneg.mining.run import Run
from hardneg.storage.arrays import Float

Row = tuple[
    int, list[int], list[float], list[int], list[float]
]  # query, positives, their scores, negatives, their scores


def rescored_rows(
    run: Run, model: Any, limits: Mapping[str, float | None], window: tuple[int, int], count: int, draw: bool, seed: int,
    batch_size: int,
) -> list[Row]:  # fmt: skip
    """Score the candidates of every query with a cross-encoder, and take negatives by these scores.

    Args:
        run: a run whose negatives are all candidates that its filters keep.
        model: the cross-encoder, an object with `predict(pairs, ...)`.
        limits: `absolute_margin`, `relative_margin`, `max_score`, `min_score`, or None for each, of the cross-encoder's scores.
        window: of the candidates within the limits, the first place that is used (from 0) and the last (not included).
        count: number of negatives.
        draw: whether to draw them at random from the window; else the first ones are taken.
        seed: seed of that draw.
        batch_size: pairs that the model reads at once.

    Returns:
        For each query with a positive its row in the dataset, positives and negatives as rows of the corpus, and their scores.
    """
    pairs = run.pairs()
    place = {id: i for i, id in enumerate(pairs.document_ids.to_pylist())}
    rng = np.random.default_rng(seed)
    table = run.negatives(pairs)
    rows: list[Row] = []
    for query, (positive_ids, negative_ids) in enumerate(
        zip(table["positive_ids"].to_pylist(), table["negative_ids"].to_pylist(), strict=True)
    ):
        if not positive_ids:
            continue
        documents = np.array([place[id] for id in (*positive_ids, *negative_ids)], np.int64)
        scores = _scores(model, pairs.queries.take(np.array([query]))[0], pairs.documents.take(documents), batch_size)
        known, found = scores[: len(positive_ids)], scores[len(positive_ids) :]
        high = math.inf if limits["max_score"] is None else limits["max_score"]
        low = -math.inf if limits["min_score"] is None else limits["min_score"]
        kept = (found <= np.float32(high)) & (found >= np.float32(low))
        lowest = np.full(len(found), known.min(), np.float32)
        kept &= below_margin(found, lowest, limits["absolute_margin"], limits["relative_margin"])
        order = np.flatnonzero(kept)[np.argsort(-found[kept], kind="stable")][window[0] : window[1]]
        chosen = np.sort(rng.permutation(len(order))[:count]) if draw else np.arange(min(count, len(order)))
        taken = order[chosen]
        negatives = documents[len(positive_ids) :][taken]
        rows.append(
            (query, documents[: len(positive_ids)].tolist(), known.tolist(), negatives.tolist(), found[taken].tolist())
        )
    return rows


def _scores(model: Any, query: str, texts: list[str], batch_size: int) -> Float:
    values = np.asarray(
        model.predict([(query, text) for text in texts], batch_size=batch_size, show_progress_bar=False)
    )
    scores: NDArray[np.float32] = values.astype(np.float32).reshape(-1)
    if len(scores) != len(texts) or not np.isfinite(scores).all():
        raise UsageError(
            f"the cross-encoder gave {len(scores):,} scores for {len(texts):,} pairs, or some that are not finite"
        )
    return scores


def rescored_columns(
    run: Run, rows: list[Row], format: str, count: int, scores: bool, ids: bool
) -> dict[str, list[Any]]:
    """The rows as columns of one of the formats of sentence-transformers, by names as in `Run.to_dataset`."""
    pairs = run.pairs()
    queries, texts = pairs.queries.slice(0, len(pairs)), pairs.documents.slice(0, len(pairs.document_ids))
    names = pairs.query_ids.to_pylist(), pairs.document_ids.to_pylist()
    out: list[dict[str, Any]] = []

    def both(name: str, document: int) -> dict[str, Any]:
        return {**({f"{name}_id": names[1][document]} if ids else {}), name: texts[document]}

    for query, positives, known, negatives, found in rows:
        asked = {**({"query_id": names[0][query]} if ids else {}), "query": queries[query]}
        if format == "labeled-pair":
            labelled = [(d, s, 1) for d, s in zip(positives, known, strict=True)]
            labelled += [(d, s, 0) for d, s in zip(negatives, found, strict=True)]
            out += [
                {**asked, **both("document", d), **({"score": s} if scores else {"label": label})}
                for d, s, label in labelled
            ]
            continue
        for positive, score in zip(positives, known, strict=True):
            if format == "triplet":
                out += [
                    {
                        **asked,
                        **both("positive", positive),
                        **both("negative", d),
                        **({"scores": [score, s]} if scores else {}),
                    }
                    for d, s in zip(negatives, found, strict=True)
                ]
            elif format == "n-tuple" and len(negatives) == count:
                row = {**asked, **both("positive", positive)}
                for i, document in enumerate(negatives, 1):
                    row |= both(f"negative_{i}", document)
                out.append({**row, **({"scores": [score, *found]} if scores else {})})
            elif format == "labeled-list" and negatives:
                listed = [positive, *negatives]
                row = {**asked, **({"document_ids": [names[1][d] for d in listed]} if ids else {})}
                row["documents"] = [texts[d] for d in listed]
                out.append(
                    {**row, **({"scores": [score, *found]} if scores else {"labels": [1] + [0] * len(negatives)})}
                )
    return {name: [row[name] for row in out] for name in (out[0] if out else {})}
