"""Reads additional documents into the corpus."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hardneg.data.builder import Builder
from hardneg.data.columns import find_column, id_of, need_column
from hardneg.data.options import ReadOptions
from hardneg.data.readers.beir import beir_part, is_beir
from hardneg.data.readers.files import located_blocks, present, suffix_of
from hardneg.data.readers.image_sources import is_image_source, read_images
from hardneg.data.readers.joined_columns import JoinedColumns
from hardneg.data.readers.pair_columns import add_documents
from hardneg.data.readers.pair_rows import DOCUMENT_ID_COLUMNS, GROUP_COLUMNS
from hardneg.data.readers.rows import Block, Row, names, read_blocks
from hardneg.data.readers.separated import separated, separated_fields
from hardneg.errors import DataError

TEXT_COLUMNS = (
    "text", "document", "document_text", "passage", "contents", "content", "body", "positive", "answer", "code",
)  # fmt: skip


def read_corpus(path: Path, builder: Builder, options: ReadOptions) -> None:
    """Read additional documents into `builder`.

    Args:
        path: a file, pattern or folder whose rows have a text column (see `TEXT_COLUMNS`) and, optionally, an id, a title
            and a group; a TSV file of ids and texts without a header; a BEIR folder, of which the corpus is read; or a folder or
            shards of pictures, whose captions are not used.
        builder: receives the documents.
        options: `split` names the split of a saved dataset, `text_column` and `group_column` name columns.

    Raises:
        DataError: the file does not exist, or a row has no text column.
    """
    if not present(path):
        raise DataError(f"{path} does not exist: --corpus takes a file of documents")
    if is_image_source(path, options):
        read_images(path, builder, options, corpus=True)
        return
    add_corpus(_blocks(path, options), builder, options)


def add_corpus(blocks: Iterable[Block], builder: Builder, options: ReadOptions) -> None:
    """Add rows with a column of texts to the documents. Arguments and errors are those of `read_corpus`."""
    documents = _Documents(builder, options)
    read_blocks(blocks, documents.take, documents.add)


class _Documents:
    """Adds documents by columns, which the first row tells."""

    def __init__(self, builder: Builder, options: ReadOptions) -> None:
        self.builder, self.options = builder, options
        self.text = ""
        self.title: str | None = "title"
        self.joined = JoinedColumns((), {})
        self.id: str | None = None
        self.group: str | None = None

    def _find(self, where: str, row: Row) -> None:
        options = self.options
        self.joined = JoinedColumns((options.text_column,), row)
        row = self.joined.row(where, row)
        self.text = need_column(row, options.text_column, TEXT_COLUMNS, where, "text")
        self.id = find_column(row, None, ("_id", "id", *DOCUMENT_ID_COLUMNS), where)
        # A group column of the pairs may be missing here: documents then have no group.
        given = options.group_column if options.group_column is None or options.group_column in row else ""
        self.group = find_column(row, given, GROUP_COLUMNS, where) if self.builder.groups else None
        if "title" in self.joined.parts.get(self.text, ()):
            self.title = None  # it is in the text
        self.builder.columns["corpus text"] = self.text
        if self.group is not None:
            self.builder.columns["corpus group"] = self.group

    def take(self, block: Block, where: str, first: Row) -> bool:
        if not self.text:
            self._find(where, first)
        table = block.table(first)
        table = None if table is None else self.joined.table(table)
        return table is not None and add_documents(self.builder, table, self.text, self.id, self.title, self.group)

    def add(self, where: str, row: Row) -> None:
        row = self.joined.row(where, row)
        if self.text not in row:
            raise DataError(f"{where}: there is no column {self.text!r}; it has: {names(row)}")
        group = row.get(self.group) if self.group else None
        title = (row.get(self.title) if self.title else None) or ""
        id = id_of(row, self.id, where)
        self.builder.add_document(id, row[self.text], title=title, group=group, where=where)


def _blocks(path: Path, options: ReadOptions) -> Iterable[Block]:
    if is_beir(path):
        return located_blocks(beir_part(path, "corpus"), options.split)
    if path.is_file() and suffix_of(path) == ".tsv" and options.text_column is None:
        first = next(separated_fields(path, "\t", options.quoting), None)
        usual = {name.lower() for name in (*TEXT_COLUMNS, "_id", "id", "title", *DOCUMENT_ID_COLUMNS)}
        if first is not None and len(first[1]) == 2 and not {name.lower() for name in first[1]} & usual:
            # As the collection of MS MARCO.
            return [Block(lambda: separated(path, "\t", ("id", "text"), options.quoting))]
    return located_blocks(path, options.split, options.quoting)
