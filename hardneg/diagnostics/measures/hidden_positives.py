"""Estimate false negatives with hidden positives, for runs that have neither a posterior nor groups."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hardneg.diagnostics.estimates import sampled
from hardneg.diagnostics.measures.false_share import filtered_by_group
from hardneg.diagnostics.subject import Subject
from hardneg.errors import DataError
from hardneg.false_negatives.features import PairFeatures
from hardneg.false_negatives.model import HIDEABLE, LogisticModel
from hardneg.mining.reopen import Reopened
from hardneg.mining.run import Run
from hardneg.progress import Progress, silent
from hardneg.storage.arrays import Float

_QUERIES = 4096  # the largest number of queries whose negatives get probabilities


def with_hidden_positives(subject: Subject, run: Run, seed: int, progress: Progress = silent) -> Subject:
    """Estimate how likely the negatives of a sample of queries are relevant, by hiding known positives.

    For each query with several positives, one of them is treated as if it were unlabelled. It then stands for the
    relevant documents that nobody labelled. A posterior learns from the hidden positives among the candidates to tell
    relevant documents from others (see `hardneg.calibrate`).

    Args:
        subject: the negatives of `run`.
        run: the run.
        seed: the random seed for hiding positives and drawing queries.
        progress: a callback that receives the progress.

    Returns:
        A copy of `subject` with `probability`. Or `subject` itself, if it has better evidence (a posterior, or groups
        without a filter `group`), if fewer than 200 queries have several positives, or if the posterior could not be
        learned.
    """
    pairs = subject.pairs
    grouped = pairs.query_groups is not None and pairs.document_groups is not None and not filtered_by_group(subject)
    if subject.probability is not None or grouped or int((pairs.positives.lengths > 1).sum()) < HIDEABLE:
        return subject
    # With them comes scikit-learn, which takes longer to import than the diagnosis of a small run takes.
    from hardneg.false_negatives.population import Found
    from hardneg.false_negatives.sources import learn_from

    reopened = Reopened(run, pairs=pairs, progress=progress)
    features = PairFeatures(reopened.context)
    try:
        model = learn_from(Found.of_run(reopened), features, "hidden", None, seed, progress).model
    except DataError:
        return subject
    rows = sampled(len(pairs), _QUERIES, np.random.default_rng(seed))
    probability = negatives_relevant(subject, reopened, features, model, rows)
    return replace(subject, probability=probability, told_by="hidden positives")


def negatives_relevant(
    subject: Subject,
    reopened: Reopened,
    features: PairFeatures,
    model: LogisticModel,
    rows: NDArray[np.int64],
) -> Float:
    """float32 `[n, K]`: P(relevant) of the negatives of some queries of a run by a model; NaN for the others and for padding."""
    out = np.full(subject.documents.shape, np.nan, np.float32)
    for part in reopened:
        here = rows[np.isin(rows, part.candidates.queries)]
        if len(here):
            block = part.candidates.rows(here - part.candidates.queries[0])
            columns = block.columns(subject.documents[here])
            predicted = model.probability(features.of(model.needed, block, columns))
            out[here] = np.where(columns >= 0, predicted, np.nan)
    return out
