"""Finds out what a path is and reads its rows: one file, all files that a pattern names, or a folder of shards."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from hardneg import registry
from hardneg.data.options import Quoting
from hardneg.data.readers.json_blocks import json_blocks
from hardneg.data.readers.rows import COMPRESSED, Block, Located, exists, names
from hardneg.data.readers.separated import separated
from hardneg.data.readers.separated_blocks import csv_blocks
from hardneg.data.readers.shard_order import in_order
from hardneg.data.readers.tables import parquet_blocks, saved_blocks
from hardneg.errors import DataError

_JSON = (".jsonl", ".ndjson", ".json")
_TABLES = (".parquet", ".pq")
_SEPARATED = {".csv": ",", ".tsv": "\t"}
_BRACES = re.compile(r"\{(?:(\d{1,9})\.\.(\d{1,9})|([^{}]*,[^{}]*))\}")
_MOST_SHARDS = 100_000
Order = Callable[[Iterable[Path]], list[Path]]
SUFFIXES = (*_JSON, *_SEPARATED, *_TABLES)


def located_rows(path: Path, split: str = "train", quoting: Quoting = "auto") -> Located:
    """The rows of a file, a pattern of files, or a folder, each with its place.

    Args:
        path: a .jsonl, .ndjson, .json, .csv, .tsv, .parquet or .pq file, compressed or not (.gz, .zst, .bz2, .xz), or one with a
            suffix that a reader is registered for; a pattern such as `shards/*.parquet`; a folder of such files, or of a saved
            Hugging Face dataset.
        split: split of a saved dataset that has several, or of a folder whose files are named by splits.
        quoting: how a TSV file is written; see `separated`.

    Raises:
        DataError: the kind of file is unknown or, while iterating, a row cannot be read.
    """
    return (row for block in located_blocks(path, split, quoting) for row in block.rows())


def located_blocks(path: Path, split: str = "train", quoting: Quoting = "auto") -> Iterator[Block]:
    """Like `located_rows`, in blocks."""
    files = source_files(path, split)
    if files is None:
        yield from saved_blocks(path, split)
        return
    for file in files:
        yield from _blocks_of(file, quoting)


def present(path: Path) -> bool:
    """Whether there is something at a path, or some file that fits a pattern."""
    return exists(path) or any(glob.glob(each, recursive=True) for each in _patterns(path))


def static_folder(path: Path) -> Path:
    """The folder that a path is or stands in; of a pattern, the part before its first variable name."""
    if exists(path):
        return path if path.is_dir() else path.parent
    parts = path.parts
    first = next((i for i, part in enumerate(parts) if glob.has_magic(part) or "{" in part), len(parts) - 1)
    return Path(*parts[:first])


def _patterns(path: Path) -> list[str]:
    """The patterns that a path stands for, with its braces expanded; none, if it is no pattern."""
    text = str(path)
    if not glob.has_magic(text) and not _BRACES.search(text):
        return []
    return expand_braces(text)


def expand_braces(text: str) -> list[str]:
    """The texts that a pattern with braces stands for: `{000..012}` is a range of numbers, `{a,b}` a choice.

    Raises:
        DataError: they are more than 100,000.

    >>> expand_braces("shard-{08..10}.tar"), expand_braces("{a,b}.tar")
    (['shard-08.tar', 'shard-09.tar', 'shard-10.tar'], ['a.tar', 'b.tar'])
    """
    done, waiting = [], [text]
    while waiting:
        current = waiting.pop()
        match = _BRACES.search(current)
        if match is None:
            done.append(current)
            continue
        low, high, choices = match.groups()
        if low is not None and not 0 <= int(high) - int(low) < _MOST_SHARDS:
            raise DataError(f"{text}: {{{low}..{high}}} must rise, by less than {_MOST_SHARDS:,}")
        # Both ends of a range have the same width if the first begins with 0.
        pieces = (
            [str(n).zfill(len(low)) for n in range(int(low), int(high) + 1)] if low is not None else choices.split(",")
        )
        if len(pieces) + len(done) + len(waiting) > _MOST_SHARDS:
            raise DataError(f"{text}: stands for more than {_MOST_SHARDS:,} files")
        waiting += [current[: match.start()] + piece + current[match.end() :] for piece in reversed(pieces)]
    return done


def source_files(path: Path, split: str = "train", order: Order = in_order) -> list[Path] | None:
    """The files that a path stands for; None for the folder of a saved dataset. `order`: how files that are found are sorted."""
    if not exists(path) and (patterns := _patterns(path)):
        files = []
        for pattern in patterns:
            found = order(Path(each) for each in glob.glob(pattern, recursive=True))
            if not found and not glob.has_magic(pattern):
                raise DataError(f"{pattern} does not exist, and is one of {path}")
            files += [each for each in found if not each.is_dir()]
        if not files:
            raise DataError(f"{path}: no file fits this pattern")
        return files
    if not path.is_dir():
        return [path]
    if exists(path / "state.json") or exists(path / "dataset_dict.json"):
        return None
    return _shards(path, split, order)


def numbered_files(path: Path, split: str = "train") -> int:
    """The number of files that a path stands for, if their order is not that of the letters of their names; or else 0."""
    try:
        files, by_letters = source_files(path, split), source_files(path, split, sorted)
    except (DataError, OSError):  # a folder of tar files, or something that whoever reads it will complain about
        listed: list[str] = []
        with suppress(OSError):
            listed = os.listdir(path)
        by_letters = sorted(path / name for name in listed if ".tar" in name)
        files = in_order(by_letters)
    return len(files or ()) if files != by_letters else 0


def suffix_of(path: Path) -> str:
    """The suffix that tells the format of a file, without that of its compression."""
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return inner.suffix.lower()


def _shards(folder: Path, split: str, order: Order) -> list[Path]:
    """The shards of a folder: those named after the split, as the Hub names them, or all if no name has one."""
    known = (*SUFFIXES, *registry.names("reader"))
    files = order(p for p in folder.iterdir() if suffix_of(p) in known and not p.name.startswith("."))
    if not files and exists(folder / "data"):
        files = order(p for p in (folder / "data").iterdir() if suffix_of(p) in known)
    if not files:
        raise DataError(
            f"{folder}: this folder is no dataset; expected corpus.jsonl (BEIR), state.json (a saved Hugging Face "
            f"dataset), or {names(known)} files"
        )
    kinds = sorted({suffix_of(p) for p in files})
    if len(kinds) > 1:
        raise DataError(
            f"{folder}: holds files of several kinds ({names(kinds)}): name those to read, as in '{folder}/*{kinds[0]}'"
        )
    return split_files(files, folder, split)


def split_files(files: list[Path], folder: Path, split: str) -> list[Path]:
    """Those of the shards in a folder that are named after the split, or all if no name has one."""
    splits = sorted({found for p in files if (found := _split_of(p)) is not None})
    if not splits:
        return files
    if split not in splits:
        raise DataError(f"{folder}: there is no split {split!r}; it has: {names(splits)}. Choose one with --split")
    return [p for p in files if _split_of(p) == split]


def _split_of(path: Path) -> str | None:
    """The split in the name of a shard, such as `train-00000-of-00004.parquet`; None if it names none."""
    stem = path.name.partition(".")[0]
    head = stem.split("-")[0]
    return head if head in ("train", "test", "dev", "validation", "valid", "eval") else None


def _blocks_of(path: Path, quoting: Quoting) -> Iterator[Block]:
    suffix = suffix_of(path)
    if suffix in registry.names("reader"):
        read = registry.find("reader", suffix)
        return iter([Block(lambda: read(path))])
    if suffix in _JSON:
        return json_blocks(path)
    if suffix == ".csv" and quoting != "none":
        return csv_blocks(path)
    if suffix in _SEPARATED:
        return iter([Block(lambda: separated(path, _SEPARATED[suffix], quoting=quoting))])
    if suffix in _TABLES and path.suffix.lower() not in COMPRESSED:
        return parquet_blocks(path)
    if path.suffix.lower() == ".zip":
        raise DataError(f"{path} is an archive of several files: unpack it first")
    raise DataError(
        f"{path}: cannot tell what this is from its name; expected a .jsonl, .csv, .tsv or .parquet file, a folder, or a suffix "
        f"that you registered a reader for"
    )
