"""Learn a posterior from known positives alone, without any judgement (see `draws` for the likelihood).

Two stages. The first asks what the query says of a candidate: score, rank, how the scores of the query spread, shared neighbors,
and the votes of similar queries. It never looks at the query's own positive, as that would tell which candidate was drawn. The
second adds what the positive says: among candidates that look alike to the first stage, those that share more neighbors with the
known positive are more likely to be relevant. How much more follows from a regression of that similarity on the first stage's
P(relevant): the coefficient is how far relevance moves it, and with its variance it gives a likelihood ratio. But as all shared
neighbors are measured in one way, those with the positive count at least 0.6 times as much as the others do. The level stays: for
every term of the first stage, the mean of P is kept (generalized expectation criteria, Mann and McCallum 2010).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import chi2
from threadpoolctl import threadpool_limits

from hardneg.errors import DataError
from hardneg.false_negatives.draws import Draws, Fit, at_level, fit_draws, improved, score_draws
from hardneg.false_negatives.features import OF_QUERY, Term
from hardneg.false_negatives.logistic import fit_around
from hardneg.false_negatives.model import LogisticModel
from hardneg.storage.arrays import Float, Int, Mask

Double = NDArray[np.float64]

# All that the query says of a candidate.
ASKED = (
    "shared_query", "shared_votes", "score", "score_below", "score_z", "score_gap", "best_score", "score_mean",
    "score_spread", "local_score_query", "log_rank",
)  # fmt: skip

# Of these, what a sketch can say of any document, for the loss of a training.
SKETCHED = ("shared_query", "shared_votes")

POSITIVE = "shared_positive"

_KNOTS = (0.5, 0.75, 0.9, 0.97, 0.99, 0.997)  # quantiles at which hinges start

_FEW_KNOTS = (0.5, 0.9)  # the same for few queries

_FEW = 500  # queries: with fewer, fewer hinges, and the highest level of the range

_FEWEST = 20  # known positives among the candidates

_PART = 0.75  # of the log likelihood ratio: what the positive says and what the query says overlap

_SIGNIFICANT = 0.3  # smallest move of the similarity by relevance, in standard deviations

_LIKELY = 2.0  # log likelihood that a level may be below the best one: a range of 95 % (Wilks 1938)

# Log likelihood by which what was learned must foretell other queries better than nothing does. The ratio is an e-value: where
# there is nothing to learn, it is above exp(5) in one set of 150 or less.
_INFORMED = 5.0

_CAUTIOUS = 0.5  # the same for the level that is used, the highest such one: one standard deviation

_STEP = 0.5  # of the level

_BOTH = 1000  # queries up to which the search starts anew from both levels, instead of from the fit of one half

_CONSTANT = 1e-4  # standard deviation, in units of the largest value: below, a term is constant

_ALIKE = 0.6  # of the weight of other shared neighbors: what the positive's are worth at least, as all are measured in one way

_LIMIT = 6.0  # of a log likelihood ratio


@dataclass(frozen=True)
class Learnable:
    """Candidates to learn from.

    Attributes:
        values: features of m candidates, by name.
        known: bool `[m]`, True for known positives (for the hidden ones, if some were hidden).
        query: int64 `[m]`, rows of the dataset. The candidates of a query stand together.
        document: int32 `[m]`, rows of the dataset.
        counts: float64 `[m]`, how many candidates each stands for, if they are a sample; 0 for known positives outside it.
        positives: int64 `[m]`, number of known positives of the query of each candidate, found or not.
    """

    values: dict[str, Float]
    known: Mask
    query: Int
    document: NDArray[np.int32]
    counts: Double
    positives: Int


class _Table:
    """Terms of candidates as columns, each with mean 0 and standard deviation 1. Hinges start at the quantiles `knots`."""

    def __init__(
        self, values: Mapping[str, Float], names: tuple[str, ...], knots: tuple[float, ...], counts: Double
    ) -> None:
        self.terms = [term for name in names for term in _terms(name, values[name], knots, counts)]
        columns = np.stack([term.of(values) for term in self.terms], 1).astype(np.float32)
        self.mean, deviation = columns.mean(0, dtype=np.float64), columns.std(0, dtype=np.float64)
        # What differs by rounding only tells nothing, and would get a huge weight.
        constant = deviation <= _CONSTANT * np.abs(columns).max(0, initial=0)
        self.deviation = np.where(constant, 1.0, deviation)
        self.columns: Float = np.where(constant, 0, (columns - self.mean) / self.deviation).astype(np.float32)

    @property
    def signs(self) -> Int:
        return np.array([term.direction for term in self.terms], np.int64)

    def logistic(self, weights: Double, intercept: float, **more: float) -> LogisticModel:
        """The same model for unscaled terms. `more`: weights of other features, unscaled."""
        plain = np.where(self.columns.any(0), weights / self.deviation, 0.0)
        used = np.flatnonzero(plain)
        names = [str(self.terms[i]) for i in used]
        return LogisticModel(
            (*names, *more), (*map(float, plain[used]), *more.values()), float(intercept - plain @ self.mean)
        )


def _terms(name: str, values: Float, knots: tuple[float, ...], counts: Double) -> list[Term]:
    if not knots or name in OF_QUERY or name == "score_gap":
        return [Term(name)]
    falling = Term(name).direction < 0
    wanted = [1 - each for each in knots] if falling else list(knots)
    here = counts > 0
    places = np.quantile(values[here].astype(np.float64), wanted, weights=counts[here], method="inverted_cdf")
    short = dict.fromkeys(float(f"{place:.6g}") for place in places)
    return [Term(name), *(Term(name, "<" if falling else ">", knot) for knot in short)]


def fit_known(
    data: Learnable, *, names: tuple[str, ...] = ASKED, hidden: bool = False, hinged: bool = True, seed: int = 0
) -> tuple[LogisticModel, dict[str, Any]]:
    """Fit a logistic model without any judgement (positive-unlabelled learning).

    Args:
        data: candidates with the features `names` and `shared_positive`.
        names: what the query says of a candidate; no feature that compares it with the query's own positive.
        hidden: whether the known positives were hidden when the features were computed. What the others say is then a feature
            like all others.
        hinged: whether features have hinges.
        seed: seed of the draw among several known positives of a query, and of the halves that test the fit.

    Returns:
        The model, and a report. If nothing tells known positives from other candidates, the report has an entry `uninformative`,
        and the probability is the same for all.

    Raises:
        DataError: fewer than 20 queries have a known positive among the candidates.
    """
    names = (*names, *([POSITIVE] if hidden else []))
    used, draws_of = _drawn(data, np.random.default_rng(seed))
    found, asked = int((draws_of[1] >= 0).sum()), len(np.unique(data.query))
    if found < _FEWEST:
        more = "raise --depth" if found < asked else "give more pairs"
        raise DataError(
            f"only {found} of {asked} queries have their known positive among the candidates, too few to learn from ({_FEWEST} are "
            f"the least): {more}, or judge candidates (hardneg judge)"
        )
    values = {name: data.values[name][used] for name in (*names, POSITIVE)}
    counts = np.where(data.known[used], 0.0, data.counts[used])
    drawn_counts = data.counts[used]  # the drawn ones are candidates like all others
    knots = _KNOTS if len(draws_of[0]) >= _FEW else _FEW_KNOTS
    table = _Table(values, names, knots if hinged else (), drawn_counts)
    draws = Draws(table.columns, drawn_counts, draws_of[0], draws_of[1], table.signs)
    with threadpool_limits(1):  # the last bits of a product of matrices depend on the number of threads
        return _fitted(draws, table, counts, values, names[0], hidden, seed)


def _fitted(
    draws: Draws, table: _Table, counts: Double, values: Mapping[str, Float], name: str, hidden: bool, seed: int
) -> tuple[LogisticModel, dict[str, Any]]:
    learned, report = _tested(draws, seed)
    best = fit_draws(draws) if len(draws.starts) <= _BOTH else improved(draws, learned)
    if report["gain"] <= _INFORMED:
        return _uninformed(name, draws, report)
    low, fit, high = _levels(draws, best)
    prior = expit(fit.logit(draws.table))
    report |= _numbers(draws, counts, low, fit, high)
    if hidden:
        return table.logistic(fit.weights, fit.intercept), report
    weights, intercept, of_positive = _with_positive(table, fit, prior, counts, values)
    report["positive_weight"] = of_positive
    return table.logistic(weights, intercept, **{POSITIVE: of_positive}), report


def _drawn(data: Learnable, rng: np.random.Generator) -> tuple[Int, tuple[Int, Int]]:
    """Take one known positive of each query as the drawn one, and leave the others out.

    Returns:
        The rows of `data` that are used; and of these, the first of each query, and the drawn one of each query (-1: not found).
    """
    begins = np.append(True, data.query[1:] != data.query[:-1])
    first, number = np.flatnonzero(begins), np.cumsum(begins) - 1
    # The place of a random one among the known positives of each query; those that were found come first.
    place = rng.integers(data.positives[first])
    order = np.cumsum(data.known) - 1
    order -= np.where(data.known[first], order[first], order[first] + 1)[number]
    drawn = data.known & (order == place[number])
    keep = drawn | ~data.known
    rows = np.flatnonzero(keep)
    _, starts = np.unique(number[rows], return_index=True)
    of_query = np.full(len(first), -1)
    of_query[number[rows[drawn[rows]]]] = np.flatnonzero(drawn[rows])
    return rows, (starts.astype(np.int64), of_query[np.unique(number[rows])])


def _tested(draws: Draws, seed: int) -> tuple[Fit, dict[str, Any]]:
    """Learn from one half of the queries, and see how well the other half is foretold.

    Returns:
        The fit of that half, and a report.

    `gain` is the log likelihood over that of a fit that knows nothing of the candidates. `reliability` has for groups of
    candidates, from the least to the most likely: mean P(relevant), the sum of P(known), and how many are the known one. `agreement`
    is the chance of differences between foretold and found as large as these (chi-square test).
    """
    half = np.random.default_rng(seed).permutation(len(draws.starts)) < len(draws.starts) // 2
    ours, rest = draws.part(half), draws.part(~half)
    learned = fit_draws(ours)
    nothing = fit_draws(ours.without_terms())
    gains = score_draws(rest, learned) - score_draws(rest.without_terms(), nothing)
    gain = float(gains.sum())
    relevant = learned.relevant(rest)
    pi = expit(learned.logit(rest.table))
    chance = rest.counts * pi / rest.repeated(relevant + learned.not_found(relevant))
    is_drawn = np.zeros(len(pi), bool)
    is_drawn[rest.drawn[rest.found]] = True
    order = np.argsort(pi, kind="stable")
    reached = np.cumsum(chance[order])
    cuts = np.searchsorted(reached, np.linspace(0, reached[-1], 11)[1:-1])
    groups = [
        [float(pi[g].mean()), float(chance[g].sum()), int(is_drawn[g].sum())]
        for g in np.split(order, np.unique(cuts))
        if len(g)
    ]
    foretold, seen = np.array([[expected, count] for _, expected, count in groups]).T
    statistic = float(((seen - foretold) ** 2 / np.maximum(foretold, 1.0)).sum())
    return learned, {
        "gain": gain,
        "reliability": groups,
        "agreement": float(chi2.sf(statistic, len(groups))),
    }


def _levels(draws: Draws, best: Fit) -> tuple[Fit, Fit, Fit]:
    """The lowest level that is nearly as likely as the best one, the level to use, and the highest."""
    edges: list[Fit] = []
    cautious = best
    for step in (-_STEP, _STEP):
        last = best
        for _ in range(16):
            tried = at_level(draws, last, last.intercept + step)
            drop = tried.loss - best.loss
            if drop > _LIKELY:
                # The log likelihood is about a parabola: go to where it crosses.
                before = max(last.loss - best.loss, 0.0)
                share = (np.sqrt(_LIKELY) - np.sqrt(before)) / max(np.sqrt(drop) - np.sqrt(before), 1e-9)
                last = at_level(draws, last, last.intercept + step * float(np.clip(share, 0, 1)))
                break
            last = tried
            if step > 0 and drop <= _CAUTIOUS:
                cautious = tried
        edges.append(last)
    if len(draws.starts) < _FEW:
        return edges[0], edges[1], edges[1]
    if cautious is best:  # within the first step up
        width = (edges[1].intercept - best.intercept) * float(np.sqrt(_CAUTIOUS / _LIKELY))
        cautious = at_level(draws, best, best.intercept + width)
    return edges[0], cautious, edges[1]


def _numbers(draws: Draws, counts: Double, low: Fit, fit: Fit, high: Fit) -> dict[str, Any]:
    """What the fit says of the number of relevant documents, with the range of levels."""
    found, rest = int(draws.found.sum()), float(counts.sum())
    fitted = [float(each.relevant(draws).sum()) for each in (low, fit, high)]
    # Those that are known are relevant, whatever the fit says of them; of the others it says how likely each is.
    others = [float(counts @ expit(each.logit(draws.table))) for each in (low, fit, high)]
    others = [min(others), others[1], max(others)]
    totals, shares = [found + each for each in others], [min(each / max(rest, 1.0), 1.0) for each in others]
    logit = fit.logit(draws.table)
    return {
        "known_positives": found,
        "queries": len(draws.starts),
        "candidates": int(rest),
        "relevant_share": shares[1],
        "relevant_share_range": [shares[0], shares[2]],
        "relevant_per_query": totals[1] / len(draws.starts),
        "relevant_per_query_range": [total / len(draws.starts) for total in (totals[0], totals[2])],
        "relevant_not_found": float(fit.not_found(fit.relevant(draws)).mean()),
        "level_range": [_shift(logit, draws.counts, total) for total in (min(fitted), max(fitted))],
        "assumption": "the known positive of a query is a random one of its relevant documents; where known positives are "
        "the most obvious ones, false negatives are rarer than said",
    }


def _shift(logit: Double, counts: Double, total: float) -> float:
    """What to add to the log odds, so that their probabilities sum to `total`."""
    low, high = -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if counts @ expit(logit + middle) < total else (low, middle)
    return low


def _uninformed(name: str, draws: Draws, report: dict[str, Any]) -> tuple[LogisticModel, dict[str, Any]]:
    reason = (
        "neither scores nor shared neighbors tell the known positives from other candidates, so no candidate is more "
        "suspect than another: nothing is rejected. Do the vectors belong to these texts?"
    )
    found, rest = int(draws.found.sum()), float(draws.counts.sum())
    share = min(max(found / max(rest, 1.0), 1e-4), 0.5)
    numbers = {"known_positives": found, "queries": len(draws.starts), "candidates": int(rest), "relevant_share": share}
    model = LogisticModel((name,), (0.0,), float(np.log(share / (1 - share))))
    return model, {**report, **numbers, "uninformative": reason}


def _with_positive(
    table: _Table, fit: Fit, prior: Double, counts: Double, values: Mapping[str, Float]
) -> tuple[Double, float, float]:
    """Weights of the scaled terms, intercept, and the weight of `shared_positive`."""
    seen = values[POSITIVE].astype(np.float64)
    columns = np.concatenate([table.columns, np.ones((len(seen), 1), np.float32)], 1)
    weight = counts * np.maximum(prior, 0.02)
    design = np.concatenate([columns, prior[:, None].astype(np.float32)], 1)
    scaled = design * weight.astype(np.float32)[:, None]
    inner = (design.T @ scaled).astype(np.float64) + 1e-3 * weight.sum() / len(weight) * np.eye(design.shape[1])
    found = np.linalg.solve(inner, (scaled.T @ seen.astype(np.float32)).astype(np.float64))
    rest = seen - design @ found
    variance = max(float(weight @ rest**2 / max(weight.sum(), 1e-12)), 1e-6)
    gain = max(float(found[-1]), _SIGNIFICANT * float(np.sqrt(variance)))
    if np.std(seen) <= _CONSTANT * np.abs(seen).max(initial=0):
        return fit.weights, fit.intercept, 0.0
    slope = max(_PART * gain / variance, _ALIKE * _steepness(table, fit, prior, counts, values))
    slope = min(slope, _LIMIT / max(float(np.std(rest)), 1e-6) / 2)
    start = np.concatenate([fit.weights, [fit.intercept]]) - slope * found[:-1]
    # The mean of P, weighted by each column, is then that of `prior`.
    solved = fit_around(columns, prior, counts / counts.sum(), start, np.full(len(start), 1e-5), slope * seen)
    return solved[:-1], float(solved[-1]), slope


def _steepness(table: _Table, fit: Fit, prior: Double, counts: Double, values: Mapping[str, Float]) -> float:
    """How steeply the log odds rise with the shared neighbors, where candidates are uncertain: the mean slope over `SKETCHED`.

    The slope is that of a line through what the terms of a feature add (least squares): a hinge that few candidates reach may be
    as steep as it likes.
    """
    weights, unsure = fit.weights / table.deviation, counts * prior * (1 - prior)
    share = unsure / max(float(unsure.sum()), 1e-12)
    slopes = []
    for name in SKETCHED:
        seen = values[name].astype(np.float64)
        added = np.zeros(len(seen))
        for term, weight in zip(table.terms, weights, strict=True):
            if term.feature == name:
                added += weight * term.of(values)
        away = seen - share @ seen
        slopes.append(float(share @ (away * (added - share @ added))) / max(float(share @ away**2), 1e-12))
    return float(np.mean(slopes))
