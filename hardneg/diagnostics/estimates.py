"""Estimates with intervals, and measurements by name."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.storage.arrays import Float

Ids = list[str]

LISTED = 10  # ids named with a finding


@dataclass(frozen=True)
class Estimate:
    """A number that was estimated from a sample.

    Attributes:
        value: the estimate.
        low, high: the ends of a 95 % interval (normal approximation).
        sample: the number of values that the estimate is based on.
    """

    value: float
    low: float
    high: float
    sample: int

    @classmethod
    def mean_of(cls, values: NDArray[Any]) -> Estimate:
        """The mean of independent values, with its interval; all NaN if there are none."""
        found = np.asarray(values, np.float64)
        found = found[np.isfinite(found)]
        if len(found) == 0:
            return cls(np.nan, np.nan, np.nan, 0)
        mean, half = float(found.mean()), 1.96 * float(found.std()) / float(np.sqrt(len(found)))
        return cls(mean, mean - half, mean + half, len(found))

    @classmethod
    def share_of(cls, values: NDArray[Any]) -> Estimate:
        """The mean of values between 0 and 1, with an interval within these limits."""
        found = cls.mean_of(values)
        return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0)) if found.sample else found


@dataclass
class Measurements:
    """Numbers by name, and ids of examples by name."""

    numbers: dict[str, Any] = field(default_factory=dict)
    ids: dict[str, Ids] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        numbers = {n: asdict(v) if isinstance(v, Estimate) else v for n, v in self.numbers.items()}
        return {"numbers": _finite(numbers), "ids": self.ids}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def sampled(total: int, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """At most this many of `total` rows, sorted."""
    return np.arange(total) if total <= most else np.sort(rng.choice(total, most, replace=False))


def unit(vectors: Any, rows: NDArray[np.integer]) -> Float:
    """float32 `[m, d]`: these rows, normalized."""
    chosen = np.asarray(vectors[np.asarray(rows)], np.float32)
    of_length_one: Float = chosen / np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-12)
    return of_length_one


def names_of(ids: Any, rows: NDArray[np.integer]) -> Ids:
    return [ids[int(row)].as_py() for row in rows]


def finite_mean(values: NDArray[Any]) -> float:
    found = values[np.isfinite(values)]
    return float(found.mean()) if len(found) else np.nan


def row_means(values: NDArray[Any]) -> NDArray[np.float64]:
    """The mean of the finite values in each row; NaN if there are none."""
    known = np.isfinite(values)
    count = known.sum(1)
    total = np.where(known, values, 0).astype(np.float64).sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def column_means(values: NDArray[Any]) -> NDArray[np.float64]:
    return row_means(values.T)
