"""Exports that are folders: BEIR, and tables of ids beside a corpus of texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from hardneg.data.pairs import Pairs
from hardneg.data.texts import shown
from hardneg.errors import DataError
from hardneg.exports.layouts import Block
from hardneg.exports.writers import BLOCK_QUERIES, Exported, check_ids, json_lines, pylists, write_text
from hardneg.storage.files import atomic_path
from hardneg.storage.folders import marker

if TYPE_CHECKING:
    from hardneg.mining.run import Run

# By format, the files of texts: which side, and the name of its ids.
CORPUS_FILES = {
    "tevatron-corpus": {"corpus.jsonl": ("documents", "docid")},
    "pylate": {"queries.jsonl": ("queries", "query_id"), "documents.jsonl": ("documents", "document_id")},
}

FOLDERS = ("beir", *CORPUS_FILES)


def file_name(name: object, what: str) -> str:
    """A name that comes from a run, checked before it becomes part of a path.

    Args:
        name: the name.
        what: what it names, for the message.

    Raises:
        DataError: it could lead out of the folder, or is no name that every file system takes.

    >>> file_name("train", "the split")
    'train'
    """
    good = (
        isinstance(name, str) and name.isprintable() and name.strip(". ") == name != ""
        and not set(name) & set('/\\:*?"<>|') and len(name.encode("utf-8", "replace")) <= 200
    )  # fmt: skip
    if not good:
        raise DataError(
            f"run.json names {what} {shown(name)}, which cannot be part of a file name: export in another format"
        )
    return str(name)


def write_beir(run: Run, pairs: Pairs, blocks: Iterator[Block], path: Path, report: Exported) -> None:
    """Write a BEIR folder: corpus.jsonl, queries.jsonl, and qrels/SPLIT.tsv with score 1 for positives and 0 for negatives."""
    split = file_name(run.info["config"]["read"].get("split"), "the split")
    check_ids(
        *_judged_ids(run, pairs)
    )  # before anything is written, or a refusal would leave half a folder, and no old labels
    path.mkdir(parents=True, exist_ok=True)
    marker(path, "beir").touch()
    # As above: the labels of an earlier export go first, and those of this one come last.
    for other in (path / "qrels").glob("*.tsv"):
        other.unlink()
    write_text(path / "corpus.jsonl", _corpus_lines(pairs))
    with (
        atomic_path(path / "qrels" / f"{split}.tsv") as temporary,
        open(temporary, "w", encoding="utf-8") as qrels,
        atomic_path(path / "queries.jsonl") as temporary_queries,
        open(temporary_queries, "w", encoding="utf-8") as queries,
    ):
        qrels.write("query-id\tcorpus-id\tscore\n")
        for block in blocks:
            ids = block.document_ids.to_pylist()
            sides = pylists(block.positives, ids), pylists(block.negatives, ids)
            for query, text, *lists in zip(block.ids.to_pylist(), block.queries.to_pylist(), *sides, strict=True):
                report.queries += 1
                queries.write(json.dumps({"_id": query, "text": text}, ensure_ascii=False) + "\n")
                for (documents, _), score in zip(lists, (1, 0), strict=True):
                    report.rows += len(documents)
                    qrels.writelines(f"{query}\t{document}\t{score}\n" for document in documents)


def _judged_ids(run: Run, pairs: Pairs) -> Iterator[str]:
    """The ids that stand in the labels of a run: those of queries, and of documents that are a positive or a negative."""
    table = run.negatives(pairs)
    for name in ("query_id", "positive_ids", "negative_ids"):
        for chunk in table[name].chunks:
            yield from (chunk if name == "query_id" else chunk.flatten()).unique().to_pylist()


def _corpus_lines(pairs: Pairs) -> Iterator[str]:
    """The lines of corpus.jsonl."""
    for ids, table in _documents(pairs):
        for id, title, text in zip(ids, table["title"].to_pylist(), table["text"].to_pylist(), strict=True):
            yield json.dumps({"_id": id, "title": title, "text": text}, ensure_ascii=False) + "\n"


def _documents(pairs: Pairs) -> Iterator[tuple[list[str], pa.Table]]:
    for start in range(0, len(pairs.document_ids), BLOCK_QUERIES):
        rows = np.arange(start, min(start + BLOCK_QUERIES, len(pairs.document_ids)))
        yield pairs.document_ids.slice(start, len(rows)).to_pylist(), pairs.documents.columns(rows)


def write_with_corpus(format: str, tables: Iterator[pa.Table], pairs: Pairs, path: Path) -> None:
    """Write a folder: `train.jsonl` with ids, and the texts in files of their own.

    Args:
        format: one of `CORPUS_FILES`.
        tables: the rows of `train.jsonl`.
        pairs: the dataset; all of its documents are written.
        path: the folder.
    """
    path.mkdir(parents=True, exist_ok=True)
    marker(path, format).touch()
    # The rows go first and come last: an export that is interrupted has none, rather than some of an earlier one.
    (path / "train.jsonl").unlink(missing_ok=True)
    for name, (side, id_name) in CORPUS_FILES[format].items():
        write_text(path / name, _text_lines(pairs, side, id_name))
    write_text(path / "train.jsonl", json_lines(tables))


def _text_lines(pairs: Pairs, side: str, id_name: str) -> Iterator[str]:
    """Lines with id and text; title and text of a document are joined."""
    ids, texts = (pairs.query_ids, pairs.queries) if side == "queries" else (pairs.document_ids, pairs.documents)
    for start in range(0, len(ids), BLOCK_QUERIES):
        stop = min(start + BLOCK_QUERIES, len(ids))
        for id, text in zip(ids.slice(start, stop - start).to_pylist(), texts.slice(start, stop), strict=True):
            yield json.dumps({id_name: id, "text": text}, ensure_ascii=False) + "\n"
