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
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hardneg.data.pairs import Pairs
from hardneg.data.texts import shown
from hardneg.errors import DataError
from hardneg.exports.layouts import Block, Docs
from hardneg.storage.arrow import numbers
from hardneg.storage.files import atomic_path

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


def plain_type(type: pa.DataType) -> pa.DataType:
    """The same type with 32-bit offsets, which every Parquet reader supports."""
    if pa.types.is_large_string(type):
        return pa.string()
    if pa.types.is_large_list(type):
        return pa.list_(plain_type(type.value_type))
    if pa.types.is_struct(type):
        return pa.struct([(f.name, plain_type(f.type)) for f in type])
    return type


def write_parquet(tables: Iterator[pa.Table], path: Path) -> None:
    """Write tables of one schema to a Parquet file; there must be at least one."""
    first = next(tables)
    schema = pa.schema([(f.name, plain_type(f.type)) for f in first.schema])
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


def pylists(side: Docs, ids: list[str]) -> Iterator[tuple[list[str], list[float]]]:
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
        negatives = pylists(block.negatives, block.document_ids.to_pylist())
        for query, (documents, scores) in zip(block.ids.to_pylist(), negatives, strict=True):
            if not documents:
                report.left_out[NO_NEGATIVE] += 1
                continue
            check_ids(query, *documents)
            report.queries += 1
            report.rows += len(documents)
            for rank, (document, score) in enumerate(zip(documents, scores, strict=True), 1):
                yield f"{query} Q0 {document} {rank} {score:.6f} hardneg\n"


def check_ids(*ids: str) -> None:
    """Raise DataError if an id does not fit in TREC files and qrels.

    White space separates fields there. A double quote at the start is taken for a quoted field by some readers of qrels.
    """
    for id in ids:
        if not id or any(c.isspace() for c in id) or id.startswith('"'):
            what = "starts with a quote" if id.startswith('"') else "holds white space"
            raise DataError(f"the id {shown(id)} {what}, which TREC files and qrels cannot: choose another format")


def triple_lines(tables: Iterator[pa.Table]) -> Iterator[str]:
    """Query, positive and negative, separated by tabs, one triple a line, as the files of MS MARCO are.

    Tabs and line breaks within a text become spaces: the format has no way to write them.
    """
    for table in tables:
        for row in zip(*(table[name].to_pylist() for name in ("query", "positive", "negative")), strict=True):
            yield "\t".join(" ".join(text.split()) for text in row) + "\n"


def qrels_lines(pairs: Pairs, report: Exported) -> Iterator[str]:
    """The labels as lines of TREC qrels: query, 0, document, grade. What was judged not relevant has the grade 0."""
    grades = np.ones(len(pairs.positives.values)) if pairs.positive_grades is None else pairs.positive_grades
    for query in range(len(pairs)):
        (id,) = pairs.query_ids.slice(query, 1).to_pylist()
        places = slice(*pairs.positives.offsets[query : query + 2])
        judged = pairs.judged_negatives.take(np.array([query])).values
        rows = np.concatenate([pairs.positives.values[places], judged])
        documents = pairs.document_ids.take(numbers(rows)).to_pylist()
        check_ids(id, *documents)
        report.queries += bool(documents)
        report.rows += len(documents)
        for document, grade in zip(documents, [*grades[places].tolist(), *[0] * len(judged)], strict=True):
            yield f"{id} 0 {document} {grade:g}\n"
