"""The registry of datasets, encoders and filters that specs name. Each is imported when it is first used.

`builtin:glyphs` names a dataset, `st:MODEL` an encoder, and `margin:relative=0.05` a filter. Code that reads specs uses
this registry instead of importing the modules, which may be in higher layers of the library. Register your own parts
here:

>>> from hardneg.registry import names, register
>>> register("filter", "short", lambda options: None)
>>> "short" in names("filter")
True
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from hardneg.errors import UsageError, suggestion

# The parts of hardneg: the module and the function of each, by kind and name.
_PARTS: dict[str, dict[str, str | Callable[..., Any]]] = {
    # read(split, builder)
    "dataset": {
        "pycode": "hardneg.demo_data.pycode:read_pycode",
        "glyphs": "hardneg.demo_data.glyphs:read_glyphs",
    },
    # make(rest of the spec, EncoderOptions) -> Encoder
    "encoder": {
        "hashed": "hardneg.encoders.hashed:from_spec",
        "st": "hardneg.encoders.sentence_transformers:from_spec",
        "glyphs": "hardneg.demo_data.glyph_encoder:from_spec",
        "module": "hardneg.encoders.factory:from_module",
    },
    # make(SpecOptions) -> Filter
    "filter": {
        "known": "hardneg.mining.filters.identity:known_from_spec",
        "empty": "hardneg.mining.filters.identity:empty_from_spec",
        "duplicate": "hardneg.mining.filters.identity:duplicate_from_spec",
        "distinct": "hardneg.mining.filters.identity:distinct_from_spec",
        "group": "hardneg.mining.filters.identity:group_from_spec",
        "rank": "hardneg.mining.filters.limits:rank_from_spec",
        "score": "hardneg.mining.filters.limits:score_from_spec",
        "margin": "hardneg.mining.filters.limits:margin_from_spec",
        "shared-neighbors": "hardneg.false_negatives.filters:shared_neighbors_from_spec",
        "guide": "hardneg.mining.filters.models:guide_from_spec",
        "cross-encoder": "hardneg.mining.filters.models:cross_encoder_from_spec",
        "posterior": "hardneg.false_negatives.filters:posterior_from_spec",
    },
}


def _parts(kind: str) -> dict[str, str | Callable[..., Any]]:
    if kind not in _PARTS:
        raise UsageError(f"unknown kind {kind!r}.{suggestion(kind, _PARTS)}")
    return _PARTS[kind]


def names(kind: str) -> tuple[str, ...]:
    """The registered names of a kind: `dataset`, `encoder` or `filter`."""
    return tuple(_parts(kind))


def register(kind: str, name: str, part: Callable[..., Any]) -> None:
    """Register a dataset, an encoder or a filter under a name, in this process.

    Args:
        kind: `dataset`, `encoder` or `filter`.
        name: the part of a spec before the colon. If the name is taken, the new part replaces the old one.
        part: the function behind the name: `read(split, builder)` for a dataset, `make(rest, options)` for an encoder,
            where `rest` is the spec after the colon, and `make(options)` for a filter.

    Raises:
        UsageError: the kind is unknown, or the name is empty or has a colon or a comma.
    """
    parts = _parts(kind)
    if not name or ":" in name or "," in name:
        raise UsageError(f"the name {name!r} cannot be used in a spec: it must not be empty or have a colon or a comma")
    parts[name] = part


def find(kind: str, name: str, what: str | None = None) -> Callable[..., Any]:
    """The function registered under a name.

    Args:
        kind: `dataset`, `encoder` or `filter`.
        name: the part of a spec before the colon.
        what: the kind in the words of the message; `kind` by default.

    Raises:
        UsageError: the kind or the name is unknown; the message suggests a similar one.
    """
    parts = _parts(kind)
    if name not in parts:
        raise UsageError(f"unknown {what or kind} {name!r}.{suggestion(name, parts)}")
    part = parts[name]
    if isinstance(part, str):
        module, _, attribute = part.partition(":")
        part = getattr(import_module(module), attribute)
        assert callable(part)
        parts[name] = part
    return part


def spec_of(part: Any) -> str:
    """A filter, sampler or index as text: its attribute `spec`, else its `name`, else its `repr`; a string as it is."""
    if isinstance(part, str):
        return part
    texts = (getattr(part, attribute, None) for attribute in ("spec", "name"))
    return next((text for text in texts if isinstance(text, str)), repr(part))
