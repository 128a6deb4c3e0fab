"""Examples: the rows of one query of a batch, and the texts that stand in them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from hardneg.data.pairs import Pairs
from hardneg.refresh.generation import Items


class Example(NamedTuple):
    """One query of a batch: rows of the dataset."""

    query: int
    positive: int
    negatives: tuple[int, ...]


class ExampleTexts(NamedTuple):
    """The texts (or what stands for them) of an example, and their rows."""

    query: Any
    positive: Any
    negatives: list[Any]
    rows: Example


class Examples(Dataset[ExampleTexts]):
    """Texts of what a sampler gives out: `DataLoader(Examples(pairs), batch_sampler=sampler, collate_fn=list)`.

    Args:
        pairs: the dataset.
        queries, documents: what stands for its texts (images, say): anything with `take(rows)`; None: the texts.
    """

    def __init__(self, pairs: Pairs, queries: Items | None = None, documents: Items | None = None) -> None:
        self.queries, self.documents = queries or pairs.queries, documents or pairs.documents

    def __getitem__(self, example: Example) -> ExampleTexts:
        documents = list(self.documents.take(np.array([example.positive, *example.negatives])))
        query = self.queries.take(np.array([example.query]))[0]
        return ExampleTexts(query, documents[0], documents[1:], example)
