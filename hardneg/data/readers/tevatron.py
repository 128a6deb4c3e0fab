"""Reads Tevatron files, in which each row has a query and lists of positive and negative passages."""

from __future__ import annotations

from typing import Any

from hardneg.data.builder import Builder
from hardneg.data.columns import as_id, as_list, need_cells
from hardneg.data.readers.rows import Row
from hardneg.errors import DataError


class TevatronRows:
    """Reads rows `{"query_id", "query", "positive_passages": [...], "negative_passages": [...]}`.

    A passage is `{"docid", "title", "text"}`. Negative passages become documents of the corpus. They are not
    taken as judged negatives of the query.
    """

    def __init__(self, builder: Builder) -> None:
        self.builder = builder

    def __call__(self, where: str, row: Row) -> None:
        need_cells(row, ("query_id", "query", "positive_passages"), where)
        query = self.builder.add_query(as_id(row["query_id"], where), row["query"], where=where)
        for passage in as_list(row["positive_passages"], "positive_passages", where):
            self.builder.relate(query, self._passage(passage, where), 1)
        for passage in as_list(row.get("negative_passages") or [], "negative_passages", where):
            self._passage(passage, where)

    def _passage(self, passage: Any, where: str) -> int:
        if not isinstance(passage, dict):
            raise DataError(
                f"{where}: a passage is of type {type(passage).__name__}, expected an object with docid and text"
            )
        need_cells(passage, ("docid", "text"), where)
        title = passage.get("title") or ""
        return self.builder.add_document(as_id(passage["docid"], where), passage["text"], title=title, where=where)
