"""The false-negative posterior: the probability that a candidate is relevant, from its features. It is stored as plain JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from hardneg import renamed
from hardneg.errors import RunError, UsageError
from hardneg.false_negatives.features import check_features
from hardneg.storage.arrays import Float
from hardneg.storage.files import read_json, write_json

SCHEMA_VERSION = 1

SOURCES = ("judgements", "groups", "hidden positives", "known positives")

A = TypeVar("A")
Double = NDArray[np.float64]


@dataclass(frozen=True)
class LogisticModel:
    """P(relevant | features) = 1 / (1 + exp(-(intercept + sum of weight * feature))).

    Attributes:
        features: names of the features, see `hardneg.false_negatives.features`.
        weights: one weight for each feature, unscaled.
        intercept: intercept of the sum.
    """

    features: tuple[str, ...]
    weights: tuple[float, ...]
    intercept: float

    def logit(self, values: Mapping[str, A]) -> A:
        """The sum, elementwise, for numpy arrays or torch tensors of any shape, by feature name."""
        total: Any = self.intercept
        for name, weight in zip(self.features, self.weights, strict=True):
            value: Any = values[name]
            total = total + value * weight
        logit: A = total
        return logit

    def probability(self, values: Mapping[str, Float]) -> Double:
        """float64 in the shape of the features: P(relevant).

        This one function serves filtering, learning and certifying. It adds feature by feature in double precision, so that bits do
        not depend on the block.
        """
        from scipy.special import expit  # imported late: mining without a posterior does not load SciPy

        probability: Double = expit(self.logit({name: values[name].astype(np.float64) for name in self.features}))
        return probability


@dataclass(frozen=True)
class Posterior(LogisticModel):
    """A logistic model of relevance, with the probability above which candidates are rejected.

    Attributes:
        threshold: candidates with a higher probability of relevance are rejected.
        source: the training data, one of `SOURCES`.
        fingerprints: fingerprints of the encoder and vectors. A posterior is not valid for another encoder.
        report: how the posterior was learned and how well it is calibrated, for people.
        guarantee: what was certified for the threshold, and for which selection; None: nothing.

    >>> posterior = Posterior(("score",), (2.0,), -1.0, threshold=0.2, source="judgements")
    >>> posterior.probability({"score": np.float32([0.5])})
    array([0.5])
    """

    threshold: float
    source: str
    fingerprints: dict[str, str | None] = field(default_factory=dict, hash=False)
    report: dict[str, Any] = field(default_factory=dict, hash=False)
    guarantee: dict[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        check_features(self.features)
        numbers = (*self.weights, self.intercept, self.threshold)
        if len(self.features) != len(self.weights) or not self.features:
            raise UsageError(f"a posterior of {len(self.features)} features has {len(self.weights)} weights")
        if not all(math.isfinite(number) for number in numbers) or not 0 <= self.threshold <= 1:
            raise UsageError("a posterior's weights must be finite and its threshold 0 to 1")
        if self.source not in SOURCES:
            raise UsageError(f"a posterior's source must be one of {', '.join(SOURCES)}, not {self.source!r}")

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "hardneg posterior",
            "source": self.source,
            "features": dict(zip(self.features, self.weights, strict=True)),
            "intercept": self.intercept,
            "threshold": self.threshold,
            "fingerprints": self.fingerprints,
            "report": self.report,
            "guarantee": self.guarantee,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], where: str) -> Self:
        """Make a posterior from JSON. Raises RunError, naming `where`, if it is not a posterior of this version."""
        if value.get("kind") != "hardneg posterior":
            raise RunError(f"{where} is no posterior: hardneg calibrate writes them")
        if value.get("schema_version") != SCHEMA_VERSION:
            raise RunError(
                f"{where} has schema version {value.get('schema_version')!r}, this version of hardneg reads "
                f"{SCHEMA_VERSION}: calibrate again"
            )
        try:
            features = renamed.with_new_names(value["features"], renamed.FEATURES)
            return cls(
                tuple(features),
                tuple(float(weight) for weight in features.values()),
                float(value["intercept"]),
                float(value["threshold"]),
                value["source"],
                dict(value["fingerprints"]),
                dict(value["report"]),
                None if value["guarantee"] is None else dict(value["guarantee"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
            raise RunError(f"{where} is a damaged posterior ({error!r}): calibrate again") from None

    def save(self, path: str | Path) -> None:
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Load a posterior. Raises RunError if the file does not exist or is not a posterior of this version."""
        return cls.from_json(read_json(Path(path)), str(path))


def identity(fingerprints: Mapping[str, Any]) -> dict[str, str | None]:
    """The fingerprints of a run that identify its scores: the encoder's weights, or the given vectors."""
    if fingerprints.get("encoder") is not None:
        return {"encoder": str(fingerprints["encoder"])}
    return {name: fingerprints.get(name) for name in ("query_embeddings", "corpus_embeddings")}


def selection_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run that decide which of the kept candidates become negatives."""
    chosen = {name: config[name] for name in ("sampler", "negatives", "seed", "default_filters")}
    return {**chosen, "filters": [spec for spec in config["filters"] if not spec.startswith("posterior:")]}


def check_identity(posterior: Posterior, fingerprints: Mapping[str, Any], where: str, force: bool = False) -> None:
    """Raise RunError if `posterior` was learned with another encoder than that of these fingerprints, unless `force`."""
    now = identity(fingerprints)
    if posterior.fingerprints != now and not force:
        said = "; ".join(
            f"{name}: {_short(posterior.fingerprints.get(name))} then, {_short(now.get(name))} now"
            for name in sorted({*posterior.fingerprints, *now})
        )
        raise RunError(
            f"{where} was learned with another encoder ({said}): its probabilities mean nothing here. "
            f"Calibrate again, or use --force"
        )


def _short(fingerprint: str | None) -> str:
    return "none" if fingerprint is None else fingerprint[:12]
