"""The batch of a loss: attributes by role, and all documents that a query is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from hardneg.errors import UsageError
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


def meet_ranks(
    sides: PerRole, lists: Mapping[str, Tensor | None], attributes: Mapping[str, PerRole | Tensor | None]
) -> Ranks:
    """The ranks, once they have told each other what they bring.

    Args:
        sides: the vectors.
        lists: `[B, k]`, lists of ids by name.
        attributes: everything else that is given, by the name of the argument.

    Raises:
        UsageError: some ranks give what others do not, or the numbers of positives differ.
    """
    assert sides.queries is not None
    assert sides.positives is not None
    lengths = {"queries": len(sides.queries)}
    lengths |= {role: 0 if x is None else x.shape[:-1].numel() for role in ROLES[:3] for x in (getattr(sides, role),)}
    lengths |= {name: x.shape[1] if x is not None and x.ndim == 2 else 1 for name, x in lists.items()}
    same = {"number of positives for each query": sides.positives.shape[1]}
    same |= {f"vectors: {role} (0: none)": int(getattr(sides, role) is not None) for role in ROLES}
    same |= {f"argument {name} (0: none; else its roles, as bits)": _code(given) for name, given in attributes.items()}
    return Ranks.here(lengths, sides.queries.device, same)


def _code(given: PerRole | Tensor | None) -> int:
    """A number that says which roles of an argument are given."""
    if not isinstance(given, PerRole):
        return int(given is not None)
    return sum(2 << i for i, value in enumerate(role_values(given)) if value is not None)


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
