"""Examples: one query of a batch with its positive and its negatives, as rows and as texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from hardneg.data.pairs import Pairs
from hardneg.refresh.encode import Items


class Example(NamedTuple):
    """One query of a batch, its positive and its negatives, as rows of the dataset."""

    query: int
    positive: int
    negatives: tuple[int, ...]


class ExampleTexts(NamedTuple):
    """The texts of an example (or the items that stand for them), and their rows."""

    query: Any
    positive: Any
    negatives: list[Any]
    rows: Example


class Examples(Dataset[ExampleTexts]):
    """The texts of the examples that a sampler draws: `DataLoader(Examples(pairs), batch_sampler=sampler, collate_fn=list)`.

    Args:
        pairs: the dataset.
        queries, documents: items that stand for its texts, such as images: anything with `take(rows)`; None: the texts.
    """

    def __init__(self, pairs: Pairs, queries: Items | None = None, documents: Items | None = None) -> None:
        self.queries, self.documents = queries or pairs.queries, documents or pairs.documents
        self._count = len(pairs)

    def __len__(self) -> int:
        """Number of queries; loaders ask for it, though the sampler decides what an item is."""
        return self._count

    def __getitem__(self, example: Example) -> ExampleTexts:
        return self.__getitems__([example])[0]

    def __getitems__(self, examples: Sequence[Example]) -> list[ExampleTexts]:
        """The texts of a batch. Loaders ask for a whole batch at once, which one look into the columns answers."""
        rows = [(example.positive, *example.negatives) for example in examples]
        ends = np.cumsum([len(each) for each in rows], dtype=np.int64).tolist()
        documents = list(self.documents.take(np.array([row for each in rows for row in each], np.int64)))
        queries = self.queries.take(np.array([example.query for example in examples], np.int64))
        return [
            ExampleTexts(query, documents[end - len(each)], documents[end - len(each) + 1 : end], example)
            for query, each, end, example in zip(queries, rows, ends, examples, strict=True)
        ]
