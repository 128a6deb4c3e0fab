"""Opens precomputed vectors: `.npy` files with one vector per row of the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hardneg.errors import DataError
from hardneg.storage.arrays import Rows


def open_vectors(path: str | Path) -> np.ndarray:
    """A memory map of a `.npy` file of floats `[n, d]`; DataError if the file is missing or holds anything else."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: not a readable .npy file of numbers ({error})") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f":
        shape = getattr(array, "shape", None)
        raise DataError(
            f"{path}: expected floats of shape [rows, dimensions], got {getattr(array, 'dtype', '?')} of shape {shape}"
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
