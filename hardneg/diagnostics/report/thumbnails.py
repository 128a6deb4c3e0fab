"""Small copies of the pictures that a report shows. They are part of the page, so their number of bytes is bounded."""

from __future__ import annotations

import base64

from hardneg.data.picture import Picture, thumbnail

MOST_BYTES = 6_000_000  # of all pictures of a page, as text


class Thumbnails:
    """The pictures of a page, each once.

    Attributes:
        uris: the pictures, as `data:` addresses.
        left_out: number of pictures that found no room.
        missing: number of pictures that cannot be read any more.

    >>> Thumbnails().of("a text") is None
    True
    """

    def __init__(self) -> None:
        self.uris: list[str] = []
        self.left_out = self.missing = 0
        self._known: dict[str, int | None] = {}  # by SHA-256
        self._bytes = 0

    def of(self, item: str) -> int | None:
        """The place of a picture in `uris`; None for a text, and for a picture without a copy, which is counted."""
        if not isinstance(item, Picture):
            return None
        if item.sha256 not in self._known:
            self._known[item.sha256] = self._add(item)
        return self._known[item.sha256]

    def _add(self, picture: Picture) -> int | None:
        if self._bytes >= MOST_BYTES:
            self.left_out += 1
            return None
        data = thumbnail(picture)
        if data is None:
            self.missing += 1
            return None
        self.uris.append(f"data:image/jpeg;base64,{base64.b64encode(data).decode()}")
        self._bytes += len(self.uris[-1])
        return len(self.uris) - 1

    def note(self) -> str:
        """What the page says about pictures; empty without pictures."""
        if not self._known:
            return ""
        text = f"{len(self.uris):,} pictures are shown, at most 96 pixels a side."
        if self.left_out:
            text += f" {self.left_out:,} more are named only: all of them may take {MOST_BYTES // 1_000_000} MB of this page."
        if self.missing:
            text += f" {self.missing:,} cannot be read any more: their files were moved or changed."
        return text
