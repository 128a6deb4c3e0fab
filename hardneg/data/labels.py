"""What a column of labels means, told by all of its values: judgements of pairs, or classes of texts.

A reading that could turn positives into negatives, or the other way round, is not guessed: the user is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from hardneg.data.texts import shown
from hardneg.errors import DataError, first_few

Meaning = Literal["judgement", "class", "nothing"]

_WORDS = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0, "relevant": 1.0, "irrelevant": 0.0, "not relevant": 0.0}

# Classes of natural language inference; of these pairs only some are positives, and which ones is the user's to say.
_INFERENCE = (
    {"entailment", "neutral", "contradiction"},
    {"entailment", "not_entailment"},
    {"entailment", "contradiction"},
)

# Words of a judgement that has more than two answers.
_GRADING = {
    *_WORDS, "partially relevant", "partial", "somewhat relevant", "highly relevant", "very relevant", "perfect", "exact",
    "substitute", "complement", "excellent", "good", "fair", "bad", "positive", "negative", "e", "s", "c", "i",
}  # fmt: skip

_MOST = 1000  # distinct values that are kept

_HIGHEST = 10  # of the widest scale of whole grades from 0 on that is in use; up to 100 are percentages


def as_judgement(value: Any) -> float | None:
    """The grade of a judgement: a number, a bool or a word such as `true`; None if it is none of these.

    >>> as_judgement("True"), as_judgement("-1"), as_judgement("7 of 9")
    (1.0, -1.0, None)
    """
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            return None
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _WORDS:
            return _WORDS[word]
        try:
            return float(word)
        except ValueError:
            return None
    return None


def is_blank(value: Any) -> bool:
    """Whether a cell holds nothing: None, NaN, or a text of white space."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def meaning_of(values: Iterable[Any], column: str, name: str, sentences: bool) -> Meaning:
    """What the values of a label column mean.

    Args:
        values: all of them.
        column: the name of the column, for the message.
        name: the name of the source, for the message.
        sentences: whether the two texts of a row play equal parts, as `sentence1` and `sentence2` do.

    Raises:
        DataError: they could mean several things.

    >>> meaning_of([1, 0, 1], "label", "p.jsonl", False), meaning_of(["a", "b", "c"], "label", "p.jsonl", False)
    ('judgement', 'class')
    """
    counts = Counter[str]()
    grades: set[float | None] = set()
    for value in values:
        if is_blank(value):
            continue
        if len(counts) < _MOST or str(value) in counts:
            counts[str(value)] += 1
        grades.add(as_judgement(value) if len(grades) < _MOST else None)
    if not counts:
        return "nothing"
    if grades <= {0.0, 1.0} or grades == {-1.0, 1.0}:
        return "judgement"
    if {value.strip().lower() for value in counts} in _INFERENCE:
        raise _ask(name, column, counts, "classes of inference, of which not all are positives")
    numbers = {grade for grade in grades if grade is not None}
    if None not in grades and any(not grade.is_integer() for grade in numbers):
        raise _ask(name, column, counts, "grades, of which only some are positives")
    label = column.lower() == "label"  # `class` and `group` say themselves what they hold
    # Numbers beyond all scales, as the 77 intents of a set of questions, are no grades.
    scale = len(grades) > 1 and None not in grades and all(abs(grade) <= _HIGHEST for grade in numbers)
    if sentences or (label and scale):
        raise _ask(name, column, counts, "classes, or grades of the pairs")
    if label and len(counts) > 1 and {value.strip().lower() for value in counts} <= _GRADING:
        raise _ask(name, column, counts, "grades in words, of which only some are positives")
    return "class"


def _ask(name: str, column: str, counts: Counter[str], what: str) -> DataError:
    values = first_few([shown(value) for value in sorted(counts)], limit=8)
    return DataError(
        f"{name}: the column {column!r} holds {values}, which look like {what}. Say what it is: --relevance-column {column} "
        f"--relevant-from X (pairs from X on are positives), --group-column {column} (classes), or --group-column '' (ignore it)"
    )


class Grades:
    """The grades above 0 of a dataset's judgements, which show whether each of these can be that of a positive.

    They can if 0 and whole numbers up to 10 are all there is, as in qrels. They cannot if some are fractions or percentages, or
    if no pair has 0: then a low grade is no yes. It is to be asked from which grade on a pair is a positive.
    """

    def __init__(self) -> None:
        self.counts = Counter[float]()

    def add(self, grade: float | None) -> None:
        """Count a grade: 0 for a judged negative, None for what says nothing."""
        if grade is not None:
            self._count(grade, 1)

    def add_many(self, grades: np.ndarray) -> None:
        """Count grades, float64 `[n]`; NaN says nothing."""
        for grade, times in zip(*np.unique(grades[~np.isnan(grades)], return_counts=True), strict=True):
            self._count(float(grade), int(times))

    def _count(self, grade: float, times: int) -> None:
        if len(self.counts) < _MOST or grade in self.counts:
            self.counts[grade] += times

    @property
    def below_the_highest(self) -> int:
        """Number of positives that have a lower grade than others."""
        return sum(times for grade, times in self.counts.items() if 0 < grade < max(self.counts))

    def check(self, name: str, column: str, else_: str = "") -> None:
        """DataError if it must be said which of them are those of positives.

        Args:
            name: the name of the source, for the message.
            column: the column of the grades.
            else_: what else can be said, for the end of the message.
        """
        positive = [grade for grade in self.counts if grade > 0]
        whole = all(grade.is_integer() and grade <= _HIGHEST for grade in positive)
        if len(self.counts) < 2 or (whole and (0.0 in self.counts or len(positive) < 2)):
            return
        values = first_few([f"{grade:g}" for grade in sorted(self.counts)], limit=8)
        raise DataError(
            f"{name}: the grades in {column!r} are {values}, and it is not known from which grade on a pair is a positive: say it "
            f"with --relevant-from X{else_}"
        )
