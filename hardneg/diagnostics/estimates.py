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
        value: the estimate; low, high: ends of an interval of 95 % (normal approximation).
        sample: what it rests on.
    """

    value: float
    low: float
    high: float
    sample: int

    @classmethod
    def mean_of(cls, values: NDArray[Any]) -> Estimate:
        """Of the mean of independent values; all NaN without any."""
        found = np.asarray(values, np.float64)
        found = found[np.isfinite(found)]
        if len(found) == 0:
            return cls(np.nan, np.nan, np.nan, 0)
        mean, half = float(found.mean()), 1.96 * float(found.std()) / float(np.sqrt(len(found)))
        return cls(mean, mean - half, mean + half, len(found))

    @classmethod
    def share_of(cls, values: NDArray[Any]) -> Estimate:
        """The same of values between 0 and 1, with an interval that is within them."""
        found = cls.mean_of(values)
        return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0)) if found.sample else found


@dataclass
class Measurements:
    """Numbers by name, and ids to look at by name."""

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
    """At most so many of `total` rows, sorted."""
    return np.arange(total) if total <= most else np.sort(rng.choice(total, most, replace=False))


def unit(vectors: Any, rows: NDArray[np.integer]) -> Float:
    """float32 `[m, d]`: these rows, of length 1."""
    chosen = np.asarray(vectors[np.asarray(rows)], np.float32)
    of_length_one: Float = chosen / np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-12)
    return of_length_one


def names_of(ids: Any, rows: NDArray[np.integer]) -> Ids:
    return [ids[int(row)].as_py() for row in rows]


def finite_mean(values: NDArray[Any]) -> float:
    found = values[np.isfinite(values)]
    return float(found.mean()) if len(found) else np.nan


def row_means(values: NDArray[Any]) -> NDArray[np.float64]:
    """Mean of each row's finite values, NaN without any."""
    known = np.isfinite(values)
    count = known.sum(1)
    total = np.where(known, values, 0).astype(np.float64).sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def column_means(values: NDArray[Any]) -> NDArray[np.float64]:
    return row_means(values.T)
