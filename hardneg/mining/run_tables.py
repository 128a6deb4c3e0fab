"""The tables of a run, read from untrusted files: their columns, and that they fit each other and the dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hardneg.data.id_rows import IdRows
from hardneg.errors import RUN_DAMAGED, RunError
from hardneg.mining.candidates import Listed
from hardneg.storage.arrow import numbers, read_parquet, values_of

CANDIDATE_SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("document_id", pa.string()),
        ("rank", pa.int32()),
        ("score", pa.float32()),
        ("verdict", pa.string()),
    ]
)
NEGATIVE_SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("positive_ids", pa.list_(pa.string())),
        ("positive_scores", pa.list_(pa.float32())),
        ("negative_ids", pa.list_(pa.string())),
        ("negative_scores", pa.list_(pa.float32())),
        ("negative_ranks", pa.list_(pa.int32())),
        ("negative_false_probability", pa.list_(pa.float32())),
    ]
)


def read_candidates(path: Path, columns: list[str]) -> pa.Table:
    """Columns of a part of the candidates; RunError if one is missing, of another type, or lacks a value.

    Scores are finite.
    """
    table = read_parquet(path, columns)
    for name in columns:
        _check_type(path, name, table.column(name).type, CANDIDATE_SCHEMA.field(name).type)
        if table.column(name).null_count:
            raise RunError(
                f"{path}: {table.column(name).null_count} values of the column {name!r} are missing: {RUN_DAMAGED}"
            )
    if "score" in columns:
        _check_finite(path, "score", table.column("score"))
    return table


def read_negatives(path: Path, query_ids: pa.Array, document_ids: IdRows, *, positives_only: bool = False) -> pa.Table:
    """The table of negatives in `NEGATIVE_SCHEMA`, with one row for each query, in the order of `query_ids`.

    Args:
        path: the file.
        query_ids: the queries of the dataset; document_ids: its documents.
        positives_only: True: only the columns of the positives are read.

    Raises:
        RunError: a column is missing or of another type; the queries are not those of the dataset, in its order; a row
            has another number of scores than of ids; an id is unknown; or a score is not finite.
    """
    schema = pa.schema(list(NEGATIVE_SCHEMA)[:3]) if positives_only else NEGATIVE_SCHEMA
    table = read_parquet(path, schema.names)
    if len(set(table.column_names)) != len(table.column_names) or len(table.column_names) != len(schema.names):
        raise RunError(f"{path}: a column is there twice: {RUN_DAMAGED}")
    table = table.select(schema.names)
    for field in schema:
        _check_type(path, field.name, table.column(field.name).type, field.type)
    table = table.cast(schema)
    if len(table) != len(query_ids) or not table.column("query_id").combine_chunks().cast(pa.large_string()).equals(
        query_ids.cast(pa.large_string())
    ):
        raise RunError(f"{path}: its queries are not those of the run's dataset, in their order: {RUN_DAMAGED}")
    columns = {name: table.column(name).combine_chunks() for name in schema.names}
    _check_side(path, columns, ("positive_ids", "positive_scores"), document_ids)
    if positives_only:
        return table
    _check_side(path, columns, ("negative_ids", "negative_scores", "negative_ranks"), document_ids)
    probability = columns["negative_false_probability"]
    if probability.null_count not in (0, len(probability)):
        raise RunError(
            f"{path}: some values of 'negative_false_probability' are missing, and some are not: {RUN_DAMAGED}"
        )
    if not probability.null_count:
        _check_lists(path, "negative_false_probability", probability, columns["negative_ids"])
        chances = values_of(probability.flatten())
        if len(chances) and not (chances.min() >= 0 and chances.max() <= 1):  # false for NaN as well
            raise RunError(f"{path}: a probability is not from 0 to 1: {RUN_DAMAGED}")
    return table


def _check_side(path: Path, columns: dict[str, pa.Array], names: tuple[str, ...], document_ids: IdRows) -> None:
    """RunError if the lists of ids, scores (and ranks) differ in length, an id is unknown, or a score is not finite."""
    for name in names:
        _check_lists(path, name, columns[name], columns[names[0]])
    ids = columns[names[0]].flatten()
    found = document_ids.of(ids)
    if (found < 0).any():
        first = ids[int(np.argmax(found < 0))].as_py()
        raise RunError(f"{path}: the document id {first!r} is not in the run's dataset: {RUN_DAMAGED}")
    _check_finite(path, names[1], columns[names[1]].flatten())


FUSED = "fusion_score"


def source_columns(label: str) -> tuple[str, str]:
    """The columns of a source in the candidates: its rank and its score, null where it did not list the candidate."""
    return f"{label}_rank", f"{label}_score"


def listed_columns(listed: Listed, real: NDArray[np.bool_]) -> dict[str, pa.Array]:
    """What the sources say of the candidates, as columns: `fusion_score`, then rank and score of each source."""
    columns = {FUSED: numbers(listed.fused[real])}
    for label, ranks, scores in zip(listed.labels, listed.ranks, listed.scores, strict=True):
        rank, score = ranks[real], scores[real]
        for name, value, absent in zip(source_columns(label), (rank, score), (rank == 0, np.isnan(score)), strict=True):
            columns[name] = numbers(np.where(absent, 0, value).astype(value.dtype), absent)
    return columns


def read_listed(
    path: Path, labels: tuple[str, ...], rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]
) -> Listed:
    """What the sources say of the candidates of a part.

    Args:
        path: the file of the part.
        labels: the sources, as `run.json` names them.
        rows, columns: where each row of the file stands in arrays of this `shape`, `[n, K]`.

    Raises:
        RunError: a column is missing or of another type, a rank is below 1 or there twice, a score is there without a rank, is not
            finite, or the fused scores are not in order.
    """
    names = [FUSED, *(name for label in labels for name in source_columns(label))]
    table = read_parquet(path, names)
    ranks = np.zeros((len(labels), *shape), np.int32)
    scores = np.full((len(labels), *shape), np.nan, np.float32)
    fused = np.full(shape, np.nan, np.float32)
    for i, name in enumerate(names):
        is_rank = i % 2 == 1
        column = table.column(name)
        _check_type(path, name, column.type, pa.int32() if is_rank else pa.float32())
        if i == 0:
            if column.null_count:
                raise RunError(f"{path}: {column.null_count} values of the column {name!r} are missing: {RUN_DAMAGED}")
            _check_finite(path, name, column)
            fused[rows, columns] = values_of(column)
            continue
        _check_finite(path, name, column.drop_null())
        values = values_of(pc.fill_null(column, 0))
        there = values_of(pc.is_valid(column))
        (ranks if is_rank else scores)[(i - 1) // 2, rows[there], columns[there]] = values[there]
        if is_rank and there.any() and values[there].min() < 1:
            raise RunError(f"{path}: a rank of the column {name!r} is below 1: {RUN_DAMAGED}")
    listed = Listed(labels, ranks, scores, fused)
    _check_listed(path, listed)
    return listed


def _check_listed(path: Path, listed: Listed) -> None:
    """RunError if what the sources say contradicts itself."""
    with np.errstate(invalid="ignore"):
        if (listed.fused[:, 1:] > listed.fused[:, :-1]).any():
            raise RunError(f"{path}: candidates are not in the order of the column {FUSED!r}: {RUN_DAMAGED}")
    if ((listed.ranks == 0) & ~np.isnan(listed.scores)).any():
        raise RunError(f"{path}: a source gives a score without a rank: {RUN_DAMAGED}")
    if (~np.isnan(listed.fused) & (listed.ranks == 0).all(0)).any():
        raise RunError(f"{path}: a candidate is listed by no source: {RUN_DAMAGED}")
    ordered = np.sort(listed.ranks, axis=2)
    if ((ordered[:, :, 1:] == ordered[:, :, :-1]) & (ordered[:, :, 1:] > 0)).any():
        raise RunError(f"{path}: a source gives a rank twice: {RUN_DAMAGED}")


def check_ranking(path: Path, documents: np.ndarray, scores: np.ndarray, by_score: bool = True) -> None:
    """RunError if candidates are not in the order of their scores, or one of them is there twice.

    Args:
        path: the file that they come from.
        documents: int32 `[n, K]`, -1 where there is none.
        scores: float32 `[n, K]`, -inf where there is none.
        by_score: whether the order is that of the scores, not that of several sources.
    """
    if documents.shape[1] < 2:
        return
    if by_score and (scores[:, 1:] > scores[:, :-1]).any():
        raise RunError(f"{path}: candidates are not in the order of their scores: {RUN_DAMAGED}")
    ordered = np.sort(documents, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise RunError(f"{path}: a query has the same candidate twice: {RUN_DAMAGED}")


def positions(column: pa.ChunkedArray, ids: pa.Array | IdRows, path: Path) -> NDArray[np.int64]:
    """int64: the position of each id of `column` in `ids`; RunError if one is missing."""
    found = (ids if isinstance(ids, IdRows) else IdRows(ids)).of(column)
    if (found < 0).any():
        first = column[int(np.argmax(found < 0))].as_py()
        raise RunError(f"{path}: the id {first!r} is not in the run's dataset: {RUN_DAMAGED}")
    return found


def _check_type(path: Path, name: str, found: pa.DataType, wanted: pa.DataType) -> None:
    """RunError if a column is of a type that holds other values than the wanted one."""
    if pa.types.is_dictionary(found):
        found = found.value_type
    same = found == wanted or (pa.types.is_string(wanted) and pa.types.is_large_string(found))
    if pa.types.is_list(wanted) and (pa.types.is_list(found) or pa.types.is_large_list(found)):
        inner = found.value_type.value_type if pa.types.is_dictionary(found.value_type) else found.value_type
        same = inner == wanted.value_type or (pa.types.is_string(wanted.value_type) and pa.types.is_large_string(inner))
        same = same or (name == "negative_false_probability" and pa.types.is_null(inner))
    if not same:
        raise RunError(f"{path}: the column {name!r} is {found}, expected {wanted}: {RUN_DAMAGED}")


def _check_lists(path: Path, name: str, column: pa.ListArray, like: pa.ListArray) -> None:
    """RunError if a list is missing, is longer or shorter than that of another column, or lacks a value."""
    if column.null_count or column.flatten().null_count:
        raise RunError(f"{path}: a value of the column {name!r} is missing: {RUN_DAMAGED}")
    if not np.array_equal(values_of(column.value_lengths()), values_of(like.value_lengths())):
        raise RunError(f"{path}: the column {name!r} has lists of another length than the ids: {RUN_DAMAGED}")


def _check_finite(path: Path, name: str, column: pa.Array | pa.ChunkedArray) -> None:
    if len(column) and not np.isfinite(values_of(column)).all():
        raise RunError(f"{path}: a value of the column {name!r} is NaN or infinite: {RUN_DAMAGED}")
