"""Parts that people name in a spec, found by name and imported when they are first asked for.

`builtin:glyphs` names a dataset, `st:MODEL` an encoder, `margin:relative=0.05` a filter. The room that reads such names
knows only this registry, so it need not import the rooms above it; and your own parts are found the same way:

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

# What hardneg brings along: where each part's function stands.
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


def names(kind: str) -> tuple[str, ...]:
    """The names that are known for a `kind`: `dataset`, `encoder` or `filter`."""
    return tuple(_PARTS[kind])


def register(kind: str, name: str, part: Callable[..., Any]) -> None:
    """Make `part` known as `name`, for this process.

    Args:
        kind: `dataset` (`read(split, builder)`), `encoder` (`make(rest, options)`) or `filter` (`make(options)`).
        name: what stands before the colon of a spec. A name that is taken is replaced.
        part: the function that is called with the rest of the spec.
    """
    if kind not in _PARTS:
        raise UsageError(f"unknown kind {kind!r}.{suggestion(kind, _PARTS)}")
    if not name or ":" in name or "," in name:
        raise UsageError(f"the name {name!r} cannot stand in a spec: leave out colons and commas")
    _PARTS[kind][name] = part


def find(kind: str, name: str, what: str | None = None) -> Callable[..., Any]:
    """The part called `name`; UsageError names the nearest that exists. `what` is the kind as a message says it."""
    if name not in _PARTS[kind]:
        raise UsageError(f"unknown {what or kind} {name!r}.{suggestion(name, _PARTS[kind])}")
    part = _PARTS[kind][name]
    if isinstance(part, str):
        module, _, attribute = part.partition(":")
        part = getattr(import_module(module), attribute)
        assert callable(part)
        _PARTS[kind][name] = part
    return part


def spec_of(part: Any) -> str:
    """How a filter, sampler or index is written down: its spec, else its name, else its text."""
    if isinstance(part, str):
        return part
    written = (getattr(part, attribute, None) for attribute in ("spec", "name"))
    return next((text for text in written if isinstance(text, str)), repr(part))
