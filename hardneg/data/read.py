"""`read_pairs` reads a dataset from any supported source.

A source is a BEIR folder, a saved Hugging Face dataset, a file of pairs (JSON lines, CSV, TSV, Parquet, FlagEmbedding,
Tevatron) or a built-in dataset. Its content is untrusted: every error names the file and the line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from hardneg import registry
from hardneg.data.builder import Builder
from hardneg.data.options import FORMATS, ReadOptions
from hardneg.data.pairs import Pairs
from hardneg.data.readers.beir import read_beir
from hardneg.data.readers.corpus import read_corpus
from hardneg.data.readers.flagembedding import FlagEmbeddingRows
from hardneg.data.readers.pair_rows import PairRows
from hardneg.data.readers.rows import Located, Row, exists, json_lines, located_rows
from hardneg.data.readers.tevatron import TevatronRows
from hardneg.errors import DataError, UsageError, suggestion
from hardneg.storage.arrow import brief

BUILTIN_SPLITS = ("train", "test")


def read_pairs(source: str, options: ReadOptions | None = None, folder: Path | None = None) -> Pairs:
    """Read a dataset.

    Args:
        source: a path, `-` for JSON lines on standard input, or `builtin:NAME`.
        options: how to read it; by default, format and columns are guessed.
        folder: a folder to write the dataset to, so that memory use does not grow with the texts; None keeps the texts
            in memory.

    Raises:
        DataError: the source does not exist or its content is wrong; the message names the file and the line.
        UsageError: the format, the built-in dataset or its split is unknown.
    """
    options = options or ReadOptions()
    if options.format not in FORMATS:
        raise UsageError(f"unknown format {options.format!r}.{suggestion(options.format, FORMATS)}")
    builder = Builder(folder)
    keep = None
    if source.startswith("builtin:"):
        _read_builtin(source.removeprefix("builtin:"), options.split, builder)
    elif source == "-":
        _read_rows(_standard_input(), builder, options, "standard input")
    else:
        path = Path(source)
        if not exists(path):
            raise DataError(
                f"{source} does not exist; SOURCE is a file, a folder, '-' or builtin:NAME (as in builtin:pycode)"
            )
        if path.is_dir() and exists(path / "corpus.jsonl"):
            keep = read_beir(path, builder, options.split, options.skip_unknown)
        else:
            _read_rows(located_rows(path, options.split), builder, options, str(path))
    if options.corpus is not None:
        read_corpus(options.corpus, builder, options)
    return Pairs.from_contents(builder.finish(source, keep))


def _standard_input() -> Located:
    """The rows of JSON lines on standard input."""
    if sys.stdin is None:
        raise DataError("standard input is closed: pipe JSON lines to it")
    try:
        yield from json_lines(sys.stdin.buffer, "standard input")
    except OSError as error:  # it is a folder, for example
        raise DataError(f"standard input cannot be read ({brief(error)}): pipe JSON lines to it") from None


def _read_builtin(name: str, split: str, builder: Builder) -> None:
    read = registry.find("dataset", name, "built-in dataset")
    if split not in BUILTIN_SPLITS:
        raise UsageError(f"builtin:{name} has no split {split!r}.{suggestion(split, BUILTIN_SPLITS)}")
    read(split, builder)


def _read_rows(rows: Located, builder: Builder, options: ReadOptions, name: str) -> None:
    """Read rows of pairs. The first row tells the layout, unless `options.format` names it."""
    first = next(rows, None)
    if first is None:
        raise DataError(f"{name}: there are no rows, so there is nothing to mine negatives for")
    kind = options.format
    if kind in ("auto", "beir"):
        kind = (
            "tevatron" if "positive_passages" in first[1]
            else "flagembedding" if isinstance(first[1].get("pos"), list) and "query" in first[1]
            else "pairs"
        )  # fmt: skip
    add: Callable[[str, Row], None]
    if kind == "tevatron":
        add = TevatronRows(builder)
    elif kind == "flagembedding":
        add = FlagEmbeddingRows(builder)
    else:
        add = PairRows(builder, options, first)
    add(*first)
    for where, row in rows:
        add(where, row)
