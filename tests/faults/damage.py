"""Damage to what hardneg wrote itself: a few values of its JSON and its tables, and checksums that are put right again."""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hardneg.storage.files import fingerprint
from tests.faults.mutators import LITERALS, TEXTS, damaged, json_text
from tests.faults.sources import write

Files = dict[str, bytes]


@contextmanager
def any_digits() -> Iterator[None]:
    """Let numbers have any number of digits: Python refuses to read and write those of more than 4,300."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)


def files_of(folder: Path) -> Files:
    """The files below a folder, by their paths."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def made_once(make: Callable[[Path], None]) -> Files:
    """The files that `make` writes to a folder. The clock stands still: the same bytes in every process."""
    with (
        tempfile.TemporaryDirectory() as place,
        mock.patch("time.perf_counter", return_value=0.0),
        mock.patch("time.time", return_value=0.0),
    ):
        with chdir(place):  # paths that are written are relative to it, and so the same, too
            make(Path("."))
        return files_of(Path(place))


def lay(folder: Path, files: Files) -> None:
    """Write files to a folder."""
    for name, data in files.items():
        write(folder / name, data)


def changed_json(data: bytes, rng: Random, rename: bool = True) -> bytes:
    """JSON in which a few values, found by going down at random, are replaced, left out, renamed, moved or nested."""
    try:
        json.loads(data)
    except (ValueError, RecursionError):  # it was damaged before
        return damaged(data, rng)
    if rng.random() < 0.1:
        return json_text(json.loads(data), rng, rng.choice((0.002, 0.01, 0.05))).encode("utf-8", "surrogatepass")
    value, literals = {"": json.loads(data)}, list[str]()
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        holder, key = _place(value, rng)
        what = rng.randrange(12)
        if what < 7:
            literals.append(_other(holder[key], rng))
            holder[key] = f"@@{len(literals) - 1}@@"
        elif what == 7 and holder is not value:
            del holder[key]
        elif what == 8 and rename and isinstance(holder, dict) and holder is not value:
            holder[rng.choice(TEXTS)[:100]] = holder.pop(key)
        elif what == 9:
            other, name = _place(value, rng)
            holder[key] = json.loads(json.dumps(other[name]))
        elif what == 10:
            holder[key] = rng.choice(([holder[key]], {"a": holder[key]}))
        elif isinstance(holder, list):
            holder.append(holder[key])
    text = json.dumps(value[""], ensure_ascii=False)
    for i, literal in enumerate(literals):
        text = text.replace(f'"@@{i}@@"', literal)
    return text.encode("utf-8", "surrogatepass")


def _place(value: Any, rng: Random) -> tuple[Any, Any]:
    """A place in nested lists and dicts, deep places as likely as others: (what holds it, its key)."""
    holder, key = value, ""
    while True:
        inner = holder[key]
        if not isinstance(inner, dict | list) or not inner or (holder is not value and rng.random() < 0.15):
            return holder, key
        holder, key = inner, rng.choice(list(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))


def _other(value: Any, rng: Random) -> str:
    """A value in place of another, as JSON: often of the same type, so that more than the type is looked at."""
    if isinstance(value, bool) or value is None or rng.random() < 0.4:
        return rng.choice(LITERALS)
    if isinstance(value, int | float):
        near = (value + 1, value - 1, -value, value * 2, value / 2 if value else 0.5)
        return rng.choice(
            (
                *map(str, near),
                "0",
                "-1",
                "1e308",
                "5e-324",
                "1e40",
                "9" * 19,
                "9" * 20,
                "9" * 5000,
                "1e999",
                "2147483648",
            )
        )
    if isinstance(value, str):
        names = (
            "module:os:getcwd",
            "posterior:../x",
            "../" * 3,
            "/etc/passwd",
            value[:-1],
            value + "x",
            value.upper(),
            "hashed",
            "st:x",
        )
        return json.dumps(rng.choice((*TEXTS, *names)))
    return rng.choice(LITERALS)


def sealed_json(data: bytes, volatile: tuple[str, ...] = ()) -> bytes:
    """JSON with its checksum put right; as it is if it is no object that can be read."""
    with any_digits():
        try:
            value = json.loads(data)
            if isinstance(value, dict):
                value.pop("checksum", None)
                value["checksum"] = fingerprint({n: v for n, v in value.items() if n not in volatile})
                return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
        except (ValueError, RecursionError):
            pass
    return data


def changed_table(data: bytes, rng: Random) -> bytes:
    """A Parquet file of which a column has other values or another type, or that has other rows or columns."""
    table = pq.ParquetFile(io.BytesIO(data)).read()
    names = table.column_names
    name, what = rng.choice(names), rng.randrange(9)
    values = table.column(name).to_pylist()
    if what <= 2 and values:
        for _ in range(rng.choice((1, 1, 3))):
            at = rng.randrange(len(values))
            values[at] = _other_cell(values[at], values, rng)
        table = _with(table, name, values)
    elif what == 3:
        table = table.drop_columns([name])
    elif what == 4:
        rows = rng.choice(([*range(len(table) - 1)], [*range(len(table))] * 2, [*range(1, len(table)), 0], [], [0]))
        table = table.take(pa.array(rows, pa.int64()))
    elif what == 5:
        table = _with(
            table,
            name,
            rng.choice(([1] * len(values), ["x"] * len(values), [None] * len(values), [[None]] * len(values))),
        )
    elif what == 6:
        table = table.rename_columns([rng.choice((n, n, n, rng.choice(names), "x")) for n in names])
    elif what == 7:
        table = table.select(rng.sample(names, len(names)))
    else:
        rng.shuffle(values)
        table = _with(table, name, values)
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def _other_cell(value: Any, values: list[Any], rng: Random) -> Any:
    if isinstance(value, list):
        return rng.choice(
            (None, [], [*value, *value], value[:-1], [None], [*value[1:], *value[:1]], rng.choice(values))
        )
    if isinstance(value, float):
        return rng.choice((None, float("nan"), float("inf"), -1.0, 0.0, 2.0, 1e38, rng.choice(values)))
    if isinstance(value, int):
        return rng.choice((None, -1, 0, 1 << 30, value + 1, rng.choice(values)))
    return rng.choice((None, "", "nobody", "kept", "posterior", "a\0b", rng.choice(values)))


def _with(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    column: pa.Array | None = None
    for kind in (table.schema.field(name).type, None):
        try:
            column = pa.array(values, kind)
            break
        except (pa.ArrowException, OverflowError):
            continue
    return table if column is None else table.set_column(table.column_names.index(name), name, column)


def changed_array(data: bytes, rng: Random) -> bytes:
    """A .npy file of which a few values are others, or the shape or the type is."""
    array = np.load(io.BytesIO(data), allow_pickle=False).copy()
    what = rng.randrange(6)
    if what <= 2 and array.size:
        flat = array.reshape(-1)
        for _ in range(rng.choice((1, 1, 3))):
            near = flat[rng.randrange(len(flat))]
            odd = (near, -1, 0, len(array), 1 << 30, float("nan"), float("inf"), 1e38)
            with np.errstate(all="ignore"):
                flat[rng.randrange(len(flat))] = np.asarray(rng.choice(odd), np.float64).astype(array.dtype)
    elif what == 3:
        array = rng.choice(
            (array[:-1], array[:0], np.concatenate([array, array]), array[None], array.reshape(-1), array[..., :1])
        )
    elif what == 4:
        with np.errstate(all="ignore"):
            array = array.astype(
                rng.choice((np.float64, np.float16, np.int64, np.int32, np.uint8, np.bool_, "U3", np.complex64))
            )
    else:
        return damaged(data, rng)
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def one_changed(files: Files, rng: Random, head: str, hashes: str = "files", sealed: float = 0.8) -> Files:
    """Files of which one is damaged: the head, or one that it names by a hash, which is put right in most cases.

    Args:
        files: the files of a folder.
        rng: decides.
        head: the JSON file that names the others.
        hashes: its entry with their hashes.
        sealed: the share of cases in which hashes are put right.
    """
    files, seal = dict(files), rng.random() < sealed
    named = sorted(json.loads(files[head]).get(hashes, {}))
    name = head if not named or rng.random() < 0.5 else rng.choice(named)
    place = name if name == head else f"{head.rpartition('/')[0]}/{name}".lstrip("/")
    data = files[place]
    if rng.random() < 0.03:
        del files[place]
        return files
    if rng.random() < 0.1:
        files[place] = damaged(data, rng)
    elif name.endswith(".json"):
        files[place] = changed_json(data, rng)
    else:
        files[place] = changed_array(data, rng) if name.endswith(".npy") else damaged(data, rng)
    if name != head and seal:
        value = json.loads(files[head])
        value[hashes][name] = sha256(files[place]).hexdigest()
        files[head] = json.dumps(value).encode()
    if (
        seal
        and "checksum" in json.loads(data if name == head else files[head])
        and not head.endswith("generation.json")
    ):
        files[head] = sealed_json(files[head])
    return files
