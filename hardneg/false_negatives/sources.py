"""The training data of a posterior: known positives, hidden positives, groups or judgements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hardneg.errors import DataError
from hardneg.false_negatives.features import SHARED_FEATURES, PairFeatures
from hardneg.false_negatives.judgements import Judgements, no_strangers
from hardneg.false_negatives.learn import LADDER, TELLING, fit_judged, fit_known
from hardneg.false_negatives.model import LogisticModel, Posterior, check_identity
from hardneg.false_negatives.population import Found, learnable
from hardneg.mining.reopen import Reopened
from hardneg.progress import Progress, silent
from hardneg.storage.arrays import Float, Ragged

HIDEABLE = 200  # number of queries with several positives from which hiding one of them pays off

_GROUPED = 200_000  # pairs to learn from when groups are the truth

_LONGEST = LADDER[-1]


@dataclass(frozen=True)
class Learned:
    """A model, its training data, and a report on it."""

    model: LogisticModel
    source: str
    report: dict[str, Any]


def family(
    run: Reopened, features: PairFeatures, posterior: Posterior | None, learn: str, seed: int, progress: Progress
) -> Learned:
    """The posterior whose thresholds are certified: the given one, or one learned without judgements."""
    if posterior is not None:
        check_identity(posterior, run.run.info["fingerprints"], "the posterior")
        return Learned(
            LogisticModel(posterior.features, posterior.weights, posterior.intercept),
            posterior.source,
            dict(posterior.report),
        )
    try:
        return learn_from(Found.of_run(run), features, learn, None, seed, progress)
    except DataError as error:
        # Without known positives, shared neighbors still order the candidates; the judgements set the level.
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
    """Learn without judgements. `learn`: see `calibrate`. Raises DataError if nothing can be learned that way."""
    positives = found.context.pairs.positives
    if learn == "groups":
        return from_groups(found, features, names, seed, progress)
    several = int((positives.lengths > 1).sum())
    if learn == "hidden" and several == 0:
        raise DataError("no query has several positives: nothing can be hidden, use learn='known'")
    if learn == "hidden" or (learn == "auto" and several >= HIDEABLE):
        hidden, rest = hide(positives, seed)
        data = learnable(
            found, PairFeatures(found.context, rest), (*SHARED_FEATURES, *TELLING[1:]), hidden, seed, progress
        )
        model, report = fit_known(data.values, data.known, hidden=True)
        return Learned(model, "hidden positives", report)
    data = learnable(found, features, (*SHARED_FEATURES, *TELLING[1:]), positives, seed, progress)
    model, report = fit_known(data.values, data.known)
    return Learned(model, "known positives", report)


def hide(positives: Ragged, seed: int) -> tuple[Ragged, Ragged]:
    """(one random positive of each query that has several, all other positives)."""
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
    pairs = found.context.pairs
    if pairs.document_groups is None or pairs.query_groups is None:
        raise DataError("the dataset has no groups: a column 'group' or 'label' (--group-column), or groups.tsv")
    wanted = _LONGEST if names is None else tuple(names)
    data = learnable(found, features, wanted, pairs.positives, seed, progress)
    groups = pairs.query_groups[data.query], pairs.document_groups[data.document]
    usable = np.flatnonzero((groups[0] >= 0) & (groups[1] >= 0) & ~data.known)
    usable = np.sort(np.random.default_rng(seed).permutation(usable)[:_GROUPED])
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
    run: Reopened, features: PairFeatures, judged: Judgements, names: Sequence[str] | None, seed: int
) -> Learned:
    wanted = _LONGEST if names is None else tuple(names)
    values = _values_of(run, features, judged, wanted)
    weights = np.where(np.isnan(judged.inclusion), 1.0, 1 / judged.inclusion)
    model, report = fit_judged(values, judged.relevant, weights, judged.query, names, seed)
    return Learned(model, "judgements", report)


def _values_of(run: Reopened, features: PairFeatures, judged: Judgements, names: Sequence[str]) -> dict[str, Float]:
    """Features of the judged pairs, `[m]` by name."""
    values = {name: np.full(len(judged.query), np.nan, np.float32) for name in names}
    for part in run:
        here = np.flatnonzero(np.isin(judged.query, part.candidates.queries))
        if len(here) == 0:
            continue
        block = part.candidates.rows(judged.query[here] - part.candidates.queries[0])
        match = block.documents == judged.document[here][:, None]
        there = match.any(1)
        found = features.of(names, block, np.where(there, match.argmax(1), -1)[:, None])
        for name in names:
            values[name][here[there]] = found[name][there, 0]
    no_strangers(np.isnan(values[names[0]]), judged, run.pairs)
    return values
