"""Filters and samplers as people write them: `margin:relative=0.05`, `softmax:temperature=0.1`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from hardneg.errors import UsageError, suggestion
from hardneg.mining import filters as f
from hardneg.mining.posterior import Posterior
from hardneg.mining.samplers import Sampler, SimANS, Softmax, Top, Uniform

Options = dict[str, str]


def split_spec(spec: str, what: str) -> tuple[str, list[str], Options]:
    """`name:word,key=value` -> (name, words, options)."""
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


class _Values:
    """Typed access to the options of one spec; `done` complains about what was not asked for."""

    def __init__(self, spec: str, what: str, words: list[str], options: Options) -> None:
        self.spec, self.what, self.words, self.options = spec, what, list(words), dict(options)
        self.asked: list[str] = []

    def number(
        self, key: str, default: float | None = None, low: float = -math.inf, high: float = math.inf
    ) -> float | None:
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
        value = self.number(key, default, low)
        if value is not None and value != int(value):
            raise UsageError(f"{self.what} {self.spec!r}: {key} must be a whole number")
        return None if value is None else int(value)

    def word(self, needed: str) -> str:
        if not self.words:
            raise UsageError(f"{self.what} {self.spec!r}: {needed} is missing")
        return self.words.pop(0)

    def no_other_options(self) -> None:
        for key in self.options:
            raise UsageError(
                f"{self.what} {self.spec!r}: there is no option {key!r}.{suggestion(key, self.asked) if self.asked else ''}"
            )

    def done(self) -> None:
        self.no_other_options()
        for word in self.words:
            raise UsageError(f"{self.what} {self.spec!r}: {word!r} is not understood; options are written key=value")


def _duplicate(v: _Values) -> f.Filter:
    if v.words == ["text"]:
        v.words.clear()
    near = v.number("near")
    return f.Duplicate(near=near)


def _rank(v: _Values) -> f.Filter:
    low, high = v.integer("min", 1, 1), v.integer("max", None, 1)
    assert low is not None
    if high is not None and high < low:
        raise UsageError(f"filter {v.spec!r}: max is below min")
    return f.Rank(min=low, max=high)


def _score(v: _Values) -> f.Filter:
    low, high = v.number("min"), v.number("max")
    v.no_other_options()
    if low is None and high is None:
        raise UsageError(f"filter {v.spec!r}: give min=, max= or both")
    if low is not None and high is not None and high < low:
        raise UsageError(f"filter {v.spec!r}: max is below min")
    return f.Score(min=-math.inf if low is None else low, max=math.inf if high is None else high)


def _margin(v: _Values) -> f.Filter:
    absolute, relative = v.number("absolute", low=0), v.number("relative", low=0)
    v.no_other_options()
    if absolute is None and relative is None:
        raise UsageError(f"filter {v.spec!r}: give absolute=, relative= or both, as in margin:relative=0.05")
    return f.Margin(absolute=absolute, relative=relative)


def _crowd(v: _Values) -> f.Filter:
    high = v.number("max", low=0, high=1)
    v.no_other_options()
    if high is None:
        raise UsageError(f"filter {v.spec!r}: give max=, as in crowd:max=0.25")
    return f.SameCrowd(max=high)


def _posterior(v: _Values) -> f.Filter:
    threshold = v.number("threshold", low=0, high=1)
    file = v.word("the file, as in posterior:run/posterior.json")
    v.done()
    if file == "learned":
        return f.LearnedAtStart() if threshold is None else f.LearnedAtStart(threshold=threshold)
    return f.FalseNegative(posterior=Posterior.load(file), file=file, threshold=threshold)


def _guide(v: _Values) -> f.Filter:
    margin = v.number("margin", 0.0)
    assert margin is not None
    return f.Guide(model=v.word("the guide model, as in guide:st:NAME"), margin=margin)


def _cross_encoder(v: _Values) -> f.Filter:
    high, margin = v.number("max"), v.number("margin", low=0)
    v.no_other_options()
    if high is None and margin is None:
        raise UsageError(f"filter {v.spec!r}: give max=, margin= or both")
    return f.CrossEncoder(model=v.word("the model, as in cross-encoder:NAME,max=0.3"), max=high, margin=margin)


_FILTERS: dict[str, Callable[[_Values], f.Filter]] = {
    "known": lambda v: f.Known(),
    "empty": lambda v: f.Empty(),
    "duplicate": _duplicate,
    "distinct": lambda v: f.Distinct(),
    "group": lambda v: f.Group(),
    "rank": _rank,
    "score": _score,
    "margin": _margin,
    "crowd": _crowd,
    "guide": _guide,
    "cross-encoder": _cross_encoder,
    "posterior": _posterior,
}


def parse_filter(spec: str) -> f.Filter:
    """The filter that `spec` describes; UsageError names what is wrong with it and the nearest that exists."""
    name, words, options = split_spec(spec, "filter")
    if name not in _FILTERS:
        raise UsageError(f"unknown filter {name!r}.{suggestion(name, _FILTERS)}")
    values = _Values(spec, "filter", words, options)
    made = _FILTERS[name](values)
    values.done()
    return made


def parse_filters(specs: Sequence[str], defaults: bool = True, *, training: bool = False) -> f.Chain:
    """The chain of `known` (always first), the defaults (`empty`, `duplicate:text`), and `specs` in order.

    A filter that stands there already is not added twice. `training`: whether `posterior:learned` can be used.
    """
    chain: list[f.Filter] = [f.Known()]
    chain += [f.Empty(), f.Duplicate()] if defaults else []
    chain += [made for made in map(parse_filter, specs) if made not in chain]
    if not training and any(isinstance(each, f.LearnedAtStart) for each in chain):
        raise UsageError(
            "the filter 'posterior:learned' is learned while training; for a mining pass, learn one of a run "
            "(hardneg calibrate RUN) and give its file: posterior:RUN/posterior.json"
        )
    return f.Chain(chain)


_SAMPLERS: dict[str, Callable[[_Values], Sampler]] = {
    "top": lambda v: Top(),
    "uniform": lambda v: Uniform(),
    "softmax": lambda v: Softmax(temperature=_value(v.number("temperature", 0.05, 1e-6))),
    "simans": lambda v: SimANS(a=_value(v.number("a", 100.0, 0)), b=_value(v.number("b", 0.0))),
}


def parse_sampler(spec: str) -> Sampler:
    """The sampler that `spec` describes: `top`, `uniform`, `softmax:temperature=0.05` or `simans:a=100,b=0`."""
    name, words, options = split_spec(spec, "sampler")
    if name not in _SAMPLERS:
        raise UsageError(f"unknown sampler {name!r}.{suggestion(name, _SAMPLERS)}")
    values = _Values(spec, "sampler", words, options)
    made = _SAMPLERS[name](values)
    values.done()
    return made


def _value(number: Any) -> float:
    return float(number)
