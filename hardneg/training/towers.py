"""The model: one encoder for queries and documents, or one for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from hardneg.encoders.base import Trainable
from hardneg.errors import UsageError

SIDES = ("query", "document")


class Towers(nn.Module):
    """Encoders of queries and of documents, of whatever modality.

    Args:
        query: a module with `dimension`, `vectors(items, prompt=)`, `encode(items, prompt=)` and `save(folder)`, such as
            `HashedEncoder` and `SentenceTransformersEncoder` (see `hardneg.encoders.base.Trainable`).
        document: the same for documents; None: `query` encodes both.
        query_prompt, document_prompt: text before each.
    """

    def __init__(self, query: Any, document: Any = None, *, query_prompt: str = "", document_prompt: str = "") -> None:
        super().__init__()
        for each in (query,) if document is None else (query, document):
            missing = [name for name in ("dimension", "vectors", "encode", "save") if not hasattr(each, name)]
            if missing or not isinstance(each, nn.Module):
                raise UsageError(
                    f"{type(each).__name__} cannot be trained: it has to be a torch.nn.Module with dimension, "
                    f"vectors(texts, prompt=), encode(texts, prompt=) and save(folder)"
                    + (f", and lacks {', '.join(missing)}" if missing else "")
                )
        if document is not None and document.dimension != query.dimension:
            raise UsageError(
                f"the towers give vectors of {query.dimension} and {document.dimension} components: they must be alike"
            )
        self.query_tower = query
        self.document_tower = document if document is not query else None
        self.prompts = {"query": query_prompt, "document": document_prompt}

    @property
    def dimension(self) -> int:
        return int(self.query_tower.dimension)

    @property
    def shared(self) -> bool:
        return self.document_tower is None

    def tower(self, side: str) -> Trainable:
        """The encoder of `query` or `document`."""
        chosen: Any = self.query_tower if side == "query" or self.document_tower is None else self.document_tower
        trainable: Trainable = chosen
        return trainable

    def forward(self, items: Sequence[Any], side: str) -> Tensor:
        """float `[n, d]`, with gradients."""
        return self.tower(side).vectors(items, prompt=self.prompts[side])

    def encode(self, items: Sequence[Any], side: str) -> NDArray[np.float32]:
        """float32 `[n, d]`, without gradients, in evaluation mode."""
        training = self.training
        self.eval()
        vectors = self.tower(side).encode(items, prompt=self.prompts[side])
        self.train(training)
        return vectors

    def save(self, folder: Path) -> None:
        """One encoder: in `folder` itself. Two: in its folders `query` and `document`."""
        if self.shared:
            self.tower("query").save(folder)
        else:
            for side in SIDES:
                self.tower(side).save(folder / side)
