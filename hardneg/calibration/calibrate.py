"""From a run, with or without judgements, to a posterior and its threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from hardneg.calibration.guarantee import certify, judgements_needed
from hardneg.calibration.judgements import (
    Drawn,
    Judgements,
    draw_pairs,
    judge_with,
    read_judgements,
    write_judgements,
)
from hardneg.calibration.learn import TELLING, Logistic, check_classes, fit_judged, fit_known
from hardneg.calibration.population import (
    Learnable,
    Population,
    expected_threshold,
    ladder,
    learnable,
)
from hardneg.data.pairs import Pairs, Ragged
from hardneg.errors import DataError, UsageError
from hardneg.mining.candidates import Float, Mask
from hardneg.mining.cross_encoder import load_cross_encoder
from hardneg.mining.features import CROWDS, PairFeatures, check_features
from hardneg.mining.posterior import Posterior, check_identity, identity
from hardneg.mining.reopen import Reopened
from hardneg.mining.run import Run
from hardneg.progress import Progress, silent

LEARN = ("auto", "known", "hidden", "groups", "judged")
_HIDEABLE = 200  # queries with several positives, from which on hiding one of them is worth it
_JUDGED_GROUPS = 200_000  # pairs that are learned from where groups tell the truth


class NotCertified(DataError):
    """The judgements do not show that any threshold keeps the promise (CLI exit code 1)."""


@dataclass(frozen=True)
class _Learned:
    model: Logistic
    source: str
    report: dict[str, Any]


def judge(
    run: str | Path | Run,
    out: str | Path,
    *,
    sample: int = 300,
    alpha: float = 0.05,
    seed: int = 0,
    posterior: Posterior | None = None,
    judged: str | Path | None = None,
    cross_encoder: str | None = None,
    cut: float = 0.5,
    progress: Progress = silent,
) -> Drawn:
    """Draw candidates of a run to be judged, and write them as CSV.

    Args:
        run: a finished run.
        out: the CSV file.
        sample: how many. A larger one with the same run, alpha, seed and posterior contains the smaller.
        alpha: share of false negatives that shall be promised: pairs are drawn near where it will be decided.
        seed: of the draw.
        posterior: whose threshold shall be certified; None: one learned from the known positives.
        judged: a file judged before, whose judgements are taken over.
        cross_encoder: judges instead of people: 1 where its score is above `cut`.
        progress: told of the stages.

    Raises:
        DataError, UsageError: see their messages.
    """
    _check_rates(alpha, 0.95)
    if sample < 1:
        raise UsageError("the sample must be 1 pair or more")
    reopened, features = _open(run, progress)
    model = _family(reopened, features, posterior, seed, progress).model
    population = Population(reopened, features, model, progress)
    if not len(population.probabilities):
        raise DataError(
            f"{reopened.run.folder}: every candidate was rejected by other filters: nothing is left to judge"
        )
    drawn = draw_pairs(population, ladder(population, alpha), sample, seed)
    relevant: list[int | None] | None = None
    if cross_encoder is not None:
        relevant = judge_with(load_cross_encoder(cross_encoder), population, drawn, cut)
    elif judged is not None:
        relevant = _taken_over(read_judgements(Path(judged), reopened.pairs), population, drawn)
    write_judgements(Path(out), population, drawn, relevant)
    return drawn


def calibrate(
    run: str | Path | Run,
    judgements: str | Path | None = None,
    *,
    alpha: float = 0.05,
    confidence: float = 0.95,
    learn: str = "auto",
    features: Sequence[str] | None = None,
    posterior: Posterior | None = None,
    uncertified: bool = False,
    seed: int = 0,
    progress: Progress = silent,
) -> Posterior:
    """Learn the false-negative posterior of a run and choose its threshold.

    Args:
        run: a finished run.
        judgements: a CSV file as `judge` writes it, filled in. With its held-out pairs the threshold is certified; by
            the others the posterior's level is set. None: the threshold is where the model expects alpha.
        alpha: the share of false negatives among the negatives that is allowed.
        confidence: of the guarantee.
        learn: `known` (positives alone), `hidden` (one of several positives is hidden and looked for), `groups` (the
            dataset's groups are the truth), `judged` (from all judgements; then nothing is certified), or `auto`:
            hidden or known.
        features: names for `judged` and `groups`; None: chosen by cross-validation.
        posterior: learned before, that `judge` drew for: its threshold is certified, nothing new is learned but its level.
        uncertified: return a posterior with an expected threshold where none can be certified.
        seed: of samples.
        progress: told of the stages.

    Raises:
        NotCertified: there are too few judgements, or too many of them are false; the message says how many more.
        DataError, UsageError: see their messages.
    """
    _check_rates(alpha, confidence)
    if learn not in LEARN:
        raise UsageError(f"learn must be one of {', '.join(LEARN)}, not {learn!r}")
    if learn == "judged" and judgements is None:
        raise UsageError("to learn from judgements, give a file of them: hardneg judge RUN --out F.csv draws the pairs")
    if features is not None:
        check_features(features)
        if learn not in ("judged", "groups"):
            raise UsageError("features can be chosen with learn='judged' or 'groups' only")
    reopened, pair_features = _open(run, progress)
    config = reopened.run.info["config"]
    selection = {name: config[name] for name in ("sampler", "negatives", "seed")}
    judged = None if judgements is None else read_judgements(Path(judgements), reopened.pairs)
    if judged is not None:
        check_classes(judged.relevant)
    if judged is None or learn in ("judged", "groups"):
        learned = (
            _from_judged(reopened, pair_features, judged, features, seed)
            if learn == "judged" and judged is not None
            else _learn(reopened, pair_features, learn, features, seed, progress)
        )
        population = Population(reopened, pair_features, learned.model, progress)
        return _expected(learned, population, alpha)
    family = _family(reopened, pair_features, posterior, seed, progress, learn)
    population = Population(reopened, pair_features, family.model, progress)
    place = _places(judged, population)
    final, level = _level(family.model, population, judged, place)
    rungs = ladder(population, alpha)
    held = judged.held_out
    share = _share(judged, place[held], np.logical_or.reduce(rungs.chosen))
    seen = [chosen[place[held]] for chosen in rungs.chosen]
    tests = certify(
        rungs.thresholds,
        [int(chosen.sum()) for chosen in rungs.chosen],
        [int(chosen.sum()) for chosen in seen],
        [int((chosen & judged.relevant[held]).sum()) for chosen in seen],
        share,
        alpha,
        confidence,
    )
    passed = [test for test in tests if test.passed]
    report = {**family.report, "level": level, "tests": [asdict(test) for test in tests]}
    learned = _Learned(final, family.source, report)
    if not passed:
        if not uncertified:
            raise NotCertified(_not_certified(tests, alpha, confidence, int(held.sum()), len(judged.relevant)))
        leveled = Population(reopened, pair_features, final, progress)
        return _expected(learned, leveled, alpha)
    # The same order of candidates, on the scale of the final model.
    threshold = float(_moved(np.array([passed[-1].threshold]), level)[0])
    guarantee = {
        "alpha": alpha,
        "confidence": confidence,
        "threshold": threshold,
        "negatives": passed[-1].negatives,
        "judged": passed[-1].judged,
        "false": passed[-1].false,
        "p": passed[-1].p,
        "selection": selection,
        "method": "fixed-sequence test of the Poisson bound (Learn then Test, arXiv 2110.01052)",
    }
    return _finished(learned, threshold, reopened, guarantee)


def _open(run: str | Path | Run, progress: Progress) -> tuple[Reopened, PairFeatures]:
    reopened = Reopened(run if isinstance(run, Run) else Run(run), progress=progress)
    return reopened, PairFeatures.shared(reopened.context)


def _check_rates(alpha: float, confidence: float) -> None:
    if not 0 < alpha < 1 or not 0.5 <= confidence < 1:
        raise UsageError(f"alpha {alpha} must be between 0 and 1, the confidence {confidence} at least 0.5 and below 1")


def _finished(
    learned: _Learned, threshold: float, run: Reopened, guarantee: dict[str, Any] | None, **more: float
) -> Posterior:
    return Posterior(
        learned.model.features,
        learned.model.weights,
        learned.model.intercept,
        threshold,
        learned.source,
        identity(run.run.info["fingerprints"]),
        {**learned.report, **more},
        guarantee,
    )


def _expected(learned: _Learned, population: Population, alpha: float) -> Posterior:
    """With the threshold at which the model expects alpha false negatives, or as near as it comes."""
    threshold = expected_threshold(population, alpha)
    found = population.expected(threshold)
    return _finished(learned, threshold, population.run, None, alpha=alpha, expected=found)


def _family(
    run: Reopened,
    features: PairFeatures,
    posterior: Posterior | None,
    seed: int,
    progress: Progress,
    learn: str = "auto",
) -> _Learned:
    """The posterior whose thresholds are certified: the given one, or what can be learned without judgements."""
    if posterior is not None:
        check_identity(posterior, run.run.info["fingerprints"], "the posterior")
        return _Learned(
            Logistic(posterior.features, posterior.weights, posterior.intercept),
            posterior.source,
            dict(posterior.report),
        )
    try:
        return _learn(run, features, learn, None, seed, progress)
    except DataError as error:
        # Without known positives there is still the crowd: as a ladder of thresholds it will do, its level is judged.
        model = Logistic(CROWDS, (4.0, 4.0, 4.0), -4.0)
        return _Learned(model, "judgements", {"learned": f"equal weights of the crowds ({error})"})


def _learn(
    run: Reopened, features: PairFeatures, learn: str, names: Sequence[str] | None, seed: int, progress: Progress
) -> _Learned:
    positives = run.pairs.positives
    if learn == "groups":
        return _from_groups(run, features, names, seed, progress)
    several = int((positives.lengths > 1).sum())
    if learn == "hidden" and several == 0:
        raise DataError("no query has several positives: nothing can be hidden, use learn='known'")
    if learn == "hidden" or (learn == "auto" and several >= _HIDEABLE):
        hidden, rest = hide(positives, seed)
        data = learnable(run, PairFeatures(run.context, rest), (*CROWDS, *TELLING[1:]), hidden, seed, progress)
        model, report = fit_known(data.values, data.known, hidden=True)
        return _Learned(model, "hidden positives", report)
    data = learnable(run, features, (*CROWDS, *TELLING[1:]), positives, seed, progress)
    model, report = fit_known(data.values, data.known)
    return _Learned(model, "known positives", report)


def hide(positives: Ragged, seed: int) -> tuple[Ragged, Ragged]:
    """(one random positive of every query that has several, all others)."""
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


def _from_groups(
    run: Reopened, features: PairFeatures, names: Sequence[str] | None, seed: int, progress: Progress
) -> _Learned:
    pairs = run.pairs
    if pairs.document_groups is None or pairs.query_groups is None:
        raise DataError("the dataset has no groups: a column 'group' or 'label' (--group-column), or groups.tsv")
    wanted = (*CROWDS, "margin", "reach_query", "reach_positive") if names is None else tuple(names)
    data = learnable(run, features, wanted, pairs.positives, seed, progress)
    groups = pairs.query_groups[data.query], pairs.document_groups[data.document]
    usable = np.flatnonzero((groups[0] >= 0) & (groups[1] >= 0) & ~data.known)
    usable = np.sort(np.random.default_rng(seed).permutation(usable)[:_JUDGED_GROUPS])
    model, report = fit_judged(
        {name: value[usable] for name, value in data.values.items()},
        (groups[0] == groups[1])[usable],
        np.ones(len(usable)),
        data.query[usable],
        names,
        seed,
    )
    return _Learned(model, "groups", report)


def _from_judged(
    run: Reopened, features: PairFeatures, judged: Judgements, names: Sequence[str] | None, seed: int
) -> _Learned:
    wanted = (*CROWDS, "margin", "reach_query", "reach_positive") if names is None else tuple(names)
    values = _values_of(run, features, judged, wanted)
    weights = np.where(np.isnan(judged.inclusion), 1.0, 1 / judged.inclusion)
    model, report = fit_judged(values, judged.relevant, weights, judged.query, names, seed)
    return _Learned(model, "judgements", report)


def _values_of(run: Reopened, features: PairFeatures, judged: Judgements, names: Sequence[str]) -> dict[str, Float]:
    """Features of the judged pairs, `[m]` by name."""
    values = {name: np.full(len(judged.query), np.nan, np.float32) for name in names}
    for part in run:
        here = np.flatnonzero(np.isin(judged.query, part.candidates.queries))
        if len(here) == 0:
            continue
        rows, line = np.unique(judged.query[here] - part.candidates.queries[0], return_inverse=True)
        block = part.candidates.rows(rows)
        match = block.documents[line] == judged.document[here][:, None]
        there = match.any(1)
        columns = np.full((len(rows), int(np.bincount(line).max())), -1)
        slot = np.zeros(len(here), np.int64)
        taken = np.zeros(len(rows), np.int64)
        for i, row in enumerate(line):
            slot[i] = taken[row]
            taken[row] += 1
        columns[line[there], slot[there]] = match.argmax(1)[there]
        found = features.of(names, block, columns)
        for name in names:
            values[name][here[there]] = found[name][line[there], slot[there]]
    _no_strangers(np.isnan(values[names[0]]), judged, run.pairs)
    return values


def _places(judged: Judgements, population: Population) -> NDArray[np.int64]:
    """Which of the open candidates each judged pair is; DataError for what is none."""
    pairs = population.pairs
    keys = pairs.query * np.int64(len(population.run.pairs.document_ids)) + pairs.document
    wanted = judged.query * np.int64(len(population.run.pairs.document_ids)) + judged.document
    order = np.argsort(keys)
    place = order[np.searchsorted(keys, wanted, sorter=order).clip(max=max(0, len(keys) - 1))]
    _no_strangers(keys[place] != wanted, judged, population.run.pairs)
    return np.asarray(place, np.int64)


def _no_strangers(strange: Mask, judged: Judgements, pairs: Pairs) -> None:
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


def _level(
    model: Logistic, population: Population, judged: Judgements, place: NDArray[np.int64]
) -> tuple[Logistic, dict[str, float]]:
    """The model with its level set by the judgements that are not held out (Platt 1999): its order stays.

    Judgements of one class, or that turn the order round, leave it as it is.
    """
    used = ~judged.held_out
    odds = logit(population.probabilities[place[used]].astype(np.float64).clip(1e-6, 1 - 1e-6))
    relevant = judged.relevant[used]
    level = {"slope": 1.0, "shift": 0.0}
    if len(relevant) >= 2 and relevant.any() and not relevant.all():
        weights = np.where(np.isnan(judged.inclusion[used]), 1.0, 1 / judged.inclusion[used])
        weights = np.minimum(weights / weights.mean(), 10.0)
        # A wide prior around the scale that the model came with.
        fitted = LogisticRegression(C=10.0, max_iter=1000).fit(odds[:, None], relevant, weights)
        if fitted.coef_[0, 0] > 0:
            level = {"slope": float(fitted.coef_[0, 0]), "shift": float(fitted.intercept_[0])}
    slope, shift = level["slope"], level["shift"]
    moved = Logistic(model.features, tuple(weight * slope for weight in model.weights), model.intercept * slope + shift)
    return moved, level


def _moved(probability: NDArray[np.float64], level: dict[str, float]) -> NDArray[np.float64]:
    return np.asarray(expit(logit(probability.clip(1e-12, 1 - 1e-12)) * level["slope"] + level["shift"]))


def _share(judged: Judgements, held: NDArray[np.int64], able: Mask) -> float:
    """The chance with which every pair that could become a negative was judged; DataError unless the file shows it.

    Args:
        held: which of the open candidates were held out.
        able: bool, which of them could become negatives with one of the thresholds.
    """
    chances = np.unique(judged.inclusion[judged.held_out])
    if len(chances) != 1 or np.isnan(chances[0]):
        raise DataError(
            "a guarantee needs pairs held out with one known chance (the columns 'part' and 'inclusion_probability' as "
            "hardneg judge writes them): keep those columns, or use --learn judged, which gives no guarantee"
        )
    share = float(chances[0])
    expected = share * int(able.sum())
    # A hundredth: on another machine, the last bits of a model may move a candidate across a threshold.
    if able[held].mean() < 0.99 or abs(len(held) - expected) > 1 + 0.01 * expected:
        raise DataError(
            f"{len(held):,} pairs are held out, {int(able[held].sum()):,} of them could become negatives, and "
            f"{expected:,.0f} were to be expected: the file was drawn for another --alpha or posterior, or lines are missing"
        )
    return share


def _not_certified(tests: list[Any], alpha: float, confidence: float, held: int, judged: int) -> str:
    strictest = tests[0]
    needed = judgements_needed(tests, alpha, confidence, held)
    found = (
        f"no threshold can be certified to keep false negatives at {alpha:.1%} or less with confidence {confidence:.0%}: "
        f"even with the strictest, {strictest.false} of {strictest.judged} judged negatives are false"
    )
    if needed is None:
        more = "more judgements would hardly help: allow a larger --alpha, or mine with a better encoder"
    else:
        sample = max(judged + 1, -(-judged * needed // max(held, 1)))
        more = (
            f"about {sample - judged:,} more judgements would probably do: "
            f"hardneg judge RUN --sample {sample} --judged F.csv --out F2.csv keeps those there are"
        )
    return f"{found}. {more[0].upper()}{more[1:]}. --uncertified writes a posterior without a guarantee"


def _taken_over(judged: Judgements, population: Population, drawn: Drawn) -> list[int | None]:
    asked = population.pairs.take(drawn.place)
    known = {(int(q), int(d)): int(r) for q, d, r in zip(judged.query, judged.document, judged.relevant, strict=True)}
    return [known.get((int(q), int(d))) for q, d in zip(asked.query, asked.document, strict=True)]


__all__ = ["Learnable", "NotCertified", "calibrate", "hide", "judge"]
