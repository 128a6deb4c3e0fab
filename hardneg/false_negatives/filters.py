"""Filters against false negatives: shared nearest neighbors, and a learned posterior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.errors import UsageError
from hardneg.false_negatives.announced import Announced
from hardneg.false_negatives.features import SHARED_FEATURES, PairFeatures
from hardneg.false_negatives.model import Posterior, changes, check_identity, selection_of
from hardneg.mining.candidates import Candidates, Context
from hardneg.mining.filters.base import Filter
from hardneg.mining.spec_options import SpecOptions
from hardneg.storage.arrays import Float, Mask
from hardneg.storage.files import fingerprint, sha256_file


@dataclass(frozen=True, kw_only=True)
class SharedNeighbors(Filter):
    """Keeps documents that share few nearest neighbors with the query, its positive, and the positives of similar queries.

    Attributes:
        max: the highest mean of the three cosines of neighbor vectors that is kept, 0 to 1; see `shared_neighbors`.
    """

    name = "shared-neighbors"
    max: float

    @property
    def needs(self) -> frozenset[str]:
        return needs_of(SHARED_FEATURES)

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        found = PairFeatures(context).of(SHARED_FEATURES, candidates)
        mean = (found["shared_query"] + found["shared_positive"] + found["shared_votes"]) / np.float32(3)
        keep: Mask = mean <= np.float32(self.max)
        return keep


@dataclass(frozen=True, kw_only=True)
class PosteriorFilter(Filter):
    """Keeps documents that a learned posterior (`hardneg calibrate`) finds unlikely to be relevant.

    Attributes:
        posterior: estimates how likely a candidate is relevant.
        file: the file of the posterior; empty if it is only in memory.
        threshold: the highest probability of relevance that is kept; None: the posterior's own threshold.
    """

    name = "posterior"
    words = ("file",)
    posterior: Posterior = field(repr=False)
    file: str = ""
    threshold: float | None = None

    @property
    def guide_encoders(self) -> tuple[str, ...]:
        return tuple(name.partition(":")[2] for name in self.posterior.needed if name.startswith("guide:"))

    @property
    def needs(self) -> frozenset[str]:
        return needs_of(self.posterior.needed)

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        limit = self.posterior.threshold if self.threshold is None else self.threshold
        keep: Mask = self.false_probability(candidates, context) <= np.float32(limit)
        return keep

    def false_probability(
        self, candidates: Candidates, context: Context, columns: NDArray[np.integer] | None = None
    ) -> Float:
        """float32 `[n, K]`, or `[n, c]` of these columns: P(relevant)."""
        values = PairFeatures(context).of(self.posterior.needed, candidates, columns)
        probability: Float = self.posterior.probability(values).astype(np.float32)
        return probability

    def check(self, fingerprints: Mapping[str, Any], force: bool = False) -> dict[str, str]:
        """The SHA-256 hash of the posterior's file, by name. For a posterior in memory, it is the hash of its JSON.

        Raises:
            RunError: the posterior was learned with another encoder, and `force` is False.
        """
        check_identity(self.posterior, fingerprints, self.file or "the posterior", force)
        content = sha256_file(Path(self.file)) if self.file else fingerprint(self.posterior.to_json())
        return {f"posterior:{self.file}": content}

    def notes(self, config: Mapping[str, Any]) -> list[str]:
        """A warning if the guarantee does not hold for this selection."""
        guarantee = self.posterior.guarantee
        if guarantee is None:
            return []
        limit = self.posterior.threshold if self.threshold is None else self.threshold
        if limit != guarantee["threshold"]:
            certified = guarantee["threshold"]
            return [
                f"the guarantee of {self.file} does not hold for threshold {limit:g}: only {certified:g} was tested, and other "
                f"thresholds, stricter ones too, leave other negatives"
            ]
        changed = changes(selection_of(guarantee["selection"]), selection_of(config))
        if "depth" in guarantee and config.get("found_depth", guarantee["depth"]) != guarantee["depth"]:
            changed.append(f"depth {guarantee['depth']} then, {config['found_depth']} now")
        sources = config.get("found_in")
        if sources is not None:
            for name, value in guarantee.get("drawn_from", {}).items():
                if sources.get(name) != value:
                    changed.append(f"other {name.replace('_', ' ')}")
            if "relabels" in sources and "relabels" not in guarantee.get("drawn_from", {}):
                changed.append("relabelled documents")
        if not changed:
            return []
        return [
            f"the guarantee of {self.file} does not hold here: it was given for other candidates ({', '.join(changed)})"
        ]

    def of_chosen(self, probability: float, config: Mapping[str, Any]) -> list[str]:
        """What share is expected to be false, if it is not what was announced for another selection."""
        said = Announced.of(self.posterior.report)
        if said is None or self.posterior.guarantee is not None or not said.differs(probability, config):
            return []
        now, changed = probability * said.corrected, said.changed(config)
        if self.threshold is not None and self.threshold != self.posterior.threshold:
            changed.append(f"threshold {self.posterior.threshold:.3g} then, {self.threshold:.3g} now")
        why = f" ({', '.join(changed)})" if changed else ""
        text = (
            f"by {self.file or 'the posterior'} about {now:.1%} of these negatives are expected to be false; the {said.expected:.1%} "
            f"of its calibration was said of another selection{why}"
        )
        if now > said.expected:
            text += ". 'hardneg calibrate' of this run finds a threshold for it"
        return [text]


@dataclass(frozen=True, kw_only=True)
class LearnedPosterior(Filter):
    """A posterior that a training learns from its first generation (`posterior:learned`).

    It does not learn from later generations. An encoder that was trained on the known positives ranks them higher than other
    relevant documents, so they are no longer a fair sample.

    Attributes:
        threshold: the highest probability of relevance that a negative may have; None: the posterior's own threshold.
    """

    name = "posterior"
    only_in_training = (
        "the filter 'posterior:learned' is learned while training; for a mining pass, learn one of a run "
        "(hardneg calibrate RUN) and give its file: posterior:RUN/posterior.json"
    )
    threshold: float = 0.2

    @property
    def spec(self) -> str:
        return f"posterior:learned,threshold={self.threshold}"

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        """Always raise UsageError. A training uses the posterior that it learned in place of this filter."""
        raise UsageError(
            "the filter 'posterior:learned' is of trainings (OnlineFilters): here, calibrate and give the file"
        )


def shared_neighbors_from_spec(v: SpecOptions) -> Filter:
    high = v.number("max", low=0, high=1)
    v.no_other_options()
    if high is None:
        raise UsageError(f"filter {v.spec!r}: give max=, as in shared-neighbors:max=0.25")
    return SharedNeighbors(max=high)


def posterior_from_spec(v: SpecOptions) -> Filter:
    threshold = v.number("threshold", low=0, high=1)
    file = v.word("the file, as in posterior:run/posterior.json")
    v.done()
    if file == "learned":
        return LearnedPosterior() if threshold is None else LearnedPosterior(threshold=threshold)
    return PosteriorFilter(posterior=Posterior.load(file), file=file, threshold=threshold)


def needs_of(names: Sequence[str]) -> frozenset[str]:
    """What these features compare across the whole dataset; see `Filter.needs`.

    >>> sorted(needs_of(["score", "local_score_query"])), sorted(needs_of(["shared_votes"]))
    (['neighbors'], ['nearest', 'neighbors'])
    """
    graph = any(name in SHARED_FEATURES or name.startswith("local_score_") for name in names)
    return frozenset([*(["neighbors"] if graph else []), *(["nearest"] if "shared_votes" in names else [])])
