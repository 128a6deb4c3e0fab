"""What a call of the loss is given: checked in full before anything is computed, also against the other ranks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hardneg.errors import UsageError
from hardneg.losses.arguments import number
from hardneg.losses.batch import ROLES, PerRole, role_values
from hardneg.losses.gather import Ranks

_LABELS = ("ids", "groups")  # attributes that are integers; the others are vectors
_KINDS = ("vectors", "ids", "known_ids", "groups", "guide", "sketches", "hard_real", "options of the loss")
_LENGTHS = ("queries", *ROLES[:3], "known", "groups")


@dataclass(frozen=True)
class Given:
    """The arguments of `InfoNCE.forward`. `positives` have the shape `[B, P, d]`.

    Raises:
        UsageError: something is no tensor, or of the wrong type, shape or device; the message names argument and role.
    """

    sides: PerRole
    ids: PerRole | None = None
    known_ids: Tensor | None = None
    groups: PerRole | None = None
    guide: PerRole | None = None
    sketches: PerRole | None = None
    intercept: float = 0.0
    hard_real: Tensor | None = None

    def __post_init__(self) -> None:
        number("intercept", self.intercept, -float("inf"))
        _check_vectors(self.sides)
        for name in ("ids", "groups", "guide", "sketches"):
            value = getattr(self, name)
            if value is not None:
                _check_attribute(name, value, self.sides)
        queries, hard = self.sides.queries, self.sides.hard
        assert queries is not None
        if self.known_ids is not None:
            if self.ids is None:
                raise UsageError("known_ids are compared with ids: give ids=PerRole(...), too")
            _check_tensor("known_ids", self.known_ids, queries, integers=True)
            if self.known_ids.ndim != 2 or len(self.known_ids) != len(queries):
                raise UsageError(f"known_ids must be [B, Q] with B = {len(queries)}, not {list(self.known_ids.shape)}")
        real = self.hard_real
        if real is not None and (hard is None or real.dtype != torch.bool or real.shape != hard.shape[:2]):
            wanted = "needs hard negatives" if hard is None else f"must be bool {list(hard.shape[:2])}"
            raise UsageError(f"hard_real {wanted}, not {real.dtype} {list(real.shape)}")
        for name in ("guide", "sketches"):
            value = getattr(self, name)
            if value is not None and value.queries is None:
                raise UsageError(f"{name} lacks {name}.queries, which its documents are compared with")
        if self.guide is not None and self.guide.positives is None:
            raise UsageError("guide lacks guide.positives: what it gives the positives is the limit for all others")

    @property
    def lengths(self) -> dict[str, int]:
        """The numbers of rows by role, and the widths of lists, by name."""
        assert self.sides.queries is not None
        known = self.known_ids if self.known_ids is not None or self.ids is None else self.ids.positives
        lists = (known, None if self.groups is None else self.groups.queries)
        rows = [0 if x is None else x.shape[:-1].numel() for x in (getattr(self.sides, role) for role in ROLES[:3])]
        widths = [x.shape[1] if x is not None and x.ndim == 2 else 1 for x in lists]
        return dict(zip(_LENGTHS, (len(self.sides.queries), *rows, *widths), strict=True))

    def kinds(self) -> dict[str, str]:
        """What must be the same on all ranks, in words."""
        assert self.sides.positives is not None
        vectors = f"{_described(self.sides, gradients=True)}, {self.sides.positives.shape[1]} positives a query"
        names = ("ids", "groups", "guide", "sketches")
        attributes = {name: _described(getattr(self, name), widths=name not in _LABELS) for name in names}
        known = "none" if self.known_ids is None else str(self.known_ids.dtype)
        return {"vectors": vectors, **attributes, "known_ids": known, "hard_real": str(self.hard_real is not None)}


def _described(given: PerRole | None, widths: bool = True, gradients: bool = False) -> str:
    if given is None:
        return "none"
    roles = dict(zip(("queries", *ROLES), role_values(given), strict=True))
    parts = []
    for role, x in roles.items():
        if x is not None:
            width = f" x {x.shape[-1]}" if widths else ""
            parts.append(f"{role} {x.dtype}{width}{' with gradients' if gradients and x.requires_grad else ''}")
    return ", ".join(parts) or "nothing"


def _check_tensor(name: str, value: Any, like: Tensor, integers: bool = False) -> None:
    if not isinstance(value, Tensor):
        raise UsageError(f"{name} must be a torch.Tensor, not {type(value).__name__}")
    if integers and (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool):
        raise UsageError(f"{name} of {value.dtype}: they must be integers")
    if not integers and not value.is_floating_point():
        raise UsageError(
            f"{name} of {value.dtype}: they must be real numbers, such as float32 or bfloat16: {name}.float()"
        )
    if value.device != like.device:
        raise UsageError(f"{name} is on {value.device}, queries are on {like.device}: move one of them")


def _check_vectors(sides: PerRole) -> None:
    """Check that the vectors are vectors, and fit each other."""
    queries, positives = sides.queries, sides.positives
    if not isinstance(queries, Tensor):
        raise UsageError(f"queries must be a torch.Tensor, not {type(queries).__name__}")
    for name, value in zip(("queries", *ROLES), role_values(sides), strict=True):
        if value is not None or name == "positives":
            _check_tensor(name, value, queries)
    assert positives is not None
    shapes = f"{list(queries.shape)} and {list(positives.shape)}"
    if (
        queries.ndim != 2
        or positives.ndim != 3
        or 0 in queries.shape
        or 0 in positives.shape
        or len(positives) != len(queries)
    ):
        raise UsageError(
            f"queries must be [B, d] and positives [B, d] or [B, P, d], with 1 or more of each, not {shapes}"
        )
    if positives.shape[-1] != queries.shape[1]:
        raise UsageError(f"queries have {queries.shape[1]} components, positives {positives.shape[-1]}")
    for name, tensor, ndim in (("hard", sides.hard, 3), ("shared", sides.shared, 2), ("bank", sides.bank, 2)):
        if tensor is not None and (tensor.ndim != ndim or tensor.shape[-1] != queries.shape[1]):
            shape = "[B, K, d]" if ndim == 3 else "[M, d]"
            raise UsageError(f"{name} must be {shape} with d = {queries.shape[1]}, not {list(tensor.shape)}")
    if sides.hard is not None and len(sides.hard) != len(queries):
        raise UsageError(f"{len(sides.hard)} rows of hard negatives for {len(queries)} queries")


def _check_attribute(name: str, given: Any, sides: PerRole) -> None:
    """Check that an attribute has one entry for each query or document of a role."""
    if not isinstance(given, PerRole):
        raise UsageError(f"{name} must be a PerRole(queries=, positives=, ...), not {type(given).__name__}")
    assert sides.queries is not None
    assert sides.positives is not None
    labels = name in _LABELS
    widths: dict[str, int] = {}
    for role, value in zip(("queries", *ROLES), role_values(given), strict=True):
        if value is None or (name == "ids" and role == "queries"):
            continue
        whole = f"{name}.{role}"
        _check_tensor(whole, value, sides.queries, integers=labels)
        vectors = getattr(sides, role)
        if vectors is None:
            if value.numel():
                raise UsageError(f"{whole} is given, but {role} is not")
            continue
        rows = vectors.shape[:-1]
        allowed = [rows] if role != "positives" or rows[1] != 1 else [rows, rows[:1]]
        shape = value.shape if labels else value.shape[:-1]
        if labels and role == "queries" and value.ndim == 2:
            shape = shape[:1]  # several groups of one query
        if shape not in allowed:
            tail = "" if labels else " and a width"
            raise UsageError(
                f"{whole} must have the shape {list(rows)}{tail}, one for each of its vectors, not {list(value.shape)}"
            )
        widths[role] = 0 if labels else value.shape[-1]
        # On a GPU, the answer would have to be waited for; `Sketch` has looked at its own numbers there.
        if name == "sketches" and value.device.type == "cpu" and value.numel() and not _all_finite(value):
            raise UsageError(
                f"{whole} holds NaN or infinity: products of such numbers decide nothing. Make the sketch anew"
            )
    if len(set(widths.values())) > 1:
        raise UsageError(f"the vectors of {name} differ in width: {widths}")


def _all_finite(value: Tensor) -> bool:
    """Whether no entry is NaN or infinite, told by the smallest and the largest."""
    low, high = torch.aminmax(value.detach())
    return bool(torch.isfinite(low) & torch.isfinite(high))


def meet_ranks(given: Given | None, problem: UsageError | None, options: str, device: torch.device) -> Ranks:
    """The ranks, once they have told each other what they bring. All must call this, also one that was called wrongly.

    Args:
        given: what this rank was given; None: something that cannot be used.
        problem: the error of that.
        options: of the loss, in words.
        device: where collective operations find their tensors.

    Raises:
        UsageError: `problem`; or another rank was called wrongly, or with other kinds of arguments.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        if given is None:
            raise problem or UsageError("nothing was given")
        return Ranks.here(given.lengths, device)
    kinds = dict.fromkeys(_KINDS, "") if given is None else {**given.kinds(), "options of the loss": options}
    lengths = dict.fromkeys(_LENGTHS, 0) if given is None else given.lengths
    ranks = Ranks.here(
        {"refused": int(given is None), **lengths, **{name: _hashed(kinds[name]) for name in _KINDS}}, device
    )
    if given is None:
        raise problem or UsageError("nothing was given")
    refused = [rank for rank, no in enumerate(ranks.lengths["refused"]) if no]
    if refused:
        raise UsageError(f"the loss on rank {refused[0]} was given what it cannot use; that rank's error says what")
    for name in _KINDS:
        others = [rank for rank, found in enumerate(ranks.lengths[name]) if found != ranks.lengths[name][ranks.rank]]
        if others:
            raise UsageError(
                f"all ranks must have the same {name}: rank {others[0]} has others than this one, which has {kinds[name]}"
            )
    return ranks


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
