"""Reads BEIR folders: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv and, optionally, groups.tsv."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hardneg.data.builder import Builder
from hardneg.data.columns import as_id, as_number
from hardneg.data.readers.rows import Row, exists, names, open_json_lines, separated
from hardneg.errors import DataError


def read_beir(path: Path, builder: Builder, split: str, skip_unknown: bool) -> np.ndarray:
    """Read a BEIR folder into `builder`.

    Args:
        path: folder with corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv and, optionally, groups.tsv.
        builder: receives the queries of all splits, the documents, and the judgements of `split`.
        split: name of the split.
        skip_unknown: count judgements with unknown ids instead of raising an error.

    Returns:
        int64 `[n]`: the rows of the split's queries, sorted. Queries that no split names are included.

    Raises:
        DataError: a file is missing, or a line of it is wrong.
    """
    splits = sorted(p.stem for p in (path / "qrels").glob("*.tsv"))
    if split not in splits:
        raise DataError(
            f"{path}/qrels: there is no split {split!r}; it has: {names(splits) or 'none'}. Choose one with --split"
        )
    if not exists(path / "queries.jsonl"):
        raise DataError(
            f"{path}/queries.jsonl does not exist; a BEIR folder has corpus.jsonl, queries.jsonl and qrels/"
        )
    documents: dict[str, int] = {}
    queries: dict[str, int] = {}
    for where, row in open_json_lines(path / "corpus.jsonl"):
        id = _beir_id(row, where)
        documents[id] = builder.add_document(id, row.get("text"), title=row.get("title") or "", where=where)
    for where, row in open_json_lines(path / "queries.jsonl"):
        id = _beir_id(row, where)
        queries[id] = builder.add_query(id, row.get("text"), where=where)
    judged = _read_qrels(path / "qrels" / f"{split}.tsv", queries, documents, builder, skip_unknown)
    if exists(path / "groups.tsv"):
        _read_groups(path / "groups.tsv", queries, documents, builder)
    # A query that no split names belongs to every split. It has no positive, and is kept.
    others = [_queries_of(path / "qrels" / f"{name}.tsv", queries) for name in splits if name != split]
    in_others = np.concatenate([*others, np.empty(0, np.int64)])
    only_in_others = np.setdiff1d(in_others, judged)
    return np.setdiff1d(np.arange(len(builder.queries.ids)), only_in_others)


def _qrels_rows(path: Path) -> Iterator[tuple[str, str, str, float]]:
    """(place in the file, query id, document id, score) of each line."""
    for where, row in separated(path, "\t"):
        values = list(row.values())
        if len(values) == 4:  # TREC: query, iteration, document, relevance
            values = [values[0], values[2], values[3]]
        if len(values) != 3:
            raise DataError(f"{where}: {len(values)} fields, expected query-id, corpus-id, score")
        yield where, values[0], values[1], as_number(values[2], "score", where)


def _queries_of(path: Path, queries: dict[str, int]) -> np.ndarray:
    """Sorted rows of the known queries that a qrels file names, int64 `[n]`."""
    return np.array(sorted({queries[q] for _, q, _, _ in _qrels_rows(path) if q in queries}), np.int64)


def _read_qrels(
    path: Path, queries: dict[str, int], documents: dict[str, int], builder: Builder, skip_unknown: bool
) -> np.ndarray:
    """Add the judgements of one qrels file; returns the sorted rows of its queries, int64 `[n]`."""
    named = set()
    unknown: list[str] = []
    for where, query, document, score in _qrels_rows(path):
        if query not in queries or document not in documents:
            what, id = ("query", query) if query not in queries else ("document", document)
            if not skip_unknown:
                raise DataError(
                    f"{where}: the {what} id {id!r} is unknown: it is not in the {'queries' if what == 'query' else 'corpus'}. "
                    f"Correct the file, or skip such lines with --skip-unknown (they are counted)"
                )
            unknown.append(id)
            continue
        named.add(queries[query])
        builder.relate(queries[query], documents[document], score)
    if unknown:
        builder.count("skipped_unknown_judgements", len(unknown))
    return np.array(sorted(named), np.int64)


def _read_groups(path: Path, queries: dict[str, int], documents: dict[str, int], builder: Builder) -> None:
    for where, row in separated(path, "\t"):
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


def _beir_id(row: Row, where: str) -> str:
    if "_id" not in row and "id" not in row:
        raise DataError(f"{where}: there is no '_id'; it has: {names(row)}")
    if "text" not in row:
        raise DataError(f"{where}: there is no 'text'; it has: {names(row)}")
    return as_id(row.get("_id", row.get("id")), where)
