"""Features that were computed once for the candidates of a run, and kept in the run folder for the commands after it.

    features/arrays-NAME.json, .npy   arrays that all queries share, such as the neighbor graph
    features/part-*.parquet           one column a feature, one row a candidate of the part, in the order of the candidates

They are a cache: without them, or with damaged ones, everything is computed again, with the same result. Each file names what it
was made from (texts, labels, vectors, candidates) and a SHA-256 of its content, so one of other candidates is never used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hardneg.errors import RunError
from hardneg.storage.arrays import Float, Int, Mask
from hardneg.storage.arrow import check_regular, numbers, open_npy, reading, values_of
from hardneg.storage.files import atomic_path, fingerprint, sha256_file, write_array
from hardneg.storage.folders import no_links
from hardneg.storage.json_files import read_json, write_json

_VERSION = 1  # of the definitions of the features: a new one makes all that was kept useless

_META = b"hardneg"  # the entry of a Parquet file's metadata that says what it was made from


class _Arrays(TypedDict):
    made_from: str
    files: dict[str, str]


@dataclass
class _Part:
    """The features of one part of the run.

    Attributes:
        number: its position in the run.
        start: its first query.
        documents: int32 `[n, K]`, its candidates.
        key: the hash of what the features are made from.
        kept: the features that are on disk, `[n, K]` by name.
        made: those that are being computed, with the queries that are done, bool `[n]`.
    """

    number: int
    start: int
    documents: NDArray[np.int32]
    key: str
    kept: dict[str, Float]
    made: dict[str, tuple[Float, Mask]] = field(default_factory=dict)


class KeptFeatures:
    """The features that are kept in a run folder.

    What cannot be written, on a read-only or full disk for example, is computed again by the next command.

    Raises:
        RunError: from `keep` and `keep_arrays`, if a symbolic link stands where a file is to be written.

    Args:
        folder: the folder `features` of the run.
        made_from: returns everything that decides the values of the features, besides the candidates of the part. It is called
            when features are first asked for.
    """

    def __init__(self, folder: Path, made_from: Callable[[], Mapping[str, Any]]) -> None:
        self.folder, self._made_from = folder, made_from
        self._part: _Part | None = None
        self._turned_to: tuple[int, int, NDArray[np.int32]] | None = None

    @cached_property
    def made_from(self) -> str:
        return fingerprint({"version": _VERSION, **self._made_from()})

    def turn_to(self, number: int, start: int, documents: NDArray[np.int32]) -> None:
        """Turn to the part at position `number`, whose first query is `start` and whose candidates are `documents` `[n, K]`."""
        self._part, self._turned_to = None, (number, start, documents)

    def _opened(self) -> _Part | None:
        if self._part is None and self._turned_to is not None:
            number, start, documents = self._turned_to
            key = fingerprint([self.made_from, _digest(np.ascontiguousarray(documents))])
            self._part = _Part(number, start, documents, key, self._read(number, documents, key))
        return self._part

    def of(self, names: Sequence[str], queries: Int, documents: NDArray[np.int32]) -> dict[str, Float]:
        """Those of the features `names` that are kept, `[n, K]` for each, for candidates `documents` `[n, K]` of `queries` `[n]`."""
        part, rows = self._rows(queries, documents)
        return {} if part is None else {name: part.kept[name][rows] for name in names if name in part.kept}

    def keep(self, queries: Int, documents: NDArray[np.int32], values: Mapping[str, Float]) -> None:
        """Take features `[n, K]` of candidates of some queries. When those of all queries of the part are there, they are written."""
        part, rows = self._rows(queries, documents)
        if part is None:
            return
        for name, value in values.items():
            blank = np.zeros(part.documents.shape, np.float32), np.zeros(len(part.documents), bool)
            all_values, done = part.made.setdefault(name, blank)
            all_values[rows], done[rows] = value, True
        finished = {name: each for name, (each, done) in part.made.items() if done.all()}
        if finished and len(finished) == len(part.made):
            part.kept |= finished
            part.made.clear()
            self._write(part)

    def _rows(self, queries: Int, documents: NDArray[np.int32]) -> tuple[_Part | None, Int]:
        """The part and the rows of these candidates in it; None if they are not those of the part."""
        part = self._opened()
        if part is None or not len(queries):
            return None, queries
        rows = queries - part.start
        inside = rows.min() >= 0 and rows.max() < len(part.documents)
        if not inside or not np.array_equal(part.documents[rows], documents):
            return None, rows
        return part, rows

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.parquet"

    def _read(self, number: int, documents: NDArray[np.int32], key: str) -> dict[str, Float]:
        """The features of a part on disk; none if there are none, if they were made from something else, or are damaged."""
        path, real = self._path(number), documents >= 0
        kept: dict[str, Float] = {}
        try:
            check_regular(path, RunError)
            with reading(path, "Parquet file", RunError), pq.ParquetFile(path) as file:
                made = json.loads((file.schema_arrow.metadata or {}).get(_META, b"{}"))
                if made.get("made_from") != key or file.metadata.num_rows != int(real.sum()):
                    return {}
                table = file.read(use_threads=False)
                for name in table.column_names:
                    values = values_of(table[name])
                    if values.dtype != np.float32 or _digest(values) != made["columns"][name]:
                        raise ValueError(f"the column {name} is damaged")
                    kept[name] = np.zeros(documents.shape, np.float32)
                    kept[name][real] = values
        except (RunError, ValueError, KeyError, TypeError, AttributeError):
            return {}
        return kept

    def _write(self, part: _Part) -> None:
        real = part.documents >= 0
        columns = {name: np.ascontiguousarray(values[real]) for name, values in part.kept.items()}
        made = {"made_from": part.key, "columns": {name: _digest(values) for name, values in columns.items()}}
        table = pa.table({name: numbers(values) for name, values in columns.items()})
        table = table.replace_schema_metadata({_META: json.dumps(made).encode()})
        no_links(self.folder.parent, [self.folder.name])
        if not _replaceable(self._path(part.number)):
            return
        try:
            with (
                atomic_path(self._path(part.number)) as temporary,
                pq.ParquetWriter(
                    temporary,
                    table.schema,
                    compression="zstd",
                    compression_level=1,
                    use_dictionary=False,
                    column_encoding=dict.fromkeys(columns, "BYTE_STREAM_SPLIT"),
                    write_statistics=False,
                ) as writer,
            ):
                writer.write_table(table, row_group_size=1 << 20)
        except OSError:
            return

    def arrays(self, name: str, shapes: Mapping[str, tuple[Any, int]]) -> dict[str, NDArray[Any]] | None:
        """Arrays that all queries share, memory-mapped.

        Args:
            name: the name that they were kept under.
            shapes: the dtype and the number of rows of each array.

        Returns:
            The arrays by name; None if they are missing, damaged, or made from something else.
        """
        head = self.folder / f"arrays-{name}.json"
        try:
            found = read_json(head, _Arrays, checksum=True)
            if found["made_from"] != self.made_from or set(found["files"]) != set(shapes):
                return None
            arrays = {}
            for each, (dtype, rows) in shapes.items():
                path = self.folder / f"arrays-{name}-{each}.npy"
                arrays[each] = open_npy(path, RunError)
                fits = arrays[each].dtype == dtype and arrays[each].ndim in (1, 2) and len(arrays[each]) == rows
                if not fits or sha256_file(path) != found["files"][each]:
                    return None
        except (RunError, OSError):
            return None
        return arrays

    def keep_arrays(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep arrays that all queries share."""
        no_links(self.folder.parent, [self.folder.name])
        places = [self.folder / f"arrays-{name}.json", *(self.folder / f"arrays-{name}-{each}.npy" for each in arrays)]
        if not all(map(_replaceable, places)):
            return
        try:
            files = {
                each: write_array(self.folder / f"arrays-{name}-{each}.npy", value) for each, value in arrays.items()
            }
            head = {"made_from": self.made_from, "files": files}
            write_json(self.folder / f"arrays-{name}.json", head, checksum=True)
        except OSError:
            return


def _replaceable(path: Path) -> bool:
    """Whether a file can be written there: nothing is there, or a file; no pipe, which nobody reads, and no folder."""
    return path.is_file() or not path.exists()


def _digest(values: NDArray[Any]) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()
