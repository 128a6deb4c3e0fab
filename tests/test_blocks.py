"""Rows that are read as whole columns make the dataset that they make one by one, and are refused with the same words."""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hardneg
from hardneg.data.builder import Builder
from hardneg.data.readers import beir, files, json_blocks, rows, separated_blocks, tables
from hardneg.data.readers import corpus as corpus_reader
from hardneg.data.readers.json_rows import json_file
from hardneg.data.readers.pair_rows import PairRows
from hardneg.data.readers.rows import Block
from hardneg.data.readers.separated import separated
from hardneg.data.text_batches import after_lengths, blank, digests, distinct, joined, text_keys
from hardneg.data.texts import join_title, text_key
from hardneg.errors import DataError
from hardneg.storage.arrow import strings

TEXT = st.one_of(
    st.sampled_from([
        "", " ", "a", "A", "a ", "a  b", "a b", "a\u00a0b", "é", "\u200b", "\x1f", "\x00",
        "2020-01-01", "[1]", "d0", "q1",
    ]),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=12),
    st.text("aB \t\n\r\x0b\x1c\x7f\"',{}[]\u2028ﬁ", max_size=12),
)  # fmt: skip

ROW_BY_ROW = {
    ".jsonl": json_file,
    ".csv": lambda path: separated(path, ","),
    ".parquet": tables.parquet_rows,
}


@settings(deadline=None)
@given(st.lists(TEXT, max_size=20))
def test_texts_of_a_column_have_the_keys_and_digests_of_each(texts: list[str]) -> None:
    column = strings(["left out", *texts]).slice(1)
    assert text_keys(column).tolist() == list(map(text_key, texts))
    assert blank(column).tolist() == [not text.strip() for text in texts]
    builder = Builder(None)
    for text in texts:
        builder.add_document(None, text, where="here")
    seen = list(dict.fromkeys(texts))
    held = b"".join(builder.documents.digests[i] for i in range(len(builder.documents)))
    assert digests(strings(seen)).tobytes() == held
    numbered, firsts = distinct(column)
    assert [seen[i] for i in numbered] == texts
    assert [texts[i] for i in firsts] == seen
    whole = b"".join(len(text.encode()).to_bytes(8, "little") + text.encode() for text in seen)
    assert after_lengths(strings(seen)).to_pybytes() == whole


@settings(deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), max_size=10))
def test_titles_stand_in_front(rows: list[tuple[str, str]]) -> None:
    titles, texts = [row[0] for row in rows], [row[1] for row in rows]
    assert joined(strings(titles), strings(texts)).to_pylist() == [join_title(*row) for row in rows]


IDS = st.sampled_from(["d0", "d1", "d2", "d5", "x", "y", "z", "é" * 200, "d01", "d-1"])
BATCH = st.tuples(
    st.booleans(), st.lists(st.tuples(IDS, st.sampled_from("abcdA "), st.sampled_from(["", "t"])), max_size=6)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(BATCH, max_size=6), st.booleans())
def test_batches_of_documents_are_the_documents(
    batches: list[tuple[bool, list[tuple[str, str, str]]]], disk: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        builders = [Builder(Path(folder) / name if disk else None) for name in "ab"]
        results = [_documents(builder, batches, whole) for builder, whole in zip(builders, (False, True), strict=True)]
        assert results[0] == results[1]


def _documents(builder: Builder, batches: list[tuple[bool, list[tuple[str, str, str]]]], whole: bool) -> Any:
    """What becomes of batches of documents that are added one by one, or as a whole where that is possible."""
    rows: list[int] = []
    try:
        builder.relate(builder.add_query("q", "q", where="here"), 0, 1.0)
        for n, (named, batch) in enumerate(batches):
            if n == 2:
                builder.begin_corpus()
            arrivals = None
            if whole:
                ids, texts, titles = (strings([row[i] for row in batch]) for i in range(3))
                arrivals = builder.look_up("document", texts, ids=ids if named else None, titles=titles)
            if arrivals is not None:
                found, happened = builder.add_many("document", arrivals, [row[0] if n % 2 else None for row in batch])
                builder.count_all(happened)
                rows += found.tolist()
                continue
            for id, text, title in batch:
                group = id if n % 2 else None
                rows.append(builder.add_document(id if named else None, text, title=title, group=group, where="here"))
        contents = builder.finish("made")
    except DataError as error:
        return str(error)
    return (
        rows, contents.head, {name: each.tolist() for name, each in contents.arrays.items()},
        {name: each.to_pylist() for name, each in contents.ids.items()},
        [contents.texts[i].columns(np.arange(len(contents.texts[i]))).to_pylist() for i in range(2)],
    )  # fmt: skip


@contextmanager
def block_of(size: int) -> Iterator[None]:
    """Let blocks have so many bytes, or rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_blocks, "_BLOCK", size)
        patch.setattr(separated_blocks, "_BLOCK", size)
        patch.setattr(tables, "_ROWS", size % 7 + 1)
        yield


def both(folder: Path, name: str, data: bytes, size: int, **options: Any) -> list[Any]:
    """What a file becomes, row by row and in blocks: the bytes of the dataset, or the error."""
    path = folder / f"pairs{name}"
    path.write_bytes(data)
    found = []
    for whole in (False, True):
        out = folder / f"dataset-{whole}"
        with block_of(size), pytest.MonkeyPatch.context() as patch:
            if not whole:
                patch.setattr(PairRows, "take", lambda self, block, first: False)
                patch.setattr(files, "_blocks_of", lambda path, quoting: iter([Block(lambda: ROW_BY_ROW[name](path))]))
            try:
                hardneg.read_pairs(str(path), hardneg.ReadOptions(**options), folder=out)
            except hardneg.HardnegError as error:
                # How far a stream was decoded when its first wrong byte was met depends on the blocks.
                found.append(re.sub(r"after line \d+: not valid", "not valid", str(error)))
                continue
        found.append({str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()})
    return found


def read_as_columns(folder: Path, name: str, data: bytes) -> int:
    """How many blocks of a file are read as columns."""
    path = folder / f"pairs{name}"
    path.write_bytes(data)
    taken = []
    take = PairRows.take
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PairRows, "take", lambda *args: taken.append(take(*args)) or taken[-1])
        hardneg.read_pairs(str(path))
    return sum(taken)


PLAIN = [{"query": "a", "positive": "b"}, {"query": "A", "positive": "c  d", "negative": "é"}]
CELLS: st.SearchStrategy[Any] = st.one_of(
    TEXT, TEXT, TEXT, st.none(), st.integers(-2, 2), st.floats(), st.lists(TEXT, max_size=2)
)
COLUMNS = st.sampled_from(["id", "doc_id", "group", "relevant", "negative", "negative_2", "score", "title", "other"])


@st.composite
def tables_of_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows most of which are plain: each column has one kind of values, with an exception now and then."""
    texts = st.text("abAB é\u200b", max_size=4)
    kinds = {"query": texts, "positive": texts} | {
        name: draw(st.sampled_from([texts, st.integers(0, 2), st.sampled_from([0.5, 1.0]), CELLS]))
        for name in draw(st.lists(COLUMNS, max_size=3, unique=True))
    }
    rows = []
    for _ in range(draw(st.integers(1, 12))):
        row = {name: draw(kind) for name, kind in kinds.items()}
        if draw(st.integers(0, 9)) == 0:
            row[draw(st.sampled_from(["query", "positive", "negatives", "label"]))] = draw(CELLS)
        rows.append(row)
    return rows


OPTIONS = st.fixed_dictionaries(
    {"negatives": st.sampled_from(["corpus", "judged", "candidates"]), "relevant_from": st.sampled_from([None, 1.0])}
)

LINES = st.sampled_from(
    [
        b'{"query": "a", "positive": "b"}{"query": "c", "positive": "d"}', b'{"query": "a", "query": "z", "positive": "b"}',
        b'{"query": "\\ud800", "positive": "b"}', b'{"query": "\xff", "positive": "b"}', b'{"query": NaN, "positive": "b"}',
        b'{"query": "a", "positive": "b", "x": Infinity}', b'{"query": "a", "positive": "b",', b'"x": "c"}', b"", b" ",
        b"\xef\xbb\xbf",
        b'  {"query": "a", "positive": "b"} ', b'{"query": "a\\u0000b", "positive": "\\ud83d\\ude00"}', b"[1]", b"7", b"{}", b"\x0c",
        b'{"query": "a", "positive": "b", "x": ' + b"9" * 5000 + b"}", b'{"query": "a", "positive": "b", "x": [{"y": {"z": 1}}]}',
        b'{"query": "a", "positive": "b", "x": ' + b"[" * 3000 + b"]" * 3000 + b"}", b'{"query": "a\tb", "positive": "c"}',
        b'{"qu\\u0065ry": "e", "positive": "b"}\r', b'{"query": "a", "positive": "b"},', b'{"query": 1, "positive": true}',
        b'{"query": "2020-01-01", "positive": "2020-01-02T00:00:00"}', b'{"positive": "b"}',
        b'{"query": "a", "positive": "b", "x": 1e999}',
    ]
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(
    tables_of_rows(),
    st.lists(st.tuples(st.integers(0, 12), LINES), max_size=2),
    st.integers(20, 400),
    OPTIONS,
    st.booleans(),
)
def test_json_lines_in_blocks(
    rows: list[dict[str, Any]], strange: list[tuple[int, bytes]], size: int, options: dict[str, Any], ascii: bool
) -> None:
    lines = [json.dumps(row, ensure_ascii=ascii).encode("utf-8", "surrogatepass") for row in rows]
    for at, line in strange:
        lines.insert(at, line)
    with tempfile.TemporaryDirectory() as folder:
        first, second = both(Path(folder), ".jsonl", b"\n".join(lines) + b"\n" * (size % 2), size, **options)
        assert first == second


FIELDS = st.sampled_from(
    ['a"b', '"a"b', ' "a"', '"a', '""', '"a\rb"', "a\rb", '"a\nb"', "", "\x00", "a,b", "\ufeff", '"a\r\nb"', '"""a"']
)


@settings(max_examples=50, deadline=None)
@given(
    tables_of_rows(),
    st.lists(st.tuples(st.integers(0, 12), FIELDS), max_size=2),
    st.integers(20, 400),
    st.sampled_from([0, 1, 2]),
)
def test_csv_in_blocks(rows: list[dict[str, Any]], strange: list[tuple[int, str]], size: int, quoting: int) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.writer(
        out,
        quoting=(csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC)[quoting],
        lineterminator="\r\n" if size % 3 else "\n",
    )
    writer.writerow(names)
    writer.writerows([[row.get(name) for name in names] for row in rows])
    lines = out.getvalue().split("\n")
    for at, field in strange:
        lines.insert(at + 1, f"{field},b")
    with tempfile.TemporaryDirectory() as folder:
        first, second = both(Path(folder), ".csv", "\n".join(lines).encode("utf-8", "surrogatepass"), size)
        assert first == second


@settings(max_examples=40, deadline=None)
@given(tables_of_rows(), st.integers(0, 6), OPTIONS, st.booleans())
def test_parquet_in_blocks(rows: list[dict[str, Any]], size: int, options: dict[str, Any], coded: bool) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    try:
        columns = {name: pa.array([row.get(name) for row in rows]) for name in names}
    except (pa.ArrowException, ValueError):  # several kinds of values: no column of Parquet
        return
    if coded:
        columns["query"] = columns["query"].dictionary_encode()
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    with tempfile.TemporaryDirectory() as folder:
        first, second = both(Path(folder), ".parquet", out.getvalue(), size, **options)
        assert first == second


DOCUMENTS = st.lists(
    st.fixed_dictionaries(
        {"_id": IDS, "text": st.sampled_from(["a", "b", "c  d", "é", ""])},
        optional={"title": st.sampled_from(["t", "", None, "2020-01-01"])}
    ),
    min_size=1, max_size=8,
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(DOCUMENTS, DOCUMENTS, st.integers(20, 200), st.sampled_from(["beir", "corpus", "grouped"]), st.booleans())
def test_documents_in_blocks(
    corpus: list[dict[str, Any]], queries: list[dict[str, Any]], size: int, kind: str, short: bool
) -> None:
    found: list[Any] = []
    for row in queries if kind == "beir" else corpus if short else ():
        row["id"] = row.pop("_id") if short else 7
    for whole in (False, True):
        with tempfile.TemporaryDirectory() as place, block_of(size), pytest.MonkeyPatch.context() as patch:
            folder = Path(place)
            (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
            (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
            (folder / "qrels").mkdir()
            (folder / "qrels" / "train.tsv").write_text(
                f"q\tc\ts\n{queries[0].get('_id', queries[0].get('id'))}\t{corpus[0].get('_id')}\t1\n"
            )
            pairs = [{"query": f"q{i}", "positive": text, "group": text} for i, text in enumerate("abc")]
            (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
            if kind == "grouped":
                (folder / "corpus.jsonl").write_text(
                    "\n".join(json.dumps(row | {"group": row["text"]}) for row in corpus)
                )
            if not whole:
                for module, name in ((beir, "add_documents"), (beir, "add_queries"), (corpus_reader, "add_documents")):
                    patch.setattr(module, name, lambda *columns: False)
            options = hardneg.ReadOptions(corpus=None if kind == "beir" else folder / "corpus.jsonl")
            try:
                hardneg.read_pairs(str(folder if kind == "beir" else folder / "pairs.jsonl"), options, folder / "out")
            except hardneg.HardnegError as error:
                found.append(str(error).replace(place, ""))
                continue
            files = {
                str(file.relative_to(place)): file.read_bytes()
                for file in (folder / "out").rglob("*")
                if file.is_file()
            }
            files["out/dataset.json"] = files["out/dataset.json"].replace(place.encode(), b"")
            found.append(files)
    assert found[0] == found[1]


def test_plain_files_are_read_as_columns(tmp_path: Path) -> None:
    rows = [
        {"query": f"Query {i % 7}", "positive": f"text é {i}", "id": i % 7, "negative": "", "x": [{"y": i / 2}]}
        for i in range(90)
    ]
    data = "\n".join(map(json.dumps, rows)).encode()
    with block_of(1000):
        assert read_as_columns(tmp_path, ".jsonl", data) > 5
    text = "query,positive,group\r\n" + "".join(f'"a ""{i}"", b",c{i},é\r\n' for i in range(90))
    with block_of(100):
        assert read_as_columns(tmp_path, ".csv", text.encode()) > 5
    out = io.BytesIO()
    pq.write_table(
        pa.table({"question": ["a", "b"], "answer": ["c", "d"], "relevant": [1, 0], "doc_id": ["x", "y"]}), out
    )
    assert read_as_columns(tmp_path, ".parquet", out.getvalue()) == 1


def test_one_wrong_line_among_blocks_is_named(tmp_path: Path) -> None:
    lines = [json.dumps({"query": f"q{i}", "positive": f"p{i}"}) for i in range(200)]
    lines[150] = '{"query": "q", "positive": 7}'
    with block_of(300), pytest.raises(DataError, match=r"pairs\.jsonl, line 151: the document is of type int"):
        read_as_columns(tmp_path, ".jsonl", "\n".join(lines).encode())


@pytest.mark.parametrize("deep", ["[" * 40_000 + "]" * 40_000, '{"a":' * 40_000 + "1" + "}" * 40_000])
def test_values_nested_deeply_never_reach_arrow(deep: str, tmp_path: Path) -> None:
    plain = '{"query": "a [[[ b", "positive": "{{ c \\" [ }"}\n'
    deepest = '{"query": "d", "positive": "e", "x": ' + deep + "}\n"
    found = both(tmp_path, ".jsonl", (plain * 50 + deepest + plain * 5).encode(), 1 << 20)
    assert found[0] == found[1]
    assert "line 51: not a JSON object (nested too deeply)" in found[0]
    brackets = json.dumps({"query": "[{" * 400 + '\\"', "positive": "]\\" * 300})  # in texts they nest nothing

    def deep_lines(data: bytes) -> bool:
        found = np.frombuffer(data, np.uint8)
        return json_blocks._is_deep(data, found, np.flatnonzero(found == 10))

    assert not deep_lines(f"{brackets}\n{brackets}\n".encode())
    assert deep_lines(f'{brackets}\n{{"a": {"[" * 70}{"]" * 70}}}\n'.encode())


def test_lines_are_counted_as_csv_counts_them(tmp_path: Path) -> None:
    data = "query,positive\n" + "".join(f'"a\rb {i}","x\r\ny{i}"\n' for i in range(400)) + "bad\n"
    found = both(tmp_path, ".csv", data.encode(), 1500)
    assert found[0] == found[1]
    assert "line 1202: 1 fields" in found[0]


def test_a_quote_that_is_never_closed_is_looked_for_once_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    ends = separated_blocks._end_of_rows
    monkeypatch.setattr(separated_blocks, "_end_of_rows", lambda data: calls.append(len(data)) or ends(data))
    monkeypatch.setattr(separated_blocks, "_MOST_CARRIED", 40_000)
    data = 'query,positive\na,"b\n' + "q,p\n" * 40_000
    found = both(tmp_path, ".csv", data.encode(), 4000)
    assert found[0] == found[1]
    assert "unexpected end of data" in found[0]
    assert sum(calls) < 12 * 40_000


def test_a_source_that_is_silent_does_not_keep_a_reader_that_gave_up(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = threading.Event()

    def blocks() -> Iterator[Block]:
        yield Block(lambda: iter(()))
        silent.wait()
        yield Block(lambda: iter(()))

    monkeypatch.setattr(rows, "_PATIENCE", 0.01)
    ahead = rows._Ahead(blocks())
    assert ahead.next() is not None
    ahead.begin({})
    ahead.close()  # returns, and the thread ends with the process
    assert any(thread.daemon for thread in threading.enumerate())
    silent.set()
