"""Reads FlagEmbedding files, in which each row has a query and lists of positive and negative texts."""

from __future__ import annotations

from hardneg.data.builder import Builder
from hardneg.data.columns import as_list, need_cells
from hardneg.data.readers.rows import Row


class FlagEmbeddingRows:
    """Reads rows `{"query": text, "pos": [texts], "neg": [texts]}`.

    The texts of `neg` become documents of the corpus. They are not taken as judged negatives of the query.
    """

    def __init__(self, builder: Builder) -> None:
        self.builder = builder

    def __call__(self, where: str, row: Row) -> None:
        need_cells(row, ("query", "pos"), where)
        query = self.builder.add_query(None, row["query"], where=where)
        for text in as_list(row["pos"], "pos", where):
            self.builder.relate(query, self.builder.add_document(None, text, where=where), 1)
        for text in as_list(row.get("neg") or [], "neg", where):
            self.builder.add_document(None, text, where=where)
