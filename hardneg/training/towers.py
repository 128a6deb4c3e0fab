"""The model that is trained: one encoder for queries and documents, or one for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from hardneg.encoders.base import Trainable, checked_vectors, dimension_of, prompt_of
from hardneg.encoders.factory import checked_encoder, is_sentence_transformer
from hardneg.errors import DataError, UsageError

SIDES = ("query", "document")


class Towers(nn.Module):
    """The encoders of queries and of documents, for texts or any other items.

    Args:
        query: the encoder of queries: a `SentenceTransformer`, or a `torch.nn.Module` with `dimension`,
            `vectors(items, prompt=)`, `encode(items, prompt=)` and `save(folder)`, such as `HashedEncoder` (see
            `hardneg.encoders.base.Trainable`).
        document: the encoder of documents; None: `query` encodes both.
        query_prompt, document_prompt: text that is put before each query and each document; None: what each encoder has
            itself in `prompts`, if it does.

    Raises:
        UsageError: an encoder lacks one of these members, or their dimensions differ.

    >>> from hardneg.encoders.hashed import HashedEncoder
    >>> towers = Towers(HashedEncoder(8))
    >>> towers.dimension, towers.shared
    (8, True)
    """

    def __init__(
        self, query: Any, document: Any = None, *, query_prompt: str | None = None, document_prompt: str | None = None
    ) -> None:
        super().__init__()
        document = None if document is query else document
        query, document = (_wrapped(each) for each in (query, document))
        for each in (query,) if document is None else (query, document):
            missing = [name for name in ("dimension", "vectors", "encode", "save") if not hasattr(each, name)]
            if missing or not isinstance(each, nn.Module):
                raise UsageError(
                    f"{type(each).__name__} cannot be trained: it must be a torch.nn.Module with dimension, "
                    f"vectors(texts, prompt=), encode(texts, prompt=) and save(folder)"
                    + (f", and lacks {', '.join(missing)}" if missing else "")
                )
            dimension_of(each)
        if document is not None and document.dimension != query.dimension:
            raise UsageError(
                f"the towers return vectors of {query.dimension} and {document.dimension} components: both must be equal"
            )
        self.query_tower = query
        self.document_tower = document
        self.prompts = {
            "query": prompt_of(query, "query", query_prompt),
            "document": prompt_of(query if document is None else document, "document", document_prompt),
        }

    @property
    def dimension(self) -> int:
        """d, the number of components of each vector."""
        return int(self.query_tower.dimension)

    @property
    def learning_rate(self) -> float:
        """The highest learning rate that suits the encoders: the lower of theirs, 0.001 for one that does not say."""
        towers = [self.query_tower, *([] if self.document_tower is None else [self.document_tower])]
        return min(float(getattr(tower, "learning_rate", 1e-3)) for tower in towers)

    @property
    def shared(self) -> bool:
        """Whether one encoder serves queries and documents."""
        return self.document_tower is None

    def tower(self, side: str) -> Trainable:
        """The encoder of a side, `query` or `document`."""
        chosen: Any = self.query_tower if side == "query" or self.document_tower is None else self.document_tower
        trainable: Trainable = chosen
        return trainable

    def forward(self, items: Sequence[Any], side: str) -> Tensor:
        """The vectors of n items of a side, float `[n, d]`, with gradients.

        Raises:
            DataError: the encoder returned another shape, or no real numbers.
        """
        vectors = self.tower(side).vectors(items, prompt=self.prompts[side])
        expected = (len(items), self.dimension)
        if not isinstance(vectors, Tensor) or vectors.shape != expected or not vectors.is_floating_point():
            found = (
                f"{list(vectors.shape)} of {vectors.dtype}"
                if isinstance(vectors, Tensor)
                else f"a {type(vectors).__name__}"
            )
            raise DataError(
                f"the encoder {type(self.tower(side)).__name__} returned {found} from vectors(...) for {len(items):,} items, "
                f"expected a tensor of real numbers {list(expected)}"
            )
        return vectors

    def encode(self, items: Sequence[Any], side: str) -> NDArray[np.float32]:
        """The vectors of n items of a side, float32 `[n, d]`, without gradients and without dropout.

        Raises:
            DataError: the encoder returned another shape, or no real numbers.
        """
        training, tower = self.training, self.tower(side)
        self.eval()
        try:
            vectors = tower.encode(items, prompt=self.prompts[side])
        finally:
            self.train(training)
        return checked_vectors(vectors, len(items), self.dimension, tower).astype(np.float32, copy=False)

    def save(self, folder: Path) -> None:
        """Write a shared encoder to `folder`, or two encoders to its subfolders `query` and `document`."""
        if self.shared:
            self.tower("query").save(folder)
        else:
            for side in SIDES:
                self.tower(side).save(folder / side)


def _wrapped(given: Any) -> Any:
    """A `SentenceTransformer` as an encoder; UsageError for a spec; anything else as it is."""
    return checked_encoder(given, "model") if isinstance(given, str) or is_sentence_transformer(given) else given
