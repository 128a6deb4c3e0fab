"""Warnings about a dataset and its filters, for `run.json`."""

from __future__ import annotations

from hardneg.data.pairs import Pairs
from hardneg.mining.filters.identity import Group
from hardneg.mining.options import MineOptions
from hardneg.mining.specs import parse_filters


def warnings(pairs: Pairs, options: MineOptions) -> list[str]:
    """Return the warnings for `run.json`, one sentence each."""
    counts = pairs.notes
    texts = {
        "empty_query_texts": "{} queries have an empty text: they were mined all the same",
        "empty_document_texts": "{} documents have an empty text: the filter 'empty' keeps them from being negatives",
        "repeated_query_rows": "{} rows repeat a query: their positives were put together",
        "repeated_document_rows": "{} rows repeat a document: it counts once",
        "blank_positives": "{} positives are empty: their queries were mined without them",
        "blank_negatives": "{} negatives of the source are empty and were left out",
        "grades_that_say_nothing": "{} judgements are above 0 and below --relevant-from: they say nothing",
        "skipped_unknown_judgements": "{} judgements name unknown ids and were skipped",
        "query_group_conflicts": "{} queries stand under several groups: the first counts",
        "document_group_conflicts": "{} documents stand under several groups: the first counts",
        "group_ids_of_a_query_and_a_document": "{} ids in groups.tsv name a query and a document: the group was given to both",
        "groups_of_unknown_ids": "{} lines of groups.tsv name unknown ids",
    }
    chain = parse_filters(options.filters, options.default_filters)
    messages = chain.notes(options.to_json())
    messages += [text.format(f"{counts[name]:,}") for name, text in texts.items() if counts.get(name)]
    without_positive = int((pairs.positives.lengths == 0).sum())
    if without_positive:
        messages.append(f"{without_positive:,} queries have no positive: margins and guides do not apply to them")
    if pairs.document_groups is not None and not any(isinstance(f, Group) for f in chain.filters):
        messages.append(
            "the dataset has groups that no filter uses: --filter group rejects documents of the query's group"
        )
    return messages
