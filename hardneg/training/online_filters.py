"""Filters in the loss: what they would reject among the candidates is no negative in the batch or the bank either."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from hardneg.mining.candidates import Candidates, Context
from hardneg.mining.filters.base import Chain, Filter
from hardneg.mining.filters.identity import Distinct, Duplicate, Empty, Group, Known
from hardneg.mining.filters.limits import Margin
from hardneg.mining.filters.models import Guide
from hardneg.mining.mined import Mined
from hardneg.refresh.context import context_of
from hardneg.refresh.generation import Generation
from hardneg.storage.arrays import Int, Mask, Ragged
from hardneg.training.distributed import World

# Log odds of a document that shares no neighbors with the query: at least this far below the limit, as a sketch has noise.
_BELOW_LIMIT = 1.0

_SHOWN_TERMS = 3  # of a learned posterior


@dataclass(frozen=True)
class Rows:
    """The queries and documents of a step, as rows of the dataset, int64.

    Attributes:
        queries: `[B]`, the queries.
        positives: `[B]`, the positive of each query.
        shared: `[M]`, the mined negatives, which are compared with every query.
        bank: `[S]`, the documents in the memory bank.
    """

    queries: Tensor
    positives: Tensor
    shared: Tensor
    bank: Tensor


@dataclass(frozen=True)
class Prepared:
    """A generation as the filters of a training leave it: its candidates, and the sketch of a posterior if there is one."""

    mined: Mined
    sketch: Sketch | None


class OnlineFilters:
    """A chain of filters, applied to the loss: it turns them into arguments of `InfoNCE`.

    - `known` and `duplicate:text` mask by id; documents with the same text count as one.
    - `group` masks by group, those of the query and of all its positives.
    - `margin` and `guide` mask by score. Of several margins, and of several limits for one guide, the strictest counts.
    - `shared-neighbors` and `posterior` mask by a sketch (see `make_sketch`), which is made again for every generation.
      The posterior of `posterior:learned` is learned once, at the first generation.

    All other filters, such as `rank`, `duplicate:near` and `cross-encoder`, need more than one inner product for each
    pair. They work on mined candidates only, and so do all guides but the first, and all sketched filters but one: a
    learned posterior, or else the last posterior, or else `shared-neighbors`.

    Args:
        chain: the filters.
        pairs: the dataset.
        context: the known positives of the dataset, and `embed` for guide models.
        device: the device of the masks.
        seed: seed of the sample that a posterior is learned from.

    Attributes:
        fixed: the filters of the chain without `posterior:learned`.
        mined_only: names of the filters that work on mined candidates only; of a filter that the loss uses in another
            form, or not a second time, its spec.
        posterior: the posterior behind the sketch, given or learned; None: there is none, or it is not learned yet.
        unlearned: why no posterior could be learned; None: nothing went wrong.

    Raises:
        UsageError: the dataset lacks the groups that the filter `group` needs, or the texts that `guide` needs, or two
            posteriors are to be learned.
    """

    def __init__(self, chain: Chain, pairs: Pairs, context: Context, device: torch.device, seed: int = 0) -> None:
        self.pairs, self.device, self.seed = pairs, device, seed
        # Copies of a text count as one document: if one is a positive of a query, none of the others is its negative.
        _, first, places = np.unique(distinct_keys(pairs.document_keys), return_index=True, return_inverse=True)
        self.canonical = torch.from_numpy(first[places.ravel()]).to(device)
        self.known, self._context = context.known, context
        self.margins = [each for each in chain.filters if isinstance(each, Margin)]
        guides = [each for each in chain.filters if isinstance(each, Guide)]
        self.guide = guides[0] if guides else None
        self.guide_margin = max((each.margin for each in guides if each.model == guides[0].model), default=0.0)
        self.grouped = any(isinstance(each, Group) for each in chain.filters)
        if self.grouped and (pairs.query_groups is None or pairs.document_groups is None):
            raise UsageError(
                "the filter 'group' needs groups: a column 'group' or 'label', groups.tsv in a BEIR folder, or those that "
                "positives make (group_positives=True, --group-positives)"
            )
        self._document_groups: Tensor | None = None
        if self.grouped and pairs.document_groups is not None:
            self._document_groups = torch.from_numpy(pairs.document_groups).to(device)
        learned = [each for each in chain.filters if isinstance(each, LearnedPosterior)]
        if len(learned) > 1:
            raise UsageError(f"{len(learned)} filters 'posterior:learned' with different thresholds: give one")
        self.to_learn = learned[0] if learned else None
        self.fixed = Chain([each for each in chain.filters if not isinstance(each, LearnedPosterior)])
        sketched, posterior, self.limit = _sketched(chain)
        if self.to_learn is not None:
            sketched, posterior, self.limit = [self.to_learn], None, self.to_learn.threshold
        self.posterior: Posterior | None = posterior
        self.sketch: Sketch | None = None
        self.unlearned: str | None = None
        self.mined_only = [name for each in chain.filters if (name := self._not_in_loss(each, sketched)) is not None]
        self._guide_vectors = None if self.guide is None else _guide_vectors(self.guide, context)

    def _not_in_loss(self, each: Filter, sketched: Sequence[Filter]) -> str | None:
        """The name of a filter that works on mined candidates only; None for one that also works in the loss.

        Args:
            each: the filter.
            sketched: the filters that the sketch stands for.
        """
        if isinstance(each, Known | Empty | Distinct | Margin | Group):
            return None
        if isinstance(each, Duplicate):
            return None if each.near is None else each.spec
        if isinstance(each, Guide):
            return None if self.guide is not None and each.model == self.guide.model else each.spec
        if isinstance(each, SharedNeighbors | PosteriorFilter | LearnedPosterior):
            return None if any(each is other for other in sketched) else each.spec
        return each.name

    @property
    def needs_neighbors(self) -> bool:
        """Whether a sketch is used. It needs the neighbors that a generation finds, even if no negatives are mined."""
        return self.posterior is not None or self.to_learn is not None

    def to(self, device: torch.device) -> None:
        """Move what the masks are made of to a device."""
        if device == self.device:
            return
        self.device, self.canonical = device, self.canonical.to(device)
        self._document_groups = None if self._document_groups is None else self._document_groups.to(device)
        self.sketch = None if self.sketch is None else self.sketch.to(device)

    def variants(self, given: Variants) -> Variants:
        """`given`, with the limits of the filters: the strictest margin, the guide's margin, the posterior's threshold."""
        for name in ("absolute", "relative"):
            margins = [getattr(each, name) for each in self.margins if getattr(each, name) is not None]
            own_margin = getattr(given, f"margin_{name}")
            if margins or own_margin is not None:
                strictest = max([*margins, *([] if own_margin is None else [own_margin])])
                given = replace(given, **{f"margin_{name}": strictest})
        if self.guide is not None:
            given = replace(given, guide_margin=self.guide_margin)
        if self.needs_neighbors:
            given = replace(given, suspect_above=self.limit)
        return given

    def of_generation(self, generation: Generation, embed: Any = None) -> Prepared:
        """What these filters make of the candidates of a generation.

        Args:
            generation: with the neighbors of every query of the dataset.
            embed: encodes the dataset with a guide model; see `Context`.
        """
        assert generation.neighbors is not None
        context = context_of(generation, self.pairs, self.known, embed)
        mined = Mined.of_neighbors(generation.neighbors, generation.ids, self.pairs, context, self.fixed)
        return self.prepared(mined, context)

    def prepared(self, mined: Mined, context: Context) -> Prepared:
        """What these filters make of candidates. At the first call, learn the posterior of `posterior:learned`.

        Later ones may be prepared in another thread, while the loss uses the masks of the generation before.

        Args:
            mined: the candidates of the generation, after the filters in `fixed`.
            context: the context with the index and the nearest documents of the generation.
        """
        if self.to_learn is not None:
            if self.posterior is None and self.unlearned is None:
                self._learn(mined, context)
            if self.posterior is not None:
                PairFeatures(context).votes.keep()  # the sketch asks for the same ones
                mined = mined.filtered(Chain([PosteriorFilter(posterior=self.posterior, file="learned")]), context)
        if self.posterior is not None:
            return Prepared(mined, make_sketch(self.posterior, context))
        blank = Sketch.blank(len(self.pairs), len(self.pairs.document_ids)) if self.needs_neighbors else None
        return Prepared(mined, blank)

    def allowed(self, queries: Int, documents: Int) -> Mask:
        """bool `[n, K]`: what the filters that need nothing but the dataset keep: `known`, `empty`, `duplicate:text` and `group`.

        Args:
            queries: int64 `[n]`.
            documents: int64 `[n, K]`, any documents.
        """
        chain = Chain([each for each in self.fixed.filters if _by_itself(each)])
        scores = np.zeros(documents.shape, np.float32)
        unknown = np.full(len(queries), np.nan, np.float32)
        empty = np.empty((len(queries), 0), np.float32)
        candidates = Candidates(queries, documents.astype(np.int32), scores, unknown, empty)
        kept: Mask = chain.verdicts(candidates, self._context) == 0
        return kept

    def use(self, prepared: Prepared) -> Mined:
        """Mask by this generation from now on. Returns its candidates, of which a learned posterior keeps fewer."""
        self.sketch = None if prepared.sketch is None else prepared.sketch.to(self.device)
        return prepared.mined

    def _learn(self, mined: Mined, context: Context) -> None:
        """Learn a posterior from these candidates, or note in `unlearned` why that is not possible."""
        queries = np.arange(len(mined.documents))
        found = Found(context, mined.documents.shape[1], lambda: [(mined.candidates(queries), mined.kept)])
        try:
            learned = learn_from(found, PairFeatures(context), "auto", None, self.seed)
        except DataError as error:
            self.unlearned = str(error)
            return
        if "uninformative" in learned.report:
            self.unlearned = str(learned.report["uninformative"])
            return
        # The model was learned from near candidates, but the loss applies it to any document. Lower the intercept, so that
        # a document that shares no neighbors with the query always stays below the limit.
        model, in_loss = learned.model, learned.in_loss
        assert in_loss is not None
        lowest = min(in_loss.intercept, float(logit(min(max(self.limit, 1e-6), 1 - 1e-6))) - _BELOW_LIMIT)
        self.posterior = Posterior(
            model.features,
            model.weights,
            model.intercept,
            self.limit,
            learned.source,
            {},
            learned.report,
            in_loss=replace(in_loss, intercept=lowest),
        )

    def state(self) -> dict[str, Any]:
        """What was learned, as plain values for a checkpoint."""
        if self.to_learn is None:
            return {}
        return {"posterior": None if self.posterior is None else self.posterior.to_json(), "unlearned": self.unlearned}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned. Call this before the first `use`."""
        if self.to_learn is not None:
            posterior = state["posterior"]
            self.posterior = None if posterior is None else Posterior.from_json(posterior, "the checkpoint")
            self.unlearned = state["unlearned"]

    def share(self, world: World) -> None:
        """Copy the sketch of rank 0 to all ranks."""
        if not self.needs_neighbors:
            return
        sketch = self.sketch
        intercept = None if sketch is None else np.array([[sketch.intercept]])
        tables = [None, None] if sketch is None else [sketch.queries.cpu().numpy(), sketch.documents.cpu().numpy()]
        queries, documents = (
            torch.from_numpy(world.broadcast_array(table, np.float32)).to(self.device) for table in tables
        )
        self.sketch = Sketch(queries, documents, float(world.broadcast_array(intercept, np.float64)[0, 0]))

    def masks(self, rows: Rows) -> dict[str, Any]:
        """Keyword arguments of `InfoNCE.forward` that mask the documents of a step."""
        queries = rows.queries.cpu().numpy()
        known = torch.from_numpy(self.known.take(queries).padded()).to(self.device)
        masks: dict[str, Any] = {
            "ids": self._per_role(rows, lambda documents: self.canonical[documents]),
            "known_ids": torch.where(known >= 0, self.canonical[known], -1),
        }
        if self.grouped:
            assert self.pairs.query_groups is not None
            assert self._document_groups is not None
            groups = self._document_groups
            query_groups = torch.from_numpy(self._groups_of(queries)).to(self.device)
            masks["groups"] = self._per_role(rows, lambda documents: groups[documents], query_groups)
        if self.sketch is not None:
            sketched = self.sketch.documents
            query_sketches = self.sketch.queries[rows.queries]
            masks["sketches"] = self._per_role(rows, lambda documents: sketched[documents], query_sketches)
            masks["intercept"] = self.sketch.intercept
        if self._guide_vectors is not None:
            query_vectors, document_vectors = self._guide_vectors
            of_queries = self._unit(query_vectors, rows.queries)
            masks["guide"] = self._per_role(rows, lambda documents: self._unit(document_vectors, documents), of_queries)
        return masks

    def _groups_of(self, queries: Int) -> Int:
        """int64 `[B, g]`: the groups of each query and of all its positives, filled up with -1, as in the filter `group`."""
        assert self.pairs.query_groups is not None
        assert self.pairs.document_groups is not None
        known = self.known.take(queries)
        rows = np.concatenate([known.row_numbers(), np.arange(len(queries))])
        values = np.concatenate([self.pairs.document_groups[known.values], self.pairs.query_groups[queries]])
        return Ragged.from_pairs(rows[values >= 0], values[values >= 0], len(queries)).padded()

    def _per_role(self, rows: Rows, of: Callable[[Tensor], Tensor], queries: Tensor | None = None) -> PerRole:
        """An attribute of the step's documents, which `of` looks up by row, and of its queries."""
        return PerRole(queries, of(rows.positives)[:, None], shared=of(rows.shared), bank=of(rows.bank))

    def _unit(self, vectors: Any, rows: Tensor) -> Tensor:
        """These rows of an array of vectors, scaled to length 1, on the device of the masks."""
        chosen: NDArray[np.float32] = np.asarray(vectors[rows.cpu().numpy()], np.float32)
        return torch.nn.functional.normalize(torch.from_numpy(chosen).to(self.device), dim=1)


def learned_line(posterior: Posterior, threshold: float) -> str:
    """What `posterior:learned` learned, its threshold and its largest terms, in one line."""
    report = posterior.report
    terms = sorted(zip(posterior.features, posterior.weights, strict=True), key=lambda term: -abs(term[1]))
    shown = "".join(f" {weight:+.2f} {name}" for name, weight in terms[:_SHOWN_TERMS])
    more = f", and {len(terms) - _SHOWN_TERMS} more terms (posterior.json)" if len(terms) > _SHOWN_TERMS else ""
    known, candidates = (f"{report[name]:,}" for name in ("known_positives", "candidates"))
    low, high = report.get("relevant_share_range", [report["relevant_share"]] * 2)
    return (
        f"posterior:learned, threshold {threshold:g}: what is more likely to be relevant is no negative. Learned from "
        f"{known} known positives among {candidates} candidates, of which {report['relevant_share']:.1%} more are relevant "
        f"({low:.1%} to {high:.1%}): "
        f"log odds {posterior.intercept:.2f}{shown}{more}"
    )


def _by_itself(each: Filter) -> bool:
    """Whether a filter can judge any document, without a search that found it."""
    return isinstance(each, Known | Empty | Group) or (isinstance(each, Duplicate) and each.near is None)


def _sketched(chain: Chain) -> tuple[list[Filter], Posterior | None, float]:
    """What sketches are made of: the filters that they stand for, their posterior, and the highest probability of relevance.

    The posterior is that of the last filter `posterior`. Without one, `shared-neighbors` is written as a posterior; of
    several, the strictest counts.
    """
    last = next((each for each in reversed(chain.filters) if isinstance(each, PosteriorFilter)), None)
    if last is not None:
        return [last], last.posterior, last.posterior.threshold if last.threshold is None else last.threshold
    shared = [each for each in chain.filters if isinstance(each, SharedNeighbors)]
    if not shared:
        return [], None, 0.5
    # The log odds of this posterior are above 0 exactly where the mean of the three cosines is above `max`.
    limit = min(each.max for each in shared)
    return [*shared], Posterior(tuple(SHARED_FEATURES), (1 / 3,) * 3, -limit, 0.5, "known positives"), 0.5


def _guide_vectors(guide: Guide, context: Context) -> tuple[Any, Any]:
    """The vectors of all queries and of all documents by the guide model."""
    if context.embed is None:
        raise UsageError("the filter 'guide' needs the texts of the dataset: give a Context with embed=...")
    queries, corpus = context.embed(guide.model)
    return queries, corpus.documents
