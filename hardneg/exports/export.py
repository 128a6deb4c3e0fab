"""Export the negatives of a run in the formats that training libraries read."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hardneg.data.id_rows import IdRows
from hardneg.data.pairs import Pairs
from hardneg.data.picture import Picture
from hardneg.data.texts import shown
from hardneg.errors import DataError, UsageError, suggestion
from hardneg.exports.folders import CORPUS_FILES, FOLDERS, write_beir, write_with_corpus
from hardneg.exports.layouts import LAYOUTS, NEED_ALL, NEED_NEGATIVE, NEED_POSITIVE, Asked, Block, Docs
from hardneg.exports.taught import taught_by, teacher_of
from hardneg.exports.writers import (
    BLOCK_QUERIES,
    NO_NEGATIVE,
    Exported,
    json_lines,
    qrels_lines,
    trec_lines,
    triple_lines,
    write_csv,
    write_parquet,
    write_text,
)
from hardneg.memory import release
from hardneg.mining.run import Run
from hardneg.mining.teachers import TeacherScores
from hardneg.storage.arrays import Ragged
from hardneg.storage.arrow import numbers, strings, values_of
from hardneg.storage.files import is_special
from hardneg.storage.folders import entries, marker
from hardneg.storage.outputs import check_place
from hardneg.storage.remote import refuse_url

EXPORT_FORMATS = (*LAYOUTS, "trec", "qrels", "beir")

_logger = logging.getLogger("hardneg")

_LINES = ("trec", "qrels", "msmarco")  # formats of lines, in a file of any name

SHORT = ("skip", "null")

SUFFIXES = (".jsonl", ".parquet", ".csv", ".tsv")

Int = NDArray[np.int64]


def export(
    run: Run | str | Path,
    format: str,
    out: str | Path,
    *,
    scores: bool | str = False,
    ids: bool = False,
    false_probability: bool = False,
    short: str = "skip",
    max_positives: int | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the negatives of a run in an export format.

    Args:
        run: a finished run, or its folder.
        format: one of `EXPORT_FORMATS`.
        out: a file ending in .jsonl, .parquet, .csv or .tsv, or `-` for JSON lines on standard output; any file name
            for trec, qrels and msmarco; a folder for beir, tevatron-corpus and pylate.
        scores: whether to write the scores from mining (True or `encoder`), or those of a teacher: `teacher`, or `teacher:NAME`
            (see `hardneg.score`). Formats that always hold scores, such as margin-mse and pylate, take them from there.
        ids: whether to write ids beside the texts, in formats that have texts only.
        false_probability: whether to write how likely each negative is relevant, by the posterior of the run.
        short: what to do with queries that have no negatives, or for n-tuple fewer than asked: `skip` leaves them out, as
            training libraries end in an error there; `null` writes an empty list, or fills an n-tuple up with nulls.
        max_positives: the most positives to use of a query, those with the highest scores; None: all.
        overwrite: replace `out` if it exists.

    Returns:
        Counts of what was written and left out. A query without a positive, for example, fits no triplet or n-tuple.

    Raises:
        UsageError: an option cannot be used. DataError: `out` exists, or an id does not fit the format.
    """
    if format not in EXPORT_FORMATS:
        raise UsageError(f"unknown export format {format!r}.{suggestion(format, EXPORT_FORMATS)}")
    _check_short(short)
    refuse_url(out, "an export")
    path = Path(out)
    _check_name(path, format)
    _check_place(path, format, overwrite)
    run = run if isinstance(run, Run) else Run(run)
    pairs, report = run.pairs(), Exported()
    if format == "qrels":
        write_text(path, qrels_lines(pairs, report))
        return report
    if format in LAYOUTS:
        tables = tables_of(
            run, format, report, scores=scores, ids=ids, false_probability=false_probability, short=short,
            max_positives=max_positives, pairs=pairs,
        )  # fmt: skip
        _write(format, tables, pairs, path)
        return report
    blocks = _blocks(run, pairs, max_positives, False, teacher_of(run, pairs, scores))
    if format == "beir":
        _say_if_nameless(pairs)
        write_beir(run, pairs, blocks, path, report)
    else:
        write_text(path, trec_lines(blocks, report))
    return report


def _say_if_nameless(pairs: Pairs) -> None:
    """Warn of pictures that are exported by names which nobody can open: those inside of tables, archives or memory."""
    for side, items in (("queries", pairs.queries), ("documents", pairs.documents)):
        some = items.slice(0, min(1000, items.rows)) if items.pictures else []
        inside = [each for each in some if isinstance(each, Picture) and each.offset >= 0]
        if inside:
            _logger.warning(
                f"the pictures of the {side} stand inside of other files or came from memory, and the export has only their names, "
                f"such as {shown(str(inside[0]))}: mine a folder of picture files, or train from the run itself (hardneg.Examples, "
                f"HardNegatives)"
            )


def _check_name(path: Path, format: str) -> None:
    """UsageError if the name of a file does not say what is in it."""
    if format in _LINES or format in FOLDERS:
        if path.suffix in SUFFIXES and not (format in _LINES and path.suffix == ".tsv"):
            what = "lines of text" if format in _LINES else "a folder"
            raise UsageError(
                f"--out {path}: the format {format} is {what}, so a name that ends in {path.suffix} would mislead"
            )
    elif not _is_stream(path) and path.suffix not in SUFFIXES:
        raise UsageError(
            f"--out {path}: the name must end in one of {', '.join(SUFFIXES)}, or be '-' for JSON lines on stdout"
        )


def _is_stream(path: Path) -> bool:
    return str(path) == "-" or is_special(path)


def _check_short(short: str) -> None:
    if short not in SHORT:
        raise UsageError(f"unknown value {short!r} of short.{suggestion(short, SHORT)}")


def tables_of(
    run: Run,
    format: str,
    report: Exported,
    *,
    scores: bool | str,
    ids: bool,
    false_probability: bool,
    short: str,
    max_positives: int | None,
    pairs: Pairs | None = None,
) -> Iterator[pa.Table]:
    """The tables of an export, block by block. The arguments are those of `export`; `report` receives the counts."""
    _check_short(short)
    _check_parts(format, bool(scores), ids)
    pairs = run.pairs() if pairs is None else pairs
    _say_if_nameless(pairs)
    asked = Asked(bool(scores), ids, int(run.info["config"]["negatives"]))
    blocks = _blocks(run, pairs, max_positives, false_probability, teacher_of(run, pairs, scores))
    return _tables(format, blocks, report, asked, short)


def _write(format: str, tables: Iterator[pa.Table], pairs: Pairs, path: Path) -> None:
    if format in CORPUS_FILES:
        write_with_corpus(format, tables, pairs, path)
    elif format == "msmarco":
        write_text(path, triple_lines(tables))
    elif path.suffix == ".parquet":
        write_parquet(tables, path)
    elif path.suffix not in (".csv", ".tsv"):  # also '-' and devices: JSON lines
        write_text(path, json_lines(tables))
    else:
        write_csv(tables, path)


def _check_place(path: Path, format: str, overwrite: bool) -> None:
    """Raise an error if the format cannot be written to `path`, or if something is there that may not be replaced."""
    if format in FOLDERS:
        if str(path) == "-" or (path.exists() and not path.is_dir()):
            raise UsageError(f"--out {path}: an export as {format} is a folder, give the name of one")
        if entries(path) and not marker(path, format).exists():
            raise DataError(f"{path} holds files, but no {format} export of hardneg: choose another --out")
        check_place(path / "corpus.jsonl")
        if not entries(path):
            return
    elif path.is_dir():
        raise UsageError(f"--out {path} is a folder: give the name of a file")
    if _is_stream(path):
        return
    check_place(path)
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists: choose another --out, or replace it with --overwrite")


def _blocks(
    run: Run, pairs: Pairs, max_positives: int | None, chances: bool, teacher: TeacherScores | None
) -> Iterator[Block]:
    """The queries of a run in blocks of `BLOCK_QUERIES`, with the texts of their documents; at least one block."""
    table = run.negatives(pairs)
    empty, space = strings(["", " "])
    rows_of = IdRows(pairs.query_ids).of(table["query_id"])
    both = [_docs(table, name, pairs) for name in ("positive", "negative")]
    if teacher is not None:
        both = [taught_by(teacher, side, rows_of) for side in both]
    if chances:
        both[1] = replace(both[1], chances=_chances(run, table))
    for start in range(0, max(1, len(table)), BLOCK_QUERIES):
        release()
        block = np.arange(start, min(start + BLOCK_QUERIES, len(table)))
        sides = [side.take(block) for side in both]
        if max_positives is not None:
            sides[0] = sides[0].best(max_positives)
        rows, place = np.unique(np.concatenate([side.lists.values for side in sides]), return_inverse=True)
        cut = len(sides[0].lists.values)
        positives, negatives = (
            replace(side, lists=Ragged(side.lists.offsets, part))
            for side, part in zip(sides, np.split(place.ravel().astype(np.int64), [cut]), strict=True)
        )
        ids = table["query_id"].slice(start, len(block)).combine_chunks()
        queries = pairs.queries.columns(rows_of[block])
        documents = pairs.documents.columns(rows)
        title, text = documents["title"].combine_chunks(), documents["text"].combine_chunks()
        joined = pc.utf8_trim_whitespace(pc.binary_join_element_wise(title, text, space))
        yield Block(
            ids,
            queries["text"].combine_chunks(),
            positives,
            negatives,
            pairs.document_ids.take(numbers(rows)),
            title,
            text,
            pc.if_else(pc.equal(title, empty), text, joined),
        )


def _docs(table: pa.Table, side: str, pairs: Pairs) -> Docs:
    """The documents of one side, `positive` or `negative`: their rows in the dataset, and their scores."""
    ids, scores = (table[f"{side}_{name}"].combine_chunks() for name in ("ids", "scores"))
    rows = pairs.document_rows_of.of(ids.flatten())
    offsets = np.concatenate([[0], np.cumsum(values_of(ids.value_lengths()), dtype=np.int64)])
    return Docs(Ragged(offsets, rows), values_of(scores.flatten()))


def _chances(run: Run, table: pa.Table) -> NDArray[np.float32]:
    """float32 `[m]`: how likely each negative is relevant. Raises UsageError if no posterior said so."""
    column = table["negative_false_probability"].combine_chunks()
    if column.null_count:
        raise UsageError(
            f"{run.folder} does not say how likely its negatives are relevant: select them with a posterior first (hardneg "
            f"calibrate, then hardneg select --add-filter posterior:FILE)"
        )
    return np.asarray(values_of(column.flatten()), np.float32)


def _check_parts(format: str, scores: bool, ids: bool) -> None:
    """UsageError for parts that a format has no place for."""
    if format == "ms-swift" and (scores or ids):
        raise UsageError(f"the format ms-swift has no place for {'scores' if scores else 'ids'}: leave them out")


NO_POSITIVE = "without a positive"

TOO_FEW = "with fewer negatives than asked"

_ROW_A_NEGATIVE = ("triplet", "margin-mse", "msmarco")  # without a negative, they have no row anyway


def _tables(format: str, blocks: Iterator[Block], report: Exported, asked: Asked, short: str) -> Iterator[pa.Table]:
    """One table for each block. Queries that the format cannot hold are left out, and counted in `report`."""
    for block in blocks:
        needs = {NO_POSITIVE: block.positives.lists.lengths > 0} if format in NEED_POSITIVE else {}
        if format in NEED_NEGATIVE and (short == "skip" or format in _ROW_A_NEGATIVE):
            needs[NO_NEGATIVE] = block.negatives.lists.lengths > 0
        if format == "pylate" or (format in NEED_ALL and short == "skip"):
            needs[TOO_FEW] = block.negatives.lists.lengths >= asked.count
        keep = np.ones(len(block.ids), bool)
        for reason, holds in needs.items():
            if missing := int((keep & ~holds).sum()):
                report.left_out[reason] += missing
            keep &= holds
        table = LAYOUTS[format](block.rows(keep), asked)
        report.queries += int(keep.sum())
        report.rows += len(table)
        yield table
