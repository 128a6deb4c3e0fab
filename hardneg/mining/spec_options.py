"""Specs: short texts that describe a filter or a sampler.

`guide:st:NAME,margin=0.1` has the name `guide`, the word `st:NAME` and the option `margin`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from hardneg.errors import UsageError, suggestion

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = dict[str, str]


def split_spec(spec: str, what: str) -> tuple[str, list[str], Options]:
    """Split `name:word,key=value` into (name, words, options).

    Args:
        spec: the text to split.
        what: what the spec describes, for messages: `filter` or `sampler`.

    Raises:
        UsageError: an option is given twice.

    >>> split_spec("guide:st:NAME,margin=0.1", "filter")
    ('guide', ['st:NAME'], {'margin': '0.1'})
    """
    name, _, rest = spec.strip().partition(":")
    words: list[str] = []
    options: Options = {}
    for item in [part.strip() for part in rest.split(",") if part.strip()]:
        key, equals, value = item.partition("=")
        if not equals:
            words.append(item)
        elif key in options:
            raise UsageError(f"{what} {spec!r}: {key!r} is given twice")
        else:
            options[key] = value
    return name, words, options


def written_spec(part: DataclassInstance, name: str, words: Sequence[str] = ()) -> str:
    """The spec that describes a part: its name, and the fields that differ from their defaults.

    Args:
        part: a dataclass. Fields that its `repr` leaves out are left out here as well.
        name: the text before the colon.
        words: fields that are written without their names, as in `guide:st:NAME,margin=0.1`.
    """
    changed = [each.name for each in fields(part) if each.repr and getattr(part, each.name) != each.default]
    parts = [str(getattr(part, field)) for field in changed if field in words]
    parts += [f"{field}={getattr(part, field)}" for field in changed if field not in words]
    return name + (":" + ",".join(parts) if parts else "")


class SpecOptions:
    """Reads the words and options of one spec as typed values. Every value is read once; `done` refuses what is left.

    All methods raise UsageError for values that cannot be used.

    Args:
        spec: the whole spec, for messages.
        what: what the spec describes, for messages: `filter` or `sampler`.
        words, options: from `split_spec`.

    >>> options = SpecOptions("rank:max=50", "filter", [], {"max": "50"})
    >>> options.integer("min", 1, 1), options.integer("max", None, 1)
    (1, 50)
    """

    def __init__(self, spec: str, what: str, words: list[str], options: Options) -> None:
        self.spec, self.what, self.words, self.options = spec, what, list(words), dict(options)
        self.asked: list[str] = []

    def number(
        self, key: str, default: float | None = None, low: float = -math.inf, high: float = math.inf
    ) -> float | None:
        """The option `key` as a finite number from `low` to `high`, or `default` if it is not given."""
        self.asked.append(key)
        if key not in self.options:
            return default
        text = self.options.pop(key)
        try:
            value = float(text)
        except ValueError:
            raise UsageError(f"{self.what} {self.spec!r}: {key}={text!r} is not a number") from None
        if not math.isfinite(value) or not low <= value <= high:
            bounds = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
            raise UsageError(
                f"{self.what} {self.spec!r}: {key}={text} must be {bounds if low > -math.inf else 'a finite number'}"
            )
        return value

    def integer(self, key: str, default: int | None, low: int) -> int | None:
        """The option `key` as a whole number of at least `low`, or `default` if it is not given."""
        value = self.number(key, default, low)
        if value is not None and value != int(value):
            raise UsageError(f"{self.what} {self.spec!r}: {key} must be a whole number")
        return None if value is None else int(value)

    def word(self, needed: str) -> str:
        """The next word; `needed` describes it in the message if there is none."""
        if not self.words:
            raise UsageError(f"{self.what} {self.spec!r}: {needed} is missing")
        return self.words.pop(0)

    def no_other_options(self) -> None:
        """Refuse options that were not read."""
        for key in self.options:
            raise UsageError(
                f"{self.what} {self.spec!r}: there is no option {key!r}.{suggestion(key, self.asked) if self.asked else ''}"
            )

    def done(self) -> None:
        """Refuse options and words that were not read."""
        self.no_other_options()
        for word in self.words:
            raise UsageError(f"{self.what} {self.spec!r}: {word!r} is not understood; options are written key=value")
