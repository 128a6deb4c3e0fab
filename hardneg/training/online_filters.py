"""A chain of filters at work in the loss: what it rejects among candidates is no negative in the batch and the bank either."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logit
from torch import Tensor

from hardneg.data.pairs import Pairs
from hardneg.data.texts import distinct_keys
from hardneg.errors import DataError, UsageError
from hardneg.false_negatives.features import SHARED_FEATURES, PairFeatures
from hardneg.false_negatives.filters import LearnedPosterior, PosteriorFilter, SharedNeighbors
from hardneg.false_negatives.model import Posterior
from hardneg.false_negatives.population import Found
from hardneg.false_negatives.sketch import Sketch, make_sketch
from hardneg.false_negatives.sources import learn_from
from hardneg.losses.batch import PerRole
from hardneg.losses.variants import Variants
from hardneg.mining.candidates import Context
from hardneg.mining.filters.base import Chain
from hardneg.mining.filters.identity import Distinct, Duplicate, Empty, Group, Known
from hardneg.mining.filters.limits import Margin
from hardneg.mining.filters.models import Guide
from hardneg.mining.mined import Mined
from hardneg.training.distributed import World

_APART = 1.0  # log odds below the limit, at most, where nothing speaks for relevance: more than a sketch's noise


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

    `known` and copies of known positives are masked by id, `group` by group, `margin` and `guide` by score, `shared-neighbors` and
    `posterior` by a sketch that is made anew with every generation (see `make_sketch`), for `posterior:learned` of a
    posterior that is learned at the first. What cannot be said of a pair by one inner product (ranks, a cross-encoder) works
    on mined candidates only.

    Args:
        chain: the filters.
        pairs: the dataset.
        context: its known positives, and `embed` for guides.
        device: where the masks are needed.
        seed: of the sample that a posterior is learned from.

    Attributes:
        fixed: the filters that need not be learned.
        mined_only: names of the filters that do not work here.
        posterior: what the sketch is made of, given or learned.
        unlearned: why none was learned that should have been.
    """

    def __init__(self, chain: Chain, pairs: Pairs, context: Context, device: torch.device, seed: int = 0) -> None:
        self.pairs, self.device, self.seed = pairs, device, seed
        # Copies of a text are one document here: none of them is a negative of a query that another is a positive of.
        _, first, places = np.unique(distinct_keys(pairs.document_keys), return_index=True, return_inverse=True)
        self.canonical = torch.from_numpy(first[places.ravel()]).to(device)
        self.known = context.known
        self.margins = [each for each in chain.filters if isinstance(each, Margin)]
        self.guide = next((each for each in chain.filters if isinstance(each, Guide)), None)
        self.grouped = any(isinstance(each, Group) for each in chain.filters)
        if self.grouped and (pairs.query_groups is None or pairs.document_groups is None):
            raise UsageError(
                "the filter 'group' needs groups: a column 'group' or 'label', or groups.tsv in a BEIR folder"
            )
        self._document_groups: Tensor | None = None
        if self.grouped and pairs.document_groups is not None:
            self._document_groups = torch.from_numpy(pairs.document_groups).to(device)
        self.to_learn = next((each for each in chain.filters if isinstance(each, LearnedPosterior)), None)
        self.fixed = Chain([each for each in chain.filters if not isinstance(each, LearnedPosterior)])
        self.posterior, self.limit = (None, self.to_learn.threshold) if self.to_learn else _sketched(chain)
        self.sketch: Sketch | None = None
        self.unlearned: str | None = None
        here = (Known, Duplicate, Margin, Guide, Group, SharedNeighbors, PosteriorFilter, LearnedPosterior)
        self.mined_only = [each.name for each in chain.filters if not isinstance(each, (*here, Empty, Distinct))]
        self._guide_vectors = None if self.guide is None else _guide_vectors(self.guide, context)

    @property
    def needs_neighbors(self) -> bool:
        """Whether a generation is needed even where no negatives are mined: for a sketch."""
        return self.posterior is not None or self.to_learn is not None

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
        if self.needs_neighbors:
            given = replace(given, suspect_above=self.limit)
        return given

    def use(self, mined: Mined, context: Context) -> Mined:
        """Look at another generation, and make its sketch; at the first one learn what is to be learned.

        Args:
            mined: its candidates; `fixed` has been asked for already.
            context: `nearest` and `index` are its.

        Returns:
            `mined` without what a learned posterior rejects.
        """
        if self.to_learn is not None:
            if self.posterior is None and self.unlearned is None:
                self._learn(mined, context)
            if self.posterior is not None:
                mined = mined.filtered(Chain([PosteriorFilter(posterior=self.posterior, file="learned")]), context)
        if self.posterior is not None:
            self.sketch = make_sketch(self.posterior, context).to(self.device)
        elif self.needs_neighbors:
            self.sketch = Sketch.blank(len(self.pairs), len(self.pairs.document_ids)).to(self.device)
        return mined

    def _learn(self, mined: Mined, context: Context) -> None:
        everyone = np.arange(len(mined.documents))
        found = Found(context, mined.documents.shape[1], lambda: [(mined.candidates(everyone), mined.kept)])
        try:
            made = learn_from(found, PairFeatures(context), "auto", None, self.seed)
        except DataError as error:
            self.unlearned = str(error)
            return
        # Learned of near candidates. What stands in no crowd of the query's is not suspected, whatever was learned.
        level = min(made.model.intercept, float(logit(min(max(self.limit, 1e-6), 1 - 1e-6))) - _APART)
        self.posterior = Posterior(
            made.model.features, made.model.weights, level, self.limit, made.source, {}, made.report
        )

    def state(self) -> dict[str, Any]:
        """What was learned: plain values."""
        if self.to_learn is None:
            return {}
        return {"posterior": None if self.posterior is None else self.posterior.to_json(), "unlearned": self.unlearned}

    def load(self, state: dict[str, Any]) -> None:
        """Go on with what `state` gave, before a generation is looked at."""
        if self.to_learn is not None:
            made = state["posterior"]
            self.posterior = None if made is None else Posterior.from_json(made, "the checkpoint")
            self.unlearned = state["unlearned"]

    def share(self, world: World) -> None:
        """Take over the sketch of the first rank."""
        if not self.needs_neighbors:
            return
        mine = self.sketch
        level = None if mine is None else np.array([[mine.intercept]])
        tables = [None, None] if mine is None else [mine.queries.cpu().numpy(), mine.documents.cpu().numpy()]
        queries, documents = (
            torch.from_numpy(world.broadcast_array(table, np.float32)).to(self.device) for table in tables
        )
        self.sketch = Sketch(queries, documents, float(world.broadcast_array(level, np.float64)[0, 0]))

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

    def _sides(self, rows: Rows, of: Callable[[Tensor], Tensor], mine: Tensor | None = None) -> PerRole:
        return PerRole(mine, of(rows.positives)[:, None], shared=of(rows.shared), bank=of(rows.bank))

    def _unit(self, vectors: Any, rows: Tensor) -> Tensor:
        chosen: NDArray[np.float32] = np.asarray(vectors[rows.cpu().numpy()], np.float32)
        return torch.nn.functional.normalize(torch.from_numpy(chosen).to(self.device), dim=1)


def _sketched(chain: Chain) -> tuple[Posterior | None, float]:
    """(What the sketch is made of, the probability from which on a pair is no negative)."""
    own = next((each for each in reversed(chain.filters) if isinstance(each, PosteriorFilter)), None)
    if own is not None:
        return own.posterior, own.posterior.threshold if own.threshold is None else own.threshold
    shared = next((each for each in chain.filters if isinstance(each, SharedNeighbors)), None)
    if shared is None:
        return None, 0.5
    # The mean of three cosines is above `max` exactly where these log odds are above 0.
    return Posterior(tuple(SHARED_FEATURES), (1 / 3,) * 3, -shared.max, 0.5, "known positives"), 0.5


def _guide_vectors(guide: Guide, context: Context) -> tuple[Any, Any]:
    if context.embed is None:
        raise UsageError("the filter 'guide' needs the texts of the dataset, and a Context(embed=...)")
    queries, corpus = context.embed(guide.model)
    return queries, corpus.documents
