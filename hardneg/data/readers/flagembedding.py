"""Reads rows with a query and lists of texts: those of FlagEmbedding, and lists with labels."""

from __future__ import annotations

from typing import Any

from hardneg.data.builder import Builder
from hardneg.data.columns import as_id, as_list, as_number, need_cells
from hardneg.data.labels import Grades, is_blank
from hardneg.data.options import ReadOptions
from hardneg.data.readers.layout import Layout
from hardneg.data.readers.rows import Row
from hardneg.errors import DataError


class LabeledListRows(Layout):
    """Reads rows `{"query": text, "documents": [texts], "labels": [grades]}`: a grade above 0 is that of a positive."""

    name = "labeled-list"

    def __init__(self, builder: Builder, options: ReadOptions) -> None:
        super().__init__(builder, options)
        self.first, self.grades = "", Grades()

    @staticmethod
    def fits(row: Row) -> bool:
        return isinstance(row.get("documents"), list) and isinstance(row.get("labels"), list) and "query" in row

    def __call__(self, where: str, row: Row) -> None:
        need_cells(row, ("query", "documents", "labels"), where)
        self.first = self.first or where
        query = self.builder.add_query(None, row["query"], where=where)
        texts, grades = (as_list(row[name], name, where) for name in ("documents", "labels"))
        if len(texts) != len(grades):
            raise DataError(f"{where}: {len(texts)} documents, but {len(grades)} labels")
        for text, grade in zip(texts, grades, strict=True):
            document = self.builder.add_document(None, text, where=where)
            score = self.builder.judged(as_number(grade, "label", where), self.options.relevant_from)
            self.grades.add(score)
            if score is not None:
                self.builder.relate(query, document, score)

    def finish(self) -> None:
        super().finish()
        if self.options.relevant_from is None:
            self.grades.check(self.first, "labels")


class FlagEmbeddingRows(Layout):
    """Reads rows `{"query": text, "pos": [texts], "neg": [texts]}`, with `id`, `pos_id` and `neg_id` if they are there.

    The texts of `neg` become documents of the corpus, and are judged negatives of the query if `options.negatives` says so.
    """

    name = "flagembedding"

    @staticmethod
    def fits(row: Row) -> bool:
        return isinstance(row.get("pos"), list) and "query" in row

    def __call__(self, where: str, row: Row) -> None:
        need_cells(row, ("query", "pos"), where)
        id = as_id(row["id"], where) if row.get("id") is not None else None
        query = self.builder.add_query(id, row["query"], where=where)
        for document in self._documents(row, "pos", where):
            self.builder.relate(query, document, 1)
        for document in self._documents(row, "neg", where):
            self.own_negative(query, document)

    def _documents(self, row: Row, side: str, where: str) -> list[int]:
        texts, ids = as_list(row.get(side) or [], side, where), row.get(f"{side}_id")
        names: list[Any] = [None] * len(texts) if ids is None else as_list(ids, f"{side}_id", where)
        if len(names) != len(texts):
            raise DataError(f"{where}: {len(texts)} texts in {side!r}, but {len(names)} ids in {side}_id")
        found = []
        for text, name in zip(texts, names, strict=True):
            if is_blank(text):
                self.builder.count(f"blank_{'positives' if side == 'pos' else 'negatives'}")
            else:
                found.append(self.builder.add_document(None if name is None else as_id(name, where), text, where=where))
        return found
