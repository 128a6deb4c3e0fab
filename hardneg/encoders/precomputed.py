"""Vectors that somebody else computed: `.npy` files in the order of the dataset's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hardneg.errors import DataError
from hardneg.storage.arrays import Rows


def open_vectors(path: str | Path) -> np.ndarray:
    """A memory map of a `.npy` of floats `[n, d]`; DataError when it is something else."""
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
    """The vectors of the dataset's rows.

    `rows` says which row of the source each item stands in; `source_rows` how many the source has. A
    file with a vector for each row of the source, or one for each distinct item in order, is accepted.
    """
    if len(array) == source_rows:
        if len(rows) == source_rows:
            return array
        return Rows(array, rows)
    if len(array) == len(rows):
        return array
    distinct = f" ({len(rows):,} distinct)" if len(rows) != source_rows else ""
    raise DataError(
        f"{name}: {len(array):,} vectors for {source_rows:,} {what}{distinct}: give one vector a row, in the order of the file"
    )
