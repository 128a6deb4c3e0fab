"""The candidates of a run that a posterior may reject, their probabilities, and the negatives that a threshold leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from hardneg.errors import DataError
from hardneg.false_negatives.features import PairFeatures
from hardneg.false_negatives.known import Learnable
from hardneg.false_negatives.listed import features_of
from hardneg.false_negatives.model import LogisticModel
from hardneg.hashing import mix
from hardneg.mining.candidates import Candidates, Context
from hardneg.mining.reopen import Part, Reopened
from hardneg.mining.samplers import draw, query_keys
from hardneg.mining.specs import no_code, parse_sampler
from hardneg.progress import Progress, silent
from hardneg.storage.arrays import Float, Mask, Ragged, members

_LEARNED = 8192  # queries that a posterior is learned from

_ROWS = 512  # queries whose features are computed at once

_MOST = 2_000_000  # candidates that a posterior is learned from

_MOST_THINNED = 300_000  # the same where the deeper ones are thinned out, as every one has some 80 terms

_NEAR = 60  # ranks of which none is left out

_THINNED = 8  # of the deeper ranks, one in so many


def open_to_judgement(part: Part) -> Mask:
    """bool `[n, K]`: True for candidates that pass all filters but the posterior."""
    return part.kept | part.rejected_by_posterior


@dataclass(frozen=True)
class Found:
    """Candidates found for the queries of a dataset, by a mining pass or by a generation of a training.

    Attributes:
        context: the context of the search.
        depth: highest number of candidates per query.
        blocks: yields the candidates of some queries, with bool `[n, K]` for those open to judgement. Each query comes once.
        more: features that they have besides those that all candidates have.
    """

    context: Context
    depth: int
    blocks: Callable[[], Iterable[tuple[Candidates, Mask]]]
    more: tuple[str, ...] = ()

    @classmethod
    def of_run(cls, run: Reopened) -> Found:
        depth = max(1, int(run.run.info["resolved"]["depth"]))
        more = features_of(run.run, run.context)
        return cls(run.context, depth, lambda: ((part.candidates, open_to_judgement(part)) for part in run), more)


def learnable(
    found: Found,
    features: PairFeatures,
    names: Sequence[str],
    known: Ragged,
    seed: int,
    progress: Progress = silent,
    *,
    thinned: bool = False,
) -> Learnable:
    """The open candidates and the known positives of a random sample of queries, with their features.

    Args:
        found: the candidates.
        features: computes the features.
        names: the names of the features.
        known: the known positives of every query. Queries without are left out.
        seed: seed of the sample.
        progress: called with the number of queries done.
        thinned: of the ranks above 60, take one in eight.
    """
    with_known = np.flatnonzero(known.lengths > 0)
    if not len(with_known):
        raise DataError("no query has a positive: nothing can be learned from known positives")
    rng = np.random.default_rng(seed)
    wide = min(found.depth, _NEAR) + max(0, found.depth - _NEAR) // _THINNED if thinned else found.depth
    count = min(len(with_known), _LEARNED, max(1, (_MOST_THINNED if thinned else _MOST) // max(wide, 1)))
    chosen = np.zeros(len(known), bool)
    chosen[rng.choice(with_known, count, replace=False)] = True
    advance = progress("features", count)
    values: dict[str, list[Float]] = {name: [] for name in names}
    labels, queries, documents, counts = [], [], [], []
    for candidates, open_ in found.blocks():
        rows = np.flatnonzero(chosen[candidates.queries])
        for start in range(0, len(rows), _ROWS):
            here = rows[start : start + _ROWS]
            block = candidates.rows(here)
            labelled = members(block.documents, known.take(block.queries)) & block.real
            counts_for = stands_for(block.queries, block.documents.shape[1], seed, thinned)
            used = (open_[here] & block.real & (counts_for > 0)) | labelled
            columns = np.argsort(~used, axis=1, kind="stable")[:, : max(1, int(used.sum(1).max(initial=0)))]
            taken = np.take_along_axis(used, columns, 1)
            seen = features.of(names, block, np.where(taken, columns, -1))
            for name in names:
                values[name].append(seen[name][taken])
            labels.append(np.take_along_axis(labelled, columns, 1)[taken])
            counts.append(np.take_along_axis(counts_for, columns, 1)[taken])
            queries.append(np.repeat(block.queries, taken.sum(1)))
            documents.append(np.take_along_axis(block.documents, columns, 1)[taken])
            advance(len(here))
    query = np.concatenate(queries)
    return Learnable(
        {name: np.concatenate(parts) for name, parts in values.items()},
        np.concatenate(labels),
        query,
        np.concatenate(documents),
        np.concatenate(counts),
        known.lengths[query],
    )


def stands_for(queries: NDArray[np.integer], width: int, seed: int, thinned: bool) -> NDArray[np.float64]:
    """float64 `[n, width]`: how many candidates each column stands for; 0 for those that are left out."""
    out = np.ones((len(queries), width))
    if thinned and width > _NEAR:
        offset = mix(queries.astype(np.uint64) ^ mix(np.array([seed], np.uint64))) % np.uint64(_THINNED)
        deep = np.arange(width - _NEAR, dtype=np.uint64) % np.uint64(_THINNED)
        out[:, _NEAR:] = np.where(deep[None, :] == offset[:, None], float(_THINNED), 0.0)
    return out


@dataclass(frozen=True)
class OpenPairs:
    """Candidates that no filter but a posterior rejects.

    Attributes:
        query: int64 `[m]`, rows of the dataset's queries.
        document: int32 `[m]`, rows of the corpus.
        rank: int32 `[m]`.
        score: float32 `[m]`.
    """

    query: NDArray[np.int64]
    document: NDArray[np.int32]
    rank: NDArray[np.int32]
    score: Float

    def take(self, places: NDArray[np.integer]) -> OpenPairs:
        return OpenPairs(self.query[places], self.document[places], self.rank[places], self.score[places])


class Population:
    """All open candidates of a run, with their probabilities of relevance by one model.

    Args:
        run: the run of the candidates.
        features: computes the features.
        model: the model of the posterior.
    """

    def __init__(
        self, run: Reopened, features: PairFeatures, model: LogisticModel, progress: Progress = silent
    ) -> None:
        config = run.run.info["config"]
        no_code(config["sampler"], str(run.run.folder / "run.json"))
        self.run = run
        self.sampler, self.wanted, self.seed = parse_sampler(config["sampler"]), config["negatives"], config["seed"]
        self.keys = query_keys(run.pairs.query_ids)
        advance = progress("probabilities", len(run.pairs))
        # Per part: its candidates, what is open, and P(relevant).
        self.parts: list[tuple[Candidates, Mask, Float]] = []
        for part in run:
            probability = np.zeros(part.candidates.documents.shape, np.float32)
            for start in range(0, len(probability), _ROWS):
                rows = np.arange(start, min(start + _ROWS, len(probability)))
                block = part.candidates.rows(rows)
                probability[rows] = model.probability(features.of(model.needed, block))
                advance(len(block.queries))
            self.parts.append((part.candidates, open_to_judgement(part) & part.candidates.real, probability))

    @cached_property
    def probabilities(self) -> Float:
        """float32 `[m]`: the probabilities of all open candidates, in the order of `pairs`."""
        return np.concatenate([probability[open_] for _, open_, probability in self.parts])

    @cached_property
    def pairs(self) -> OpenPairs:
        """All open candidates, in the order of `probabilities`."""
        found: list[list[NDArray[Any]]] = [[], [], [], []]
        for candidates, open_, _ in self.parts:
            row, column = np.nonzero(open_)
            found[0].append(candidates.queries[row])
            found[1].append(candidates.documents[row, column])
            found[2].append(candidates.ranks[column])
            found[3].append(candidates.scores[row, column])
        return OpenPairs(*(np.concatenate(each) for each in found))

    def negatives(self, threshold: float) -> Mask:
        """bool `[m]`: the open candidates that become negatives with this threshold."""
        return np.concatenate(
            [chosen[open_] for chosen, (_, open_, _) in zip(self._chosen(threshold), self.parts, strict=True)]
        )

    def expected(self, threshold: float, shift: float = 0.0) -> float:
        """The mean probability of the negatives of a threshold; 0 if there are none. `shift` is added to all log odds."""
        chosen = self.negatives(threshold)
        if not chosen.any():
            return 0.0
        probabilities = self.probabilities[chosen].astype(np.float64)
        if shift:
            probabilities = expit(logit(probabilities.clip(1e-12, 1 - 1e-12)) + shift)
        return float(probabilities.mean())

    def rejected(self, threshold: float) -> int:
        """How many open candidates a threshold rejects."""
        return int((self.probabilities > np.float32(threshold)).sum())

    def _chosen(self, threshold: float) -> Iterator[Mask]:
        for candidates, open_, probability in self.parts:
            kept = open_ & (probability <= np.float32(threshold))
            columns = draw(self.sampler, candidates, kept, self.wanted, self.seed, self.keys[candidates.queries])
            chosen = np.zeros((len(open_), open_.shape[1] + 1), bool)
            np.put_along_axis(chosen, columns, True, axis=1)  # -1: the column that is cut off
            yield chosen[:, :-1]


@dataclass(frozen=True)
class Ladder:
    """The thresholds to choose from, and the negatives of each.

    Attributes:
        thresholds: float32, ascending.
        chosen: for each threshold, bool `[m]`: the open candidates that become negatives.
    """

    thresholds: tuple[float, ...]
    chosen: tuple[Mask, ...]


_RUNGS = 4

_FILLED = 0.95  # of the negatives that there are without a threshold


def ladder(population: Population, alpha: float) -> Ladder:
    """Thresholds from the lowest that leaves nearly all queries their negatives to the one where alpha is expected.

    They depend only on the candidates and the model, never on judgements.
    """
    low = strictest(population)
    high = _first(_steps(population), lambda t: population.expected(t) > alpha)
    high = min(max(high, 1.5 * low), 1.0)
    thresholds = [float(np.float32(t)) for t in np.geomspace(low, max(high, low), _RUNGS)]
    chosen = tuple(population.negatives(t) for t in thresholds)
    return Ladder(tuple(thresholds), chosen)


def strictest(population: Population) -> float:
    """The lowest threshold that leaves nearly all of the negatives that there are without a threshold."""
    every = int(population.negatives(1.0).sum())
    low = _first(_steps(population), lambda t: int(population.negatives(t).sum()) >= _FILLED * every)
    # Between two probabilities that occur, so that rounding moves no candidate across.
    above = population.probabilities[population.probabilities > np.float32(low)]
    return (low + float(above.min())) / 2 if len(above) else 1.0


def expected_threshold(population: Population, alpha: float, expected: Callable[[float], float] | None = None) -> float:
    """The highest threshold with which at most a share of alpha false negatives is expected, by the model or by `expected`.

    It is never below `strictest`, so that a model that expects more everywhere still leaves negatives.
    """
    expected = population.expected if expected is None else expected
    low, high = strictest(population), 1.0
    if expected(low) > alpha:
        return low
    for _ in range(25):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle) <= alpha else (low, middle)
    return low


def _steps(population: Population) -> NDArray[np.float64]:
    """The probabilities that occur, ascending."""
    wanted = np.linspace(0, 1, 201)
    return np.unique(np.quantile(population.probabilities, wanted, method="higher")).astype(np.float64)


def _first(steps: NDArray[np.float64], holds: Callable[[float], bool]) -> float:
    """The first of `steps` for which `holds`. If it holds for one, it holds for all after it; if for none, the last is returned."""
    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high) // 2
        if holds(float(steps[middle])):
            high = middle
        else:
            low = middle + 1
    return float(steps[low])
