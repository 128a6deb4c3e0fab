"""A chain of filters at work in the loss: what it rejects among candidates is no negative in the batch and the bank either."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardneg.data.pairs import Pairs
from hardneg.errors import UsageError
from hardneg.losses.infonce import Sides, Variants
from hardneg.mining import filters as f
from hardneg.mining.candidates import Context
from hardneg.mining.features import CROWDS
from hardneg.mining.posterior import Posterior
from hardneg.mining.sketch import Sketch, make_sketch
from hardneg.training.distributed import World


@dataclass(frozen=True)
class Rows:
    """Who takes part in a step: rows of the dataset, int64.

    Attributes:
        queries: `[B]`.
        positives: `[B]`.
        shared: `[M]`, mined negatives.
        bank: `[S]`.
    """

    queries: Tensor
    positives: Tensor
    shared: Tensor
    bank: Tensor


class OnlineFilters:
    """The filters of a chain, as arguments of `InfoNCE`.

    `known` and copies of known positives are masked by id, `group` by group, `margin` and `guide` by score, `crowd` and
    `posterior` by a sketch that is made anew with every generation (see `make_sketch`). What cannot be said of a pair by
    one inner product (ranks, a cross-encoder) works on mined candidates only.

    Args:
        chain: the filters.
        pairs: the dataset.
        context: its known positives, and `embed` for guides.
        device: where the masks are needed.

    Attributes:
        mined_only: names of the filters that do not work here.
    """

    def __init__(self, chain: f.Chain, pairs: Pairs, context: Context, device: torch.device) -> None:
        self.pairs, self.device = pairs, device
        # Copies of a text are one document here: none of them is a negative of a query that another is a positive of.
        keys = np.where(pairs.document_keys != 0, pairs.document_keys, -1 - np.arange(len(pairs.document_keys)))
        _, first, places = np.unique(keys, return_index=True, return_inverse=True)
        self.canonical = torch.from_numpy(first[places.ravel()]).to(device)
        self.known = context.known
        self.margins = [each for each in chain.filters if isinstance(each, f.Margin)]
        self.guide = next((each for each in chain.filters if isinstance(each, f.Guide)), None)
        self.grouped = any(isinstance(each, f.Group) for each in chain.filters)
        if self.grouped and (pairs.query_groups is None or pairs.document_groups is None):
            raise UsageError(
                "the filter 'group' needs groups: a column 'group' or 'label', or groups.tsv in a BEIR folder"
            )
        self._document_groups: Tensor | None = None
        if self.grouped and pairs.document_groups is not None:
            self._document_groups = torch.from_numpy(pairs.document_groups).to(device)
        self.posterior, self.limit = _sketched(chain)
        self.sketch: Sketch | None = None
        here = (f.Known, f.Duplicate, f.Margin, f.Guide, f.Group, f.SameCrowd, f.FalseNegative)
        self.mined_only = [each.name for each in chain.filters if not isinstance(each, (*here, f.Empty, f.Distinct))]
        self._guide_vectors = None if self.guide is None else _guide_vectors(self.guide, context)

    @property
    def needs_neighbours(self) -> bool:
        """Whether a generation is needed even where no negatives are mined."""
        return self.posterior is not None

    def variants(self, given: Variants) -> Variants:
        """With what the filters have to say: the strictest margin, the threshold of the posterior."""
        for name in ("absolute", "relative"):
            margins = [getattr(each, name) for each in self.margins if getattr(each, name) is not None]
            own = getattr(given, f"margin_{name}")
            if margins or own is not None:
                strictest = max([*margins, *([] if own is None else [own])])
                given = replace(given, **{f"margin_{name}": strictest})
        if self.guide is not None:
            given = replace(given, guide_margin=self.guide.margin)
        if self.posterior is not None:
            given = replace(given, suspect_above=self.limit)
        return given

    def use(self, context: Context) -> None:
        """Look at another generation: `context.nearest` and `context.index` are its."""
        if self.posterior is not None:
            self.sketch = make_sketch(self.posterior, context).to(self.device)

    def share(self, world: World) -> None:
        """Take over the sketch of the first rank."""
        if self.posterior is None:
            return
        tables = [None, None] if self.sketch is None else [self.sketch.queries, self.sketch.documents]
        shown = [world.shown(None if table is None else table.cpu().numpy(), np.float32) for table in tables]
        queries, documents = (torch.from_numpy(table).to(self.device) for table in shown)
        self.sketch = Sketch(queries, documents, self.posterior.intercept)

    def masks(self, rows: Rows) -> dict[str, Any]:
        """Arguments of `InfoNCE.forward`."""
        queries = rows.queries.cpu().numpy()
        known = torch.from_numpy(self.known.take(queries).padded()).to(self.device)
        out: dict[str, Any] = {
            "ids": self._sides(rows, lambda documents: self.canonical[documents]),
            "known_ids": torch.where(known >= 0, self.canonical[known], -1),
        }
        if self.grouped:
            assert self.pairs.query_groups is not None
            assert self._document_groups is not None
            groups = self._document_groups
            mine = torch.from_numpy(self.pairs.query_groups[queries]).to(self.device)
            out["groups"] = self._sides(rows, lambda documents: groups[documents], mine)
        if self.sketch is not None:
            theirs = self.sketch.documents
            out["sketches"] = self._sides(rows, lambda documents: theirs[documents], self.sketch.queries[rows.queries])
            out["intercept"] = self.sketch.intercept
        if self._guide_vectors is not None:
            of_queries, of_documents = self._guide_vectors
            mine = self._unit(of_queries, rows.queries)
            out["guide"] = self._sides(rows, lambda documents: self._unit(of_documents, documents), mine)
        return out

    def _sides(self, rows: Rows, of: Callable[[Tensor], Tensor], mine: Tensor | None = None) -> Sides:
        return Sides(mine, of(rows.positives)[:, None], shared=of(rows.shared), bank=of(rows.bank))

    def _unit(self, vectors: Any, rows: Tensor) -> Tensor:
        chosen: NDArray[np.float32] = np.asarray(vectors[rows.cpu().numpy()], np.float32)
        return torch.nn.functional.normalize(torch.from_numpy(chosen).to(self.device), dim=1)


def _sketched(chain: f.Chain) -> tuple[Posterior | None, float]:
    """(What the sketch is made of, the probability from which on a pair is no negative)."""
    if chain.posterior is not None:
        own = chain.posterior
        return own.posterior, own.posterior.threshold if own.threshold is None else own.threshold
    crowd = next((each for each in chain.filters if isinstance(each, f.SameCrowd)), None)
    if crowd is None:
        return None, 0.5
    # The mean of three cosines is above `max` exactly where these log odds are above 0.
    return Posterior(tuple(CROWDS), (1 / 3,) * 3, -crowd.max, 0.5, "known positives"), 0.5


def _guide_vectors(guide: f.Guide, context: Context) -> tuple[Any, Any]:
    if context.embed is None:
        raise UsageError("the filter 'guide' needs the texts of the dataset, and a Context(embed=...)")
    queries, corpus = context.embed(guide.model)
    return queries, corpus.documents
