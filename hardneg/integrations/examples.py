"""A dataset of pairs with the negatives of the moment, for data loaders of any library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from hardneg.data.pairs import Pairs
from hardneg.errors import UsageError

Int = NDArray[np.int64]


class NegativeExamples(Dataset[dict[str, Any]]):
    """One item for each pair of a query and a positive, with the negatives that are in use when it is fetched.

    An item is a plain dict: `query` and `positive` are texts, `negatives` is a list of k texts, and `rows` is an int64 tensor
    `[2 + k]` with the rows of the query, the positive and the negatives in the dataset, for `HardNegatives.masks`.

    Args:
        pairs: the dataset.
        negatives: returns int64 `[b, k]`, the negatives of queries `[b]`; called once a batch.
    """

    def __init__(self, pairs: Pairs, negatives: Callable[[Int], Int]) -> None:
        self.pairs, self._negatives = pairs, negatives
        self.queries = pairs.positives.row_numbers()
        self.positives = pairs.positives.values

    def __len__(self) -> int:
        return len(self.positives)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[int]) -> list[dict[str, Any]]:
        """The items of a batch."""
        rows = self.rows(places)
        queries = self.pairs.queries.take(rows[:, 0])
        documents = self.pairs.documents.take(rows[:, 1:].ravel())
        each = rows.shape[1] - 1
        return [
            {
                "query": queries[i],
                "positive": documents[i * each],
                "negatives": documents[i * each + 1 : (i + 1) * each],
                "rows": torch.from_numpy(rows[i]),
            }
            for i in range(len(rows))
        ]

    def rows(self, places: Sequence[int] | NDArray[np.integer]) -> Int:
        """int64 `[b, 2 + k]`: the rows of the query, the positive and the negatives of these pairs."""
        chosen = np.asarray(places, np.int64)
        queries = self.queries[chosen]
        return np.concatenate([queries[:, None], self.positives[chosen][:, None], self._negatives(queries)], 1)


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of examples as a plain dict: lists of texts, and `rows`, int64 `[B, 2 + k]`.

    `negatives` is one list of B * k texts, those of the first query first: as `InfoNCE` takes them, as `shared`.
    """
    missing = [name for name in ("query", "positive", "negatives", "rows") if items and name not in items[0]]
    if missing:
        raise UsageError(
            f"the examples lack {', '.join(missing)}: the trainer of transformers removes columns that its model does not name, "
            f"unless its arguments have remove_unused_columns=False"
        )
    rows: Tensor = torch.stack([item["rows"] for item in items])
    return {
        "query": [item["query"] for item in items],
        "positive": [item["positive"] for item in items],
        "negatives": [text for item in items for text in item["negatives"]],
        "rows": rows,
    }
