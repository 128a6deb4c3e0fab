"""From judgements to relabelled pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.errors import DataError, UsageError
from hardneg.false_negatives.judgements import read_judgements
from hardneg.judges.prompt import GRADES
from hardneg.mining.relabels import ACTIONS, Relabels
from hardneg.storage.arrays import members

PERSON = "a person"


def relabels(files: Sequence[str | Path], pairs: Pairs, how: str, promote_from: float | None = None) -> Relabels:
    """The pairs that judgements found relevant, and what is to be done with them.

    What the dataset itself judged not relevant stays so, and known positives stay positives; both are counted.

    Args:
        files: CSV files of `judge`, filled. Where two judge a pair, a person counts before a model, and then the later file; pairs
            on which they disagree are counted.
        pairs: the dataset, with the labels of its source.
        how: `drop`, `ignore` or `promote`.
        promote_from: with `promote`, the lowest grade of a new positive. Judgements without a grade, as people give them, are
            promoted.

    Raises:
        DataError: a file cannot be used, or finds nothing relevant. UsageError: no judgement has a grade like `promote_from`.
    """
    found: dict[tuple[int, int], tuple[bool, float, str]] = {}
    disagreed = 0
    for file in files:
        judged = read_judgements(Path(file), pairs, partial=True)
        by = ", ".join(judged.judges)
        for i in range(len(judged.query)):
            pair = int(judged.query[i]), int(judged.document[i])
            said = bool(judged.relevant[i]), float(judged.grade[i]), by if judged.by_judge[i] else PERSON
            before = found.get(pair)
            disagreed += before is not None and before[0] != said[0]
            if before is None or before[2] != PERSON or said[2] == PERSON:
                found[pair] = said
    relevant = [(pair, grade, by) for pair, (is_relevant, grade, by) in found.items() if is_relevant]
    if not relevant:
        raise DataError(
            f"{', '.join(map(str, files))}: none of {len(found):,} judged pairs is relevant: nothing to relabel"
        )
    rows = np.array([pair for pair, _, _ in relevant], np.int64)
    grade = np.array([value for _, value, _ in relevant], np.float64)
    query, document = rows[:, 0], rows[:, 1]
    denied = members(document[:, None], pairs.judged_negatives.take(query))[:, 0]
    known = members(document[:, None], pairs.positives.take(query))[:, 0]
    action = np.full(len(rows), ACTIONS.index(how), np.int8)
    if promote_from is not None:
        _check_scale(promote_from, grade, [by for _, _, by in relevant])
        action[grade < promote_from] = ACTIONS.index("ignore")  # False for NaN
    # A query without a positive cannot be trained on; a new one is no reason to begin.
    action[(pairs.positives.lengths == 0)[query] & (action == ACTIONS.index("promote"))] = ACTIONS.index("ignore")
    keep = ~(denied | known)
    left = {
        "left alone, as the dataset judged them not relevant": int(denied.sum()),
        "left alone, as they are positives already": int((known & ~denied).sum()),
        "on which files disagree: a person counts before a model, then the later file": disagreed,
    }
    names = [name for (_, _, name), kept in zip(relevant, keep, strict=True) if kept]
    return Relabels(query[keep], document[keep], action[keep], grade[keep], names, left)


def _check_scale(promote_from: float, grade: NDArray[np.float64], judges: list[str]) -> None:
    """Raise UsageError if all grades are those of a language model, and `promote_from` is not on that scale."""
    by_model = all(by.startswith("openai:") for by, graded in zip(judges, np.isfinite(grade), strict=True) if graded)
    if np.isfinite(grade).any() and by_model and not min(GRADES) <= promote_from <= max(GRADES):
        raise UsageError(
            f"promote_from {promote_from:g} is no grade of these judgements, which are {min(GRADES)} to {max(GRADES)} "
            f"(--promote-from)"
        )
