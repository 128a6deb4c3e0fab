"""Reads rows of JSON lines, CSV, TSV, Parquet and saved Hugging Face datasets.

Each row comes with its place, as in "pairs.csv, line 3", for error messages.
"""

from __future__ import annotations

import csv
import io
import json
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from hardneg.data.texts import shown
from hardneg.errors import DataError, first_few
from hardneg.storage.arrow import ArrowFile, brief, check_regular, reading

Row = Mapping[str, Any]

Located = Iterator[tuple[str, Row]]  # (place in the source, row)


def located_rows(path: Path, split: str = "train") -> Located:
    """The rows of a file or of a saved Hugging Face dataset, each with its place.

    Args:
        path: a .jsonl, .ndjson, .json, .csv, .tsv, .parquet or .pq file, or the folder of a saved dataset.
        split: split of a saved dataset that has several.

    Raises:
        DataError: the kind of file is unknown or, while iterating, a row cannot be read.
    """
    if path.is_dir():
        return _saved_dataset(path, split)
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson", ".json"):
        return open_json_lines(path)
    if suffix in (".csv", ".tsv"):
        return separated(path, "," if suffix == ".csv" else "\t")
    if suffix in (".parquet", ".pq"):
        return _parquet(path)
    if suffix in (".gz", ".zst", ".bz2", ".xz", ".zip"):
        raise DataError(f"{path} is compressed: unpack it first, or pipe JSON lines to SOURCE '-'")
    raise DataError(
        f"{path}: cannot tell what this is from its name; expected a .jsonl, .csv, .tsv or .parquet file, or a folder"
    )


def exists(path: Path) -> bool:
    """Whether there is something at the path; DataError if the system does not tell, as in a folder without access."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be opened ({brief(error)})") from None
    return True


@contextmanager
def opened(path: Path, *, once: bool = False) -> Iterator[IO[bytes]]:
    """A text file, opened for reading as bytes.

    Args:
        path: the file.
        once: whether it is read from start to end, once. Only then may it be a pipe.

    Raises:
        DataError: it does not exist, is a folder or a device, or reading fails. The message names it.
    """
    try:
        mode = path.stat().st_mode  # before opening: a pipe that nobody writes to would never open
        if not stat.S_ISREG(mode) and not (once and stat.S_ISFIFO(mode)):
            what = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "no regular file"
            raise DataError(f"{path} is {what}, expected a file on disk")
        with open(path, "rb") as f:
            yield f
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({brief(error)})") from None


def open_json_lines(path: Path) -> Located:
    """The rows of a JSON-lines file."""
    with opened(path, once=True) as f:
        yield from json_lines(f, str(path))


_LONGEST_LINE = 1 << 30  # bytes


def json_lines(stream: IO[bytes], name: str) -> Located:
    """The rows of a stream of JSON lines; `name` stands for the stream in messages.

    >>> import io
    >>> list(json_lines(io.BytesIO(b'{"query": "q"}'), "standard input"))
    [('standard input, line 1', {'query': 'q'})]
    """
    for number, line in enumerate(iter(partial(stream.readline, _LONGEST_LINE + 1), b""), 1):
        if line.isspace() or line == b"\xef\xbb\xbf":
            continue
        where = f"{name}, line {number}"
        if len(line) > _LONGEST_LINE:
            raise DataError(f"{where}: longer than {_LONGEST_LINE >> 20} MiB; write one object a line")
        yield where, _json_object(line, where, number == 1)


def _json_object(line: bytes, where: str, first: bool) -> Row:
    """The JSON object in a line of a file."""
    try:
        value = json.loads(line.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not valid UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        # Python refuses to parse integers of more than a few thousand digits, with a plain ValueError.
        detail = (
            error.msg if isinstance(error, json.JSONDecodeError)
            else "nested too deeply" if isinstance(error, RecursionError)
            else "a number has too many digits"
        )  # fmt: skip
        hint = ". The file starts with '[': write one object a line" if line.lstrip()[:1] == b"[" else ""
        raise DataError(f"{where}: not a JSON object ({detail}){hint}") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, got a {type(value).__name__}")
    return value


def separated(path: Path, delimiter: str) -> Located:
    """The rows of a CSV or TSV file. The first line names the columns."""
    csv.field_size_limit(1 << 27)
    # TSV files of retrieval datasets (qrels, MS MARCO) are usually written without quoting.
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if delimiter == "," or _quoted(path) else csv.QUOTE_NONE
    with opened(path, once=delimiter == ",") as stream:
        f = io.TextIOWrapper(stream, "utf-8-sig", newline="")
        reader = csv.reader(f, delimiter=delimiter, quoting=quoting, strict=True)
        header: list[str] | None = None
        number = 0
        try:
            for fields in reader:
                number = reader.line_num
                if not fields:
                    continue
                if header is None:
                    header = fields
                    continue
                where = f"{path}, line {number}"
                if len(fields) != len(header):
                    raise DataError(
                        f"{where}: {len(fields)} fields, but the header names {len(header)}: {names(header)}"
                    )
                yield where, dict(zip(header, fields, strict=True))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, after line {number}: not valid UTF-8 ({error.reason}); save the file as UTF-8"
            ) from None
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}") from None


def names(columns: Iterable[str]) -> str:
    """The names of columns, for a message."""
    return first_few((name if len(name) <= 40 and name.isprintable() else shown(name) for name in columns), limit=20)


def _quoted(path: Path) -> bool:
    """Whether a TSV file is quoted: some field in its first 64 KiB starts and ends with a double quote."""
    with opened(path) as f:
        return any(
            field.startswith(b'"') and field.endswith(b'"')
            for field in f.read(1 << 16).replace(b"\n", b"\t").split(b"\t")
            if len(field) > 1
        )


_ROWS = 4096  # that are Python objects at once


def _parquet(path: Path) -> Located:
    check_regular(path, DataError)
    remedy = ": it is damaged, or was not completely written"
    with reading(path, "Parquet file", DataError, remedy):
        file = pq.ParquetFile(path)
        batches = file.iter_batches(batch_size=_ROWS, use_threads=False)
    number = 0
    with file:
        while True:
            with reading(path, "Parquet file", DataError, remedy):
                batch = next(batches, None)
                if batch is None:
                    return
                batch.validate(full=True)
            yield from _rows_of(batch, path, number)
            number += batch.num_rows


def _rows_of(batch: pa.RecordBatch, path: Path, before: int) -> Located:
    """The rows of a batch, which starts after `before` rows of the file."""
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns.append(column.to_pylist())
        except (pa.ArrowException, ValueError, TypeError, ArithmeticError, LookupError, RecursionError) as error:
            # Python has no value for some that Arrow has, such as a date after the year 9999.
            raise DataError(
                f"{path}, rows {before + 1} to {before + batch.num_rows}: the column {shown(name)} of type {column.type} "
                f"cannot be read ({brief(error)}): remove it, or convert it to text"
            ) from None
    for i, values in enumerate(zip(*columns, strict=True), before + 1):
        yield f"{path}, row {i}", dict(zip(batch.schema.names, values, strict=True))


def _saved_dataset(path: Path, split: str) -> Located:
    """The rows of a dataset that `datasets.Dataset.save_to_disk` wrote: Arrow streams that state.json lists."""
    if exists(path / "dataset_dict.json"):
        splits = sorted(p.parent.name for p in path.glob("*/state.json"))
        if split not in splits:
            raise DataError(f"{path}: there is no split {split!r}; it has: {names(splits)}. Choose one with --split")
        path = path / split
    state = path / "state.json"
    if not exists(state):
        raise DataError(
            f"{path}: this folder is no dataset; expected corpus.jsonl (BEIR) or state.json (a saved Hugging Face dataset)"
        )
    try:
        with opened(state) as f:
            files = [item["filename"] for item in json.loads(f.read(_LONGEST_LINE))["_data_files"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{state}: not a dataset state ({brief(error)})") from None
    number = 0
    for name in files:
        if not isinstance(name, str) or Path(name).name != name or "\0" in name:
            raise DataError(f"{state}: names the file {shown(name)}, which is outside the folder")
        for batch in ArrowFile(path / name, DataError, stream=True):
            for start in range(0, batch.num_rows, _ROWS):
                piece = batch.slice(start, _ROWS)
                yield from _rows_of(piece, path / name, number)
                number += piece.num_rows
