"""Reads scores of pairs that are named by their ids: what a reranker or an API gave, elsewhere.

rows of a query id, a document id and a score, in any container that datasets are read from
rows of FlagEmbedding with `pos_scores` and `neg_scores`, and the ids beside the texts (`query_id`, `pos_id`, `neg_id`)
lines of a TREC run, or of three columns: a file with another suffix, or one named .tsv that has no header
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hardneg import registry
from hardneg.data.columns import as_id, as_list, as_number, find_column, is_number, need_cells
from hardneg.data.readers.files import SUFFIXES, located_blocks, source_files, suffix_of
from hardneg.data.readers.pair_rows import DOCUMENT_ID_COLUMNS, GRADE_COLUMNS, QUERY_ID_COLUMNS
from hardneg.data.readers.rows import Block, Row, names, read_blocks
from hardneg.data.readers.separated import separated, separated_fields
from hardneg.data.readers.trec_lines import OnlyRanks, trec_lines
from hardneg.data.texts import shown
from hardneg.errors import DataError
from hardneg.storage.arrow import check_regular, values_of

Scores = NDArray[np.float64]

Found = tuple[str, str, str, float]  # the place of a score, the ids of its query and document, and the score

AddBlock = Callable[[pa.Array, pa.Array, Scores], None]  # takes query ids, document ids and scores, `[m]` each

_HELD = 1 << 16  # scores that are read one by one and passed on at once

# The id of a triplet's positive is not that of the document that its score is of.
_COLUMNS = {
    "query id": QUERY_ID_COLUMNS,
    "document id": tuple(name for name in DOCUMENT_ID_COLUMNS if name != "positive_id"),
    "score": GRADE_COLUMNS,
}

_LISTS = ("pos_scores", "neg_scores")

_HEADER = ("query_id", "document_id", "score")

_FORMS = (
    "a file of scores has the columns query_id, document_id and score, is a TREC run, or has rows with pos_scores and neg_scores "
    "beside pos_id and neg_id"
)

_LARGEST = float(np.finfo(np.float32).max)


def read_scores(path: Path, add: AddBlock) -> int:
    """Read scores of pairs of ids, in the order of the file or files.

    Args:
        path: a file, a pattern of files, or a folder, as in `located_rows`; a file with another suffix holds lines of a TREC run.
        add: takes the scores, block after block; each is finite, as a number of 32 bits too.

    Returns:
        The number of scores.

    Raises:
        DataError: there is no score, or one is malformed; the message names the file and the line.
    """
    held = _Held(add)
    for file, saved in _files(path):
        _read_file(file, saved, held)
        held.flush()
    if not held.total:
        raise DataError(f"{path} holds no score: {_FORMS}")
    return held.total


def places_of(path: Path, wanted: list[int]) -> list[str]:
    """Where the scores of these numbers, counted from 0 as `read_scores` gives them, stand: the file and the line."""
    counter = _Counter(set(wanted))
    for file, saved in _files(path):
        _read_file(file, saved, counter)
    return [counter.places[number] for number in wanted]


class _Held:
    """Passes scores on in blocks, those that are read one by one as well."""

    bulk = True

    def __init__(self, add: AddBlock) -> None:
        self.add, self.total = add, 0
        self._rows: list[tuple[str, str, float]] = []

    def one(self, found: Found) -> None:
        self._rows.append(found[1:])
        if len(self._rows) == _HELD:
            self.flush()

    def block(self, queries: pa.Array, documents: pa.Array, scores: Scores) -> None:
        self.flush()
        self.total += len(scores)
        self.add(queries, documents, scores)

    def flush(self) -> None:
        if not self._rows:
            return
        queries, documents, scores = zip(*self._rows, strict=True)
        self._rows = []
        self.total += len(scores)
        text = pa.large_string()
        self.add(pa.array(queries, text), pa.array(documents, text), np.array(scores, np.float64))


class _Counter:
    """Notes the places of some scores."""

    bulk = False

    def __init__(self, wanted: set[int]) -> None:
        self.wanted, self.total = wanted, 0
        self.places: dict[int, str] = {}

    def one(self, found: Found) -> None:
        if self.total in self.wanted:
            self.places[self.total] = found[0]
        self.total += 1

    def block(self, queries: pa.Array, documents: pa.Array, scores: Scores) -> None:
        raise AssertionError("scores are counted one by one")


def _files(path: Path) -> Iterator[tuple[Path, bool]]:
    """The files of a path, and whether it is the folder of a saved dataset instead."""
    files = source_files(path)
    if files is None:
        yield path, True
        return
    for file in files:
        check_regular(file, DataError)  # it may be read twice, which a pipe does not allow
        yield file, False


def _read_file(path: Path, saved: bool, into: _Held | _Counter) -> None:
    if saved:
        _read_rows(located_blocks(path), into)
        return
    suffix = suffix_of(path)
    header: tuple[str, ...] | None = None
    lines = suffix not in SUFFIXES and suffix not in registry.names("reader")
    if suffix in (".csv", ".tsv"):
        header, lines = _without_header(path, suffix)
    if lines:
        _read_lines(path, into)
    elif header is not None:
        _read_rows(iter([Block(lambda: separated(path, ",", header))]), into)
    else:
        _read_rows(located_blocks(path), into)


def _without_header(path: Path, suffix: str) -> tuple[tuple[str, ...] | None, bool]:
    """(the names of the columns of a CSV file that has no header; whether a TSV file has the lines of a ranking)."""
    delimiter = "," if suffix == ".csv" else "\t"
    first = next(separated_fields(path, delimiter, "quotes" if delimiter == "," else "none"), None)
    if first is None:
        return None, False
    where, fields = first
    if delimiter == "\t" and len(fields) == 1:
        fields = fields[0].split()  # spaces between the fields, as in TREC runs
    known = {name.lower() for words in _COLUMNS.values() for name in (*words, *_LISTS)}
    if any(field.strip().lower() in known for field in fields) or not any(map(is_number, fields[2:])):
        return None, False
    if delimiter == "\t":
        return None, True
    if len(fields) != len(_HEADER):
        raise DataError(
            f"{where}: this file has no header, and {len(fields)} columns: write the names of its columns into its first line, such "
            f"as {', '.join(_HEADER)}"
        )
    return _HEADER, False


def _read_lines(path: Path, into: _Held | _Counter) -> None:
    ranks, name = OnlyRanks(), str(path)
    for line in trec_lines(path):
        ranks.look(line)
        into.one((f"{name}, line {line.number}", line.query, line.document, line.score))
    if ranks:
        raise DataError(
            f"{path}: the third of its three columns counts 1, 2, 3, ... for each query: these are ranks, and a teacher gives scores. "
            f"Write its scores there; for candidates in the order of ranks see hardneg mine --candidates {shlex.quote(f'trec:{path}')}"
        )


def _read_rows(blocks: Iterator[Block], into: _Held | _Counter) -> None:
    columns: list[str] = []

    def known(where: str, first: Row) -> list[str]:
        if not columns:
            columns.extend(_columns(where, first))
        return columns

    def take(block: Block, where: str, first: Row) -> bool:
        if not into.bulk or _has_lists(first):
            return False
        found = _as_arrays(block.table(first), known(where, first))
        if found is not None:
            into.block(*found)
        return found is not None

    def add(where: str, row: Row) -> None:
        if _has_lists(row):
            for each in _of_lists(where, row):
                into.one(each)
            return
        wanted = known(where, row)
        need_cells(row, tuple(wanted), where)
        query, document, score = (row[name] for name in wanted)
        into.one((where, as_id(query, where), as_id(document, where), _score(score, where)))

    read_blocks(blocks, take, add)


def _columns(where: str, row: Row) -> list[str]:
    """The columns of query id, document id and score; DataError if the row lacks one."""
    found = []
    for what, usual in _COLUMNS.items():
        column = find_column(row, None, usual, where)
        if column is None:
            raise DataError(
                f"{where}: no column looks like a {what}; it has: {names(row) or 'none'}. Usual names: {names(usual)}. "
                f"{_FORMS[0].upper()}{_FORMS[1:]}"
            )
        found.append(column)
    return found


def _as_arrays(table: pa.Table | None, columns: list[str]) -> tuple[pa.Array, pa.Array, Scores] | None:
    """The columns of a table; None if something in it may be wrong, so that its rows are looked at one by one."""
    if table is None or set(columns) - set(table.column_names) or set(_LISTS) & set(table.column_names):
        return None
    ids = []
    for name in columns[:2]:
        column = table.column(name).combine_chunks()
        text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        if column.null_count or not (text or pa.types.is_integer(column.type)):
            return None
        column = column.cast(pa.large_string())
        if len(column) and pc.min(pc.binary_length(column)).as_py() == 0:
            return None
        ids.append(column)
    column = table.column(columns[2])
    if column.null_count or pa.types.is_boolean(column.type):
        return None
    try:
        scores = values_of(column.cast(pa.float64()))
    except (pa.ArrowException, ValueError):
        return None
    if not (np.abs(scores) <= _LARGEST).all():  # NaN is not, either
        return None
    return ids[0], ids[1], scores


def _score(value: object, where: str) -> float:
    score = as_number(value, "score", where)
    if abs(score) > _LARGEST:
        raise DataError(
            f"{where}: the score is {shown(value)}, expected a number of 32 bits, of {_LARGEST:.3g} at most"
        )
    return score


def _has_lists(row: Row) -> bool:
    return any(name in row for name in _LISTS)


def _of_lists(where: str, row: Row) -> Iterator[Found]:
    """The scores of a row of FlagEmbedding."""
    column = find_column(row, None, QUERY_ID_COLUMNS, where)
    for side in ("pos", "neg"):
        if not row.get(f"{side}_scores"):
            continue
        ids = row.get(f"{side}_id")
        if column is None or ids is None:
            lacks = "query_id" if column is None else f"{side}_id"
            raise DataError(
                f"{where}: there are {side}_scores, but no {lacks!r} to tell whose they are: export with ids (hardneg export RUN "
                f"--format flagembedding --ids), and score that file"
            )
        ids, scores = as_list(ids, f"{side}_id", where), as_list(row[f"{side}_scores"], f"{side}_scores", where)
        if len(ids) != len(scores):
            raise DataError(f"{where}: {len(scores)} {side}_scores, but {len(ids)} ids in {side}_id")
        for id, score in zip(ids, scores, strict=True):
            yield where, as_id(row[column], where), as_id(id, where), _score(score, where)
