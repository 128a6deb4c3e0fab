"""Conversions between numpy and Arrow that do not import pandas.

`pa.array`, `np.asarray(arrow)` and `pq.read_table` import pandas if it is installed, only to check whether an argument
is a pandas object. That costs half a second and 40 MB. The functions here work on buffers instead.
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
    """An Arrow array `[n]` of strings, of the given type or `large_string`. Bytes must be UTF-8."""
    encoded = [value.encode("utf-8") if isinstance(value, str) else value for value in values]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(value) for value in encoded], out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    array = pa.Array.from_buffers(pa.large_string(), len(encoded), buffers)
    return array if type is None else array.cast(type)


def numbers(values: NDArray[Any], missing: NDArray[np.bool_] | None = None) -> pa.Array:
    """An Arrow array `[n]` that shares the buffer of `values` `[n]`; null where `missing`, bool `[n]`, is True.

    >>> numbers(np.array([1, 2], np.int64), missing=np.array([False, True])).to_pylist()
    [1, None]
    """
    values = np.ascontiguousarray(values)
    valid = None if missing is None else pa.py_buffer(np.packbits(~missing, bitorder="little"))
    return pa.Array.from_buffers(_TYPES[values.dtype], len(values), [valid, pa.py_buffer(values)])


def values_of(array: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """The numbers of an Arrow array, `[n]`; ValueError if it has nulls."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if array.null_count:
        raise ValueError(f"{array.null_count} of {len(array)} values are missing")
    dtype = next(dtype for dtype, arrow_type in _TYPES.items() if arrow_type == array.type)
    if len(array) == 0:
        return np.empty(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)


def read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    """The columns of a Parquet file, all by default, as one table."""
    with pq.ParquetFile(path) as file:
        return file.read(columns, use_threads=False)  # worker threads would keep the memory that they free
