"""`read_pairs` reads a dataset from any supported source.

A source is a BEIR folder, a saved Hugging Face dataset, a file of rows in one of several layouts, several such files, or a
built-in dataset. What it is, is told by its content: a path becomes rows (`readers.files`), the first row tells the layout,
and the layout adds queries, documents and judgements to the builder. The content is untrusted: every error names the file
and the line.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from hardneg import registry
from hardneg.data.builder import Builder
from hardneg.data.options import ReadOptions
from hardneg.data.pairs import Pairs
from hardneg.data.readers.beir import beir_part, is_beir, read_beir
from hardneg.data.readers.corpus import add_corpus, read_corpus
from hardneg.data.readers.files import located_blocks, located_rows, numbered_files, present, static_folder
from hardneg.data.readers.flagembedding import FlagEmbeddingRows, LabeledListRows
from hardneg.data.readers.image_rows import ImageRows, image_column
from hardneg.data.readers.image_sources import is_image_source, read_images
from hardneg.data.readers.json_rows import json_rows
from hardneg.data.readers.layout import Layout
from hardneg.data.readers.llama_index import LlamaIndexRows
from hardneg.data.readers.pair_rows import PairRows
from hardneg.data.readers.passages import ChatRows, DprRows, MarcoRows, SquadRows
from hardneg.data.readers.rows import Block, Located, Row, read_blocks
from hardneg.data.readers.separated import separated
from hardneg.data.readers.tevatron import TevatronIds, TevatronRows
from hardneg.data.readers.triples import ID_COLUMNS, TripleIds, header_of
from hardneg.data.tables import corpus_rows, from_hub, is_path, table_rows
from hardneg.errors import DataError, UsageError, suggestion
from hardneg.progress import Progress, with_progress
from hardneg.storage.arrow import brief
from hardneg.storage.files import check_name
from hardneg.storage.remote import as_url, fetch, is_url, naming

BUILTIN_SPLITS = ("train", "test")


# Every layout that can be told by its first row: `fits` says whether a row is of its kind. What none of them fits is read
# as pairs, by the names of the columns.
LAYOUTS: tuple[Any, ...] = (
    TevatronRows, TevatronIds, DprRows, MarcoRows, ChatRows, SquadRows, FlagEmbeddingRows, LabeledListRows, LlamaIndexRows,
)  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """The rows of a source, which can be read more than once.

    Attributes:
        name: what messages call the source.
        open: begins a new pass over the rows.
        root: the folder that paths in the rows are relative to; None: there is none.
        blocks: begins a new pass over the rows in blocks; None: there is no other way than row by row.
    """

    name: str
    open: Callable[[], Located]
    root: Path | None = None
    blocks: Callable[[], Iterator[Block]] | None = None

    def in_blocks(self) -> Iterator[Block]:
        """A new pass over the rows in blocks; one block, if there is no other way than row by row."""
        return iter([Block(self.open)]) if self.blocks is None else self.blocks()

    def column(self, name: str) -> Iterator[Any]:
        """All values of a column."""
        return (row.get(name) for _, row in self.open())


@with_progress
def read_pairs(
    source: Any,
    options: ReadOptions | None = None,
    folder: Path | None = None,
    *,
    corpus: Any = None,
    fetched: Path | None = None,
    notes: list[str] | None = None,
    progress: Progress | bool = False,
) -> Pairs:
    """Read a dataset.

    Args:
        source: a path or a URL of a store that fsspec knows (s3://, gs://, hf://, https://), a pattern such as
            `shards/*.parquet` or `shards/{000..011}.tar`, `-` for JSON on standard input, `builtin:NAME`, `hf:NAME` (or
            `hf:NAME:CONFIGURATION`) of a dataset hub, or a table in memory: a `datasets.Dataset`, a data frame, an Arrow
            table, a mapping from names of columns to lists, or a list of rows.
        options: how to read it; by default, format and columns are guessed.
        folder: a folder to write the dataset to, so that memory use does not grow with the texts; None keeps the texts
            in memory.
        corpus: additional documents: a list of texts, a table with a column of texts, or a file as in the options.
        fetched: a folder that files at URLs are copied to; what is there already is used. None: a temporary one.
        notes: a sentence is added for each URL whose connection broke and was opened again.
        progress: True shows how many texts were read, or a callback as in `hardneg.progress` is told.

    Raises:
        DataError: the source does not exist or its content is wrong; the message names the file and the line.
        UsageError: the format, the built-in dataset or its split is unknown.

    >>> pairs = read_pairs([{"query": "capital of France?", "answer": "Paris"}], corpus=["Lyon"])
    >>> len(pairs), len(pairs.document_ids)
    (1, 2)
    """
    options = options or ReadOptions()
    if is_path(corpus):
        options, corpus = replace(options, corpus=(*options.corpora, Path(corpus))), None
    assert callable(progress)
    with _Fetching(fetched, [] if notes is None else notes) as fetching:
        options = replace(options, corpus=tuple(fetching.local(each) for each in options.corpora) or None)
        local = fetching.local(source) if is_path(source) else source
        builder = Builder(folder, progress("read texts", 0), options.group_positives)
        pairs = _read(source, local, options, builder, corpus)
        if fetching.used and (pairs.queries.pictures or pairs.documents.pictures):
            raise DataError(f"{source}: pictures are read from where they are: copy them to this machine first")
        return pairs


class _Fetching:
    """Copies what is at URLs, and lets errors name these in place of the copies.

    Args:
        folder: where to; None: a temporary folder, which is removed at the end.
        notes: a sentence is added for each URL whose connection broke.
    """

    def __init__(self, folder: Path | None, notes: list[str]) -> None:
        self.folder, self.notes, self.copies, self.used = folder, notes, ExitStack(), False
        self.lasting = folder is not None

    def __enter__(self) -> _Fetching:
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self.copies.__exit__(*error)

    def local(self, place: Any) -> Any:
        """The place, or the copy of what is at the URL."""
        check_name(place)
        if not is_url(place):
            return place
        if self.folder is None:
            self.folder = Path(self.copies.enter_context(tempfile.TemporaryDirectory(prefix="hardneg-")))
        self.used = True
        copy = fetch(place, self.folder, self.notes, resumable=self.lasting)
        self.copies.enter_context(naming(as_url(place), copy))
        return copy


def _read(named: Any, source: Any, options: ReadOptions, builder: Builder, corpus: Any) -> Pairs:
    """Read a source that is here. `named`: what the user called it."""
    if any(is_image_source(each, options) for each in options.corpora):
        builder.hold_pictures("document")
    if not is_path(source):
        rows = Rows("the source", table_rows(source, options.split))
        return _finished(builder, options, _read_rows(rows, builder, options), None, "a table in memory", corpus)
    layout, keep = _read_named(str(source), builder, options)
    numbered = numbered_in(Path(source), options)
    if numbered:
        builder.count("numbered_files", numbered)
    return _finished(builder, options, layout, keep, str(named), corpus)


def numbered_in(source: Path, options: ReadOptions) -> int:
    """How many files of a source, and of its corpora, are read in another order than that of the letters of their names."""
    places = [(each, options.split) for each in options.corpora]
    if is_beir(source):
        places += [(beir_part(source, name), name) for name in ("corpus", "queries")]
    else:
        places.append((source, options.split))
    return sum(numbered_files(path, split) for path, split in places)


def _read_named(source: str, builder: Builder, options: ReadOptions) -> tuple[Layout | None, np.ndarray | None]:
    """Read what a name stands for: (the layout of its rows, the queries to keep), None where there is no such thing."""
    if source.startswith("hf:") and not present(Path(source)):
        rows = Rows(source, table_rows(from_hub(source.removeprefix("hf:"), options.split), options.split, source))
        return _read_rows(rows, builder, options), None
    if source.startswith("builtin:"):
        builder.format = source
        _read_builtin(source.removeprefix("builtin:"), options.split, builder)
        return None, None
    if source == "-":
        with tempfile.TemporaryFile() as kept:
            return _read_rows(_standard_input(kept), builder, options), None
    path = Path(source)
    if not present(path):
        raise DataError(
            f"{source} does not exist; SOURCE is a file, a folder, '-' or builtin:NAME (as in builtin:pycode)"
        )
    if is_beir(path):
        builder.format = "beir"
        return None, read_beir(path, builder, options)
    if is_image_source(path, options):
        read_images(path, builder, options)
        return None, None
    return _read_rows(_rows_of(path, options), builder, options), None


def as_pairs(source: Any, options: ReadOptions, corpus: Any = None) -> Pairs:
    """`Pairs` as they are; anything else as `read_pairs` reads it.

    Raises:
        UsageError: a corpus is given beside `Pairs`, which have all their documents.
    """
    if not isinstance(source, Pairs):
        return read_pairs(source, options, corpus=corpus)
    if corpus is not None:
        raise UsageError("corpus has no effect on Pairs: give it to read_pairs or Pairs.from_columns")
    return source


def _finished(
    builder: Builder, options: ReadOptions, layout: Layout | None, keep: Any, name: str, corpus: Any
) -> Pairs:
    """Add the documents of other places, and finish the dataset."""
    corpora = [*options.corpora, *(layout.corpora if layout is not None else ())]
    if corpora or corpus is not None:
        builder.begin_corpus()
    for path in corpora:
        read_corpus(path, builder, options)
    if corpus is not None:
        add_corpus([Block(corpus_rows(corpus, options.split, options.text_column))], builder, options)
    if layout is not None:
        layout.finish()
    return Pairs.from_contents(builder.finish(name, keep))


def _rows_of(path: Path, options: ReadOptions) -> Rows:
    """The rows of a file, of a pattern of files or of a folder."""
    header = header_of(path, options)
    if header is None:
        root = static_folder(path)
        reading = (path, options.split, options.quoting)
        return Rows(str(path), lambda: located_rows(*reading), root, lambda: located_blocks(*reading))
    return Rows(str(path), lambda: separated(path, "\t", header, options.quoting))


def _standard_input(kept: IO[bytes]) -> Rows:
    """The JSON rows of standard input, which is kept in a file, so that it can be read again."""
    name = "standard input"
    if sys.stdin is None:
        raise DataError("standard input is closed: pipe JSON lines to it")
    try:
        shutil.copyfileobj(sys.stdin.buffer, kept)
    except OSError as error:  # it is a folder, for example
        raise DataError(f"{name} cannot be read ({brief(error)}): pipe JSON lines to it") from None

    return Rows(name, lambda: json_rows(_Again(kept), name))


class _Again:
    """A view of a file from its start, which leaves other views where they are."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.at = file, 0

    def readline(self, limit: int = -1) -> bytes:
        self.file.seek(self.at)
        line = self.file.readline(limit)
        self.at += len(line)
        return line


def _read_builtin(name: str, split: str, builder: Builder) -> None:
    read = registry.find("dataset", name, "built-in dataset")
    if split not in BUILTIN_SPLITS:
        raise UsageError(f"builtin:{name} has no split {split!r}.{suggestion(split, BUILTIN_SPLITS)}")
    read(split, builder)


def _read_rows(rows: Rows, builder: Builder, options: ReadOptions) -> Layout:
    """Read rows. The first row tells the layout, unless `options.format` names it."""
    layouts: list[Layout] = []

    def take(block: Block, where: str, first: Row) -> bool:
        if not layouts:
            layouts.append(_layout((where, first), rows, builder, options))
            builder.format = layouts[0].name
        return layouts[0].take(block, first)

    if not read_blocks(rows.in_blocks(), take, lambda where, row: layouts[0](where, row)):
        raise DataError(f"{rows.name}: there are no rows, so there is nothing to mine negatives for")
    return layouts[0]


def _layout(first: tuple[str, Row], rows: Rows, builder: Builder, options: ReadOptions) -> Layout:
    if tuple(first[1]) == ID_COLUMNS:
        return TripleIds(builder, options, Path(rows.name))
    named = options.format not in ("auto", "beir")
    if options.format == "images" or (not named and image_column(first[1], options) is not None):
        return ImageRows(builder, options, first, rows.root)
    kinds = [*((each, registry.find("layout", each)) for each in registry.names("layout"))]
    kinds += [(each.name, each) for each in LAYOUTS]
    for name, kind in kinds:
        if (not named or name == options.format) and kind.fits(first[1]):  # type: ignore[attr-defined]
            made: Layout = kind(builder, options)
            return made
    if named and options.format != "pairs":
        # None fits: the first of this name says what is missing.
        made = next(kind for name, kind in kinds if name == options.format)(builder, options)
        return made
    return PairRows(builder, options, first, rows.column, rows.name)
