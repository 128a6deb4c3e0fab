"""The dataset that a training is evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.evaluation.retrieval import evaluate_vectors
from hardneg.evaluation.zero_shot import zero_shot
from hardneg.refresh.generation import Items, encode_rows
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

    def evaluate(self, towers: Towers, names: Sequence[str]) -> dict[str, float]:
        """Encode the whole dataset, and return its measures by name.

        Args:
            towers: the model.
            names: retrieval measures, such as `ndcg@10`.
        """
        queries = _encoded(towers, self.queries or self.pairs.queries, len(self.pairs), "query")
        documents = _encoded(towers, self.documents or self.pairs.documents, len(self.pairs.document_ids), "document")
        means = evaluate_vectors(self.pairs, queries, documents, names).means
        return means | zero_shot(self.pairs, queries, documents) if self.zero_shot else means


def _encoded(towers: Towers, items: Items, count: int, side: str) -> NDArray[np.float32]:
    """float32 `[count, d]`: the vectors of all items of one side, `query` or `document`."""
    rows = np.arange(count)
    vectors: NDArray[np.float32] = encode_rows(towers.encode, items, rows, rows, side, "float32", lambda: False)
    return vectors
