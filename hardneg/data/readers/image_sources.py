"""Tells folders and shards of pictures from other sources, and reads them."""

from __future__ import annotations

from pathlib import Path

from hardneg.data.builder import Builder
from hardneg.data.options import ReadOptions
from hardneg.data.readers.files import SUFFIXES, suffix_of
from hardneg.data.readers.image_folder import folder_pictures, is_image_folder
from hardneg.data.readers.pictures import CaptionedPictures, PictureReader
from hardneg.data.readers.rows import exists
from hardneg.data.readers.web_dataset import is_web_dataset, shard_pictures
from hardneg.errors import DataError


def is_image_source(path: Path, options: ReadOptions) -> bool:
    """Whether a path is a folder of pictures, or WebDataset shards."""
    if options.format not in ("auto", "images"):
        return False
    try:
        return _holds_images(path)
    except OSError:  # no permission: whoever reads it says so
        return False


def _holds_images(path: Path) -> bool:
    if is_web_dataset(path):
        return True
    if not path.is_dir() or exists(path / "state.json") or exists(path / "dataset_dict.json"):
        return False
    other = (
        each for each in path.iterdir() if suffix_of(each) in SUFFIXES and not each.name.startswith((".", "metadata."))
    )
    return next(other, None) is None and is_image_folder(path)


def read_images(path: Path, builder: Builder, options: ReadOptions, *, corpus: bool = False) -> None:
    """Read a folder or shards of pictures.

    Args:
        path: the folder, the shard, or the pattern of shards.
        builder: receives the queries, documents and pairs.
        options: which side the pictures are, and how captions are found.
        corpus: whether the pictures are documents beside those of another source; captions are not used then.

    Raises:
        DataError: a picture is broken or outside of the folder, a caption is not UTF-8, or there is none at all.
    """
    shards = is_web_dataset(path)
    if not corpus:
        builder.format = "webdataset" if shards else "images"
    reader, add = PictureReader(builder, options, corpus), CaptionedPictures(builder, options, corpus)
    before = len(builder.queries), len(builder.documents)
    for item in shard_pictures(path, options, reader) if shards else folder_pictures(path, options, reader):
        add(item)
    after = len(builder.queries), len(builder.documents)
    if before == after:
        raise DataError(f"{path}: there are no pictures in it that can be read")
    if not corpus and not len(builder.relations[0]):
        raise DataError(
            f"{path}: no picture has a caption: expected metadata.jsonl with file_name and a caption, NAME.txt beside NAME.jpg, "
            f"or a folder for each class; in shards KEY.txt, KEY.json or KEY.cls beside KEY.jpg"
        )
