"""Reads Tevatron files: rows with a query and lists of passages, or, in its newer layout, with ids of documents of a corpus."""

from __future__ import annotations

from typing import Any

from hardneg.data.builder import Builder
from hardneg.data.columns import as_id, as_list, need_cells
from hardneg.data.options import ReadOptions
from hardneg.data.readers.layout import Layout
from hardneg.data.readers.rows import Row
from hardneg.errors import DataError


class TevatronRows(Layout):
    """Reads rows `{"query_id", "query", "positive_passages": [...], "negative_passages": [...]}`.

    A passage is `{"docid", "title", "text"}`. Negative passages become documents of the corpus, and are judged negatives
    of the query if `options.negatives` says so.
    """

    name = "tevatron"

    @staticmethod
    def fits(row: Row) -> bool:
        return "positive_passages" in row

    def __call__(self, where: str, row: Row) -> None:
        need_cells(row, ("query_id", "query", "positive_passages"), where)
        query = self.builder.add_query(as_id(row["query_id"], where), row["query"], where=where)
        for passage in as_list(row["positive_passages"], "positive_passages", where):
            self.builder.relate(query, self._passage(passage, where), 1)
        for passage in as_list(row.get("negative_passages") or [], "negative_passages", where):
            self.own_negative(query, self._passage(passage, where))

    def _passage(self, passage: Any, where: str) -> int:
        if not isinstance(passage, dict):
            raise DataError(
                f"{where}: a passage is of type {type(passage).__name__}, expected an object with docid and text"
            )
        need_cells(passage, ("docid", "text"), where)
        title = passage.get("title") or ""
        return self.builder.add_document(as_id(passage["docid"], where), passage["text"], title=title, where=where)


class TevatronIds(Layout):
    """Reads rows `{"query_id", "query_text", "positive_document_ids": [...], "negative_document_ids": [...]}`.

    The ids name documents of `options.corpus`.
    """

    name = "tevatron"

    def __init__(self, builder: Builder, options: ReadOptions) -> None:
        super().__init__(builder, options)
        if not options.corpora:
            raise DataError(
                "the rows name their documents by id (positive_document_ids): give the file of the documents with --corpus"
            )

    @staticmethod
    def fits(row: Row) -> bool:
        return "positive_document_ids" in row

    def __call__(self, where: str, row: Row) -> None:
        need_cells(row, ("query_id", "positive_document_ids"), where)
        text = row["query_text"] if "query_text" in row else row.get("query")
        query = self.builder.add_query(as_id(row["query_id"], where), text, where=where)
        for name, grade in (("positive_document_ids", 1.0), ("negative_document_ids", 0.0)):
            for id in as_list(row.get(name) or [], name, where):
                self.relate_by_id(where, query, as_id(id, where), grade)
