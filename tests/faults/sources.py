"""Damaged text sources: JSON, CSV, TSV and BEIR folders in every layout that is read, made from a seed."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from hardneg.data.options import ReadOptions
from hardneg.data.pairs import Pairs
from hardneg.data.read import read_pairs
from tests.faults.mutators import cell, json_text, sometimes_damaged


def use(pairs: Pairs) -> None:
    """Use everything in a dataset, so that what is wrong with it comes to light."""
    texts = [text for side in (pairs.queries, pairs.documents) for batch in side.batches() for text in batch]
    assert all(text.encode() is not None for text in texts)
    n, total = len(pairs.query_ids), len(pairs.document_ids)
    assert len(texts) == n + total
    for ids, count in ((pairs.query_ids, n), (pairs.document_ids, total)):
        assert len({id.encode() for id in ids.to_pylist()}) <= count
    known = pairs.known_positives()
    assert len(known) == n
    for lists in (pairs.positives, pairs.judged_negatives, known.take(np.arange(n))):
        assert len(lists) == n
        assert lists.values.min(initial=0) >= 0
        assert lists.values.max(initial=-1) < total
    pairs.documents.take(np.arange(total)[::-1])


def read_file(name: str) -> Callable[[Path], None]:
    return lambda folder: use(read_pairs(str(folder / name)))


def _rows(rng: Random) -> list[dict[str, Any]]:
    layout = rng.randrange(11)
    many = range(rng.choice((1, 3, 12)))
    if layout > 3:
        return [_other_layout(layout, i) for i in many]
    if layout == 0:
        return [{"query": f"q {i}", "pos": [f"p {i}", "p"], "neg": ["n"]} for i in many]
    if layout == 1:
        passage = {"docid": "d", "title": "T", "text": "p"}
        return [
            {"query_id": i, "query": f"q {i}", "positive_passages": [passage], "negative_passages": []} for i in many
        ]
    if layout == 2:
        return [{"sentence1": f"q {i}", "sentence2": "p", "label": i % 2, "negative_1": "n"} for i in many]
    return [
        {"id": i, "query": f"q {i}", "positive": [f"p {i}"], "document_id": [f"d{i}"], "group": "g", "relevance": 1}
        for i in many
    ]


def _other_layout(layout: int, i: int) -> dict[str, Any]:
    """A row of DPR, SQuAD (also as published), MS MARCO, a chat, Tevatron's newer layout, or a list with labels."""
    passage = {"title": "T", "text": f"p {i}", "passage_id": str(i)}
    said = [{"role": "system", "content": "s"}, {"role": "user", "content": f"q {i}"}]
    rows: tuple[dict[str, Any], ...] = (
        {"question": f"q {i}", "positive_ctxs": [passage], "hard_negative_ctxs": [passage], "answers": ["a"]},
        {"id": str(i), "question": f"q {i}", "context": "c", "answers": {"text": ["c"], "answer_start": [0]}},
        {"title": "T", "paragraphs": [{"context": "c", "qas": [{"question": f"q {i}", "id": str(i)}]}]},
        {"query_id": i, "query": f"q {i}", "passages": {"is_selected": [1, 0], "passage_text": ["p", "n"]}},
        {"messages": said, "positive_messages": [said], "negative_messages": [said]},
        {"query_id": i, "query_text": f"q {i}", "positive_document_ids": ["d"], "negative_document_ids": []},
        {"query": f"q {i}", "documents": ["p", "n"], "labels": [1, 0]},
    )
    return rows[layout - 4]


def json_lines(rows: list[dict[str, Any]], rng: Random, intact: bool = False) -> bytes:
    share = rng.choice((0.0, 0.02, 0.1, 0.4)) * (not intact)
    lines = [json_text(row, rng, share) for row in rows]
    text = rng.choice(("\n", "\n", "\r\n", "\n\n", " ")).join(lines) + rng.choice(("\n", ""))
    data = text.encode("utf-8", "surrogatepass")
    if intact:
        return data
    if rng.random() < 0.1:
        data = rng.choice((b"\xef\xbb\xbf" + data, text.encode("utf-16", "surrogatepass"), b"[" + data + b"]"))
    return sometimes_damaged(data, rng)


def make_json_lines(name: str) -> Callable[[Path, Random], None]:
    return lambda folder, rng: write(folder / name, json_lines(_rows(rng), rng))


def make_json_list(folder: Path, rng: Random) -> None:
    """A list of objects, an object with a list, or an object of columns, in one line or in many; sometimes compressed."""
    rows, share = _rows(rng), rng.choice((0.0, 0.02, 0.1, 0.4))
    columns = {name: [row.get(name) for row in rows] for name in rows[0]}
    value = rng.choice(
        (
            rows,
            {"data": rows, "version": 1},
            columns,
            {n: {str(i): x for i, x in enumerate(v)} for n, v in columns.items()},
        )
    )
    text = json_text(value, rng, share)
    text = text.replace(", ", ",\n") if rng.random() < 0.5 else text
    data = sometimes_damaged(text.encode("utf-8", "surrogatepass"), rng)
    packed = rng.choice((None, gzip.compress, bz2.compress, lzma.compress))
    if packed is None:
        write(folder / "pairs.json", data)
        return
    suffix = {gzip.compress: "gz", bz2.compress: "bz2", lzma.compress: "xz"}[packed]
    write(folder / f"pairs.json.{suffix}", sometimes_damaged(packed(data), rng))


def read_json_list(folder: Path) -> None:
    (path,) = folder.glob("pairs.json*")
    use(read_pairs(str(path)))


def make_triples(folder: Path, rng: Random) -> None:
    """A TSV file without a header: texts, or ids beside a collection."""
    ids = rng.random() < 0.5
    rows = [[f"10{i}", str(i), str(i + 1)] if ids else [f"q {i}", f"p {i}", "n"] for i in range(rng.choice((1, 5)))]
    write(folder / "triples.tsv", table(rows[0], rows[1:], "\t", rng))
    for name, texts in (
        ("queries.tsv", [[f"10{i}", f"q {i}"] for i in range(5)]),
        ("collection.tsv", [[str(i), f"p {i}"] for i in range(7)]),
    ):
        if rng.random() < 0.9:
            write(folder / name, table(texts[0], texts[1:], "\t", rng, rng.random() < 0.7))


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def table(header: list[str], rows: list[list[str]], delimiter: str, rng: Random, intact: bool = False) -> bytes:
    share = rng.choice((0.0, 0.02, 0.1, 0.4)) * (not intact)
    lines = [[cell(value, rng, share) for value in row] for row in [header, *rows]]
    for line in lines:
        if rng.random() < share / 4:
            line.append("more")
        if rng.random() < share / 4:
            line.pop()
    if rng.random() < 0.7:
        out = io.StringIO()
        csv.writer(out, delimiter=delimiter).writerows(lines)
        text = out.getvalue()
    else:
        text = "\n".join(delimiter.join(line) for line in lines) + "\n"
    data = text.encode("utf-8", "surrogatepass")
    data = b"\xef\xbb\xbf" + data if rng.random() < 0.1 else data
    return data if intact else sometimes_damaged(data, rng)


def make_table(name: str, delimiter: str) -> Callable[[Path, Random], None]:
    def make(folder: Path, rng: Random) -> None:
        header = ["id", "query", "positive", "document_id", "group", "relevance", "negative"]
        kept = [i for i in range(len(header)) if i in (1, 2) or rng.random() < 0.5]
        rows = [[str(i), f"query {i}", f"text {i}", f"d{i}", "g", "1", "other"] for i in range(rng.choice((0, 1, 8)))]
        data = table([header[i] for i in kept], [[row[i] for i in kept] for row in rows], delimiter, rng)
        write(folder / name, data)

    return make


def make_beir(folder: Path, rng: Random) -> None:
    corpus = [{"_id": f"d{i}", "title": "T", "text": f"text {i}"} for i in range(6)]
    queries = [{"_id": str(i), "text": f"query {i}"} for i in range(4)]
    intact = [rng.random() < 0.7 for _ in range(5)]
    write(folder / "corpus.jsonl", json_lines(corpus, rng, intact[0]))
    write(folder / "queries.jsonl", json_lines(queries, rng, intact[1]))
    judged = [[str(i % 4), f"d{i}", str(i % 3)] for i in range(6)]
    trec = rng.random() < 0.2
    header = ["query-id", "iteration", "corpus-id", "score"] if trec else ["query-id", "corpus-id", "score"]
    for split, whole in zip(("train", "test"), intact[2:], strict=False):
        rows = [[row[0], "0", *row[1:]] if trec else row for row in judged]
        write(folder / "qrels" / f"{split}.tsv", table(header, rows, "\t", rng, whole))
    if rng.random() < 0.5:
        write(folder / "groups.tsv", table(["id", "group"], [[f"d{i}", "g"] for i in range(6)], "\t", rng, intact[4]))
    if rng.random() < 0.1:
        misplaced(rng.choice([p for p in sorted(folder.rglob("*")) if p.is_file()]), rng)


def misplaced(path: Path, rng: Random) -> None:
    """Put nothing, a folder, or a link to itself in the place of a file."""
    path.unlink()
    what = rng.randrange(3)
    if what == 1:
        path.mkdir()
    elif what == 2:
        os.symlink(path.name, path)


def read_beir(folder: Path) -> None:
    use(read_pairs(str(folder), ReadOptions(skip_unknown=len(os.listdir(folder)) % 2 == 0)))
