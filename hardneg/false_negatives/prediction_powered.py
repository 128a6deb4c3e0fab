"""Many judgements of a model, corrected by few of a person: exact tests and intervals for the share of false negatives.

A model judges many negatives, and errs. A person judges a random part of these. What the model said splits the negatives in two,
those that it calls relevant and those that it does not. In each half the person's judgements are a simple random sample, so the
share of false ones is estimated in each half, and weighted by the halves' sizes. That is prediction-powered inference for a mean
(Angelopoulos, Bates, Fannjiang, Jordan and Zrnic, Science 2023, arXiv 2301.09633) with the best use of a yes-or-no prediction
(post-stratification). The better the model, the less varies within the halves, and the narrower the interval; a useless model
widens nothing by much, and its errors bend nothing, since only the person's judgements are believed.

The intervals of that paper hold as samples grow large, and `normal_interval` is one of that kind, for people to read. What is
certified is exact, as false ones are rare: with F1 and F0 false ones in
the two halves, the numbers that the person finds are hypergeometric. The p-value is the highest chance of an estimate so low, over
all F1 and F0 with the sum that is tested; a tenth of the level is spent on leaving out such F1 and F0 as fit neither half (Berger
and Boos 1994). Where the model judged only a sample of the negatives, a fifth of the level is spent on the step from that sample to
all. Whichever of the steps fails, together they fail with at most the whole level.

A person's time is best spent where the model's answers vary most: see `allotted`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln
from scipy.stats import hypergeom, norm

from hardneg.false_negatives.guarantee import Test, fewest_above, level_of
from hardneg.storage.arrays import Mask

_TO_ALL = 0.2  # of the level, for the step from what the model judged to all negatives

_TO_FIT = 0.1  # of what is left, for leaving out numbers that do not fit

_MOST_CELLS = 4_000_000  # numbers in a table of chances at once


@dataclass(frozen=True)
class Halves:
    """What a model and a person found among the negatives of one threshold, for the model's two answers.

    Attributes:
        said: negatives that the model judged, by its answer: (relevant, not relevant).
        checked: how many of each a person judged.
        false: how many of each of those the person found relevant.
    """

    said: tuple[int, int]
    checked: tuple[int, int]
    false: tuple[int, int]

    @classmethod
    def of(cls, said: Mask, checked: Mask, relevant: Mask) -> Halves:
        """From the answers of the model, bool `[m]`; whether a person judged the pair, and found it relevant, bool `[m]`."""
        return cls(*(
            (int((said & each).sum()), int((~said & each).sum()))
            for each in (np.ones_like(said), checked, checked & relevant)
        ))  # fmt: skip

    @property
    def judged(self) -> int:
        return sum(self.said)

    @property
    def complement(self) -> Halves:
        """The same about the negatives that are not false."""
        return Halves(self.said, self.checked, (self.checked[0] - self.false[0], self.checked[1] - self.false[1]))

    @property
    def estimate(self) -> float:
        """The estimated number of false ones among those that the model judged. A half without a check counts as half false.

        >>> Halves(said=(100, 900), checked=(10, 90), false=(5, 1)).estimate
        60.0
        """
        return sum(n * (y / k if k else 0.5) for n, k, y in zip(self.said, self.checked, self.false, strict=True))


@dataclass(frozen=True)
class PoweredTest(Test):
    """The test of one threshold, with what a model said; see `Test` for what the person judged.

    Attributes:
        predicted: negatives that the model judged.
        said_false: how many of these it called relevant.
        estimate: the estimated share of false negatives.
        low, high: an interval of that share, by the normal approximation.
    """

    predicted: int
    said_false: int
    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Possible:
    """Bounds of the numbers of false ones in the halves: lowest and highest of the first, and of the second."""

    ones: tuple[int, int]
    zeros: tuple[int, int]

    @classmethod
    def every(cls, halves: Halves) -> Possible:
        return cls((0, halves.said[0]), (0, halves.said[1]))

    @classmethod
    def fitting(cls, halves: Halves, level: float) -> Possible:
        """Bounds that hold together with probability 1 - level or more."""
        bounds = []
        for size, checked, false in zip(halves.said, halves.checked, halves.false, strict=True):
            high = _last(size, partial(_at_most_likely, false, size, checked, level / 4))
            low = size - _last(size, partial(_at_most_likely, checked - false, size, checked, level / 4))
            bounds.append((low, high))
        return cls(*bounds)


def _at_most_likely(found: int, size: int, checked: int, level: float, false: int) -> bool:
    if false <= found:
        return True
    # Several times as fast as the distribution of scipy, which is called thousands of times.
    return bool(_pmf(size, np.array([false]), checked)[0, : found + 1].sum() > level)


def chance_of_so_few(halves: Halves, false: int, possible: Possible | None = None) -> float:
    """The highest chance of an estimate as low as this one, if `false` or more of those that the model judged are false.

    >>> round(chance_of_so_few(Halves((10, 90), (10, 90), (3, 2)), 5), 6), chance_of_so_few(Halves((10, 90), (10, 90), (3, 2)), 6)
    (1.0, 0.0)
    """
    (low1, high1), (low0, high0) = (box := possible or Possible.every(halves)).ones, box.zeros
    false = max(false, low1 + low0)  # more false ones only make so low an estimate less likely
    low, high = max(low1, false - high0), min(high1, false - low0)
    if low > high:
        return 0.0
    step = max(1, _MOST_CELLS // (sum(halves.checked) + 2))
    best = 0.0
    for start in range(low, high + 1, step):
        firsts = np.arange(start, min(start + step, high + 1))
        best = max(best, float(_chances(halves, firsts, false - firsts).max()))
    return min(best, 1.0)


def _chances(halves: Halves, ones: NDArray[np.int64], zeros: NDArray[np.int64]) -> NDArray[np.float64]:
    """The chance of so low an estimate for each pair of numbers of false ones in the halves."""
    first = _pmf(halves.said[0], ones, halves.checked[0])
    second = np.cumsum(_pmf(halves.said[1], zeros, halves.checked[1]), axis=1)
    (n1, n0), (k1, k0), (y1, y0) = halves.said, halves.checked, halves.false
    # In units of 1 / (k1 k0), so that equal estimates are equal whole numbers.
    w1, w0 = (n1 * max(k0, 1) if k1 else 0), (n0 * max(k1, 1) if k0 else 0)
    left = w1 * y1 + w0 * y0 - w1 * np.arange(k1 + 1, dtype=object)
    most = [k0 if w0 == 0 and rest >= 0 else (-1 if rest < 0 else min(k0, int(rest // w0))) for rest in left]
    place = np.array(most, np.int64)
    ways = np.where(place[None, :] >= 0, second[:, np.maximum(place, 0)], 0.0)
    chances: NDArray[np.float64] = (first * ways).sum(1)
    return chances


def _pmf(size: int, false: NDArray[np.int64], drawn: int) -> NDArray[np.float64]:
    """float64 `[f, drawn + 1]`: hypergeometric chances of 0 to `drawn` false ones, for each number of false ones of `size`."""
    found, f = np.arange(drawn + 1)[None, :], false[:, None]
    possible = (found <= f) & (drawn - found <= size - f)

    def ways(n: NDArray[np.int64], k: NDArray[np.int64]) -> NDArray[np.float64]:
        n, k = np.where(possible, n, 0), np.where(possible, k, 0)
        return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))

    whole = float(gammaln(size + 1) - gammaln(drawn + 1) - gammaln(size - drawn + 1))
    return np.where(possible, np.exp(ways(f, found) + ways(size - f, drawn - found) - whole), 0.0)


def powered_p(halves: Halves, negatives: int, alpha: float) -> float:
    """The p-value of a share of false negatives above alpha.

    Args:
        halves: what was found among the negatives that the model judged: all of them, or a simple random sample.
        negatives: the number of negatives.
        alpha: the allowed share.

    >>> round(powered_p(Halves((150, 1450), (60, 540), (12, 1)), 1600, 0.05), 7)
    7e-07
    """
    if sum(halves.checked) == 0:
        return 1.0
    above = fewest_above(negatives, alpha)
    low, high = -12.0, 0.0  # of the logarithm to base 10; what is lower is written as 1e-12
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (low, middle) if rejects(halves, negatives, above, 10.0**middle) else (middle, high)
    return float(10.0**high)


def rejects(halves: Halves, negatives: int, above: int, level: float) -> bool:
    """Whether so many false negatives, or more, are rejected at this level."""
    if level >= 1:
        return True
    few = above
    if halves.judged < negatives:
        few = _fewest_likely(halves.judged, negatives, above, _TO_ALL * level)
        level *= 1 - _TO_ALL
    return chance_of_so_few(halves, few, Possible.fitting(halves, _TO_FIT * level)) <= (1 - _TO_FIT) * level


def _fewest_likely(judged: int, negatives: int, false: int, level: float) -> int:
    """The smallest number c of false ones among the judged with P(at most c) above the level, if so many of all are false."""
    found = int(hypergeom.ppf(level, negatives, false, judged))
    while found > 0 and hypergeom.cdf(found - 1, negatives, false, judged) > level:
        found -= 1
    while hypergeom.cdf(found, negatives, false, judged) <= level:
        found += 1
    return found


def share_interval(halves: Halves, negatives: int, confidence: float) -> tuple[float, float]:
    """An exact interval of the share of false negatives: it holds the true share with at least this confidence.

    >>> low, high = share_interval(Halves((150, 1450), (60, 540), (12, 1)), 1600, 0.95)
    >>> round(low, 3), round(high, 3)
    (0.013, 0.03)
    """
    level = (1 - confidence) / 2
    high = _most_possible(halves, negatives, level)
    low = negatives - _most_possible(halves.complement, negatives, level)
    return low / negatives, high / negatives


def normal_interval(halves: Halves, negatives: int, confidence: float) -> tuple[float, float]:
    """An interval of the share of false negatives by the normal approximation, narrower than the exact one.

    One relevant and one other judgement are added in each half (Agresti and Coull 1998), or the interval would have no width where the
    person found none. How often it holds was measured: benchmarks/judges.py.

    >>> low, high = normal_interval(Halves((150, 1450), (60, 540), (12, 1)), 1600, 0.95)
    >>> round(low, 3), round(high, 3)
    (0.015, 0.031)
    """
    judged = max(halves.judged, 1)
    share = variance = 0.0
    for size, checked, false in zip(halves.said, halves.checked, halves.false, strict=True):
        found = (false + 1) / (checked + 2)
        left = 1 - checked / size if size else 0.0  # of the half, not checked
        share += size / judged * (found if left else false / max(checked, 1))
        variance += (size / judged) ** 2 * found * (1 - found) / (checked + 2) * left
    variance += share * (1 - share) / judged * max(0.0, 1 - judged / negatives)
    half = float(norm.ppf((1 + confidence) / 2)) * math.sqrt(variance)
    return max(0.0, share - half), min(1.0, share + half)


def _most_possible(halves: Halves, negatives: int, level: float) -> int:
    """The largest number of false negatives that is not rejected at this level."""
    whole = halves.judged == negatives
    first = level if whole else (1 - _TO_ALL) * level
    possible = Possible.fitting(halves, _TO_FIT * first)
    most = _last(halves.judged, lambda false: chance_of_so_few(halves, false, possible) > (1 - _TO_FIT) * first)
    if whole:
        return most
    return _last(negatives, partial(_at_most_likely, most, negatives, halves.judged, _TO_ALL * level))


def _last(high: int, holds: Callable[[int], bool]) -> int:
    """The last of 0 to `high` for which `holds`, which holds up to there and not beyond; 0 if for none."""
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def certify_powered(
    thresholds: Sequence[float],
    negatives: Sequence[int],
    halves: Sequence[Halves],
    alpha: float,
    confidence: float,
    look: int = 1,
) -> list[PoweredTest]:
    """Test all thresholds, which must ascend, at one look, as `guarantee.certify` does without a model."""
    tests, passing = [], True
    for threshold, count, found in zip(thresholds, negatives, halves, strict=True):
        p = powered_p(found, count, alpha) if count else 1.0
        passing = passing and p <= level_of(look, confidence)
        low, high = normal_interval(found, count, confidence) if count else (0.0, 1.0)
        share = found.estimate / max(found.judged, 1)
        tests.append(
            PoweredTest(
                float(threshold), int(count), sum(found.checked), sum(found.false), p, look, passing, found.judged,
                found.said[0], share, low, high,
            )
        )  # fmt: skip
    return tests


def allotted(said: tuple[int, int], checks: int, expected: tuple[float, float] = (0.3, 0.02)) -> tuple[int, int]:
    """How many of each half a person should check: in proportion to size and spread (Neyman 1934).

    Args:
        said: the sizes of the halves: called relevant, and not.
        checks: pairs that the person judges.
        expected: the share of false ones that is expected in each half. A wrong guess costs judgements, never the guarantee.

    >>> allotted((500, 3500), 300)
    (96, 204)
    """
    weights = [n * math.sqrt(share * (1 - share)) for n, share in zip(said, expected, strict=True)]
    checks = min(checks, sum(said))
    first = round(checks * weights[0] / max(sum(weights), 1e-12))
    first = min(said[0], max(first, checks - said[1], min(said[0], checks, 1)))
    return first, checks - first
