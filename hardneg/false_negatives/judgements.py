"""Judgements: draw pairs with known chances, and check what people or programs said about them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.errors import DataError, first_few
from hardneg.false_negatives.judgement_cells import chance_of, check_texts, grade_of, look_of, only_value, rows_of
from hardneg.false_negatives.judgement_file import HELD_OUT, from_cell, read_rows
from hardneg.false_negatives.model import Posterior, selection_of, sources_of
from hardneg.false_negatives.population import Ladder, Population
from hardneg.false_negatives.prediction_powered import allotted
from hardneg.hashing import mix
from hardneg.mining.reopen import Reopened
from hardneg.mining.samplers import query_keys
from hardneg.storage.arrays import Mask, pair_keys
from hardneg.storage.arrow import values_of
from hardneg.storage.files import fingerprint

FEWEST = 20  # judgements

_HELD_SHARE = 0.75  # of the pairs that are drawn

_STRATA = 5  # of probability, times as many of rank


@dataclass(frozen=True)
class Drawn:
    """Pairs drawn from the open candidates of a run.

    Attributes:
        place: int64 `[m]`, positions among the open candidates.
        inclusion: float64 `[m]`, the chance of each pair to be drawn into its part.
        held_out: bool `[m]`, True for the pairs that test the guarantee; the others are for learning.
        look: int64 `[m]`, the look at which each pair was first drawn, from 1 (see `guarantee`).
        left_out: number of pairs judged earlier that this draw does not contain.
        asked: what happened when models were asked, by their names.
    """

    place: NDArray[np.int64]
    inclusion: NDArray[np.float64]
    held_out: Mask
    look: NDArray[np.int64]
    left_out: int = 0
    asked: dict[str, dict[str, float]] = field(default_factory=dict)


def draw_pairs(population: Population, rungs: Ladder, sample: int, seed: int) -> Drawn:
    """Draw `sample` pairs, or all of them if there are fewer.

    Three quarters are held out for the guarantee: each pair that is a negative with one of the ladder's thresholds has the same
    chance. The others are spread over strata of probability and rank. A larger sample with the same seed contains the smaller one:
    each pair has a random number, and the lowest are taken (sequential Poisson sampling, Ohlsson 1998; with equal chances this is
    simple random sampling).
    """
    pairs, random = population.pairs, _random(population, seed)
    able = np.logical_or.reduce(rungs.chosen)
    held = _lowest(random[0], able.astype(np.float64), min(round(sample * _HELD_SHARE), int(able.sum())))
    rest = np.ones(len(able), bool)
    rest[held[0]] = False
    weight = _spread(population.probabilities, pairs.rank) * rest
    fit = _lowest(random[1], weight, min(sample - len(held[0]), int(rest.sum())))
    return Drawn(
        np.concatenate([held[0], fit[0]]),
        np.concatenate([held[1], fit[1]]),
        np.arange(len(held[0]) + len(fit[0])) < len(held[0]),
        np.ones(len(held[0]) + len(fit[0]), np.int64),
    )


def _random(population: Population, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two random numbers of each open pair, from its ids and the seed alone."""
    pairs = population.pairs
    keys = query_keys(population.run.pairs.query_ids)[pairs.query] ^ mix(
        pairs.document.astype(np.uint64) + np.uint64(1)
    )
    first, second = (mix(keys ^ mix(np.array([2 * seed + i], np.uint64))).astype(np.float64) / 2.0**64 for i in (0, 1))
    return first, second


def draw_negatives(population: Population, count: int) -> Drawn:
    """The negatives of the run with the highest P(relevant), most suspicious first. They are no sample: no guarantee rests on them."""
    pairs, run = population.pairs, population.run
    table = run.run.negatives(run.pairs)["negative_ids"].combine_chunks()
    rows = np.repeat(np.arange(len(table)), values_of(table.value_lengths()))
    documents = run.pairs.document_rows_of.of(table.flatten())
    size = len(run.pairs.document_ids)
    chosen = np.flatnonzero(np.isin(pair_keys(pairs.query, pairs.document, size), pair_keys(rows, documents, size)))
    place = chosen[np.argsort(-population.probabilities[chosen], kind="stable")][:count]
    n = len(place)
    return Drawn(place, np.full(n, np.nan), np.zeros(n, bool), np.ones(n, np.int64))


def draw_checks(population: Population, predictions: Judgements, sample: int, seed: int) -> Drawn:
    """Draw pairs for a person among those that a model judged, more of those where the model's answers vary (see `allotted`).

    Of the pairs that test the guarantee, each half of the model's answers is sampled at random. The others, for learning, are those
    with the lowest random numbers.
    """
    place = places(predictions, population)
    held, said = predictions.held_out, predictions.relevant
    random = _random(population, seed)
    halves = [np.flatnonzero(held & (said == answer)) for answer in (True, False)]
    counts = allotted((len(halves[0]), len(halves[1])), min(round(sample * _HELD_SHARE), int(held.sum())))
    fit = np.flatnonzero(~held)
    taken, chance = [], []
    for rows, count, numbers in (
        (halves[0], counts[0], random[0]), (halves[1], counts[1], random[0]),
        (fit, min(sample - sum(counts), len(fit)), random[1]),
    ):  # fmt: skip
        order = rows[np.argsort(numbers[place[rows]], kind="stable")][:count]
        taken.append(order)
        chance.append(predictions.inclusion[order] * count / max(len(rows), 1))
    chosen = np.concatenate(taken)
    return Drawn(place[chosen], np.concatenate(chance), held[chosen], np.ones(len(chosen), np.int64))


def matched(judged: Judgements, population: Population) -> tuple[NDArray[np.int64], Mask]:
    """The positions of the judged pairs among the open candidates, and which of the pairs are among these."""
    pairs = population.pairs
    keys = pair_keys(pairs.query, pairs.document, len(population.run.pairs.document_ids))
    wanted = judged.key(population.run.pairs)
    if len(keys) == 0:
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    order = np.argsort(keys)
    place = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)]
    return np.asarray(place, np.int64), keys[place] == wanted


def places(judged: Judgements, population: Population) -> NDArray[np.int64]:
    """The positions of the judged pairs among the open candidates. Raises DataError for pairs that are not among them."""
    place, is_open = matched(judged, population)
    no_strangers(~is_open, judged, population.run.pairs)
    return place


def _lowest(
    random: NDArray[np.float64], weight: NDArray[np.float64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(positions, chances) of the `count` lowest ratios of random number to weight."""
    with np.errstate(divide="ignore"):
        ratio = np.where(weight > 0, random / weight, np.inf)
    order = np.argsort(ratio, kind="stable")[: count + 1]
    taken = order[:count]
    some = weight[weight > 0]
    if len(some) and some.min() == some.max():
        return taken, np.full(count, count / len(some))
    limit = ratio[order[count]] if len(order) > count and np.isfinite(ratio[order[count]]) else np.inf
    return taken, np.minimum(1.0, limit * weight[taken])


def _spread(probability: NDArray[np.float32], rank: NDArray[np.int32]) -> NDArray[np.float64]:
    """Weights that give each stratum of probability and rank the same chance."""
    certain = np.searchsorted([0.05, 0.2, 0.5, 0.8], probability)
    ranked = np.searchsorted(np.quantile(rank, np.linspace(0, 1, _STRATA + 1)[1:-1]) if len(rank) else [0], rank)
    stratum = certain * _STRATA + ranked
    count = np.bincount(stratum, minlength=_STRATA * _STRATA)
    weights: NDArray[np.float64] = 1.0 / count[stratum]
    return weights


@dataclass(frozen=True)
class Judgements:
    """Judged pairs of a run.

    Attributes:
        query, document: int64 `[m]`, rows of the dataset.
        relevant: bool `[m]`.
        inclusion: float64 `[m]`, the chance of being drawn; NaN if the file does not state it.
        held_out: bool `[m]`, True for the pairs that test the guarantee.
        skipped: number of rows of the file without a judgement.
        look: int64 `[m]`, the look at which each pair was first drawn, from 1.
        alpha: what the pairs were drawn for; None if the file does not say it.
        drawn_for: a hash of the run, the posterior and the selection that the pairs were drawn for, and behind a hyphen how many
            were held out; None as for `alpha`.
        by_judge: bool `[m]`, True for pairs that a model judged.
        grade: float64 `[m]`, the grade or score of the model; NaN without one.
        judges: the models that judged, by name.
        answered: bool `[m]`; False for pairs that a model did not answer, which count as relevant (see `read_judgements`).
        chosen_by: a hash of the judgements of a model by which the pairs were chosen; None if they were not.
    """

    query: NDArray[np.int64]
    document: NDArray[np.int64]
    relevant: Mask
    inclusion: NDArray[np.float64]
    held_out: Mask
    skipped: int
    look: NDArray[np.int64]
    alpha: float | None
    drawn_for: str | None
    by_judge: Mask
    grade: NDArray[np.float64]
    judges: tuple[str, ...]
    answered: Mask
    chosen_by: str | None

    @property
    def drawn(self) -> bool:
        """Whether the pairs were drawn at random, as far as the file says, and not chosen by somebody."""
        return self.drawn_for is not None or bool(self.held_out.any()) or not bool(np.isnan(self.inclusion).all())

    def key(self, pairs: Pairs) -> NDArray[np.int64]:
        """int64 `[m]`: one number for each pair."""
        return pair_keys(self.query, self.document, len(pairs.document_ids))

    def those(self, mask: Mask) -> Judgements:
        """The judgements where `mask`, bool `[m]`, is True."""
        columns = ("query", "document", "relevant", "inclusion", "held_out", "look", "by_judge", "grade", "answered")
        return replace(self, **{name: getattr(self, name)[mask] for name in columns})


def read_judgements(path: Path, pairs: Pairs, *, predictions: bool = False, partial: bool = False) -> Judgements:
    """Read judged pairs.

    Args:
        path: the CSV file.
        pairs: the dataset.
        predictions: what a model said, to be corrected by a person. A pair that it did not answer then counts as relevant: leaving
            it out would bend the result, a wrong answer does not.
        partial: whether held-out pairs may be left out, because nothing is to be guaranteed.

    Raises:
        DataError: a column is missing, a value of `relevant` is not 0 or 1, ids are not in the dataset, two judgements of one pair
            differ, a held-out pair was not judged, or there are no judgements.
    """
    rows = read_rows(path)
    judged = [(line, row) for line, row in rows if predictions or row["relevant"].strip()]
    answered = np.array([bool(row["relevant"].strip()) for _, row in judged], bool)
    judged = [(line, {**row, "relevant": row["relevant"].strip() or "1"}) for line, row in judged]
    wrong = [line for line, row in judged if row["relevant"].strip() not in ("0", "1")]
    if wrong:
        raise DataError(f"{path}: 'relevant' must be 0 or 1, it is not in the lines {first_few(wrong)}")
    open_ = [line for line, row in rows if not row["relevant"].strip() and row.get("part") == HELD_OUT]
    if open_ and judged and not predictions and not partial:
        raise DataError(
            f"{path}: {len(open_):,} pairs held out for the guarantee are not judged (lines {first_few(open_)}): "
            f"judge them all, leaving some out would bend the result"
        )
    if not judged:
        raise DataError(f"{path} holds no judgements: write 1 (relevant) or 0 into the column 'relevant'")
    query = rows_of([from_cell(row["query_id"]) for _, row in judged], pairs.query_ids, judged, path, "query")
    document = rows_of(
        [from_cell(row["document_id"]) for _, row in judged], pairs.document_ids, judged, path, "document"
    )
    check_texts(judged, path, "query", pairs.queries, query)
    check_texts(judged, path, "document", pairs.documents, document)
    relevant = np.array([row["relevant"].strip() == "1" for _, row in judged])
    inclusion = np.array([chance_of(row.get("inclusion_probability"), line, path) for line, row in judged])
    held_out = np.array([row.get("part") == HELD_OUT for _, row in judged])
    _, first, pair = np.unique(np.stack([query, document], 1), axis=0, return_index=True, return_inverse=True)
    pair = pair.ravel()
    twice = np.flatnonzero(relevant != relevant[first][pair])
    if len(twice):
        lines = sorted({judged[i][0] for i in twice} | {judged[first[pair[i]]][0] for i in twice})
        raise DataError(f"{path} judges pairs both ways (lines {first_few(lines)}): decide, and leave one line each")
    look = np.array([look_of(row.get("look"), line, path) for line, row in judged], np.int64)
    alpha = only_value([row.get("alpha") for _, row in judged], "alpha", path)
    return Judgements(
        query[first], document[first], relevant[first], inclusion[first], held_out[first], len(rows) - len(judged),
        look[first], None if alpha is None else chance_of(alpha, judged[0][0], path, "alpha"),
        only_value([row.get("drawn_for") for _, row in judged], "drawn_for", path),
        np.array([bool(row.get("judge", "").strip()) for _, row in judged], bool)[first],
        np.array([grade_of(row.get("grade"), line, path) for line, row in judged])[first],
        tuple(sorted({row["judge"].strip() for _, row in judged if row.get("judge", "").strip()})),
        answered[first],
        only_value([row.get("chosen_by") for _, row in judged], "chosen_by", path),
    )  # fmt: skip


def draw_id(run: Reopened, posterior: Posterior | None) -> str:
    """A hash of what decides which pairs are drawn, but for alpha, sample and seed."""
    info = run.run.info
    return fingerprint(
        {
            "sources": sources_of(info["fingerprints"]),
            "depth": info["resolved"]["depth"],
            "selection": selection_of(info["config"]),
            "posterior": None if posterior is None else posterior.to_json(),
        }
    )[:16]


def check_drawn_for(judged: Judgements, path: str | Path | None, alpha: float, drawn_for: str) -> None:
    """Raise DataError for judgements that were drawn for something else."""
    if judged.alpha is not None and judged.alpha != alpha:
        raise DataError(
            f"{path} was drawn for alpha {judged.alpha:g}, not {alpha:g}: which pairs are drawn depends on it. Leave --alpha out to "
            f"use that of the file, or draw anew (hardneg judge RUN --alpha {alpha:g})"
        )
    if judged.drawn_for is None:
        return
    made_for, _, count = judged.drawn_for.partition("-")
    held = int(judged.held_out.sum())
    if made_for == drawn_for and count != str(held):
        raise DataError(
            f"{path}: {count} pairs were held out for the guarantee, and {held} are there now: lines are missing, or the column "
            f"'part' was changed. Leaving some out would bend the result. --learn judged takes any, and gives no guarantee"
        )
    if made_for != drawn_for:
        raise DataError(
            f"{path} was drawn for another run, depth, selection or posterior than this: a guarantee would not hold. Use the run and "
            f"the --posterior that it was drawn for, draw anew (hardneg judge), or use --learn judged, which gives no guarantee"
        )


def check_enough(count: int, where: str) -> None:
    """Raise DataError for judgements that are too few to learn or to certify anything from, if they stand alone."""
    if count < FEWEST:
        raise DataError(f"{where}: {count} judgements, {FEWEST} are the least that anything can be said from")


def no_strangers(strange: Mask, judged: Judgements, pairs: Pairs) -> None:
    """Raise DataError if some judged pairs are not among the candidates."""
    if strange.any():
        first = int(np.flatnonzero(strange)[0])
        pair = (
            pairs.query_ids[int(judged.query[first])].as_py(),
            pairs.document_ids[int(judged.document[first])].as_py(),
        )
        raise DataError(
            f"{int(strange.sum()):,} judged pairs are no candidates of this run that a posterior could judge, the first: "
            f"query {pair[0]!r}, document {pair[1]!r}. Was the file drawn for another run, or with other filters?"
        )
