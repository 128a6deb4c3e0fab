"""Which pairs are near one another by the vectors that the training made of them: nothing is encoded for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hardneg.data.pairs import Pairs
from hardneg.errors import RunError
from hardneg.index.factory import make_index
from hardneg.mining.mined import Mined
from hardneg.storage.arrays import Float, Int, SharedLists, members

_MORE = 32  # neighbors that are asked for beyond those that are needed, since positives are among them


class PairVectors:
    """The last vectors that a training made of each query and each positive, and who is near whom by them.

    A pair that was not trained on lately has an older vector than others; an epoch goes through all of them. In float16 they take
    2 d bytes for each query and each positive.

    Args:
        pairs: the dataset.
        known: the known positives of its queries, which are no neighbors.

    Attributes:
        documents: int64 `[p]`, the rows of all positives.

    >>> pairs = Pairs.from_columns(["a", "b"], ["A", "B"])
    >>> vectors = PairVectors(pairs, pairs.known_positives())
    >>> vectors.near(1) is None
    True
    >>> vectors.write(np.arange(2), np.arange(2), torch.eye(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
    >>> found = vectors.near(1)
    >>> found.documents[found.kept].tolist()
    [1, 0]
    """

    def __init__(self, pairs: Pairs, known: SharedLists) -> None:
        self.pairs, self.known = pairs, known
        self.documents = np.unique(pairs.positives.values)
        self._sides: list[Tensor] = []  # of queries and of positives; none before the first vectors

    def write(self, queries: Int, positives: Int, query_vectors: Tensor, positive_vectors: Tensor) -> None:
        """Keep the vectors of b pairs. One that is NaN, infinite or zero is forgotten: it is near nothing.

        Args:
            queries, positives: int64 `[b]`, rows of the dataset.
            query_vectors, positive_vectors: `[b, d]`. Only their directions count.
        """
        given = [query_vectors.detach(), positive_vectors.detach()]
        if not self._sides:
            counts, width = (len(self.pairs), len(self.documents)), given[0].shape[1]
            self._sides = [torch.zeros(n, width, dtype=torch.float16, device=given[0].device) for n in counts]
        places = (np.asarray(queries), np.searchsorted(self.documents, positives))
        for side, rows, vectors in zip(self._sides, places, given, strict=True):
            unit = torch.nn.functional.normalize(vectors.float(), dim=1)
            known = torch.where(unit.isfinite().all(1, keepdim=True), unit, 0.0)
            side[torch.from_numpy(rows).to(side.device)] = known.half().to(side.device)

    def near(self, count: int) -> Mined | None:
        """The nearest positives for each query, by cosine, as candidates of which its own are not kept; None before any vector.

        Those of a mixture are of the query's source. Neighbors of more than some ten thousand pairs are found by an index that
        finds nearly all.
        """
        if not self._sides:
            return None
        depth = min(len(self.documents), count + _MORE)
        size = len(self.pairs)
        out = Mined(
            np.full((size, depth), -1, np.int32), np.full((size, depth), -np.inf, np.float32),
            np.full(size, np.nan, np.float32), np.zeros((size, depth), bool),
        )  # fmt: skip
        queries, documents = (side.cpu().numpy() for side in self._sides)
        asked, there = queries.any(1), documents.any(1)
        mixed = self.pairs.mixed
        for source in range(1 if mixed is None else len(mixed)):
            of_query, of_document = asked, there
            if mixed is not None:
                first, stop = mixed.span(source)
                of_query = asked & (mixed.queries == source)
                of_document = there & (self.documents >= first) & (self.documents < stop)
            self._search(out, np.flatnonzero(of_query), np.flatnonzero(of_document), queries, documents)
        out.kept[:] = (out.documents >= 0) & ~members(out.documents, self.known)
        return out

    def _search(self, out: Mined, rows: Int, places: Int, queries: Float, documents: Float) -> None:
        """Write the nearest of the positives at `places` for the queries at `rows`."""
        if not len(rows) or not len(places):
            return
        asked, depth = queries[rows].astype(np.float32), min(out.documents.shape[1], len(places))
        index = make_index("auto", documents[places].astype(np.float32), "cosine", queries=asked, k=depth)[0]
        found = index.search(asked, depth)
        out.scores[rows, :depth] = found.scores
        numbers = self.documents[places][found.documents]
        out.documents[rows, :depth] = np.where(found.documents >= 0, numbers, -1)

    def state_dict(self) -> dict[str, Any]:
        """The vectors as tensors."""
        return dict(zip(("queries", "documents"), self._sides, strict=False))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; RunError if it is of other pairs."""
        sides = [state[name] for name in ("queries", "documents") if name in state]
        counts = (len(self.pairs), len(self.documents))
        fit = len(sides) in (0, 2) and all(
            isinstance(side, Tensor) and side.dtype == torch.float16 and side.ndim == 2 and len(side) == count
            for side, count in zip(sides, counts, strict=False)
        )
        if not fit or len({side.shape[1] for side in sides}) > 1 or not all(side.isfinite().all() for side in sides):
            raise RunError("the state holds vectors of other pairs, or damaged ones")
        self._sides = [side.clone() for side in sides]
