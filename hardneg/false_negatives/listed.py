"""Features of candidates that come from several sources, or have the scores of a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hardneg.errors import UsageError
from hardneg.mining.candidates import Candidates, Context
from hardneg.storage.arrays import Float

if TYPE_CHECKING:
    from hardneg.mining.run import Run

KINDS = ("source_rank", "source_score", "teacher")


def features_of(run: Run, context: Context) -> tuple[str, ...]:
    """The names of the features that a run has besides those of all runs.

    They are rank and score of each source but the search by the run's own encoder, whose score is a feature anyway, and the scores
    of teachers that have scored every candidate.
    """
    sources: dict[str, str] = run.info["resolved"].get("sources", {})
    others = [label for label, spec in sources.items() if spec.partition(":")[0] != "dense"]
    names = [f"{kind}:{label}" for label in others for kind in KINDS[:2]]
    return (*names, *(_complete(run, context)))


def _complete(run: Run, context: Context) -> list[str]:
    """The features of the teachers that have scored as many pairs as the run has candidates, and its positives."""
    if context.taught is None:
        return []
    least = run.info["counts"]["candidates"]
    teachers = [context.taught.named(name) for name in context.taught.names]
    parts = range(len(run.candidate_files()))
    return [each.feature for each in teachers if sum(len(each.part(i)[0]) for i in parts) >= least]


def listed_feature(name: str, candidates: Candidates, context: Context) -> Float:
    """float32 `[n, K]`: a feature of one of the `KINDS`, for all candidates.

    `source_rank:LABEL` is the natural logarithm of the rank that the source gave; where it did not list the candidate, that of one
    more than the query's number of candidates. `source_score:LABEL` is its score, scaled so that the lowest score that it gave to a
    candidate of the query is 0 and the highest 1; 0 where it did not list the candidate.

    Raises:
        UsageError: the run has no such source, or no such teacher, or that has not scored all candidates.
    """
    kind, _, label = name.partition(":")
    if kind == "teacher":
        return _taught(label, candidates, context)
    listed = candidates.listed
    if listed is None or label not in listed.labels:
        raise UsageError(
            f"the feature {name!r} needs candidates of a source {label!r}, which these are not: mine with --candidates, as where the "
            f"posterior was learned, or calibrate again"
        )
    place = listed.labels.index(label)
    ranks, scores = listed.ranks[place], listed.scores[place].astype(np.float64)
    values: Float
    there = ranks > 0
    if kind == "source_rank":
        values = np.log(np.where(there, ranks, ranks.shape[1] + 1)).astype(np.float32)
        return values
    known = there & ~np.isnan(scores)
    low = np.where(known, scores, np.inf).min(1, initial=np.inf)[:, None]
    high = np.where(known, scores, -np.inf).max(1, initial=-np.inf)[:, None]
    with np.errstate(invalid="ignore"):
        scaled = np.where(high > low, (scores - low) / np.where(high > low, high - low, 1.0), 1.0)
    values = np.where(there, np.where(known, scaled, 1.0), 0.0).astype(np.float32)
    return values


def _taught(digest: str, candidates: Candidates, context: Context) -> Float:
    teacher = None if context.taught is None else context.taught.by_hash(digest)
    if teacher is None:
        raise UsageError(
            f"the posterior looks at the scores of a teacher ({digest}...), which this run does not have: score it with the same one "
            f"(hardneg score RUN --scorer ..., or --scores FILE), or calibrate again"
        )
    scores = teacher.of(candidates.queries, candidates.documents)
    missing = int(np.isnan(scores).sum())
    if missing:
        raise UsageError(
            f"the teacher {teacher.folder.name!r} has not scored {missing:,} candidates that the posterior asks for: "
            f"{teacher.more()}"
        )
    return scores
