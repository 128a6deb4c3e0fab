"""Filters: which candidates may be negatives. Each has a name, and says so for all candidates at once.

A filter is written `name:option=value,...` (see `parse_filter`), chained with `&`, and asked once per
block of queries. The first filter that rejects a candidate writes its verdict.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Ragged
from hardneg.data.store import sha256_file
from hardneg.errors import UsageError
from hardneg.mining.candidates import Candidates, Context, Float, Mask, members
from hardneg.mining.cross_encoder import cross_encoder_scores
from hardneg.mining.features import CROWDS, PairFeatures
from hardneg.mining.posterior import Posterior, check_identity, selection_of

KEPT = "kept"


@dataclass(frozen=True, kw_only=True)
class Filter(ABC):
    """Base of all filters.

    Attributes:
        name: what stands in the verdict.
        guesses: whether it guesses at relevance; what was judged not relevant is exempt from guesses.
    """

    name = "filter"
    guesses = True

    @abstractmethod
    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        """bool `[n, K]`, True where the candidate may stay. Where `alive` is False, the answer is not used."""

    def more_may_pass(self, candidates: Candidates) -> NDArray[np.bool_]:
        """bool `[n]`: whether a document further down could pass this filter."""
        return np.ones(len(candidates.queries), bool)

    def __and__(self, other: Filter | Chain) -> Chain:
        return Chain([self]) & other


@dataclass(frozen=True)
class Chain:
    """Filters in order."""

    filters: Sequence[Filter]

    def __and__(self, other: Filter | Chain) -> Chain:
        return Chain([*self.filters, *(other.filters if isinstance(other, Chain) else [other])])

    @property
    def names(self) -> list[str]:
        """Verdicts in the order of their codes: `kept`, then each filter's name; a second `margin` is `margin#2`."""
        names = [KEPT]
        for f in self.filters:
            count = sum(name.partition("#")[0] == f.name for name in names)
            names.append(f.name if count == 0 else f"{f.name}#{count + 1}")
        return names

    def verdicts(self, candidates: Candidates, context: Context) -> NDArray[np.uint8]:
        """uint8 `[n, K]`: 0 = kept, i = rejected by the filter number i; meaningless where there is no document."""
        verdicts = np.zeros(candidates.documents.shape, np.uint8)
        alive = candidates.real.copy()
        judged: Mask | None = None
        for code, f in enumerate(self.filters, 1):
            rejected = alive & ~f.keep(candidates, context, alive)
            if f.guesses and rejected.any():
                if judged is None:
                    judged = members(candidates.documents, context.pairs.judged_negatives.take(candidates.queries))
                rejected &= ~judged
            verdicts[rejected] = code
            alive &= ~rejected
        return verdicts

    def check(self, fingerprints: Mapping[str, Any], force: bool = False) -> dict[str, str]:
        """RunError if a posterior was learned with another encoder than that of these fingerprints, unless `force`.

        Returns:
            A SHA-256 of each posterior's file.
        """
        found = [f for f in self.filters if isinstance(f, FalseNegative)]
        for f in found:
            check_identity(f.posterior, fingerprints, f.file, force)
        return {f"posterior:{f.file}": sha256_file(Path(f.file)) for f in found}

    def notes(self, config: Mapping[str, Any]) -> list[str]:
        """What is to be said of guarantees that do not hold for a selection so configured."""
        return [note for f in self.filters if isinstance(f, FalseNegative) for note in f.notes(config)]

    @property
    def posterior(self) -> FalseNegative | None:
        """The last posterior among the filters."""
        return next((f for f in reversed(self.filters) if isinstance(f, FalseNegative)), None)

    def false_probability(self, candidates: Candidates, context: Context, columns: NDArray[np.integer]) -> Float | None:
        """float32 `[n, c]`: how likely the candidates in these columns are relevant; None without a posterior."""
        return None if self.posterior is None else self.posterior.probability(candidates, context, columns)

    def more_may_pass(self, candidates: Candidates) -> NDArray[np.bool_]:
        """bool `[n]`: whether searching deeper could find documents that pass every filter."""
        more = np.ones(len(candidates.queries), bool)
        for f in self.filters:
            more &= f.more_may_pass(candidates)
        return more


@dataclass(frozen=True, kw_only=True)
class Known(Filter):
    """Rejects the known positives of the query, and those of every query with the same text."""

    name = "known"
    guesses = False

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        return ~members(candidates.documents, context.known.take(candidates.queries))


@dataclass(frozen=True, kw_only=True)
class Empty(Filter):
    """Rejects documents without text."""

    name = "empty"
    guesses = False

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        kept: Mask = (context.pairs.document_keys != 0)[candidates.documents]
        return kept


@dataclass(frozen=True, kw_only=True)
class Duplicate(Filter):
    """Rejects copies of a positive or of the query itself.

    `near=None`: equal text after unicode (NFKC), case and white-space folding, with or without the title.
    `near=x`: an embedding score of at least x with a positive or with the query.
    """

    name = "duplicate"
    guesses = False
    near: float | None = None

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        if self.near is not None:
            return self._keep_near(candidates, context, self.near)
        pairs = context.pairs
        known = context.known.take(candidates.queries)
        rows = known.row_numbers()
        n = len(candidates.queries)
        own = pairs.query_keys[candidates.queries]
        rows = np.concatenate([rows, np.arange(n)])
        copies = np.zeros(candidates.documents.shape, bool)
        # Bodies count as well as whole documents: another title does not make it another text.
        for keys in (pairs.document_keys, pairs.body_keys) if context.titled else (pairs.document_keys,):
            values = np.concatenate([keys[known.values], own])
            copies |= members(keys[candidates.documents], Ragged.from_pairs(rows[values != 0], values[values != 0], n))
        return ~copies

    def _keep_near(self, candidates: Candidates, context: Context, near: float) -> Mask:
        keep: Mask = candidates.scores < near
        positives = context.known.take(candidates.queries).padded()
        for j in range(positives.shape[1]):
            rows = np.flatnonzero(positives[:, j] >= 0)
            anchors = np.asarray(context.index.documents[positives[rows, j]], np.float32)
            keep[rows] &= context.index.pair_scores(anchors, candidates.documents[rows]) < near
        return keep


@dataclass(frozen=True, kw_only=True)
class Distinct(Filter):
    """Rejects a document whose text (folded) stands nearer to the query already, under another id."""

    name = "distinct"
    guesses = False

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        keys = np.where(alive, context.pairs.document_keys[candidates.documents], -1)
        order = np.argsort(keys, axis=1, kind="stable")
        ordered = np.take_along_axis(keys, order, axis=1)
        again = np.zeros(keys.shape, bool)
        again[:, 1:] = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)
        keep = np.ones(keys.shape, bool)
        np.put_along_axis(keep, order, ~again, axis=1)
        return keep


@dataclass(frozen=True, kw_only=True)
class Group(Filter):
    """Rejects documents of the query's group or of a group of its positives; no group, no verdict."""

    name = "group"

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        pairs = context.pairs
        if pairs.document_groups is None or pairs.query_groups is None:
            raise UsageError(
                "the filter 'group' needs groups: a column 'group' or 'label' (--group-column), or groups.tsv in a BEIR folder"
            )
        known = context.known.take(candidates.queries)
        own = pairs.query_groups[candidates.queries]
        rows = np.concatenate([known.row_numbers(), np.arange(len(own))])
        values = np.concatenate([pairs.document_groups[known.values], own])
        groups = Ragged.from_pairs(rows[values >= 0], values[values >= 0], len(own))
        return ~members(pairs.document_groups[candidates.documents], groups)


@dataclass(frozen=True, kw_only=True)
class Rank(Filter):
    """Keeps ranks from `min` to `max`; rank 1 is the nearest document, known positives counted."""

    name = "rank"
    min: int = 1
    max: int | None = None

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        ranks = candidates.ranks
        inside = ranks >= self.min if self.max is None else (ranks >= self.min) & (ranks <= self.max)
        return np.broadcast_to(inside, candidates.documents.shape)

    def more_may_pass(self, candidates: Candidates) -> NDArray[np.bool_]:
        more = self.max is None or candidates.documents.shape[1] < self.max
        return np.full(len(candidates.queries), more)


@dataclass(frozen=True, kw_only=True)
class Score(Filter):
    """Keeps scores from `min` to `max`."""

    name = "score"
    min: float = -math.inf
    max: float = math.inf

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        kept: Mask = (candidates.scores >= np.float32(self.min)) & (candidates.scores <= np.float32(self.max))
        return kept

    def more_may_pass(self, candidates: Candidates) -> NDArray[np.bool_]:
        more: Mask = candidates.scores[:, -1] >= np.float32(self.min)
        return more


def below_margin(scores: Float, positive: Float, absolute: float | None, relative: float | None) -> Mask:
    """bool like `scores`: at least a margin below the positive's score (NV-Retriever, arXiv 2407.15831).

    `absolute`: s <= p - absolute. `relative`: s <= p - |p| * relative, which asks for a lower score
    whatever the sign of p. A NaN positive (there is none) rejects nothing.
    """
    keep: Mask = np.ones(np.broadcast_shapes(scores.shape, positive.shape), bool)
    if absolute is not None:
        keep &= ~(scores > positive - np.float32(absolute))
    if relative is not None:
        keep &= ~(scores > positive - np.abs(positive) * np.float32(relative))
    return keep


@dataclass(frozen=True, kw_only=True)
class Margin(Filter):
    """Keeps what scores a margin below the query's positive; several positives: the lowest counts.

    Queries without a positive have no margin: all their candidates stay.
    """

    name = "margin"
    absolute: float | None = None
    relative: float | None = None

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        return below_margin(candidates.scores, candidates.positive_scores[:, None], self.absolute, self.relative)


@dataclass(frozen=True, kw_only=True)
class SameCrowd(Filter):
    """Keeps what stands in another crowd (see `crowds`) than the query, its positive, and those of queries like it.

    `max` is compared with the mean of three cosines, 0 to 1.
    """

    name = "crowd"
    max: float

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        found = PairFeatures(context).of(CROWDS, candidates)
        mean = (found["crowd_query"] + found["crowd_positive"] + found["crowd_votes"]) / np.float32(3)
        keep: Mask = mean <= np.float32(self.max)
        return keep


@dataclass(frozen=True, kw_only=True)
class FalseNegative(Filter):
    """Keeps what is likely enough to be a true negative, by a learned posterior (`hardneg calibrate`).

    `threshold`: the highest probability of relevance that may stay; None: the posterior's own.
    """

    name = "posterior"
    posterior: Posterior
    file: str
    threshold: float | None = None

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        limit = self.posterior.threshold if self.threshold is None else self.threshold
        keep: Mask = self.probability(candidates, context) <= np.float32(limit)
        return keep

    def probability(
        self, candidates: Candidates, context: Context, columns: NDArray[np.integer] | None = None
    ) -> Float:
        """float32 `[n, K]`, or `[n, c]` of these columns: P(relevant)."""
        values = PairFeatures(context).of(self.posterior.features, candidates, columns)
        return self.posterior.probability(values)

    def notes(self, config: Mapping[str, Any]) -> list[str]:
        """What is to be said of the guarantee if it does not hold for a selection so configured."""
        guarantee = self.posterior.guarantee
        if guarantee is None:
            return []
        if self.threshold is not None and self.threshold > guarantee["threshold"]:
            return [f"the guarantee of {self.file} does not hold for threshold {self.threshold:g}: it has its own"]
        now = selection_of(config)
        changed = [name for name, value in guarantee["selection"].items() if now.get(name) != value]
        if not changed:
            return []
        said = ", ".join(f"{name} {guarantee['selection'][name]!r} then, {now.get(name)!r} now" for name in changed)
        return [f"the guarantee of {self.file} was given for another selection ({said})"]


@dataclass(frozen=True, kw_only=True)
class LearnedAtStart(Filter):
    """A posterior that a training learns itself, from what its first generation finds (`posterior:learned`).

    Not from later ones: an encoder that was trained on the known positives finds them better than other relevant
    documents, and they are no fair sample any more.

    `threshold`: the highest probability of relevance that a negative may have.
    """

    name = "posterior"
    threshold: float = 0.2

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        raise UsageError(
            "the filter 'posterior:learned' is of trainings (OnlineFilters): here, calibrate and give the file"
        )


@dataclass(frozen=True, kw_only=True)
class Guide(Filter):
    """Keeps what a guide model, too, finds less relevant than the positive (GISTEmbed, arXiv 2402.16829)."""

    name = "guide"
    model: str
    margin: float = 0.0

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        if context.embed is None:
            raise UsageError("the filter 'guide' needs the texts of the dataset: mine with a dataset that has them")
        vectors, index = context.embed(self.model)
        queries = np.asarray(vectors[candidates.queries], np.float32)
        scores = index.pair_scores(queries, np.where(alive, candidates.documents, -1))
        positives = lowest_scores(index.pair_scores(queries, context.pairs.positives.take(candidates.queries).padded()))
        return below_margin(scores, positives[:, None], self.margin, None)


@dataclass(frozen=True, kw_only=True)
class CrossEncoder(Filter):
    """Keeps what a cross-encoder finds not relevant (denoising of RocketQA, arXiv 2010.08191).

    `max`: the highest score that may stay. `margin`: how far below the lowest positive's score it has
    to be. `model`: see `cross_encoder_scores`.
    """

    name = "cross-encoder"
    model: str
    max: float | None = None
    margin: float | None = None

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        scores = cross_encoder_scores(
            context, self.model, candidates.queries, np.where(alive, candidates.documents, -1)
        )
        keep: Mask = scores <= (np.inf if self.max is None else np.float32(self.max))
        if self.margin is not None:
            known = context.pairs.positives.take(candidates.queries).padded()
            positive = lowest_scores(cross_encoder_scores(context, self.model, candidates.queries, known))
            keep &= below_margin(scores, positive[:, None], self.margin, None)
        return keep


def lowest_scores(scores: Float) -> Float:
    """float32 `[n]`: the lowest real score of each row of `[n, p]`; NaN where there is none (all -inf)."""
    if scores.shape[1] == 0:
        return np.full(len(scores), np.nan, np.float32)
    lowest: Float = np.where(np.isneginf(scores), np.float32(np.inf), scores).min(1)
    return np.where(np.isposinf(lowest), np.float32(np.nan), lowest)
