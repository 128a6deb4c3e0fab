"""Writers: a run's negatives in the forms that trainers read."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hardneg.data.pairs import Pairs
from hardneg.data.store import atomic_path
from hardneg.errors import DataError, UsageError, suggestion

if TYPE_CHECKING:
    from hardneg.mining.run import Run

EXPORT_FORMATS = (
    "triplet", "n-tuple", "labeled-pair", "labeled-list", "flagembedding", "tevatron", "trec", "beir",
)  # fmt: skip
SHORT = ("null", "skip")
SUFFIXES = (".jsonl", ".parquet", ".csv", ".tsv")
_BLOCK = 2048  # queries whose texts are in memory at once

Row = dict[str, Any]


@dataclass
class Exported:
    """What was written, and what was not."""

    rows: int = 0
    queries: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # reason -> queries


@dataclass(frozen=True)
class _Item:
    """One query with its documents: everything a row can be made of."""

    query_id: str
    query: str
    positive_ids: list[str]
    positives: list[str]
    positive_scores: list[float]
    negative_ids: list[str]
    negatives: list[str]
    negative_scores: list[float]
    titles: dict[str, tuple[str, str]]  # document id -> (title, text)


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
        raise UsageError(f"--out {out}: the name must end in one of {', '.join(SUFFIXES)}, or be '-' for JSON lines on stdout")
    if str(out) != "-" and path.exists() and not overwrite:
        raise DataError(f"{out} exists: choose another --out, or replace it with --overwrite")
    pairs = run.pairs()
    asked = int(run.info["config"]["negatives"])
    report = Exported()
    items = _items(run, pairs, max_positives, needs_texts=format != "trec")
    if format == "beir":
        _write_beir(run, pairs, items, path, report)
        return report
    if format == "trec":
        _write_text(path, _trec(items, report))
        return report
    make = _FORMATS[format]
    rows = _rows(items, lambda item: make(item, scores, asked, short), report, format)
    if str(out) == "-":
        _write_jsonl(rows, sys.stdout)
    elif path.suffix == ".parquet":
        _write_parquet(rows, path, _schema(format, scores, asked))
    elif path.suffix == ".jsonl":
        with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
            _write_jsonl(rows, f)
    else:
        _write_csv(rows, path, _schema(format, scores, asked).names)
    return report


def _items(run: Run, pairs: Pairs, max_positives: int | None, needs_texts: bool) -> Iterator[_Item]:
    table = run.negatives()
    for start in range(0, len(table), _BLOCK):
        block = table.slice(start, _BLOCK)
        columns = {name: block[name].to_pylist() for name in block.column_names}
        rows = np.asarray(pc.index_in(block["query_id"], value_set=pairs.query_ids), np.int64)
        queries = pairs.queries.take(rows) if needs_texts else [""] * len(rows)
        if max_positives is not None:
            for ids, scores in zip(columns["positive_ids"], columns["positive_scores"], strict=True):
                best = sorted(range(len(ids)), key=lambda i: (-scores[i], i))[:max_positives]
                ids[:], scores[:] = [ids[i] for i in best], [scores[i] for i in best]
        texts = _texts(columns, pairs) if needs_texts else {}
        for i, query in enumerate(queries):
            positive, negative = columns["positive_ids"][i], columns["negative_ids"][i]
            yield _Item(
                columns["query_id"][i],
                query,
                positive,
                [_whole(texts.get(d)) for d in positive],
                columns["positive_scores"][i],
                negative,
                [_whole(texts.get(d)) for d in negative],
                columns["negative_scores"][i],
                texts,
            )


def _texts(columns: dict[str, list[Any]], pairs: Pairs) -> dict[str, tuple[str, str]]:
    wanted = sorted({d for name in ("positive_ids", "negative_ids") for ids in columns[name] for d in ids})
    if not wanted:
        return {}
    rows = np.asarray(pc.index_in(pa.array(wanted, pa.string()), value_set=pairs.document_ids), np.int64)
    table = pairs.documents.columns(rows)
    return dict(zip(wanted, zip(table["title"].to_pylist(), table["text"].to_pylist(), strict=True), strict=True))


def _whole(parts: tuple[str, str] | None) -> str:
    from hardneg.data.pairs import join_title

    return "" if parts is None else join_title(*parts)


def _rows(items: Iterator[_Item], make: Callable[[_Item], list[Row] | str], report: Exported, format: str) -> Iterator[Row]:
    for item in items:
        made = make(item)
        if isinstance(made, str):
            report.left_out[made] += 1
            continue
        report.queries += 1
        report.rows += len(made)
        yield from made


_NO_POSITIVE = "without a positive"
_NO_NEGATIVE = "without a negative"
_TOO_FEW = "with fewer negatives than asked"


def _triplets(item: _Item, scores: bool, asked: int, short: str) -> list[Row] | str:
    if not item.positives or not item.negatives:
        return _NO_NEGATIVE if item.positives else _NO_POSITIVE
    return [
        {"query": item.query, "positive": p, "negative": n} | ({"scores": [ps, ns]} if scores else {})
        for p, ps in zip(item.positives, item.positive_scores, strict=True)
        for n, ns in zip(item.negatives, item.negative_scores, strict=True)
    ]


def _tuples(item: _Item, scores: bool, asked: int, short: str) -> list[Row] | str:
    if not item.positives:
        return _NO_POSITIVE
    missing = asked - len(item.negatives)
    if missing and short == "skip":
        return _TOO_FEW
    negatives: list[str | None] = [*item.negatives, *[None] * missing]
    named = {f"negative_{i}": n for i, n in enumerate(negatives, 1)}
    return [
        {"query": item.query, "positive": p, **named}
        | ({"scores": [ps, *item.negative_scores, *[None] * missing]} if scores else {})
        for p, ps in zip(item.positives, item.positive_scores, strict=True)
    ]


def _labeled_pairs(item: _Item, scores: bool, asked: int, short: str) -> list[Row] | str:
    documents = [*item.positives, *item.negatives]
    labels: list[Any] = [1] * len(item.positives) + [0] * len(item.negatives)
    if scores:
        labels = [*item.positive_scores, *item.negative_scores]
    name = "score" if scores else "label"
    return [{"query": item.query, "document": d, name: v} for d, v in zip(documents, labels, strict=True)]


def _labeled_lists(item: _Item, scores: bool, asked: int, short: str) -> list[Row] | str:
    row: Row = {"query": item.query, "documents": [*item.positives, *item.negatives]}
    if scores:
        row["scores"] = [*item.positive_scores, *item.negative_scores]
    else:
        row["labels"] = [1] * len(item.positives) + [0] * len(item.negatives)
    return [row]


def _flagembedding(item: _Item, scores: bool, asked: int, short: str) -> list[Row] | str:
    if not item.positives:
        return _NO_POSITIVE
    row: Row = {"query": item.query, "pos": item.positives, "neg": item.negatives}
    if scores:
        row |= {"pos_scores": item.positive_scores, "neg_scores": item.negative_scores}
    return [row]


def _tevatron(item: _Item, scores: bool, asked: int, short: str) -> list[Row] | str:
    if not item.positives:
        return _NO_POSITIVE

    def passages(ids: list[str], values: list[float]) -> list[Row]:
        return [
            {"docid": d, "title": item.titles[d][0], "text": item.titles[d][1]} | ({"score": s} if scores else {})
            for d, s in zip(ids, values, strict=True)
        ]

    return [
        {
            "query_id": item.query_id,
            "query": item.query,
            "positive_passages": passages(item.positive_ids, item.positive_scores),
            "negative_passages": passages(item.negative_ids, item.negative_scores),
        }
    ]


_FORMATS: dict[str, Callable[[_Item, bool, int, str], list[Row] | str]] = {
    "triplet": _triplets,
    "n-tuple": _tuples,
    "labeled-pair": _labeled_pairs,
    "labeled-list": _labeled_lists,
    "flagembedding": _flagembedding,
    "tevatron": _tevatron,
}


def _schema(format: str, scores: bool, asked: int) -> pa.Schema:
    text, texts, numbers = pa.string(), pa.list_(pa.string()), pa.list_(pa.float32())
    passage = pa.struct([("docid", text), ("title", text), ("text", text), *([("score", pa.float32())] if scores else [])])
    fields: dict[str, list[tuple[str, pa.DataType]]] = {
        "triplet": [("query", text), ("positive", text), ("negative", text)],
        "n-tuple": [("query", text), ("positive", text), *((f"negative_{i}", text) for i in range(1, asked + 1))],
        "labeled-pair": [("query", text), ("document", text), ("score", pa.float32()) if scores else ("label", pa.int64())],
        "labeled-list": [("query", text), ("documents", texts), ("scores", numbers) if scores else ("labels", pa.list_(pa.int64()))],
        "flagembedding": [("query", text), ("pos", texts), ("neg", texts)],
        "tevatron": [
            ("query_id", text),
            ("query", text),
            ("positive_passages", pa.list_(passage)),
            ("negative_passages", pa.list_(passage)),
        ],
    }
    chosen = fields[format]
    if scores and format in ("triplet", "n-tuple"):
        chosen = [*chosen, ("scores", numbers)]
    if scores and format == "flagembedding":
        chosen = [*chosen, ("pos_scores", numbers), ("neg_scores", numbers)]
    return pa.schema(chosen)


def _write_jsonl(rows: Iterator[Row], f: IO[str]) -> None:
    for row in rows:
        f.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_parquet(rows: Iterator[Row], path: Path, schema: pa.Schema) -> None:
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        block: list[Row] = []
        for row in rows:
            block.append(row)
            if len(block) == 16384:
                writer.write_table(pa.Table.from_pylist(block, schema))
                block = []
        writer.write_table(pa.Table.from_pylist(block, schema))


def _write_csv(rows: Iterator[Row], path: Path, names: list[str]) -> None:
    """Lists and objects are written as JSON: a cell has no other way to hold them."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f, delimiter="," if path.suffix == ".csv" else "\t", lineterminator="\n")
        writer.writerow(names)
        for row in rows:
            cells = (row.get(name) for name in names)
            writer.writerow([json.dumps(c, ensure_ascii=False) if isinstance(c, list | dict) else c for c in cells])


def _write_text(path: Path, lines: Iterator[str]) -> None:
    if str(path) == "-":
        sys.stdout.writelines(lines)
        return
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
        f.writelines(lines)


def _trec(items: Iterator[_Item], report: Exported) -> Iterator[str]:
    """TREC run lines of the negatives: query, Q0, document, rank, score, tag."""
    for item in items:
        if not item.negative_ids:
            report.left_out[_NO_NEGATIVE] += 1
            continue
        report.queries += 1
        report.rows += len(item.negative_ids)
        for rank, (d, s) in enumerate(zip(item.negative_ids, item.negative_scores, strict=True), 1):
            _need_no_space(item.query_id, d)
            yield f"{item.query_id} Q0 {d} {rank} {s:.6f} hardneg\n"


def _need_no_space(*ids: str) -> None:
    for id in ids:
        if not id or any(c.isspace() for c in id):
            raise DataError(f"the id {id!r} holds white space, which the TREC format and qrels cannot: choose another format")


def _write_beir(run: Run, pairs: Pairs, items: Iterator[_Item], path: Path, report: Exported) -> None:
    """corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv: positives with score 1, negatives with score 0."""
    split = run.info["config"]["read"]["split"]
    with (
        atomic_path(path / "qrels" / f"{split}.tsv") as temporary,
        open(temporary, "w", encoding="utf-8") as qrels,
        atomic_path(path / "queries.jsonl") as other,
        open(other, "w", encoding="utf-8") as queries,
    ):
        qrels.write("query-id\tcorpus-id\tscore\n")
        for item in items:
            report.queries += 1
            queries.write(json.dumps({"_id": item.query_id, "text": item.query}, ensure_ascii=False) + "\n")
            for ids, score in ((item.positive_ids, 1), (item.negative_ids, 0)):
                for d in ids:
                    _need_no_space(item.query_id, d)
                    report.rows += 1
                    qrels.write(f"{item.query_id}\t{d}\t{score}\n")
    with atomic_path(path / "corpus.jsonl") as temporary, open(temporary, "w", encoding="utf-8") as f:
        for start in range(0, len(pairs.document_ids), _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, len(pairs.document_ids)))
            table = pairs.documents.columns(rows)
            ids = pairs.document_ids.slice(start, len(rows)).to_pylist()
            for id, title, text in zip(ids, table["title"].to_pylist(), table["text"].to_pylist(), strict=True):
                f.write(json.dumps({"_id": id, "title": title, "text": text}, ensure_ascii=False) + "\n")
