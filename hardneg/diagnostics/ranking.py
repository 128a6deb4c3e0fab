"""Rank any number of runs over the same dataset before anyone trains on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.ambient import own_settings
from hardneg.data.pairs import Pairs
from hardneg.diagnostics.estimates import Estimate, row_means, sampled, unit
from hardneg.diagnostics.measures.false_share import filtered_by_group, shares_of
from hardneg.diagnostics.measures.gradient import TEACHES, weights
from hardneg.diagnostics.subject import Subject
from hardneg.errors import UsageError
from hardneg.mining.run import Run
from hardneg.progress import Progress, with_progress

_QUERIES = 5000  # the largest number of queries whose negatives are compared

MEASURES = ("useful", "false_share", "hardness", "teaching", "few")


@dataclass(frozen=True)
class Ranked:
    """One run of a ranking.

    Attributes:
        name: the folder of the run.
        place: 1 for the best; equal for runs whose difference from the first of that place may be 0.
        measures: by name, as in `Ranking`; a measure that is not known is missing.
        behind: the best run's `useful` less this one's, paired by query; 0 for the best.
    """

    name: str
    place: int
    measures: dict[str, Estimate]
    behind: Estimate


@dataclass(frozen=True)
class Ranking:
    """Runs in the order in which their negatives promise to teach.

    What a negative teaches is its gradient: its softmax weight p_ij among the positive and the negatives of its query, at
    the temperature. A false negative teaches the contrary. So the measure is, for each query,

        useful = sum over its negatives j of p_ij (1 - 2 f_ij)

    where f_ij is the probability that j is relevant: 1 if one true negative takes all of the gradient, 0 for negatives that teach
    nothing, below 0 if most of the gradient is false. Trained on Banking77 with four negatives a query of which 0 to 80 % are false,
    and with random ones, nDCG@10 has this order ("Limits of a diagnosis" in `benchmarks/RESULTS.md`). All runs are scored by the same
    vectors, those of the first run that has any, so that runs of several encoders can be compared.

    Attributes:
        runs: the runs, the best first. Their measures, means over queries: `useful`; `false_share`, where it is known; `hardness`:
            the score of the hardest negative less that of the positive; `teaching`: the share of negatives with a weight of at least
            0.01; `few`: the share of queries with fewer negatives than the run was asked for.
        false_by: what tells f: `groups`, which come first, because they are the same for all runs; `posterior`, if all runs
            have one; or `unknown`, where f is taken as 0 and the order is that of hardness alone.
        scored_by: the run whose vectors score the negatives; None: each run by its own scores.
        queries: the number of queries compared: those with a positive, at most 5,000.
        notes: what to know of the order.
    """

    runs: list[Ranked]
    false_by: str
    scored_by: str | None
    queries: int
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """The ranking as printed by `hardneg compare --json`. Numbers that are not finite become None."""
        value = asdict(self)
        for run in value["runs"]:
            for each in (*run["measures"].values(), run["behind"]):
                each.update({k: None if not np.isfinite(v) else v for k, v in each.items()})
        return value


@with_progress
@own_settings()
def rank(
    runs: Sequence[Run | str | Path], *, temperature: float = 0.05, seed: int = 0, progress: Progress | bool = False
) -> Ranking:
    """Rank runs over the same queries and documents by what their negatives promise to teach; see `Ranking`.

    Args:
        runs: two or more runs, or the paths of their folders.
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
    return ranking(subjects, temperature, seed)


def ranking(subjects: Sequence[Subject], temperature: float, seed: int = 0) -> Ranking:
    """Like `rank`, for negatives in memory."""
    check_same([(each.name, each.pairs) for each in subjects])
    first = subjects[0]
    rows = np.flatnonzero(first.pairs.positives.lengths > 0)
    rows = rows[sampled(len(rows), _QUERIES, np.random.default_rng(seed))]
    yardstick = next((each for each in subjects if each.vectors is not None), None)
    same, false_by = common_truth(subjects)
    found = []
    for subject in same:
        scores, positive = _scored(subject, yardstick, rows)
        found.append(_measured(subject, rows, scores, positive, temperature, false_by != "unknown"))
    order = sorted(range(len(found)), key=lambda i: -float(np.nanmean(found[i]["useful"])) if len(rows) else 0.0)
    out: list[Ranked] = []
    best, start = found[order[0]]["useful"], order[0]
    place = 1
    for position, i in enumerate(order):
        if Estimate.mean_of(found[start]["useful"] - found[i]["useful"]).low > 0:
            place, start = position + 1, i
        measures = {name: Estimate.mean_of(values) for name, values in found[i].items()}
        out.append(Ranked(subjects[i].name, place, measures, Estimate.mean_of(best - found[i]["useful"])))
    notes = _notes(false_by, yardstick, out) + _lent(subjects, false_by) + _relabelled(subjects)
    return Ranking(out, false_by, None if yardstick is None else yardstick.name, len(rows), notes)


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


def common_truth(subjects: Sequence[Subject]) -> tuple[list[Subject], str]:
    """The runs with one evidence of false negatives, so that a difference is one of the negatives and not of the evidence.

    Returns:
        (the runs; `groups` if a run's dataset has them and the others have the same, or none and the same texts, even where runs were
        calibrated, but not where a run's filter `group` removed what they could tell of; else `posterior` if each run has
        probabilities by one; else `unknown`).
    """
    grouped = [each for each in subjects if has_groups(each.pairs)]
    if grouped and not any(map(filtered_by_group, subjects)):
        with_them = [_with_groups_of(each, grouped[0]) for each in subjects]
        if all(each is not None for each in with_them):
            return [replace(each, probability=None) for each in with_them if each is not None], "groups"
    if all(each.probability is not None and each.told_by == "posterior" for each in subjects):
        return list(subjects), "posterior"
    return list(subjects), "unknown"


def has_groups(pairs: Pairs) -> bool:
    """Whether groups can tell of any query which documents are relevant."""
    queries, documents = pairs.query_groups, pairs.document_groups
    return queries is not None and documents is not None and bool((queries >= 0).any())


def _with_groups_of(subject: Subject, other: Subject) -> Subject | None:
    """The run with the groups of another one; None if its own differ, or if it has none and other texts."""
    own, groups = subject.pairs, other.pairs
    if has_groups(own):
        same = np.array_equal(own.query_groups, groups.query_groups)  # type: ignore[arg-type]
        same = same and np.array_equal(own.document_groups, groups.document_groups)  # type: ignore[arg-type]
        return subject if same else None
    texts = [(pairs.digests.get("queries"), pairs.digests.get("documents")) for pairs in (own, groups)]
    if None in texts[0] or texts[0] != texts[1]:
        return None
    lent = replace(
        own, query_groups=groups.query_groups, document_groups=groups.document_groups, group_names=groups.group_names
    )
    return replace(subject, pairs=lent)


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
    temperature: float, known: bool,
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """The measures by name, float64 `[n]`: one value per query."""
    real = subject.real[rows]
    p = np.where(real, weights(scores, positive, temperature), 0.0)
    shares, _ = shares_of(subject)
    told = None if shares is None or not known else np.asarray(shares, np.float64)[rows]
    f = np.zeros(real.shape) if told is None else told
    some = real.any(1)
    out = {"useful": np.where(real, p * (1 - 2 * f), 0.0).sum(1)}  # NaN for a query of which nothing is known
    if told is not None:
        out["false_share"] = row_means(np.where(real, told, np.nan))
    out["hardness"] = np.where(some, scores.max(1, initial=-np.inf) - positive, np.nan)
    out["teaching"] = row_means(np.where(real & np.isfinite(p), p >= TEACHES, np.nan))
    out["few"] = (subject.counts[rows] < subject.asked).astype(np.float64)
    return out


def _lent(subjects: Sequence[Subject], false_by: str) -> list[str]:
    """What to know of runs whose datasets differ in their groups."""
    grouped = [each for each in subjects if has_groups(each.pairs)]
    without = [each.name for each in subjects if not has_groups(each.pairs)]
    if not grouped:
        return []
    if false_by == "groups":
        what = "the same texts were read without groups, and are judged by these"
        return [f"groups are those of {grouped[0].name}; {', '.join(without)}: {what}"] if without else []
    if any(map(filtered_by_group, subjects)):
        return []  # the note of what is not known stands for this as well
    if without:
        return [f"the groups of {grouped[0].name} are not those of {', '.join(without)}: the texts differ"]
    return ["the runs were read with different groups, so these do not tell which negatives are false"]


def _notes(false_by: str, yardstick: Subject | None, runs: Sequence[Ranked]) -> list[str]:
    notes = []
    if false_by == "unknown":
        notes.append(
            "how many negatives are false is not known for all runs: the order is that of hardness, and the first may be the one "
            "with most false negatives. Run 'hardneg calibrate' and 'hardneg select --add-filter posterior:...' for each"
        )
    if yardstick is None:
        notes.append("no run keeps vectors: each is scored by its own encoder, whose scores may be on another scale")
    if len(runs) > 1 and runs[1].place == 1:
        notes.append("the first runs do not differ by more than chance")
    return notes
