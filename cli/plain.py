"""Texts, ids and paths of others, made fit for a terminal: they are shown, and never steer it."""

from __future__ import annotations

import json
import re
from shlex import quote
from typing import Any

# Control characters, marks and overrides of the writing direction, separators of lines, and halves of characters.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_STEERING_IN_JSON = re.compile(_STEERING.pattern.replace("\x00-\x1f", ""))  # JSON has escaped these in its strings


def plain(text: object) -> str:
    """The text with escapes in place of what a terminal would obey, such as a colour, a link or the start of a line.

    >>> print(plain("a\\x1b[31m\\nb"))
    a\\x1b[31m\\nb
    """
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def quoted(text: object) -> str:
    """A word for a shell, which can be pasted as it is printed.

    >>> quoted("my run"), quoted("a\\nb")
    ("'my run'", "$'a\\\\x0ab'")
    """
    word = str(text)
    if not _STEERING.search(word):
        return quote(word)
    inner = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + _STEERING.sub(_escaped_for_shell, inner) + "'"


def _escaped_for_shell(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"


def json_text(value: Any) -> str:
    """The value as indented JSON, in which a terminal finds nothing to obey. Programs read the same value.

    >>> print(json_text("a\\u202eb"))
    "a\\u202eb"
    """
    text = json.dumps(value, ensure_ascii=False, indent=2)
    return _STEERING_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
