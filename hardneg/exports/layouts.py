"""Layouts turn a block of queries and their negatives into the table of an export format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hardneg.storage.arrays import Ragged
from hardneg.storage.arrow import numbers

Int = NDArray[np.int64]


@dataclass(frozen=True)
class Docs:
    """Documents of n queries: their positives or their negatives.

    Attributes:
        lists: the documents of each query, as row numbers of the dataset or, in a `Block`, of the block's documents.
        scores: float32 `[m]`, the scores of the documents, in the order of `lists.values`.
    """

    lists: Ragged
    scores: NDArray[np.float32]

    def take(self, rows: Int) -> Docs:
        """The documents of these queries."""
        numbered = Ragged(self.lists.offsets, np.arange(len(self.lists.values))).take(rows)
        return Docs(Ragged(numbered.offsets, self.lists.values[numbered.values]), self.scores[numbered.values])

    def best(self, most: int) -> Docs:
        """The `most` documents with the highest scores of each query, best first."""
        rows = self.lists.row_numbers()
        order = np.lexsort((-self.scores, rows))
        position = np.arange(len(rows)) - self.lists.offsets[rows]
        order = order[position < most]
        lengths = np.minimum(self.lists.lengths, most)
        return Docs(Ragged(np.concatenate([[0], np.cumsum(lengths)]), self.lists.values[order]), self.scores[order])


@dataclass(frozen=True)
class Block:
    """Some queries, with everything that the rows of an export are made of.

    Attributes:
        ids, queries: Arrow strings `[n]`, the ids and texts of the queries.
        positives, negatives: the documents of each query, as positions in the columns below.
        document_ids, titles, texts: Arrow strings, one for each document of the block.
        whole: Arrow strings, title and text of each document joined by a space.
    """

    ids: pa.Array
    queries: pa.Array
    positives: Docs
    negatives: Docs
    document_ids: pa.Array
    titles: pa.Array
    texts: pa.Array
    whole: pa.Array

    def rows(self, keep: NDArray[np.bool_]) -> Block:
        """The block with only the queries where `keep`, bool `[n]`, is True."""
        if keep.all():
            return self
        rows = np.flatnonzero(keep)
        chosen = numbers(rows)
        return replace(
            self,
            ids=self.ids.take(chosen),
            queries=self.queries.take(chosen),
            positives=self.positives.take(rows),
            negatives=self.negatives.take(rows),
        )


def _list(lists: Ragged, values: pa.Array) -> pa.Array:
    return pa.LargeListArray.from_arrays(numbers(lists.offsets), values)


def _whole_texts(block: Block, places: Int) -> pa.Array:
    """Title and text of the documents at these places of the block."""
    return block.whole.take(numbers(places))


def _with_labels(block: Block) -> tuple[Ragged, NDArray[np.float32], NDArray[np.int64]]:
    """The positives, then the negatives, of each query.

    Returns:
        (places of the documents in the block; their scores; their labels: 1 for a positive, 0 for a negative).
    """
    sides = block.positives, block.negatives
    rows = np.concatenate([side.lists.row_numbers() for side in sides])
    order = np.argsort(rows, kind="stable")
    lengths = sides[0].lists.lengths + sides[1].lists.lengths
    places = np.concatenate([side.lists.values for side in sides])[order]
    scores = np.concatenate([side.scores for side in sides])[order]
    labels = np.repeat([1, 0], [len(side.scores) for side in sides])[order]
    return Ragged(np.concatenate([[0], np.cumsum(lengths)]), places), scores, labels


def _triplets(block: Block, scores: bool, count: int) -> pa.Table:
    """One row for each pair of a positive and a negative."""
    p, n = block.positives, block.negatives
    counts = p.lists.lengths * n.lists.lengths
    rows = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    first, second = np.divmod(place, n.lists.lengths[rows]) if len(rows) else (place, place)
    first, second = first + p.lists.offsets[rows], second + n.lists.offsets[rows]
    columns = {
        "query": block.queries.take(numbers(rows)),
        "positive": _whole_texts(block, p.lists.values[first]),
        "negative": _whole_texts(block, n.lists.values[second]),
    }
    if scores:
        both = np.stack([p.scores[first], n.scores[second]], axis=1)
        columns["scores"] = _list(Ragged(2 * np.arange(len(rows) + 1), rows), numbers(both.ravel()))
    return pa.table(columns)


def _tuples(block: Block, scores: bool, count: int) -> pa.Table:
    """One row for each positive, with `count` columns of negatives; null where a query has fewer."""
    p, n = block.positives, block.negatives
    rows = p.lists.row_numbers()
    place = n.lists.offsets[rows][:, None] + np.arange(count)
    missing = np.arange(count) >= n.lists.lengths[rows][:, None]
    place = np.minimum(place, max(0, len(n.lists.values) - 1))
    columns = {"query": block.queries.take(numbers(rows)), "positive": _whole_texts(block, p.lists.values)}
    for i in range(count):
        values = n.lists.values[place[:, i]] if len(n.lists.values) else place[:, i]
        columns[f"negative_{i + 1}"] = block.whole.take(numbers(values, missing[:, i]))
    if scores:
        table = np.concatenate([p.scores[:, None], n.scores[place] if len(n.scores) else np.zeros(place.shape)], axis=1)
        absent = np.pad(missing, ((0, 0), (1, 0)))
        flat = numbers(table.astype(np.float32).ravel(), absent.ravel())
        columns["scores"] = _list(Ragged((count + 1) * np.arange(len(rows) + 1), rows), flat)
    return pa.table(columns)


def _labeled_pairs(block: Block, scores: bool, count: int) -> pa.Table:
    """One row for each query and document, with the score or a label."""
    lists, values, labels = _with_labels(block)
    columns = {"query": block.queries.take(numbers(lists.row_numbers())), "document": _whole_texts(block, lists.values)}
    columns |= {"score": numbers(values)} if scores else {"label": numbers(labels)}
    return pa.table(columns)


def _labeled_lists(block: Block, scores: bool, count: int) -> pa.Table:
    """One row for each query, with lists of documents and of scores or labels."""
    lists, values, labels = _with_labels(block)
    columns = {"query": block.queries, "documents": _list(lists, _whole_texts(block, lists.values))}
    columns |= {"scores": _list(lists, numbers(values))} if scores else {"labels": _list(lists, numbers(labels))}
    return pa.table(columns)


def _flagembedding(block: Block, scores: bool, count: int) -> pa.Table:
    """One row for each query, with the columns that FlagEmbedding reads."""
    columns = {"query": block.queries}
    sides = {"pos": block.positives, "neg": block.negatives}
    columns |= {name: _list(side.lists, _whole_texts(block, side.lists.values)) for name, side in sides.items()}
    if scores:
        columns |= {f"{name}_scores": _list(side.lists, numbers(side.scores)) for name, side in sides.items()}
    return pa.table(columns)


def _tevatron(block: Block, scores: bool, count: int) -> pa.Table:
    """One row for each query, with the passages as objects that Tevatron reads."""
    columns = {"query_id": block.ids, "query": block.queries}
    for name, side in (("positive_passages", block.positives), ("negative_passages", block.negatives)):
        places = numbers(side.lists.values)
        parts = {"docid": block.document_ids, "title": block.titles, "text": block.texts}
        fields = {key: column.take(places) for key, column in parts.items()}
        if scores:
            fields["score"] = numbers(side.scores)
        columns[name] = _list(side.lists, pa.StructArray.from_arrays(list(fields.values()), names=list(fields)))
    return pa.table(columns)


# By format: a function of (block, whether to write scores, number of negatives per query).
LAYOUTS: dict[str, Callable[[Block, bool, int], pa.Table]] = {
    "triplet": _triplets,
    "n-tuple": _tuples,
    "labeled-pair": _labeled_pairs,
    "labeled-list": _labeled_lists,
    "flagembedding": _flagembedding,
    "tevatron": _tevatron,
}

# Formats that cannot hold a query without a positive.
NEED_POSITIVE = ("triplet", "n-tuple", "flagembedding", "tevatron")
