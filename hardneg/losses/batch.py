"""The batch of a loss: attributes by role, and all documents that a query is compared with."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from hardneg.errors import UsageError
from hardneg.losses.gather import Ranks


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


def check_shapes(
    queries: Tensor, positives: Tensor, hard: Tensor | None, shared: Tensor | None, bank: Tensor | None
) -> None:
    """Raise UsageError for shapes that do not fit each other."""
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
