"""Reads WebDataset shards: tar files in which `KEY.jpg` stands beside `KEY.txt`, `KEY.json` or `KEY.cls`.

Of a shard that is not compressed, a picture stays where it is and is read from there. No name in a shard becomes a path on disk.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar, Self

from hardneg.data.columns import find_column
from hardneg.data.labels import is_blank
from hardneg.data.memory_columns import texts_of
from hardneg.data.options import ReadOptions
from hardneg.data.picture import MOST_BYTES, SUFFIXES, shortened
from hardneg.data.readers.files import source_files, split_files
from hardneg.data.readers.image_folder import caption_lines
from hardneg.data.readers.pair_rows import GROUP_COLUMNS
from hardneg.data.readers.pictures import CAPTION_COLUMNS, Captioned, PictureReader
from hardneg.data.readers.rows import COMPRESSED, opened
from hardneg.data.readers.shard_order import in_order
from hardneg.errors import DataError
from hardneg.storage.arrow import brief

_TEXTS = ("txt", "text", "caption")
_LARGEST_FIELD = 1 << 24  # bytes of a text, a JSON or a class
_FAILURES = (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, MemoryError)


def is_shard(path: Path) -> bool:
    """Whether a name is that of a tar file, compressed or not."""
    name = path.name.lower()
    return name.endswith((".tar", *(f".tar{suffix}" for suffix in COMPRESSED)))


def is_web_dataset(path: Path) -> bool:
    """Whether a path stands for shards: a tar file, a pattern of them, or a folder of them."""
    if path.is_dir():
        return any(is_shard(each) for each in path.iterdir())
    return is_shard(path)


@dataclass
class _Sample:
    """The fields of one key: small ones by extension, and pictures as (extension, offset, size, bytes or None)."""

    key: str
    offset: int
    fields: dict[str, bytes] = field(default_factory=dict)
    pictures: list[tuple[str, int, int, bytes | None]] = field(default_factory=list)


def shard_pictures(path: Path, options: ReadOptions, reader: PictureReader) -> Iterator[Captioned]:
    """The pictures of shards, in the order of the files and of the samples in each.

    A picture has its key as id; with several shards, after the name of its shard, because keys may begin anew in each.

    Raises:
        DataError: a shard is cut off or damaged, holds a link or a device, or a key or a field twice; a text is not UTF-8; or a
            sample has several pictures. The message names the shard and the key.
    """
    files = _shards(path, options)
    for file in files:
        prefix = f"{_stem(file)}/" if len(files) > 1 else ""
        seen: set[str] = set()
        for sample in _samples(file):
            where = f"{file}, key {shortened(sample.key)!r} at byte {sample.offset:,}"
            if sample.key in seen:
                raise DataError(f"{where}: the key was there before: the fields of a key must follow one another, once")
            seen.add(sample.key)
            found = _captioned(sample, file, prefix, where, options, reader)
            if found is not None:
                yield found


def _shards(path: Path, options: ReadOptions) -> list[Path]:
    if path.is_dir():
        return split_files(in_order(each for each in path.iterdir() if is_shard(each)), path, options.split)
    return source_files(path) or []


def _stem(file: Path) -> str:
    return file.name.lower().rpartition(".tar")[0]


def _samples(file: Path) -> Iterator[_Sample]:
    """The samples of a shard: members that follow one another and have one key."""
    current: _Sample | None = None
    for member, data in _members(file):
        folder, _, name = member.name.rpartition("/")
        stem, dot, extension = name.partition(".")
        if not dot or (name.startswith("__") and name.endswith("__")) or not stem:
            continue  # as in webdataset: files without an extension, hidden ones and its own notes are no fields
        key, extension = f"{folder}/{stem}" if folder else stem, extension.lower()
        if current is None or current.key != key:
            if current is not None:
                yield current
            current = _Sample(key, member.offset)
        where = f"{file}, {shortened(member.name)} at byte {member.offset:,}"
        if extension in current.fields or extension in {each[0] for each in current.pictures}:
            raise DataError(f"{where}: the key has a field {shortened(extension)!r} twice")
        if _is_picture(extension):
            content = data.read(MOST_BYTES + 1) if data is not None else None
            _whole(content, member, where, MOST_BYTES)
            current.pictures.append((extension, member.offset_data, member.size, content))
        elif extension in (*_TEXTS, "json", "cls"):
            current.fields[extension] = _small(file, member, data, where)
    if current is not None:
        yield current


def _whole(content: bytes | None, member: tarfile.TarInfo, where: str, most: int) -> None:
    if member.size > most:
        raise DataError(f"{where}: {member.size:,} bytes, more than {most:,}")
    if content is not None and len(content) != member.size:
        raise DataError(f"{where}: {len(content):,} bytes in place of {member.size:,}: the shard was cut off")


def _small(file: Path, member: tarfile.TarInfo, data: IO[bytes] | None, where: str) -> bytes:
    """The bytes of a text field."""
    _whole(None, member, where, _LARGEST_FIELD)
    if data is not None:
        content = data.read(_LARGEST_FIELD + 1)
    else:
        with opened(file) as raw:
            raw.seek(member.offset_data)
            content = raw.read(member.size)
    _whole(content, member, where, _LARGEST_FIELD)
    return content


def _is_picture(extension: str) -> bool:
    return f".{extension.rpartition('.')[2]}" in SUFFIXES


class _Header(tarfile.TarInfo):
    """Headers of members, which remember whether the last one was read from zeros, as those at the end of an archive are."""

    at_end: ClassVar[bool] = False

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        cls.at_end = len(buf) == tarfile.BLOCKSIZE and not any(buf)
        return super().frombuf(buf, encoding, errors)


def _members(file: Path) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """The regular files of a shard, each with a stream of its bytes if the shard is compressed."""
    packed = not file.name.lower().endswith(".tar")
    header: Any = type("_HeaderHere", (_Header,), {})  # of this archive alone: what it remembers is not shared
    with opened(file) as raw:
        archive = None
        try:
            mode: Any = "r|" if packed else "r:"
            archive = tarfile.open(fileobj=raw, mode=mode, errors="strict", encoding="utf-8", tarinfo=header)  # noqa: SIM115 (closed below)
            while True:
                member = archive.next()
                if member is None:
                    if not header.at_end:
                        raise DataError(
                            f"{file} ends after byte {archive.offset:,}, between two members, without the zeros that end a tar "
                            f"file: it was not completely written. Copy or write it again"
                        )
                    return
                archive.members = []  # type: ignore[attr-defined]  # it would keep the header of every member
                where = f"{file}, {shortened(member.name)} at byte {member.offset:,}"
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    kind = "a link" if member.islnk() or member.issym() else "no regular file"
                    raise DataError(f"{where}: it is {kind}, which shards must not hold")
                if member.name.startswith("/") or ".." in member.name.split("/"):
                    raise DataError(f"{where}: its name leads out of the shard")
                yield member, archive.extractfile(member) if packed else None
        except DataError:
            raise
        except _FAILURES as error:
            at = f" after byte {archive.offset:,}" if archive is not None else ""
            raise DataError(
                f"{file} cannot be read as a tar file{at} ({brief(error)}): it is damaged, or was not completely written"
            ) from None
        finally:
            if archive is not None:
                archive.close()


def _captioned(
    sample: _Sample, file: Path, prefix: str, where: str, options: ReadOptions, reader: PictureReader
) -> Captioned | None:
    """The picture of a sample; None if it has none, which is counted."""
    pictures = sample.pictures
    if options.image_column is not None:
        pictures = [each for each in pictures if each[0] == options.image_column.lower()]
    if not pictures:
        reader.builder.count("samples_without_picture")
        return None
    if len(pictures) > 1:
        held = ", ".join(shortened(each[0]) for each in pictures)
        raise DataError(f"{where}: several pictures ({held}): choose one with --image-column EXTENSION")
    extension, offset, size, content = pictures[0]
    name = f"{prefix}{sample.key}.{extension}"
    if content is not None:
        picture = reader.from_bytes(content, name, where)
    else:
        picture = reader.from_part(file, offset, size, name, where)
    captions = [line for each in _TEXTS if each in sample.fields for line in caption_lines(sample.fields[each], where)]
    group: object = sample.fields["cls"].decode("utf-8", "replace").strip() if "cls" in sample.fields else None
    if "json" in sample.fields:
        more, label = _of_json(sample.fields["json"], where, options)
        captions, group = captions or more, label if group is None else group
    return Captioned(where, picture, captions, f"{prefix}{sample.key}", group)


def _of_json(data: bytes, where: str, options: ReadOptions) -> tuple[list[str], object]:
    """(captions, group) that the JSON of a sample holds."""
    try:
        row = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: the field json is no JSON ({brief(error)})") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: the field json holds a {type(row).__name__}, expected an object")
    caption = find_column(row, options.caption_column, CAPTION_COLUMNS, where)
    group = find_column(row, options.group_column, GROUP_COLUMNS, where)
    captions = [] if caption is None else texts_of(row[caption], caption, where)
    return captions, None if group is None or is_blank(row[group]) else row[group]
