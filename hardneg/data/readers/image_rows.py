"""Reads rows with a picture: an image column of a Hugging Face dataset or of Parquet, or a column of paths."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hardneg.data.builder import Builder
from hardneg.data.columns import find_column, id_of, need_column
from hardneg.data.labels import is_blank
from hardneg.data.memory_columns import texts_of
from hardneg.data.options import ReadOptions
from hardneg.data.picture import SUFFIXES, Picture, as_png, is_pillow, shortened
from hardneg.data.readers.layout import Layout
from hardneg.data.readers.pair_rows import DOCUMENT_ID_COLUMNS, GROUP_COLUMNS, QUERY_ID_COLUMNS
from hardneg.data.readers.pictures import CAPTION_COLUMNS, Captioned, CaptionedPictures, PictureReader
from hardneg.data.readers.rows import Row
from hardneg.errors import DataError

IMAGE_COLUMNS = (
    "image", "img", "picture", "photo", "jpg", "png", "image_path", "img_path", "filepath", "file_path", "file_name", "filename",
)  # fmt: skip
_PICTURE_IDS = ("image_id", "img_id", "photo_id", "__key__")


def image_column(row: Row, options: ReadOptions) -> str | None:
    """The column of a row that holds its picture; None if none does.

    Of the usual names, a column counts that holds bytes, a picture of Pillow, or the path of a file named as pictures are.
    """
    if options.image_column is not None:
        return options.image_column
    lowered = {name.lower(): name for name in row}
    for usual in IMAGE_COLUMNS:
        value = row.get(lowered.get(usual, ""))
        if _is_stored(value) or is_pillow(value) or isinstance(value, bytes):
            return lowered[usual]
        if isinstance(value, str) and value.lower().endswith(SUFFIXES):
            return lowered[usual]
    return None


def _is_stored(value: Any) -> bool:
    """Whether a cell is a picture as Hugging Face stores it."""
    return isinstance(value, Mapping) and set(value) == {"bytes", "path"}


class ImageRows(Layout):
    """Reads rows with a picture and its captions.

    Args:
        builder: receives the queries, documents and pairs.
        options: names of the columns, which side the pictures are, and where paths may lead.
        first: place and content of the first row.
        root: the folder that paths are relative to; None: there is none, so that only absolute paths can be read.
        corpus: whether the pictures are documents beside those of another source.

    Raises:
        DataError: the first row has no picture, or neither a caption nor a label.
    """

    name = "images"

    def __init__(
        self, builder: Builder, options: ReadOptions, first: tuple[str, Row], root: Path | None, corpus: bool = False
    ) -> None:
        super().__init__(builder, options)
        where, row = first
        found = image_column(row, options)
        self.image = need_column(row, found, IMAGE_COLUMNS, where, "image")
        others = {name: value for name, value in row.items() if name != self.image}
        self.group = find_column(others, options.group_column, GROUP_COLUMNS, where)
        self.caption = find_column(others, options.caption_column, CAPTION_COLUMNS, where)
        if self.caption is None and self.group is None and not corpus:
            need_column(others, None, CAPTION_COLUMNS, where, "caption")
        usual = QUERY_ID_COLUMNS if options.images == "queries" and not corpus else (*DOCUMENT_ID_COLUMNS, "_id", "id")
        given = options.id_column if options.images == "queries" and not corpus else options.document_id_column
        self.id = find_column(others, given, (*_PICTURE_IDS, *usual), where)
        roles = ("image", "caption", "group", "id")
        builder.columns |= {role: name for role in roles if (name := getattr(self, role)) is not None}
        self.root = Path(options.image_root) if options.image_root is not None else root
        self.reader = PictureReader(builder, options, corpus)
        self.add = CaptionedPictures(builder, options, corpus)

    def __call__(self, where: str, row: Row) -> None:
        if self.image not in row:
            raise DataError(f"{where}: there is no column {self.image!r}")
        id = id_of(row, self.id, where)
        picture, own = self._picture(row[self.image], where)
        captions = [] if self.caption is None else texts_of(row.get(self.caption), self.caption, where)
        group = None if self.group is None or is_blank(row.get(self.group)) else row.get(self.group)
        self.add(Captioned(where, picture, captions, own if id is None else id, group))

    def _picture(self, value: Any, where: str) -> tuple[Picture | None, str | None]:
        """(the picture of a cell, None if it is broken; the id that its path is, if it has a path of its own)."""
        if is_pillow(value):
            value = as_png(value, where)
        path = None
        if _is_stored(value):
            path, value = value["path"], value["bytes"]
            if path is not None and not isinstance(path, str):
                raise DataError(f"{where}: the path in {self.image!r} is {shortened(repr(path))}, expected text")
        if isinstance(value, bytes):
            return self.reader.from_bytes(value, path or where.rpartition(os.sep)[2], where), None
        path = value if isinstance(value, str) else path
        if path is None:
            raise DataError(
                f"{where}: {self.image!r} is {shortened(repr(value))}, expected a path, the bytes of a file, or both as "
                f"Hugging Face stores them"
            )
        if self.root is None and os.path.isabs(path) and "\0" not in path:
            return self.reader.from_path(Path(os.path.realpath(path)).parent, path, where), path
        if self.root is None:
            raise DataError(
                f"{where}: the picture is the path {shortened(path)!r}, and a table in memory has no folder: make it absolute, or "
                f"give ReadOptions(image_root=...), for example '.'"
            )
        return self.reader.from_path(self.root, path, where), path
