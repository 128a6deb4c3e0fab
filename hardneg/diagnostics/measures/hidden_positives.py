"""The share of relevant negatives, estimated with hidden positives: for runs without a posterior and without groups."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hardneg.diagnostics.estimates import sampled
from hardneg.diagnostics.subject import Subject
from hardneg.errors import DataError
from hardneg.false_negatives.features import PairFeatures
from hardneg.false_negatives.population import Found
from hardneg.false_negatives.sources import HIDEABLE, learn_from
from hardneg.mining.candidates import Candidates
from hardneg.mining.reopen import Reopened
from hardneg.mining.run import Run
from hardneg.progress import Progress, silent

_QUERIES = 4096  # queries whose negatives are estimated


def with_hidden_positives(subject: Subject, run: Run, seed: int, progress: Progress = silent) -> Subject:
    """Add the probabilities of a posterior that is learned from hidden positives, for a sample of the queries.

    One positive of each query that has several is hidden and searched for among the candidates. What is measured for it is what would
    be measured for a relevant document that nobody labelled (see `hardneg.calibrate`).

    Returns:
        A new subject; or the same one, if it already has better evidence, if fewer than 200 queries have several positives, or if
        no hidden positive was found.
    """
    pairs = subject.pairs
    grouped = pairs.query_groups is not None and pairs.document_groups is not None
    if subject.probability is not None or grouped or int((pairs.positives.lengths > 1).sum()) < HIDEABLE:
        return subject
    reopened = Reopened(run, pairs=pairs, progress=progress)
    features = PairFeatures(reopened.context)
    try:
        model = learn_from(Found.of_run(reopened), features, "hidden", None, seed, progress).model
    except DataError:
        return subject
    rows = sampled(len(pairs), _QUERIES, np.random.default_rng(seed))
    empty = np.empty((len(rows), 0), np.float32)
    block = Candidates(rows, subject.documents[rows], subject.scores[rows], subject.positive[rows], empty)
    probability = np.full(subject.documents.shape, np.nan, np.float32)
    told = model.probability(features.of(model.features, block))
    probability[rows] = np.where(subject.real[rows], told, np.nan)
    return replace(subject, probability=probability, told_by="hidden positives")
