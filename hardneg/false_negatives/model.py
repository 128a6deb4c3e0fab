"""The false-negative posterior: the probability that a candidate is relevant, computed from its features.

A posterior is stored as plain JSON.
"""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from hardneg import renamed
from hardneg.errors import RunError, UsageError
from hardneg.false_negatives.features import Term, check_features
from hardneg.mining.specs import names_code, no_code, parse_filter, parse_sampler
from hardneg.registry import spec_of
from hardneg.storage.arrays import Float
from hardneg.storage.json_files import read_json, write_json
from hardneg.storage.outputs import check_replaceable

SCHEMA_VERSION = 2

READ_VERSIONS = (1, 2)  # 1: without `in_loss`, and without hinges among the features

# The share that a posterior without judgements says may be off by this factor beyond its range of levels. Measured:
# benchmarks/posterior.py.
MISFIT = 1.75

HIDEABLE = 200  # queries with several positives: with this many or more, `auto` hides one positive of each

SOURCES = ("judgements", "groups", "hidden positives", "known positives")

A = TypeVar("A")
T = TypeVar("T")
Double = NDArray[np.float64]


@dataclass(frozen=True)
class LogisticModel:
    """A logistic model of relevance.

    P(relevant | features) = 1 / (1 + exp(-logit)), where the logit is the intercept plus the sum of weight * feature.

    Attributes:
        features: the terms: names of features, or hinges of them; see `hardneg.false_negatives.features`.
        weights: one weight for each term, for features that are not scaled.
        intercept: the intercept of the logit.
    """

    features: tuple[str, ...]
    weights: tuple[float, ...]
    intercept: float

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        return tuple(Term.parse(name) for name in self.features)

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """The names of the features that the terms are made of, each once."""
        return tuple(dict.fromkeys(term.feature for term in self.terms))

    def logit(self, values: Mapping[str, A]) -> A:
        """The logit of P(relevant).

        Args:
            values: the features by name, as numpy arrays or torch tensors of any shape.

        Returns:
            An array or tensor of the same shape.
        """
        total: Any = self.intercept
        for term, weight in zip(self.terms, self.weights, strict=True):
            value: Any = term.of(values)
            total = total + value * weight
        logit: A = total
        return logit

    def probability(self, values: Mapping[str, Float]) -> Double:
        """P(relevant), float64, in the shape of the features.

        Filtering, learning and certifying all use this function. It adds one feature after the other in double
        precision, so that the result of a pair does not depend on the block that it is computed in.

        Args:
            values: the features by name, float32 arrays of any shape.
        """
        from scipy.special import expit  # imported here: mining without a posterior does not need SciPy

        with np.errstate(over="ignore", invalid="ignore"):
            logit = np.asarray(self.logit({name: values[name].astype(np.float64) for name in self.needed}))
        if np.isnan(logit).any():
            raise RunError(
                "the posterior's weights are too large for these features (its log odds overflow): calibrate again"
            )
        probability: Double = expit(logit)
        return probability


@dataclass(frozen=True)
class Posterior(LogisticModel):
    """A logistic model of relevance with a threshold. Candidates above the threshold are rejected.

    Attributes:
        threshold: candidates with a higher probability of relevance are rejected.
        source: what the posterior was learned from, one of `SOURCES`.
        fingerprints: the hashes that identify the encoder or the given vectors. The posterior is valid for these only.
        report: how the posterior was learned and how well it is calibrated, for people to read.
        guarantee: what was certified about the threshold, and for which selection; None if nothing was certified.
        in_loss: a model of shared-neighbor features only, for documents of the batch and the bank (see `make_sketch`); None: the
            posterior itself, which then must have no other features.

    Raises:
        UsageError: a feature is unknown, the numbers of features and weights differ, a number is not finite, the
            threshold is not between 0 and 1, or the source is unknown.

    >>> posterior = Posterior(("score",), (2.0,), -1.0, threshold=0.2, source="judgements")
    >>> posterior.probability({"score": np.float32([0.5])})
    array([0.5])
    """

    threshold: float
    source: str
    fingerprints: dict[str, str | None] = field(default_factory=dict, hash=False)
    report: dict[str, Any] = field(default_factory=dict, hash=False)
    guarantee: dict[str, Any] | None = field(default=None, hash=False)
    in_loss: LogisticModel | None = None

    def __post_init__(self) -> None:
        check_features(self.features)
        numbers = (*self.weights, self.intercept, self.threshold)
        if self.in_loss is not None:
            check_features(self.in_loss.features)
            numbers = (*numbers, *self.in_loss.weights, self.in_loss.intercept)
            if len(self.in_loss.features) != len(self.in_loss.weights) or not self.in_loss.features:
                raise UsageError("a posterior's model for the loss has not as many weights as features")
        if len(self.features) != len(self.weights) or not self.features:
            raise UsageError(f"a posterior of {len(self.features)} features has {len(self.weights)} weights")
        if not all(math.isfinite(number) for number in numbers) or not 0 <= self.threshold <= 1:
            raise UsageError("a posterior's weights must be finite, and its threshold must be between 0 and 1")
        if self.source not in SOURCES:
            raise UsageError(f"a posterior's source must be one of {', '.join(SOURCES)}, not {self.source!r}")

    def to_json(self) -> dict[str, Any]:
        """The posterior as JSON values, in the format that `from_json` reads."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "hardneg posterior",
            "source": self.source,
            **_model_json(self),
            "threshold": self.threshold,
            "fingerprints": self.fingerprints,
            "report": self.report,
            "guarantee": self.guarantee,
            "in_loss": None if self.in_loss is None else _model_json(self.in_loss),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], where: str) -> Self:
        """Make a posterior from the JSON values of `to_json`.

        Args:
            value: the JSON values.
            where: where they come from, for example the path of a file. Error messages name it.

        Raises:
            RunError: `value` is not a posterior, was written for another version, or is damaged.
        """
        if not isinstance(value, dict) or value.get("kind") != "hardneg posterior":
            raise RunError(f"{where} is no posterior: hardneg calibrate writes posteriors")
        version = value.get("schema_version")
        if type(version) is not int or version not in READ_VERSIONS:
            raise RunError(
                f"{where} has schema version {value.get('schema_version')!r}, but this version of hardneg reads "
                f"{' and '.join(map(str, READ_VERSIONS))}: calibrate again"
            )
        try:
            model = _model_from(value, where)
            in_loss = value.get("in_loss")
            fingerprints = _typed(value["fingerprints"], dict, "fingerprints")
            if not all(each is None or isinstance(each, str) for each in fingerprints.values()):
                raise UsageError("a fingerprint must be text or null")
            return cls(
                model.features,
                model.weights,
                model.intercept,
                _number(value["threshold"], "threshold"),
                _typed(value["source"], str, "source"),
                dict(fingerprints),
                dict(_typed(value["report"], dict, "report")),
                _guarantee(value["guarantee"]),
                None if in_loss is None else _model_from(_typed(in_loss, dict, "in_loss"), where),
            )
        except KeyError as error:
            raise RunError(f"{where} is a damaged posterior (it has no entry {error}): calibrate again") from None
        except UsageError as error:
            raise RunError(f"{where} is a damaged posterior ({error}): calibrate again") from None

    def save(self, path: str | Path) -> None:
        """Write the posterior to a JSON file.

        Raises:
            UsageError: a feature names a module, which is never taken from a file; or the path is that of a run's file.
            DataError: another file is there, which is no posterior.
        """
        check_savable(self.features)
        check_replaceable(Path(path), "posterior", b'"threshold"', b'"features"')
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Load a posterior from a JSON file.

        Raises:
            RunError: the file does not exist, or is not a posterior of this version.
        """
        return cls.from_json(read_json(Path(path)), str(path))


def _model_json(model: LogisticModel) -> dict[str, Any]:
    return {"features": dict(zip(model.features, model.weights, strict=True)), "intercept": model.intercept}


def _model_from(value: Mapping[str, Any], where: str) -> LogisticModel:
    features = renamed.with_new_names(_typed(value["features"], dict, "features"), renamed.FEATURES)
    for name in features:
        no_code(name, where)
    weights = tuple(_number(weight, name) for name, weight in features.items())
    return LogisticModel(tuple(features), weights, _number(value["intercept"], "intercept"))


def check_savable(features: Sequence[str]) -> None:
    """Raise UsageError for a feature that names a module: a file with it would not be loaded (see `no_code`)."""
    named = [name for name in features if names_code(name)]
    if named:
        raise UsageError(
            f"the feature {named[0]!r} names a module, which is never taken from a file, so a saved posterior could not be "
            f"loaded: use a saved model, or an encoder that is registered under a name (hardneg.registry.register)"
        )


def _typed(value: Any, kind: type[T], name: str) -> T:
    """`value` itself; UsageError if it is of another type."""
    if not isinstance(value, kind):
        raise UsageError(f"{name} is {reprlib.repr(value)}, which is no {kind.__name__}")
    return value


def _number(value: Any, name: str) -> float:
    """`value` as a finite float; UsageError if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name} is {reprlib.repr(value)}, which is no number")
    if not -sys.float_info.max <= value <= sys.float_info.max:
        raise UsageError(f"{name} is not a finite number of 64 bits")
    return float(value)


def _guarantee(value: Any) -> dict[str, Any] | None:
    """The entry `guarantee` of a file; UsageError if it lacks what the notes of a selection need."""
    if value is None:
        return None
    guarantee = dict(_typed(value, dict, "guarantee"))
    _number(guarantee["threshold"], "the threshold of the guarantee")
    selection = _typed(guarantee["selection"], dict, "the selection of the guarantee")
    _typed(selection["sampler"], str, "the sampler of the guarantee")
    for spec in _typed(selection["filters"], list, "filters of the guarantee"):
        _typed(spec, str, "a filter of the guarantee")
    for name in ("negatives", "seed", "default_filters"):
        _typed(selection[name], int, f"{name} of the guarantee")
    # Files of version 0.1 have neither.
    if "depth" in guarantee:
        _typed(guarantee["depth"], int, "the depth of the guarantee")
    if not all(
        each is None or isinstance(each, str)
        for each in _typed(guarantee.get("drawn_from", {}), dict, "drawn_from").values()
    ):
        raise UsageError("a fingerprint of the guarantee must be text or null")
    return guarantee


def identity(fingerprints: Mapping[str, Any]) -> dict[str, str | None]:
    """The fingerprints that decide whether a posterior fits a run: the encoder's weights, or the given vectors.

    Args:
        fingerprints: all fingerprints of the run.

    >>> identity({"encoder": "12ab", "dataset": "34cd"})
    {'encoder': '12ab'}
    """
    if fingerprints.get("encoder") is not None:
        return {"encoder": str(fingerprints["encoder"])}
    return {name: fingerprints.get(name) for name in ("query_embeddings", "corpus_embeddings")}


def sources_of(fingerprints: Mapping[str, Any]) -> dict[str, str | None]:
    """The fingerprints of what candidates are found from: texts, labels, and the encoder or the vectors.

    >>> sources_of({"source": "a/b", "queries": "12", "documents": "34", "posterior:p.json": "56", "encoder": None})
    {'queries': '12', 'documents': '34', 'encoder': None}
    """
    named = (
        "queries", "documents", "labels", "encoder", "query_embeddings", "corpus_embeddings", "relabels",
    )  # fmt: skip
    more = (name for name in sorted(fingerprints) if name.startswith("candidates:"))
    return {
        name: None if fingerprints[name] is None else str(fingerprints[name])
        for name in (*named, *more)
        if name in fingerprints
    }


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What both say and say differently, in words.

    >>> changes({"negatives": 7, "seed": 0}, {"negatives": 3, "seed": 0})
    ['negatives 7 then, 3 now']
    """
    return [
        f"{name} {then[name]!r} then, {now[name]!r} now" for name in then if name in now and now[name] != then[name]
    ]


def selection_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run that decide which of its candidates become negatives, without the posterior.

    Specs are written in one way, so that `softmax` and `softmax:temperature=0.05`, or an old and a new name, are equal.

    >>> config = {"sampler": "softmax:temperature=0.05", "negatives": 7, "seed": 0, "default_filters": True}
    >>> chosen = selection_of({**config, "filters": ["crowd:max=0.90", "posterior:p.json"]})
    >>> chosen["sampler"], chosen["filters"]
    ('softmax', ['shared-neighbors:max=0.9'])
    """
    chosen = {name: config[name] for name in ("negatives", "seed", "default_filters")}
    filters = [spec for spec in config["filters"] if not spec.startswith("posterior:")]
    return {
        "sampler": _in_one_way(config["sampler"], parse_sampler),
        **chosen,
        "filters": [_in_one_way(spec, parse_filter) for spec in filters],
    }


def _in_one_way(spec: str, parse: Callable[[str], Any]) -> str:
    """The spec of the object that `spec` makes; a spec that makes none as it is."""
    try:
        return spec_of(parse(spec))
    except UsageError:
        return spec_of(spec)


def check_identity(posterior: Posterior, fingerprints: Mapping[str, Any], where: str, force: bool = False) -> None:
    """Check that a posterior was learned with the encoder of a run.

    Args:
        posterior: the posterior.
        fingerprints: the fingerprints of the run.
        where: what the error message calls the posterior, for example its file.
        force: accept any encoder.

    Raises:
        RunError: the encoder is another one, and `force` is False.
    """
    now = identity(fingerprints)
    if posterior.fingerprints != now and not force:
        changes = "; ".join(
            f"{name}: {_short(posterior.fingerprints.get(name))} then, {_short(now.get(name))} now"
            for name in sorted({*posterior.fingerprints, *now})
        )
        raise RunError(
            f"{where} was learned with another encoder ({changes}): its probabilities are not valid here. "
            f"Calibrate again, or use --force"
        )


def _short(fingerprint: str | None) -> str:
    return "none" if fingerprint is None else fingerprint[:12]
