"""InfoNCE in memory that grows with the batch, not with its square; with every mask and variant evaluated tile by tile."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from hardneg.errors import UsageError
from hardneg.losses.masks import (
    AbovePositive,
    Guide,
    Own,
    Padding,
    SameGroup,
    SameId,
    Suspected,
    Weighted,
)
from hardneg.losses.ranks import Ranks
from hardneg.losses.tiles import Mask, Tiles, row_logsumexp

SIMILARITIES = ("cosine", "dot")


@dataclass(frozen=True)
class Sides:
    """Something that is known of all that takes part: ids, groups, a guide's vectors, sketches. What is None is unknown.

    Attributes:
        queries: `[B, ...]`.
        positives: `[B, ...]`, or `[B, P, ...]` for several a query.
        hard: `[B, K, ...]`.
        shared: `[M, ...]`.
        bank: `[S, ...]`.
    """

    queries: Tensor | None = None
    positives: Tensor | None = None
    hard: Tensor | None = None
    shared: Tensor | None = None
    bank: Tensor | None = None


@dataclass(frozen=True)
class Columns:
    """All documents that a query is compared with, one after the other.

    Attributes:
        vectors: `[m, d]`.
        positives, hard, shared, bank: how many of each kind, in this order, over all ranks.
    """

    vectors: Tensor
    positives: int
    hard: int
    shared: int
    bank: int


@dataclass(frozen=True)
class Variants:
    """Variants of the loss, each from its paper.

    Attributes:
        symmetric: documents look for their queries, too; the two losses are averaged (CLIP, arXiv 2103.00020).
        query_query: the other queries are negatives as well, document_document: so are the other positives, of each
            positive (improved contrastive loss of GTE, arXiv 2308.03281).
        decoupled: the positive is left out of the denominator (DCL, arXiv 2110.06848).
        tau_plus: share of the negatives that is expected to be false, taken off (debiased, arXiv 2007.00224).
        beta: concentration on hard negatives (HCL, arXiv 2010.04592); their logits are weighed by exp(beta * logit).
        label_smoothing: share of the target that is spread over all entries.
        hard_weight: how much a mined hard negative counts, others count 1.
        margin_absolute, margin_relative: what scores above positive - margin is no negative, see `AbovePositive`.
        guide_margin: what a guide scores above its score of the positive, less this, is no negative, where a guide is given.
        suspect_above: what a posterior finds more likely than this to be relevant is no negative; None: every entry is
            weighed by 1 - p, where sketches are given.
    """

    symmetric: bool = False
    query_query: bool = False
    document_document: bool = False
    decoupled: bool = False
    tau_plus: float = 0.0
    beta: float = 0.0
    label_smoothing: float = 0.0
    hard_weight: float = 1.0
    margin_absolute: float | None = None
    margin_relative: float | None = None
    guide_margin: float = 0.0
    suspect_above: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.tau_plus < 1 or not 0 <= self.label_smoothing < 1:
            raise UsageError("tau_plus and label_smoothing must be 0 or more and below 1")
        if self.beta < 0 or not self.hard_weight > 0:
            raise UsageError("beta must be 0 or more, hard_weight above 0")
        if self.label_smoothing and (self.decoupled or self.tau_plus or self.beta):
            raise UsageError(
                "label_smoothing has no meaning together with decoupled, tau_plus or beta: those are no cross-entropies"
            )


class InfoNCE(nn.Module):
    """L = -log exp(s(q, p) / t) / (exp(s(q, p) / t) + sum over negatives x of exp(s(q, x) / t)), averaged over the queries.

    The negatives of a query are the positives and hard negatives of the whole batch (of all ranks, where torch.distributed
    is initialised), the shared negatives and the bank; its own positives are never among them. Several positives: each
    against the same negatives, averaged. A query whose negatives are all masked has a loss and gradients of 0.

    Args:
        temperature: t, at the start.
        learn_temperature: whether t is a parameter (in log space), kept within `temperature_range`.
        similarity: `cosine` or `dot`.
        variants: see `Variants`.
        dimensions: Matryoshka (arXiv 2205.13147): the loss is summed over vectors cut to these lengths; None: whole ones.
        tiles: sizes of tiles and number format of products; None: as fits the device, in the format of the inputs or
            of an enclosing autocast.

    After a call, `statistics` holds means as detached tensors `[]`, which nobody has waited for: `positive` (score),
    `temperature`, `masked` (the share of entries that did not count), `loss`.
    """

    def __init__(
        self,
        temperature: float = 0.05,
        *,
        learn_temperature: bool = False,
        temperature_range: tuple[float, float] = (0.005, 1.0),
        similarity: str = "cosine",
        variants: Variants | None = None,
        dimensions: Sequence[int] | None = None,
        tiles: Tiles | None = None,
    ) -> None:
        super().__init__()
        low, high = temperature_range
        if not 0 < low <= temperature <= high:
            raise UsageError(f"temperature {temperature} must be above 0 and within {temperature_range}")
        if similarity not in SIMILARITIES:
            raise UsageError(f"similarity must be one of {', '.join(SIMILARITIES)}, not {similarity!r}")
        if dimensions is not None and (not dimensions or min(dimensions) < 1):
            raise UsageError("dimensions must be lengths of 1 or more")
        self.variants = variants or Variants()
        self.similarity, self.tiles = similarity, tiles
        self.dimensions = None if dimensions is None else tuple(dimensions)
        self.log_range = math.log(1 / high), math.log(1 / low)
        log_scale = torch.tensor(math.log(1 / temperature))
        if learn_temperature:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)
        self.statistics: dict[str, Tensor] = {}

    @property
    def temperature(self) -> float:
        return math.exp(-float(self.log_scale.detach()))

    def forward(
        self,
        queries: Tensor,
        positives: Tensor,
        hard: Tensor | None = None,
        shared: Tensor | None = None,
        bank: Tensor | None = None,
        *,
        ids: Sides | None = None,
        known_ids: Tensor | None = None,
        groups: Sides | None = None,
        guide: Sides | None = None,
        sketches: Sides | None = None,
        intercept: float = 0.0,
        hard_real: Tensor | None = None,
    ) -> Tensor:
        """The loss, `[]`.

        Args:
            queries: `[B, d]`.
            positives: `[B, d]` or `[B, P, d]`.
            hard: `[B, K, d]`, mined for each query; negatives of all the others, too.
            shared: `[M, d]`, negatives of every query.
            bank: `[S, d]`, the same, without gradient; never gathered over ranks: every rank keeps its copy.
            ids: int64 ids of the documents (`queries` is not looked at), -1: unknown.
            known_ids: int64 `[B, Q]`, all known positives of each query, -1: none; None: those of `ids.positives`.
            groups: int64 groups, -1: none.
            guide: a guide model's unit vectors.
            sketches: of a posterior (`hardneg.make_sketch`), with its `intercept`.
            hard_real: bool `[B, K]`, where a query has fewer than K hard negatives; None: all are real.
        """
        if positives.ndim == 2:
            positives = positives[:, None]
        _check(queries, positives, hard, shared, bank)
        if isinstance(self.log_scale, nn.Parameter):
            with torch.no_grad():
                self.log_scale.clamp_(*self.log_range)
        ranks = Ranks.here(len(queries), queries.device)
        sides = Sides(queries, positives, hard, shared, None if bank is None else bank.detach())
        losses = []
        for length in self.dimensions or (queries.shape[1],):
            if length > queries.shape[1]:
                raise UsageError(f"dimensions asks for {length} components of vectors with {queries.shape[1]}")
            cut = Sides(*(None if x is None else self._prepared(x[..., :length]) for x in _values(sides)))
            masks = _Masks(self.variants, ids, known_ids, groups, guide, sketches, intercept, hard_real, ranks)
            losses.append(self._loss(cut, masks, ranks))
        total = torch.stack(losses).sum()
        self.statistics |= {"loss": total.detach(), "temperature": torch.exp(-self.log_scale.detach())}
        return total

    def _prepared(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, dim=-1) if self.similarity == "cosine" else vectors

    def _loss(self, sides: Sides, masks: _Masks, ranks: Ranks) -> Tensor:
        assert sides.queries is not None
        assert sides.positives is not None
        queries, positives = sides.queries, sides.positives
        scale = self.log_scale.exp()
        tiles = self._tiles(queries)
        exact = torch.float64 if queries.dtype == torch.float64 else torch.float32
        own = (queries[:, None].to(exact) * positives.to(exact)).sum(-1)  # [B, P]
        columns = _columns(sides, ranks)
        listed = masks.of_queries(columns, positives.shape[1], own.detach().amin(1))
        negatives, total, count = self._negatives(queries, columns.vectors, scale, listed, tiles)
        logits = own * scale
        log_sum = negatives[:, None].expand_as(logits)
        many = count[:, None].expand_as(logits)
        total = total[:, None].expand_as(logits)
        for other, of_other, seen in self._more(sides, masks, ranks, scale, tiles):
            log_sum, many, total = _added(log_sum, many, other, seen), many + seen, total + of_other
        loss = self._against(logits, log_sum, many, total, scale)
        if self.variants.symmetric:
            rows = positives.flatten(0, 1)
            back, back_total, seen = row_logsumexp(
                rows, ranks.gathered(queries), scale, masks.of_positives(positives.shape[1]), tiles
            )
            shape = logits.shape
            other = self._against(logits, back.view(shape), seen.view(shape), back_total.view(shape), scale, plain=True)
            loss = (loss + other) / 2
        entries = len(queries) * columns.vectors.shape[0]
        self.statistics = {
            "positive": own.detach().mean(),
            "masked": 1 - count.sum() / max(1, entries),
        }
        return ranks.mean(loss.mean(1))

    def _tiles(self, queries: Tensor) -> Tiles:
        tiles = self.tiles or Tiles.fitting(queries.device)
        if tiles.dtype is None and torch.is_autocast_enabled(queries.device.type):
            return Tiles(tiles.rows, tiles.columns, torch.get_autocast_dtype(queries.device.type))
        return tiles

    def _negatives(
        self, queries: Tensor, columns: Tensor, scale: Tensor, masks: list[Mask], tiles: Tiles
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(log of the sum over negatives, sum of logits, how many), `[B]` each; the sum is concentrated by `beta`."""
        beta = self.variants.beta
        if not beta:
            return row_logsumexp(queries, columns, scale, masks, tiles)
        # Weights exp(beta * logit), of mean 1: sum(w e) / mean(w), in logarithms.
        weighted, total, count = row_logsumexp(queries, columns, scale * (1 + beta), masks, tiles)
        weights, _, _ = row_logsumexp(queries, columns, scale * beta, masks, tiles)
        some = count > 0
        spread = torch.where(some, weighted, 0) - torch.where(some, weights, 0) + torch.log(count.clamp(min=1))
        return torch.where(some, spread, -torch.inf), total / (1 + beta), count

    def _more(
        self, sides: Sides, masks: _Masks, ranks: Ranks, scale: Tensor, tiles: Tiles
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Further terms of the denominators, `[B, P]` each: log of a sum, sum of the logits, and how many they are."""
        assert sides.queries is not None
        assert sides.positives is not None
        shape = sides.positives.shape[:2]
        if self.variants.query_query:
            found = row_logsumexp(
                sides.queries, ranks.gathered(sides.queries), scale, masks.among_queries(shape[1]), tiles
            )
            lse, total, count = (each[:, None].expand(shape) for each in found)
            yield lse, total, count
        if self.variants.document_document:
            rows = sides.positives.flatten(0, 1)
            found = row_logsumexp(rows, ranks.gathered(rows), scale, masks.among_positives(shape[1]), tiles)
            lse, total, count = (each.view(shape) for each in found)
            yield lse, total, count

    def _against(
        self, logits: Tensor, log_sum: Tensor, count: Tensor, total: Tensor, scale: Tensor, plain: bool = False
    ) -> Tensor:
        """The loss of each positive, `[B, P]`, from its logit and the log of the sum over the negatives.

        `plain`: without what corrects the negatives of queries, which documents have none of.
        """
        v = self.variants
        some = count > 0
        log_sum = torch.where(some, log_sum, 0)
        if v.tau_plus and not plain:
            log_sum = _debiased(log_sum, logits, count.clamp(min=1), v.tau_plus, scale)
        gap = log_sum - logits
        loss = gap if v.decoupled else nn.functional.softplus(gap)
        if v.label_smoothing:
            entire = torch.logaddexp(log_sum, logits)
            mean = (total + logits) / (count + 1)
            loss = (1 - v.label_smoothing) * loss + v.label_smoothing * (entire - mean)
        return torch.where(some, loss, 0)


def _added(first: Tensor, many: Tensor, second: Tensor, more: Tensor) -> Tensor:
    """log(exp(first) + exp(second)), where either may be a sum of none: logaddexp has no gradient there."""
    here, there = torch.where(many > 0, first, 0), torch.where(more > 0, second, 0)
    both = torch.where(many > 0, torch.where(more > 0, torch.logaddexp(here, there), here), there)
    return torch.where((many > 0) | (more > 0), both, -torch.inf)


def _debiased(log_sum: Tensor, logits: Tensor, count: Tensor, tau_plus: float, scale: Tensor) -> Tensor:
    """log of max((sum - N tau+ exp(positive)) / (1 - tau+), N exp(-1 / t)), arXiv 2007.00224, in logarithms."""
    false = math.log(tau_plus) + torch.log(count) + logits
    left = false < log_sum
    rest = torch.where(left, false - log_sum, -1.0)  # a harmless number where nothing would be left
    corrected = log_sum + torch.log1p(-torch.exp(rest)) - math.log(1 - tau_plus)
    floor = torch.log(count) - scale
    return torch.where(left, torch.maximum(corrected, floor), floor)


def _values(sides: Sides) -> list[Tensor | None]:
    return [getattr(sides, field.name) for field in fields(sides)]


def _columns(sides: Sides, ranks: Ranks) -> Columns:
    """The documents of all ranks, by kind, and the bank."""
    assert sides.positives is not None
    kinds = [sides.positives.flatten(0, 1)]
    kinds += [
        kind for kind in (None if sides.hard is None else sides.hard.flatten(0, 1), sides.shared) if kind is not None
    ]
    present = [True, sides.hard is not None, sides.shared is not None]
    gathered = iter([ranks.gathered(kind) for kind in kinds])
    parts = [next(gathered) if there else None for there in present] + [sides.bank]
    counts = [0 if part is None else len(part) for part in parts]
    wide = parts[0].dtype if parts[0] is not None else torch.float32
    there = [part.to(wide) for part in parts if part is not None]
    return Columns(there[0] if len(there) == 1 else torch.cat(there), *counts)


def _check(queries: Tensor, positives: Tensor, hard: Tensor | None, shared: Tensor | None, bank: Tensor | None) -> None:
    """UsageError for shapes that do not fit each other."""
    if queries.ndim != 2 or positives.ndim != 3 or positives.shape[0] != len(queries) or len(queries) == 0:
        raise UsageError(
            f"queries must be [B, d] and positives [B, d] or [B, P, d], not {list(queries.shape)} and {list(positives.shape)}"
        )
    for name, tensor, ndim in (("hard", hard, 3), ("shared", shared, 2), ("bank", bank, 2)):
        if tensor is not None and (tensor.ndim != ndim or tensor.shape[-1] != queries.shape[1]):
            shape = "[B, K, d]" if ndim == 3 else "[M, d]"
            raise UsageError(f"{name} must be {shape} with d = {queries.shape[1]}, not {list(tensor.shape)}")
    if hard is not None and len(hard) != len(queries):
        raise UsageError(f"{len(hard)} rows of hard negatives for {len(queries)} queries")
    if positives.shape[-1] != queries.shape[1]:
        raise UsageError(f"queries have {queries.shape[1]} components, positives {positives.shape[-1]}")


class _Masks:
    """The masks of one call, for each of the matrices that it looks at."""

    def __init__(
        self, variants: Variants, ids: Sides | None, known_ids: Tensor | None, groups: Sides | None, guide: Sides | None,
        sketches: Sides | None, intercept: float, hard_real: Tensor | None, ranks: Ranks,
    ) -> None:  # fmt: skip
        self.variants, self.ranks = variants, ranks
        self.ids, self.groups, self.guide, self.sketches = ids, groups, guide, sketches
        self.intercept, self.hard_real = intercept, hard_real
        self.known = known_ids
        if known_ids is None and ids is not None and ids.positives is not None:
            self.known = ids.positives if ids.positives.ndim == 2 else ids.positives[:, None]

    def of_queries(self, columns: Columns, each: int, lowest: Tensor) -> list[Mask]:
        """Queries against all documents; `lowest` `[B]`: the lowest positive's score."""
        v = self.variants
        masks: list[Mask] = [Own(columns=each, first=self.ranks.start)]
        if self.ids is not None and self.known is not None:
            masks.append(SameId(self.known, self._flat(self.ids, columns, -1)))
        if self.groups is not None and self.groups.queries is not None:
            masks.append(SameGroup(self.groups.queries, self._flat(self.groups, columns, -1)))
        if v.margin_absolute is not None or v.margin_relative is not None:
            masks.append(AbovePositive(lowest, v.margin_absolute, v.margin_relative))
        if self.guide is not None and self.guide.queries is not None and self.guide.positives is not None:
            mine, positives = self.guide.queries, self.guide.positives
            scores = (mine[:, None] * (positives if positives.ndim == 3 else positives[:, None])).sum(-1).amin(1)
            masks.append(Guide(mine, self._flat(self.guide, columns, 0), scores, v.guide_margin))
        if self.sketches is not None and self.sketches.queries is not None:
            theirs = self._flat(self.sketches, columns, 0)
            masks.append(Suspected(self.sketches.queries, theirs, self.intercept, v.suspect_above))
        if v.hard_weight != 1 and columns.hard:
            masks.append(Weighted(math.log(v.hard_weight), columns.positives, columns.positives + columns.hard))
        if self.hard_real is not None and columns.hard:
            real = torch.ones(len(columns.vectors), dtype=torch.bool, device=columns.vectors.device)
            real[columns.positives : columns.positives + columns.hard] = self.ranks.gathered(self.hard_real.flatten())
            masks.append(Padding(real))
        return masks

    def _flat(self, sides: Sides, columns: Columns, unknown: float) -> Tensor:
        """One row a column, in the columns' order; `unknown` for kinds that nothing is known of."""
        first = next(x for x in (sides.positives, sides.hard, sides.shared, sides.bank, sides.queries) if x is not None)
        vectors = sides.queries is not None and sides.queries.ndim == 2
        tail = first.shape[-1:] if vectors else ()
        parts = []
        for name in ("positives", "hard", "shared", "bank"):
            given, count = getattr(sides, name), getattr(columns, name)
            if given is None:
                parts.append(torch.full((count, *tail), unknown, dtype=first.dtype, device=first.device))
            else:
                flat = given.reshape(-1, *tail)
                parts.append(flat if name == "bank" else self.ranks.gathered(flat))
        return torch.cat(parts)

    def among_queries(self, each: int) -> list[Mask]:
        """Queries against queries: no query is compared with itself, nor with one that has a positive of its own."""
        masks: list[Mask] = [Own(first=self.ranks.start)]
        if self.ids is not None and self.known is not None and self.ids.positives is not None:
            theirs = self.ranks.gathered(self.ids.positives.reshape(-1, each))
            masks += [SameId(self.known, theirs[:, p]) for p in range(each)]
        if self.groups is not None and self.groups.queries is not None:
            masks.append(SameGroup(self.groups.queries, self.ranks.gathered(self.groups.queries)))
        return masks

    def among_positives(self, each: int) -> list[Mask]:
        """Positives against positives: none is compared with those of its own query, by place, id or group."""
        masks: list[Mask] = [Own(rows=each, columns=each, first=self.ranks.start)]
        if self.ids is not None and self.known is not None and self.ids.positives is not None:
            theirs = self.ranks.gathered(self.ids.positives.reshape(-1))
            masks.append(SameId(self.known.repeat_interleave(each, 0), theirs))
        if self.groups is not None and self.groups.positives is not None:
            mine = self.groups.positives.reshape(-1)
            masks.append(SameGroup(mine, self.ranks.gathered(mine)))
        return masks

    def of_positives(self, each: int) -> list[Mask]:
        """Positives against queries: the transposed matrix, with its ids and groups."""
        masks: list[Mask] = [Own(rows=each, first=self.ranks.start)]
        if self.ids is not None and self.known is not None and self.ids.positives is not None:
            own = self.ids.positives.reshape(-1, 1)
            known = self.ranks.gathered(self.known)
            masks += [SameId(own, known[:, p]) for p in range(known.shape[1])]
        if self.groups is not None and self.groups.queries is not None and self.groups.positives is not None:
            masks.append(SameGroup(self.groups.positives.reshape(-1), self.ranks.gathered(self.groups.queries)))
        return masks
