"""Calibration: from a run, with or without judgements, to a posterior and its threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from hardneg.ambient import own_settings
from hardneg.errors import DataError, UsageError
from hardneg.false_negatives.advice import Files, not_certified
from hardneg.false_negatives.corrected import Predictions, check_judge
from hardneg.false_negatives.features import PairFeatures, check_features
from hardneg.false_negatives.guarantee import Test, certify
from hardneg.false_negatives.judgements import (
    Judgements,
    check_enough,
    draw_id,
    matched,
    places,
    read_judgements,
)
from hardneg.false_negatives.learn import check_classes, clipped_weights
from hardneg.false_negatives.model import MISFIT, LogisticModel, Posterior, identity, selection_of, sources_of
from hardneg.false_negatives.population import Found, Ladder, Population, expected_threshold, ladder
from hardneg.false_negatives.sources import Learned, family, from_judged, learn_from
from hardneg.mining.reopen import Reopened
from hardneg.mining.run import Run
from hardneg.progress import Progress, with_progress
from hardneg.storage.arrays import Mask

_DOUBT = 3.0  # false negatives: how much of what was said counts before judgements do

LEARN = ("auto", "known", "hidden", "groups", "judged")


class NotCertified(DataError):
    """The judgements do not certify any threshold (CLI exit code 1)."""


@with_progress
@own_settings()
def calibrate(
    run: str | Path | Run,
    judgements: str | Path | None = None,
    *,
    predictions: str | Path | None = None,
    trust_judge: bool = False,
    alpha: float | None = None,
    confidence: float = 0.95,
    learn: str = "auto",
    features: Sequence[str] | None = None,
    posterior: Posterior | None = None,
    uncertified: bool = False,
    seed: int = 0,
    progress: Progress | bool = False,
) -> Posterior:
    """Learn the false-negative posterior of a run and choose its threshold.

    Args:
        run: a finished run.
        judgements: a CSV file that `judge` wrote, filled in. Its held-out pairs certify the threshold; its other pairs set the level
            of the posterior. Or one that a report saved, which holds out nothing. None: the threshold is where the model expects a
            share of alpha.
        predictions: a CSV file that a model filled; a person's `judgements` of some of its pairs correct it (`prediction_powered`).
        trust_judge: take the word of a model for the truth, where `judgements` are those of a model.
        alpha: the allowed share of false negatives among the negatives; None: what the judgements were drawn for, or 0.05.
        confidence: confidence of the guarantee.
        learn: the training data. `known`: the known positives only. `hidden`: one of several positives is hidden and searched for.
            `groups`: the dataset's groups are the truth. `judged`: all judgements, which then certify nothing. `auto`: judged for
            judgements that hold out nothing, otherwise hidden or known.
        features: feature names for `judged` and `groups`; None: chosen by cross-validation.
        posterior: the posterior that `judge` drew for. Its threshold is certified; only its level is learned.
        uncertified: return a posterior with an expected threshold if none can be certified.
        seed: random seed of samples.
        progress: True for bars, or called with the progress of each stage.

    Raises:
        NotCertified: there are too few judgements, or too many of them are false; the message says how many more are needed.
        DataError, UsageError: see their messages.
    """
    assert callable(progress)  # see `with_progress`
    check_rates(0.05 if alpha is None else alpha, confidence)
    _check_choices(learn, features, posterior, judgements is not None, predictions is not None)
    reopened, pair_features = open_run(run, progress)
    judged = None if judgements is None else read_judgements(Path(judgements), reopened.pairs)
    if alpha is None:
        alpha = 0.05 if judged is None or judged.alpha is None else judged.alpha
    if judged is not None and learn == "auto" and posterior is None and predictions is None and not judged.drawn:
        learn = "judged"
    if judged is not None and judgements is not None and learn != "judged":
        check_enough(len(judged.relevant), str(judgements))
        check_judge(judged, str(judgements), trust_judge, reopened.run.folder)
        model = Predictions.read(predictions, reopened.pairs, judged, judgements, alpha, draw_id(reopened, posterior))
        start = family(reopened, pair_features, posterior, learn, seed, progress)
        wanted = _Wanted(alpha, confidence, uncertified, model, Files.of(judgements, predictions))
        return _certified(reopened, pair_features, judged, start, wanted, progress)
    if judged is None:
        learned = learn_from(Found.of_run(reopened), pair_features, learn, features, seed, progress)
        return _expected(learned, Population(reopened, pair_features, learned.model, progress), alpha)
    return _from_judged(reopened, pair_features, judged, features, alpha, seed, progress)


def _from_judged(
    run: Reopened,
    features: PairFeatures,
    judged: Judgements,
    names: Sequence[str] | None,
    alpha: float,
    seed: int,
    progress: Progress,
) -> Posterior:
    """Learn from judgements, without a guarantee; those of pairs that other filters rejected teach, and say nothing of negatives."""
    if names is not None:
        check_classes(judged.relevant)
    learned = from_judged(run, features, judged, names, seed, progress)
    population = Population(run, features, learned.model, progress)
    place, is_open = matched(judged, population)
    return _expected(learned, population, alpha, judged.those(is_open), place[is_open])


@dataclass(frozen=True)
class _Wanted:
    """What is to be certified: see `calibrate`."""

    alpha: float
    confidence: float
    uncertified: bool
    predictions: Predictions | None
    files: Files


def _certified(
    run: Reopened, features: PairFeatures, judged: Judgements, start: Learned, wanted: _Wanted, progress: Progress
) -> Posterior:
    """Set the level of `start` with some judgements, and choose the highest threshold that the held-out ones certify."""
    alpha, confidence, predictions = wanted.alpha, wanted.confidence, wanted.predictions
    population = Population(run, features, start.model, progress)
    place = places(judged, population)
    final, level = _level(start.model, population, judged, place)
    rungs = ladder(population, alpha)
    held = judged.held_out
    able = np.logical_or.reduce(rungs.chosen)
    looks: list[list[Test]]
    if predictions is None:
        _check_share(judged, place[held], able)
        looks = [
            _at_look(rungs, place, judged, look, alpha, confidence)
            for look in range(1, 1 + int(judged.look[held].max()))
        ]
    else:
        _check_share(predictions.judged, places(predictions.judged, population)[predictions.judged.held_out], able)
        if judged.chosen_by is None:
            _check_share(judged, place[held], able)
        looks = [predictions.tests(rungs, population, judged, place, alpha, confidence)]
    tests = looks[-1]
    # What passed at any look holds, as the levels of all looks add up to that of the guarantee.
    passed = sorted((test for each in looks for test in each if test.passed), key=lambda test: test.threshold)
    report = {**start.report, "level": level, "tests": [asdict(test) for each in looks for test in each]}
    if predictions is not None:
        report |= {"judge": predictions.report(judged)}
    in_loss = None if start.in_loss is None else _at_level(start.in_loss, level)
    learned = Learned(final, start.source, report, in_loss)
    if not passed:
        if not wanted.uncertified:
            raise NotCertified(not_certified(tests, alpha, confidence, judged, population, predictions, wanted.files))
        return _expected(learned, Population(run, features, final, progress), alpha, judged, place)
    # The same order of candidates, on the scale of the final model.
    threshold = float(_moved(np.array([passed[-1].threshold]), level)[0])
    guarantee = {
        **asdict(passed[-1]),
        "alpha": alpha,
        "confidence": confidence,
        "threshold": threshold,
        "selection": selection_of(run.run.info["config"]),
        "depth": int(run.run.info["resolved"]["depth"]),
        "drawn_from": sources_of(run.run.info["fingerprints"]),
        "method": "fixed-sequence hypergeometric test (Learn then Test, arXiv 2110.01052), alpha spent over looks"
        + ("" if predictions is None else "; of a model's judgements corrected by a person's (arXiv 2301.09633)"),
        "judged_by": list(judged.judges) or ["a person"],
    }
    return _finished(learned, threshold, run, guarantee)


def _at_look(
    rungs: Ladder, place: NDArray[np.int64], judged: Judgements, look: int, alpha: float, confidence: float
) -> list[Test]:
    """The tests with what was judged up to this look."""
    seen = judged.held_out & (judged.look <= look)
    chosen = [each[place[seen]] for each in rungs.chosen]
    return certify(
        rungs.thresholds,
        [int(each.sum()) for each in rungs.chosen],
        [int(each.sum()) for each in chosen],
        [int((each & judged.relevant[seen]).sum()) for each in chosen],
        alpha,
        confidence,
        look,
    )


def open_run(run: str | Path | Run, progress: Progress) -> tuple[Reopened, PairFeatures]:
    reopened = Reopened(run if isinstance(run, Run) else Run(run), progress=progress)
    return reopened, PairFeatures(reopened.context)


def check_rates(alpha: float, confidence: float) -> None:
    if not 0 < alpha < 1 or not 0.5 <= confidence < 1:
        raise UsageError(f"alpha {alpha} must be between 0 and 1, the confidence {confidence} at least 0.5 and below 1")


def _check_choices(
    learn: str, features: Sequence[str] | None, posterior: Posterior | None, judged: bool, predicted: bool
) -> None:
    """Raise UsageError for options that exclude each other."""
    if predicted and (not judged or learn == "judged"):
        raise UsageError(
            "predictions of a model are corrected by judgements of a person: give these as well, and no learn='judged'"
        )
    if learn not in LEARN:
        raise UsageError(f"learn must be one of {', '.join(LEARN)}, not {learn!r}")
    if learn == "judged" and not judged:
        raise UsageError("to learn from judgements, give a file of them: hardneg judge RUN --out F.csv draws the pairs")
    if learn == "groups" and judged:
        raise UsageError("groups tell the truth of every pair: give no judgements with learn='groups'")
    if posterior is not None and (learn != "auto" or not judged):
        raise UsageError("a given posterior is only certified: give judgements drawn for it, and no way to learn")
    if features is not None:
        check_features(features)
        if learn not in ("judged", "groups"):
            raise UsageError("features can be chosen with learn='judged' or 'groups' only")


def _finished(
    learned: Learned, threshold: float, run: Reopened, guarantee: dict[str, Any] | None, **more: Any
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
        learned.in_loss,
    )


def _expected(
    learned: Learned,
    population: Population,
    alpha: float,
    judged: Judgements | None = None,
    place: NDArray[np.int64] | None = None,
) -> Posterior:
    """Return the posterior with the threshold at which the model expects a share of alpha, or the nearest one.

    Where negatives were judged (at `place` among the open candidates), what the model expects is corrected by how many of these
    are false: a model may fit all candidates, and not those few that become negatives.
    """
    for_selection = {"selection": selection_of(population.run.run.info["config"])}
    if "uninformative" in learned.report:
        share = population.expected(1.0)
        return _finished(learned, 1.0, population.run, None, alpha=alpha, expected=share, **for_selection)

    def corrected(threshold: float) -> float:
        share = population.expected(threshold)
        if judged is None or place is None:
            return share
        seen = population.negatives(threshold)[place] & judged.held_out
        said = float(population.probabilities[place[seen]].sum(dtype=np.float64))
        return min(1.0, share * (float(judged.relevant[seen].sum()) + _DOUBT) / (said + _DOUBT))

    threshold = expected_threshold(population, alpha, corrected)
    found = corrected(threshold)
    if judged is not None:
        rejected, said = population.rejected(threshold), population.expected(threshold)
        more: dict[str, Any] = {"alpha": alpha, "expected": found, "rejected": rejected, **for_selection}
        more |= {"corrected": found / said} if said > 0 else {}
        return _finished(learned, threshold, population.run, None, **more)
    low, high = (population.expected(threshold, shift) for shift in learned.report.get("level_range", (0.0, 0.0)))
    between = [low / MISFIT, min(high * MISFIT, 1.0)]
    more = {"alpha": alpha, "expected": found, "expected_range": between, "rejected": population.rejected(threshold)}
    more |= for_selection
    return _finished(learned, threshold, population.run, None, **more)


def _level(
    model: LogisticModel, population: Population, judged: Judgements, place: NDArray[np.int64]
) -> tuple[LogisticModel, dict[str, float]]:
    """The model, rescaled by the judgements that are not held out (Platt 1999). The order of candidates does not change.

    The model stays as it is if the judgements have one class only or would reverse the order.
    """
    used = ~judged.held_out
    odds = logit(population.probabilities[place[used]].astype(np.float64).clip(1e-6, 1 - 1e-6))
    relevant = judged.relevant[used]
    level = {"slope": 1.0, "shift": 0.0}
    if len(relevant) >= 2 and relevant.any() and not relevant.all():
        weights = np.where(np.isnan(judged.inclusion[used]), 1.0, 1 / judged.inclusion[used])
        weights = clipped_weights(weights)
        # A wide prior around the model's own scale.
        fitted = LogisticRegression(C=10.0, max_iter=1000).fit(odds[:, None], relevant, weights)
        if fitted.coef_[0, 0] > 0:
            level = {"slope": float(fitted.coef_[0, 0]), "shift": float(fitted.intercept_[0])}
    return _at_level(model, level), level


def _at_level(model: LogisticModel, level: dict[str, float]) -> LogisticModel:
    slope, shift = level["slope"], level["shift"]
    return LogisticModel(
        model.features, tuple(weight * slope for weight in model.weights), model.intercept * slope + shift
    )


def _moved(probability: NDArray[np.float64], level: dict[str, float]) -> NDArray[np.float64]:
    return np.asarray(expit(logit(probability.clip(1e-12, 1 - 1e-12)) * level["slope"] + level["shift"]))


def _check_share(judged: Judgements, held: NDArray[np.int64], able: Mask) -> None:
    """Raise DataError unless each pair that could become a negative was judged with one chance, and none is missing.

    Args:
        held: positions of the held-out pairs among the open candidates.
        able: bool, the open candidates that could become negatives with one of the thresholds.
    """
    chances = np.unique(judged.inclusion[judged.held_out])
    if len(chances) != 1 or np.isnan(chances[0]):
        raise DataError(
            "a guarantee needs pairs held out with one known chance (the columns 'part' and 'inclusion_probability' as "
            "hardneg judge writes them): keep those columns, or use --learn judged, which gives no guarantee"
        )
    share = float(chances[0])
    expected = share * int(able.sum())
    # Allow a hundredth: on another machine, the last bits of a model may move a candidate across a threshold.
    if able[held].mean() < 0.99 or abs(len(held) - expected) > 1 + 0.01 * expected:
        raise DataError(
            f"{len(held):,} pairs are held out, {int(able[held].sum()):,} of them could become negatives, and "
            f"{expected:,.0f} were to be expected: the file was drawn for another --alpha, posterior or --learn, before the "
            f"run was scored (hardneg score: what a teacher says is a feature of the posterior), or lines are missing"
        )
