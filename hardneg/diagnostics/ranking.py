"""Rank any number of runs over the same dataset before anyone trains on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.ambient import own_settings
from hardneg.data.pairs import Pairs
from hardneg.diagnostics.estimates import Estimate, row_means, sampled, unit
from hardneg.diagnostics.evidence import common_evidence, judged_by_posteriors
from hardneg.diagnostics.measures.gradient import TEACHES, weights
from hardneg.diagnostics.subject import Subject
from hardneg.errors import UsageError
from hardneg.mining.run import Run
from hardneg.progress import Progress, with_progress

_QUERIES = 5000  # the largest number of queries whose negatives are compared

_SAID = 3  # pairs of runs that are named where yardsticks disagree

MEASURES = ("useful", "false_share", "hardness", "teaching", "few")

Values = dict[str, NDArray[np.float64]]  # measures by name, one value per query


@dataclass(frozen=True)
class Ranked:
    """One run of a ranking.

    Attributes:
        name: the folder of the run.
        place: 1 for the best; equal for runs whose difference from the first of that place may be 0. None for a run of which it is
            not known how many negatives are false, where that is known of others: it comes last, and has no place and
            no `useful`.
        measures: by name, as in `Ranking`; a measure that is not known is missing. With several yardsticks, the mean of them.
        behind: the best run's `useful` less this one's, paired by query; 0 for the best. With several yardsticks, the interval
            holds that of each of them. NaN for a run without a place.
        useful_by: `useful` by each yardstick of `Ranking.scored_by`, by its name.
    """

    name: str
    place: int | None
    measures: dict[str, Estimate]
    behind: Estimate
    useful_by: dict[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class Ranking:
    """Runs in the order in which their negatives promise to teach.

    What a negative teaches is its gradient: its softmax weight p_ij among the positive and the negatives of its query, at
    the temperature. A false negative teaches the contrary. So the measure is, for each query,

        useful = sum over its negatives j of p_ij (1 - 2 f_ij)

    where f_ij is the probability that j is relevant: 1 if one true negative takes all of the gradient, 0 for negatives that teach
    nothing, below 0 if most of the gradient is false. Trained on Banking77 with four negatives a query of which 0 to 80 % are false,
    and with random ones, nDCG@10 has this order ("Limits of a diagnosis" in `benchmarks/RESULTS.md`).

    All runs are scored by the same vectors. Where the runs have those of several encoders, every one of them is a yardstick, as a
    run's own negatives look hardest to the encoder that found them: a run is better than another one if all yardsticks say so.

    Attributes:
        runs: the runs, the best first. Their measures, means over queries: `useful`; `false_share`, where it is known; `hardness`:
            the score of the hardest negative less that of the positive; `teaching`: the share of negatives with a weight of at least
            0.01; `few`: the share of queries with fewer negatives than the run was asked for.
        false_by: what tells f: `groups`, which come first, because they are the same for all runs; `posterior`; or `unknown`, where f
            is taken as 0 and the order is that of hardness alone.
        scored_by: the runs whose vectors score the negatives, one for each encoder, sorted; empty: each run by its own scores.
        queries: the number of queries compared: those with a positive in every run, at most 5,000.
        notes: what to know of the order.
    """

    runs: list[Ranked]
    false_by: str
    scored_by: list[str]
    queries: int
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """The ranking as printed by `hardneg compare --json`. Numbers that are not finite become None."""
        value = asdict(self)
        for run in value["runs"]:
            for each in (*run["measures"].values(), *run["useful_by"].values(), run["behind"]):
                each.update({k: None if not np.isfinite(v) else v for k, v in each.items()})
        return value


@with_progress
@own_settings()
def rank(
    runs: Sequence[Run | str | Path], *, temperature: float = 0.05, seed: int = 0, progress: Progress | bool = False
) -> Ranking:
    """Rank runs over the same queries and documents by what their negatives promise to teach; see `Ranking`.

    Args:
        runs: two or more runs, or the paths of their folders. Their order does not matter.
        temperature: the temperature of the loss that you will train with.
        seed: the random seed for drawing queries.
        progress: True for bars, or a callback that receives the progress.

    Raises:
        RunError: a run is damaged. UsageError: fewer than two runs, one is given twice, or they have different queries or documents.
    """
    assert callable(progress)  # see `with_progress`
    if not temperature > 0:
        raise UsageError(f"temperature={temperature} must be above 0")
    opened = [run if isinstance(run, Run) else Run(run) for run in runs]
    folders = [str(run.folder.resolve()) for run in opened]
    if len(opened) < 2 or len(set(folders)) < len(folders):
        raise UsageError("a ranking needs two or more different runs")
    advance = progress("read runs", len(opened))
    subjects = []
    for run in opened:
        subjects.append(Subject.of_run(run))
        advance(1)
    check_same([(each.name, each.pairs) for each in subjects])
    judged, notes = judged_by_posteriors(subjects, opened, compared(subjects, seed), progress)
    return ranking(judged, temperature, seed, notes)


def ranking(subjects: Sequence[Subject], temperature: float, seed: int = 0, notes: Sequence[str] = ()) -> Ranking:
    """Like `rank`, for negatives in memory. `notes` are put before those of the ranking."""
    check_same([(each.name, each.pairs) for each in subjects])
    rows = compared(subjects, seed)
    yardsticks = _yardsticks(subjects)
    scorers: list[Subject | None] = [*yardsticks] or [None]  # without vectors, each run by its own scores
    found = common_evidence(subjects)
    values: list[list[Values]] = []  # of each run, by each yardstick
    for i, subject in enumerate(found.subjects):
        told = found.of(i)
        told = None if told is None else told[rows]
        scored = (_scored(subject, each, rows) for each in scorers)
        values.append([_measured(subject, rows, *each, temperature, told) for each in scored])
    placed = [i for i, known in enumerate(found.known) if known or found.by == "unknown"]
    means = [_mean([each["useful"] for each in of]) for of in values]
    order = sorted(placed, key=lambda i: (-float(np.nanmean(means[i])) if len(rows) else 0.0, subjects[i].name))
    names = [each.name for each in yardsticks]
    out: list[Ranked] = []
    start, place = order[0], 1
    for position, i in enumerate(order):
        if _behind(values[start], values[i]).low > 0:
            place, start = position + 1, i
        out.append(_ranked(subjects[i].name, place, values[i], _behind(values[order[0]], values[i]), names))
    nothing = Estimate(np.nan, np.nan, np.nan, 0)
    rest = sorted(set(range(len(subjects))) - set(placed), key=lambda i: subjects[i].name)
    out += [_ranked(subjects[i].name, None, values[i], nothing, names) for i in rest]
    apart = _apart([(subjects[i].name, values[i]) for i in order], names)
    if not apart and len(out) > 1 and out[1].place == 1:
        apart = ["the first runs do not differ by more than chance"]
    said = [*notes, *found.notes, *_notes(subjects, yardsticks), *apart, *_relabelled(subjects)]
    return Ranking(out, found.by, names, len(rows), said)


def compared(subjects: Sequence[Subject], seed: int) -> NDArray[np.int64]:
    """int64: the queries that are compared, at most 5,000 of those that have a positive in every run."""
    having = np.logical_and.reduce([each.pairs.positives.lengths > 0 for each in subjects])
    rows = np.flatnonzero(having)
    return rows[sampled(len(rows), _QUERIES, np.random.default_rng(seed))]


def _yardsticks(subjects: Sequence[Subject]) -> list[Subject]:
    """One run for each set of vectors that the runs have, sorted by name, so that the order of the runs does not matter."""
    found: dict[tuple[Any, ...], Subject] = {}
    for each in sorted(subjects, key=lambda each: each.name):
        if each.vectors is not None:
            found.setdefault(_origin(each), each)
    return list(found.values())


def _origin(subject: Subject) -> tuple[Any, ...]:
    """What a run's vectors are: equal for runs of the same encoder, or of the same given vectors."""
    prints = subject.info.get("fingerprints", {})
    names = ("encoder", "query_vectors", "document_vectors", "query_embeddings", "corpus_embeddings")
    of = tuple(prints.get(name) for name in names)
    return of if any(of) else (id(subject.vectors),)


def _mean(values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """float64 `[n]`: the mean of what the yardsticks say of each query."""
    mean: NDArray[np.float64] = values[0] if len(values) == 1 else np.mean(values, 0)
    return mean


def _behind(better: Sequence[Values], run: Sequence[Values]) -> Estimate:
    """The difference of `useful`, paired by query: its mean over the yardsticks, with an interval that holds that of each of them."""
    by = [Estimate.mean_of(a["useful"] - b["useful"]) for a, b in zip(better, run, strict=True)]
    if len(by) == 1:
        return by[0]
    low, high = min(each.low for each in by), max(each.high for each in by)
    return Estimate(float(np.mean([each.value for each in by])), low, high, by[0].sample)


def _ranked(name: str, place: int | None, values: Sequence[Values], behind: Estimate, by: Sequence[str]) -> Ranked:
    measures = {key: Estimate.mean_of(_mean([each[key] for each in values])) for key in values[0]}
    if place is None:  # it would count its false negatives as true ones
        del measures["useful"]
        return Ranked(name, place, measures, behind)
    useful_by = {yardstick: Estimate.mean_of(each["useful"]) for yardstick, each in zip(by, values, strict=False)}
    return Ranked(name, place, measures, behind, useful_by)


def _relabelled(subjects: Sequence[Subject]) -> list[str]:
    """A note for each run whose positives are not those of the first."""
    first, found = subjects[0], []
    for other in subjects[1:]:
        a, b = (each.pairs.positives for each in (first, other))
        differ = a.lengths != b.lengths
        same = np.flatnonzero(~differ)
        left, right = a.take(same), b.take(same)
        differ[same[np.unique(left.row_numbers()[left.values != right.values])]] = True
        if differ.any():
            found.append(
                f"{first.name} and {other.name} have different positives for {int(differ.sum()):,} queries: each is measured by "
                f"its own, so the order says nothing of which negatives are better"
            )
    return found


def check_same(datasets: Sequence[tuple[str, Pairs]]) -> None:
    """UsageError if runs, given by their names and datasets, have different queries or documents."""
    name, pairs = datasets[0]
    for other, others in datasets[1:]:
        for kind in ("query_ids", "document_ids"):
            if not getattr(pairs, kind).equals(getattr(others, kind)):
                raise UsageError(
                    f"{name} and {other} have different {kind.replace('_', ' ')}: only runs over one dataset compare"
                )


def _scored(
    subject: Subject, yardstick: Subject | None, rows: NDArray[np.int64]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """The cosines `[n, K]` of the negatives and `[n]` of the lowest positive; the run's own scores without vectors."""
    documents = subject.documents[rows]
    if yardstick is None or yardstick.vectors is None:
        return np.where(documents >= 0, subject.scores[rows], -np.inf), subject.positive[rows]
    scores = np.full(documents.shape, -np.inf)
    lowest = np.full(len(rows), np.inf)
    positives = subject.pairs.positives
    for start in range(0, len(rows), 512):
        block = slice(start, start + 512)
        q = unit(yardstick.vectors[0], rows[block])
        real = documents[block] >= 0
        d = unit(yardstick.vectors[1], np.maximum(documents[block], 0).ravel()).reshape(*real.shape, -1)
        scores[block] = np.where(real, np.einsum("bd,bkd->bk", q, d), -np.inf)
        mine = positives.take(rows[block])
        of = mine.row_numbers()
        np.minimum.at(lowest[block], of, (q[of] * unit(yardstick.vectors[1], mine.values)).sum(1))
    return scores, lowest


def _measured(
    subject: Subject, rows: NDArray[np.int64], scores: NDArray[np.floating], positive: NDArray[np.floating],
    temperature: float, told: NDArray[np.float64] | None,
) -> Values:  # fmt: skip
    """The measures by name, float64 `[n]`: one value per query. `told` is P(relevant), `[n, K]`, or None if that is not known."""
    real = subject.real[rows]
    p = np.where(real, weights(scores, positive, temperature), 0.0)
    f = np.zeros(real.shape) if told is None else told
    some = real.any(1)
    out = {"useful": np.where(real, p * (1 - 2 * f), 0.0).sum(1)}  # NaN for a query of which nothing is known
    if told is not None:
        out["false_share"] = row_means(np.where(real, told, np.nan))
    out["hardness"] = np.where(some, scores.max(1, initial=-np.inf) - positive, np.nan)
    out["teaching"] = row_means(np.where(real & np.isfinite(p), p >= TEACHES, np.nan))
    out["few"] = (subject.counts[rows] < subject.asked).astype(np.float64)
    return out


def _notes(subjects: Sequence[Subject], yardsticks: Sequence[Subject]) -> list[str]:
    """What to know of the vectors."""
    notes = []
    origins = {_origin(each) for each in yardsticks}
    without = sorted(each.name for each in subjects if each.vectors is None and _origin(each) not in origins)
    if not yardsticks:
        notes.append("no run keeps vectors: each is scored by its own encoder, whose scores may be on another scale")
    elif without:
        notes.append(
            f"{', '.join(without)} keeps no vectors, so its own encoder scores nothing: the negatives of the others, which look "
            f"hardest to their own, may be put before its own. Mine it without --cache to have both"
        )
    return notes


def _apart(runs: Sequence[tuple[str, Sequence[Values]]], yardsticks: Sequence[str]) -> list[str]:
    """A note for each two runs of which one yardstick says that the first teaches more, and another that the second does."""
    notes = []
    for i, (one, ours) in enumerate(runs):
        for other, theirs in runs[i + 1 :]:
            by = [Estimate.mean_of(a["useful"] - b["useful"]) for a, b in zip(ours, theirs, strict=True)]
            more = [f"{name} ({each.value:+.3f})" for name, each in zip(yardsticks, by, strict=False) if each.low > 0]
            less = [f"{name} ({-each.value:+.3f})" for name, each in zip(yardsticks, by, strict=False) if each.high < 0]
            if more and less:
                notes.append(
                    f"{one} and {other} cannot be told apart: {one} promises to teach more by the vectors of {' and '.join(more)}, "
                    f"{other} by those of {' and '.join(less)}. A run's own negatives look hardest to the encoder that found "
                    f"them; only a training with each tells which are better"
                )
    more_pairs = f"so it is with {len(notes) - _SAID:,} more pairs of runs"
    return notes if len(notes) <= _SAID else [*notes[:_SAID], more_pairs]
