"""A memory bank: document vectors of past batches, kept as further negatives (XBM, Wang et al. 2020, arXiv 1912.06798).

A vector is as old as its batch, so every row knows when it was written. Rows that are too old are not used. Drifted rows can
be moved or encoded again, and a momentum encoder (MoCo, He et al. 2020, arXiv 1911.05722) makes vectors that drift less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hardneg.errors import DataError, UsageError
from hardneg.losses.gather import Ranks
from hardneg.refresh.drift import compensate


@dataclass(frozen=True)
class BankView:
    """The rows of a bank that a training step uses, in the order of their places.

    Attributes:
        vectors: `[S, d]`, without gradient.
        ids: int64 `[S]`, -1: unknown.
        groups: int64 `[S]`, -1: none.
        ages: int64 `[S]`, steps since each row was written.
        places: int64 `[S]`, the place of each row in the bank.
    """

    vectors: Tensor
    ids: Tensor
    groups: Tensor
    ages: Tensor
    places: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, shown: Tensor) -> BankView:
        """The rows for which `shown`, bool `[S]`, is true."""
        return BankView(*(each[shown] for each in (self.vectors, self.ids, self.groups, self.ages, self.places)))


class MemoryBank(nn.Module):
    """A ring buffer of the last `size` vectors, on the device of its buffers.

    In a training loop, call `view()` before the loss and `push(...)` after the optimizer's step, so that a batch never meets
    itself; `push` also counts the step. With torch.distributed, every rank pushes the rows of all ranks, so the banks stay
    equal. The whole state is in buffers, and so in `state_dict`.

    Args:
        size: S, the most rows that the bank holds.
        dimension: d.
        max_age: steps after which a row is no longer used; None: no limit.
        dtype: of the vectors.

    Raises:
        UsageError: a size, dimension or age below 1, a `dtype` that holds no real numbers, or too little memory.

    >>> bank = MemoryBank(size=3, dimension=2)
    >>> bank.push(torch.ones(2, 2), ids=torch.tensor([5, 7]))
    >>> bank.view().ids.tolist(), bank.view().ages.tolist()
    ([5, 7], [1, 1])
    """

    vectors: Tensor
    ids: Tensor
    groups: Tensor
    written: Tensor
    cursor: Tensor
    step: Tensor

    def __init__(
        self, size: int, dimension: int, *, max_age: int | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        if size < 1 or dimension < 1:
            raise UsageError(f"a bank of {size} rows and {dimension} components: both must be 1 or more")
        if max_age is not None and max_age < 1:
            raise UsageError(f"max_age={max_age} must be 1 or more: a row is one step old when it is first seen")
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise UsageError(f"dtype={dtype}: a bank keeps vectors of float32, float16, bfloat16 or float64")
        self.max_age = max_age
        try:
            vectors = torch.zeros(size, dimension, dtype=dtype)
        except (RuntimeError, MemoryError, OverflowError):  # what torch raises depends on how much is missing
            raise UsageError(f"a bank of {size:,} rows of {dimension} components does not fit into memory") from None
        self.register_buffer("vectors", vectors)
        self.register_buffer("ids", torch.full((size,), -1))
        self.register_buffer("groups", torch.full((size,), -1))
        self.register_buffer("written", torch.full((size,), -1))  # the step; -1: never
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def size(self) -> int:
        return len(self.vectors)

    @property
    def dimension(self) -> int:
        return self.vectors.shape[1]

    def __len__(self) -> int:
        """Number of rows that were written, whatever their age."""
        return int((self.written >= 0).sum())

    @torch.no_grad()
    def push(self, vectors: Tensor, ids: Tensor | None = None, groups: Tensor | None = None) -> None:
        """Write the rows of a finished step over the oldest ones, and count the step.

        Args:
            vectors: `[n, d]`; of more than `size` rows, the last are kept.
            ids, groups: int64 `[n]`; None: unknown.

        Raises:
            UsageError: shapes or number formats that do not fit. DataError: vectors with NaN or infinity, also in the number
                format of the bank: they would stay in the bank for long.
        """
        if not vectors.is_floating_point():
            raise UsageError(f"the bank keeps vectors of real numbers, not of {vectors.dtype}")
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise UsageError(f"the bank keeps rows of {self.dimension} components, not {list(vectors.shape)}")
        ranks = Ranks.here({"rows": len(vectors)}, vectors.device)
        columns = []
        for name, given in (("ids", ids), ("groups", groups)):
            if given is not None and given.shape != (len(vectors),):
                raise UsageError(f"{len(vectors)} vectors with {list(given.shape)} {name}: there must be one each")
            if given is not None and (given.is_floating_point() or given.is_complex()):
                raise UsageError(f"{name} of {given.dtype}: they must be integers")
            known = torch.full((len(vectors),), -1, device=vectors.device) if given is None else given
            columns.append(ranks.gathered(known, "rows"))
        rows = ranks.gathered(vectors.detach(), "rows")[-self.size :]
        kept = self._kept(rows, columns[0][-self.size :], f"step {int(self.step)}: vectors for the bank hold")
        places = (self.cursor + torch.arange(len(rows), device=self.vectors.device)) % self.size
        self.vectors[places] = kept
        self.ids[places], self.groups[places] = (each[-self.size :].to(self.ids) for each in columns)
        self.written[places] = self.step
        self.cursor.copy_((self.cursor + len(rows)) % self.size)
        self.step += 1

    def _kept(self, rows: Tensor, ids: Tensor, what: str) -> Tensor:
        """The rows in the number format of the bank.

        Args:
            rows: `[n, d]`.
            ids: int64 `[n]`, to name the first row that cannot be kept.
            what: the start of the message.

        Raises:
            DataError: NaN or infinity. Numbers above 65504 are infinite as float16.
        """
        kept = rows.to(self.vectors)
        bad = ~torch.isfinite(kept).all(1)
        if not bool(bad.any()):  # the only wait for the device
            return kept
        first = int(torch.nonzero(bad)[0])
        name = f"id {int(ids[first])}" if int(ids[first]) >= 0 else f"row {first}"
        entry = rows[first].float()
        if bool(torch.isfinite(entry).all()):
            raise DataError(
                f"{what} {float(entry.abs().max()):g}, which is infinite as {str(kept.dtype).removeprefix('torch.')} ({name}), "
                f"it stays as it is. Normalize the vectors, or make the bank with dtype=torch.float32"
            )
        raise DataError(f"{what} NaN or infinity ({name}), it stays as it is. Has the training diverged?")

    def view(self) -> BankView:
        """The rows that were written and are not too old."""
        ages = self.step - self.written
        shown = self.written >= 0
        if self.max_age is not None:
            shown &= ages <= self.max_age
        places = torch.nonzero(shown).squeeze(1)
        return BankView(self.vectors[places], self.ids[places], self.groups[places], ages[places], places)

    def empty_view(self) -> BankView:
        """A view with no rows."""
        places = self.cursor.new_empty(0)
        return BankView(self.vectors[places], self.ids[places], self.groups[places], places, places)

    def statistics(self) -> dict[str, float]:
        """`rows` in use, `too_old` rows, and `mean_age` and `max_age` of the rows in use, in steps (0 without any)."""
        seen = self.view()
        ages = seen.ages.double()
        some = len(seen) > 0
        return {
            "rows": float(len(seen)),
            "too_old": float(len(self) - len(seen)),
            "mean_age": float(ages.mean()) if some else 0.0,
            "max_age": float(ages.max()) if some else 0.0,
        }

    @torch.no_grad()
    def encode_again(self, encode: Callable[[Tensor], Tensor], share: float = 1.0, seed: int = 0) -> float:
        """Bring the vectors to where the encoder is now.

        Args:
            encode: returns vectors `[m, d]` of the documents with these ids, int64 `[m]` on the CPU.
            share: share of the rows that is encoded again, drawn at random; the others are moved by the linear map learned from
                these, as in `Recipe(share=...)`. 1: all rows.
            seed: of the draw.

        Returns:
            1 - mean cosine of moved and fresh vectors, on a fifth of the encoded rows that the map was not learned from; 0 if
            nothing was moved.

        Raises:
            UsageError: rows without ids, or a share out of range. DataError: the encoder returned another shape, NaN or infinity.
        """
        if not 0 < share <= 1:
            raise UsageError(f"share={share} must be above 0 and at most 1")
        places = self.view().places
        if bool((self.ids[places] < 0).any()):
            raise UsageError("rows without ids cannot be encoded again: push(vectors, ids)")
        if len(places) == 0:
            return 0.0
        rng = np.random.default_rng(seed)
        rows = places.cpu().numpy()
        chosen = np.sort(rng.choice(rows, max(1, round(share * len(rows))), replace=False))
        ids = self.ids[chosen]
        fresh = encode(ids.cpu())
        if fresh.shape != (len(chosen), self.dimension) or not fresh.is_floating_point():
            raise DataError(
                f"encoding {len(chosen):,} rows of the bank gave {list(fresh.shape)} of {fresh.dtype}, expected real numbers "
                f"[{len(chosen)}, {self.dimension}]"
            )
        kept = self._kept(fresh, ids, "encoding rows of the bank gave")
        rest = np.setdiff1d(rows, chosen)
        error = 0.0
        if len(rest):
            old = self.vectors.float().cpu().numpy()
            trial = rng.choice(len(chosen), max(1, len(chosen) // 5), replace=False)
            moved, error = compensate(old, chosen, fresh.float().cpu().numpy(), trial, rest)
            others = self._kept(torch.from_numpy(moved), self.ids[rest], "moving rows of the bank gave")
            self.vectors[torch.from_numpy(rest).to(self.vectors.device)] = others
        self.vectors[torch.from_numpy(chosen).to(self.vectors.device)] = kept
        now = torch.from_numpy(chosen).to(self.written.device)
        self.written[now] = self.step - 1  # the age of the rows that were pushed last
        return error

    @torch.no_grad()
    def resize(self, size: int) -> None:
        """Keep the newest `size` rows, or make room for more."""
        if size < 1:
            raise UsageError(f"size={size} must be 1 or more")
        # From the oldest to the newest row: once around, from the cursor.
        order = (self.cursor + torch.arange(self.size, device=self.written.device)) % self.size
        order = order[self.written[order] >= 0][-size:]
        for name, fill in (("vectors", 0), ("ids", -1), ("groups", -1), ("written", -1)):
            old: Tensor = getattr(self, name)
            new = old.new_full((size, *old.shape[1:]), fill)
            new[: len(order)] = old[order]
            setattr(self, name, new)
        self.cursor.fill_(len(order) % size)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        saved = state_dict.get(prefix + "vectors")
        if saved is not None and saved.shape[1:] == self.vectors.shape[1:] and len(saved) != self.size:
            self.resize(len(saved))  # take the size of the saved bank; it can be resized afterwards
        super()._load_from_state_dict(state_dict, prefix, *args)
