"""Rows of Parquet files and of saved Hugging Face datasets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hardneg.data.readers.rows import Block, Located, exists, names, opened
from hardneg.data.texts import shown
from hardneg.errors import DataError
from hardneg.storage.arrow import ArrowFile, brief, check_names, check_regular, reading

_ROWS = 4096  # that are Python objects at once
_ROWS_OF_BYTES = 32  # likewise, where a column holds bytes, such as pictures
_LARGEST_STATE = 1 << 26  # bytes of a state.json


def parquet_rows(path: Path) -> Located:
    """The rows of a Parquet file."""
    return (row for block in parquet_blocks(path) for row in block.rows())


def parquet_blocks(path: Path) -> Iterator[Block]:
    """The rows of a Parquet file, in blocks."""
    check_regular(path, DataError)
    remedy = ": it is damaged, or was not completely written"
    with reading(path, "Parquet file", DataError, remedy):
        file = pq.ParquetFile(path)
        check_names(file.schema_arrow)
        batches = file.iter_batches(batch_size=_at_once(file.schema_arrow), use_threads=False)
    number = 0
    with file:
        while True:
            with reading(path, "Parquet file", DataError, remedy):
                batch = next(batches, None)
                if batch is None:
                    return
                batch.validate(full=True)
            yield _block(batch, path, number)
            number += batch.num_rows


def _block(batch: pa.RecordBatch, path: Path, before: int) -> Block:
    return Block(lambda: _rows_of(batch, path, before), lambda first: pa.Table.from_batches([batch]), held=True)


def _at_once(schema: pa.Schema) -> int:
    """Rows that are Python objects at once: few, if a column or an entry of it holds bytes."""
    types = [
        inner for each in schema.types for inner in ([f.type for f in each] if pa.types.is_struct(each) else [each])
    ]
    held = any(pa.types.is_binary(each) or pa.types.is_large_binary(each) for each in types)
    return _ROWS_OF_BYTES if held else _ROWS


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


def saved_blocks(path: Path, split: str) -> Iterator[Block]:
    """The rows of a dataset that `datasets.Dataset.save_to_disk` wrote, in blocks: Arrow streams that state.json lists."""
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
            files = [item["filename"] for item in json.loads(f.read(_LARGEST_STATE))["_data_files"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{state}: not a dataset state ({brief(error)})") from None
    number = 0
    for name in files:
        if not isinstance(name, str) or Path(name).name != name or "\0" in name:
            raise DataError(f"{state}: names the file {shown(name)}, which is outside the folder")
        for batch in ArrowFile(path / name, DataError, stream=True):
            at_once = _at_once(batch.schema)
            for start in range(0, batch.num_rows, at_once):
                piece = batch.slice(start, at_once)
                yield _block(piece, path / name, number)
                number += piece.num_rows
