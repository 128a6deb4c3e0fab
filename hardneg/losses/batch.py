"""The batch of a loss: attributes by role, and all documents that a query is compared with."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from hardneg.losses.gather import Ranks

ROLES = ("positives", "hard", "shared", "bank")  # of documents, in the order of the columns


@dataclass(frozen=True)
class PerRole:
    """One attribute (ids, groups, a guide's vectors, sketches) for each role in a batch; None where it is unknown.

    Attributes:
        queries: `[B, ...]`.
        positives: `[B, ...]`, or `[B, P, ...]` with several positives for each query.
        hard: `[B, K, ...]`, negatives mined for each query.
        shared: `[M, ...]`, negatives of every query.
        bank: `[S, ...]`, rows of a memory bank.

    >>> ids = PerRole(positives=torch.tensor([3, 4]), bank=torch.tensor([7, 8, 9]))
    >>> ids.hard is None
    True
    """

    queries: Tensor | None = None
    positives: Tensor | None = None
    hard: Tensor | None = None
    shared: Tensor | None = None
    bank: Tensor | None = None


@dataclass(frozen=True)
class Columns:
    """All documents that a query is compared with: the columns of the score matrix.

    Attributes:
        vectors: `[m, d]`.
        positives, hard, shared, bank: number of columns of each role, in this order, over all ranks.
    """

    vectors: Tensor
    positives: int
    hard: int
    shared: int
    bank: int


def role_values(sides: PerRole) -> list[Tensor | None]:
    return [getattr(sides, field.name) for field in fields(sides)]


def make_columns(sides: PerRole, ranks: Ranks) -> Columns:
    """The columns: the documents of all ranks, role by role, then the bank."""
    assert sides.positives is not None
    parts: list[Tensor | None] = []
    for role in ROLES:
        vectors = getattr(sides, role)
        if vectors is None or role == "bank":
            parts.append(vectors)
        else:
            parts.append(ranks.gathered(vectors.flatten(0, -2), role))
    counts = [0 if part is None else len(part) for part in parts]
    there = [part.to(sides.positives.dtype) for part in parts if part is not None]
    return Columns(there[0] if len(there) == 1 else torch.cat(there), *counts)
