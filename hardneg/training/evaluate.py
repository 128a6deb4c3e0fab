"""How well an encoder retrieves: every query with a positive against the whole corpus."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from hardneg.data.arrow import values_of
from hardneg.data.pairs import Pairs, Ragged
from hardneg.encoders.base import Encoder
from hardneg.errors import DataError
from hardneg.index.exact import ExactIndex
from hardneg.mining.candidates import members
from hardneg.mining.embed import embed, fit
from hardneg.progress import Progress, silent
from hardneg.training.metrics import measure, parse_measures

DEFAULT = ("ndcg@10", "mrr@10", "recall@10", "recall@100")
_BLOCK = 4096


@dataclass(frozen=True)
class Evaluation:
    """Means over queries.

    Attributes:
        means: by measure.
        errors: standard errors of the means.
        queries: that were evaluated; without_positives: that could not be.
        documents: of the corpus.
    """

    means: dict[str, float]
    errors: dict[str, float]
    queries: int
    without_positives: int
    documents: int

    def to_json(self) -> dict[str, Any]:
        return {
            "queries": self.queries,
            "queries_without_positives": self.without_positives,
            "documents": self.documents,
            "means": self.means,
            "standard_errors": self.errors,
        }


def evaluate_vectors(
    pairs: Pairs, queries: Any, documents: Any, names: Sequence[str] = DEFAULT, metric: str = "cosine"
) -> Evaluation:
    """Evaluate vectors of a dataset, by exact search.

    A document with the id of the query is left out of its ranking, as BEIR does.

    Args:
        pairs: the dataset.
        queries: `[n, d]`, documents: `[N, d]`, in the order of its rows.
        names: see `measure`.
        metric: `cosine`, `ip` or `l2`.

    Raises:
        DataError: no query has a positive.
    """
    depth = max(depth for _, depth in parse_measures(names))
    rows = np.flatnonzero(pairs.positives.lengths > 0)
    if len(rows) == 0:
        raise DataError("no query of this split has a positive: there is nothing to be found")
    index = ExactIndex(documents, metric)
    own = _same_ids(pairs)
    found: list[dict[str, NDArray[np.float64]]] = []
    for start in range(0, len(rows), _BLOCK):
        here = rows[start : start + _BLOCK]
        near = index.search(np.asarray(queries[here], np.float32), min(depth + 1, index.size)).documents
        found.append(measure(_without(near, own[here])[:, :depth], pairs.positives.take(here), names))
    values = {name: np.concatenate([part[name] for part in found]) for name in names}
    return Evaluation(
        {name: float(each.mean()) for name, each in values.items()},
        {name: float(each.std() / np.sqrt(len(each))) for name, each in values.items()},
        len(rows),
        len(pairs) - len(rows),
        len(pairs.document_ids),
    )


def zero_shot(pairs: Pairs, queries: Any, documents: Any) -> dict[str, float]:
    """Documents classified by queries: `zero-shot@1`, and with groups `zero-shot-group@1` (any query of the group is right).

    Args:
        pairs: the dataset; documents that are relevant to no query are left out.
        queries: `[n, d]`, documents: `[N, d]`.
    """
    relevant = Ragged.from_pairs(pairs.positives.values, pairs.positives.row_numbers(), len(pairs.document_ids))
    rows = np.flatnonzero(relevant.lengths > 0)
    nearest = ExactIndex(queries).search(np.asarray(documents[rows], np.float32), 1).documents
    right = members(nearest, relevant.take(rows))[:, 0]
    found = {"zero-shot@1": float(right.mean())}
    if pairs.query_groups is not None and pairs.document_groups is not None:
        theirs = pairs.document_groups[rows]
        alike = right | ((pairs.query_groups[nearest[:, 0]] == theirs) & (theirs >= 0))
        found["zero-shot-group@1"] = float(alike.mean())
    return found


def evaluate(
    pairs: Pairs,
    encoder: Encoder,
    names: Sequence[str] = DEFAULT,
    *,
    query_prompt: str = "",
    document_prompt: str = "",
    cache: Path | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Encode a dataset and evaluate; vectors are kept in `cache`, if given, under a hash of the encoder's weights."""
    parse_measures(names)
    fit(encoder, pairs, progress)
    with tempfile.TemporaryDirectory() as place:
        queries, documents, _ = embed(
            encoder, pairs, cache or Path(place), query_prompt=query_prompt, document_prompt=document_prompt,
            precision="float32", progress=progress,
        )  # fmt: skip
        return evaluate_vectors(pairs, queries, documents, names)


def _same_ids(pairs: Pairs) -> NDArray[np.int64]:
    """int64 `[n]`: the document with each query's id, -1 where there is none."""
    places = pc.fill_null(pc.index_in(pairs.query_ids, value_set=pairs.document_ids), -1)
    return values_of(places).astype(np.int64)


def _without(near: NDArray[np.int32], own: NDArray[np.int64]) -> NDArray[np.int32]:
    """`near` with each row's own document moved to the end, as none."""
    found = (near == own[:, None]) & (own[:, None] >= 0)
    order = np.argsort(found, axis=1, kind="stable")
    moved = np.take_along_axis(np.where(found, -1, near), order, axis=1)
    return np.asarray(moved, np.int32)
