"""Opens precomputed vectors: `.npy` files with one vector per row of the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hardneg.errors import DataError
from hardneg.storage.arrays import Rows
from hardneg.storage.arrow import open_npy

_NATIVE = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


def open_vectors(path: str | Path) -> np.ndarray:
    """A memory map of a `.npy` file of floats `[n, d]`; DataError if the file is missing or holds anything else."""
    array = open_npy(Path(path), DataError)
    if array.ndim != 2 or array.dtype.kind != "f":
        raise DataError(
            f"{path}: expected floats of shape [rows, dimensions], got {array.dtype} of shape {array.shape}"
        )
    if array.dtype not in _NATIVE:
        raise DataError(
            f"{path}: expected floats of 16, 32 or 64 bits in the byte order of this machine, got {array.dtype.str}: "
            f"convert them with numpy: array.astype('float32')"
        )
    return array


def aligned(array: Any, rows: np.ndarray, source_rows: int, name: str, what: str) -> Any:
    """The vectors of the dataset's n queries or documents, in their order.

    Args:
        array: `[m, d]`: one vector per row of the source, or one per distinct item of the dataset.
        rows: int64 `[n]`: the row of the source that each item comes from.
        source_rows: number of rows in the source.
        name: name of the file, for the message.
        what: `queries` or `documents`, for the message.

    Returns:
        `array` itself, or a view of its selected rows, `[n, d]`.

    Raises:
        DataError: m is neither `source_rows` nor n.
    """
    if len(array) == source_rows:
        if len(rows) == source_rows:
            return array
        return Rows(array, rows)
    if len(array) == len(rows):
        return array
    distinct = f" ({len(rows):,} distinct)" if len(rows) != source_rows else ""
    raise DataError(
        f"{name}: {len(array):,} vectors for {source_rows:,} {what}{distinct}; give one vector per source row, in order"
    )
