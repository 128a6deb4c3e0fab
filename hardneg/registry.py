"""The registry of readers, datasets, encoders, sources of candidates, filters, samplers and judges, imported on first use.

`builtin:glyphs` names a dataset, `st:MODEL` an encoder, `margin:relative=0.05` a filter, and `uniform` a sampler. Code
that reads specs uses this registry instead of importing the modules, which may be in higher layers of the library.
Register your own parts here:

>>> from hardneg.registry import names, register
>>> register("filter", "short", lambda options: None)
>>> "short" in names("filter")
True
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from hardneg import renamed
from hardneg.errors import UsageError, suggestion

# The parts of hardneg: the module and the function of each, by kind and name.
_PARTS: dict[str, dict[str, str | Callable[..., Any]]] = {
    # read(split, builder)
    "dataset": {
        "pycode": "hardneg.demo_data.pycode:read_pycode",
        "glyphs": "hardneg.demo_data.glyphs:read_glyphs",
    },
    # read(path) -> iterator of (place, row); the name is the suffix of the files, such as ".warc"
    "reader": {},
    # a Layout: a class with `name`, `fits(row)` and, for the rows, `__call__(place, row)`
    "layout": {},
    # make(rest of the spec, EncoderOptions) -> Encoder
    "encoder": {
        "hashed": "hardneg.encoders.hashed:from_spec",
        "st": "hardneg.encoders.sentence_transformers:from_spec",
        "open_clip": "hardneg.encoders.open_clip:from_spec",
        "glyphs": "hardneg.demo_data.glyph_encoder:from_spec",
        "module": "hardneg.encoders.factory:from_module",
    },
    # make(SpecOptions) -> Filter
    "filter": {
        "known": "hardneg.mining.filters.identity:known_from_spec",
        "empty": "hardneg.mining.filters.identity:empty_from_spec",
        "duplicate": "hardneg.mining.filters.identity:duplicate_from_spec",
        "distinct": "hardneg.mining.filters.identity:distinct_from_spec",
        "answer": "hardneg.mining.filters.answers:answer_from_spec",
        "group": "hardneg.mining.filters.identity:group_from_spec",
        "rank": "hardneg.mining.filters.limits:rank_from_spec",
        "score": "hardneg.mining.filters.limits:score_from_spec",
        "window": "hardneg.mining.filters.limits:window_from_spec",
        "margin": "hardneg.mining.filters.limits:margin_from_spec",
        "shared-neighbors": "hardneg.false_negatives.filters:shared_neighbors_from_spec",
        "guide": "hardneg.mining.filters.models:guide_from_spec",
        "cross-encoder": "hardneg.mining.filters.models:cross_encoder_from_spec",
        "teacher": "hardneg.mining.filters.models:teacher_from_spec",
        "posterior": "hardneg.false_negatives.filters:posterior_from_spec",
    },
    # make(SpecOptions) -> CandidateSource
    "candidates": {
        "dense": "hardneg.mining.sources.encoder:dense_from_spec",
        "bm25": "hardneg.mining.sources.bm25:bm25_from_spec",
        "trec": "hardneg.mining.sources.trec:trec_from_spec",
        "encoder": "hardneg.mining.sources.encoder:encoder_from_spec",
        "given": "hardneg.mining.sources.given:given_from_spec",
    },
    # make(SpecOptions) -> Fusion
    "fusion": {
        "rrf": "hardneg.mining.sources.fusion:rrf_from_spec",
        "scores": "hardneg.mining.sources.fusion:scores_from_spec",
        "interleave": "hardneg.mining.sources.fusion:interleave_from_spec",
    },
    # make(rest of the spec, JudgeOptions) -> Judge
    "judge": {
        "openai": "hardneg.judges.openai:from_spec",
        "cross-encoder": "hardneg.judges.cross_encoder:from_spec",
    },
    # make(SpecOptions) -> Sampler
    "sampler": {
        "top": "hardneg.mining.samplers:top_from_spec",
        "uniform": "hardneg.mining.samplers:uniform_from_spec",
        "softmax": "hardneg.mining.samplers:softmax_from_spec",
        "simans": "hardneg.mining.samplers:simans_from_spec",
    },
}

# The arguments that a part of each kind is called with, as messages write them; the others are `make(options)`.
_CALLED = {
    "dataset": "read(split, builder)",
    "reader": "read(path)",
    "layout": "LAYOUT(builder, options)",
    "encoder": "make(rest, options)",
    "judge": "make(rest, options)",
}

# What a finished run can do, which stands in rooms above it; see `hardneg.mining.Run`.
_VERBS = {
    "to_dataset": "hardneg.exports.dataset:to_dataset",
    "export": "hardneg.exports.export:export",
    "diagnose": "hardneg.diagnostics.diagnose:diagnose",
    "report": "hardneg.diagnostics.report.page:write_report",
    "select": "hardneg.mining.select:select_by_name",
    "score": "hardneg.mining.score:score",
    "training_page": "hardneg.diagnostics.report.plain_page:write_training",
    "relabels": "hardneg.false_negatives.relabel:relabels",
}

_WRITER = "hardneg.mining.specs:written"  # writes filters and samplers as text; see `spec_of`

# Names that a spec cannot reach: `object` stands for objects without a spec (see `spec_of`).
_TAKEN = {"object": "it stands for objects that have no spec"}
_TAKEN |= {old: f"it is the old name of {new!r}" for old, new in renamed.FILTERS.items()}


def _parts(kind: str) -> dict[str, str | Callable[..., Any]]:
    if not isinstance(kind, str) or kind not in _PARTS:
        raise UsageError(f"unknown kind {kind!r}.{suggestion(str(kind), _PARTS)}")
    return _PARTS[kind]


def names(kind: str) -> tuple[str, ...]:
    """The registered names of a kind.

    The kinds are `dataset`, `reader`, `layout`, `encoder`, `candidates`, `fusion`, `filter`, `sampler` and `judge`.
    """
    return tuple(_parts(kind))


def register(kind: str, name: str, part: Callable[..., Any]) -> None:
    """Register a part of your own under a name, in this process.

    Args:
        kind: see `names`.
        name: the part of a spec before the colon; for a reader, the suffix of its files, such as `.warc`; for a layout, its
            name among the formats. If the name is taken, the new part replaces the old one.
        part: the function behind the name: `read(split, builder)` for a dataset, `read(path)` for a reader, which yields
            (place, row), a `hardneg.data.Layout` for a layout, `make(rest, options)` for an encoder or a judge, where `rest` is
            the spec after the colon, and `make(options)` for all others.

    Raises:
        UsageError: the kind is unknown, no spec could reach the name, or the part cannot be called with these arguments.
    """
    parts = _parts(kind)
    if not isinstance(name, str):
        raise UsageError(f"a name to register is text, not {name!r}")
    if not name or any(each in ":," or each.isspace() for each in name):
        raise UsageError(
            f"the name {name!r} cannot be used in a spec: it must not be empty or have a colon, a comma or a blank"
        )
    if kind == "reader" and not (name.startswith(".") and name.count(".") == 1 and name == name.lower()):
        raise UsageError(
            f"a reader is registered under the suffix of its files in small letters, as in '.warc', not {name!r}"
        )
    if kind == "layout" and not callable(getattr(part, "fits", None)):
        raise UsageError(
            f"the layout {name!r} is a class with a function fits(row), as hardneg.data.Layout has it, not {part!r}"
        )
    if name in _TAKEN and kind not in ("dataset", "encoder"):
        raise UsageError(f"the name {name!r} cannot be used in a spec: {_TAKEN[name]}. Choose another name")
    if not callable(part):
        raise UsageError(f"{name!r} is registered with a function that makes the {kind}, not with {part!r}")
    _check_call(kind, name, part)
    parts[name] = part


def _check_call(kind: str, name: str, part: Callable[..., Any]) -> None:
    """Refuse a part that cannot be called as parts of its kind are."""
    called = _CALLED.get(kind, "make(options)")
    try:
        signature = inspect.signature(part)
    except (TypeError, ValueError):  # some that are written in C have none
        return
    try:
        signature.bind(*called.partition("(")[2].split(", "))
    except TypeError:
        meaning = "; rest is what stands behind the colon of a spec, '' if nothing does" if "rest" in called else ""
        raise UsageError(
            f"the {kind} {name!r} is called as {called}{meaning}, and what was registered takes {signature}"
        ) from None


def find(kind: str, name: str, what: str | None = None) -> Callable[..., Any]:
    """The function registered under a name.

    Args:
        kind: see `names`.
        name: the part of a spec before the colon.
        what: the kind in the words of the message; `kind` by default.

    Raises:
        UsageError: the kind or the name is unknown; the message suggests a similar one.
    """
    parts = _parts(kind)
    if name not in parts:
        raise UsageError(
            f"unknown {what or kind} {name!r}.{suggestion(name, parts)} One of your own has to be registered first, in this process "
            f"(hardneg.registry.register)"
        )
    part = parts[name]
    if isinstance(part, str):
        part = parts[name] = _loaded(part)
    return part


def _loaded(path: str) -> Callable[..., Any]:
    """The function at `MODULE:NAME`."""
    module, _, attribute = path.partition(":")
    part = getattr(import_module(module), attribute)
    assert callable(part)
    function: Callable[..., Any] = part
    return function


def verb(name: str) -> Callable[..., Any]:
    """A function of a higher room that methods of a run call."""
    return _loaded(_VERBS[name])


def spec_of(part: Any) -> str:
    """A filter, sampler, source, fusion or index as text, for files.

    Args:
        part: a spec, or an object where a spec can stand.

    Returns:
        A spec as it is, with the new name of a filter. For an object, its spec, if parsing the spec gives back an equal
        object; for an index, its name. Otherwise a text that begins with `object:`, says what the object is, and cannot
        be parsed.
    """
    if isinstance(part, str):
        return renamed.filter_spec(part)
    text: str = _loaded(_WRITER)(part)
    return text
