"""What the reader noticed about a dataset, in sentences."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

from hardneg.data.pairs import Pairs

_logger = logging.getLogger("hardneg")

_EMPTY = ("empty_query_texts", "empty_document_texts", "blank_positives")

_TEXTS = {
    "empty_query_texts": "{} [query has|queries have] an empty text: [its|their] pairs are left out, and [it gets|they get] no "
    "negatives",
    "empty_document_texts": "{} [document has|documents have] an empty text: the filter 'empty' keeps [it|them] from being [a "
    "negative|negatives]",
    "blank_positives": "{} [positive is|positives are] empty: [its query is mined without it|their queries are mined without them]",
    "blank_negatives": "{} [negative of the source is empty and was|negatives of the source are empty and were] left out",
    "grades_that_say_nothing": "{} [judgement is|judgements are] above 0 and below --relevant-from: [it says|they say] nothing",
    "grades_not_read": "{} column of scores or grades is not read: every pair counts as a positive. --relevance-column, with "
    "--relevant-from, changes that",
    "graded_positives": "{} [pair has|pairs have] a grade above 0 and below the highest: [it is a positive|they are positives], too. "
    "--relevant-from changes that",
    "contradicting_judgements": "{} [pair is a positive and a negative of one query: it counts as a positive|pairs are positives "
    "and negatives of one query: they count as positives]",
    "repeated_query_rows": "{} [row repeats|rows repeat] a query: [its|their] positives were put together",
    "repeated_document_rows": "{} [row repeats|rows repeat] a document: it counts once",
    "skipped_unknown_judgements": "{} [judgement names unknown ids and was|judgements name unknown ids and were] skipped",
    "query_group_conflicts": "{} [query stands|queries stand] under several groups: the first counts",
    "document_group_conflicts": "{} [document stands|documents stand] under several groups: the first counts",
    "group_ids_of_a_query_and_a_document": "{} [id in groups.tsv names|ids in groups.tsv name] a query and a document: the group "
    "was given to both",
    "joined_relations": "{} [pair|pairs] of a query's text and a document's [is|are] in one group without a label that says so: the "
    "filter 'group' keeps [it|them] from being [a negative|negatives]",
    "joined_contradictions": "{} judged [negative is in the group of its query: positives connect the two|negatives are in the "
    "group of their query: positives connect them], so some label is wrong",
    "joined_largest": "the largest group of connected positives has {} [document|documents]: one wrong label joins two groups, so "
    "look at it",
    "numbered_files": "{} [file is|files are] read in the order of the numbers in their names, as 2 before 10, not of their letters",
    "broken_pictures": "{} [picture cannot be read and was|pictures cannot be read and were] left out",
    "pictures_without_caption": "{} [picture has|pictures have] no caption: [it is|they are] mined as negatives of others, or without "
    "positives",
    "samples_without_picture": "{} [sample of the shards has no picture and was|samples of the shards have no picture and were] left "
    "out",
    "groups_of_unknown_ids": "{} [line of groups.tsv names an unknown id|lines of groups.tsv name unknown ids]",
}


def notes_of(pairs: Pairs, names: Iterable[str] = tuple(_TEXTS)) -> list[str]:
    """One sentence for each kind of thing that the reader noticed, or for those of these names."""
    return [counted(_TEXTS[name], pairs.notes[name]) for name in names if pairs.notes.get(name)]


def counted(text: str, count: int) -> str:
    """A sentence with a count in it, in the singular for 1: of `[one|many]`, the words that fit.

    >>> counted("{} [pair is|pairs are] left out", 1), counted("{} [pair is|pairs are] left out", 1200)
    ('1 pair is left out', '1,200 pairs are left out')
    """
    return re.sub(r"\[([^|\]]*)\|([^\]]*)\]", r"\1" if count == 1 else r"\2", text).format(f"{count:,}")


def warn_of_empty_texts(pairs: Pairs) -> None:
    """Log the notes on empty texts, such as those of nulls, where no run keeps them."""
    for note in notes_of(pairs, _EMPTY):
        _logger.warning(note)
