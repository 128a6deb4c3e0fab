"""Reads additional documents into the corpus."""

from __future__ import annotations

from pathlib import Path

from hardneg.data.builder import Builder
from hardneg.data.columns import find_column, id_of, need_column
from hardneg.data.options import ReadOptions
from hardneg.data.readers.pair_rows import DOCUMENT_ID_COLUMNS
from hardneg.data.readers.rows import exists, located_rows, names
from hardneg.errors import DataError

TEXT_COLUMNS = ("text", "document", "passage", "contents", "content", "positive", "answer", "code")


def read_corpus(path: Path, builder: Builder, options: ReadOptions) -> None:
    """Read additional documents into `builder`.

    Args:
        path: a file whose rows have a text column (see `TEXT_COLUMNS`) and, optionally, an id and a title; or a BEIR
            folder, of which corpus.jsonl is read.
        builder: receives the documents.
        options: `split` names the split of a saved dataset.

    Raises:
        DataError: the file does not exist, or a row has no text column.
    """
    if not exists(path):
        raise DataError(f"{path} does not exist: --corpus takes a file of documents")
    if path.is_dir() and exists(path / "corpus.jsonl"):
        path = path / "corpus.jsonl"
    column: str | None = None
    id_column: str | None = None
    for where, row in located_rows(path, options.split):
        if column is None:
            column = need_column(row, None, TEXT_COLUMNS, where, "text")
            id_column = find_column(row, None, ("_id", "id", *DOCUMENT_ID_COLUMNS), where)
        if column not in row:
            raise DataError(f"{where}: there is no column {column!r}; it has: {names(row)}")
        title = row.get("title") or ""
        builder.add_document(id_of(row, id_column, where), row[column], title=title, where=where)
