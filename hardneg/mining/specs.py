"""Make filters and samplers from their specs: `margin:relative=0.05`, `softmax:temperature=0.1`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hardneg import registry, renamed
from hardneg.errors import UsageError, suggestion
from hardneg.mining.filters.base import Chain, Filter
from hardneg.mining.filters.identity import Duplicate, Empty, Known
from hardneg.mining.samplers import Sampler, SimANS, Softmax, Top, Uniform
from hardneg.mining.spec_options import SpecOptions, split_spec


def parse_filter(spec: str | Filter) -> Filter:
    """The filter that `spec` describes, or `spec` itself if it is a filter.

    Raises:
        UsageError: the message says what is wrong with the spec, and suggests the nearest filter name.

    >>> parse_filter("margin:relative=0.05")
    Margin(absolute=None, relative=0.05)
    """
    if isinstance(spec, Filter):
        return spec
    if not isinstance(spec, str):
        raise UsageError(f"a filter is written as a spec (margin:relative=0.05) or given as a Filter, not {spec!r}")
    spec = renamed.filter_spec(spec)
    name, words, options = split_spec(spec, "filter")
    make = registry.find("filter", name)
    values = SpecOptions(spec, "filter", words, options)
    parsed = make(values)
    values.done()
    if not isinstance(parsed, Filter):
        raise UsageError(f"filter {spec!r}: its function returned a {type(parsed).__name__}, which is no Filter")
    return parsed


def parse_filters(specs: Sequence[str | Filter], defaults: bool = True, *, training: bool = False) -> Chain:
    """The chain of `known` (always first), the default filters (`empty`, `duplicate:text`), and `specs` in order.

    Args:
        specs: filters, as for `parse_filter`. A filter that is already in the chain is not added again.
        defaults: whether to use the default filters.
        training: whether to allow filters that work only while training.

    Raises:
        UsageError: a spec cannot be used, or its filter works only while training.

    >>> parse_filters(["rank:max=50"]).names
    ['kept', 'known', 'empty', 'duplicate', 'rank']
    """
    chain: list[Filter] = [Known()]
    chain += [Empty(), Duplicate()] if defaults else []
    chain += [each for each in map(parse_filter, specs) if each not in chain]
    for each in chain:
        if each.only_in_training and not training:
            raise UsageError(each.only_in_training)
    return Chain(chain)


_SAMPLERS: dict[str, Callable[[SpecOptions], Sampler]] = {
    "top": lambda v: Top(),
    "uniform": lambda v: Uniform(),
    "softmax": lambda v: Softmax(temperature=_value(v.number("temperature", 0.05, 1e-6))),
    "simans": lambda v: SimANS(a=_value(v.number("a", 100.0, 0)), b=_value(v.number("b", 0.0))),
}


def parse_sampler(spec: str | Sampler) -> Sampler:
    """The sampler that `spec` describes: `top`, `uniform`, `softmax:temperature=0.05` or `simans:a=100,b=0`.

    An object with `log_weights(candidates)` is a sampler already, and is returned unchanged.

    Raises:
        UsageError: the message says what is wrong with the spec.

    >>> parse_sampler("softmax:temperature=0.1")
    Softmax(temperature=0.1)
    """
    if not isinstance(spec, str):
        if callable(getattr(spec, "log_weights", None)):
            return spec
        raise UsageError(f"a sampler is written as a spec (uniform) or has log_weights(candidates), unlike {spec!r}")
    name, words, options = split_spec(spec, "sampler")
    if name not in _SAMPLERS:
        raise UsageError(f"unknown sampler {name!r}.{suggestion(name, _SAMPLERS)}")
    values = SpecOptions(spec, "sampler", words, options)
    sampler = _SAMPLERS[name](values)
    values.done()
    return sampler


def _value(number: Any) -> float:
    return float(number)
