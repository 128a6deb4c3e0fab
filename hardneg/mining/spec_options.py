"""Specs: short texts that describe a filter or a sampler.

`guide:st:NAME,margin=0.1` has the name `guide`, the word `st:NAME` and the option `margin`. An object that no spec describes is
written as text by `object_text`.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hardneg.errors import UsageError, suggestion

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_LONGEST = 200  # characters of a value in the text of an object; a longer value is written as its hash
_DEEPEST = 4  # how many objects inside each other the text of an object describes

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
    values = {each.name: getattr(part, each.name) for each in fields(part) if each.repr}
    defaults = {
        each.name: each.default if each.default_factory is MISSING else each.default_factory() for each in fields(part)
    }
    changed = [field for field, value in values.items() if not same(value, defaults[field])]
    parts = [value_text(values[field]) for field in changed if field in words]
    parts += [f"{field}={value_text(values[field])}" for field in changed if field not in words]
    return name + (":" + ",".join(parts) if parts else "")


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal. Unlike `==`, this works for arrays, and for objects that hold arrays.

    Objects of one class that do not define `==` are equal if all their attributes are.

    >>> same(np.zeros(2), np.zeros(2)), same(np.zeros(2), np.zeros(3)), same(1, 1.0)
    (True, False, True)
    """
    a, b = (each.item() if isinstance(each, np.generic) else each for each in (a, b))
    if a is b:
        return True
    if getattr(a, "shape", None) != getattr(b, "shape", None):
        return False
    if isinstance(a, list | tuple) and type(a) is type(b):
        return len(a) == len(b) and all(map(same, a, b))
    if type(a) is type(b) and _has_state(a):
        first, second = _state(a), _state(b)
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    try:
        equal = a == b
        return bool(equal.all() if hasattr(equal, "all") else equal)
    except (TypeError, ValueError, RuntimeError):
        return False


def _has_state(part: Any) -> bool:
    if isinstance(part, type):
        return False
    return is_dataclass(part) or (hasattr(part, "__dict__") and getattr(type(part), "__eq__", None) is object.__eq__)


def _state(part: Any) -> dict[str, Any]:
    """The attributes of an object by name: the fields of a dataclass, or everything that was set, without cached values."""
    if isinstance(part, functools.partial):
        return {"func": part.func, "args": part.args, **part.keywords}
    state = {each.name: getattr(part, each.name, None) for each in fields(part)} if is_dataclass(part) else {}
    if "__dataclass_fields__" not in vars(type(part)):  # a subclass of a dataclass may set more than the fields
        state |= getattr(part, "__dict__", {})
    cached = functools.cached_property
    return {name: value for name, value in state.items() if not isinstance(getattr(type(part), name, None), cached)}


def object_text(part: Any) -> str:
    """A text for an object, a class or a function that no spec describes. It says what the object is, but cannot be parsed.

    It is the same in every process: it holds no address in memory. Attributes that begin with `_` are left out.

    >>> from hardneg.mining.samplers import Softmax
    >>> object_text(Softmax(temperature=0.1)), object_text(len)
    ('object:hardneg.mining.samplers.Softmax(temperature=0.1)', 'object:builtins.len')
    """
    return f"object:{_described(part, _DEEPEST)}"


def _described(part: Any, levels: int) -> str:
    if hasattr(part, "__qualname__"):  # a class or a function
        return f"{part.__module__}.{part.__qualname__}"
    name = f"{type(part).__module__}.{type(part).__qualname__}"
    if levels == 0:
        return name
    state = {key: value for key, value in _state(part).items() if not key.startswith("_")}
    return f"{name}({', '.join(f'{key}={value_text(value, levels - 1)}' for key, value in state.items())})"


def value_text(value: Any, levels: int = _DEEPEST) -> str:
    """A value as text in a spec. Arrays and long values are written as a hash.

    Args:
        value: the value.
        levels: how deeply to look into objects; below, only the class of an object is written.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | int | float):
        text = str(value)
    elif isinstance(value, os.PathLike):
        text = os.fspath(value)
    elif isinstance(value, Mapping):
        text = _listed((f"{key}:{value_text(each, levels)}" for key, each in value.items()), "{}")
    elif isinstance(value, list | tuple):
        text = _listed((value_text(each, levels) for each in value), "[]")
    elif isinstance(value, set | frozenset):
        text = _listed(sorted(value_text(each, levels) for each in value), "{}")
    elif hasattr(value, "shape") and hasattr(value, "dtype"):
        array = np.ascontiguousarray(value.detach().cpu() if hasattr(value, "detach") else value)
        content = array.reshape(-1).view(np.uint8) if not array.dtype.hasobject else repr(array.tolist()).encode()
        text = f"{array.dtype}[{'x'.join(map(str, value.shape))}]:{_hash(content)}"
    elif hasattr(value, "__dict__") or is_dataclass(value) or " at 0x" in repr(value):
        text = _described(value, levels)
    else:
        text = repr(value)
    return text if len(text) <= _LONGEST else _hash(text.encode())


def _listed(texts: Iterable[str], brackets: str) -> str:
    return brackets[0] + " ".join(texts) + brackets[1]


def _hash(content: Any) -> str:
    return f"sha256-{hashlib.sha256(content).hexdigest()[:16]}"


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

    def text(self, key: str, default: str | None = None) -> str | None:
        """The option `key` as it is written, or `default` if it is not given."""
        self.asked.append(key)
        return self.options.pop(key, default)

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
