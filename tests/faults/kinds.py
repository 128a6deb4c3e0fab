"""The kinds of input: for each, how a damaged one is made from a seed, and how it is read."""

from __future__ import annotations

import datetime
import io
import json
import os
import signal
import tempfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hardneg.data.builder import Builder
from hardneg.data.dataset_files import labels_digest
from hardneg.data.pairs import Pairs, open_pairs
from hardneg.data.read import read_pairs
from hardneg.encoders.precomputed import open_vectors
from hardneg.errors import DataError
from hardneg.storage.arrow import read_parquet
from tests.faults import own_files, own_parts, own_trainings, typed
from tests.faults.kind import Kind, Typed
from tests.faults.mutators import TEXTS, damaged, json_text, sometimes_damaged
from tests.faults.sources import (
    make_beir,
    make_json_lines,
    make_json_list,
    make_table,
    make_triples,
    misplaced,
    read_beir,
    read_file,
    read_json_list,
    table,
    use,
    write,
)

_JUDGED = Pairs.from_columns(
    [f"query {i}" for i in range(6)], [f"text {i}" for i in range(6)], query_ids=["=1", "'=1", "b", "c", "'d", "e\n"]
)


def make_judgements(folder: Path, rng: Random) -> None:
    header = ["query_id", "document_id", "relevant", "query", "inclusion_probability", "part"]
    rows = [
        [
            ("'=1", "''=1", "b", "c", "'d", "e\n")[i % 6],
            f"d{i // 6}",
            str(i % 2),
            f"query {i % 6}",
            "0.5",
            rng.choice(("fit", "hold-out")),
        ]
        for i in range(rng.choice((5, 24, 36)))
    ]
    if rng.choice(range(8)) == 0:  # the text of another query
        rng.choice(rows)[3] = "text"
    write(folder / "judged.csv", table(header, rows, rng.choice(",,,,;"), rng))


def read_judged(folder: Path) -> None:
    from hardneg.false_negatives.judgements import read_judgements

    judged = read_judgements(folder / "judged.csv", _JUDGED)
    assert judged.query.max(initial=-1) < len(_JUDGED)
    assert judged.document.max(initial=-1) < len(_JUDGED.document_ids)
    assert len(judged.query) == len(judged.relevant) == len(judged.inclusion) == len(judged.held_out)


def _arrow_table(rng: Random) -> pa.Table:
    """Rows with a query and a positive, and sometimes columns of unusual types."""
    n = rng.choice((1, 7, 60))
    columns: dict[str, Any] = {
        "id": pa.array(range(n), pa.int32()),
        "query": pa.array([f"query {i} ü" for i in range(n)], rng.choice((pa.string(), pa.large_string()))),
        "positive": pa.array([[f"text {i}", "other"][: i % 3] for i in range(n)]),
    }
    if rng.random() < 0.3:
        columns["positive"] = pa.array([f"text {i}" for i in range(n)]).dictionary_encode()
    unusual = {
        "group": pa.array([None if i % 5 == 0 else i / 3 for i in range(n)]),
        "when": pa.array([rng.randrange(-(1 << 62), 1 << 62) for _ in range(n)], pa.timestamp(rng.choice(("s", "ns")))),
        "zone": pa.array([datetime.datetime(2020, 1, 1)] * n, pa.timestamp("us", rng.choice(("UTC", "Nowhere/Land")))),
        "day": pa.array([rng.randrange(-(1 << 31), 1 << 31) for _ in range(n)], pa.date32()),
        "span": pa.array([rng.randrange(1 << 62) for _ in range(n)], pa.duration("s")),
        "raw": pa.array([b"\xff"] * n, pa.binary()),
        "struct": pa.array([{"docid": "x", "text": "t"}] * n),
        "nothing": pa.nulls(n),
        "map": pa.array([[("k", 1)]] * n, pa.map_(pa.string(), pa.int64())),
        "view": pa.array(["a rather long text to be a view"] * n, pa.string_view()),
    }
    for name, column in unusual.items():
        if rng.random() < 0.15:
            columns[rng.choice((name, name, "query"))] = column
    return pa.table(columns)


def make_parquet(folder: Path, rng: Random) -> None:
    table = _arrow_table(rng)
    table = table.drop_columns([f.name for f in table.schema if pa.types.is_string_view(f.type)])
    plain = rng.random() < 0.5
    out = io.BytesIO()
    try:
        pq.write_table(
            table, out, compression=rng.choice(("none", "none", "snappy", "zstd")), use_dictionary=not plain,
            row_group_size=rng.choice((5, 1000)), data_page_version=rng.choice(("1.0", "2.0")),
            data_page_size=rng.choice((64, 1 << 20)), write_statistics=rng.random() < 0.5, store_schema=rng.random() < 0.5,
        )  # fmt: skip
    except (pa.ArrowException, ValueError):  # a type that Parquet does not have
        pq.write_table(table.select(["id"]), out := io.BytesIO())
    data = out.getvalue()
    length = int.from_bytes(data[-8:-4], "little")
    cut = len(data) - 8 - length
    where = rng.randrange(4)
    if where == 0:  # the footer alone, with its length put right
        footer = damaged(data[cut:-8], rng)
        data = data[:cut] + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    elif where == 1:  # the pages alone
        body = bytearray(data[:cut])
        body[4:] = damaged(bytes(body[4:]), rng)[: cut - 4].ljust(cut - 4, b"\0")
        data = bytes(body) + data[cut:]
    elif where == 2:
        data = damaged(data, rng)
    write(folder / "pairs.parquet", data)


def read_parquet_file(folder: Path) -> None:
    errors = []
    for read in (read_file("pairs.parquet"), _read_run_file):
        try:
            read(folder)
        except Exception as error:  # the second reader has its turn, too
            errors.append(error)
    if errors:
        raise next((e for e in errors if type(e).__module__ != "hardneg.errors"), errors[0])


def _read_run_file(folder: Path) -> None:
    schema = pa.schema([("id", pa.int32()), ("query", pa.string())])
    table = read_parquet(folder / "pairs.parquet", ["id", "query"], schema)
    assert all(query.encode() is not None for query in table.column("query").to_pylist())


def _arrow_bytes(table: pa.Table, rng: Random, stream: bool) -> bytes:
    out = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=rng.choice((None, None, None, "lz4", "zstd")))
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(out, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=20)
    return _damaged_arrow(out.getvalue(), rng)


def _damaged_arrow(data: bytes, rng: Random) -> bytes:
    """Damage anywhere, or only in the start, where the descriptions are, with an intact end."""
    if rng.random() < 0.2:
        return data
    if rng.random() < 0.5:
        return damaged(data, rng)
    cut = max(1, min(len(data) - 1, rng.choice((400, 1200, len(data) - 8))))
    return damaged(data[:cut], rng) + data[cut:]


def make_saved_dataset(folder: Path, rng: Random) -> None:
    names = [f"data-{i:05d}.arrow" for i in range(rng.choice((1, 2)))]
    table = _arrow_table(rng)
    for name in names:
        write(folder / name, _arrow_bytes(table, rng, stream=True))
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "f", "_split": "train"}
    text = json_text(state, rng, rng.choice((0.0, 0.0, 0.0, 0.1))).encode("utf-8", "surrogatepass")
    write(folder / "state.json", sometimes_damaged(text, rng, 0.05))
    if rng.random() < 0.02:
        misplaced(folder / names[0], rng)


def read_folder(folder: Path) -> None:
    use(read_pairs(str(folder)))


def make_npy(folder: Path, rng: Random) -> None:
    shapes: Any = ((0, 4), (3,), (1 << 62, 4), (1 << 33, 1 << 33), (-1, 4), (3, 1 << 40), "x", (3.0, 4), (4, 3), ())
    types: Any = ("<f2", "<f8", ">f4", "<i8", "|O", "<f16", "<U7", [("a", "<f4")], "nonsense", [], None, "<f4,<f4", 4)
    shape = rng.choice(shapes) if rng.random() < 0.3 else (3, 4)
    kind = rng.choice(types) if rng.random() < 0.3 else "<f4"
    head = repr({"descr": kind, "fortran_order": rng.choice((False, False, False, True, 3)), "shape": shape})
    if rng.random() < 0.2:
        head = damaged(head.encode(), rng).decode("latin-1")
    if rng.random() < 0.05:
        head = "(" * rng.choice((50, 300, 9000)) + head
    version = rng.choice((1, 1, 1, 1, 2, 3, 9))
    wide = 2 if version == 1 else 4
    head += " " * (-(len(head) + 9 + wide) % 64) + "\n"
    length = rng.choice((*[len(head)] * 6, 0, 1 << 15, len(head) + 3)) % (1 << 8 * wide)
    data = rng.choice((*[b"\0" * 48] * 4, b"\0" * 47, b"", rng.randbytes(96)))
    raw = (
        b"\x93NUMPY" + bytes((version, 0)) + length.to_bytes(wide, "little") + head.encode("latin-1", "replace") + data
    )
    write(folder / "vectors.npy", sometimes_damaged(raw, rng, 0.2))


def read_npy(folder: Path) -> None:
    vectors = open_vectors(folder / "vectors.npy")
    assert vectors.ids is None
    assert np.asarray(vectors.array, np.float32).sum() is not None


@cache
def _own_folder(rows: int) -> dict[str, bytes]:
    """The files of a dataset, by their paths."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        builder = Builder(folder)
        for i in range(rows):
            q = builder.add_query(None, f"query {i} ü", where="")
            builder.relate(q, builder.add_document(None, f"text {i}", title="T", group=i % 2, where=""), 1.0)
        builder.finish("own")
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def make_own_folder(folder: Path, rng: Random) -> None:
    """A dataset as runs keep it, in which one file or label is damaged, with its digest put right."""
    rows = rng.choice((3, 300))
    for name, data in _own_folder(rows).items():
        write(folder / name, data)
    what = rng.randrange(4)
    files = sorted(folder.rglob("*.arrow"))
    path = rng.choice(files)
    if what == 0:
        path.write_bytes(_damaged_arrow(path.read_bytes(), rng))
    elif what == 1:
        path.write_bytes(rng.choice(files).read_bytes())
    elif what == 2:
        arrays = {p.stem: np.load(p, allow_pickle=False) for p in sorted((folder / "labels").glob("*.npy"))}
        name = rng.choice(sorted(arrays))
        values = arrays[name].copy()
        if len(values):
            values[rng.randrange(len(values))] = rng.choice((-1, 0, 1, rows, 1 << 40, -(1 << 63)))
        arrays[name] = values[: rng.choice((len(values), len(values), 1))]
        np.save(folder / "labels" / f"{name}.npy", arrays[name], allow_pickle=False)
        head = json.loads((folder / "dataset.json").read_text("utf-8"))
        head["labels"] = labels_digest(arrays)
        (folder / "dataset.json").write_text(json.dumps(head), "utf-8")
    else:
        head = json.loads((folder / "dataset.json").read_text("utf-8"))
        head = head | {rng.choice(sorted(head)): rng.choice((None, -1, 0, {}, "x", [1], *TEXTS[:6]))}
        (folder / "dataset.json").write_text(json.dumps(head), "utf-8")


def read_own_folder(folder: Path) -> None:
    use(open_pairs(folder))


def make_number(folder: Path, rng: Random) -> None:
    write(folder / "number", str(rng.randrange(6)).encode())


def read_number(folder: Path) -> None:
    """End the process, raise a raw error, refuse or accept: what the fuzzer must tell apart."""
    number = int((folder / "number").read_text())
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 1:
        raise KeyError(number)
    if number == 2:
        raise DataError("refused")


TRIAL: dict[str, Kind | Typed] = {"trial": Kind(make_number, read_number, risky=True)}  # of the fuzzer itself

KINDS: dict[str, Kind | Typed] = {
    "json": Kind(make_json_lines("pairs.json"), read_file("pairs.json")),
    "jsonl": Kind(make_json_lines("pairs.jsonl"), read_file("pairs.jsonl")),
    "csv": Kind(make_table("pairs.csv", ","), read_file("pairs.csv")),
    "tsv": Kind(make_table("pairs.tsv", "\t"), read_file("pairs.tsv")),
    "json list": Kind(make_json_list, read_json_list),
    "triples": Kind(make_triples, read_file("triples.tsv")),
    "beir": Kind(make_beir, read_beir),
    "judgements": Kind(make_judgements, read_judged),
    "npy": Kind(make_npy, read_npy, risky=True),
    "parquet": Kind(make_parquet, read_parquet_file, risky=True),
    "saved dataset": Kind(make_saved_dataset, read_folder, risky=True),
    "own folder": Kind(make_own_folder, read_own_folder, risky=True),
    **typed.KINDS,
    **own_files.KINDS,
    **own_parts.KINDS,
    **own_trainings.KINDS,
}
