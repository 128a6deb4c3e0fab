"""Conversions between numpy and Arrow that do not import pandas, and readers for files that nobody vouches for.

`pa.array`, `np.asarray(arrow)` and `pq.read_table` import pandas if it is installed, only to check whether an argument
is a pandas object. That costs half a second and 40 MB. The functions here work on buffers instead.

Arrow trusts the lengths and offsets in a file: if they are wrong, using the data reads outside of it, which kills the
process. All Arrow, Parquet and `.npy` files are therefore opened here. What is read from them is checked once, before it
is used, and every failure is an error of ours that names the file.
"""

from __future__ import annotations

import functools
import mmap
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hardneg.errors import RUN_DAMAGED, HardnegError, RunError

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
    """The numbers or truth values of an Arrow array, `[n]`; ValueError if it has nulls.

    Unlike Arrow's own conversion, this does not import pandas, which takes longer than many commands.

    >>> values_of(pa.array([7, 8])[1:]).tolist(), values_of(pa.array([True, False, True])[1:]).tolist()
    ([8], [False, True])
    """
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if array.null_count:
        raise ValueError(f"{array.null_count} of {len(array)} values are missing")
    if pa.types.is_boolean(array.type):
        bits = np.frombuffer(array.buffers()[1] or b"", np.uint8)
        end = array.offset + len(array)
        return np.unpackbits(bits, count=end, bitorder="little")[array.offset :].astype(bool)
    dtype = next(dtype for dtype, arrow_type in _TYPES.items() if arrow_type == array.type)
    if len(array) == 0:
        return np.empty(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)


_FAILURES = (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError)  # of Arrow's readers

_MOST_OPEN = 256  # files of arrays that are mapped at once

_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"

Failure = type[
    HardnegError
]  # the error that a damaged file becomes: `DataError` for inputs, `RunError` for our own files


def check_regular(path: Path, failure: Failure) -> int:
    """The size of a file in bytes; `failure` if it does not exist, is a folder, a pipe or a device, or is not readable."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise failure(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise failure(f"{path} cannot be opened ({brief(error)})") from None
    if not stat.S_ISREG(status.st_mode):
        # The formats of this module are read from several places of the file, which a pipe does not allow.
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe" if stat.S_ISFIFO(status.st_mode) else "device"
        raise failure(f"{path} is a {kind}, expected a file on disk")
    return status.st_size


def brief(error: BaseException) -> str:
    """The first line of an error's message, shortened, without control characters.

    >>> brief(ValueError("no\\x1bgood\\n"))
    'no?good'
    """
    text = str(getattr(error, "strerror", None) or error).strip().partition("\n")[0] or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text[:200])


@contextmanager
def reading(path: Path, what: str, failure: Failure, remedy: str = "") -> Iterator[None]:
    """Turn what Arrow, numpy or the system raise while they read a file into `failure`, with a message that names it.

    Args:
        path: the file.
        what: what the file should be, such as `Parquet file`.
        failure: the error to raise.
        remedy: the end of the message: what to do.
    """
    try:
        yield
    except _FAILURES as error:
        raise failure(f"{path}: not a readable {what} ({brief(error)}){remedy}") from None


def check_names(fields: Iterable[pa.Field]) -> None:
    """UnicodeDecodeError if a column, or a field within one, has a name that is not UTF-8: Arrow decodes names on use only."""
    for field in fields:
        assert isinstance(field.name, str)
        check_names(field.type.field(i) for i in range(field.type.num_fields))


class ArrowFile:
    """The record batches of an Arrow file or stream. Each is checked in full when it is read for the first time.

    Args:
        path: the file.
        failure: the error to raise if the file is damaged.
        stream: whether the file is in Arrow's streaming format, which can only be iterated over.
        mapped: whether to map the file into memory instead of reading it. Batches then share the memory of the map.
            Only for files that nobody writes to: if a mapped file is cut off while it is used, the process dies.

    Raises:
        HardnegError: `failure`, if the file is missing, incomplete or damaged. So do the methods.
    """

    def __init__(self, path: Path, failure: Failure, *, stream: bool = False, mapped: bool = False) -> None:
        self.path, self.failure = path, failure
        self._what = "Arrow stream" if stream else "Arrow file"
        self._map: mmap.mmap | None = None
        check_regular(path, failure)
        with self._reading():
            if stream and not _ends_with(path, _STREAM_END):
                raise ValueError("its end is missing")
            if mapped:
                with open(path, "rb") as f:
                    self._map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
                source = pa.BufferReader(pa.py_buffer(self._map))
            else:
                source = pa.OSFile(str(path), "rb")
            self._reader = pa.ipc.open_stream(source) if stream else pa.ipc.open_file(source)
            self.schema: pa.Schema = self._reader.schema
            check_names(self.schema)
            self.batches = 0 if stream else self._reader.num_record_batches
        self._checked = bytearray(self.batches)

    def _reading(self) -> Any:
        return reading(self.path, self._what, self.failure, ": it is damaged, or was not completely written")

    def batch(self, i: int) -> pa.RecordBatch:
        """Batch i of a file."""
        with self._reading():
            if not 0 <= i < self.batches:
                raise ValueError(f"batch {i} was asked for, but there are {self.batches}")
            if self._map is not None and self._map.size() < len(self._map):
                raise ValueError("it was cut off while it was in use")
            batch = self._reader.get_batch(i)
            if not self._checked[i]:
                batch.validate(full=True)
                self._checked[i] = 1
            return batch

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """The batches of a stream, once."""
        while True:
            with self._reading():
                try:
                    batch = self._reader.read_next_batch()
                except StopIteration:
                    return
                batch.validate(full=True)
            yield batch

    def table(self) -> pa.Table:
        """All batches of a file."""
        batches = [self.batch(i) for i in range(self.batches)]
        with self._reading():
            return pa.Table.from_batches(batches, self.schema)

    def release(self) -> None:
        """Give the memory of a mapped file back. It is read from the file again when it is used again."""
        if self._map is not None and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)


def _ends_with(path: Path, end: bytes) -> bool:
    with open(path, "rb") as f:
        f.seek(0, 2)
        f.seek(max(0, f.tell() - len(end)))
        return f.read() == end


def read_parquet(path: Path, columns: list[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
    """The columns of a Parquet file of a run, as one table.

    Args:
        path: the file.
        columns: the columns to read; None: all.
        schema: types that the columns must have, without missing values. It may name more columns.

    Raises:
        RunError: the file is missing or damaged, or a column is missing or of another type.
    """
    check_regular(path, RunError)
    with (
        reading(path, "Parquet file", RunError, f": {RUN_DAMAGED}"),
        pq.ParquetFile(path) as file,
    ):
        check_names(file.schema_arrow)
        missing = set(columns or ()) - set(file.schema_arrow.names)
        if missing:
            raise ValueError(f"it has no column {', '.join(sorted(missing))}")
        table = file.read(columns, use_threads=False)  # worker threads would keep the memory that they free
        table.validate(full=True)
        if schema is not None:
            for name in table.column_names:
                column, wanted = table.column(name), schema.field(name).type
                if column.type != wanted or column.null_count:
                    missed = f"{column.null_count} missing"
                    raise ValueError(f"the column {name} is {column.type}, {missed}, expected {wanted}")
        return table


def rows_of(path: Path) -> int:
    """The number of rows of a Parquet file of a run; RunError if it is missing or damaged."""
    check_regular(path, RunError)
    with (
        reading(path, "Parquet file", RunError, f": {RUN_DAMAGED}"),
        pq.ParquetFile(path) as file,
    ):
        return int(file.metadata.num_rows)


def open_npy(path: Path, failure: Failure) -> NDArray[Any]:
    """A memory map of a `.npy` file of numbers; `failure` if it is missing, damaged or does not hold what it announces."""
    size = check_regular(path, failure)
    try:
        with np.errstate(over="ignore"):  # of a product of shapes that is refused in the end
            array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # headers are parsed as Python literals, which fails in many ways
        raise failure(f"{path}: not a readable .npy file of numbers ({brief(error)})") from None
    wanted = array.offset + array.nbytes
    if size != wanted:
        raise failure(
            f"{path}: its header announces {wanted:,} bytes, but the file has {size:,}: it is cut off or damaged"
        )
    return array


def check_whole(array: Any, failure: Failure) -> None:
    """`failure` if an array is a memory map, or a part of one, whose file is shorter now: reading it would kill the process."""
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and base.size() < len(base):
        raise failure(
            f"{getattr(array, 'filename', None) or 'the file of vectors'} was cut off while it was in use: write it again, and "
            f"replace files that are in use by a rename, not in their place"
        )


class NpyFiles(Sequence[NDArray[Any]]):
    """The arrays in several `.npy` files, memory-mapped. Few of them are open at once, as each map holds a file descriptor.

    Args:
        paths: the files.
        failure: see `open_npy`.

    Attributes:
        shapes: the shape of each.
        dtype: the type of the first.
        dtypes: that of each.
    """

    def __init__(self, paths: Sequence[Path], failure: Failure) -> None:
        self.paths, self._failure = list(paths), failure
        self._open = functools.lru_cache(_MOST_OPEN)(functools.partial(open_npy, failure=failure))
        found = [(array.shape, array.dtype) for array in map(self._open, self.paths)]
        self.shapes, self.dtypes = [shape for shape, _ in found], [dtype for _, dtype in found]
        self.dtype = self.dtypes[0]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        array = self._open(self.paths[i])
        check_whole(array, self._failure)
        return array
