"""Glyphs: pictures of characters in the fonts that matplotlib ships, named by their Unicode names.

A document is a picture, written as the text `glyph:U+0041/DejaVuSans`: who encodes it draws it (`bitmap`). Letters that look
the same in several scripts (A of Latin, Greek, Cyrillic) are natural false negatives, and share a group.
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

SIZE = 32  # pixels of a picture's side

_POINTS, _BASELINE = 22, 24  # of the characters; the row they stand on

_TEST_SHARE = 10

_GLYPH = re.compile(r"glyph:U\+([0-9A-F]{4,6})/([A-Za-z-]+)")


def read_glyphs(split: str, builder: Builder) -> None:
    """Unicode name -> pictures of the character, one a font; one character in ten is in the test split."""
    for code, name in _named(sorted(_codes(FONTS[0]))):
        chosen = hashlib.sha256(str(code).encode()).digest()[0] % _TEST_SHARE == 0
        if chosen != (split == "test"):
            continue
        picture = bitmap(code, FONTS[0])
        if not picture.any():
            continue  # a kind of space
        group = hashlib.sha256(picture.tobytes()).hexdigest()[:16]
        label = f"U+{code:04X}"
        query = builder.add_query(label, name, group=group, where=label)
        for font in FONTS:
            if code in _codes(font):
                item = f"{label}/{font}"
                builder.relate(query, builder.add_document(item, f"glyph:{item}", group=group, where=item), 1)


def _named(codes: list[int]) -> Iterator[tuple[int, str]]:
    for code in codes:
        name = unicodedata.name(chr(code), "")
        if name:
            yield code, name


def parse_glyph(text: str) -> tuple[int, str] | None:
    """(code, font) of a text that names a picture; None for any other text."""
    match = _GLYPH.fullmatch(text)
    if match is None:
        return None
    code, font = int(match.group(1), 16), match.group(2)
    if font not in FONTS or code > 0x10FFFF:
        raise DataError(f"{text}: there is no such picture.{suggestion(font, FONTS)}")
    return code, font


@cache
def bitmap(code: int, font: str) -> NDArray[np.uint8]:
    """uint8 `[SIZE, SIZE]`, 0 = background: the character standing on a fixed row, in the middle; cut off where too large."""
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
    return frozenset(_font(font).get_charmap())


@cache
def _font(name: str) -> Any:
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
