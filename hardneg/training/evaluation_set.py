"""The dataset that a training is evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.evaluation.retrieval import evaluate_vectors
from hardneg.evaluation.zero_shot import zero_shot
from hardneg.refresh.encode import CHUNK, Items, encode_rows
from hardneg.training.share import Channel, Together
from hardneg.training.towers import Towers


@dataclass(frozen=True)
class EvaluationSet:
    """A dataset to evaluate on.

    Attributes:
        pairs: the dataset, which should not be part of the training data.
        queries, documents: items that replace its texts; see `Examples`.
        zero_shot: also measure zero-shot classification, where the queries are the names of classes. `zero-shot@1` is
            the share of documents that are relevant to their nearest query. `zero-shot-group@1`, for datasets with
            groups, also counts documents whose nearest query is of their group.
    """

    pairs: Pairs
    queries: Items | None = None
    documents: Items | None = None
    zero_shot: bool = False

    def evaluate(
        self, towers: Towers, names: Sequence[str], channel: Channel | None = None, metric: str = "cosine"
    ) -> dict[str, float]:
        """Encode the whole dataset, and return its measures by name.

        Args:
            towers: the model.
            names: retrieval measures, such as `ndcg@10`.
            channel: between the ranks of a training, each of which calls this and encodes its share; rank 0 measures, and the
                others return nothing. None: this process encodes all.
            metric: what vectors are compared by, `cosine` or `ip`.
        """
        queries = _encoded(towers, self.queries or self.pairs.queries, len(self.pairs), "query", channel)
        count = len(self.pairs.document_ids)
        documents = _encoded(towers, self.documents or self.pairs.documents, count, "document", channel)
        if queries is None or documents is None:
            return {}
        means = evaluate_vectors(self.pairs, queries, documents, names, metric).means
        return means | zero_shot(self.pairs, queries, documents, metric) if self.zero_shot else means


def _encoded(
    towers: Towers, items: Items, count: int, side: str, channel: Channel | None
) -> NDArray[np.float32] | None:
    """float32 `[count, d]`: the vectors of all items of one side, `query` or `document`; None on other ranks than 0."""
    rows = np.arange(count)
    encode: Any = towers.encode if channel is None else Together(towers.encode, channel)
    if channel is not None and channel.rank:
        channel.follow(towers.encode, items, rows, side, CHUNK)
        return None
    vectors: NDArray[np.float32] = encode_rows(encode, items, rows, rows, side, "float32", lambda: False)
    return vectors
