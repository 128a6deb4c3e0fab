"""What a column of labels means, told by all of its values: judgements of pairs, or classes of texts.

A reading that could turn positives into negatives, or the other way round, is not guessed: the user is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

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

_MOST = 1000  # distinct values that are kept


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
    if sentences:
        raise _ask(name, column, counts, "classes, or grades of the pairs")
    return "class"


def _ask(name: str, column: str, counts: Counter[str], what: str) -> DataError:
    values = first_few([shown(value) for value in sorted(counts)], limit=8)
    return DataError(
        f"{name}: the column {column!r} holds {values}, which look like {what}. Say what it is: --relevance-column {column} "
        f"--relevant-from X (pairs from X on are positives), --group-column {column} (classes), or --group-column '' (ignore it)"
    )
