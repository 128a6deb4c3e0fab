"""Reads rows of JSON lines, CSV, TSV, Parquet and saved Hugging Face datasets.

Each row comes with its place, as in "pairs.csv, line 3", for error messages.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from hardneg.errors import DataError

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
    raise DataError(
        f"{path}: cannot tell what this is from its name; expected a .jsonl, .csv, .tsv or .parquet file, or a folder"
    )


def open_json_lines(path: Path) -> Located:
    """The rows of a JSON-lines file."""
    with open(path, "rb") as f:
        yield from json_lines(f, str(path))


def json_lines(stream: IO[bytes], name: str) -> Located:
    """The rows of a stream of JSON lines; `name` stands for the stream in messages.

    >>> import io
    >>> list(json_lines(io.BytesIO(b'{"query": "q"}'), "standard input"))
    [('standard input, line 1', {'query': 'q'})]
    """
    for number, line in enumerate(stream, 1):
        if line.isspace():
            continue
        where = f"{name}, line {number}"
        try:
            value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where}: not valid UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8"
            ) from None
        except (json.JSONDecodeError, RecursionError) as error:
            detail = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            hint = ". The file starts with '[': write one object a line" if line.lstrip()[:1] == b"[" else ""
            raise DataError(f"{where}: not a JSON object ({detail}){hint}") from None
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected a JSON object, got a {type(value).__name__}")
        yield where, value


def separated(path: Path, delimiter: str) -> Located:
    """The rows of a CSV or TSV file. The first line names the columns."""
    csv.field_size_limit(1 << 27)
    with open(path, encoding="utf-8-sig", newline="") as f:
        # TSV files of retrieval datasets (qrels, MS MARCO) are usually written without quoting.
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if delimiter == "," or _quoted(path) else csv.QUOTE_NONE
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
                        f"{where}: {len(fields)} fields, but the header names {len(header)}: {', '.join(header)}"
                    )
                yield where, dict(zip(header, fields, strict=True))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, after line {number}: not valid UTF-8 ({error.reason}); save the file as UTF-8"
            ) from None
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}") from None


def _quoted(path: Path) -> bool:
    """Whether a TSV file is quoted: some field in its first 64 KiB starts and ends with a double quote."""
    with open(path, "rb") as f:
        return any(
            field.startswith(b'"') and field.endswith(b'"')
            for field in f.read(1 << 16).replace(b"\n", b"\t").split(b"\t")
            if len(field) > 1
        )


def _parquet(path: Path) -> Located:
    try:
        file = pq.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=4096):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from None


def _saved_dataset(path: Path, split: str) -> Located:
    """The rows of a dataset that `datasets.Dataset.save_to_disk` wrote: Arrow streams that state.json lists."""
    if (path / "dataset_dict.json").exists():
        splits = sorted(p.parent.name for p in path.glob("*/state.json"))
        if split not in splits:
            raise DataError(
                f"{path}: there is no split {split!r}; it has: {', '.join(splits)}. Choose one with --split"
            )
        path = path / split
    state = path / "state.json"
    if not state.exists():
        raise DataError(
            f"{path}: this folder is no dataset; expected corpus.jsonl (BEIR) or state.json (a saved Hugging Face dataset)"
        )
    try:
        files = [str(item["filename"]) for item in json.loads(state.read_text("utf-8"))["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{state}: not a dataset state ({error!r})") from None
    number = 0
    for name in files:
        if Path(name).name != name:
            raise DataError(f"{state}: names the file {name!r}, which is outside the folder")
        try:
            with pa.memory_map(str(path / name)) as source, pa.ipc.open_stream(source) as reader:
                for batch in reader:
                    for start in range(0, batch.num_rows, 4096):
                        for row in batch.slice(start, 4096).to_pylist():
                            number += 1
                            yield f"{path / name}, row {number}", row
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path / name}: not a readable Arrow stream ({error})") from None
