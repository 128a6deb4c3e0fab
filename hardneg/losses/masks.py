"""Masks: which entries of the score matrix are not negatives, and how much the others count. The filters, in the loss.

Each mask is a pure function of attributes of the rows and of the columns, and of the score, so that every back end can
evaluate it wherever the scores are made. Rows are queries; columns are whatever they are compared with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from hardneg.errors import UsageError

_FEW = 8  # labels of a row that are compared one by one; more are looked up in a sorted list


class Mask(Protocol):
    """Says which entries of a score matrix count, and how much."""

    def tile(self, rows: slice, columns: slice, scores: Tensor) -> Tensor | None:
        """What it says of a tile, without gradient; `[r, c]` or `[1, c]`. None: every entry counts as it is.

        `scores` `[r, c]` are the similarities, before the temperature. A bool tensor is True for entries that do not count;
        a tensor of the format of `scores` holds logarithms of weights.
        """
        ...


@dataclass(frozen=True)
class SameLabel:
    """Hides the columns that share a label with the row.

    Attributes:
        mine: int64 `[n]` or `[n, g]`, labels of each row, below 0: none.
        theirs: int64 `[m]` or `[m, h]`, labels of each column, below 0: none.
    """

    mine: Tensor
    theirs: Tensor

    def __post_init__(self) -> None:
        # No label is never equal to no label: -2 and -1.
        mine, theirs = (x.reshape(len(x), -1) for x in (self.mine, self.theirs))
        object.__setattr__(self, "mine", torch.where(mine < 0, -2, mine))
        object.__setattr__(self, "theirs", torch.where(theirs < 0, -1, theirs))
        if self.searched:
            object.__setattr__(self, "mine", self.mine.sort(1).values)

    @property
    def searched(self) -> bool:
        """Whether a row has so many labels that they are sorted, and looked up by halving."""
        return self.mine.shape[1] > _FEW

    def tile(self, rows: slice, columns: slice, scores: Tensor) -> Tensor:
        mine, theirs = self.mine[rows], self.theirs[columns]
        same = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        for h in range(theirs.shape[1]):
            if self.searched:
                values = theirs[:, h].expand(scores.shape).contiguous()
                places = torch.searchsorted(mine, values).clamp_(max=mine.shape[1] - 1)
                same |= mine.gather(1, places) == values
                continue
            for g in range(mine.shape[1]):
                same |= mine[:, g, None] == theirs[:, h]
        return same


class SameId(SameLabel):
    """Hides positives of the query by id: duplicates within the batch, and older copies in the bank."""


class SameGroup(SameLabel):
    """Hides documents of the query's groups: its own, and those of its positives."""


@dataclass(frozen=True)
class Own:
    """Hides the columns that belong to the row's own query, such as its positive.

    Attributes:
        rows, columns: how many consecutive rows, and columns, belong to one query.
        first: the query that the first row belongs to, counted as the columns are.
    """

    rows: int = 1
    columns: int = 1
    first: int = 0

    def tile(self, rows: slice, columns: slice, scores: Tensor) -> Tensor | None:
        low, high = rows.start // self.rows + self.first, (rows.stop - 1) // self.rows + self.first
        if columns.stop <= low * self.columns or columns.start >= (high + 1) * self.columns:
            return None
        row = torch.arange(rows.start, rows.stop, device=scores.device)[:, None]
        column = torch.arange(columns.start, columns.stop, device=scores.device)
        mine = torch.div(row, self.rows, rounding_mode="floor") + self.first
        return mine == torch.div(column, self.columns, rounding_mode="floor")


@dataclass(frozen=True)
class Padding:
    """Hides columns that only fill up a table.

    Attributes:
        real: bool `[m]`, False for such columns.
    """

    real: Tensor

    def tile(self, rows: slice, columns: slice, scores: Tensor) -> Tensor:
        return ~self.real[None, columns]


@dataclass(frozen=True)
class AbovePositive:
    """Hides what scores above the row's positive less a margin: a likely false negative (NV-Retriever, arXiv 2407.15831).

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

    @cached_property
    def limit(self) -> Tensor:
        """`[n]`, the highest score that counts."""
        limits = []
        if self.absolute is not None:
            limits.append(self.positive - self.absolute)
        if self.relative is not None:
            limits.append(self.positive - self.positive.abs() * self.relative)
        return limits[0] if len(limits) == 1 else torch.minimum(*limits)

    def tile(self, rows: slice, columns: slice, scores: Tensor) -> Tensor:
        return scores > self.limit[rows, None].to(scores.dtype)


@dataclass(frozen=True)
class Guide:
    """Hides what a guide model scores above the row's positive, less a margin (GISTEmbed, arXiv 2402.16829).

    Attributes:
        rows: `[n, g]`, columns: `[m, g]`: the guide's vectors.
        positive: `[n]`, the guide's score of each row's positive.
        margin: subtracted from that score.
        known: bool `[m]`, False for columns that the guide knows nothing of, which it does not hide; None: it knows all.
    """

    rows: Tensor
    columns: Tensor
    positive: Tensor
    margin: float = 0.0
    known: Tensor | None = None

    @cached_property
    def limit(self) -> Tensor:
        """`[n]`, the highest score of the guide that counts."""
        return self.positive - self.margin

    def tile(self, rows: slice, columns: slice, scores: Tensor) -> Tensor:
        above = self.rows[rows] @ self.columns[columns].T > self.limit[rows, None]
        return above if self.known is None else above & self.known[columns]


@dataclass(frozen=True)
class Suspected:
    """Uses a posterior: hides what is likely to be relevant, or weighs every entry by 1 minus that probability.

    Attributes:
        rows: `[n, s]`, columns: `[m, s]`: sketches (`hardneg.make_sketch`), whose inner products are log odds.
        intercept: of the log odds.
        threshold: hide entries that are more likely than this to be relevant; None: weigh every entry by 1 - p.
        known: bool `[m]`, False for columns without a sketch, which count as they are; None: all have one.
    """

    rows: Tensor
    columns: Tensor
    intercept: float
    threshold: float | None = None
    known: Tensor | None = None

    @property
    def limit(self) -> float:
        """The log odds of the threshold."""
        assert self.threshold is not None
        if self.threshold in (0, 1):
            return -math.inf if self.threshold == 0 else math.inf
        return math.log(self.threshold) - math.log1p(-self.threshold)

    def tile(self, rows: slice, columns: slice, scores: Tensor) -> Tensor:
        odds = (self.rows[rows] @ self.columns[columns].T).to(scores.dtype) + self.intercept
        if self.threshold is None:
            weights = torch.nn.functional.logsigmoid(-odds)  # log(1 - p)
            return weights if self.known is None else weights.masked_fill(~self.known[columns], 0)
        above = odds > self.limit
        return above if self.known is None else above & self.known[columns]


@dataclass(frozen=True)
class Weighted:
    """Gives the columns from `start` to `stop` another weight, for example to make hard negatives count more."""

    log_weight: float
    start: int
    stop: int

    def tile(self, rows: slice, columns: slice, scores: Tensor) -> Tensor | None:
        if columns.stop <= self.start or columns.start >= self.stop:
            return None
        column = torch.arange(columns.start, columns.stop, device=scores.device)
        inside = (column >= self.start) & (column < self.stop)
        return scores.new_zeros(len(column)).masked_fill_(inside, self.log_weight)[None]
