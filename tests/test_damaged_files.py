"""Damaged and unusual input files are refused in words that name the file, or read right; they never end the process."""

from __future__ import annotations

import datetime
import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hardneg.data.dataset_files import labels_digest
from hardneg.data.options import ReadOptions
from hardneg.data.pairs import Pairs, open_pairs, save_pairs
from hardneg.data.read import read_pairs
from hardneg.encoders.precomputed import open_vectors
from hardneg.errors import DataError, RunError
from hardneg.storage.arrow import ArrowFile, read_parquet
from tests.conftest import write_jsonl

from .processes import run_code

ROWS = [{"query": f"query {i}", "positive": f"text {i}"} for i in range(600)]


def saved(folder: Path, table: pa.Table, data: bytes | None = None) -> Path:
    """A saved Hugging Face dataset, as `save_to_disk` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data-00000-of-00001.arrow").write_bytes(stream_of(table) if data is None else data)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    return folder


def stream_of(table: pa.Table) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def patched(data: bytes, old: list[int], new: list[int], type: str = "<i4") -> bytes:
    """The bytes with these numbers in the place of others, which must be there once."""
    before, after = (np.array(numbers, type).tobytes() for numbers in (old, new))
    assert data.count(before) == 1
    return data.replace(before, after)


# A column, numbers in its buffers, and what they become. To use such a column reads memory that is not the file's.
PATCHES: dict[str, tuple[pa.Array, list[int], list[int]]] = {
    "far": (pa.array(["a" * 77, "b" * 88]), [0, 77, 165], [0, 1 << 30, 1 << 30]),
    "backwards": (pa.array(["a" * 77, "b" * 88]), [0, 77, 165], [0, 165, -9]),
    "list": (pa.array([["a"] * 77, ["b"] * 88]), [0, 77, 165], [0, 1 << 29, 1 << 30]),
    "nested": (pa.array([["a" * 77], ["b" * 88]]), [0, 77, 165], [0, 1 << 30, 1 << 30]),
    "dictionary": (
        pa.DictionaryArray.from_arrays(pa.array([77, 88], pa.int32()), pa.array([str(i) for i in range(99)])), [77, 88], [1 << 30, -9]
    ),
}  # fmt: skip


def test_a_saved_dataset_with_wrong_offsets_does_not_end_the_process(tmp_path: Path) -> None:
    names = [*PATCHES, "utf8"]
    for name, (column, old, new) in PATCHES.items():
        table = pa.table({"query": ["q0", "q1"], "positive": column})
        saved(tmp_path / name, table, patched(stream_of(table), old, new))
    table = pa.table({"query": ["q0", "q1"], "positive": ["good", "text"]})
    saved(tmp_path / "utf8", table, stream_of(table).replace(b"good", b"g\xff\xfed"))
    code = (
        "import sys\n"
        "from hardneg.data.read import read_pairs\n"
        "from hardneg.errors import DataError\n"
        "for path in sys.argv[1:]:\n"
        "    try: read_pairs(path)\n"
        "    except DataError as error: print(error)\n"
    )
    done = run_code(code, *(tmp_path / name for name in names))
    assert done.returncode == 0, done.stderr[-2000:]
    messages = done.stdout.splitlines()
    assert len(messages) == len(names), messages
    for name, message in zip(names, messages, strict=True):
        assert f"{name}/data-00000-of-00001.arrow: not a readable Arrow stream" in message
        assert "damaged" in message


def test_a_saved_dataset_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    """A stream that is cut between two batches reads well: only its end mark is missing."""
    table = pa.Table.from_pylist(ROWS[:30])
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=10):
            before = out.tell()
            writer.write_batch(batch)
    whole = out.getvalue()
    assert len(read_pairs(str(saved(tmp_path / "whole", table, whole)))) == 30
    for cut in (before, len(whole) - 4, len(whole) - 8, 100, 3, 0):
        with pytest.raises(DataError, match=r"data-00000-of-00001\.arrow: not a readable Arrow stream \(its end"):
            read_pairs(str(saved(tmp_path / "cut", table, whole[:cut])))


def test_what_is_named_as_data_but_is_none(tmp_path: Path) -> None:
    folder = saved(tmp_path / "hf", pa.Table.from_pylist(ROWS[:3]))
    path = folder / "data-00000-of-00001.arrow"
    path.unlink()
    with pytest.raises(DataError, match="arrow does not exist"):
        read_pairs(str(folder))
    path.mkdir()
    with pytest.raises(DataError, match="arrow is a folder, expected a file"):
        read_pairs(str(folder))
    for state in ("[" * 100_000, '{"_data_files": 3}', '{"_data_files": [{"filename": 3}]}', "\xff", "{}"):
        (folder / "state.json").write_text(state, "latin-1")
        with pytest.raises(DataError, match=r"state\.json: (not a dataset state|names the file 3)"):
            read_pairs(str(folder))


def test_values_that_python_does_not_have(tmp_path: Path) -> None:
    table = pa.table({"query": ["q"], "positive": ["p"], "when": pa.array([1 << 50], pa.timestamp("ms"))})
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(
        DataError, match=r"p\.parquet, rows 1 to 1: the column 'when' of type timestamp\[ms\] cannot be read"
    ):
        read_pairs(str(tmp_path / "p.parquet"))
    with pytest.raises(DataError, match=r"arrow, rows 1 to 1: the column 'when'"):
        read_pairs(str(saved(tmp_path / "hf", table)))
    fine = table.set_column(2, "when", pa.array([datetime.date(2020, 1, 1)]))
    pq.write_table(fine, tmp_path / "p.parquet")
    assert len(read_pairs(str(tmp_path / "p.parquet"))) == 1


def test_damaged_parquet(tmp_path: Path) -> None:
    """Its checks raise OSError, and UnicodeDecodeError for a text that is none."""
    path = tmp_path / "p.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path, compression="none", use_dictionary=False)
    whole = path.read_bytes()
    for data, message in (
        (whole[:-1], "magic bytes"),
        (whole[:-300] + b"\xff" * 200 + whole[-100:], "Couldn't deserialize"),
        (whole.replace(b"query 7", b"query \xff"), "Invalid UTF8"),
        (b"", "size is 0"),
    ):
        path.write_bytes(data)
        with pytest.raises(DataError, match=rf"p\.parquet: not a readable Parquet file \(.*{message}.*damaged"):
            read_pairs(str(path))
        with pytest.raises(
            RunError, match=rf"p\.parquet: not a readable Parquet file \(.*{message}.*the run is damaged"
        ):
            read_parquet(path)


def test_a_parquet_file_of_a_run_has_the_columns_that_are_read(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"a": [1, None], "b": ["x", "y"]}), path)
    with pytest.raises(RunError, match=r"p\.parquet.*no column c"):
        read_parquet(path, ["a", "c"])
    schema = pa.schema([("a", pa.int64()), ("b", pa.int64())])
    with pytest.raises(RunError, match="the column b is string"):
        read_parquet(path, ["b"], schema)
    with pytest.raises(RunError, match="the column a is int64, 1 missing"):
        read_parquet(path, ["a"], schema)
    with pytest.raises(RunError, match="does not exist"):
        read_parquet(tmp_path / "none.parquet")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A dataset as runs keep it."""
    save_pairs(Pairs.from_columns([r["query"] for r in ROWS], [r["positive"] for r in ROWS]), tmp_path / "own")
    return tmp_path / "own"


def rewritten(path: Path, change: Callable[[pa.Table], pa.Table], rows: int = 256) -> None:
    """Write an Arrow file again, with another content."""
    with pa.OSFile(str(path)) as f:
        table = change(pa.ipc.open_file(f).read_all())
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


def test_own_texts_with_wrong_offsets_do_not_end_the_process(own: Path) -> None:
    path = own / "queries.arrow"
    ends = np.cumsum([len(row["query"]) for row in ROWS]).tolist()
    path.write_bytes(patched(path.read_bytes(), ends[200:210], [*ends[200:209], 1 << 40], "<i8"))
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from hardneg.data.pairs import open_pairs\n"
        "from hardneg.errors import RunError\n"
        "try: list(open_pairs(Path(sys.argv[1])).queries.batches())\n"
        "except RunError as error: print(error)\n"
    )
    done = run_code(code, own)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "queries.arrow: not a readable Arrow file" in done.stdout


def test_own_texts_in_other_batches_rows_or_columns(own: Path) -> None:
    """Row i is looked for in batch i // 256: batches of other sizes would give other texts."""
    whole = (own / "corpus.arrow").read_bytes()

    def refused(change: Callable[[pa.Table], pa.Table], message: str, rows: int = 256) -> None:
        (own / "corpus.arrow").write_bytes(whole)
        rewritten(own / "corpus.arrow", change, rows)
        with pytest.raises(RunError, match=message):
            list(open_pairs(own).documents.batches())

    refused(lambda table: table, "own holds", rows=100)

    def uneven(table: pa.Table) -> pa.Table:
        table = table.combine_chunks()
        return pa.concat_tables([table.slice(0, 255), table.slice(255, 257), table.slice(512)])

    refused(uneven, r"corpus\.arrow: batch 0 is not one of 256", rows=1000)
    refused(lambda table: table.slice(0, 599), "own holds .*599.* texts, but .*600")
    refused(lambda table: table.rename_columns(["title", "body"]), r"corpus\.arrow: expected columns of texts")
    refused(lambda table: table.select(["title"]), "expected columns of texts")
    nulls = pa.array([None, *["x"] * 599], pa.large_string())
    refused(lambda table: table.set_column(1, "text", nulls), "batch 0 is not one of 256 texts")
    (own / "corpus.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"corpus\.arrow: not a readable Arrow file"):
        open_pairs(own)


def test_a_mapped_file_that_is_cut_off_while_it_is_open(own: Path) -> None:
    """The bus error that would follow cannot be caught, so the size is checked before each use."""
    opened = open_pairs(own)
    assert opened.documents.take(np.array([0])) == ["text 0"]
    os.truncate(own / "corpus.arrow", 4096)
    with pytest.raises(RunError, match="cut off while it was in use"):
        opened.documents.take(np.array([599]))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("positive_values", lambda a: np.where(np.arange(len(a)) == 3, 600, a)),
        ("positive_values", lambda a: np.where(np.arange(len(a)) == 3, -1, a)),
        ("positive_offsets", lambda a: a[::-1].copy()),
        ("positive_offsets", lambda a: a[:-1]),
        ("negative_offsets", lambda a: a + 1),
        ("kept", lambda a: a + 1),
        ("query_keys", lambda a: a[:-1]),
        ("document_rows", lambda a: a + 10**6),
        ("document_groups", lambda a: np.zeros(5, np.int64)),
    ],
)
def test_labels_that_point_outside(own: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """With the right digest: who damages a file can write that, too."""
    arrays = {p.stem: np.load(p, allow_pickle=False) for p in (own / "labels").glob("*.npy")}
    arrays[name] = change(arrays[name])
    np.save(own / "labels" / f"{name}.npy", arrays[name], allow_pickle=False)
    head = json.loads((own / "dataset.json").read_text())
    (own / "dataset.json").write_text(json.dumps(head | {"labels": labels_digest(arrays)}))
    with pytest.raises(RunError, match=r"labels/\w+\.npy does not fit the rest of the dataset"):
        open_pairs(own)


def test_labels_and_heads_of_other_types(own: Path) -> None:
    head = json.loads((own / "dataset.json").read_text())
    for changes in ({"source_query_rows": -1}, {"name": 3}, {"digests": {}}, {"notes": {"a": "b"}}):
        (own / "dataset.json").write_text(json.dumps(head | changes))
        with pytest.raises(RunError, match=r"dataset\.json"):
            open_pairs(own)
    (own / "dataset.json").write_text(json.dumps(head))
    np.save(own / "labels" / "kept.npy", np.zeros((600, 1)), allow_pickle=False)
    with pytest.raises(RunError, match=r"kept\.npy: expected int64 of shape \[n\], got float64"):
        open_pairs(own)


def npy(header: str, data: bytes = b"\0" * 48, version: int = 1) -> bytes:
    width = 2 if version == 1 else 4
    return b"\x93NUMPY" + bytes((version, 0)) + len(header).to_bytes(width, "little") + header.encode() + data


def head(shape: str, descr: str = "'<f4'", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy("{'descr': ("), "not a readable .npy file"),  # a tokenize.TokenError of numpy
        (npy("(" * 9000), "not a readable .npy file"),
        (npy(head("(3, 4)", "[()]")), "not a readable .npy file"),
        (npy(head("(3, 4)", "{[]: 1}")), "not a readable .npy file"),
        (npy(head("(3, 4)", "'|O'")), "not a readable .npy file"),
        (npy(head(f"({1 << 50}, 4)")), "not a readable .npy file"),
        (npy(head(f"({1 << 62}, 4)")), "v.npy"),
        (npy(head("(-3, 4)")), "not a readable .npy file"),
        (npy(head("(3, 4)"), b"\0" * 47), "not a readable .npy file"),
        (npy(head("(3, 4)"), b"\0" * 49), "announces [0-9]+ bytes, but the file has"),
        (npy(head("(3, 4)", "'>f4'")), "byte order of this machine, got >f4: convert them"),
        (npy(head("(3, 1)", "'<f16'")), "16, 32 or 64 bits"),
        (npy(head("(12,)")), r"expected floats of shape \[rows, dimensions\]"),
        (npy(head("(3, 4)", "'<i4'")), r"expected floats of shape"),
        (b"", "not a readable .npy file"),
        (b"PK\x03\x04 not a zip", "not a readable .npy file"),
    ],
    ids=range(16),
)
def test_bad_npy(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "v.npy").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_vectors(tmp_path / "v.npy")
    assert str(tmp_path / "v.npy") in str(caught.value)


def test_good_npy(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    for version in (1, 2, 3):
        for order in "CF":
            text = head("(3, 4)", order=str(order == "F"))
            (tmp_path / "v.npy").write_bytes(npy(text, values.tobytes(order), version))
            assert open_vectors(tmp_path / "v.npy").array.tolist() == values.tolist()
    np.save(tmp_path / "empty.npy", np.empty((0, 4), np.float16), allow_pickle=False)
    assert open_vectors(tmp_path / "empty.npy").array.shape == (0, 4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": %s, "query": "q", "positive": "p"}' % ("9" * 5000), "line 2: not a JSON object (a number has too many digits)"),
        ('{"query": %s, "positive": "p"}' % ("[" * 100_000 + "]" * 100_000), "line 2: not a JSON object (nested too deeply)"),
        ('{"query": %s, "positive": "p"}' % ("[" * 900 + "]" * 900), "line 2: the query is of type list ([[[[...]]]])"),
        ('{"query": "q", "positive": "p", "relevance": 1, "group": %s}' % ("[" * 900 + "]" * 900), None),
        ('{"query": NaN, "positive": "p"}', "line 2: the query is of type float (nan)"),
        ('{"query": "q", "positive": "p", "group": NaN}', "line 2: the group is nan"),
        ('{"query": "q", "positive": "p", "relevance": NaN}', "line 2: the relevance is nan, expected a finite number"),
        ('{"query": "q", "positive": "p", "relevance": %s}' % ("9" * 4000), "line 2: the relevance is 9999"),
        ('{"query": "\\ud800", "positive": "p"}', "line 2: the query has a lone surrogate"),
        ('{"id": "\\ud800", "query": "q", "positive": "p"}', "line 2: the query has a lone surrogate"),
        ('\ufeff{"query": "q", "positive": "p"}', "line 2: not a JSON object"),
        ('{"query": 3%s, "positive": "p"}' % ("0" * 3000), "line 2: the query is of type int"),
    ],
    ids=range(12),
)  # fmt: skip
def test_json_that_python_trips_over(tmp_path: Path, line: str, message: str | None) -> None:
    path = tmp_path / "p.jsonl"
    first = '{"id": "i", "query": "a", "positive": "b", "group": "g", "relevance": 1}\n'
    path.write_text(first + line.replace("{", '{"id": "j", ' if '"id"' not in line else "{", 1) + "\n", "utf-8")
    if message is None:
        assert len(read_pairs(str(path))) == 2
        return
    with pytest.raises(DataError) as caught:
        read_pairs(str(path))
    assert f"{path}, {message}" in str(caught.value)
    assert len(str(caught.value)) < 600


def test_unusual_json_is_read_right(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = [
        {"id": 10**4000, "query": "a\0b", "positive": "x" * 5_000_000},
        {"id": "\0", "query": "q", "positive": "\ud83d\ude00"},
    ]
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(map(json.dumps, rows)).encode())
    pairs = read_pairs(str(path), folder=tmp_path / "store")
    assert pairs.query_ids.to_pylist() == [str(10**4000), "\0"]
    assert pairs.queries.slice(0, 2) == ["a\0b", "q"]
    assert [len(text) for text in pairs.documents.slice(0, 2)] == [5_000_000, 1]
    path.write_bytes(b"\xef\xbb\xbf")
    with pytest.raises(DataError, match="there are no rows"):
        read_pairs(str(path))


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardneg.data.readers.json_rows._LONGEST_LINE", 1 << 20)
    path = write_jsonl(tmp_path / "p.jsonl", [{"query": "q", "positive": "x" * (1 << 20)}])
    with pytest.raises(DataError, match="line 1: longer than 1 MiB"):
        read_pairs(str(path))


def test_pipes(tmp_path: Path) -> None:
    """JSON lines and CSV are read from start to end, so they may be pipes; other formats say that they may not."""

    def feed(path: Path, data: bytes) -> threading.Thread:
        os.mkfifo(path)
        thread = threading.Thread(target=path.write_bytes, args=(data,), daemon=True)
        thread.start()
        return thread

    for name, data in (("p.jsonl", b'{"query": "q", "positive": "p"}\n'), ("p.csv", b"query,positive\nq,p\n")):
        thread = feed(tmp_path / name, data)
        assert len(read_pairs(str(tmp_path / name))) == 1
        thread.join(10)
    for name in ("p.tsv", "p.parquet"):
        os.mkfifo(tmp_path / name)  # nobody writes to it: to open it would take forever
        with pytest.raises(DataError, match=f"{name} is a pipe, expected a file on disk"):
            read_pairs(str(tmp_path / name))
    os.mkfifo(tmp_path / "v.npy")
    with pytest.raises(DataError, match=r"v\.npy is a pipe"):
        open_vectors(tmp_path / "v.npy")


def test_folders_devices_and_archives_in_place_of_files(tmp_path: Path, beir: Path) -> None:
    (tmp_path / "v.npy").mkdir()
    with pytest.raises(DataError, match=r"v\.npy is a folder"):
        open_vectors(tmp_path / "v.npy")
    os.symlink("/dev/zero", tmp_path / "zero.jsonl")
    with pytest.raises(DataError, match=r"zero\.jsonl is no regular file"):
        read_pairs(str(tmp_path / "zero.jsonl"))
    os.symlink("loop.jsonl", tmp_path / "loop.jsonl")
    with pytest.raises(DataError, match=r"loop\.jsonl cannot be opened \(Too many levels"):
        read_pairs(str(tmp_path / "loop.jsonl"))
    for name in ("p.jsonl.gz", "p.csv.zst"):
        (tmp_path / name).write_bytes(b"\x1f\x8b")
        with pytest.raises(DataError, match=f"{name} cannot be (unpacked|read)"):
            read_pairs(str(tmp_path / name))
    with pytest.raises(DataError, match="cannot be opened"):
        read_pairs("x" * 5000)
    for name in ("qrels/train.tsv", "queries.jsonl", "corpus.jsonl"):
        (beir / name).unlink()
        (beir / name).mkdir()
        with pytest.raises(DataError, match=f"{name}(:| is) (this folder is no dataset|a folder)"):
            read_pairs(str(beir))
        (beir / name).rmdir()
        (beir / name).write_text("")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take another user's rights for a while")
def test_without_permission(tmp_path: Path, beir: Path) -> None:
    names = ["p.jsonl", "p.csv", "p.tsv", "p.parquet", "v.npy"]
    for name in names:
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(0)
    closed = tmp_path / "closed"
    write_jsonl(closed / "p.jsonl", ROWS[:1])
    closed.chmod(0)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder != Path("/") and folder.is_relative_to(tmp_path.parent.parent):
            folder.chmod(0o755)
    os.seteuid(65534)
    try:
        for name in names[:-1]:
            with pytest.raises(DataError, match=f"{name}.*Permission denied"):
                read_pairs(str(tmp_path / name))
        with pytest.raises(DataError, match=r"v\.npy.*Permission denied"):
            open_vectors(tmp_path / "v.npy")
        with pytest.raises(DataError, match=r"closed/p\.jsonl cannot be opened \(Permission denied"):
            read_pairs(str(closed / "p.jsonl"))
        with pytest.raises(DataError, match="Permission denied"):
            read_pairs(str(beir), ReadOptions(corpus=closed / "p.jsonl"))
    finally:
        os.seteuid(0)
        closed.chmod(0o755)


def test_closed_and_unreadable_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(DataError, match="standard input is closed"):
        read_pairs("-")


def test_columns_of_different_lengths() -> None:
    for arguments in (
        {"queries": ["a"], "positives": ["b", "c"]},
        {"queries": ["a", "b"], "positives": ["c"]},
        {"queries": ["a"], "positives": ["b"], "query_ids": []},
        {"queries": ["a"], "positives": ["b"], "groups": ["x", "y"]},
    ):
        with pytest.raises(DataError, match=r"has [012] rows, but queries has [12]: give one per row"):
            Pairs.from_columns(**arguments)  # type: ignore[arg-type]


def test_an_arrow_file_is_checked_once(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b"]})
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    file = ArrowFile(tmp_path / "x.arrow", RunError, mapped=True)
    assert file.batch(0).to_pylist() == file.table().to_pylist() == table.to_pylist()
    with pytest.raises(RunError, match="batch 1 was asked for, but there are 1"):
        file.batch(1)
