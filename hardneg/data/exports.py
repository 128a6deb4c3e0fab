"""Writers: a run's negatives in the forms that trainers read."""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hardneg.data.arrow import numbers, strings, values_of
from hardneg.data.layouts import LAYOUTS, NEED_POSITIVE, Block, Docs
from hardneg.data.pairs import Pairs, Ragged
from hardneg.data.store import atomic_path
from hardneg.errors import DataError, UsageError, suggestion
from hardneg.memory import release

if TYPE_CHECKING:
    from hardneg.mining.run import Run

EXPORT_FORMATS = (
    "triplet", "n-tuple", "labeled-pair", "labeled-list", "flagembedding", "tevatron", "trec", "beir",
)  # fmt: skip
SHORT = ("null", "skip")
SUFFIXES = (".jsonl", ".parquet", ".csv", ".tsv")
_BLOCK = 2048  # queries whose texts are in memory at once

Int = NDArray[np.int64]


@dataclass
class Exported:
    """What was written, and what was not."""

    rows: int = 0
    queries: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # reason -> queries


def export(
    run: Run,
    format: str,
    out: str | Path,
    *,
    scores: bool = False,
    short: str = "null",
    max_positives: int | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the negatives of `run`.

    Args:
        format: one of `EXPORT_FORMATS`.
        out: a file ending in .jsonl, .parquet, .csv or .tsv, `-` for JSON lines on standard output; any
            name for trec; a folder for beir.
        scores: with the scores that mining gave.
        short: n-tuple rows of queries with fewer negatives than asked: `null` fills them up with nulls,
            `skip` leaves them out.
        max_positives: use this many of a query's positives at most, the best-scored.
        overwrite: replace what stands at `out`.

    Returns:
        Counts; queries without a positive cannot stand in a triplet or n-tuple, for example.

    Raises:
        UsageError: an option does not fit; DataError: `out` exists.
    """
    if format not in EXPORT_FORMATS:
        raise UsageError(f"unknown export format {format!r}.{suggestion(format, EXPORT_FORMATS)}")
    if short not in SHORT:
        raise UsageError(f"unknown value {short!r} of short.{suggestion(short, SHORT)}")
    path = Path(out)
    if str(out) != "-" and format not in ("trec", "beir") and path.suffix not in SUFFIXES:
        raise UsageError(
            f"--out {out}: the name must end in one of {', '.join(SUFFIXES)}, or be '-' for JSON lines on stdout"
        )
    if str(out) != "-" and path.exists() and not overwrite:
        raise DataError(f"{out} exists: choose another --out, or replace it with --overwrite")
    pairs = run.pairs()
    asked = int(run.info["config"]["negatives"])
    report = Exported()
    blocks = _blocks(run, pairs, max_positives)
    if format == "beir":
        _write_beir(run, pairs, blocks, path, report)
        return report
    if format == "trec":
        _write_text(path, _trec(blocks, report))
        return report
    tables = _tables(format, blocks, report, scores, asked, short)
    if path.suffix == ".parquet":
        _write_parquet(tables, path)
    elif str(out) == "-" or path.suffix == ".jsonl":
        _write_text(path, _json_lines(tables))
    else:
        _write_csv(tables, path)
    return report


def _blocks(run: Run, pairs: Pairs, max_positives: int | None) -> Iterator[Block]:
    table = run.negatives()
    nothing, space = strings(["", " "])
    rows_of = values_of(pc.index_in(table["query_id"], value_set=pairs.query_ids).combine_chunks())
    whole = [_docs(table, name, pairs) for name in ("positive", "negative")]
    for start in range(0, max(1, len(table)), _BLOCK):
        release()
        block = np.arange(start, min(start + _BLOCK, len(table)))
        sides = [side.take(block) for side in whole]
        if max_positives is not None:
            sides[0] = sides[0].best(max_positives)
        rows, place = np.unique(np.concatenate([side.lists.values for side in sides]), return_inverse=True)
        cut = len(sides[0].lists.values)
        positives, negatives = (
            replace(side, lists=Ragged(side.lists.offsets, part))
            for side, part in zip(sides, np.split(place.ravel().astype(np.int64), [cut]), strict=True)
        )
        ids = table["query_id"].slice(start, len(block)).combine_chunks()
        queries = pairs.queries.columns(rows_of[block])
        documents = pairs.documents.columns(rows)
        title, text = documents["title"].combine_chunks(), documents["text"].combine_chunks()
        joined = pc.utf8_trim_whitespace(pc.binary_join_element_wise(title, text, space))
        yield Block(
            ids,
            queries["text"].combine_chunks(),
            positives,
            negatives,
            pairs.document_ids.take(numbers(rows)),
            title,
            text,
            pc.if_else(pc.equal(title, nothing), text, joined),
        )


def _docs(table: pa.Table, side: str, pairs: Pairs) -> Docs:
    """Corpus rows and scores of a side's documents."""
    ids, scores = (table[f"{side}_{name}"].combine_chunks() for name in ("ids", "scores"))
    rows = values_of(pc.index_in(ids.flatten(), value_set=pairs.document_ids)).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(values_of(ids.value_lengths()), dtype=np.int64)])
    return Docs(Ragged(offsets, rows), values_of(scores.flatten()))


_NO_POSITIVE = "without a positive"
_NO_NEGATIVE = "without a negative"
_TOO_FEW = "with fewer negatives than asked"


def _tables(
    format: str, blocks: Iterator[Block], report: Exported, scores: bool, asked: int, short: str
) -> Iterator[pa.Table]:
    """One table a block; queries that the format cannot hold are counted and left out."""
    for block in blocks:
        needs = {_NO_POSITIVE: block.positives.lists.lengths > 0} if format in NEED_POSITIVE else {}
        if format == "triplet":
            needs[_NO_NEGATIVE] = block.negatives.lists.lengths > 0
        if format == "n-tuple" and short == "skip":
            needs[_TOO_FEW] = block.negatives.lists.lengths >= asked
        keep = np.ones(len(block.ids), bool)
        for reason, holds in needs.items():
            if missing := int((keep & ~holds).sum()):
                report.left_out[reason] += missing
            keep &= holds
        table = LAYOUTS[format](block.rows(keep), scores, asked)
        report.queries += int(keep.sum())
        report.rows += len(table)
        yield table


def _plain(type: pa.DataType) -> pa.DataType:
    """The type with 32-bit offsets, which every reader knows."""
    if pa.types.is_large_string(type):
        return pa.string()
    if pa.types.is_large_list(type):
        return pa.list_(_plain(type.value_type))
    if pa.types.is_struct(type):
        return pa.struct([(f.name, _plain(f.type)) for f in type])
    return type


def _write_parquet(tables: Iterator[pa.Table], path: Path) -> None:
    first = next(tables)
    schema = pa.schema([(f.name, _plain(f.type)) for f in first.schema])
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", write_statistics=False) as writer,
    ):
        for table in itertools.chain([first], ahead(tables)):
            writer.write_table(table.cast(schema))


def ahead(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same tables, each made while the one before is in use."""
    with ThreadPoolExecutor(1) as background:
        coming = background.submit(next, tables, None)
        while (table := coming.result()) is not None:
            coming = background.submit(next, tables, None)
            yield table


def _json_lines(tables: Iterator[pa.Table]) -> Iterator[str]:
    for table in tables:
        for row in table.to_pylist():
            yield json.dumps(row, ensure_ascii=False) + "\n"


def _write_csv(tables: Iterator[pa.Table], path: Path) -> None:
    """Lists and objects are written as JSON: a cell has no other way to hold them."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f, delimiter="," if path.suffix == ".csv" else "\t", lineterminator="\n")
        for i, table in enumerate(tables):
            if i == 0:
                writer.writerow(table.column_names)
            for row in table.to_pylist():
                cells = (json.dumps(c, ensure_ascii=False) if isinstance(c, list) else c for c in row.values())
                writer.writerow(cells)


def _write_text(path: Path, lines: Iterator[str]) -> None:
    if str(path) == "-":
        sys.stdout.writelines(lines)
        return
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
        f.writelines(lines)


def _pylists(side: Docs, ids: list[str]) -> Iterator[tuple[list[str], list[float]]]:
    bounds = side.lists.offsets.tolist()
    places, scores = side.lists.values.tolist(), side.scores.tolist()
    for start, stop in itertools.pairwise(bounds):
        yield [ids[place] for place in places[start:stop]], scores[start:stop]


def _trec(blocks: Iterator[Block], report: Exported) -> Iterator[str]:
    """TREC run lines of the negatives: query, Q0, document, rank, score, tag."""
    for block in blocks:
        found = _pylists(block.negatives, block.document_ids.to_pylist())
        for query, (documents, scores) in zip(block.ids.to_pylist(), found, strict=True):
            if not documents:
                report.left_out[_NO_NEGATIVE] += 1
                continue
            _need_no_space(query, *documents)
            report.queries += 1
            report.rows += len(documents)
            for rank, (document, score) in enumerate(zip(documents, scores, strict=True), 1):
                yield f"{query} Q0 {document} {rank} {score:.6f} hardneg\n"


def _need_no_space(*ids: str) -> None:
    for id in ids:
        if not id or any(c.isspace() for c in id):
            raise DataError(
                f"the id {id!r} holds white space, which TREC files and qrels cannot: choose another format"
            )


def _write_beir(run: Run, pairs: Pairs, blocks: Iterator[Block], path: Path, report: Exported) -> None:
    """corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv: positives with score 1, negatives with score 0."""
    split = run.info["config"]["read"]["split"]
    with (
        atomic_path(path / "qrels" / f"{split}.tsv") as temporary,
        open(temporary, "w", encoding="utf-8") as qrels,
        atomic_path(path / "queries.jsonl") as other,
        open(other, "w", encoding="utf-8") as queries,
    ):
        qrels.write("query-id\tcorpus-id\tscore\n")
        for block in blocks:
            ids = block.document_ids.to_pylist()
            sides = _pylists(block.positives, ids), _pylists(block.negatives, ids)
            for query, text, *lists in zip(block.ids.to_pylist(), block.queries.to_pylist(), *sides, strict=True):
                report.queries += 1
                queries.write(json.dumps({"_id": query, "text": text}, ensure_ascii=False) + "\n")
                for (documents, _), score in zip(lists, (1, 0), strict=True):
                    _need_no_space(query, *documents)
                    report.rows += len(documents)
                    qrels.writelines(f"{query}\t{document}\t{score}\n" for document in documents)
    _write_text(path / "corpus.jsonl", _corpus_lines(pairs))


def _corpus_lines(pairs: Pairs) -> Iterator[str]:
    for start in range(0, len(pairs.document_ids), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(pairs.document_ids)))
        table = pairs.documents.columns(rows)
        ids = pairs.document_ids.slice(start, len(rows)).to_pylist()
        for id, title, text in zip(ids, table["title"].to_pylist(), table["text"].to_pylist(), strict=True):
            yield json.dumps({"_id": id, "title": title, "text": text}, ensure_ascii=False) + "\n"
