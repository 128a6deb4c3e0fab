"""What filters can use of a generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.errors import UsageError
from hardneg.mining.candidates import NEAREST_FOUND, Context
from hardneg.refresh.generation import Generation
from hardneg.storage.arrays import SharedLists


def context_of(
    generation: Generation | None,
    pairs: Pairs,
    known: SharedLists | None = None,
    embed: Callable[[str], Any] | None = None,
) -> Context:
    """The context of the candidates that a generation found: what filters need, as in `Mined.of_neighbors`.

    Args:
        generation: the generation; None: only what needs none.
        pairs: the dataset.
        known: the known positives of every query, which a loop computes once; None: `pairs.known_positives()`.
        embed: encodes the dataset with a guide model, see `Context`.
    """

    def index() -> Any:
        if generation is None:
            raise UsageError("a filter asked for vectors before the first generation was built")
        return generation.index

    def nearest() -> NDArray[np.int32]:
        assert generation is not None
        assert generation.neighbors is not None
        return generation.neighbors.documents[:, :NEAREST_FOUND]

    return Context(pairs, index, pairs.known_positives() if known is None else known, embed, nearest)
