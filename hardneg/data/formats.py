"""Readers: every kind of dataset that people have, streamed into one `Builder`.

A source is a BEIR folder, a saved Hugging Face dataset, or a file of pairs (JSON lines, CSV, TSV,
Parquet, FlagEmbedding, Tevatron), or a built-in set. Everything in it is untrusted: every error names
the file and the line.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hardneg.data.builder import Builder
from hardneg.data.pairs import Pairs
from hardneg.errors import DataError, UsageError, first_few, suggestion

Row = Mapping[str, Any]
Located = Iterator[tuple[str, Row]]  # where it stands, and what it holds

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
        _read_rows(_json_lines(sys.stdin.buffer, "standard input"), builder, options, "standard input")
    else:
        path = Path(source)
        if not path.exists():
            raise DataError(f"{source} does not exist: SOURCE is a file, a folder, '-' or builtin:pycode")
        if path.is_dir() and (path / "corpus.jsonl").exists():
            keep = _read_beir(path, builder, options)
        else:
            _read_rows(located_rows(path, options.split), builder, options, str(path))
    if options.corpus is not None:
        _read_corpus(options.corpus, builder, options)
    return builder.finish(source, keep)


def located_rows(path: Path, split: str = "train") -> Located:
    """The rows of a file or of a saved Hugging Face dataset, each with the place it stands in."""
    if path.is_dir():
        return _saved_dataset(path, split)
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson", ".json"):
        return _open_json_lines(path)
    if suffix in (".csv", ".tsv"):
        return _separated(path, "," if suffix == ".csv" else "\t")
    if suffix in (".parquet", ".pq"):
        return _parquet(path)
    raise DataError(
        f"{path}: cannot tell what this is from its name; expected .jsonl, .csv, .tsv, .parquet or a folder"
    )


def _open_json_lines(path: Path) -> Located:
    with open(path, "rb") as f:
        yield from _json_lines(f, str(path))


def _json_lines(stream: IO[bytes], name: str) -> Located:
    for number, line in enumerate(stream, 1):
        if line.isspace():
            continue
        where = f"{name}, line {number}"
        try:
            value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where}: not valid UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8"
            ) from None
        except (json.JSONDecodeError, RecursionError) as error:
            detail = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            hint = ". The file starts with '[': write one object a line" if line.lstrip()[:1] == b"[" else ""
            raise DataError(f"{where}: not a JSON object ({detail}){hint}") from None
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected a JSON object, got a {type(value).__name__}")
        yield where, value


def _separated(path: Path, delimiter: str) -> Located:
    csv.field_size_limit(1 << 27)
    with open(path, encoding="utf-8-sig", newline="") as f:
        # TSV of the retrieval world (qrels, MS MARCO) has no quoting.
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if delimiter == "," or _quoted(path) else csv.QUOTE_NONE
        reader = csv.reader(f, delimiter=delimiter, quoting=quoting, strict=True)
        header: list[str] | None = None
        number = 0
        try:
            for fields in reader:
                number = reader.line_num
                if not fields:
                    continue
                if header is None:
                    header = fields
                    continue
                where = f"{path}, line {number}"
                if len(fields) != len(header):
                    raise DataError(
                        f"{where}: {len(fields)} fields, but the header names {len(header)}: {', '.join(header)}"
                    )
                yield where, dict(zip(header, fields, strict=True))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, after line {number}: not valid UTF-8 ({error.reason}); save the file as UTF-8"
            ) from None
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}") from None


def _quoted(path: Path) -> bool:
    """Whether a TSV was written with quoting: its header or a field starts with a quote and ends with one."""
    with open(path, "rb") as f:
        return any(
            field.startswith(b'"') and field.endswith(b'"')
            for field in f.read(1 << 16).replace(b"\n", b"\t").split(b"\t")
            if len(field) > 1
        )


def _parquet(path: Path) -> Located:
    try:
        file = pq.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=4096):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from None


def _saved_dataset(path: Path, split: str) -> Located:
    """A dataset as `datasets.Dataset.save_to_disk` writes it: Arrow streams, named by state.json."""
    if (path / "dataset_dict.json").exists():
        splits = sorted(p.parent.name for p in path.glob("*/state.json"))
        if split not in splits:
            raise DataError(
                f"{path}: there is no split {split!r}; it has: {', '.join(splits)}. Choose one with --split"
            )
        path = path / split
    state = path / "state.json"
    if not state.exists():
        raise DataError(
            f"{path}: this folder is no dataset: a BEIR folder has corpus.jsonl, a saved Hugging Face dataset state.json"
        )
    try:
        files = [str(item["filename"]) for item in json.loads(state.read_text("utf-8"))["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{state}: not a dataset state ({error!r})") from None
    number = 0
    for name in files:
        if Path(name).name != name:
            raise DataError(f"{state}: names the file {name!r}, which is outside the folder")
        try:
            with pa.memory_map(str(path / name)) as source, pa.ipc.open_stream(source) as reader:
                for batch in reader:
                    for start in range(0, batch.num_rows, 4096):
                        for row in batch.slice(start, 4096).to_pylist():
                            number += 1
                            yield f"{path / name}, row {number}", row
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path / name}: not a readable Arrow stream ({error})") from None


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
        self.query = _needed(row, options.query_column, QUERY_COLUMNS, where, "query")
        free = {name: value for name, value in row.items() if name != self.query}
        self.positive = _needed(free, options.positive_column, POSITIVE_COLUMNS, where, "positive")
        self.id = _column(row, options.id_column, QUERY_ID_COLUMNS, where)
        self.document_id = _column(row, options.document_id_column, DOCUMENT_ID_COLUMNS, where)
        self.relevance = _column(row, options.relevance_column, RELEVANCE_COLUMNS, where)
        self.group = _column(row, options.group_column, GROUP_COLUMNS, where)
        if self.group == "label" and options.group_column is None and self.relevance is None and _binary(row["label"]):
            # (text, text, 0/1) is the usual labelled pair; any other label is a class.
            self.group, self.relevance = None, "label"
        self.negatives = [name for name in row if _NEGATIVE_COLUMN.fullmatch(name)]

    def __call__(self, where: str, row: Row) -> None:
        try:
            text, positives = row[self.query], row[self.positive]
        except KeyError as error:
            raise DataError(f"{where}: there is no column {error.args[0]!r}; it has: {', '.join(row)}") from None
        group = row.get(self.group) if self.group else None
        query = self.builder.add_query(_id(row, self.id, where), text, group=group, where=where)
        texts = positives if isinstance(positives, list) else [positives]
        ids = row.get(self.document_id) if self.document_id else None
        ids = ids if isinstance(ids, list) else [ids]
        if self.document_id and len(ids) != len(texts):
            raise DataError(f"{where}: {len(texts)} positives, but {len(ids)} ids in {self.document_id!r}")
        score = 1.0 if self.relevance is None else _number(row.get(self.relevance), self.relevance, where)
        for i, positive in enumerate(texts):
            if positive is None and self.relevance is None:
                continue  # a query without a positive is a query all the same
            id = _as_id(ids[i], where) if self.document_id else None
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
        _need(row, ("query", "pos"), where)
        query = self.builder.add_query(None, row["query"], where=where)
        for text in _list(row["pos"], "pos", where):
            self.builder.relate(query, self.builder.add_document(None, text, where=where), 1)
        for text in _list(row.get("neg") or [], "neg", where):
            self.builder.add_document(None, text, where=where)


class _TevatronRows:
    """{"query_id", "query", "positive_passages": [{"docid", "title", "text"}], "negative_passages": [...]}."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder

    def __call__(self, where: str, row: Row) -> None:
        _need(row, ("query_id", "query", "positive_passages"), where)
        query = self.builder.add_query(_as_id(row["query_id"], where), row["query"], where=where)
        for passage in _list(row["positive_passages"], "positive_passages", where):
            self.builder.relate(query, self._passage(passage, where), 1)
        for passage in _list(row.get("negative_passages") or [], "negative_passages", where):
            self._passage(passage, where)

    def _passage(self, passage: Any, where: str) -> int:
        if not isinstance(passage, dict):
            raise DataError(
                f"{where}: a passage is of type {type(passage).__name__}, expected an object with docid and text"
            )
        _need(passage, ("docid", "text"), where)
        title = passage.get("title") or ""
        return self.builder.add_document(_as_id(passage["docid"], where), passage["text"], title=title, where=where)


def _read_beir(path: Path, builder: Builder, options: ReadOptions) -> np.ndarray:
    """corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv, perhaps groups.tsv; returns the rows of the split's queries."""
    splits = sorted(p.stem for p in (path / "qrels").glob("*.tsv"))
    if options.split not in splits:
        raise DataError(
            f"{path}/qrels: there is no split {options.split!r}; it has: {', '.join(splits) or 'none'}. Choose one with --split"
        )
    if not (path / "queries.jsonl").exists():
        raise DataError(
            f"{path}/queries.jsonl does not exist: a BEIR folder has corpus.jsonl, queries.jsonl and qrels/"
        )
    documents: dict[str, int] = {}
    queries: dict[str, int] = {}
    for where, row in _open_json_lines(path / "corpus.jsonl"):
        id = _beir_id(row, where)
        documents[id] = builder.add_document(id, row.get("text"), title=row.get("title") or "", where=where)
    for where, row in _open_json_lines(path / "queries.jsonl"):
        id = _beir_id(row, where)
        queries[id] = builder.add_query(id, row.get("text"), where=where)
    ours = _read_qrels(path / "qrels" / f"{options.split}.tsv", queries, documents, builder, options)
    if (path / "groups.tsv").exists():
        _read_groups(path / "groups.tsv", queries, documents, builder)
    # A query that no split names belongs to every one: it has no positive, and is kept.
    others = [queries_of(path / "qrels" / f"{name}.tsv", queries) for name in splits if name != options.split]
    elsewhere = np.concatenate([*others, np.empty(0, np.int64)])
    foreign = np.setdiff1d(elsewhere, ours)
    return np.setdiff1d(np.arange(len(builder.queries.ids)), foreign)


def _qrels_rows(path: Path) -> Iterator[tuple[str, str, str, float]]:
    for where, row in _separated(path, "\t"):
        values = list(row.values())
        if len(values) == 4:  # TREC: query, iteration, document, relevance
            values = [values[0], values[2], values[3]]
        if len(values) != 3:
            raise DataError(f"{where}: {len(values)} fields, expected query-id, corpus-id, score")
        yield where, values[0], values[1], _number(values[2], "score", where)


def queries_of(path: Path, queries: dict[str, int]) -> np.ndarray:
    """Rows of the queries that a qrels file names."""
    return np.array(sorted({queries[q] for _, q, _, _ in _qrels_rows(path) if q in queries}), np.int64)


def _read_qrels(
    path: Path, queries: dict[str, int], documents: dict[str, int], builder: Builder, options: ReadOptions
) -> np.ndarray:
    named = set()
    unknown: list[str] = []
    for where, query, document, score in _qrels_rows(path):
        if query not in queries or document not in documents:
            what, id = ("query", query) if query not in queries else ("document", document)
            if not options.skip_unknown:
                raise DataError(
                    f"{where}: the {what} id {id!r} is unknown: it is not in the {'queries' if what == 'query' else 'corpus'}. "
                    f"Correct the file, or count and skip such lines with --skip-unknown"
                )
            unknown.append(id)
            continue
        named.add(queries[query])
        builder.relate(queries[query], documents[document], score)
    if unknown:
        builder.count("skipped_unknown_judgements", len(unknown))
    return np.array(sorted(named), np.int64)


def _read_groups(path: Path, queries: dict[str, int], documents: dict[str, int], builder: Builder) -> None:
    for where, row in _separated(path, "\t"):
        values = list(row.values())
        if len(values) != 2:
            raise DataError(f"{where}: {len(values)} fields, expected id and group")
        id, group = values
        in_documents, in_queries = id in documents, id in queries
        if in_documents:
            builder.set_group("document", documents[id], group)
        if in_queries:
            builder.set_group("query", queries[id], group)
        if in_documents and in_queries:
            builder.count("group_ids_of_a_query_and_a_document")
        if not in_documents and not in_queries:
            builder.count("groups_of_unknown_ids")


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
            column = _needed(row, None, TEXT_COLUMNS, where, "text")
            id_column = _column(row, None, ("_id", "id", *DOCUMENT_ID_COLUMNS), where)
        if column not in row:
            raise DataError(f"{where}: there is no column {column!r}; it has: {', '.join(row)}")
        title = row.get("title") or ""
        builder.add_document(_id(row, id_column, where), row[column], title=title, where=where)


def _column(row: Row, given: str | None, usual: tuple[str, ...], where: str) -> str | None:
    """The column to read: the given one, or the first usual name that the row has; names differ in case at most."""
    if given is not None:
        if given == "":
            return None
        if given not in row:
            raise DataError(f"{where}: there is no column {given!r}.{suggestion(given, row)}")
        return given
    lowered = {name.lower(): name for name in row}
    return next((lowered[name.lower()] for name in usual if name.lower() in lowered), None)


def _needed(row: Row, given: str | None, usual: tuple[str, ...], where: str, what: str) -> str:
    """As `_column`, for a column that there has to be."""
    found = _column(row, given, usual, where)
    if found is None:
        raise DataError(
            f"{where}: no column looks like a {what}; it has: {', '.join(row) or 'none'}. "
            f"Usual names: {first_few(usual, limit=20)}. Name yours with --{what}-column"
        )
    return found


def _binary(value: Any) -> bool:
    return value in (0, 1, "0", "1", True, False)


def _id(row: Row, column: str | None, where: str) -> str | None:
    return None if column is None else _as_id(row.get(column), where)


def _as_id(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{where}: the id is {value!r}, expected text or an integer")
    return str(value)


def _beir_id(row: Row, where: str) -> str:
    if "_id" not in row and "id" not in row:
        raise DataError(f"{where}: there is no '_id'; it has: {', '.join(row)}")
    if "text" not in row:
        raise DataError(f"{where}: there is no 'text'; it has: {', '.join(row)}")
    return _as_id(row.get("_id", row.get("id")), where)


def _number(value: Any, what: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(f"{where}: the {what} is {value!r}, expected a number") from None
    if not np.isfinite(number):
        raise DataError(f"{where}: the {what} is {value!r}, expected a finite number")
    return number


def _need(row: Row, names: tuple[str, ...], where: str) -> None:
    for name in names:
        if name not in row:
            raise DataError(f"{where}: there is no {name!r}; it has: {', '.join(row)}")


def _list(value: Any, what: str, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{where}: {what!r} is of type {type(value).__name__}, expected a list")
    return value
