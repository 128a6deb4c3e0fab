"""What the reader noticed about a dataset, in sentences."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from hardneg.data.pairs import Pairs

_logger = logging.getLogger("hardneg")

_EMPTY = ("empty_query_texts", "empty_document_texts", "blank_positives")

_TEXTS = {
    "empty_query_texts": "{} queries have an empty text: their pairs are left out, and they get no negatives",
    "empty_document_texts": "{} documents have an empty text: the filter 'empty' keeps them from being negatives",
    "blank_positives": "{} positives are empty: their queries are mined without them",
    "blank_negatives": "{} negatives of the source are empty and were left out",
    "grades_that_say_nothing": "{} judgements are above 0 and below --relevant-from: they say nothing",
    "grades_not_read": "{} column of scores or grades is not read: every pair counts as a positive. --relevance-column, with "
    "--relevant-from, changes that",
    "graded_positives": "{} pairs have a grade above 0 and below the highest: they are positives, too. --relevant-from changes that",
    "contradicting_judgements": "{} pairs are positives and negatives of one query: they count as positives",
    "repeated_query_rows": "{} rows repeat a query: their positives were put together",
    "repeated_document_rows": "{} rows repeat a document: it counts once",
    "skipped_unknown_judgements": "{} judgements name unknown ids and were skipped",
    "query_group_conflicts": "{} queries stand under several groups: the first counts",
    "document_group_conflicts": "{} documents stand under several groups: the first counts",
    "group_ids_of_a_query_and_a_document": "{} ids in groups.tsv name a query and a document: the group was given to both",
    "joined_relations": "{} pairs of a query's text and a document's are in one group without a label that says so: the filter "
    "'group' keeps them from being negatives",
    "joined_contradictions": "{} judged negatives are in the group of their query: positives connect them, so some label is wrong",
    "joined_largest": "the largest group of connected positives has {} documents: one wrong label joins two groups, so look at it",
    "broken_pictures": "{} pictures cannot be read and were left out",
    "pictures_without_caption": "{} pictures have no caption: they are mined as negatives of others, or without positives",
    "samples_without_picture": "{} samples of the shards have no picture and were left out",
    "groups_of_unknown_ids": "{} lines of groups.tsv name unknown ids",
}


def notes_of(pairs: Pairs, names: Iterable[str] = tuple(_TEXTS)) -> list[str]:
    """One sentence for each kind of thing that the reader noticed, or for those of these names."""
    return [_TEXTS[name].format(f"{pairs.notes[name]:,}") for name in names if pairs.notes.get(name)]


def warn_of_empty_texts(pairs: Pairs) -> None:
    """Log the notes on empty texts, such as those of nulls, where no run keeps them."""
    for note in notes_of(pairs, _EMPTY):
        _logger.warning(note)
