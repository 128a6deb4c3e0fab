"""Masks: which entries of the score matrix are not negatives, and how much the others count. The filters, tile by tile.

Each mask gets a tile and returns what to add to its logits: -inf for an entry that does not count, the logarithm of a weight
for one that counts less, else 0. Rows are queries; columns are whatever they are compared with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hardneg.errors import UsageError


def minus_infinity_where(no: Tensor, like: Tensor) -> Tensor:
    """-inf where `no` is true and 0 elsewhere, in the number format of `like`."""
    return torch.zeros(no.shape, dtype=like.dtype, device=like.device).masked_fill_(no, -torch.inf)


@dataclass(frozen=True)
class SameId:
    """Masks positives of the query by id: duplicates within the batch, and older copies in the bank.

    Attributes:
        known: int64 `[n, p]`, ids of each row's positives (all known ones, not only those of the batch), -1: none.
        ids: int64 `[m]`, of the columns, -1: unknown.
    """

    known: Tensor
    ids: Tensor

    def bias(self, rows: slice, columns: slice, scores: Tensor) -> Tensor:
        known, ids = self.known[rows], self.ids[columns]
        same = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        for p in range(known.shape[1]):
            same |= (known[:, p, None] == ids) & (ids >= 0)
        return minus_infinity_where(same, scores)


@dataclass(frozen=True)
class SameGroup:
    """Masks documents of the query's groups: its own, and those of its positives.

    Attributes:
        mine: int64 `[n]` or `[n, g]`, groups of the rows, -1: none.
        theirs: int64 `[m]` or `[m, h]`, groups of the columns, -1: none.
    """

    mine: Tensor
    theirs: Tensor

    def bias(self, rows: slice, columns: slice, scores: Tensor) -> Tensor:
        mine, theirs = self.mine[rows], self.theirs[columns]
        mine, theirs = mine.reshape(len(mine), -1), theirs.reshape(len(theirs), -1)
        same = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        for g in range(mine.shape[1]):
            for h in range(theirs.shape[1]):
                same |= (mine[:, g, None] == theirs[:, h]) & (mine[:, g, None] >= 0)
        return minus_infinity_where(same, scores)


@dataclass(frozen=True)
class Own:
    """Masks the columns that belong to the row's own query, such as its positive.

    Attributes:
        rows, columns: how many consecutive rows, and columns, belong to one query.
        first: the query that the first row belongs to, counted as the columns are.
    """

    rows: int = 1
    columns: int = 1
    first: int = 0

    def bias(self, rows: slice, columns: slice, scores: Tensor) -> Tensor | None:
        low, high = rows.start // self.rows + self.first, (rows.stop - 1) // self.rows + self.first
        if columns.stop <= low * self.columns or columns.start >= (high + 1) * self.columns:
            return None
        row = torch.arange(rows.start, rows.stop, device=scores.device)[:, None]
        column = torch.arange(columns.start, columns.stop, device=scores.device)
        mine = torch.div(row, self.rows, rounding_mode="floor") + self.first
        return minus_infinity_where(mine == torch.div(column, self.columns, rounding_mode="floor"), scores)


@dataclass(frozen=True)
class Padding:
    """Masks columns that only fill up a table.

    Attributes:
        real: bool `[m]`, False for such columns.
    """

    real: Tensor

    def bias(self, rows: slice, columns: slice, scores: Tensor) -> Tensor:
        return minus_infinity_where(~self.real[columns], scores).expand_as(scores)


@dataclass(frozen=True)
class AbovePositive:
    """Masks what scores above the row's positive less a margin: a likely false negative (NV-Retriever, arXiv 2407.15831).

    Attributes:
        positive: `[n]`, scores of each row's positive; with several, of the lowest.
        absolute: keeps what scores at most positive - absolute.
        relative: keeps what scores at most positive - |positive| * relative.
    """

    positive: Tensor
    absolute: float | None = None
    relative: float | None = None

    def __post_init__(self) -> None:
        if self.absolute is None and self.relative is None:
            raise UsageError("a margin needs absolute=, relative= or both")

    def bias(self, rows: slice, columns: slice, scores: Tensor) -> Tensor:
        positive = self.positive[rows, None].to(scores.dtype)
        no = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        if self.absolute is not None:
            no |= scores > positive - self.absolute
        if self.relative is not None:
            no |= scores > positive - positive.abs() * self.relative
        return minus_infinity_where(no, scores)


@dataclass(frozen=True)
class Guide:
    """Masks what a guide model scores above the row's positive, less a margin (GISTEmbed, arXiv 2402.16829).

    Attributes:
        rows: `[n, g]`, columns: `[m, g]`: the guide's vectors.
        positive: `[n]`, the guide's score of each row's positive.
        margin: subtracted from that score.
    """

    rows: Tensor
    columns: Tensor
    positive: Tensor
    margin: float = 0.0

    def bias(self, rows: slice, columns: slice, scores: Tensor) -> Tensor:
        guided = self.rows[rows] @ self.columns[columns].T
        return minus_infinity_where(guided > self.positive[rows, None] - self.margin, scores)


@dataclass(frozen=True)
class Suspected:
    """Uses a posterior: masks what is likely to be relevant, or weighs every entry by 1 minus that probability.

    Attributes:
        rows: `[n, s]`, columns: `[m, s]`: sketches (`hardneg.make_sketch`), whose inner products are log odds.
        intercept: of the log odds.
        threshold: mask entries that are more likely than this to be relevant; None: weigh every entry by 1 - p.
    """

    rows: Tensor
    columns: Tensor
    intercept: float
    threshold: float | None = None

    def bias(self, rows: slice, columns: slice, scores: Tensor) -> Tensor:
        odds = (self.rows[rows] @ self.columns[columns].T).to(scores.dtype) + self.intercept
        if self.threshold is None:
            return torch.nn.functional.logsigmoid(-odds)  # log(1 - p)
        return minus_infinity_where(torch.sigmoid(odds) > self.threshold, scores)


@dataclass(frozen=True)
class Weighted:
    """Gives the columns from `start` to `stop` another weight, for example to make hard negatives count more."""

    log_weight: float
    start: int
    stop: int

    def bias(self, rows: slice, columns: slice, scores: Tensor) -> Tensor | None:
        if columns.stop <= self.start or columns.start >= self.stop:
            return None
        column = torch.arange(columns.start, columns.stop, device=scores.device)
        inside = (column >= self.start) & (column < self.stop)
        weights = scores.new_zeros(len(column)).masked_fill_(inside, self.log_weight)
        return weights.expand_as(scores)
