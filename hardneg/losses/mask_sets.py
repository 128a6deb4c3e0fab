"""Which masks apply to each score matrix of one call of the loss."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from hardneg.losses.batch import Columns, PerRole
from hardneg.losses.gather import Ranks
from hardneg.losses.logsumexp import LogitMask
from hardneg.losses.masks import AbovePositive, Guide, Own, Padding, SameGroup, SameId, Suspected, Weighted
from hardneg.losses.variants import Variants


class MaskSets:
    """The masks of one call of the loss, for each of its score matrices."""

    def __init__(
        self, variants: Variants, ids: PerRole | None, known_ids: Tensor | None, groups: PerRole | None, guide: PerRole | None,
        sketches: PerRole | None, intercept: float, hard_real: Tensor | None, ranks: Ranks,
    ) -> None:  # fmt: skip
        self.variants, self.ranks = variants, ranks
        self.ids, self.groups, self.guide, self.sketches = ids, groups, guide, sketches
        self.intercept, self.hard_real = intercept, hard_real
        self.known = known_ids
        if known_ids is None and ids is not None and ids.positives is not None:
            self.known = ids.positives if ids.positives.ndim == 2 else ids.positives[:, None]

    def of_queries(self, columns: Columns, each: int, lowest: Tensor) -> list[LogitMask]:
        """Masks of queries against all documents; `lowest` `[B]` is the score of each query's lowest positive."""
        v = self.variants
        masks: list[LogitMask] = [Own(columns=each, first=self.ranks.start)]
        if self.ids is not None and self.known is not None:
            masks.append(SameId(self.known, self._flat(self.ids, columns, -1)))
        if self.groups is not None and self.groups.queries is not None:
            theirs = self._flat(replace(self.groups, queries=None), columns, -1)  # a query may have several groups
            masks.append(SameGroup(self.groups.queries, theirs))
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

    def _flat(self, sides: PerRole, columns: Columns, unknown: float) -> Tensor:
        """One row for each column, in their order; `unknown` for roles whose attribute is not known."""
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

    def among_queries(self, each: int) -> list[LogitMask]:
        """Masks of queries against queries: not with itself, nor with a query that shares a positive or group."""
        masks: list[LogitMask] = [Own(first=self.ranks.start)]
        if self.ids is not None and self.known is not None and self.ids.positives is not None:
            theirs = self.ranks.gathered(self.ids.positives.reshape(-1, each))
            masks += [SameId(self.known, theirs[:, p]) for p in range(each)]
        if self.groups is not None and self.groups.queries is not None:
            masks.append(SameGroup(self.groups.queries, self.ranks.gathered_lists(self.groups.queries)))
        return masks

    def among_positives(self, each: int) -> list[LogitMask]:
        """Masks of positives against positives: not with those of the same query, by place, id or group."""
        masks: list[LogitMask] = [Own(rows=each, columns=each, first=self.ranks.start)]
        if self.ids is not None and self.known is not None and self.ids.positives is not None:
            theirs = self.ranks.gathered(self.ids.positives.reshape(-1))
            masks.append(SameId(self.known.repeat_interleave(each, 0), theirs))
        if self.groups is not None and self.groups.positives is not None:
            mine = self.groups.positives.reshape(-1)
            masks.append(SameGroup(mine, self.ranks.gathered(mine)))
        return masks

    def of_positives(self, each: int) -> list[LogitMask]:
        """Masks of positives against queries: the transposed matrix, with its ids and groups."""
        masks: list[LogitMask] = [Own(rows=each, first=self.ranks.start)]
        if self.ids is not None and self.known is not None and self.ids.positives is not None:
            own = self.ids.positives.reshape(-1, 1)
            known = self.ranks.gathered_lists(self.known)
            masks += [SameId(own, known[:, p]) for p in range(known.shape[1])]
        if self.groups is not None and self.groups.queries is not None and self.groups.positives is not None:
            theirs = self.ranks.gathered_lists(self.groups.queries)
            masks.append(SameGroup(self.groups.positives.reshape(-1), theirs))
        return masks
