"""What all sources of pictures have in common: how a picture is taken from where it stands, and what it becomes.

A picture, its captions and its class become queries and documents: a caption is a query whose positive is the picture, or the
other way round. Captions with equal texts are one query (or document), which all their pictures belong to, so no picture becomes
a negative of a caption that it has itself.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hardneg.data.builder import Builder
from hardneg.data.labels import is_blank
from hardneg.data.options import ReadOptions
from hardneg.data.picture import MOST_BYTES, Picture, check_picture, decoded, read_part, shortened
from hardneg.errors import DataError

CAPTION_COLUMNS = (
    "caption", "captions", "text", "texts", "sentence", "sentences", "description", "descriptions", "query", "alt_text", "prompt",
)  # fmt: skip


@dataclass(frozen=True)
class Captioned:
    """One picture of a source.

    Attributes:
        where: its place, for messages.
        picture: the picture; None: it was broken, and is counted.
        captions: its captions, of which some may be blank.
        id: its id; None: it has none, and equal pictures are one.
        group: its class or another label; None: none.
    """

    where: str
    picture: Picture | None
    captions: list[str] = field(default_factory=list)
    id: str | None = None
    group: Any = None


class PictureReader:
    """Takes pictures from files, parts of files, and memory. None of them stays in memory.

    Args:
        builder: counts the broken ones, and keeps the bytes of those that are in no file of their own.
        options: what may be left out, and where paths may lead.
        corpus: whether the pictures are documents beside those of another source, and need no captions.
    """

    def __init__(self, builder: Builder, options: ReadOptions, corpus: bool = False) -> None:
        self.builder, self.options, self.corpus = builder, options, corpus

    def from_path(self, root: Path, name: str, where: str) -> Picture | None:
        """The picture in a file.

        Args:
            root: the folder that `name` is relative to.
            name: the path, as the dataset writes it.
            where: the place that names it, for messages.

        Raises:
            DataError: the path leaves `root`, by `..`, as an absolute path or through a link, and `outside_images` is off; or the
                picture is broken, and `skip_broken` is off.
        """
        if "\0" in name or not name:
            raise DataError(f"{where}: {shortened(repr(name))} is no path of a picture")
        path = Path(os.path.abspath(root / name))
        real = Path(os.path.realpath(path))
        if not self.options.outside_images and not real.is_relative_to(os.path.realpath(root)):
            raise DataError(
                f"{where}: the picture {shortened(name)!r} is outside of {root}: allow it with --outside-images, or name the "
                f"folder of the pictures with --image-root"
            )
        place = str(path) if where.startswith(str(path)) else f"{where}: {shortened(str(path))}"
        try:
            try:
                size = path.stat().st_size
            except OSError as error:
                raise DataError(f"{place}: the picture cannot be read ({error.strerror})") from None
            data = read_part(path, -1, size, place)
            self._check(data, place)
        except DataError:
            self._count_broken()
            return None
        return Picture(name, path, -1, size, hashlib.sha256(data).hexdigest())

    def from_part(self, path: Path, offset: int, size: int, name: str, where: str) -> Picture | None:
        """The picture in `size` bytes of a file from `offset` on; errors as for `from_path`."""
        try:
            data = read_part(path, offset, size, where)
            self._check(data, where)
        except DataError:
            self._count_broken()
            return None
        return Picture(name, os.path.abspath(path), offset, size, hashlib.sha256(data).hexdigest())

    def from_bytes(self, data: bytes, name: str, where: str) -> Picture | None:
        """A picture in memory, which is copied to the dataset's own file of pictures; errors as for `from_path`."""
        try:
            if not 0 < len(data) <= MOST_BYTES:
                raise DataError(f"{where}: a picture of {len(data):,} bytes; it must have 1 to {MOST_BYTES:,}")
            self._check(data, where)
        except DataError:
            self._count_broken()
            return None
        return self.builder.store.add(name, data)

    def _check(self, data: bytes, where: str) -> None:
        if self.options.skip_broken:
            decoded(data, where)
        else:
            check_picture(data, where)

    def _count_broken(self) -> None:
        """Count a broken picture, or raise the error that is being handled."""
        if not self.options.skip_broken:
            raise
        self.builder.count("broken_pictures")


class CaptionedPictures:
    """Adds pictures to a dataset, with their captions as the other side.

    Args:
        builder: receives the queries, documents and pairs.
        options: which side the pictures are, and what a class is called in a caption.
        corpus: whether they are documents beside those of another source: their captions are not used then.
    """

    def __init__(self, builder: Builder, options: ReadOptions, corpus: bool = False) -> None:
        self.builder, self.options, self.corpus = builder, options, corpus
        self.asked = options.images == "queries" and not corpus
        builder.hold_pictures("query" if self.asked else "document")

    def __call__(self, item: Captioned) -> None:
        """Add a picture; a broken one is left out, with its captions."""
        if item.picture is None:
            return
        group = None if is_blank(item.group) else item.group
        add = self.builder.add_query if self.asked else self.builder.add_document
        row = add(item.id, item.picture, group=group, where=item.where)
        if self.corpus:
            return
        captions = [text for text in item.captions if not is_blank(text)]
        if not captions and group is not None:
            name = str(group).replace("_", " ").strip()
            captions = [self.options.caption_template.replace("{}", name)]
        if not captions:
            self.builder.count("pictures_without_caption")
        for text in captions:
            if self.asked:
                self.builder.relate(row, self.builder.add_document(None, text, group=group, where=item.where), 1)
            else:
                self.builder.relate(self.builder.add_query(None, text, group=group, where=item.where), row, 1)
