"""Rows of tables in memory: datasets, data frames, Arrow tables, lists of rows and columns by name.

What an object is, is told by its methods, so none of the libraries is imported.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from hardneg.data.memory_columns import column_values
from hardneg.data.readers.rows import Located, Row
from hardneg.errors import DataError, MissingDependencyError, UsageError, suggestion
from hardneg.storage.arrow import brief

_ROWS = 1024  # rows that are taken from a table at once
_ROWS_OF_BYTES = 32  # likewise, where they hold pictures


def is_path(source: Any) -> bool:
    """Whether a source is named by text: a path, a pattern, `-` or `builtin:NAME`."""
    return isinstance(source, str | os.PathLike)


def table_rows(source: Any, split: str, what: str = "the source") -> Callable[[], Located]:
    """A function that begins a pass over the rows of a table in memory, each with its place.

    Args:
        source: a `datasets.Dataset`, `DatasetDict` or `IterableDataset`; a frame of pandas or polars; an Arrow table; a mapping
            from names of columns to their values; or a list of mappings, or of tuples (query, positive, negatives...).
        split: the split to take of a `DatasetDict`.
        what: what messages call the source.

    Raises:
        DataError: it is none of these. UsageError: a `DatasetDict` has no such split.
    """
    take = _taken(_of_split(source, split), what)

    def rows() -> Iterator[tuple[str, Row]]:
        for i, row in enumerate(take()):
            yield f"{what}, row {i}", row

    return rows


def _of_split(source: Any, split: str) -> Any:
    """One of the datasets of a `DatasetDict`; anything else as it is."""
    if not (isinstance(source, Mapping) and source and all(hasattr(each, "column_names") for each in source.values())):
        return source
    if split not in source:
        raise UsageError(f"the dataset has no split {split!r}.{suggestion(split, tuple(source))}")
    return source[split]


def _taken(source: Any, what: str) -> Callable[[], Iterable[Any]]:
    """A function that begins a pass over the rows."""
    if hasattr(source, "collect") and hasattr(source, "lazy"):  # a LazyFrame of polars
        source = source.collect()
    if hasattr(source, "iter_rows") and hasattr(source, "columns"):  # a frame of polars
        return lambda: source.iter_rows(named=True)
    if is_frame(source):
        _check_names([str(name) for name in source.columns], what)
        return lambda: _of_frame(source)
    if hasattr(source, "to_batches") and hasattr(source, "column_names"):  # an Arrow table
        _check_names(source.column_names, what)
        return lambda: (row for batch in source.to_batches(_ROWS) for row in batch.to_pylist())
    if hasattr(source, "with_format") and hasattr(source, "features"):  # a dataset: its values as they are stored
        return lambda: _of_dataset(source)
    if isinstance(source, Mapping):
        columns = {str(name): column_values(values, f"{what}: {name}") for name, values in source.items()}
        if len({len(values) for values in columns.values()}) > 1:
            lengths = ", ".join(f"{name} {len(values):,}" for name, values in columns.items())
            raise DataError(f"{what} has columns of different lengths ({lengths}): give one value per row in each")
        return lambda: (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    if isinstance(source, Sequence) and not isinstance(source, bytes):
        return lambda: _of_rows(source, what)
    raise DataError(
        f"{what} is a {type(source).__name__}: give a path, builtin:NAME, Pairs, a dataset, a data frame, an Arrow table, a "
        f"mapping from names of columns to lists, or a list of rows"
    )


def _of_dataset(source: Any) -> Iterator[Row]:
    """The rows of a dataset, as they are stored: its pictures are not decoded."""
    images = {name: each for name, each in (source.features or {}).items() if type(each).__name__ == "Image"}
    for name, feature in images.items():
        source = source.cast_column(name, type(feature)(decode=False))
    return _of_batches(source.with_format(None).iter(_ROWS_OF_BYTES if images else _ROWS))


def _of_batches(batches: Iterable[Mapping[str, list[Any]]]) -> Iterator[Row]:
    for batch in batches:
        for row in zip(*batch.values(), strict=True):
            yield dict(zip(batch, row, strict=True))


def from_hub(name: str, split: str) -> Any:
    """A dataset by its name in a hub, or a folder that `datasets` saved.

    Args:
        name: `NAME` or `NAME:CONFIGURATION`.
        split: the split to load.

    Raises:
        MissingDependencyError: the package datasets is not installed. DataError: the dataset cannot be loaded.
    """
    try:
        from datasets import load_dataset, load_from_disk
    except ImportError:
        raise MissingDependencyError("datasets", "datasets", f"the source hf:{name}") from None
    dataset, _, configuration = name.partition(":")
    try:
        if os.path.isdir(name):
            return load_from_disk(name)
        return load_dataset(dataset, configuration or None, split=split)
    except Exception as error:  # missing, without access, without a network: each in its own way
        raise DataError(
            f"hf:{name} cannot be loaded ({brief(error)}). Give the name of a dataset that this machine can reach, or a folder"
        ) from error


def is_frame(source: Any) -> bool:
    """Whether an object is a data frame of pandas; a Series, whose labels are attributes as well, is none."""
    return hasattr(source, "iloc") and hasattr(source, "columns") and getattr(source, "ndim", 0) == 2


def _check_names(columns: Sequence[str], what: str) -> None:
    """DataError if a name stands for several columns."""
    repeated = [name for name, count in Counter(columns).items() if count > 1]
    if repeated:
        raise DataError(f"{what} has several columns {repeated[0]!r}: give each a name of its own")


def _of_rows(source: Sequence[Any], what: str) -> Iterator[Row]:
    """Rows of a list; each has the columns of all, whichever row has them first."""
    rows = [row if isinstance(row, Mapping) else _named(row, f"{what}, row {i}") for i, row in enumerate(source)]
    columns = dict.fromkeys(name for row in rows for name in row)
    for row in rows:
        yield row if len(row) == len(columns) else {name: row.get(name) for name in columns}


def _of_frame(frame: Any) -> Iterator[Row]:
    for start in range(0, len(frame), _ROWS):
        for row in frame.iloc[start : start + _ROWS].to_dict("records"):
            # A missing cell is NaN here, or a missing value of another kind, which is not equal to itself either.
            yield {str(name): None if _missing(value) else _plain(value) for name, value in row.items()}


def _missing(value: Any) -> bool:
    if value is None or isinstance(value, str | list | tuple | Mapping) or hasattr(value, "shape"):
        return value is None
    return type(value).__name__ in ("NAType", "NaTType") or bool(value != value)


def _plain(value: Any) -> Any:
    """An array in a cell as a list."""
    return value.tolist() if hasattr(value, "tolist") else value


def _named(row: Any, where: str) -> Row:
    """A row without names of columns: query, positive, and what else there is as negatives."""
    if isinstance(row, str) or not isinstance(row, Sequence) or len(row) < 2:
        raise DataError(
            f"{where}: expected a mapping with named columns, or a tuple (query, positive), got {row!r:.80}"
        )
    fields = getattr(row, "_fields", None)
    if fields is not None:  # a named tuple
        return dict(zip(fields, row, strict=True))
    query, positive, *negatives = row
    return {"query": query, "positive": positive, "negatives": negatives}


def corpus_rows(corpus: Any, split: str, column: str | None) -> Callable[[], Located]:
    """Rows of additional documents in memory: a list or a column of texts, or a table as for `table_rows`."""
    what = "the corpus"
    polars = hasattr(corpus, "iter_rows") and hasattr(corpus, "columns")
    table = isinstance(corpus, Mapping) or hasattr(corpus, "column_names") or is_frame(corpus) or polars
    if table or (isinstance(corpus, Sequence) and len(corpus) and isinstance(corpus[0], Mapping)):
        return table_rows(corpus, split, what)
    if column is not None:
        raise UsageError(f"text_column={column!r} has no effect on a corpus that is a list of texts: leave it out")
    texts = column_values(corpus, what)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"{what}, row {i}: expected a text, got {text!r:.80}")
    return lambda: ((f"{what}, row {i}", {"text": text}) for i, text in enumerate(texts))
