"""InfoNCE in memory that grows with the batch, not with its square: masks and variants are evaluated tile by tile."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from hardneg.errors import UsageError
from hardneg.losses.batch import PerRole, check_shapes, make_columns, role_values
from hardneg.losses.gather import Ranks
from hardneg.losses.logsumexp import LogitMask, Tiles, row_logsumexp
from hardneg.losses.mask_sets import MaskSets
from hardneg.losses.variants import Variants

SIMILARITIES = ("cosine", "dot")
TEMPERATURES = (0.005, 1.0)  # the lowest and the highest temperature, unless others are given


class InfoNCE(nn.Module):
    """L = -log exp(s(q, p) / t) / (exp(s(q, p) / t) + sum over negatives x of exp(s(q, x) / t)), averaged over the queries.

    The negatives of a query are the positives and hard negatives of the whole batch (of all ranks, if torch.distributed is
    initialised), the shared negatives and the bank, but never its own positives. With several positives, each is compared with
    the same negatives, and the losses are averaged. A query whose negatives are all masked has a loss and gradients of 0.

    Args:
        temperature: t, at the start.
        learn_temperature: whether t is a parameter (in log space), kept within `temperature_range`.
        temperature_range: lowest and highest t.
        similarity: `cosine` or `dot`.
        variants: see `Variants`.
        dimensions: Matryoshka (arXiv 2205.13147): the loss is summed over vectors cut to these lengths; None: whole vectors.
        tiles: sizes of tiles and number format of products; None: as fits the device, in the format of the inputs or of an
            enclosing autocast.

    Raises:
        UsageError: an argument out of range.

    After a call, `statistics` holds means as detached tensors `[]` that are not synchronised with the host: `positive` (score),
    `temperature`, `masked` (share of entries that did not count), `alone` (share of queries without any negative, whose loss
    is 0), `loss`.

    >>> loss = InfoNCE(0.1)(torch.eye(2, 3), torch.eye(2, 3))
    >>> round(float(loss), 6)
    4.5e-05
    """

    def __init__(
        self,
        temperature: float = 0.05,
        *,
        learn_temperature: bool = False,
        temperature_range: tuple[float, float] = TEMPERATURES,
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
        ids: PerRole | None = None,
        known_ids: Tensor | None = None,
        groups: PerRole | None = None,
        guide: PerRole | None = None,
        sketches: PerRole | None = None,
        intercept: float = 0.0,
        hard_real: Tensor | None = None,
    ) -> Tensor:
        """The loss, `[]`.

        Args:
            queries: `[B, d]`.
            positives: `[B, d]` or `[B, P, d]`.
            hard: `[B, K, d]`, mined for each query; they are negatives of all other queries, too.
            shared: `[M, d]`, negatives of every query.
            bank: `[S, d]`, also negatives of every query, without gradient; not gathered, because every rank has its own copy.
            ids: int64 ids of the documents, -1: unknown; `queries` is not used.
            known_ids: int64 `[B, Q]`, all known positives of each query, -1: none; None: those in `ids.positives`.
            groups: int64 groups, -1: none. `queries` may be `[B, g]`: the groups of each query and of its positives.
            guide: unit vectors of a guide model.
            sketches: of a posterior (`hardneg.make_sketch`).
            intercept: of those sketches.
            hard_real: bool `[B, K]`, False where a query has fewer than K hard negatives; None: all are real.

        Raises:
            UsageError: shapes that do not fit each other.
        """
        if positives.ndim == 2:
            positives = positives[:, None]
        check_shapes(queries, positives, hard, shared, bank)
        if isinstance(self.log_scale, nn.Parameter):
            with torch.no_grad():
                self.log_scale.clamp_(*self.log_range)
        ranks = Ranks.here(len(queries), queries.device)
        sides = PerRole(queries, positives, hard, shared, None if bank is None else bank.detach())
        losses = []
        for length in self.dimensions or (queries.shape[1],):
            if length > queries.shape[1]:
                raise UsageError(f"dimensions asks for {length} components of vectors with {queries.shape[1]}")
            cut = PerRole(*(None if x is None else self._prepared(x[..., :length]) for x in role_values(sides)))
            masks = MaskSets(self.variants, ids, known_ids, groups, guide, sketches, intercept, hard_real, ranks)
            losses.append(self._loss(cut, masks, ranks))
        total = torch.stack(losses).sum()
        self.statistics |= {"loss": total.detach(), "temperature": torch.exp(-self.log_scale.detach())}
        return total

    def _prepared(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, dim=-1) if self.similarity == "cosine" else vectors

    def _loss(self, sides: PerRole, masks: MaskSets, ranks: Ranks) -> Tensor:
        assert sides.queries is not None
        assert sides.positives is not None
        queries, positives = sides.queries, sides.positives
        scale = self.log_scale.exp()
        tiles = self._tiles(queries)
        exact = torch.float64 if queries.dtype == torch.float64 else torch.float32
        own = (queries[:, None].to(exact) * positives.to(exact)).sum(-1)  # [B, P]
        columns = make_columns(sides, ranks)
        listed = masks.of_queries(columns, positives.shape[1], own.detach().amin(1))
        negatives, total, count = self._negatives(queries, columns.vectors, scale, listed, tiles)
        logits = own * scale
        log_sum = negatives[:, None].expand_as(logits)
        many = count[:, None].expand_as(logits)
        alone = count == 0
        total = total[:, None].expand_as(logits)
        for other, of_other, seen in self._more(sides, masks, ranks, scale, tiles):
            log_sum, many, total = _added(log_sum, many, other, seen), many + seen, total + of_other
            alone = alone & (seen == 0).all(1)
        loss = self._against(logits, log_sum, many, total, scale)
        if self.variants.symmetric:
            rows = positives.flatten(0, 1)
            back, back_total, seen = row_logsumexp(
                rows, ranks.gathered(queries), scale, masks.of_positives(positives.shape[1]), tiles
            )
            shape = logits.shape
            other = self._against(logits, back.view(shape), seen.view(shape), back_total.view(shape), scale, plain=True)
            loss = (loss + other) / 2
            alone = alone & (seen.view(shape) == 0).all(1)
        entries = len(queries) * columns.vectors.shape[0]
        self.statistics = {
            "positive": own.detach().mean(),
            "masked": 1 - count.sum() / max(1, entries),
            "alone": alone.float().mean(),
        }
        return ranks.mean(loss.mean(1))

    def _tiles(self, queries: Tensor) -> Tiles:
        tiles = self.tiles or Tiles.fitting(queries.device)
        if tiles.dtype is None and torch.is_autocast_enabled(queries.device.type):
            return Tiles(tiles.rows, tiles.columns, torch.get_autocast_dtype(queries.device.type))
        return tiles

    def _negatives(
        self, queries: Tensor, columns: Tensor, scale: Tensor, masks: list[LogitMask], tiles: Tiles
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(log of the sum over negatives, sum of their logits, their number), `[B]` each; `beta` concentrates the sum."""
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
        self, sides: PerRole, masks: MaskSets, ranks: Ranks, scale: Tensor, tiles: Tiles
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Further terms of the denominators, `[B, P]` each: log of a sum, sum of the logits, number of entries."""
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

        `plain` leaves out the corrections for negatives of queries, which do not apply to documents.
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
    """log(exp(first) + exp(second)), where either may be a sum of nothing: logaddexp has no gradient there."""
    here, there = torch.where(many > 0, first, 0), torch.where(more > 0, second, 0)
    both = torch.where(many > 0, torch.where(more > 0, torch.logaddexp(here, there), here), there)
    return torch.where((many > 0) | (more > 0), both, -torch.inf)


def _debiased(log_sum: Tensor, logits: Tensor, count: Tensor, tau_plus: float, scale: Tensor) -> Tensor:
    """log of max((sum - N tau+ exp(positive)) / (1 - tau+), N exp(-1 / t)), arXiv 2007.00224, computed in logarithms."""
    false = math.log(tau_plus) + torch.log(count) + logits
    left = false < log_sum
    rest = torch.where(left, false - log_sum, -1.0)  # any harmless number where nothing would be left
    corrected = log_sum + torch.log1p(-torch.exp(rest)) - math.log(1 - tau_plus)
    floor = torch.log(count) - scale
    return torch.where(left, torch.maximum(corrected, floor), floor)
