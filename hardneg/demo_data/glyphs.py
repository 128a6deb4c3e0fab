"""The dataset `glyphs`: Unicode names as queries, and pictures of the characters as documents.

The pictures are drawn in the fonts that matplotlib ships. A document is a text such as `glyph:U+0041/DejaVuSans`, from
which the encoder draws the picture (see `bitmap`). Letters that look the same in several scripts, such as the A of
Latin, Greek and Cyrillic, are natural false negatives. They share a group.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.data.builder import Builder
from hardneg.errors import DataError, MissingDependencyError, suggestion

FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono")

SIZE = 32  # height and width of a picture in pixels

_POINTS, _BASELINE = 22, 24  # size of the font; row of the picture that characters stand on

_TEST_SHARE = 10  # one character in ten is in the test split

_GLYPH = re.compile(r"glyph:U\+([0-9A-F]{4,6})/([A-Za-z-]+)")


def read_glyphs(split: str, builder: Builder) -> None:
    """Add the characters of a split to `builder`.

    A query is the Unicode name of a character. Its positives are the pictures of the character, one per font.
    """
    for code, name in _named(sorted(_codes(FONTS[0]))):
        chosen = hashlib.sha256(str(code).encode()).digest()[0] % _TEST_SHARE == 0
        if chosen != (split == "test"):
            continue
        picture = bitmap(code, FONTS[0])
        if not picture.any():
            continue  # white space
        group = hashlib.sha256(picture.tobytes()).hexdigest()[:16]
        label = f"U+{code:04X}"
        query = builder.add_query(label, name, group=group, where=label)
        for font in FONTS:
            if code in _codes(font):
                item = f"{label}/{font}"
                builder.relate(query, builder.add_document(item, f"glyph:{item}", group=group, where=item), 1)


def _named(codes: list[int]) -> Iterator[tuple[int, str]]:
    """(code, Unicode name) of the characters that have a name."""
    for code in codes:
        name = unicodedata.name(chr(code), "")
        if name:
            yield code, name


def parse_glyph(text: str) -> tuple[int, str] | None:
    """(code, font) of a text that names a picture; None for any other text.

    Raises:
        DataError: the text names a font or a code that does not exist.

    >>> parse_glyph("glyph:U+0041/DejaVuSans"), parse_glyph("latin capital letter a")
    ((65, 'DejaVuSans'), None)
    """
    match = _GLYPH.fullmatch(text)
    if match is None:
        return None
    code, font = int(match.group(1), 16), match.group(2)
    if code > 0x10FFFF:
        raise DataError(f"{text}: there is no such picture: the last code point is U+10FFFF")
    if font not in FONTS:
        raise DataError(f"{text}: there is no such picture.{suggestion(font, FONTS)}")
    return code, font


@cache
def bitmap(code: int, font: str) -> NDArray[np.uint8]:
    """The picture of a character, uint8 `[SIZE, SIZE]`, read-only. The background is 0.

    The character is centered horizontally and its baseline is a fixed row. Parts outside the picture are cut off.

    Raises:
        DataError: the font does not have the character, or matplotlib does not ship the font.
        MissingDependencyError: matplotlib is not installed.
    """
    face = _font(font)
    if code not in _codes(font):
        raise DataError(f"glyph:U+{code:04X}/{font}: the font has no such character")
    face.set_text(chr(code))
    face.draw_glyphs_to_bitmap(antialiased=True)
    drawn = np.asarray(face.get_image(), np.uint8)
    picture = np.zeros((SIZE, SIZE), np.uint8)
    if drawn.size:
        bottom = _BASELINE + round(face.get_descent() / 64)
        top, left = bottom - drawn.shape[0], (SIZE - drawn.shape[1]) // 2
        rows, columns = slice(max(top, 0), min(bottom, SIZE)), slice(max(left, 0), min(left + drawn.shape[1], SIZE))
        if rows.start < rows.stop:
            picture[rows, columns] = drawn[
                rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
            ]
    picture.flags.writeable = False
    return picture


@cache
def _codes(font: str) -> frozenset[int]:
    """The code points of all characters of a font."""
    return frozenset(_font(font).get_charmap())


@cache
def _font(name: str) -> Any:
    """The matplotlib font of this name, at the size of the pictures."""
    try:
        import matplotlib
        from matplotlib.ft2font import FT2Font
    except ImportError:
        raise MissingDependencyError("matplotlib", "glyphs", "drawing glyphs") from None
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    if not path.is_file():
        raise DataError(f"the installed matplotlib does not ship the font {name} ({path})")
    face = FT2Font(str(path))
    face.set_size(_POINTS, 72)
    return face
