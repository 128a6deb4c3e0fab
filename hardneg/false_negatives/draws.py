"""The likelihood of known positives as draws: how P(relevant) is learned without a single judgement.

The known positive of a query is one draw from its relevant documents (selected completely at random, Elkan and Noto 2008). So
with P(relevant) of pi_d for the candidates d of a query, the chance that the known one is d is

    P(known = d) = pi_d / (S + outside),    S = sum of pi over the query's candidates,    pi_d = sigmoid(h(x_d)).

`outside` is the expected number of relevant documents that are not among the candidates; it is exp(a) (1 + S)^-b, as a query
with many relevant documents among its candidates has fewer elsewhere. A query whose known positive was not found counts with
P = outside / (S + outside).

Maximizing this likelihood gives the order of the candidates and the level too: a query with many good candidates explains by
itself why each is so seldom the known one, and as the sigmoid saturates, candidates that are all relevant are equally likely to
be the known one. No share of labelled documents has to be guessed.

The table of the terms is scaled, each weight has the sign that it must have, and a weak Gaussian prior keeps weights small. The
maximum is found by projected Newton steps with the Fisher information in place of the Hessian, corrected from step to step by
how the gradient changes (BFGS), as computing it is the largest part of the work. The level has several local maxima, so the
search starts from a low and from a high one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import lsq_linear
from scipy.special import expit

from hardneg.storage.arrays import Float, Int, Mask

Double = NDArray[np.float64]

_STARTS = (-7.0, -1.0)  # intercepts to start from

_OUTSIDE = np.array([-1.0, 0.0])  # a and -b to start from

_OUTSIDE_LOW, _OUTSIDE_HIGH = np.array([-9.0, -4.0]), np.array([9.0, 0.0])

_OUTSIDE_PRIOR = np.array([0.01, 0.5])  # precision

_FRESH = 12  # steps after which the information is computed anew

_ENOUGH = 0.02  # gain of log likelihood: steps that gain less are the last


@dataclass(frozen=True)
class Draws:
    """The candidates of n queries, and which of them was drawn as the known positive.

    Attributes:
        table: float32 `[M, m]`, m scaled terms of M candidates; those of a query stand together.
        counts: float64 `[M]`, how many candidates each stands for; 0 for a known positive that is only here because it was drawn.
        starts: int64 `[n]`, the first candidate of each query. No query is without candidates.
        drawn: int64 `[n]`, the candidate that was drawn; -1 if it is not among them.
        signs: int `[m]`: 1 where a weight must not be negative, -1 where it must not be positive, 0 where it may be either.
    """

    table: Float
    counts: Double
    starts: Int
    drawn: Int
    signs: Int

    @cached_property
    def found(self) -> Mask:
        found: Mask = self.drawn >= 0
        return found

    @cached_property
    def with_one(self) -> Float:
        """The table with a column of ones, for the intercept."""
        return np.concatenate([self.table, np.ones((len(self.table), 1), np.float32)], 1)

    @cached_property
    def lengths(self) -> Int:
        """int64 `[n]`: number of candidates of each query."""
        return np.diff(np.append(self.starts, len(self.table)))

    def repeated(self, values: Double) -> Double:
        """float64 `[M]`: the number of each query, at all its candidates."""
        return np.repeat(values, self.lengths)

    def sums(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """Sums over the candidates of each query."""
        total: NDArray[np.floating] = np.add.reduceat(values, self.starts, axis=0)
        return total

    def of_query(self, weights: Double) -> sparse.csr_matrix:
        """float32 `[n, M]`: the weight of each candidate in the row of its query."""
        bounds = np.append(self.starts, len(self.table))
        return sparse.csr_matrix((weights.astype(np.float32), np.arange(len(self.table)), bounds))

    def part(self, chosen: Mask) -> Draws:
        """The draws of some of the queries."""
        rows = np.repeat(chosen, self.lengths)
        starts = np.concatenate([[0], np.cumsum(self.lengths[chosen])[:-1]]).astype(np.int64)
        drawn = np.where(self.found, self.drawn - self.starts, -1)[chosen]
        return Draws(self.table[rows], self.counts[rows], starts, np.where(drawn >= 0, drawn + starts, -1), self.signs)

    def without_terms(self) -> Draws:
        """The same draws, of which nothing is known."""
        return Draws(self.table[:, :0], self.counts, self.starts, self.drawn, self.signs[:0])


@dataclass(frozen=True)
class Fit:
    """A maximum of the likelihood.

    Attributes:
        weights: float64 `[m]`, of the scaled terms.
        intercept: the intercept of h.
        outside: a and -b, see the module.
        loss: the negative log likelihood, less the logarithm of the prior.
    """

    weights: Double
    intercept: float
    outside: Double
    loss: float

    def logit(self, table: Float) -> Double:
        """h of candidates, float64 `[M]`."""
        return np.asarray(table @ self.weights.astype(np.float32), np.float64) + self.intercept

    def relevant(self, draws: Draws) -> Double:
        """float64 `[n]`: the expected number of relevant candidates of each query."""
        return np.asarray(draws.sums(draws.counts * expit(self.logit(draws.table))), np.float64)

    def not_found(self, relevant: Double) -> Double:
        """`outside`, float64 `[n]`, from the result of `relevant`."""
        return _outside(_line(relevant), self.outside)

    @property
    def parameters(self) -> Double:
        return np.concatenate([self.weights, [self.intercept], self.outside])


def _line(relevant: Double) -> Double:
    """float64 `[n, 2]`: what a and -b are multiplied with."""
    return np.stack([np.ones_like(relevant), np.log1p(relevant)], 1)


def _outside(line: Double, outside: Double) -> Double:
    return np.asarray(np.exp(np.clip(line @ outside, -25.0, 25.0)))


class _State:
    """The likelihood and what its derivatives are made of, at some parameters."""

    def __init__(self, draws: Draws, parameters: Double, ridge: float) -> None:
        m = len(draws.signs)
        self.draws, self.parameters, self.ridge = draws, parameters, ridge
        self.weights, self.outside = parameters[:m], parameters[m + 1 :]
        logit = Fit(self.weights, float(parameters[m]), self.outside, 0.0).logit(draws.table)
        self.pi = expit(logit)
        total = np.asarray(draws.sums(draws.counts * self.pi), np.float64)
        self.line = _line(total)
        self.out = _outside(self.line, self.outside)
        self.slope = self.outside[1] * self.out / (1 + total)  # of `out` in the total
        self.all = total + self.out
        of_drawn = logit[np.maximum(draws.drawn, 0)]
        found = np.where(draws.found, -np.logaddexp(0, -of_drawn), np.log(self.out))
        prior = ridge * self.weights @ self.weights + _OUTSIDE_PRIOR @ self.outside**2
        self.likelihoods = np.asarray(found - np.log(self.all), np.float64)
        self.loss = float(-self.likelihoods.sum() + prior / 2)

    def gradient(self) -> Double:
        draws, found = self.draws, self.draws.found
        of_total = -(1 + self.slope) / self.all + np.where(found, 0.0, self.slope / self.out)
        of_logit = draws.repeated(of_total) * draws.counts * self.pi * (1 - self.pi)
        at = draws.drawn[found]
        of_logit[at] += 1 - self.pi[at]
        of_outside = self.line.T @ (np.where(found, 0.0, 1.0) - self.out / self.all)
        gradient = -np.concatenate([draws.with_one.T @ of_logit.astype(np.float32), of_outside])
        gradient[: len(self.weights)] += self.ridge * self.weights
        gradient[len(self.weights) + 1 :] += _OUTSIDE_PRIOR * self.outside
        return np.asarray(gradient, np.float64)

    def information(self) -> Double:
        """A positive definite stand-in for the Hessian: the variance of the slopes of P(known), as in a multinomial logit."""
        draws, m = self.draws, len(self.weights)
        spread = self.pi * (1 - self.pi)
        chance = draws.counts * spread / draws.repeated(self.all)
        means = np.asarray(draws.of_query(chance) @ draws.with_one, np.float64)
        at = draws.drawn[draws.found]
        chance[at] += spread[at]
        scaled = draws.with_one * np.sqrt(chance).astype(np.float32)[:, None]
        share = self.out / self.all
        inner = self.line * np.sqrt(share * (1 - share))[:, None]
        out = np.zeros((m + 3, m + 3))
        out[: m + 1, : m + 1] = (scaled.T @ scaled).astype(np.float64) - means.T @ means
        out[m + 1 :, m + 1 :] = inner.T @ inner
        out[: m + 1, m + 1 :] = -(means * share[:, None]).T @ self.line
        out[m + 1 :, : m + 1] = out[: m + 1, m + 1 :].T
        out[np.diag_indices(m)] += self.ridge
        out[m + 1 :, m + 1 :] += np.diag(_OUTSIDE_PRIOR)
        return out


def fit_draws(draws: Draws, ridge: float = 0.5) -> Fit:
    """The highest of the maxima that the search finds.

    Args:
        draws: the candidates and what was drawn.
        ridge: precision of the Gaussian prior of each weight.
    """
    small = 0.02 * draws.signs
    fits = [_newton(draws, np.concatenate([small, [start], _OUTSIDE]), ridge) for start in _STARTS]
    return min(fits, key=lambda fit: fit.loss)


def improved(draws: Draws, start: Fit, ridge: float = 0.5) -> Fit:
    """The maximum that is searched from another fit, for example of a part of the queries."""
    return _newton(draws, start.parameters, ridge)


def at_level(draws: Draws, start: Fit, intercept: float, ridge: float = 0.5) -> Fit:
    """The maximum with this intercept, searched from another fit."""
    parameters = start.parameters
    parameters[len(start.weights)] = intercept
    return _newton(draws, parameters, ridge, fixed=intercept, most=25, enough=5 * _ENOUGH)


def score_draws(draws: Draws, fit: Fit) -> Double:
    """float64 `[n]`: the log likelihood of the draw of each query, by a fit of others."""
    return _State(draws, fit.parameters, 0.0).likelihoods


def _newton(
    draws: Draws, start: Double, ridge: float, fixed: float | None = None, most: int = 80, enough: float = _ENOUGH
) -> Fit:
    m = len(draws.signs)
    intercept = (-30.0, 10.0) if fixed is None else (fixed - 1e-9, fixed + 1e-9)
    low = np.concatenate([np.where(draws.signs > 0, 0.0, -np.inf), [intercept[0]], _OUTSIDE_LOW])
    high = np.concatenate([np.where(draws.signs < 0, 0.0, np.inf), [intercept[1]], _OUTSIDE_HIGH])
    state, damping = _State(draws, np.clip(start, low, high), ridge), 1e-3
    gradient, information, age = state.gradient(), state.information(), 0
    for _ in range(most):
        better = None
        for _ in range(16):
            step = _bounded_step(information, gradient, damping, low - state.parameters, high - state.parameters)
            trial = _State(draws, np.clip(state.parameters + step, low, high), ridge)
            if trial.loss < state.loss:
                better = trial
                break
            if age:
                information, age, damping = state.information(), 0, 1e-3
            else:
                damping = max(8 * damping, 1e-3)
        if better is None:
            break
        gain, damping = state.loss - better.loss, max(damping / 5, 1e-4)
        moved, changed = better.parameters - state.parameters, better.gradient() - gradient
        state, gradient = better, gradient + changed
        if gain < enough and not age:
            break
        age += 1
        information = _updated(information, moved, changed)
        if gain < enough or age == _FRESH:  # only a step with fresh information may be the last
            information, age = state.information(), 0
    return Fit(state.weights, float(state.parameters[m]), state.outside, state.loss)


def _updated(information: Double, moved: Double, changed: Double) -> Double:
    """The information after a step, corrected by how the gradient changed (BFGS; Nocedal and Wright 2006, chapter 6)."""
    curvature = float(changed @ moved)
    if curvature <= 1e-9 * float(np.sqrt((changed @ changed) * (moved @ moved))):
        return information
    along = information @ moved
    out: Double = information + np.outer(changed, changed) / curvature - np.outer(along, along) / (moved @ along)
    return out


def _bounded_step(information: Double, gradient: Double, damping: float, low: Double, high: Double) -> Double:
    """The step that minimizes the quadratic model within bounds."""
    damped = information + damping * np.diag(np.maximum(np.diag(information), 1.0))
    values, vectors = np.linalg.eigh(damped)
    values = np.sqrt(np.maximum(values, 1e-4))
    root = (vectors * values) @ vectors.T
    aim = -(vectors / values) @ (vectors.T @ gradient)
    solved = lsq_linear(root, aim, bounds=(low - 1e-12, high + 1e-12), method="bvls", tol=1e-8, max_iter=300)
    return np.asarray(solved.x, np.float64)
