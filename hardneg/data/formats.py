"""Readers: every kind of dataset that people have, streamed into one `Builder`.

A source is a BEIR folder, a saved Hugging Face dataset, or a file of pairs (JSON lines, CSV, TSV,
Parquet, FlagEmbedding, Tevatron), or a built-in set. Everything in it is untrusted: every error names
the file and the line.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardneg.data.beir import read_beir
from hardneg.data.builder import Builder
from hardneg.data.cells import as_id, as_list, as_number, find_column, id_of, is_binary, need_cells, need_column
from hardneg.data.pairs import Pairs
from hardneg.data.rows import Located, Row, json_lines, located_rows
from hardneg.errors import DataError, UsageError, suggestion

FORMATS = ("auto", "beir", "pairs", "flagembedding", "tevatron")
QUERY_COLUMNS = ("query", "anchor", "question", "sentence1", "sentence_A", "prompt", "query_text")
POSITIVE_COLUMNS = (
    "positive", "positives", "answer", "answers", "document", "text", "passage", "context", "code",
    "sentence2", "sentence_B", "pos",
)  # fmt: skip
QUERY_ID_COLUMNS = ("query_id", "query-id", "qid", "_id", "id")
DOCUMENT_ID_COLUMNS = ("document_id", "doc_id", "docid", "positive_id", "corpus_id", "corpus-id", "pid")
GROUP_COLUMNS = ("group", "label")
RELEVANCE_COLUMNS = ("relevant", "relevance")
TEXT_COLUMNS = ("text", "document", "passage", "contents", "content", "positive", "answer", "code")
_NEGATIVE_COLUMN = re.compile(r"negatives?(_\d+)?|neg")


@dataclass(frozen=True)
class ReadOptions:
    """How to read a source; None means: guess by the usual names.

    Attributes:
        format: one of `FORMATS`.
        split: of a BEIR folder, a saved dataset with several splits, or a built-in set.
        query_column, positive_column, id_column, document_id_column, group_column: names of columns.
        relevance_column: a graded judgement a row: above 0 relevant, else judged not relevant.
        corpus: a file or BEIR folder with more documents.
        skip_unknown: judgements that name unknown ids are counted instead of being an error.
    """

    format: str = "auto"
    split: str = "train"
    query_column: str | None = None
    positive_column: str | None = None
    id_column: str | None = None
    document_id_column: str | None = None
    group_column: str | None = None
    relevance_column: str | None = None
    corpus: Path | None = None
    skip_unknown: bool = False


def read_pairs(source: str, options: ReadOptions | None = None, folder: Path | None = None) -> Pairs:
    """Read a dataset.

    Args:
        source: a path, `-` for JSON lines on standard input, or `builtin:NAME`.
        options: how.
        folder: where its texts go, so that memory does not grow with them; None keeps them in memory.

    Raises:
        DataError: something in it is wrong; the message says in which file and line.
        UsageError: the source or an option names nothing that exists.
    """
    options = options or ReadOptions()
    if options.format not in FORMATS:
        raise UsageError(f"unknown format {options.format!r}.{suggestion(options.format, FORMATS)}")
    builder = Builder(folder)
    keep = None
    if source.startswith("builtin:"):
        from hardneg.data.builtin import read_builtin

        read_builtin(source.removeprefix("builtin:"), options.split, builder)
    elif source == "-":
        _read_rows(json_lines(sys.stdin.buffer, "standard input"), builder, options, "standard input")
    else:
        path = Path(source)
        if not path.exists():
            raise DataError(f"{source} does not exist: SOURCE is a file, a folder, '-' or builtin:pycode")
        if path.is_dir() and (path / "corpus.jsonl").exists():
            keep = read_beir(path, builder, options.split, options.skip_unknown)
        else:
            _read_rows(located_rows(path, options.split), builder, options, str(path))
    if options.corpus is not None:
        _read_corpus(options.corpus, builder, options)
    return builder.finish(source, keep)


def _read_rows(rows: Located, builder: Builder, options: ReadOptions, name: str) -> None:
    """A file of pairs: the kind is told from its first row."""
    first = next(rows, None)
    if first is None:
        raise DataError(f"{name}: there are no rows: there is nothing to mine negatives for")
    kind = options.format
    if kind in ("auto", "beir"):
        kind = (
            "tevatron" if "positive_passages" in first[1]
            else "flagembedding" if isinstance(first[1].get("pos"), list) and "query" in first[1]
            else "pairs"
        )  # fmt: skip
    add: Callable[[str, Row], None]
    if kind == "tevatron":
        add = _TevatronRows(builder)
    elif kind == "flagembedding":
        add = _FlagEmbeddingRows(builder)
    else:
        add = _PairRows(builder, options, first)
    add(*first)
    for where, row in rows:
        add(where, row)


class _PairRows:
    """Rows with a query and one or more positives, perhaps ids, a group, a judgement, negatives."""

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
            # (text, text, 0/1) is the usual labelled pair; any other label is a class.
            self.group, self.relevance = None, "label"
        self.negatives = [name for name in row if _NEGATIVE_COLUMN.fullmatch(name)]

    def __call__(self, where: str, row: Row) -> None:
        try:
            text, positives = row[self.query], row[self.positive]
        except KeyError as error:
            raise DataError(f"{where}: there is no column {error.args[0]!r}; it has: {', '.join(row)}") from None
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
                continue  # a query without a positive is a query all the same
            id = as_id(ids[i], where) if self.document_id else None
            self.builder.relate(query, self.builder.add_document(id, positive, group=group, where=where), score)
        for name in self.negatives:
            negatives = row.get(name)
            for negative in negatives if isinstance(negatives, list) else [negatives]:
                if negative is not None:
                    self.builder.add_document(None, negative, where=where)


class _FlagEmbeddingRows:
    """{"query": text, "pos": [texts], "neg": [texts]}: `neg` joins the pool of candidates."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder

    def __call__(self, where: str, row: Row) -> None:
        need_cells(row, ("query", "pos"), where)
        query = self.builder.add_query(None, row["query"], where=where)
        for text in as_list(row["pos"], "pos", where):
            self.builder.relate(query, self.builder.add_document(None, text, where=where), 1)
        for text in as_list(row.get("neg") or [], "neg", where):
            self.builder.add_document(None, text, where=where)


class _TevatronRows:
    """{"query_id", "query", "positive_passages": [{"docid", "title", "text"}], "negative_passages": [...]}."""

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


def _read_corpus(path: Path, builder: Builder, options: ReadOptions) -> None:
    """More documents: {_id, title, text} or any column of texts."""
    if path.is_dir() and (path / "corpus.jsonl").exists():
        path = path / "corpus.jsonl"
    if not path.exists():
        raise DataError(f"{path} does not exist: --corpus takes a file of documents")
    column: str | None = None
    id_column: str | None = None
    for where, row in located_rows(path, options.split):
        if column is None:
            column = need_column(row, None, TEXT_COLUMNS, where, "text")
            id_column = find_column(row, None, ("_id", "id", *DOCUMENT_ID_COLUMNS), where)
        if column not in row:
            raise DataError(f"{where}: there is no column {column!r}; it has: {', '.join(row)}")
        title = row.get("title") or ""
        builder.add_document(id_of(row, id_column, where), row[column], title=title, where=where)
