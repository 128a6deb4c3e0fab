"""Between numpy and Arrow, by buffer.

`pa.array`, `np.asarray(arrow)` and `pq.read_table` import pandas where it is installed, only to ask whether
it is involved: half a second and 40 MB for nothing. These helpers hand buffers over instead, without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

_TYPES: dict[np.dtype[Any], pa.DataType] = {
    np.dtype(np.int8): pa.int8(),
    np.dtype(np.int32): pa.int32(),
    np.dtype(np.int64): pa.int64(),
    np.dtype(np.float32): pa.float32(),
    np.dtype(np.float64): pa.float64(),
}


def strings(values: Sequence[str | bytes], type: pa.DataType | None = None) -> pa.Array:
    """An Arrow array of these strings, `large_string` unless told otherwise."""
    encoded = [value.encode("utf-8") if isinstance(value, str) else value for value in values]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(value) for value in encoded], out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    array = pa.Array.from_buffers(pa.large_string(), len(encoded), buffers)
    return array if type is None else array.cast(type)


def numbers(values: NDArray[Any], missing: NDArray[np.bool_] | None = None) -> pa.Array:
    """An Arrow array over these numbers `[n]`; null where `missing` `[n]`."""
    values = np.ascontiguousarray(values)
    valid = None if missing is None else pa.py_buffer(np.packbits(~missing, bitorder="little"))
    return pa.Array.from_buffers(_TYPES[values.dtype], len(values), [valid, pa.py_buffer(values)])


def values_of(array: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """The numbers of an Arrow array without nulls, `[n]`; ValueError where it has some."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if array.null_count:
        raise ValueError(f"{array.null_count} of {len(array)} values are missing")
    dtype = next(ours for ours, theirs in _TYPES.items() if theirs == array.type)
    if len(array) == 0:
        return np.empty(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)


def read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file as one table."""
    with pq.ParquetFile(path) as file:
        return file.read(columns, use_threads=False)  # worker threads would keep what they freed
