"""Make filters and samplers from their specs, such as `margin:relative=0.05` and `softmax:temperature=0.1`, and write them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from functools import partial
from typing import Any

from hardneg import registry, renamed
from hardneg.errors import RunError, UsageError, suggestion
from hardneg.index.factory import INDEXES
from hardneg.mining.filters.base import Chain, Filter
from hardneg.mining.filters.identity import Distinct, Duplicate, Empty, Known
from hardneg.mining.samplers import Sampler
from hardneg.mining.sources.base import CandidateSource
from hardneg.mining.sources.fusion import Fusion
from hardneg.mining.spec_options import SpecOptions, object_text, same, split_spec

# `module:PKG.MOD:FACTORY` as a whole spec, or as the model of a guide or a cross-encoder.
_CODE = re.compile(r"(?:^|[:,])\s*module\s*:")


def parse_filter(spec: str | Filter) -> Filter:
    """The filter that `spec` describes, or `spec` itself if it is a filter.

    Raises:
        UsageError: the message says what is wrong with the spec, and suggests the nearest filter name.

    >>> parse_filter("margin:relative=0.05")
    Margin(absolute=None, relative=0.05)
    """
    if isinstance(spec, Filter):
        if spec.name == Filter.name:
            raise UsageError(
                f'the filter {type(spec).__name__} has no name: give its class one, as in name = "my-filter"; it is the verdict of '
                f"the candidates that it rejects"
            )
        return spec
    if isinstance(spec, type) and issubclass(spec, Filter):
        raise UsageError(f"the filter {spec.__name__} is a class: give an object of it, as in {spec.__name__}(...)")
    if not isinstance(spec, str):
        raise UsageError(f"a filter is written as a spec (margin:relative=0.05) or given as a Filter, not {spec!r}")
    parsed = _parsed(renamed.filter_spec(spec), "filter")
    if not isinstance(parsed, Filter):
        raise UsageError(f"filter {spec!r}: its function returned a {type(parsed).__name__}, which is no Filter")
    return parsed


def filters_of(given: Iterable[str | Filter]) -> tuple[str | Filter, ...]:
    """The value of an option `filters` as a tuple, so that a generator can be read more than once.

    Raises:
        UsageError: it is a single filter, or has no order.
    """
    if isinstance(given, str | Filter) or (isinstance(given, type) and issubclass(given, Filter)):
        raise UsageError(f"filters is a list of filters, not one filter: write filters=({given!r},)")
    if isinstance(given, Chain):
        return tuple(given.filters)
    if isinstance(given, Mapping | Set | bytes) or not isinstance(given, Iterable):
        raise UsageError(f"filters is a list of specs and Filters, applied in order, not {given!r}")
    return tuple(given)


def parse_filters(specs: Iterable[str | Filter], defaults: bool = True, *, training: bool = False) -> Chain:
    """The chain of `known` (always first), the default filters (`empty`, `duplicate:text`, `distinct`), and `specs` in order.

    Args:
        specs: filters, as for `parse_filter`. A filter that is already in the chain is not added again.
        defaults: whether to use the default filters.
        training: whether to allow filters that work only while training.

    Raises:
        UsageError: a spec cannot be used, its filter works only while training, or there are too many filters.

    >>> parse_filters(["rank:max=50"]).names
    ['kept', 'known', 'empty', 'duplicate', 'distinct', 'rank']
    """
    chain: list[Filter] = [Known()]
    chain += [Empty(), Duplicate(), Distinct()] if defaults else []
    for each in map(parse_filter, filters_of(specs)):
        if each.only_in_training and not training:
            raise UsageError(each.only_in_training)
        if not any(same(each, other) for other in chain):
            chain.append(each)
    return Chain(chain)


def parse_sampler(spec: str | Sampler) -> Sampler:
    """The sampler that `spec` describes: `top`, `uniform`, `softmax:temperature=0.05` or `simans:a=100,b=0`.

    An object with `log_weights(candidates)` is a sampler already, and is returned unchanged.

    Raises:
        UsageError: the message says what is wrong with the spec.

    >>> parse_sampler("softmax:temperature=0.1")
    Softmax(temperature=0.1)
    """
    if isinstance(spec, str):
        sampler: Sampler = _parsed(spec, "sampler")
        if not _is_sampler(sampler):
            raise UsageError(f"sampler {spec!r}: its function returned a {type(sampler).__name__}, which is no sampler")
        return sampler
    if isinstance(spec, type):
        raise UsageError(f"the sampler {spec.__name__} is a class: give an object of it, as in {spec.__name__}()")
    if not _is_sampler(spec):
        raise UsageError(f"a sampler is written as a spec (uniform) or has log_weights(candidates), unlike {spec!r}")
    return spec


def parse_source(spec: str | CandidateSource) -> CandidateSource:
    """The source of candidates that `spec` describes, or `spec` itself if it is one.

    Raises:
        UsageError: the message says what is wrong with the spec.

    >>> parse_source("bm25:k1=1.2").k1
    1.2
    """
    if isinstance(spec, CandidateSource):
        return spec
    if not isinstance(spec, str):
        raise UsageError(f"candidates are written as a spec (bm25) or given as a CandidateSource, not {spec!r}")
    parsed = _parsed(spec, "candidates")
    if not isinstance(parsed, CandidateSource):
        raise UsageError(
            f"candidates {spec!r}: its function returned a {type(parsed).__name__}, which is no CandidateSource"
        )
    return parsed


def parse_sources(specs: Iterable[str | CandidateSource]) -> tuple[CandidateSource, ...]:
    """All sources of candidates, in their order; UsageError if there are none, or one is there twice."""
    if isinstance(specs, str | CandidateSource):
        raise UsageError(f"candidates is a list of sources, not one source: write candidates=({specs!r},)")
    sources = tuple(map(parse_source, specs))
    if not sources:
        raise UsageError("candidates is an empty list: give at least one source, such as 'dense'")
    for i, each in enumerate(sources):
        if any(same(each, other) for other in sources[:i]):
            raise UsageError(f"the candidates {written(each)!r} are there twice")
    return sources


def parse_fusion(spec: str | Fusion) -> Fusion:
    """The fusion that `spec` describes: `rrf:k=60`, `scores` or `interleave`; a `Fusion` is returned unchanged.

    >>> parse_fusion("rrf:k=10").spec
    'rrf:k=10.0'
    """
    if isinstance(spec, Fusion):
        return spec
    if not isinstance(spec, str):
        raise UsageError(f"a fusion is written as a spec (rrf) or given as a Fusion, not {spec!r}")
    parsed = _parsed(spec, "fusion")
    if not isinstance(parsed, Fusion):
        raise UsageError(f"fusion {spec!r}: its function returned a {type(parsed).__name__}, which is no Fusion")
    return parsed


def _is_sampler(part: Any) -> bool:
    return not isinstance(part, type) and callable(getattr(part, "log_weights", None))


def _parsed(spec: str, what: str) -> Any:
    """What the registered function of a spec makes of it. `what` is the kind: `filter` or `sampler`."""
    name, words, options = split_spec(spec, what)
    if name == "object":
        given = {"filter": "filters=(...,)", "candidates": "candidates=(...,)"}.get(what, f"{what}=...")
        where = "SelectOptions" if what in ("filter", "sampler") else "MineOptions"
        raise UsageError(
            f"the {what} {spec!r} was given as an object, which cannot be made from this text: give the object again, as "
            f"in {where}({given}). An object whose name is registered (hardneg.registry.register) before the run is "
            f"mined has a spec, which can be read again"
        )
    values = SpecOptions(spec, what, words, options)
    parsed = registry.find(what, name)(values)
    values.done()
    return parsed


_PARSERS: tuple[tuple[type, Any], ...] = (
    (Filter, parse_filter),
    (CandidateSource, parse_source),
    (Fusion, parse_fusion),
)


def written(part: Any) -> str:
    """A filter, a sampler, a source, a fusion or an index as text; see `hardneg.registry.spec_of`.

    >>> written(parse_sampler("softmax:temperature=0.1"))
    'softmax:temperature=0.1'
    """
    names = (getattr(part, attribute, None) for attribute in ("spec", "name"))
    spec = next((name for name in names if isinstance(name, str)), None)
    parse: Any = next((parse for kind, parse in _PARSERS if isinstance(part, kind)), None)
    if parse is None and not _is_sampler(part):
        return _written_index(part, spec)
    if spec is None:
        return object_text(part)
    try:
        parsed = (parse or parse_sampler)(spec)
    except (UsageError, RunError):
        return object_text(part)
    return spec if type(parsed) is type(part) and same(parsed, part) else object_text(part)


def _written_index(part: Any, name: str | None) -> str:
    """The name of an index or of a function that makes one. An index of a user's own does not get the name of a built-in one."""
    made = part if hasattr(part, "__qualname__") or isinstance(part, partial) else type(part)
    if name is None or (name in INDEXES and not str(getattr(made, "__module__", "")).startswith("hardneg.")):
        return object_text(made)  # of an instance, only the class: its vectors are in the fingerprints
    return name


def no_code(spec: str, where: str) -> None:
    """Refuse a spec from a file that would import and call a module. Only callers and the command line may name code.

    Args:
        spec: the spec of a filter, a sampler, an encoder or a feature.
        where: the file that it was read from, for the message.

    Raises:
        RunError: the spec names a module, or is no text.

    >>> no_code("guide:st:NAME,margin=0.1", "run/run.json")
    """
    if not isinstance(spec, str):
        raise RunError(f"{where} has {spec!r} where the text of a spec belongs: the file is damaged")
    if names_code(spec):
        raise RunError(
            f"{where} names code that would be run: {spec!r}. Modules are never taken from a file. If you trust this one, "
            f"type it yourself (as in --filter {spec!r} or SelectOptions(filters=(...,))). What cannot be typed, such as a "
            f"feature of a posterior, must be a saved model, or an encoder that is registered under a name "
            f"(hardneg.registry.register)"
        )


def names_code(spec: str) -> bool:
    """Whether a spec names a module, which is imported and called where the spec is used.

    >>> names_code("module:my_package:make"), names_code("guide:module:my_package:make"), names_code("guide:st:NAME")
    (True, True, False)
    """
    return _CODE.search(spec) is not None


def check_guides(chain: Chain) -> None:
    """Raise UsageError if a filter needs an encoder of an unknown kind, before any work is done for it."""
    known = registry.names("encoder")
    for each in chain.filters:
        for spec in each.guide_encoders:
            kind, _, rest = spec.partition(":")
            if kind not in known:
                raise UsageError(
                    f"the filter {each.name!r} needs the encoder {spec!r}, which is unknown.{suggestion(kind, known)}"
                )
            if kind in ("st", "module") and not rest:
                raise UsageError(f"the filter {each.name!r} needs the encoder {spec!r}, which is incomplete")
