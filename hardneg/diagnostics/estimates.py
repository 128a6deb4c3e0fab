"""Estimates with confidence intervals, and measurements by name."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from hardneg.storage.arrays import Float

Ids = list[str]

_MOST_WORTH = 100.0  # what one value may count for in the interval of a share

LISTED = 10  # number of example ids listed for a finding


@dataclass(frozen=True)
class Estimate:
    """A number that was estimated from a sample.

    Attributes:
        value: the estimate.
        low, high: the ends of its 95 % confidence interval: by Student's distribution for a mean, by Wilson's formula for a share.
        sample: the number of values that it was estimated from.

    >>> estimate = Estimate.mean_of(np.array([0.0, 1.0] * 50))
    >>> estimate.value, round(estimate.low, 3), round(estimate.high, 3), estimate.sample
    (0.5, 0.4, 0.6, 100)
    >>> nothing_found = Estimate.share_of(np.zeros(50))
    >>> nothing_found.value, round(nothing_found.low, 3), round(nothing_found.high, 3)
    (0.0, 0.0, 0.071)
    """

    value: float
    low: float
    high: float
    sample: int

    @classmethod
    def mean_of(cls, values: NDArray[Any]) -> Estimate:
        """Estimate the mean of independent values. Values that are not finite are left out; NaN if none remain.

        A single value has no interval: it is infinitely wide.
        """
        finite = _finite_of(values)
        count = len(finite)
        if count == 0:
            return cls(np.nan, np.nan, np.nan, 0)
        mean = float(finite.mean())
        if count == 1:
            return cls(mean, -np.inf, np.inf, 1)
        half = float(stdtrit(count - 1, 0.975)) * float(finite.std(ddof=1)) / float(np.sqrt(count))
        return cls(mean, mean - half, mean + half, count)

    @classmethod
    def share_of(cls, values: NDArray[Any], total: int | None = None) -> Estimate:
        """Estimate the mean of values between 0 and 1, such as the share of each query (Wilson 1927).

        Values that vary less than ones and zeros would count for more than one each: the number in Wilson's formula is the one with
        which a share of ones has their variance.

        Args:
            values: the values; those that are not finite are left out.
            total: how many there are altogether, if the values are a sample of them: of all, the mean is known exactly.
        """
        finite = _finite_of(values)
        count = len(finite)
        if count == 0:
            return cls(np.nan, np.nan, np.nan, 0)
        share = float(finite.mean())
        if total is not None and count >= total:
            return cls(share, share, share, count)
        spread, most = float(finite.var()), share * (1 - share)
        worth = count * min(most / spread, _MOST_WORTH) if spread > 0 else float(count)
        worth /= 1.0 if total is None else 1 - count / total
        z = 1.959964
        middle = (share + z * z / (2 * worth)) / (1 + z * z / worth)
        half = z / (1 + z * z / worth) * float(np.sqrt(most / worth + z * z / (4 * worth * worth)))
        return cls(share, max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share)), count)


def _finite_of(values: NDArray[Any]) -> NDArray[np.float64]:
    numbers = np.asarray(values, np.float64)
    return numbers[np.isfinite(numbers)]


@dataclass
class Measurements:
    """The measurements of negatives.

    Attributes:
        numbers: the measured values by name: an `Estimate`, a number, a list of numbers, or a word.
        ids: ids of example queries or documents, by name.
    """

    numbers: dict[str, Any] = field(default_factory=dict)
    ids: dict[str, Ids] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The measurements as JSON values. Numbers that are not finite become None."""
        numbers = {n: asdict(v) if isinstance(v, Estimate) else v for n, v in self.numbers.items()}
        return {"numbers": _finite(numbers), "ids": self.ids}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def sampled(total: int, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """int64: at most `most` of the rows 0 to `total` - 1, drawn without replacement and sorted."""
    return np.arange(total) if total <= most else np.sort(rng.choice(total, most, replace=False))


def skewness(values: NDArray[np.float64]) -> float:
    """The third moment of the values, centered and divided by their standard deviation; 0 if all are equal.

    >>> round(skewness(np.array([0.0, 0.0, 0.0, 4.0])), 3)
    1.155
    """
    spread = values.std()
    return float((((values - values.mean()) / spread) ** 3).mean()) if spread > 0 else 0.0


def unit(vectors: Any, rows: NDArray[np.integer]) -> Float:
    """float32 `[m, d]`: the given rows of `vectors`, normalized to length 1."""
    return normalized(vectors[np.asarray(rows)])


def normalized(vectors: Any) -> Float:
    """float32 `[m, d]`: the vectors, normalized to length 1."""
    array = np.asarray(vectors, np.float32)
    found: Float = array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)
    return found


def names_of(ids: Any, rows: NDArray[np.integer]) -> Ids:
    """The ids of the given rows."""
    return [ids[int(row)].as_py() for row in rows]


def finite_mean(values: NDArray[Any]) -> float:
    """The mean of the finite values; NaN if there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else np.nan


def row_means(values: NDArray[Any]) -> NDArray[np.float64]:
    """float64 `[n]`: the mean of the finite values in each row; NaN for a row without any.

    >>> row_means(np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan]])).tolist()
    [2.0, nan]
    """
    known = np.isfinite(values)
    count = known.sum(1)
    total = np.where(known, values, 0).astype(np.float64).sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def column_means(values: NDArray[Any]) -> NDArray[np.float64]:
    """The same as `row_means`, for each column."""
    return row_means(values.T)
