"""Reads the question-answer datasets of llama-index: one object with queries, corpus and what belongs together, by ids."""

from __future__ import annotations

from typing import Any

from hardneg.data.columns import as_list, need_cells
from hardneg.data.readers.layout import Layout
from hardneg.data.readers.rows import Row
from hardneg.errors import DataError


class LlamaIndexRows(Layout):
    """Reads `{"queries": {id: text}, "corpus": {id: text}, "relevant_docs": {query id: [document id, ...]}}`."""

    name = "llama-index"

    @staticmethod
    def fits(row: Row) -> bool:
        return all(isinstance(row.get(name), dict) for name in ("queries", "corpus", "relevant_docs"))

    def __call__(self, where: str, row: Row) -> None:
        need_cells(row, ("queries", "corpus", "relevant_docs"), where)
        parts = {name: self._texts(row[name], name, where) for name in ("queries", "corpus", "relevant_docs")}
        for id, text in parts["corpus"].items():
            self.builder.add_document(id, text, where=f"{where}, corpus {id!r}")
        queries = {
            id: self.builder.add_query(id, text, where=f"{where}, query {id!r}")
            for id, text in parts["queries"].items()
        }
        for id, documents in parts["relevant_docs"].items():
            if id not in queries:
                raise DataError(f"{where}: relevant_docs names the query {id!r}, which is not among the queries")
            for document in as_list(documents, "relevant_docs", where):
                if not isinstance(document, str):
                    raise DataError(
                        f"{where}: relevant_docs of {id!r} holds {type(document).__name__}, expected ids as texts"
                    )
                self.builder.relate(queries[id], self.builder.document_of(document, where), 1)

    def _texts(self, value: Any, name: str, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise DataError(f"{where}: {name} is of type {type(value).__name__}, expected an object of ids")
        return value
