"""The fused back end: lowers a score matrix and its masks to arguments of the kernel."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hardneg.errors import UsageError
from hardneg.losses.masks import (
    AbovePositive,
    Guide,
    Mask,
    Own,
    Padding,
    SameGroup,
    SameId,
    SameLabel,
    Suspected,
    Weighted,
)
from hardneg.losses.tiles import Matrix, Sums, Tiles, gradient_format

_LOG2E = math.log2(math.e)
_FAR = 50.0  # nats between the highest logit of a row and its reference, beyond which weights lose what counts
_NEAR = 30.0  # nats by which the reference keeps off the positive: towards 0, where it would be without one
_REDOING = 8  # programs for each row of tiles that may have to be computed again
_WORTH = (
    1 << 24
)  # entries from which the kernel is taken unasked: torch needs less than a millisecond for fewer, and a kernel that
# was not compiled on this machine before takes seconds, once for each set of masks
FORMATS = (torch.float32, torch.bfloat16, torch.float16)


def _interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the processor (environment variable TRITON_INTERPRET)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def has_kernels(rows: Tensor) -> bool:
    """Whether kernels can be run on these rows."""
    there = rows.device.type == "cuda" or _interpreted()
    return there and rows.dtype in FORMATS and _has_triton()


def fused_weights(
    matrix: Matrix, scale: Tensor, tiles: Tiles, most: int, store: bool, totals: bool
) -> FusedWeights | None:
    """The fused back end for this matrix; None where it cannot be had, if `tiles` leaves the choice open.

    Raises:
        UsageError: `tiles` asks for triton, and it cannot be had, or does not know some mask.
    """
    device = matrix.rows.device.type
    asked = tiles.backend == "triton"
    if device != "cuda" and not (asked and _interpreted()):
        if asked:
            raise UsageError(f"the back end triton runs on a GPU, not on {device!r}")
        return None
    if matrix.narrow(tiles) == torch.float32 and not asked:
        return None  # its products are not for the matrix units, and cuBLAS makes them at least as well
    if len(matrix.rows) * len(matrix.columns) < _WORTH and not asked:
        return None
    if not _has_triton():
        if asked:
            raise UsageError("the back end triton needs the package triton, which CUDA builds of torch bring along")
        return None
    lowered = _lowered(matrix.masks, len(matrix.columns), matrix.rows.device)
    fitting = lowered is not None and matrix.narrow(tiles) in FORMATS
    if not fitting and asked:
        names = ", ".join(type(mask).__name__ for mask in matrix.masks)
        raise UsageError(
            f"the back end triton cannot combine {names} in {matrix.narrow(tiles)}; leave the back end open"
        )
    if not fitting:
        return None
    assert lowered is not None
    return FusedWeights(matrix, lowered, scale, tiles, most, store, totals)


@dataclass
class _Lowered:
    """Masks as arguments of the kernel; see `kernel.weigh_tiles`."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)


def _lowered(masks: Any, m: int, device: torch.device) -> _Lowered | None:
    """None: there is a mask that the kernel does not know, or several of a kind."""
    out = _Lowered()
    biases: Tensor | None = None
    kinds = [type(mask) for mask in masks]
    known = (Own, SameId, SameGroup, AbovePositive, Guide, Suspected, Weighted, Padding)
    if any(kind not in known for kind in kinds):
        return None
    if any(kinds.count(kind) > 1 for kind in known[:6]):
        return None
    for mask in masks:
        if isinstance(mask, Own):
            out.numbers |= {"OWN_ROWS": mask.rows, "OWN_COLUMNS": mask.columns, "own_first": mask.first}
        elif isinstance(mask, SameLabel):
            _lower_labels(out, "ids" if isinstance(mask, SameId) else "groups", mask)
        elif isinstance(mask, AbovePositive):
            out.tensors["limits"] = mask.limit.float().contiguous()
            out.numbers["LIMITED"] = True
        elif isinstance(mask, Guide):
            _lower_product(out, "guide", mask.rows, mask.columns, mask.known)
            out.tensors["guide_limits"] = mask.limit.float().contiguous()
            out.numbers["GUIDED"] = True
        elif isinstance(mask, Suspected):
            _lower_product(out, "sketch", mask.rows, mask.columns, mask.known)
            out.numbers |= {
                "SUSPECTED": True,
                "intercept": float(mask.intercept),
                "THRESHOLD": mask.threshold is not None,
            }
            out.numbers["sketch_limit"] = 0.0 if mask.threshold is None else mask.limit
            out.numbers["WEIGHTED"] = out.numbers.get("WEIGHTED", False) or mask.threshold is None
        else:
            biases = _lower_bias(mask, m, biases, device)
            out.numbers["WEIGHTED"] = out.numbers.get("WEIGHTED", False) or isinstance(mask, Weighted)
    if biases is not None:
        out.tensors["biases"] = biases
        out.numbers["BIASED"] = True
    return out


def _lower_bias(mask: Mask, m: int, biases: Tensor | None, device: torch.device) -> Tensor:
    if isinstance(mask, Padding):
        said = torch.zeros(m, device=device).masked_fill_(~mask.real.to(device), -torch.inf)
    else:
        assert isinstance(mask, Weighted)
        said = torch.zeros(m, device=device)
        said[mask.start : mask.stop] = mask.log_weight * _LOG2E
    return said if biases is None else biases + said


def _lower_labels(out: _Lowered, name: str, mask: SameLabel) -> None:
    mine, theirs = mask.mine.contiguous(), mask.theirs.contiguous()
    width = mine.shape[1]
    out.tensors |= {f"{name}_mine": mine, f"{name}_theirs": theirs}
    upper = name.upper()
    out.numbers |= {f"{upper}_MINE": width, f"{upper}_THEIRS": theirs.shape[1]}
    out.numbers[f"{upper}_STEPS"] = (width - 1).bit_length() if mask.searched else 0


def _lower_product(out: _Lowered, name: str, rows: Tensor, columns: Tensor, known: Tensor | None) -> None:
    """A second product: its factors, and what is added for each column: -inf where nothing is known."""
    dtype = rows.dtype if rows.dtype == columns.dtype and rows.dtype in FORMATS else torch.float32
    offsets = torch.zeros(len(columns), device=columns.device)
    if known is not None:
        offsets.masked_fill_(~known, -torch.inf)
    rows, columns = _padded(rows.to(dtype)), _padded(columns.to(dtype))
    out.tensors |= {f"{name}_rows": rows, f"{name}_columns": columns, f"{name}_offsets": offsets}
    out.numbers |= {f"{name}_depth": rows.shape[1], f"{name.upper()}_DEPTH": _depth(rows)}


def _depth(factors: Tensor) -> int:
    """Components that the kernel loads at once: 128 bytes of each row, as long as these divide its length."""
    most = 64 if factors.dtype.itemsize == 2 else 32
    return most if factors.shape[1] % most == 0 else 16


def _padded(factors: Tensor) -> Tensor:
    """The rows, with zeros up to a multiple of 16 components (of 64, if they are long)."""
    d = factors.shape[1]
    step = 16 if d <= 48 else 64
    if d % step:
        factors = torch.nn.functional.pad(factors, (0, step - d % step))
    factors = factors.contiguous()
    return factors if factors.data_ptr() % 16 == 0 else factors.clone()  # as the copy engine wants it


class FusedWeights:
    """The back end of one Triton kernel. Arguments as for `TorchWeights`.

    Weights are exp(logit - reference) with a reference that is guessed before the scores are known. Rows whose highest logit
    turns out to be far from it are computed again, without the host having to know.
    """

    def __init__(
        self, matrix: Matrix, lowered: _Lowered, scale: Tensor, tiles: Tiles, most: int, store: bool, totals: bool
    ) -> None:
        narrow = matrix.narrow(tiles)
        device = matrix.rows.device
        self.m, self.store, self.totals = len(matrix.columns), store, totals
        self.scored = [_padded(x.detach().to(narrow)) for x in (matrix.rows, matrix.columns)]
        self.rows, self.columns = (
            x.detach().to(gradient_format(narrow, x.device)) for x in (matrix.rows, matrix.columns)
        )
        self.scale = (scale.float() * _LOG2E).reshape(1).contiguous()
        self.tensors = {name: x.to(device) for name, x in lowered.tensors.items()}
        self.numbers = lowered.numbers
        self.weighted = bool(lowered.numbers.get("WEIGHTED", False))
        self.shape = _shape(narrow, bool(lowered.numbers.get("GUIDED") or lowered.numbers.get("SUSPECTED")), device)
        self.depth, self.processors = _depth(self.scored[0]), _processors(device)
        self.factors = [self._read(x, side, self.depth) for x, side in zip(self.scored, _SIDES, strict=True)]
        for name in ("guide", "sketch"):
            if f"{name}_rows" in self.tensors:
                depth = self.numbers[f"{name.upper()}_DEPTH"]
                for side in _SIDES:
                    at = f"{name}_{side}"
                    self.tensors[at] = self._read(self.tensors[at], side, depth)
        # Rows that start at multiples of 32 bytes: otherwise products of matrices are slow.
        self.stride = -(-self.m // 16) * 16
        self.weights = torch.empty(most if store else 0, self.stride, dtype=self.rows.dtype, device=device)[:, : self.m]
        across = self.across
        floats = {"highest", "sums"} | ({"totals"} if totals else set()) | ({"masses"} if self.weighted else set())
        self.parts = {name: torch.empty(across * most, device=device) for name in floats}
        self.parts["counts"] = torch.empty(across * most, dtype=torch.int32, device=device)

    def weigh(self, rows: slice, guess: Tensor) -> tuple[Sums, Tensor]:
        r = rows.stop - rows.start
        reference = ((guess - guess.clamp(-_NEAR, _NEAR)) * _LOG2E).float()
        self._launch(rows, reference, None)
        highest = self._part("highest", r).amax(0)
        far = ((highest - reference).abs() > _FAR * _LOG2E) & ~torch.isneginf(highest)
        reference = torch.where(far, highest, reference)
        self._launch(rows, reference, far.to(torch.int32))
        sums = self._part("sums", r).sum(0)
        count = self._part("counts", r).sum(0).to(torch.float32)
        log_sum = (torch.log2(sums) + reference) / _LOG2E
        total = self._part("totals", r).sum(0) / _LOG2E if self.totals else torch.zeros_like(sums)
        mass = self._part("masses", r).sum(0) if self.weighted else count
        return Sums(log_sum, total, mass, count), reference / _LOG2E

    def _read(self, factors: Tensor, side: str, depth: int) -> Any:
        """How the kernel reads the rows or columns of a product: through the copy engine, where there is one."""
        if not self.shape["COPIED"]:
            return factors
        from triton.tools.tensor_descriptor import TensorDescriptor

        return TensorDescriptor.from_tensor(factors, [self.shape[side.upper()], depth])

    @property
    def across(self) -> int:
        """Tiles side by side."""
        return int(-(-self.m // self.shape["COLUMNS"]))

    def _part(self, name: str, r: int) -> Tensor:
        return self.parts[name][: self.across * r].view(self.across, r)

    def _launch(self, rows: slice, reference: Tensor, redo: Tensor | None) -> None:
        from hardneg.losses.kernel import weigh_tiles

        r, shape, get = rows.stop - rows.start, self.shape, self.numbers.get
        nothing = reference
        pointers = {name: self.tensors.get(name, nothing) for name in _POINTERS}
        tiles = -(-r // shape["ROWS"]) * self.across
        stays = shape["STAYS"] and redo is None
        programs = min(tiles, self.processors) if stays else tiles
        if redo is not None:
            programs = -(-r // shape["ROWS"]) * _REDOING
        weigh_tiles[(programs,)](
            *self.factors, self.scale, reference, nothing if redo is None else redo, self.weights,
            self.parts["highest"], self.parts["sums"], self.parts.get("totals", nothing), self.parts.get("masses", nothing),
            self.parts["counts"], **pointers, intercept=get("intercept", 0.0), sketch_limit=get("sketch_limit", 0.0),
            n=r, m=self.m, stride=self.stride, depth=self.scored[0].shape[1], guide_depth=get("guide_depth", 16),
            sketch_depth=get("sketch_depth", 16), first_row=rows.start, own_first=get("own_first", 0),
            programs=programs, REDO=redo is not None, STORE=self.store, TOTALS=self.totals, WEIGHTED=self.weighted,
            **{name: get(name, default) for name, default in _FLAGS.items()}, **{**shape, "STAYS": stays}, DEPTH=self.depth,
        )  # fmt: skip


_SIDES = ("rows", "columns")

_POINTERS = (
    "limits", "biases", "ids_mine", "ids_theirs", "groups_mine", "groups_theirs", "guide_rows", "guide_columns",
    "guide_limits", "guide_offsets", "sketch_rows", "sketch_columns", "sketch_offsets",
)  # fmt: skip

_FLAGS = {
    "OWN_ROWS": 1, "OWN_COLUMNS": 0, "LIMITED": False, "BIASED": False, "IDS_MINE": 0, "IDS_THEIRS": 0, "IDS_STEPS": 0,
    "GROUPS_MINE": 0, "GROUPS_THEIRS": 0, "GROUPS_STEPS": 0, "GUIDED": False, "SUSPECTED": False, "THRESHOLD": False,
    "GUIDE_DEPTH": 16, "SKETCH_DEPTH": 16,
}  # fmt: skip


@functools.cache
def _processors(device: torch.device) -> int:
    """Multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def _shape(narrow: torch.dtype, twice: bool, device: torch.device) -> dict[str, Any]:
    """Sizes of tiles: large ones read the vectors less often; a second product needs registers of its own."""
    shape: dict[str, Any] = {"TOGETHER": 8, "PRECISION": "ieee", "COPIED": False, "STAYS": False}
    if _interpreted():
        return {**shape, "ROWS": 16, "COLUMNS": 32, "BESIDE": "ieee"}
    copied = torch.cuda.get_device_capability(device) >= (9, 0)
    shape |= {"BESIDE": "tf32x3", "num_warps": 8, "num_stages": 3, "COPIED": copied}
    if narrow == torch.float32:
        precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
        return {**shape, "ROWS": 64, "COLUMNS": 64, "PRECISION": precision, "num_stages": 2, "COPIED": False}
    # Two programs on each multiprocessor, of which one loads while the other one multiplies; or one that does both.
    shape |= {"STAYS": copied, "num_stages": 4} if twice else {"STAYS": False, "num_warps": 4}
    return {**shape, "ROWS": 128, "COLUMNS": 128}
