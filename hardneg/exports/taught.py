"""The scores of a teacher in place of those from mining, for distillation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.errors import UsageError
from hardneg.exports.layouts import Docs
from hardneg.mining.run import Run
from hardneg.mining.teachers import TEACHER, Teachers, TeacherScores

ENCODER = "encoder"


def teacher_of(run: Run, pairs: Pairs, scores: bool | str) -> TeacherScores | None:
    """The teacher whose scores an export is to hold; None: those from mining.

    Args:
        run: the run.
        pairs: its dataset.
        scores: True or False, `encoder`, `teacher` or `teacher:NAME`.

    Raises:
        UsageError: the value is something else, or the run has no such scores.
    """
    if isinstance(scores, bool) or scores == ENCODER:
        return None
    kind, _, name = str(scores).partition(":")
    if kind != TEACHER:
        raise UsageError(f"scores={scores!r} must be {ENCODER} (those from mining), {TEACHER}, or {TEACHER}:NAME")
    return Teachers(run.folder / "teacher", pairs).named(name or TEACHER)


def taught_by(teacher: TeacherScores, docs: Docs, queries: NDArray[np.integer]) -> Docs:
    """The documents of n queries (rows of the dataset) with the scores of a teacher.

    Raises:
        UsageError: some have not been scored; the message names the command that scores them.
    """
    each = queries[docs.lists.row_numbers()].astype(np.int64)
    scores = teacher.of(each, docs.lists.values[:, None])[:, 0]
    missing = int(np.isnan(scores).sum())
    if missing:
        raise UsageError(
            f"the teacher {teacher.folder.name!r} has not scored {missing:,} of {len(scores):,} documents of this export: "
            f"{teacher.more('kept')}"
        )
    return replace(docs, scores=scores)
