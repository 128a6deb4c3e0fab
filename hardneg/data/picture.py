"""`Picture`: an item of a dataset that stands in a file, and is decoded when it is encoded.

A dataset of pictures never holds them in memory. A row is the place of the picture (a file, or a part of one) and the SHA-256 of
its bytes; to everything that shows or exports rows it is the text that names it, such as `three/0017.png`. What is read is
compared with the SHA-256, so a picture that was changed, or a place that was made up, is an error and never a vector.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from pathlib import Path
from typing import Any

from hardneg.errors import DataError, MissingDependencyError

MOST_BYTES = 1 << 26  # of a picture in its file: 64 MiB
MOST_PIXELS = 1 << 26  # of a picture when it is decoded: 67 million, 200 MB as RGB

# What Pillow may take a file for. Its other decoders are rarely used, and one of them starts a program (Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")

COLUMNS = ("file", "offset", "size", "sha256")  # of a picture in a table, beside its text; no picture: an empty file

_THUMBNAIL = 96  # the longer side in pixels
_THUMBNAIL_BYTES = 12_000


class Picture(str):
    """A picture in a file. As a string it is its name, by which messages, tables and exports show it.

    Args:
        name: how the picture is shown.
        file: the file that holds it.
        offset: where in the file it begins; -1: the file is the picture.
        size: number of its bytes.
        sha256: of its bytes, as hexadecimal digits.
    """

    __slots__ = ("file", "offset", "sha256", "size")
    file: str
    offset: int
    size: int
    sha256: str

    def __new__(cls, name: str, file: str | os.PathLike[str], offset: int, size: int, sha256: str) -> Picture:
        made = super().__new__(cls, name)
        made.file, made.offset, made.size, made.sha256 = os.fspath(file), int(offset), int(size), sha256
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Picture, (str(self), self.file, self.offset, self.size, self.sha256)

    @property
    def where(self) -> str:
        """The place of the picture, for messages."""
        return self.file if self.offset < 0 else f"{self.file}, {shortened(self)} at byte {self.offset:,}"

    def read(self) -> bytes:
        """Its bytes.

        Raises:
            DataError: the file is missing or shorter, or holds other bytes than when the dataset was read.
        """
        data = read_part(Path(self.file), self.offset, self.size, self.where)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise DataError(
                f"{self.where}: the picture is not the one that the dataset was read with (its SHA-256 is another): put the old "
                f"file back, or read the dataset again"
            )
        return data

    def decode(self) -> Any:
        """The picture as a `PIL.Image.Image` in RGB, upright.

        Raises:
            DataError: as for `read`, or it is no picture, cut off, or larger than `MOST_PIXELS`.
        """
        return decoded(self.read(), self.where)


def shortened(name: str, most: int = 120) -> str:
    """A name for a message: without control characters, and not too long."""
    shown = "".join(c if c.isprintable() else "?" for c in name[: most + 1])
    return shown if len(name) <= most else f"{shown[:most]}…"


def read_part(path: Path, offset: int, size: int, where: str) -> bytes:
    """`size` bytes of a file from `offset` on, or the whole file (-1), which must have that size.

    Raises:
        DataError: the file is missing, is no regular file, or has fewer bytes (as a whole: another number).
    """
    if not 0 < size <= MOST_BYTES:
        raise DataError(f"{where}: a picture of {size:,} bytes; it must have 1 to {MOST_BYTES:,}")
    try:
        if not path.is_file():
            raise DataError(f"{where}: {'it is no regular file' if path.exists() else 'the file does not exist'}")
        with open(path, "rb") as file:
            file.seek(max(offset, 0))
            data = file.read(size if offset >= 0 else size + 1)
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: the picture cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(data) != size:
        raise DataError(
            f"{where}: {len(data):,} bytes in place of {size:,}: the file was cut off, or changed since it was read"
        )
    return data


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingDependencyError("pillow", "images", "reading pictures") from None
    return Image


def _opened(data: bytes, where: str) -> Any:
    """The picture, of which the header alone was read; DataError if it is none, or too large."""
    library = _pillow()
    try:
        with warnings.catch_warnings():  # of Pillow's own limit, which is another one
            warnings.simplefilter("ignore")
            image = library.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
    except library.DecompressionBombError:
        raise DataError(f"{where}: the picture has more than {MOST_PIXELS:,} pixels: make it smaller") from None
    except Exception as error:  # a damaged file fails in many ways, deep in the decoders
        raise DataError(
            f"{where}: not a picture that can be read ({_reason(error)}); expected one of {', '.join(FORMATS)}"
        ) from None
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{where}: the picture has {width:,} x {height:,} pixels, more than {MOST_PIXELS:,}: make it smaller"
        )
    return image


def check_picture(data: bytes, where: str) -> None:
    """DataError if bytes are no picture by their header, or if it declares too many pixels; nothing is decoded."""
    _opened(data, where)


def decoded(data: bytes, where: str) -> Any:
    """A picture as a `PIL.Image.Image` in RGB; of several frames the first, turned as its EXIF orientation says.

    Raises:
        DataError: it is no picture, is cut off, or is larger than `MOST_PIXELS`.
    """
    image = _opened(data, where)
    from PIL import ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):  # 16 bits a pixel: Pillow would cut them off at 255
                image = image.convert("I")
            if image.mode == "I":
                image = image.point(lambda value: value / 256).convert("L")
            return image.convert("RGB")
    except Exception as error:
        raise DataError(
            f"{where}: the picture cannot be decoded ({_reason(error)}): it is damaged, or was not completely written"
        ) from None


def _reason(error: Exception) -> str:
    text = str(error).partition("<_io.")[0].strip() or type(error).__name__
    return shortened(text.partition("\n")[0], 200)


def thumbnail(picture: Picture) -> bytes | None:
    """A small copy as a JPEG of at most 96 pixels a side and 12,000 bytes; None if the picture cannot be read any more."""
    try:
        image = picture.decode()
    except (DataError, MissingDependencyError):
        return None
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    for quality in (80, 50, 25):
        out = io.BytesIO()
        image.save(out, "JPEG", quality=quality)
        if out.tell() <= _THUMBNAIL_BYTES:
            return out.getvalue()
    return None


def as_png(image: Any, where: str) -> bytes:
    """A `PIL.Image.Image` as PNG, without loss; DataError if it is too large or of a kind that PNG does not have."""
    if image.width * image.height > MOST_PIXELS:
        raise DataError(
            f"{where}: the picture has {image.width:,} x {image.height:,} pixels, more than {MOST_PIXELS:,}"
        )
    out = io.BytesIO()
    try:
        kept = image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else image.convert("RGB")
        kept.save(out, "PNG")
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: the picture cannot be kept ({_reason(error)})") from None
    return out.getvalue()


def is_pillow(value: object) -> bool:
    """Whether a value is a picture of Pillow, told without importing it."""
    return any(each.__name__ == "Image" and each.__module__ == "PIL.Image" for each in type(value).__mro__)


def columns_of(text: str) -> tuple[str, int, int, str]:
    """The columns `COLUMNS` of an item: those of a picture, or those that say that it is none."""
    if isinstance(text, Picture):
        return text.file, text.offset, text.size, text.sha256
    return "", -1, 0, ""


def content_of(text: str) -> bytes:
    """What tells an item from others: the bytes of a text; for a picture its SHA-256, after a byte that no text begins with."""
    return b"\xff" + bytes.fromhex(text.sha256) if isinstance(text, Picture) else text.encode("utf-8")


def pictures_from(texts: list[str], columns: dict[str, list[Any]], folder: Path | None) -> list[str]:
    """The items of a table: pictures in the rows that have a file, texts in the others. Files are relative to `folder`."""
    found: list[str] = []
    for text, file, offset, size, sha256 in zip(texts, *(columns[name] for name in COLUMNS), strict=True):
        place = file if folder is None or not file else os.path.join(folder, file)
        found.append(Picture(text, place, offset, size, sha256) if file else text)
    return found
