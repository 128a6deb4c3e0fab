"""Filters that use another model: a guide encoder, a cross-encoder, or the scores of a teacher that a run keeps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hardneg.data.pairs import Pairs
from hardneg.errors import UsageError
from hardneg.mining.candidates import Candidates, Context
from hardneg.mining.cross_encoder import cross_encoder_scores, needs_texts
from hardneg.mining.filters.base import Filter, index_scores, list_scores, lowest_scores
from hardneg.mining.filters.limits import below_margin
from hardneg.mining.spec_options import SpecOptions
from hardneg.mining.teachers import TEACHER, check_name
from hardneg.storage.arrays import Mask


@dataclass(frozen=True, kw_only=True)
class Guide(Filter):
    """Keeps candidates that a guide model scores below the positive (GISTEmbed, arXiv 2402.16829).

    Attributes:
        model: spec of the guide encoder, as in `st:NAME`.
        margin: how far below the lowest positive's score a candidate must score.
    """

    name = "guide"
    words = ("model",)
    model: str
    margin: float = 0.0

    @property
    def guide_encoders(self) -> tuple[str, ...]:
        return (self.model,)

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        if context.embed is None:
            raise UsageError("the filter 'guide' needs the texts of the dataset: mine with a dataset that has them")
        vectors, index = context.embed(self.model)
        queries = np.asarray(vectors[candidates.queries], np.float32)
        scores = index.pair_scores(queries, np.where(alive, candidates.documents, -1))
        positives = context.pairs.positives.take(candidates.queries)
        lowest = lowest_scores(index_scores(index, queries, positives))
        return below_margin(scores, lowest[:, None], self.margin, None)


@dataclass(frozen=True, kw_only=True)
class CrossEncoder(Filter):
    """Keeps candidates that a cross-encoder finds not relevant (denoising of RocketQA, arXiv 2010.08191).

    Attributes:
        model: name of the cross-encoder, see `cross_encoder_scores`.
        max: the highest score that a candidate may have; None: no limit.
        margin: how far below the lowest positive's score a candidate must score; None: not checked.
    """

    name = "cross-encoder"
    slow = True
    words = ("model",)
    model: str
    max: float | None = None
    margin: float | None = None

    def lacks(self, pairs: Pairs) -> str | None:
        return needs_texts(pairs, self.model)

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        scores = cross_encoder_scores(
            context, self.model, candidates.queries, np.where(alive, candidates.documents, -1)
        )
        keep: Mask = scores <= (np.inf if self.max is None else np.float32(self.max))
        if self.margin is not None:
            positives = list_scores(
                context.pairs.positives.take(candidates.queries),
                lambda rows, each: cross_encoder_scores(context, self.model, candidates.queries[rows], each),
            )
            lowest = lowest_scores(positives)
            keep &= below_margin(scores, lowest[:, None], self.margin, None)
        return keep


@dataclass(frozen=True, kw_only=True)
class Teacher(Filter):
    """Keeps candidates that a teacher scores below the positive, by the scores that `hardneg score` has left in the run.

    With several positives, the lowest counts. Queries without a positive have no margin. A candidate without a score is rejected, as
    nothing is known of it.

    Attributes:
        scorer: the name of the teacher in the run.
        max: the highest score that a candidate may have; None: no limit.
        margin: how far below the positive's own score by the teacher a candidate must score; None: not checked.
        relative: the same as a share of the positive's score; see `below_margin`.
    """

    name = "teacher"
    words = ("scorer",)
    scorer: str = TEACHER
    max: float | None = None
    margin: float | None = None
    relative: float | None = None

    def lacks(self, pairs: Pairs) -> str | None:
        return (
            "the filter 'teacher' reads scores that a run keeps, and a new run has none yet: mine without it, then hardneg score "
            f"RUN, then hardneg select RUN --add-filter {self.spec}"
        )

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        if context.taught is None:
            raise UsageError(str(self.lacks(context.pairs)))
        teacher = context.taught.named(self.scorer)
        scores = teacher.of(candidates.queries, candidates.documents)
        positives = list_scores(
            context.pairs.positives.take(candidates.queries),
            lambda rows, each: teacher.of(candidates.queries[rows], each),
        )
        if np.isnan(positives.values).any():
            raise UsageError(f"the teacher {self.scorer!r} has not scored all positives: {teacher.more()}")
        keep: Mask = ~np.isnan(scores)
        keep &= ~(scores > (np.inf if self.max is None else np.float32(self.max)))
        return keep & below_margin(scores, lowest_scores(positives)[:, None], self.margin, self.relative)


def teacher_from_spec(v: SpecOptions) -> Filter:
    high, margin, relative = v.number("max"), v.number("margin", low=0), v.number("relative", low=0)
    v.no_other_options()
    if high is None and margin is None and relative is None:
        raise UsageError(f"filter {v.spec!r}: give margin=, relative= or max=, as in teacher:margin=0.5")
    name = v.words.pop(0) if v.words else TEACHER
    check_name(name)
    return Teacher(scorer=name, max=high, margin=margin, relative=relative)


def guide_from_spec(v: SpecOptions) -> Filter:
    margin = v.number("margin", 0.0)
    assert margin is not None
    return Guide(model=v.word("the guide model, as in guide:st:NAME"), margin=margin)


def cross_encoder_from_spec(v: SpecOptions) -> Filter:
    high, margin = v.number("max"), v.number("margin", low=0)
    v.no_other_options()
    if high is None and margin is None:
        raise UsageError(f"filter {v.spec!r}: give max=, margin= or both")
    return CrossEncoder(model=v.word("the model, as in cross-encoder:NAME,max=0.3"), max=high, margin=margin)
