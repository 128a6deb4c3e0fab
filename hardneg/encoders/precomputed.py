"""Opens precomputed vectors: `.npy` files with one vector for each row of the source, or `.npz` and Parquet files with ids."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hardneg.data.id_rows import IdRows
from hardneg.data.pairs import Pairs
from hardneg.data.readers.files import Order, source_files
from hardneg.data.readers.shard_order import in_order
from hardneg.errors import DataError
from hardneg.storage.arrays import Rows, Sharded
from hardneg.storage.arrow import NpyFiles, brief, check_regular, open_npy, reading, strings, values_of
from hardneg.storage.files import check_name, fingerprint, sha256_file

_NATIVE = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))
_IDS = (
    "id",
    "_id",
    "ids",
    "docid",
    "doc_id",
    "document_id",
    "corpus_id",
    "corpus-id",
    "query_id",
    "query-id",
    "qid",
    "pid",
)


@dataclass(frozen=True)
class GivenVectors:
    """Vectors from a file.

    Attributes:
        array: floats `[n, d]`; memory-mapped if they come from `.npy` files.
        ids: Arrow strings `[n]`, or None: they are in the order of the source.
    """

    array: np.ndarray | Sharded
    ids: pa.Array | None = None


def open_vectors(path: str | Path, known: str | None = None) -> GivenVectors:
    """The vectors of a file.

    Args:
        path: `.npy`: floats `[n, d]`; or a pattern of such files, whose rows are those of all, in the order of their names
            (`part-2` before `part-10`).
            `.npz`: two arrays, of which one holds floats `[n, d]` and the other one ids `[n]`.
            `.parquet`: a column of ids and a column of lists of floats.
        known: what `vectors_digest` said of them before, in a run that may have them in another order.

    Raises:
        DataError: the file is missing or holds anything else, or an id is missing or appears twice.
    """
    path = Path(path)
    files = _known_files(path, known)
    if len(files) > 1:
        return GivenVectors(_joined(path, files))
    path = files[0]
    kind = path.suffix.lower()
    if kind == ".npz":
        given = _from_npz(path)
    elif kind in (".parquet", ".pq"):
        given = _from_parquet(path)
    else:
        given = GivenVectors(open_npy(path, DataError))
    array, ids = given.array, given.ids
    _check_type(path, array.dtype, array.shape)
    if ids is not None:
        _check_ids(path, ids, len(array))
    return given


def vector_files(path: str | Path, order: Order = in_order) -> list[Path]:
    """The files that a path or a pattern names, in the order of their names; DataError if no file fits the pattern."""
    check_name(path)
    path = Path(path)
    if not glob.has_magic(str(path)) or path.exists():
        return [path]
    files = source_files(path, order=order) or [path]
    for file in files:
        check_name(file)
    return files


def vectors_digest(path: str | Path, known: str | None = None) -> str:
    """What identifies the content of the files: the SHA-256 of one, or a hash of those of all, in their order.

    Args:
        path: see `open_vectors`.
        known: the digest in a run. Earlier versions joined files in the order of the letters of their names: it is
            returned if it is that of the files in this order.
    """
    return _digest(_known_files(path, known))


def _digest(files: list[Path]) -> str:
    digests = [sha256_file(each) for each in files]
    return digests[0] if len(digests) == 1 else fingerprint(digests)


def _known_files(path: str | Path, known: str | None) -> list[Path]:
    """The files in the order in which a run has them, if it has them in that of their letters; or else as they are read today."""
    files = vector_files(path)
    by_letters = files if known is None else vector_files(path, sorted)
    return by_letters if by_letters != files and _digest(by_letters) == known else files


def order_notes(paths: Iterable[Path]) -> list[str]:
    """A sentence for each pattern whose files are not joined in the order of the letters of their names."""
    return [
        f"{path}: its {len(files):,} files are joined in the order of the numbers in their names: {files[0].name}, {files[1].name}, "
        f"..., {files[-1].name}"
        for path in paths
        if (files := vector_files(path)) != vector_files(path, sorted)
    ]


def _joined(path: Path, files: list[Path]) -> Sharded:
    """Several `.npy` files as one array; DataError if they do not fit together."""
    odd = [each for each in files if each.suffix.lower() != ".npy"]
    if odd:
        raise DataError(f"{path}: several files of vectors must be .npy files, but one is {odd[0].name}")
    shards = NpyFiles(files, DataError)
    for file, shape, dtype in zip(files, shards.shapes, shards.dtypes, strict=True):
        _check_type(file, dtype, shape)
        if shape[1] != shards.shapes[0][1] or dtype != shards.dtype:
            raise DataError(
                f"{file}: holds {dtype} of {shape[1]} dimensions, but {files[0].name} holds {shards.dtype} of "
                f"{shards.shapes[0][1]}: all must be of one kind"
            )
    return Sharded(shards)


def _check_type(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or dtype.kind != "f":
        raise DataError(f"{path}: expected floats of shape [rows, dimensions], got {dtype} of shape {shape}")
    if dtype not in _NATIVE:
        raise DataError(
            f"{path}: expected floats of 16, 32 or 64 bits in the byte order of this machine, got {dtype.str}: "
            f"convert them with numpy: array.astype('float32')"
        )


def _check_ids(path: Path, ids: pa.Array, rows: int) -> None:
    if len(ids) != rows:
        raise DataError(f"{path}: {len(ids):,} ids for {rows:,} vectors: there must be one each")
    if ids.null_count:
        raise DataError(f"{path}: {ids.null_count:,} of {rows:,} ids are missing")
    if pc.count_distinct(ids).as_py() != len(ids):
        counts = pc.value_counts(ids)
        twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
        raise DataError(f"{path}: the id {twice!r} appears more than once: which vector is meant cannot be told")


def _from_npz(path: Path) -> GivenVectors:
    check_regular(path, DataError)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # archives and headers fail in many ways
        raise DataError(f"{path}: not a readable .npz file of numbers and texts ({brief(error)})") from None
    floats = [name for name, array in arrays.items() if array.dtype.kind == "f" and array.ndim == 2]
    names = [name for name, array in arrays.items() if array.dtype.kind in "USiu" and array.ndim == 1]
    if len(floats) != 1 or len(names) != 1:
        held = ", ".join(f"{name}: {array.dtype} {list(array.shape)}" for name, array in arrays.items())
        raise DataError(
            f"{path}: expected one array of floats [n, d] and one of ids [n] (texts or integers); it holds {held or 'nothing'}: "
            f"write it with numpy.savez(F, ids=numpy.array(ids, dtype=str), vectors=vectors)"
        )
    try:
        given = [each if isinstance(each, bytes) else str(each) for each in arrays[names[0]].tolist()]
        ids = strings(given)
        ids.validate(full=True)
    except (UnicodeError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: the ids in {names[0]!r} are no texts in UTF-8 ({brief(error)})") from None
    return GivenVectors(arrays[floats[0]], ids)


def _from_parquet(path: Path) -> GivenVectors:
    check_regular(path, DataError)
    with reading(path, "Parquet file", DataError), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        lists = [f.name for f in schema if _is_vector(f.type)]
        ids = [f.name for f in schema if f.name.lower() in _IDS and not _is_vector(f.type)]
        if len(lists) != 1 or len(ids) != 1:
            held = ", ".join(f"{f.name}: {f.type}" for f in schema)
            raise DataError(
                f"{path}: expected one column of lists of floats and one of ids (named id, _id, docid or the like); it has {held}"
            )
        table = file.read([ids[0], lists[0]], use_threads=False)
        table.validate(full=True)
    column = table.column(lists[0]).combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    rows = len(column)
    if column.null_count:
        raise DataError(f"{path}: {column.null_count:,} of {rows:,} vectors in {lists[0]!r} are missing")
    flat = column.flatten()
    lengths = np.unique(values_of(pc.list_value_length(column))) if rows else np.zeros(0, np.int64)
    if len(lengths) > 1:
        raise DataError(
            f"{path}: vectors in {lists[0]!r} have {lengths[0]} to {lengths[-1]} components: all must have as many"
        )
    if flat.null_count:
        raise DataError(f"{path}: {flat.null_count:,} numbers in {lists[0]!r} are missing")
    # Arrow's half floats have no view as numpy's there.
    numbers = flat.to_numpy(zero_copy_only=False) if pa.types.is_float16(flat.type) else values_of(flat)
    array = numbers.reshape(rows, int(lengths[0]) if rows else 0)
    names = table.column(ids[0])
    if pa.types.is_dictionary(names.type):
        names = pc.cast(names, names.type.value_type)
    if names.type == pa.string_view():
        names = pc.cast(names, pa.string())
    if not (pa.types.is_string(names.type) or pa.types.is_large_string(names.type) or pa.types.is_integer(names.type)):
        raise DataError(f"{path}: the ids in {ids[0]!r} are {names.type}: they must be texts or integers")
    return GivenVectors(array, pc.cast(names, pa.large_string()).combine_chunks())


def _is_vector(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and pa.types.is_floating(kind.value_type))


def open_aligned(path: str | Path, pairs: Pairs, side: str, known: str | None = None) -> Any:
    """The vectors of a file for the queries or documents of a dataset, in their order.

    Args:
        path: see `open_vectors`.
        pairs: the dataset.
        side: `queries` or `documents`.
        known: see `open_vectors`.

    Returns:
        `[n, d]`, an array or a view of its selected rows.

    Raises:
        DataError: as for `open_vectors`; there are too few or too many vectors, or none for some id.
    """
    given, name = open_vectors(path, known), str(path)
    if given.ids is None:
        return aligned(given.array, pairs, side, name, of_files=True)
    ids = pairs.query_ids if side == "queries" else pairs.document_ids
    rows = IdRows(given.ids).of(ids)
    unknown = int((rows < 0).sum())
    if unknown:
        first = ids[int(np.argmax(rows < 0))].as_py()
        held = f"its ids are like {given.ids[0].as_py()!r}" if len(given.ids) else "it holds none"
        raise DataError(f"{name}: no vector for {unknown:,} of {len(ids):,} {side}, such as {first!r}; {held}")
    return given.array if np.array_equal(rows, np.arange(len(given.array))) else Rows(given.array, rows)


def aligned(array: Any, pairs: Pairs, side: str, name: str, of_files: bool = False) -> Any:
    """The vectors of the dataset's n queries or documents, in their order.

    Args:
        array: `[m, d]`: one vector per row of the source, or one per distinct item of the dataset.
        pairs: the dataset, which knows the row of the source that each item comes from.
        side: `queries` or `documents`.
        name: name of the file, for the message.
        of_files: the order is that of files, not of the dataset in memory. It makes a difference for documents that come from pairs
            and from a corpus.

    Returns:
        `array` itself, or a view of its selected rows, `[n, d]`.

    Raises:
        DataError: m is neither the number of the source's rows nor n, or it cannot be told which document a vector belongs to.
    """
    if of_files and side == "documents" and pairs.corpus_rows is not None and len(array) != pairs.source_document_rows:
        return _aligned_to_corpus(array, pairs, pairs.corpus_rows, name)
    rows = pairs.query_rows if side == "queries" else pairs.document_rows
    source_rows = pairs.source_query_rows if side == "queries" else pairs.source_document_rows
    if len(array) == source_rows:
        if len(rows) == source_rows:
            return array
        return Rows(array, rows)
    if len(array) == len(rows):
        return array
    distinct = f" ({len(rows):,} distinct)" if len(rows) != source_rows else ""
    raise DataError(
        f"{name}: {len(array):,} vectors for {source_rows:,} {side}{distinct}; give one vector per source row, in order, or "
        f"vectors with ids (.npz or .parquet)"
    )


def _aligned_to_corpus(array: Any, pairs: Pairs, corpus_rows: np.ndarray, name: str) -> Any:
    """The vectors of documents that come from the pairs and from files of documents: in the order of these files."""
    rows = pairs.source_corpus_rows
    if len(array) != rows:
        raise DataError(
            f"{name}: {len(array):,} vectors for {len(pairs.document_ids):,} documents, of the pairs and of the corpus, whose order "
            f"is not that of a file: give vectors with ids (.npz or .parquet), or one vector for each of the {rows:,} rows of "
            f"the corpus"
        )
    missing = np.flatnonzero(corpus_rows < 0)
    if len(missing):
        first = pairs.document_ids[int(missing[0])].as_py()
        raise DataError(
            f"{name}: one vector for each row of the corpus, but {len(missing):,} documents of the pairs are not in it, such as "
            f"{first!r}: give vectors with ids (.npz or .parquet)"
        )
    return Rows(array, corpus_rows)
