"""Writers for tables, JSON lines, TREC runs and BEIR folders."""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hardneg.data.pairs import Pairs
from hardneg.data.texts import shown
from hardneg.errors import DataError
from hardneg.exports.layouts import Block, Docs
from hardneg.storage.files import atomic_path
from hardneg.storage.folders import marker

if TYPE_CHECKING:
    from hardneg.mining.run import Run

BLOCK_QUERIES = 2048  # queries whose texts are in memory at once


@dataclass
class Exported:
    """Counts of an export.

    Attributes:
        rows: number of rows that were written.
        queries: number of queries that were written.
        left_out: number of queries that were left out, by reason.
    """

    rows: int = 0
    queries: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


NO_NEGATIVE = "without a negative"


def _plain(type: pa.DataType) -> pa.DataType:
    """The same type with 32-bit offsets, which every Parquet reader supports."""
    if pa.types.is_large_string(type):
        return pa.string()
    if pa.types.is_large_list(type):
        return pa.list_(_plain(type.value_type))
    if pa.types.is_struct(type):
        return pa.struct([(f.name, _plain(f.type)) for f in type])
    return type


def write_parquet(tables: Iterator[pa.Table], path: Path) -> None:
    """Write tables of one schema to a Parquet file; there must be at least one."""
    first = next(tables)
    schema = pa.schema([(f.name, _plain(f.type)) for f in first.schema])
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", write_statistics=False) as writer,
    ):
        for table in itertools.chain([first], ahead(tables)):
            writer.write_table(table.cast(schema))


def ahead(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same tables. Each one is made in the background while the previous one is used."""
    with ThreadPoolExecutor(1) as background:
        upcoming = background.submit(next, tables, None)
        while (table := upcoming.result()) is not None:
            upcoming = background.submit(next, tables, None)
            yield table


def json_lines(tables: Iterator[pa.Table]) -> Iterator[str]:
    """One JSON object for each row of the tables.

    >>> list(json_lines(iter([pa.table({"query": ["a", "b"]})])))
    ['{"query": "a"}\\n', '{"query": "b"}\\n']
    """
    for table in tables:
        for row in table.to_pylist():
            yield json.dumps(row, ensure_ascii=False) + "\n"


class _Lines:
    """A file for `csv.writer` that ends lines with a line feed alone.

    The writer quotes a carriage return in a cell only if lines end with one (before Python 3.13), and a cell with one that
    is not quoted is read as two lines. So it is told that they do, and the end of each line is replaced here.
    """

    def __init__(self, file: IO[str]) -> None:
        self.file = file

    def write(self, line: str) -> None:
        self.file.write(line.removesuffix("\r\n") + "\n")


def write_csv(tables: Iterator[pa.Table], path: Path) -> None:
    """Write tables as CSV, or as TSV if the path does not end in `.csv`. Lists are written as JSON.

    Texts are written exactly as they are, as training programs need them, also those that a spreadsheet takes for formulas.
    """
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as f:
        writer = csv.writer(_Lines(f), delimiter="," if path.suffix == ".csv" else "\t", lineterminator="\r\n")
        for i, table in enumerate(tables):
            if i == 0:
                writer.writerow(table.column_names)
            for row in table.to_pylist():
                cells = (json.dumps(c, ensure_ascii=False) if isinstance(c, list) else c for c in row.values())
                writer.writerow(cells)


def write_text(path: Path, lines: Iterator[str]) -> None:
    """Write lines to a file, or to standard output if the path is `-`."""
    if str(path) == "-":
        sys.stdout.writelines(lines)
        return
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
        f.writelines(lines)


def _pylists(side: Docs, ids: list[str]) -> Iterator[tuple[list[str], list[float]]]:
    """(document ids, scores) of each query."""
    bounds = side.lists.offsets.tolist()
    places, scores = side.lists.values.tolist(), side.scores.tolist()
    for start, stop in itertools.pairwise(bounds):
        yield [ids[place] for place in places[start:stop]], scores[start:stop]


def trec_lines(blocks: Iterator[Block], report: Exported) -> Iterator[str]:
    """The negatives as lines of a TREC run: query, Q0, document, rank, score, tag.

    Queries without a negative are counted in `report.left_out`. DataError: an id holds white space.
    """
    for block in blocks:
        negatives = _pylists(block.negatives, block.document_ids.to_pylist())
        for query, (documents, scores) in zip(block.ids.to_pylist(), negatives, strict=True):
            if not documents:
                report.left_out[NO_NEGATIVE] += 1
                continue
            _check_ids(query, *documents)
            report.queries += 1
            report.rows += len(documents)
            for rank, (document, score) in enumerate(zip(documents, scores, strict=True), 1):
                yield f"{query} Q0 {document} {rank} {score:.6f} hardneg\n"


def _check_ids(*ids: str) -> None:
    """Raise DataError if an id does not fit in TREC files and qrels.

    White space separates fields there. A double quote at the start is taken for a quoted field by some readers of qrels.
    """
    for id in ids:
        if not id or any(c.isspace() for c in id) or id.startswith('"'):
            what = "starts with a quote" if id.startswith('"') else "holds white space"
            raise DataError(f"the id {shown(id)} {what}, which TREC files and qrels cannot: choose another format")


def file_name(name: object, what: str) -> str:
    """A name that comes from a run, checked before it becomes part of a path.

    Args:
        name: the name.
        what: what it names, for the message.

    Raises:
        DataError: it could lead out of the folder, or is no name that every file system takes.

    >>> file_name("train", "the split")
    'train'
    """
    good = (
        isinstance(name, str) and name.isprintable() and name.strip(". ") == name != ""
        and not set(name) & set('/\\:*?"<>|') and len(name.encode("utf-8", "replace")) <= 200
    )  # fmt: skip
    if not good:
        raise DataError(
            f"run.json names {what} {shown(name)}, which cannot be part of a file name: export in another format"
        )
    return str(name)


def write_beir(run: Run, pairs: Pairs, blocks: Iterator[Block], path: Path, report: Exported) -> None:
    """Write a BEIR folder: corpus.jsonl, queries.jsonl, and qrels/SPLIT.tsv with score 1 for positives and 0 for negatives."""
    split = file_name(run.info["config"]["read"].get("split"), "the split")
    path.mkdir(parents=True, exist_ok=True)
    marker(path, "beir").touch()
    with (
        atomic_path(path / "qrels" / f"{split}.tsv") as temporary,
        open(temporary, "w", encoding="utf-8") as qrels,
        atomic_path(path / "queries.jsonl") as temporary_queries,
        open(temporary_queries, "w", encoding="utf-8") as queries,
    ):
        qrels.write("query-id\tcorpus-id\tscore\n")
        for block in blocks:
            ids = block.document_ids.to_pylist()
            sides = _pylists(block.positives, ids), _pylists(block.negatives, ids)
            for query, text, *lists in zip(block.ids.to_pylist(), block.queries.to_pylist(), *sides, strict=True):
                report.queries += 1
                queries.write(json.dumps({"_id": query, "text": text}, ensure_ascii=False) + "\n")
                for (documents, _), score in zip(lists, (1, 0), strict=True):
                    _check_ids(query, *documents)
                    report.rows += len(documents)
                    qrels.writelines(f"{query}\t{document}\t{score}\n" for document in documents)
    write_text(path / "corpus.jsonl", _corpus_lines(pairs))
    for other in (path / "qrels").glob("*.tsv"):  # of an earlier export, whose queries and documents are replaced
        if other.name != f"{split}.tsv":
            other.unlink()


def _corpus_lines(pairs: Pairs) -> Iterator[str]:
    """The lines of corpus.jsonl."""
    for start in range(0, len(pairs.document_ids), BLOCK_QUERIES):
        rows = np.arange(start, min(start + BLOCK_QUERIES, len(pairs.document_ids)))
        table = pairs.documents.columns(rows)
        ids = pairs.document_ids.slice(start, len(rows)).to_pylist()
        for id, title, text in zip(ids, table["title"].to_pylist(), table["text"].to_pylist(), strict=True):
            yield json.dumps({"_id": id, "title": title, "text": text}, ensure_ascii=False) + "\n"
