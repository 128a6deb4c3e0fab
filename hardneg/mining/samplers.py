"""Samplers choose the negatives among the kept candidates.

Each one draws without replacement by the Gumbel-top-k trick (Vieira 2014; Kool et al., arXiv 1903.06059): adding Gumbel noise to
log weights and taking the largest samples in proportion to the weights. The noise of a query and rank depends only on the
seed, the query's id and the rank, so a subset of the queries, or another order, gives the same negatives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hardneg.data.id_rows import hash_ids
from hardneg.errors import UsageError
from hardneg.hashing import UInt, mix
from hardneg.mining.candidates import Candidates
from hardneg.mining.filters.base import described
from hardneg.mining.spec_options import SpecOptions, written_spec
from hardneg.storage.arrays import Mask

_LEAST = -1e300  # the least log weight of a candidate that can be drawn


class Sampler(Protocol):
    """Chooses negatives among the kept candidates. Any object with this one method is a sampler."""

    def log_weights(self, candidates: Candidates) -> NDArray[np.float64] | None:
        """float64 `[n, K]`: log weights, up to a constant per row; -inf: never draw this candidate.

        None: take the nearest candidates, without randomness.
        """
        ...


@dataclass(frozen=True)
class NamedSampler:
    """Base class of the built-in samplers, which have a name and a spec."""

    name: ClassVar[str]

    @property
    def spec(self) -> str:
        """The sampler as text: its name, and the fields that differ from their defaults.

        >>> Softmax(temperature=0.1).spec
        'softmax:temperature=0.1'
        """
        return written_spec(self, self.name)


@dataclass(frozen=True)
class Top(NamedSampler):
    """Takes the nearest candidates."""

    name = "top"

    def log_weights(self, candidates: Candidates) -> None:
        return None


@dataclass(frozen=True)
class Uniform(NamedSampler):
    """Draws all candidates with equal probability."""

    name = "uniform"

    def log_weights(self, candidates: Candidates) -> NDArray[np.float64]:
        return np.zeros(candidates.scores.shape)


@dataclass(frozen=True)
class Softmax(NamedSampler):
    """Draws in proportion to exp(score / temperature)."""

    name = "softmax"

    temperature: float = 0.05

    def __post_init__(self) -> None:
        _check_number("softmax", "temperature", self.temperature, 1e-6)

    def log_weights(self, candidates: Candidates) -> NDArray[np.float64]:
        return candidates.scores / np.float64(self.temperature)


@dataclass(frozen=True)
class SimANS(NamedSampler):
    """Draws near the positive's score, in proportion to exp(-a (s - p - b)^2) (SimANS, arXiv 2210.11773).

    With several positives, p is the lowest score; without one, all candidates are equally likely. The paper's a = 1 is for inner
    products of several units; cosines differ by hundredths, hence the default of 100.
    """

    name = "simans"

    a: float = 100.0
    b: float = 0.0

    def __post_init__(self) -> None:
        _check_number("simans", "a", self.a, 0)
        _check_number("simans", "b", self.b, -math.inf)

    def log_weights(self, candidates: Candidates) -> NDArray[np.float64]:
        positive = candidates.positive_scores.astype(np.float64)[:, None]
        with np.errstate(over="ignore"):
            weights = -self.a * (candidates.scores - positive - self.b) ** 2
        # An extreme `b` overflows to -inf, which would mean "never". Such candidates are the least likely ones instead.
        weights = np.maximum(weights, _LEAST)
        return np.where(np.isnan(positive) | (self.a == 0), 0.0, weights)


def top_from_spec(v: SpecOptions) -> Sampler:
    return Top()


def uniform_from_spec(v: SpecOptions) -> Sampler:
    return Uniform()


def softmax_from_spec(v: SpecOptions) -> Sampler:
    temperature = v.number("temperature", 0.05, 1e-6)
    assert temperature is not None
    return Softmax(temperature=temperature)


def simans_from_spec(v: SpecOptions) -> Sampler:
    a, b = v.number("a", 100.0, 0), v.number("b", 0.0)
    assert a is not None
    assert b is not None
    return SimANS(a=a, b=b)


def _check_number(sampler: str, name: str, value: Any, low: float) -> None:
    """Raise UsageError unless `value` is a finite number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise UsageError(f"sampler {sampler!r}: {name}={value!r} is not a number")
    if not math.isfinite(value) or value < low:
        bound = f"{low:g} or more" if low > -math.inf else "a finite number"
        raise UsageError(f"sampler {sampler!r}: {name}={value!r} must be {bound}")


def draw(sampler: Sampler, candidates: Candidates, kept: Mask, count: int, seed: int, keys: UInt) -> NDArray[np.int64]:
    """Draw candidates and return their columns.

    Args:
        sampler: the source of the weights.
        candidates: the candidates of n queries.
        kept: bool `[n, K]`, True where the candidate may be drawn.
        count: number of candidates to draw for each query.
        seed: seed of the Gumbel noise.
        keys: uint64 `[n]`, a hash of each query's id (see `query_keys`).

    Returns:
        int64 `[n, count]`, columns in order of rank; -1 where a query has fewer candidates that can be drawn.

    Raises:
        UsageError: the sampler returned something else than log weights, or NaN for a kept candidate.
    """
    n, width = kept.shape
    with np.errstate(invalid="ignore"):  # scores of -inf where there is no document
        weights = _checked(sampler.log_weights(candidates), sampler, kept)
    if weights is None:
        position = np.cumsum(kept, axis=1)
        rows, columns = np.nonzero(kept & (position <= count))
        out = np.full((n, count), -1, np.int64)
        out[rows, position[rows, columns] - 1] = columns
        return out
    kept = kept & (weights > -np.inf)
    values = np.where(kept, weights + gumbel(seed, keys, width), -np.inf)
    chosen = np.argsort(-values, axis=1, kind="stable")[:, :count]
    if chosen.shape[1] < count:
        chosen = np.pad(chosen, ((0, 0), (0, count - chosen.shape[1])), constant_values=width)
    real = np.take_along_axis(np.pad(kept, ((0, 0), (0, 1))), np.minimum(chosen, width), axis=1)
    chosen = np.sort(np.where(real, chosen, width), axis=1)
    return np.where(chosen < width, chosen, -1)


def _checked(weights: Any, sampler: Sampler, kept: Mask) -> NDArray[np.float64] | None:
    """What `log_weights` returned, as float64; UsageError if it is something else than log weights of these candidates."""
    if weights is None:
        return None
    name = getattr(sampler, "name", None)
    name = name if isinstance(name, str) else type(sampler).__name__
    if not isinstance(weights, np.ndarray) or weights.dtype.kind not in "fiu" or weights.shape != kept.shape:
        raise UsageError(
            f"the sampler {name!r}: its log_weights must return a numpy array of floats of shape {kept.shape}, or None, "
            f"but it returned {described(weights)}"
        )
    if np.isnan(weights[kept]).any():
        raise UsageError(
            f"the sampler {name!r} gives {int(np.isnan(weights[kept]).sum()):,} candidates the log weight NaN: it must be "
            f"a number, or -inf for a candidate that is never drawn"
        )
    return weights.astype(np.float64, copy=False)


def gumbel(seed: int, keys: UInt, width: int) -> NDArray[np.float64]:
    """float64 `[n, width]`: standard Gumbel noise that depends only on seed, key and column."""
    columns = np.arange(1, width + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits = mix(mix(keys ^ mix(np.array([seed], np.uint64) + np.uint64(1)))[:, None] + columns)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def query_keys(ids: pa.Array) -> UInt:
    """uint64 `[n]`: a hash of each id, used only as a seed."""
    return hash_ids(ids)
