"""Staleness: how far the encoder has moved since a generation was built, and when that calls for the next one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from hardneg.errors import UsageError, suggestion
from hardneg.index.exact import ExactIndex
from hardneg.index.recall import others, shares_found

SAMPLE = 512  # documents that are encoded again to measure the drift

_FORMS = "Forms: never, epoch, steps:500, staleness:drift=0.05,overlap=0.7,check=100"
NEIGHBOURS = 10


@dataclass(frozen=True)
class Staleness:
    """Old vectors compared with fresh ones, on one random sample of documents.

    Attributes:
        drift: 1 - mean cosine between a document's old and fresh vector; 0: the encoder has not moved.
        overlap: share of the 10 nearest other documents of the sample that are the same in both; 1: the neighborhoods are
            unchanged, however far everything moved together.
        step: training step of the encoder that made the fresh vectors.
        sample: number of documents.
    """

    drift: float
    overlap: float
    step: int
    sample: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class SwapEntry(TypedDict, total=False):
    """An entry of the history of an index, written when a generation comes into use. Earlier versions noted less."""

    generation: int
    step: int
    in_use_from: int
    drift: float
    overlap: float
    recall: float
    carry_error: float
    seconds: dict[str, float]


def movement_of(index: Any) -> dict[str, float]:
    """`drift` and `overlap` as an index knows them: measured since its generation came into use, else those of the last refresh.

    Nothing before the first of these: then it is not known how far the encoder has moved.
    """
    now: Staleness = index.staleness
    if now.sample:
        return {"drift": now.drift, "overlap": now.overlap}
    last = index.history[-1] if index.history else {}
    return {name: float(last[name]) for name in ("drift", "overlap") if name in last}


def staleness_between(
    before: NDArray[np.floating], after: NDArray[np.floating], step: int, metric: str = "cosine"
) -> Staleness:
    """Compare old and fresh vectors `[m, d]` of the same documents; `metric` decides which are the nearest of each."""
    if len(before) == 0:
        return Staleness(0.0, 1.0, step, 0)
    old, new = (vectors.astype(np.float64) for vectors in (before, after))
    norms = np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1)
    cosines = (old * new).sum(1) / np.maximum(norms, 1e-30)
    k = min(NEIGHBOURS + 1, len(before))
    rows = np.arange(len(before))
    near = [
        others(ExactIndex(vectors, metric, threads=1).search(vectors, k).documents, rows) for vectors in (before, after)
    ]
    overlap = float(shares_found(near[0], near[1]).mean()) if k > 1 else 1.0
    return Staleness(float(1 - cosines.mean()), overlap, step, len(before))


@dataclass(frozen=True)
class Schedule:
    """When a new generation is due: as soon as one of the given conditions holds.

    Attributes:
        steps: this many steps after the last one was started.
        epoch: at the end of every epoch.
        drift, overlap: when the measured drift is above, or the overlap below, this value.
        check: steps between two measurements of the staleness.
    """

    steps: int | None = None
    epoch: bool = False
    drift: float | None = None
    overlap: float | None = None
    check: int = 100

    def __post_init__(self) -> None:
        if (self.steps is not None and self.steps < 1) or self.check < 1:
            raise UsageError("a schedule's steps and check must be 1 or more")
        for name in ("drift", "overlap"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"a schedule's {name}={value} must be between 0 and 1")

    @property
    def measures(self) -> bool:
        return self.drift is not None or self.overlap is not None

    def stale(self, staleness: Staleness) -> bool:
        """Whether this staleness calls for a new generation."""
        return (self.drift is not None and staleness.drift > self.drift) or (
            self.overlap is not None and staleness.overlap < self.overlap
        )

    @classmethod
    def parse(cls, spec: str) -> Schedule:
        """The schedule that a text describes: ``never``, ``steps:500``, ``epoch`` or ``staleness:drift=0.05,overlap=0.7``.

        >>> Schedule.parse("steps:500").steps
        500
        """
        if not isinstance(spec, str):
            raise UsageError(f"schedule {spec!r} is no text. {_FORMS}")
        kind, _, rest = spec.partition(":")
        try:
            if kind == "never" and not rest:
                return cls()
            if kind == "epoch" and not rest:
                return cls(epoch=True)
            if kind == "steps" and rest:
                return cls(steps=int(rest))
            if kind == "staleness":
                given = dict(part.split("=", 1) for part in rest.split(",")) if rest else {"drift": "0.05"}
                unknown = set(given) - {"drift", "overlap", "check"}
                if unknown:
                    raise UsageError(
                        f"schedule {spec!r}: {sorted(unknown)[0]!r} is unknown; known: drift, overlap, check"
                    )
                values: dict[str, Any] = {n: int(v) if n == "check" else float(v) for n, v in given.items()}
                return cls(**values)
        except ValueError:
            raise UsageError(f"schedule {spec!r} holds something that is no number, or a part without '='") from None
        raise UsageError(
            f"unknown schedule {spec!r}.{suggestion(kind, ('never', 'epoch', 'steps', 'staleness'))} {_FORMS}"
        )
