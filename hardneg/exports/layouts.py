"""Layouts turn a block of queries and their negatives into the table of an export format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hardneg.storage.arrays import Ragged
from hardneg.storage.arrow import numbers, strings

Int = NDArray[np.int64]


@dataclass(frozen=True)
class Docs:
    """Documents of n queries: their positives or their negatives.

    Attributes:
        lists: the documents of each query, as row numbers of the dataset or, in a `Block`, of the block's documents.
        scores: float32 `[m]`, the scores of the documents, in the order of `lists.values`.
        chances: float32 `[m]`, how likely each is relevant; None: not known, or not asked for.
    """

    lists: Ragged
    scores: NDArray[np.float32]
    chances: NDArray[np.float32] | None = None

    def take(self, rows: Int) -> Docs:
        """The documents of these queries."""
        numbered = Ragged(self.lists.offsets, np.arange(len(self.lists.values))).take(rows)
        places = numbered.values
        chances = None if self.chances is None else self.chances[places]
        return Docs(Ragged(numbered.offsets, self.lists.values[places]), self.scores[places], chances)

    def best(self, most: int) -> Docs:
        """The `most` documents with the highest scores of each query, best first."""
        rows = self.lists.row_numbers()
        order = np.lexsort((-self.scores, rows))
        position = np.arange(len(rows)) - self.lists.offsets[rows]
        order = order[position < most]
        lengths = np.minimum(self.lists.lengths, most)
        chances = None if self.chances is None else self.chances[order]
        kept = Ragged(np.concatenate([[0], np.cumsum(lengths)]), self.lists.values[order])
        return Docs(kept, self.scores[order], chances)


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


@dataclass(frozen=True)
class Asked:
    """What an export is to hold.

    Attributes:
        scores: whether to write the scores from mining.
        ids: whether to write ids beside the texts, in formats that have none.
        count: number of negatives per query that the run was asked for.
    """

    scores: bool
    ids: bool
    count: int


def _list(lists: Ragged, values: pa.Array) -> pa.Array:
    return pa.LargeListArray.from_arrays(numbers(lists.offsets), values)


def _id_of(block: Block, places: Int) -> pa.Array:
    """Ids of the documents at these places of the block."""
    return block.document_ids.take(numbers(places))


def _with_ids(columns: dict[str, pa.Array], **ids: pa.Array) -> dict[str, pa.Array]:
    """Each column of texts with the ids before it: `query_id`, `query`, `positive_id`, ..."""
    out: dict[str, pa.Array] = {}
    for name, column in columns.items():
        if name in ids:
            out["document_ids" if name == "documents" else f"{name}_id"] = ids[name]
        out[name] = column
    return out


def _whole_texts(block: Block, places: Int) -> pa.Array:
    """Title and text of the documents at these places of the block."""
    return block.whole.take(numbers(places))


def _with_labels(block: Block) -> tuple[Ragged, NDArray[np.float32], NDArray[np.int64], pa.Array | None]:
    """The positives, then the negatives, of each query.

    Returns:
        (places of the documents in the block; their scores; their labels: 1 for a positive, 0 for a negative; how likely each
        negative is relevant, None if that is not written).
    """
    sides = block.positives, block.negatives
    rows = np.concatenate([side.lists.row_numbers() for side in sides])
    order = np.argsort(rows, kind="stable")
    lengths = sides[0].lists.lengths + sides[1].lists.lengths
    places = np.concatenate([side.lists.values for side in sides])[order]
    scores = np.concatenate([side.scores for side in sides])[order]
    labels = np.repeat([1, 0], [len(side.scores) for side in sides])[order]
    chances = None
    if block.negatives.chances is not None:
        both = np.concatenate([np.zeros(len(sides[0].scores), np.float32), block.negatives.chances])[order]
        chances = numbers(both, labels == 1)
    return Ragged(np.concatenate([[0], np.cumsum(lengths)]), places), scores, labels, chances


def _pairings(block: Block) -> tuple[Int, Int, Int]:
    """(query, positive, negative) of every pair of a positive and a negative, as positions in the block's lists."""
    p, n = block.positives, block.negatives
    counts = p.lists.lengths * n.lists.lengths
    rows = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    first, second = np.divmod(place, n.lists.lengths[rows]) if len(rows) else (place, place)
    return rows, first + p.lists.offsets[rows], second + n.lists.offsets[rows]


def _triplets(block: Block, asked: Asked) -> pa.Table:
    """One row for each pair of a positive and a negative."""
    p, n = block.positives, block.negatives
    rows, first, second = _pairings(block)
    columns = {
        "query": block.queries.take(numbers(rows)),
        "positive": _whole_texts(block, p.lists.values[first]),
        "negative": _whole_texts(block, n.lists.values[second]),
    }
    if asked.ids:
        columns = _with_ids(columns, query=block.ids.take(numbers(rows)), positive=_id_of(block, p.lists.values[first]),
                            negative=_id_of(block, n.lists.values[second]))  # fmt: skip
    if asked.scores:
        both = np.stack([p.scores[first], n.scores[second]], axis=1)
        columns["scores"] = _list(Ragged(2 * np.arange(len(rows) + 1), rows), numbers(both.ravel()))
    if n.chances is not None:
        columns["false_probability"] = numbers(n.chances[second])
    return pa.table(columns)


def _margins(block: Block, asked: Asked) -> pa.Table:
    """Triplets whose label is the score of the positive less that of the negative (MarginMSE, arXiv 2010.02666)."""
    _, first, second = _pairings(block)
    label = numbers((block.positives.scores[first] - block.negatives.scores[second]).astype(np.float32))
    return _triplets(block, replace(asked, scores=False)).append_column("label", label)


def _tuples(block: Block, asked: Asked) -> pa.Table:
    """One row for each positive, with `count` columns of negatives; null where a query has fewer."""
    p, n, count = block.positives, block.negatives, asked.count
    rows = p.lists.row_numbers()
    place = n.lists.offsets[rows][:, None] + np.arange(count)
    missing = np.arange(count) >= n.lists.lengths[rows][:, None]
    place = np.minimum(place, max(0, len(n.lists.values) - 1))
    columns = {"query": block.queries.take(numbers(rows)), "positive": _whole_texts(block, p.lists.values)}
    id_columns = {"query": block.ids.take(numbers(rows)), "positive": _id_of(block, p.lists.values)}
    for i in range(count):
        values = n.lists.values[place[:, i]] if len(n.lists.values) else place[:, i]
        columns[f"negative_{i + 1}"] = block.whole.take(numbers(values, missing[:, i]))
        id_columns[f"negative_{i + 1}"] = block.document_ids.take(numbers(values, missing[:, i]))
    if asked.ids:
        columns = _with_ids(columns, **id_columns)
    if asked.scores:
        table = np.concatenate([p.scores[:, None], n.scores[place] if len(n.scores) else np.zeros(place.shape)], axis=1)
        absent = np.pad(missing, ((0, 0), (1, 0)))
        flat = numbers(table.astype(np.float32).ravel(), absent.ravel())
        columns["scores"] = _list(Ragged((count + 1) * np.arange(len(rows) + 1), rows), flat)
    if n.chances is not None:
        chances = n.chances[place] if len(n.chances) else np.zeros(place.shape, np.float32)
        flat = numbers(chances.ravel(), missing.ravel())
        columns["false_probability"] = _list(Ragged(count * np.arange(len(rows) + 1), rows), flat)
    return pa.table(columns)


def _labeled_pairs(block: Block, asked: Asked) -> pa.Table:
    """One row for each query and document, with the score or a label."""
    lists, values, labels, chances = _with_labels(block)
    columns = {"query": block.queries.take(numbers(lists.row_numbers())), "document": _whole_texts(block, lists.values)}
    if asked.ids:
        ids = block.ids.take(numbers(lists.row_numbers()))
        columns = _with_ids(columns, query=ids, document=_id_of(block, lists.values))
    columns |= {"score": numbers(values)} if asked.scores else {"label": numbers(labels)}
    columns |= {} if chances is None else {"false_probability": chances}
    return pa.table(columns)


def _labeled_lists(block: Block, asked: Asked) -> pa.Table:
    """One row for each query, with lists of documents and of scores or labels."""
    lists, values, labels, chances = _with_labels(block)
    columns = {"query": block.queries, "documents": _list(lists, _whole_texts(block, lists.values))}
    if asked.ids:
        columns = _with_ids(columns, query=block.ids, documents=_list(lists, _id_of(block, lists.values)))
    columns |= {"scores": _list(lists, numbers(values))} if asked.scores else {"labels": _list(lists, numbers(labels))}
    columns |= {} if chances is None else {"false_probability": _list(lists, chances)}
    return pa.table(columns)


def _flagembedding(block: Block, asked: Asked) -> pa.Table:
    """One row for each query, with the columns that FlagEmbedding reads."""
    columns = {"query": block.queries}
    sides = {"pos": block.positives, "neg": block.negatives}
    columns |= {name: _list(side.lists, _whole_texts(block, side.lists.values)) for name, side in sides.items()}
    if asked.ids:
        columns = _with_ids(columns, query=block.ids, **{name: _ids(block, side) for name, side in sides.items()})
    if asked.scores:
        columns |= {f"{name}_scores": _list(side.lists, numbers(side.scores)) for name, side in sides.items()}
    if block.negatives.chances is not None:
        columns["neg_false_probability"] = _list(block.negatives.lists, numbers(block.negatives.chances))
    return pa.table(columns)


def _tevatron(block: Block, asked: Asked) -> pa.Table:
    """One row for each query, with the passages as objects that Tevatron reads."""
    columns = {"query_id": block.ids, "query": block.queries}
    for name, side in (("positive_passages", block.positives), ("negative_passages", block.negatives)):
        places = numbers(side.lists.values)
        parts = {"docid": block.document_ids, "title": block.titles, "text": block.texts}
        fields = {key: column.take(places) for key, column in parts.items()}
        if asked.scores:
            fields["score"] = numbers(side.scores)
        if side.chances is not None:
            fields["false_probability"] = numbers(side.chances)
        columns[name] = _list(side.lists, pa.StructArray.from_arrays(list(fields.values()), names=list(fields)))
    return pa.table(columns)


def _ids(block: Block, side: Docs) -> pa.Array:
    return _list(side.lists, block.document_ids.take(numbers(side.lists.values)))


def _tevatron_corpus(block: Block, asked: Asked) -> pa.Table:
    """One row for each query, with ids of documents that stand in a corpus of their own."""
    columns = {"query_id": block.ids, "query_text": block.queries}
    sides = {"positive": block.positives, "negative": block.negatives}
    columns |= {f"{name}_document_ids": _ids(block, side) for name, side in sides.items()}
    if asked.scores:
        columns |= {f"{name}_scores": _list(side.lists, numbers(side.scores)) for name, side in sides.items()}
    if block.negatives.chances is not None:
        columns["negative_false_probability"] = _list(block.negatives.lists, numbers(block.negatives.chances))
    return pa.table(columns)


def _pylate(block: Block, asked: Asked) -> pa.Table:
    """One row for each positive: its id and those of the negatives, with their scores, as PyLate distils them."""
    p, n, count = block.positives, block.negatives, asked.count
    rows = p.lists.row_numbers()
    place = n.lists.offsets[rows][:, None] + np.arange(count)
    documents = np.concatenate([p.lists.values[:, None], n.lists.values[place]], 1)
    scores = np.concatenate([p.scores[:, None], n.scores[place]], 1)
    lists = Ragged((count + 1) * np.arange(len(rows) + 1), documents.ravel())
    columns = {
        "query_id": block.ids.take(numbers(rows)),
        "document_ids": _list(lists, block.document_ids.take(numbers(lists.values))),
        "scores": _list(lists, numbers(scores.ravel())),
    }
    return pa.table(columns)


def _ms_swift(block: Block, asked: Asked) -> pa.Table:
    """One row for each positive: conversations of one message each, as ms-swift trains embedding models on.

    Of several positives in a row, its embedding task reads the first alone.
    """
    p, n = block.positives, block.negatives.take(block.positives.lists.row_numbers())
    columns = {
        "messages": _conversations(block.queries.take(numbers(p.lists.row_numbers()))),
        "positive_messages": _list(_one_each(len(p.lists.values)), _conversations(_whole_texts(block, p.lists.values))),
        "negative_messages": _list(n.lists, _conversations(_whole_texts(block, n.lists.values))),
    }
    return pa.table(columns)


def _one_each(count: int) -> Ragged:
    """`count` lists of one item."""
    return Ragged(np.arange(count + 1), np.arange(count))


def _conversations(texts: pa.Array) -> pa.Array:
    """For each text, a list of one message of a user."""
    return _messages(_one_each(len(texts)), texts)


def _messages(lists: Ragged, texts: pa.Array) -> pa.Array:
    """Lists of messages of a user."""
    roles = pa.DictionaryArray.from_arrays(
        numbers(np.zeros(len(texts), np.int32)), strings(["user"])
    ).dictionary_decode()
    return _list(lists, pa.StructArray.from_arrays([roles, texts], names=["role", "content"]))


# By format: a function of (block, what is asked for).
LAYOUTS: dict[str, Callable[[Block, Asked], pa.Table]] = {
    "triplet": _triplets,
    "n-tuple": _tuples,
    "labeled-pair": _labeled_pairs,
    "labeled-list": _labeled_lists,
    "flagembedding": _flagembedding,
    "tevatron": _tevatron,
    "tevatron-corpus": _tevatron_corpus,
    "pylate": _pylate,
    "ms-swift": _ms_swift,
    "margin-mse": _margins,
    "msmarco": _triplets,
}

# Formats whose readers need a positive, and those that need a negative: a query without one ends in an error there.
NEED_POSITIVE = frozenset(LAYOUTS) - {"labeled-pair", "labeled-list"}
NEED_NEGATIVE = NEED_POSITIVE - {"n-tuple"}

# Formats whose rows all have the same number of negatives.
NEED_ALL = frozenset({"n-tuple", "pylate"})
