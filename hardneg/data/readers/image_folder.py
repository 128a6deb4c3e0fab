"""Reads folders of pictures, in the layouts that are customary.

metadata.jsonl       or .csv or .parquet: `file_name` and a caption, or several (the imagefolder of Hugging Face)
NAME.jpg, NAME.txt   captions beside the pictures, one a line
CLASS/NAME.jpg       a folder for each class: the class is the caption, and the group

Folders `train/`, `test/` and so on above any of these are splits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from hardneg.data.columns import find_column, need_column
from hardneg.data.labels import is_blank
from hardneg.data.memory_columns import texts_of
from hardneg.data.options import ReadOptions
from hardneg.data.picture import SUFFIXES, shortened
from hardneg.data.readers.files import located_rows
from hardneg.data.readers.pair_rows import GROUP_COLUMNS
from hardneg.data.readers.pictures import CAPTION_COLUMNS, Captioned, PictureReader
from hardneg.data.readers.rows import exists, names
from hardneg.errors import DataError

SPLITS = ("train", "test", "dev", "validation", "valid", "val", "eval")
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_LONGEST_CAPTION_FILE = 1 << 20  # bytes
_LOOK_AT = 10_000  # entries of a folder, to find out whether it holds pictures


def is_image_folder(path: Path) -> bool:
    """Whether a folder holds pictures, or the table of a folder of pictures."""
    if not path.is_dir():
        return False
    if any(exists(part / name) for part in (path, *_split_folders(path)) for name in _METADATA):
        return True
    seen = 0
    for _, folders, files in os.walk(path):
        folders.sort()
        if any(_is_picture(name) for name in files):
            return True
        seen += len(files) + len(folders)
        if seen > _LOOK_AT:
            return False
    return False


def folder_pictures(path: Path, options: ReadOptions, reader: PictureReader) -> Iterator[Captioned]:
    """The pictures of a folder, in the order of its table, or of their paths.

    Raises:
        DataError: the split does not exist, the folder holds no picture, or, while iterating, something is wrong with one.
    """
    folder = _of_split(path, options)
    table = next((folder / name for name in _METADATA if exists(folder / name)), None)
    if table is not None:
        yield from _of_table(table, folder, options, reader)
        return
    found = list(_files(folder))
    if not found:
        raise DataError(f"{folder}: holds no pictures ({', '.join(SUFFIXES)})")
    beside = any(exists((folder / name).with_suffix(".txt")) for name in found)
    classes = not beside and any("/" in name for name in found)
    for name in found:
        where = str(folder / name)
        picture = reader.from_path(folder, name, where)
        captions = _captions_beside((folder / name).with_suffix(".txt")) if beside else []
        group = name.split("/")[0] if classes and "/" in name else None
        yield Captioned(where, picture, captions, name, group)


def _of_split(path: Path, options: ReadOptions) -> Path:
    splits = _split_folders(path)
    if not splits:
        return path
    if options.split not in {folder.name for folder in splits}:
        held = names(folder.name for folder in splits)
        raise DataError(f"{path}: there is no split {options.split!r}; it has: {held}. Choose one with --split")
    return path / options.split


def _split_folders(path: Path) -> list[Path]:
    """The folders of splits, if all folders are some and there is nothing beside them that could be the dataset."""
    with os.scandir(path) as entries:
        listed = [entry for entry in entries if not entry.name.startswith(".")]
    folders = sorted(entry.name for entry in listed if entry.is_dir())
    if not folders or not set(folders) <= set(SPLITS):
        return []
    if any(entry.name in _METADATA or _is_picture(entry.name) for entry in listed):
        return []
    return [path / name for name in folders]


def _files(folder: Path) -> Iterator[str]:
    """The pictures below a folder, as paths relative to it, sorted; folders that are links are not entered."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if _is_picture(name):
                yield (Path(place) / name).relative_to(folder).as_posix()


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _captions_beside(path: Path) -> list[str]:
    """The captions in a text file, one a line; none, if there is no such file."""
    try:
        with open(path, "rb") as file:
            data = file.read(_LONGEST_CAPTION_FILE + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path}: the caption cannot be read ({error.strerror})") from None
    return caption_lines(data, str(path))


def caption_lines(data: bytes, where: str) -> list[str]:
    """The captions in the bytes of a text file, one a line.

    Raises:
        DataError: it is not UTF-8, or longer than 1 MiB.

    >>> caption_lines(b"a cat\\n\\nan animal\\n", "a.txt")
    ['a cat', 'an animal']
    """
    if len(data) > _LONGEST_CAPTION_FILE:
        raise DataError(f"{where}: a caption of more than {_LONGEST_CAPTION_FILE >> 20} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: the caption is not valid UTF-8 ({error.reason} at byte {error.start})") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _of_table(table: Path, folder: Path, options: ReadOptions, reader: PictureReader) -> Iterator[Captioned]:
    """The pictures that a table names, with their captions."""
    image: str | None = None
    caption = group = None
    for where, row in located_rows(table, options.split, options.quoting):
        if image is None:
            image = need_column(row, options.image_column, ("file_name", "image", "path"), where, "image")
            group = find_column(row, options.group_column, GROUP_COLUMNS, where)
            caption = find_column(row, options.caption_column, CAPTION_COLUMNS, where)
            if caption is None and group is None and not reader.corpus:
                need_column(row, None, CAPTION_COLUMNS, where, "caption")
            roles = {"image": image, "caption": caption, "group": group}
            reader.builder.columns |= {role: name for role, name in roles.items() if name is not None}
        name = row.get(image)
        if not isinstance(name, str):
            raise DataError(f"{where}: {image!r} is {shortened(repr(name))}, expected the path of a picture")
        captions = [] if caption is None else texts_of(row.get(caption), caption, where)
        label = None if group is None or is_blank(row.get(group)) else row.get(group)
        yield Captioned(where, reader.from_path(folder, name, where), captions, name, label)
