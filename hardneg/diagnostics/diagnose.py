"""Diagnose a run: measure its negatives, and find what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hardneg.diagnostics.estimates import Measurements, sampled
from hardneg.diagnostics.findings.base import SEVERITIES, Finding, FindingRule
from hardneg.diagnostics.findings.rules import find
from hardneg.diagnostics.findings.thresholds import Thresholds
from hardneg.diagnostics.measures.completeness import completeness
from hardneg.diagnostics.measures.diversity import diversity, hubness
from hardneg.diagnostics.measures.false_share import false_negatives
from hardneg.diagnostics.measures.geometry import geometry
from hardneg.diagnostics.measures.gradient import gradient
from hardneg.diagnostics.measures.hardness import hardness
from hardneg.diagnostics.measures.hidden_positives import with_hidden_positives
from hardneg.diagnostics.measures.search import search_quality, staleness
from hardneg.diagnostics.measures.surface import surface_bias
from hardneg.diagnostics.subject import Subject
from hardneg.encoders.base import Encoder
from hardneg.encoders.embed import fit
from hardneg.errors import UsageError
from hardneg.mining.run import Run
from hardneg.progress import Progress, silent
from hardneg.refresh.staleness import SAMPLE


@dataclass(frozen=True)
class Diagnosis:
    """Measurements and findings.

    Attributes:
        subject: the diagnosed negatives.
        measured: numbers by name, see `hardneg.diagnostics.measures`.
        findings: the findings, worst first.
    """

    subject: Subject
    measured: Measurements
    findings: list[Finding]

    @property
    def worst(self) -> str | None:
        """The highest severity; None without findings."""
        return self.findings[0].severity if self.findings else None

    def fails(self, level: str) -> bool:
        """Whether there is a finding of this severity or a higher one."""
        if level not in SEVERITIES:
            raise UsageError(f"unknown severity {level!r}: one of {', '.join(SEVERITIES)}")
        return any(SEVERITIES.index(finding.severity) >= SEVERITIES.index(level) for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.subject.name,
            "verdicts": self.subject.info["counts"]["verdicts"],
            **self.measured.to_json(),
            "findings": [finding.to_json() for finding in self.findings],
        }


def diagnose(
    run: Run | str,
    *,
    temperature: float = 0.05,
    encoder: Encoder | None = None,
    thresholds: Thresholds | None = None,
    rules: Sequence[FindingRule] = (),
    seed: int = 0,
    progress: Progress = silent,
) -> Diagnosis:
    """Diagnose the negatives of a run.

    Args:
        run: a run, or its folder.
        temperature: temperature of the loss that will use the negatives.
        encoder: the encoder as it is now. It encodes a sample of the documents again, to measure how stale the run is.
        thresholds: the limits beyond which a number becomes a finding.
        rules: your own findings, in addition to the built-in ones.
        seed: random seed of the samples.
    """
    run = Run(run) if isinstance(run, str) else run
    advance = progress("read run", 1)
    subject = Subject.of_run(run)
    advance(1)
    subject = with_hidden_positives(subject, run, seed, progress)
    return examine(subject, temperature, encoder, thresholds, rules, seed, progress)


def examine(
    subject: Subject,
    temperature: float = 0.05,
    encoder: Encoder | None = None,
    thresholds: Thresholds | None = None,
    rules: Sequence[FindingRule] = (),
    seed: int = 0,
    progress: Progress = silent,
) -> Diagnosis:
    """Diagnose negatives in memory. The arguments are those of `diagnose`."""
    if not temperature > 0:
        raise UsageError(f"temperature={temperature} must be above 0")
    rng = np.random.default_rng(seed)
    measured = Measurements()
    steps: tuple[Callable[[], Measurements], ...] = (
        lambda: completeness(subject),
        lambda: hardness(subject, rng),
        lambda: false_negatives(subject),
        lambda: gradient(subject, temperature),
        lambda: diversity(subject, rng),
        lambda: hubness(subject),
        lambda: surface_bias(subject, rng),
        lambda: geometry(subject, rng),
        lambda: search_quality(subject, rng),
    )
    advance = progress("measure", len(steps) + (encoder is not None))
    for step in steps:
        _add(measured, step())
        advance(1)
    if encoder is not None:
        _add(measured, _against(subject, encoder, rng, progress))
        advance(1)
    for rule in rules:
        _add(measured, rule.measure(subject, rng))
    return Diagnosis(subject, measured, find(measured, thresholds or Thresholds(), subject.name, rules))


def _against(subject: Subject, encoder: Encoder, rng: np.random.Generator, progress: Progress) -> Measurements:
    if subject.vectors is None:
        raise UsageError(
            f"{subject.name} keeps no vectors that the encoder's could be compared with: mine without --cache"
        )
    fit(encoder, subject.pairs, progress)
    rows = sampled(len(subject.pairs.document_ids), SAMPLE, rng)
    prompt = subject.info["config"]["document_prompt"]
    fresh = encoder.encode(subject.pairs.documents.take(rows), prompt=prompt)
    if fresh.shape[1] != subject.vectors[1].shape[1]:
        raise UsageError(
            f"the encoder gives vectors of {fresh.shape[1]} components, the run has {subject.vectors[1].shape[1]}: "
            f"it is another model"
        )
    return staleness(subject, fresh, rows)


def _add(whole: Measurements, part: Measurements) -> None:
    whole.numbers |= part.numbers
    whole.ids |= part.ids
