"""Words of texts as a sparse matrix, and a logistic regression on it: enough to tell two kinds of text apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit

Double = NDArray[np.float64]

_NEWTON, _CONJUGATE = 30, 30  # the largest numbers of steps

_ENOUGH = 1e-3  # of the first gradient: a smaller one ends the search, a hundredth of what could change an AUC


def counted_words(texts: Sequence[str], pattern: str, characters: int) -> tuple[Any, list[str]]:
    """Count the words of texts.

    Args:
        texts: n texts.
        pattern: a regular expression that matches a word; texts are in lower case.
        characters: how many at the start of each text are read.

    Returns:
        (scipy CSR matrix float64 `[n, w]`, how often each text has each word; the w words, sorted).

    >>> table, words = counted_words(["a b A", "", "c a"], r"\\w+", 100)
    >>> words, table.toarray().tolist()
    (['a', 'b', 'c'], [[2.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    """
    find = re.compile(pattern).findall
    each = [find(text[:characters].lower()) for text in texts]
    bounds = np.concatenate([[0], np.cumsum([len(words) for words in each], dtype=np.int64)])
    vocabulary = sorted({word for words in each for word in words})
    place = {word: number for number, word in enumerate(vocabulary)}
    columns = np.array([place[word] for words in each for word in words], np.int64)
    table = sparse.csr_matrix((np.ones(len(columns)), columns, bounds), (len(texts), len(vocabulary)))
    table.sum_duplicates()
    return table, vocabulary


def fit_logistic(table: Any, kinds: NDArray[np.integer]) -> tuple[Double, float]:
    """Fit a logistic regression with an L2 penalty of 1/2 |w|^2, on the intercept as well, by Newton's method.

    Each step is found by conjugate gradients (Lin, Weng and Keerthi 2008, JMLR 9).

    Args:
        table: scipy CSR matrix `[n, w]`, or float64 array.
        kinds: `[n]`, 0 or 1.

    Returns:
        (float64 `[w]`, the weights; the intercept).
    """
    back = table.T.tocsr() if sparse.issparse(table) else table.T
    target = np.asarray(kinds, np.float64)

    def logits(w: Double) -> Double:
        return np.asarray(table @ w[:-1] + w[-1], np.float64)

    def gathered(values: Double) -> Double:
        return np.append(back @ values, values.sum())

    def loss(w: Double, f: Double) -> float:
        return float(w @ w / 2 + np.logaddexp(0, f).sum() - target @ f)

    def newton_step(curve: Double, gradient: Double) -> Double:
        return _conjugate(lambda v: v + gathered(curve * logits(v)), gradient)

    w, f = np.zeros(table.shape[1] + 1), np.zeros(len(target))
    now, first = loss(w, f), 0.0
    for step in range(_NEWTON):
        p = expit(f)
        gradient = w + gathered(p - target)
        size = float(np.linalg.norm(gradient))
        first = size if step == 0 else first
        if size <= _ENOUGH * first:
            break
        direction = newton_step(p * (1 - p), gradient)
        scale, moved = 1.0, logits(direction)
        while loss(w - scale * direction, f - scale * moved) >= now and scale > 1e-3:
            scale /= 2
        w, f = w - scale * direction, f - scale * moved
        now = loss(w, f)
    return w[:-1], float(w[-1])


def _conjugate(times: Callable[[Double], Double], aim: Double) -> Double:
    """float64: an approximate solution x of times(x) = aim, for a positive definite matrix."""
    x, rest = np.zeros_like(aim), aim.copy()
    direction, size = rest.copy(), float(rest @ rest)
    enough = 0.01 * size
    for _ in range(_CONJUGATE):
        product = times(direction)
        step = size / float(direction @ product)
        x += step * direction
        rest -= step * product
        before, size = size, float(rest @ rest)
        if size <= enough:
            break
        direction = rest + (size / before) * direction
    return x


def area_under_curve(scores: NDArray[np.floating], kinds: NDArray[np.integer]) -> float:
    """The chance that a text of kind 1 scores above one of kind 0, ties counted half (Mann and Whitney 1947).

    >>> area_under_curve(np.array([0.1, 0.4, 0.4, 0.9]), np.array([0, 0, 1, 1]))
    0.875
    """
    low, high = np.sort(scores[kinds == 0]), scores[kinds == 1]
    below = np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")
    return float(below.mean() / (2 * len(low)))


def cross_validated_auc(table: Any, kinds: NDArray[np.integer], documents: NDArray[np.integer]) -> float:
    """The AUC of telling kind 1 from kind 0. Each document is scored by a model that was fitted without it.

    Args:
        table: scipy CSR matrix `[n, w]`, or float64 array.
        kinds: `[n]`, 0 or 1.
        documents: `[n]`, which document each row is of; five folds of documents, drawn with a fixed seed.
    """
    different, of = np.unique(documents, return_inverse=True)
    fold = (np.random.default_rng(0).permutation(len(different)) % 5)[of]
    scores = np.zeros(len(kinds))
    for number in range(5):
        out = np.flatnonzero(fold == number)
        inside = np.flatnonzero(fold != number)
        if len(out) and len(inside):
            weights, intercept = fit_logistic(table[inside], kinds[inside])
            scores[out] = table[out] @ weights + intercept
    return area_under_curve(scores, kinds)
