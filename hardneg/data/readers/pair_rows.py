"""Reads rows that hold a query and its positives, from any container: JSON lines, CSV, TSV, Parquet, saved datasets."""

from __future__ import annotations

import re

from hardneg.data.builder import Builder
from hardneg.data.columns import as_id, as_number, find_column, id_of, is_binary, need_column
from hardneg.data.options import ReadOptions
from hardneg.data.readers.rows import Row, names
from hardneg.errors import DataError

QUERY_COLUMNS = ("query", "anchor", "question", "sentence1", "sentence_A", "prompt", "query_text")

POSITIVE_COLUMNS = (
    "positive", "positives", "answer", "answers", "document", "text", "passage", "context", "code",
    "sentence2", "sentence_B", "pos",
)  # fmt: skip

QUERY_ID_COLUMNS = ("query_id", "query-id", "qid", "_id", "id")

DOCUMENT_ID_COLUMNS = ("document_id", "doc_id", "docid", "positive_id", "corpus_id", "corpus-id", "pid")

GROUP_COLUMNS = ("group", "label")

RELEVANCE_COLUMNS = ("relevant", "relevance")

_NEGATIVE_COLUMN = re.compile(r"negatives?(_\d+)?|neg")


class PairRows:
    """Reads rows with a query and one or more positives.

    A row may also have ids, a group, a relevance judgement, and negatives. Texts in negative columns become documents
    of the corpus. They are not taken as judged negatives of the query.

    Args:
        builder: receives the queries, documents and judgements.
        options: names of the columns. Those that are None are guessed from the usual names.
        first: place and content of the first row. The columns found in it are read from all rows.

    Raises:
        DataError: the first row has no column of queries or of positives.
    """

    def __init__(self, builder: Builder, options: ReadOptions, first: tuple[str, Row]) -> None:
        self.builder = builder
        where, row = first
        self.query = need_column(row, options.query_column, QUERY_COLUMNS, where, "query")
        free = {name: value for name, value in row.items() if name != self.query}
        self.positive = need_column(free, options.positive_column, POSITIVE_COLUMNS, where, "positive")
        self.id = find_column(row, options.id_column, QUERY_ID_COLUMNS, where)
        self.document_id = find_column(row, options.document_id_column, DOCUMENT_ID_COLUMNS, where)
        self.relevance = find_column(row, options.relevance_column, RELEVANCE_COLUMNS, where)
        self.group = find_column(row, options.group_column, GROUP_COLUMNS, where)
        if (
            self.group == "label"
            and options.group_column is None
            and self.relevance is None
            and is_binary(row["label"])
        ):
            # A label of 0 or 1 is the judgement of a labelled pair. Any other label is a class.
            self.group, self.relevance = None, "label"
        self.negatives = [name for name in row if _NEGATIVE_COLUMN.fullmatch(name)]

    def __call__(self, where: str, row: Row) -> None:
        try:
            text, positives = row[self.query], row[self.positive]
        except KeyError as error:
            raise DataError(f"{where}: there is no column {error.args[0]!r}; it has: {names(row)}") from None
        group = row.get(self.group) if self.group else None
        query = self.builder.add_query(id_of(row, self.id, where), text, group=group, where=where)
        texts = positives if isinstance(positives, list) else [positives]
        ids = row.get(self.document_id) if self.document_id else None
        ids = ids if isinstance(ids, list) else [ids]
        if self.document_id and len(ids) != len(texts):
            raise DataError(f"{where}: {len(texts)} positives, but {len(ids)} ids in {self.document_id!r}")
        score = 1.0 if self.relevance is None else as_number(row.get(self.relevance), self.relevance, where)
        for i, positive in enumerate(texts):
            if positive is None and self.relevance is None:
                continue  # the query is kept, without a positive
            id = as_id(ids[i], where) if self.document_id else None
            self.builder.relate(query, self.builder.add_document(id, positive, group=group, where=where), score)
        for name in self.negatives:
            negatives = row.get(name)
            for negative in negatives if isinstance(negatives, list) else [negatives]:
                if negative is not None:
                    self.builder.add_document(None, negative, where=where)
