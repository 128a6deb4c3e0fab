"""How many negatives are relevant, told by positives that were hidden: for runs without a posterior and without groups."""

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

_QUERIES = 4096  # whose negatives are looked at


def with_hidden_positives(subject: Subject, run: Run, seed: int, progress: Progress = silent) -> Subject:
    """With the probabilities of a posterior that is learned from hidden positives, of a sample of the queries.

    Where queries have several positives, one of each is hidden and looked for among the candidates: what is said of it is
    what would be said of a relevant document that nobody labelled (see `hardneg.calibrate`).

    Returns:
        The same, where something better is known, or fewer than 200 queries have several positives, or none was found.
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
