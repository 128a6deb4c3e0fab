"""Which masks apply to each score matrix of one call of the loss."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from hardneg.losses.batch import ROLES, Columns, PerRole
from hardneg.losses.gather import Ranks
from hardneg.losses.given import Given
from hardneg.losses.masks import AbovePositive, Guide, Mask, Own, Padding, SameGroup, SameId, Suspected, Weighted
from hardneg.losses.variants import Variants


class MaskSets:
    """The masks of one call of the loss, for each of its score matrices.

    A rule that hides a document from a query hides it wherever the two meet. Where two queries meet, the positives of the
    second stand for it; where two positives meet, the query of the first stands for it.
    """

    columns: Columns
    own: Tensor

    def __init__(self, variants: Variants, given: Given, ranks: Ranks) -> None:
        self.variants, self.ranks = variants, ranks
        self.ids, self.groups, self.guide, self.sketches = given.ids, given.groups, given.guide, given.sketches
        self.intercept, self.hard_real, self.known = given.intercept, given.hard_real, given.known_ids
        if self.known is None and self.ids is not None and self.ids.positives is not None:
            self.known = self.ids.positives if self.ids.positives.ndim == 2 else self.ids.positives[:, None]

    def at(self, columns: Columns, own: Tensor) -> MaskSets:
        """The masks for these columns, and for the scores `[B, P]` of the positives."""
        self.columns, self.own = columns, own
        return self

    @property
    def each(self) -> int:
        return self.own.shape[1]

    def of_queries(self) -> list[Mask]:
        """Masks of queries against all documents."""
        v, columns = self.variants, self.columns
        masks: list[Mask] = [Own(columns=self.each, first=self.ranks.start)]
        if self.ids is not None and self.known is not None and _of_documents(self.ids):
            masks.append(SameId(self.known, self._flat(self.ids, -1)))
        if self.groups is not None and self.groups.queries is not None and _of_documents(self.groups):
            theirs = self._flat(replace(self.groups, queries=None), -1)  # a query may have several groups
            masks.append(SameGroup(self.groups.queries, theirs))
        masks += self._margin(self.own.amin(1))
        if self.guide is not None and self.guide.queries is not None and self.guide.positives is not None:
            scores = self._guide_scores().amin(1)
            masks.append(
                Guide(self.guide.queries, self._flat(self.guide, 0), scores, v.guide_margin, self._known(self.guide))
            )
        if self.sketches is not None and self.sketches.queries is not None and _of_documents(self.sketches):
            theirs, known = self._flat(self.sketches, 0), self._known(self.sketches)
            masks.append(Suspected(self.sketches.queries, theirs, self.intercept, v.suspect_above, known))
        if v.hard_weight != 1 and columns.hard:
            masks.append(Weighted(math.log(v.hard_weight), columns.positives, columns.positives + columns.hard))
        if self.hard_real is not None and columns.hard:
            real = torch.ones(len(columns.vectors), dtype=torch.bool, device=columns.vectors.device)
            gathered = self.ranks.gathered(self.hard_real.flatten(), "hard")
            real[columns.positives : columns.positives + columns.hard] = gathered
            masks.append(Padding(real))
        return masks

    def among_queries(self) -> list[Mask]:
        """Masks of queries against queries: not with itself, nor with one whose positives are hidden from this one."""
        masks: list[Mask] = [Own(first=self.ranks.start)]
        if self.ids is not None and self.known is not None and self.ids.positives is not None:
            masks.append(SameId(self.known, self._positives(self.ids.positives)))
        if self.groups is not None and self.groups.queries is not None:
            masks.append(
                SameGroup(self.groups.queries, self.ranks.gathered(self.groups.queries, "queries", lists="groups"))
            )
        masks += self._margin(self.own.amin(1))
        if self.guide is not None and self.guide.queries is not None and self.guide.positives is not None:
            theirs, scores = self.ranks.gathered(self.guide.queries, "queries"), self._guide_scores().amin(1)
            masks.append(Guide(self.guide.queries, theirs, scores, self.variants.guide_margin))
        if self.sketches is not None and self.sketches.queries is not None and self.sketches.positives is not None:
            sketches = self._positives(self.sketches.positives)
            masks += [self._suspected(self.sketches.queries, sketches[:, p]) for p in range(self.each)]
        return masks

    def among_positives(self) -> list[Mask]:
        """Masks of positives against positives: not with those of the same query, nor with one that is hidden from it."""
        masks: list[Mask] = [Own(rows=self.each, columns=self.each, first=self.ranks.start)]
        if self.ids is not None and self.known is not None and self.ids.positives is not None:
            theirs = self._positives(self.ids.positives).flatten()
            masks.append(SameId(self.known.repeat_interleave(self.each, 0), theirs))
        if self.groups is not None and self.groups.positives is not None:
            mine = self.groups.positives.reshape(-1)
            masks.append(SameGroup(mine, self.ranks.gathered(mine, "positives")))
        masks += self._margin(self.own.flatten())
        if self.guide is not None and self.guide.queries is not None and self.guide.positives is not None:
            mine, scores = self.guide.positives.flatten(0, -2), self._guide_scores().flatten()
            masks.append(Guide(mine, self.ranks.gathered(mine, "positives"), scores, self.variants.guide_margin))
        if self.sketches is not None and self.sketches.queries is not None and self.sketches.positives is not None:
            theirs = self._positives(self.sketches.positives).flatten(0, 1)
            masks.append(self._suspected(self.sketches.queries.repeat_interleave(self.each, 0), theirs))
        return masks

    def of_positives(self) -> list[Mask]:
        """Masks of positives against queries: the transposed matrix, with what is known of the pairs."""
        masks: list[Mask] = [Own(rows=self.each, first=self.ranks.start)]
        if self.ids is not None and self.known is not None and self.ids.positives is not None:
            known = self.ranks.gathered(self.known, "queries", lists="known")
            masks.append(SameId(self.ids.positives.reshape(-1), known))
        if self.groups is not None and self.groups.queries is not None and self.groups.positives is not None:
            theirs = self.ranks.gathered(self.groups.queries, "queries", lists="groups")
            masks.append(SameGroup(self.groups.positives.reshape(-1), theirs))
        masks += self._margin(self.own.flatten())
        if self.guide is not None and self.guide.queries is not None and self.guide.positives is not None:
            theirs, scores = self.ranks.gathered(self.guide.queries, "queries"), self._guide_scores().flatten()
            masks.append(Guide(self.guide.positives.flatten(0, -2), theirs, scores, self.variants.guide_margin))
        if self.sketches is not None and self.sketches.queries is not None and self.sketches.positives is not None:
            theirs = self.ranks.gathered(self.sketches.queries, "queries")
            masks.append(self._suspected(self.sketches.positives.flatten(0, -2), theirs))
        return masks

    def _margin(self, positive: Tensor) -> list[Mask]:
        v = self.variants
        if v.margin_absolute is None and v.margin_relative is None:
            return []
        return [AbovePositive(positive, v.margin_absolute, v.margin_relative)]

    def _suspected(self, rows: Tensor, columns: Tensor) -> Mask:
        return Suspected(rows, columns, self.intercept, self.variants.suspect_above)

    def _guide_scores(self) -> Tensor:
        """`[B, P]`, what the guide gives the positives."""
        assert self.guide is not None
        assert self.guide.queries is not None
        assert self.guide.positives is not None
        positives = self.guide.positives
        return (self.guide.queries[:, None] * (positives if positives.ndim == 3 else positives[:, None])).sum(-1)

    def _positives(self, values: Tensor) -> Tensor:
        """`[B of all ranks, P, ...]`, an attribute of all positives."""
        tail = values.shape[values.ndim - 1 :] if values.is_floating_point() else ()
        gathered = self.ranks.gathered(values.reshape(-1, *tail), "positives")
        return gathered.view(-1, self.each, *tail)

    def _flat(self, sides: PerRole, unknown: float) -> Tensor:
        """One row for each column, in their order; `unknown` for roles whose attribute is not known."""
        first = next(x for x in (sides.positives, sides.hard, sides.shared, sides.bank, sides.queries) if x is not None)
        vectors = sides.queries is not None and sides.queries.ndim == 2
        tail = first.shape[-1:] if vectors else ()
        parts = []
        for role in ROLES:
            given, count = getattr(sides, role), getattr(self.columns, role)
            if given is None:
                parts.append(torch.full((count, *tail), unknown, dtype=first.dtype, device=first.device))
            else:
                flat = given.reshape(-1, *tail)
                parts.append(flat if role == "bank" else self.ranks.gathered(flat, role))
        return torch.cat(parts)

    def _known(self, sides: PerRole) -> Tensor | None:
        """bool `[m]`, whether an attribute is known of each column; None: of all."""
        if all(getattr(sides, role) is not None or not getattr(self.columns, role) for role in ROLES):
            return None
        device = self.columns.vectors.device
        return torch.cat(
            [
                torch.full((getattr(self.columns, r),), getattr(sides, r) is not None, dtype=torch.bool, device=device)
                for r in ROLES
            ]
        )


def _of_documents(given: PerRole) -> bool:
    """Whether an attribute is known of any document."""
    return any(getattr(given, role) is not None for role in ROLES)
