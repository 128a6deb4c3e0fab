"""InfoNCE in memory that grows with the batch, not with its square."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hardneg.errors import UsageError
from hardneg.losses.arguments import flag, number, whole
from hardneg.losses.batch import PerRole, make_columns, role_values
from hardneg.losses.distillation import SIMILARITIES
from hardneg.losses.gather import Ranks
from hardneg.losses.given import Given, meet_ranks
from hardneg.losses.mask_sets import MaskSets
from hardneg.losses.matrices import summed_losses
from hardneg.losses.tail import RowLosses
from hardneg.losses.tiles import Matrix, Tiles
from hardneg.losses.unit import positive_scores, unit
from hardneg.losses.variants import Variants

TEMPERATURES = (0.005, 1.0)  # the lowest and the highest temperature, unless others are given


class InfoNCE(nn.Module):
    """L = -log exp(s(q, p) / t) / (exp(s(q, p) / t) + sum over negatives x of exp(s(q, x) / t)), averaged over the queries.

    The negatives of a query are the positives and hard negatives of the whole batch (of all ranks, if torch.distributed is
    initialised), the shared negatives and the bank, but never its own positives. With several positives, each is compared with
    the same negatives, and the losses are averaged. A query whose negatives are all masked has a loss and gradients of 0.

    Args:
        temperature: t, at the start.
        learn_temperature: whether t is a parameter (in log space); each call moves it into `temperature_range` first.
        temperature_range: lowest and highest t.
        similarity: `cosine` or `dot`.
        variants: see `Variants`.
        dimensions: Matryoshka (arXiv 2205.13147): the loss is summed over vectors cut to these lengths; None: whole vectors.
        tiles: sizes of tiles, number format of products and back end; None: as fits the device, in the format of the inputs or
            of an enclosing autocast.

    Raises:
        UsageError: an argument out of range.

    After a call, `statistics` holds means as detached tensors `[]` that are not synchronised with the host: `positive` (score),
    `temperature`, `masked` (share of the documents other than a query's own positives that did not count), `alone`
    (share of queries without any negative, whose loss is 0), `loss`. With several `dimensions`, all but `loss` are of the last.

    >>> loss = InfoNCE(0.1)(torch.eye(2, 3), torch.eye(2, 3))
    >>> round(float(loss), 6)
    4.5e-05
    """

    def __init__(
        self,
        temperature: float = 0.05,
        *,
        learn_temperature: bool = False,
        temperature_range: tuple[float, float] = TEMPERATURES,
        similarity: str = "cosine",
        variants: Variants | None = None,
        dimensions: Sequence[int] | None = None,
        tiles: Tiles | None = None,
    ) -> None:
        super().__init__()
        low, high = (
            number(f"temperature_range[{i}]", each, 0, above=True) for i, each in enumerate(_pair(temperature_range))
        )
        if not low <= number("temperature", temperature, 0, above=True) <= high:
            raise UsageError(f"temperature {temperature} must be above 0 and within {temperature_range}")
        if similarity not in SIMILARITIES:
            raise UsageError(f"similarity must be one of {', '.join(SIMILARITIES)}, not {similarity!r}")
        if dimensions is not None and (isinstance(dimensions, int | float | str) or not len(dimensions)):
            raise UsageError(f"dimensions must be lengths of 1 or more, such as (64, 128), not {dimensions!r}")
        for name, value, kind in (("variants", variants, Variants), ("tiles", tiles, Tiles)):
            if value is not None and not isinstance(value, kind):
                raise UsageError(f"{name} must be {kind.__name__}(...), not {value!r}")
        self.variants = variants or Variants()
        self.similarity, self.tiles = similarity, tiles
        self.dimensions = None if dimensions is None else tuple(whole("dimensions", each, 1) for each in dimensions)
        self.log_range = math.log(1 / high), math.log(1 / low)
        log_scale = torch.tensor(math.log(1 / temperature))
        if flag("learn_temperature", learn_temperature):
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)
        self.statistics: dict[str, Tensor] = {}
        # What must be the same on all ranks.
        self._options = f"temperature {temperature:g}, {temperature_range}, learned {learn_temperature}, {similarity}, "
        self._options += f"{self.variants}, dimensions {self.dimensions}"

    @property
    def temperature(self) -> float:
        """The temperature that the next call uses."""
        low, high = self.log_range
        return math.exp(-min(max(float(self.log_scale.detach()), low), high))

    def _apply(self, fn: Any, recurse: bool = True) -> InfoNCE:
        """Move the loss, but keep its temperature in float32 at least: half of its digits would be another temperature."""
        before = self.log_scale.detach().clone()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.log_scale.dtype not in (torch.float32, torch.float64):
            self.log_scale.data = before.to(self.log_scale.device)
        return self

    def forward(
        self,
        queries: Tensor,
        positives: Tensor,
        hard: Tensor | None = None,
        shared: Tensor | None = None,
        bank: Tensor | None = None,
        *,
        ids: PerRole | None = None,
        known_ids: Tensor | None = None,
        groups: PerRole | None = None,
        guide: PerRole | None = None,
        sketches: PerRole | None = None,
        intercept: float = 0.0,
        hard_real: Tensor | None = None,
    ) -> Tensor:
        """The loss, `[]`.

        Args:
            queries: `[B, d]`.
            positives: `[B, d]` or `[B, P, d]`.
            hard: `[B, K, d]`, mined for each query; they are negatives of all other queries, too.
            shared: `[M, d]`, negatives of every query.
            bank: `[S, d]`, also negatives of every query, without gradient; not gathered, because every rank has its own copy.
            ids: int64 ids of the documents, -1: unknown; `queries` is not used.
            known_ids: int64 `[B, Q]`, all known positives of each query, -1: none; None: those in `ids.positives`.
            groups: int64 groups, -1: none. `queries` may be `[B, g]`: the groups of each query and of its positives.
            guide: unit vectors of a guide model.
            sketches: of a posterior (`hardneg.make_sketch`).
            intercept: of those sketches.
            hard_real: bool `[B, K]`, False where a query has fewer than K hard negatives; None: all are real.

        Raises:
            UsageError: types or shapes that do not fit each other, on this rank or between ranks.
        """
        problem: UsageError | None = None
        given: Given | None = None
        try:
            if isinstance(positives, Tensor) and positives.ndim == 2:
                positives = positives[:, None]
            sides = PerRole(queries, positives, hard, shared, bank.detach() if isinstance(bank, Tensor) else bank)
            given = Given(sides, ids, known_ids, groups, guide, sketches, intercept, hard_real)
            if self.dimensions is not None and max(self.dimensions) > queries.shape[1]:
                raise UsageError(
                    f"dimensions asks for {max(self.dimensions)} components of vectors with {queries.shape[1]}"
                )
        except UsageError as error:
            problem, given = error, None
        device = queries.device if isinstance(queries, Tensor) else self.log_scale.device
        ranks = meet_ranks(given, problem, f"{self._options}, intercept {intercept}", device)
        assert given is not None
        return self._of(given, ranks)

    def _of(self, given: Given, ranks: Ranks) -> Tensor:
        if isinstance(self.log_scale, nn.Parameter):
            with torch.no_grad():
                self.log_scale.clamp_(*self.log_range)
        queries = given.sides.queries
        assert queries is not None
        total = queries.new_zeros((), dtype=torch.float64 if queries.dtype == torch.float64 else torch.float32)
        for length in self.dimensions or (queries.shape[1],):
            cut = PerRole(*(None if x is None else self._prepared(x[..., :length]) for x in role_values(given.sides)))
            total = total + self._loss(cut, MaskSets(self.variants, given, ranks), ranks)
        self.statistics |= {"loss": total.detach(), "temperature": torch.exp(-self.log_scale.detach())}
        return total

    def _prepared(self, vectors: Tensor) -> Tensor:
        return vectors if self.similarity == "dot" else unit(vectors)

    def _loss(self, sides: PerRole, masks: MaskSets, ranks: Ranks) -> Tensor:
        assert sides.queries is not None
        assert sides.positives is not None
        queries, positives = sides.queries, sides.positives
        scale = self.log_scale.exp()
        own = positive_scores(queries, positives)
        columns = make_columns(sides, ranks)
        matrices = self._matrices(sides, masks.at(columns, own.detach()), ranks)
        tail = RowLosses(self.variants)
        total, counts = summed_losses(
            matrices, scale, own * scale, tail, self._tiles(queries), totals=self.variants.label_smoothing > 0
        )
        possible = len(queries) * columns.vectors.shape[0] - own.numel()  # a query's own positives are no negatives
        self.statistics = {
            "positive": own.detach().mean(),
            "masked": ((possible - counts["documents"].sum()) / max(1, possible)).clamp_min(0),
            "alone": _alone(counts, own.shape).float().mean(),
        }
        return ranks.share(total)

    def _matrices(self, sides: PerRole, masks: MaskSets, ranks: Ranks) -> dict[str, Matrix]:
        """The score matrices of this loss, by the name under which its tail finds their sums."""
        assert sides.queries is not None
        assert sides.positives is not None
        v, queries, each = self.variants, sides.queries, sides.positives.shape[1]
        columns, seen = masks.columns, masks.of_queries()
        bank = columns.bank
        matrices = {"documents": Matrix(queries, columns.vectors, seen, factor=1 + v.beta, fixed=bank)}
        if v.beta:
            matrices["tilts"] = Matrix(queries, columns.vectors, seen, factor=v.beta, fixed=bank)
        if v.symmetric or v.query_query:
            of_queries = ranks.gathered(queries, "queries")
        if v.query_query:
            matrices["queries"] = Matrix(queries, of_queries, masks.among_queries())
        if v.symmetric or v.document_document:
            rows = sides.positives.flatten(0, 1)
        if v.document_document:
            matrices["positives"] = Matrix(rows, ranks.gathered(rows, "positives"), masks.among_positives(), each=each)
        if v.symmetric:
            matrices["back"] = Matrix(rows, of_queries, masks.of_positives(), each=each)
        return matrices

    def _tiles(self, queries: Tensor) -> Tiles:
        tiles = self.tiles or Tiles.fitting(queries.device)
        if tiles.dtype is None and torch.is_autocast_enabled(queries.device.type):
            return replace(tiles, dtype=torch.get_autocast_dtype(queries.device.type))
        return tiles


def _pair(value: Any) -> tuple[Any, Any]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise UsageError(f"temperature_range must be (lowest, highest), not {value!r}")
    return value[0], value[1]


def _alone(counts: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
    """`[B, P]`, which positives of which queries were compared with nothing."""
    found = torch.zeros(shape, dtype=torch.bool, device=next(iter(counts.values())).device)
    for count in counts.values():
        rows = count.view(shape) if len(count) == shape.numel() else count[:, None].expand(shape)
        found |= rows > 0
    return ~found
