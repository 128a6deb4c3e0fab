"""Reads BEIR folders: corpus, queries, qrels and, optionally, groups.tsv. The layout that the Hub uses is read as well.

corpus.jsonl          or corpus.parquet, corpus.jsonl.gz, ..., or a folder corpus/ of shards
queries.jsonl         likewise
qrels/SPLIT.tsv       or SPLIT.parquet, or shards SPLIT-00000-of-00001.parquet; with a header, or without one as TREC writes
groups.tsv            ids of queries and documents, and their groups
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from hardneg.data.builder import Builder
from hardneg.data.columns import as_id, as_number, is_number
from hardneg.data.options import ReadOptions
from hardneg.data.readers.files import SUFFIXES, located_blocks, located_rows, suffix_of
from hardneg.data.readers.pair_columns import add_documents, add_queries
from hardneg.data.readers.rows import COMPRESSED, Block, Row, exists, names, opened, read_blocks
from hardneg.data.readers.separated import separated
from hardneg.errors import DataError

_TEXT_SUFFIXES = (".tsv", ".txt", ".qrels", ".qrel")


def is_beir(path: Path) -> bool:
    """Whether a folder has the layout of BEIR: a corpus beside the judgements."""
    return path.is_dir() and _part(path, "corpus") is not None


def beir_part(path: Path, name: str) -> Path:
    """The file or folder of the `corpus` or the `queries`; DataError if there is none."""
    found = _part(path, name)
    if found is None:
        raise DataError(f"{path}/{name}.jsonl does not exist; a BEIR folder has corpus.jsonl, queries.jsonl and qrels/")
    return found


def _part(path: Path, name: str) -> Path | None:
    files = [path / f"{name}{suffix}" for suffix in SUFFIXES]
    files += [path / f"{name}{suffix}{packed}" for suffix in (".jsonl", ".tsv", ".csv") for packed in COMPRESSED]
    return next((file for file in (*files, path / name) if exists(file)), None)


def read_beir(path: Path, builder: Builder, options: ReadOptions) -> np.ndarray:
    """Read a BEIR folder into `builder`.

    Args:
        path: the folder.
        builder: receives the queries of all splits, the documents, and the judgements of `split`.
        options: `split` names the split, `relevant_from` the lowest grade of a positive, and `skip_unknown` counts
            judgements with unknown ids instead of raising an error.

    Returns:
        int64 `[n]`: the rows of the split's queries, sorted. Queries that no split names are included.

    Raises:
        DataError: a file is missing, a line of it is wrong, or the split has no judgement.
    """
    splits = _splits(path)
    if options.split not in splits:
        raise DataError(
            f"{path}/qrels: there is no split {options.split!r}; it has: {names(splits) or 'none'}. Choose one with --split"
        )
    corpus_part, queries_part = beir_part(path, "corpus"), beir_part(path, "queries")
    _read_corpus(corpus_part, builder)
    _read_queries(queries_part, builder)
    if not len(builder.documents):
        raise DataError(f"{corpus_part}: the corpus is empty, so there is nothing to mine negatives from")
    judged = _read_qrels(splits[options.split], builder, options)
    if exists(path / "groups.tsv"):
        _read_groups(path / "groups.tsv", builder)
    # A query that no split names belongs to every split. It has no positive, and is kept.
    others = [_queries_of(files, builder) for name, files in splits.items() if name != options.split]
    in_others = np.concatenate([*others, np.empty(0, np.int64)])
    only_in_others = np.setdiff1d(in_others, judged)
    return np.setdiff1d(np.arange(len(builder.queries)), only_in_others)


def _read_corpus(part: Path, builder: Builder) -> None:
    def take(block: Block, where: str, first: Row) -> bool:
        table = block.table(first)
        id = _id_column(first, table)
        return table is not None and id is not None and add_documents(builder, table, "text", id, "title", None)

    def add(where: str, row: Row) -> None:
        builder.add_document(_beir_id(row, where), row.get("text"), title=row.get("title") or "", where=where)

    # Shards are named after the part, not after a split.
    read_blocks(located_blocks(part, part.name), take, add)


def _read_queries(part: Path, builder: Builder) -> None:
    def take(block: Block, where: str, first: Row) -> bool:
        table = block.table(first)
        id = _id_column(first, table)
        return table is not None and id is not None and add_queries(builder, table, "text", id)

    def add(where: str, row: Row) -> None:
        builder.add_query(_beir_id(row, where), row.get("text"), where=where)

    read_blocks(located_blocks(part, part.name), take, add)


def _id_column(first: Row, table: pa.Table | None) -> str | None:
    """The column of the ids of a table; None if that of some rows may be another one."""
    if "_id" in first:
        return "_id"
    return None if table is not None and "_id" in table.column_names else "id"


def _splits(path: Path) -> dict[str, list[Path]]:
    """The files of the judgements of each split."""
    found: dict[str, list[Path]] = {}
    folder = next((path / name for name in ("qrels", "default") if exists(path / name)), None)
    for file in sorted(folder.iterdir()) if folder is not None and folder.is_dir() else ():
        suffix = suffix_of(file)
        if (suffix in SUFFIXES or suffix in _TEXT_SUFFIXES) and not file.name.startswith("."):
            found.setdefault(file.name.partition(".")[0].split("-0")[0], []).append(file)
    return found


def _qrels_rows(path: Path) -> Iterator[tuple[str, str, str, float]]:
    """(place in the file, query id, document id, score) of each line."""
    if suffix_of(path) in _TEXT_SUFFIXES:
        yield from _qrels_lines(path)
        return
    for where, row in located_rows(path):
        values = list(row.values())
        if len(values) != 3:
            raise DataError(f"{where}: {len(values)} columns, expected query-id, corpus-id, score")
        yield where, as_id(values[0], where), as_id(values[1], where), as_number(values[2], "score", where)


def _qrels_lines(path: Path) -> Iterator[tuple[str, str, str, float]]:
    """The judgements of a text file: (query, document, score) or, as TREC writes, (query, iteration, document, score).

    Fields are separated by tabs, or by any white space. The first line is a header if its last field is no number.
    """
    with opened(path) as stream:
        fields_before, tabs = 0, False
        for number, raw in enumerate(stream, 1):
            where = f"{path}, line {number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: not valid UTF-8 ({error.reason}); save the file as UTF-8") from None
            if not line.strip():
                continue
            if not fields_before:
                tabs = "\t" in line
            values = line.split("\t") if tabs else line.split()
            if len(values) not in (3, 4) or len(values) != (fields_before or len(values)):
                expected = fields_before or "query-id, corpus-id, score"
                raise DataError(f"{where}: {len(values)} fields, expected {expected}")
            header = not fields_before and not is_number(values[-1])
            fields_before = len(values)
            if not header:
                yield where, values[0], values[-2], as_number(values[-1], "score", where)


def _queries_of(files: list[Path], builder: Builder) -> np.ndarray:
    """Sorted rows of the known queries that the qrels of a split name, int64 `[n]`."""
    found = {builder.queries.ids.find(q) for path in files for _, q, _, _ in _qrels_rows(path)}
    return np.array(sorted(row for row in found if row is not None), np.int64)


def _read_qrels(files: list[Path], builder: Builder, options: ReadOptions) -> np.ndarray:
    """Add the judgements of one split; returns the sorted rows of its queries, int64 `[n]`."""
    named = set()
    unknown = lines = 0
    for where, query, document, grade in (row for path in files for row in _qrels_rows(path)):
        lines += 1
        q, d = builder.queries.ids.find(query), builder.documents.ids.find(document)
        if q is None or d is None:
            what, id = ("query", query) if q is None else ("document", document)
            if not options.skip_unknown:
                raise DataError(
                    f"{where}: the {what} id {id!r} is unknown: it is not in the {'queries' if what == 'query' else 'corpus'}. "
                    f"Correct the file, or skip such lines with --skip-unknown (they are counted)"
                )
            unknown += 1
            continue
        named.add(q)
        score = builder.judged(grade, options.relevant_from)
        if score is not None:
            builder.relate(q, d, score)
    if not lines:
        raise DataError(f"{files[0]}: there is no judgement, so no query has a positive")
    if unknown:
        builder.count("skipped_unknown_judgements", unknown)
    return np.array(sorted(named), np.int64)


def _read_groups(path: Path, builder: Builder) -> None:
    for where, row in separated(path, "\t"):
        values = list(row.values())
        if len(values) != 2:
            raise DataError(f"{where}: {len(values)} fields, expected id and group")
        id, group = values
        document, query = builder.documents.ids.find(id), builder.queries.ids.find(id)
        if document is not None:
            builder.set_group("document", document, group)
        if query is not None:
            builder.set_group("query", query, group)
        if document is not None and query is not None:
            builder.count("group_ids_of_a_query_and_a_document")
        if document is None and query is None:
            builder.count("groups_of_unknown_ids")


def _beir_id(row: Row, where: str) -> str:
    if "_id" not in row and "id" not in row:
        raise DataError(f"{where}: there is no '_id'; it has: {names(row)}")
    if "text" not in row:
        raise DataError(f"{where}: there is no 'text'; it has: {names(row)}")
    return as_id(row.get("_id", row.get("id")), where)
