"""The false-negative posterior: the probability that a candidate is relevant, computed from its features.

A posterior is stored as plain JSON.
"""

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
from hardneg.storage.json_files import read_json, write_json

SCHEMA_VERSION = 1

SOURCES = ("judgements", "groups", "hidden positives", "known positives")

A = TypeVar("A")
Double = NDArray[np.float64]


@dataclass(frozen=True)
class LogisticModel:
    """A logistic model of relevance.

    P(relevant | features) = 1 / (1 + exp(-logit)), where the logit is the intercept plus the sum of weight * feature.

    Attributes:
        features: the names of the features, see `hardneg.false_negatives.features`.
        weights: one weight for each feature, for features that are not scaled.
        intercept: the intercept of the logit.
    """

    features: tuple[str, ...]
    weights: tuple[float, ...]
    intercept: float

    def logit(self, values: Mapping[str, A]) -> A:
        """The logit of P(relevant).

        Args:
            values: the features by name, as numpy arrays or torch tensors of any shape.

        Returns:
            An array or tensor of the same shape.
        """
        total: Any = self.intercept
        for name, weight in zip(self.features, self.weights, strict=True):
            value: Any = values[name]
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

        probability: Double = expit(self.logit({name: values[name].astype(np.float64) for name in self.features}))
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

    def __post_init__(self) -> None:
        check_features(self.features)
        numbers = (*self.weights, self.intercept, self.threshold)
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
            "features": dict(zip(self.features, self.weights, strict=True)),
            "intercept": self.intercept,
            "threshold": self.threshold,
            "fingerprints": self.fingerprints,
            "report": self.report,
            "guarantee": self.guarantee,
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
        if value.get("kind") != "hardneg posterior":
            raise RunError(f"{where} is no posterior: hardneg calibrate writes posteriors")
        if value.get("schema_version") != SCHEMA_VERSION:
            raise RunError(
                f"{where} has schema version {value.get('schema_version')!r}, but this version of hardneg reads "
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
        """Write the posterior to a JSON file."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Load a posterior from a JSON file.

        Raises:
            RunError: the file does not exist, or is not a posterior of this version.
        """
        return cls.from_json(read_json(Path(path)), str(path))


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


def selection_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run that decide which of its candidates become negatives, without the posterior."""
    chosen = {name: config[name] for name in ("sampler", "negatives", "seed", "default_filters")}
    return {**chosen, "filters": [spec for spec in config["filters"] if not spec.startswith("posterior:")]}


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
