"""The data that a posterior is learned from: known positives, hidden positives, groups or judgements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hardneg.errors import DataError
from hardneg.false_negatives.features import SHARED_FEATURES, PairFeatures
from hardneg.false_negatives.judgements import Judgements, check_enough, no_strangers
from hardneg.false_negatives.known import ASKED, POSITIVE, SKETCHED, Learnable, fit_known
from hardneg.false_negatives.learn import LADDER, fit_judged
from hardneg.false_negatives.model import HIDEABLE, LogisticModel, Posterior, check_identity
from hardneg.false_negatives.offset import MOVED, fit_offset
from hardneg.false_negatives.population import Found, learnable
from hardneg.mining.reopen import Reopened
from hardneg.progress import Progress, silent
from hardneg.storage.arrays import Float, Ragged

_GROUP_PAIRS = 200_000  # at most this many pairs are learned from when groups decide relevance

_ALL_FEATURES = LADDER[-1]  # the longest feature set, so that any other can be chosen from it


@dataclass(frozen=True)
class Learned:
    """A learned model.

    Attributes:
        model: the model.
        source: what it was learned from, one of `hardneg.false_negatives.model.SOURCES`.
        report: how it was learned, for people to read.
        in_loss: see `Posterior`.
    """

    model: LogisticModel
    source: str
    report: dict[str, Any]
    in_loss: LogisticModel | None = None


def family(
    run: Reopened, features: PairFeatures, posterior: Posterior | None, learn: str, seed: int, progress: Progress
) -> Learned:
    """The posterior whose thresholds are to be certified: the given one, or else one learned without judgements.

    Args:
        run: the run.
        features: computes the features of the run's candidates.
        posterior: the given posterior, or None.
        learn: how to learn one, see `calibrate`.
        seed: the random seed.
        progress: a callback that receives the progress.

    Raises:
        RunError: the given posterior was learned with another encoder.
    """
    if posterior is not None:
        check_identity(posterior, run.run.info["fingerprints"], "the posterior")
        return Learned(
            LogisticModel(posterior.features, posterior.weights, posterior.intercept),
            posterior.source,
            # Numbers that are used, not shown, are not taken from a file.
            {name: value for name, value in posterior.report.items() if name not in ("level_range", "uninformative")},
            posterior.in_loss,
        )
    try:
        return learn_from(Found.of_run(run), features, learn, None, seed, progress)
    except DataError as error:
        # Nothing can be learned, but shared neighbors still order the candidates. Judgements rescale the probabilities.
        model = LogisticModel(SHARED_FEATURES, (4.0, 4.0, 4.0), -4.0)
        return Learned(model, "judgements", {"learned": f"equal weights of the shared neighbors ({error})"})


def learn_from(
    found: Found,
    features: PairFeatures,
    learn: str,
    names: Sequence[str] | None,
    seed: int,
    progress: Progress = silent,
) -> Learned:
    """Learn a posterior without judgements.

    Args:
        found: the candidates.
        features: computes the features of the candidates.
        learn: how to learn, see `calibrate`; not `judged`.
        names: the features to use with `groups`; None for a choice by cross-validation.
        seed: the random seed.
        progress: a callback that receives the progress.

    Raises:
        DataError: the dataset does not have what is needed to learn in this way.
    """
    positives = found.context.pairs.positives
    if learn == "groups":
        return from_groups(found, features, names, seed, progress)
    asked = (*ASKED, *found.more)
    wanted = (*asked, POSITIVE)
    several = int((positives.lengths > 1).sum())
    if learn == "hidden" and several == 0:
        raise DataError("no query has several positives: nothing can be hidden, use learn='known'")
    if learn == "hidden" or (learn == "auto" and several >= HIDEABLE):
        hidden, rest = hide(positives, seed)
        data = learnable(found, PairFeatures(found.context, rest), wanted, hidden, seed, progress, thinned=True)
        return _known(data, asked, "hidden positives", seed)
    data = learnable(found, features, wanted, positives, seed, progress, thinned=True)
    return _known(data, asked, "known positives", seed)


def _known(data: Learnable, asked: tuple[str, ...], source: str, seed: int) -> Learned:
    hidden = source == "hidden positives"
    model, report = fit_known(data, names=asked, hidden=hidden, seed=seed)
    in_loss, _ = fit_known(data, names=SKETCHED, hinged=False, hidden=hidden, seed=seed)
    return Learned(model, source, report, in_loss)


def hide(positives: Ragged, seed: int) -> tuple[Ragged, Ragged]:
    """Draw one positive of each query that has several.

    Returns:
        The drawn positives, and all other positives.

    >>> hidden, rest = hide(Ragged.from_pairs(np.array([0, 0, 1]), np.array([5, 6, 7]), 2), seed=0)
    >>> hidden.lengths.tolist(), rest.lengths.tolist()
    ([1, 0], [1, 1])
    """
    rng = np.random.default_rng(seed)
    several = np.flatnonzero(positives.lengths > 1)
    places = positives.offsets[several] + rng.integers(positives.lengths[several])
    rows, rest = positives.row_numbers(), np.ones(len(positives.values), bool)
    rest[places] = False
    n = len(positives)
    return (
        Ragged.from_pairs(rows[places], positives.values[places], n),
        Ragged.from_pairs(rows[rest], positives.values[rest], n),
    )


def from_groups(
    found: Found, features: PairFeatures, names: Sequence[str] | None, seed: int, progress: Progress
) -> Learned:
    """Learn from the dataset's groups: a candidate is relevant if it has the group of the query.

    Raises:
        DataError: the dataset has no groups.
    """
    pairs = found.context.pairs
    if pairs.document_groups is None or pairs.query_groups is None:
        raise DataError("the dataset has no groups: a column 'group' or 'label' (--group-column), or groups.tsv")
    wanted = _ALL_FEATURES if names is None else tuple(names)
    data = learnable(found, features, wanted, pairs.positives, seed, progress)
    groups = pairs.query_groups[data.query], pairs.document_groups[data.document]
    usable = np.flatnonzero((groups[0] >= 0) & (groups[1] >= 0) & ~data.known)
    usable = np.sort(np.random.default_rng(seed).permutation(usable)[:_GROUP_PAIRS])
    model, report = fit_judged(
        {name: value[usable] for name, value in data.values.items()},
        (groups[0] == groups[1])[usable],
        np.ones(len(usable)),
        data.query[usable],
        names,
        seed,
    )
    return Learned(model, "groups", report)


def from_judged(
    run: Reopened,
    features: PairFeatures,
    judged: Judgements,
    names: Sequence[str] | None,
    seed: int,
    progress: Progress = silent,
) -> Learned:
    """Learn from all judgements. Each is weighted by the number of candidates that it represents.

    Without `names`, they move the model that the known positives teach (see `offset`), if these teach any.
    """
    weights = np.where(np.isnan(judged.inclusion), 1.0, 1 / judged.inclusion)
    start = None if names is not None else _taught(run, features, seed, progress)
    if start is not None:
        values = _values_of(run, features, judged, tuple(dict.fromkeys((*start.model.needed, *MOVED))))
        moved, report = fit_offset(start.model, values, judged.relevant, weights, judged.query, seed)
        return Learned(moved, "judgements", report, start.in_loss)
    check_enough(len(judged.relevant), "the known positives teach nothing, and the judgements stand alone")
    wanted = _ALL_FEATURES if names is None else tuple(names)
    values = _values_of(run, features, judged, wanted)
    model, report = fit_judged(values, judged.relevant, weights, judged.query, names, seed)
    return Learned(model, "judgements", report)


def _taught(run: Reopened, features: PairFeatures, seed: int, progress: Progress) -> Learned | None:
    """What the known positives teach; None if nothing."""
    try:
        learned = learn_from(Found.of_run(run), features, "auto", None, seed, progress)
    except DataError:
        return None
    return None if "uninformative" in learned.report else learned


def _values_of(run: Reopened, features: PairFeatures, judged: Judgements, names: Sequence[str]) -> dict[str, Float]:
    """The features of the judged pairs, float32 `[m]` by name.

    Raises:
        DataError: a judged pair is not among the candidates of the run.
    """
    values = {name: np.full(len(judged.query), np.nan, np.float32) for name in names}
    for part in run:
        judged_rows = np.flatnonzero(np.isin(judged.query, part.candidates.queries))
        if len(judged_rows) == 0:
            continue
        block = part.candidates.rows(judged.query[judged_rows] - part.candidates.queries[0])
        columns = block.columns(judged.document[judged_rows][:, None])
        matched = columns[:, 0] >= 0
        block_values = features.of(names, block, columns)
        for name in names:
            values[name][judged_rows[matched]] = block_values[name][matched, 0]
    no_strangers(np.isnan(values[names[0]]), judged, run.pairs)
    return values
