"""What a training is evaluated on."""

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
        pairs: a dataset that is not trained on.
        queries, documents: what stands for its texts, see `Examples`.
        zero_shot: measure `zero-shot@1`, too: the share of documents whose nearest query is one that they are relevant to
            (queries are the names of classes that nobody trained on); with groups also `zero-shot-group@1`: or one of the
            same group.
    """

    pairs: Pairs
    queries: Items | None = None
    documents: Items | None = None
    zero_shot: bool = False

    def evaluate(self, towers: Towers, names: Sequence[str]) -> dict[str, float]:
        queries = _encoded(towers, self.queries or self.pairs.queries, len(self.pairs), "query")
        documents = _encoded(towers, self.documents or self.pairs.documents, len(self.pairs.document_ids), "document")
        means = evaluate_vectors(self.pairs, queries, documents, names).means
        return means | zero_shot(self.pairs, queries, documents) if self.zero_shot else means


def _encoded(towers: Towers, items: Items, count: int, side: str) -> NDArray[np.float32]:
    rows = np.arange(count)
    vectors: NDArray[np.float32] = encode_rows(towers.encode, items, rows, rows, side, "float32", lambda: False)
    return vectors
