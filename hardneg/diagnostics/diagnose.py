"""From a run to what was measured of it and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hardneg.diagnostics import metrics
from hardneg.diagnostics.findings import SEVERITIES, Finding, Thresholds, judge
from hardneg.diagnostics.hidden import with_hidden_positives
from hardneg.diagnostics.metrics import Measured
from hardneg.diagnostics.search import search_quality, staleness
from hardneg.diagnostics.subject import Subject
from hardneg.diagnostics.surface import surface_bias
from hardneg.encoders.base import Encoder
from hardneg.errors import UsageError
from hardneg.index.staleness import SAMPLE
from hardneg.mining.embed import fit
from hardneg.mining.run import Run
from hardneg.progress import Progress, silent


@dataclass(frozen=True)
class Diagnosis:
    """Numbers and findings.

    Attributes:
        subject: what was diagnosed.
        measured: see `hardneg.diagnostics.metrics`.
        findings: the worst first.
    """

    subject: Subject
    measured: Measured
    findings: list[Finding]

    @property
    def worst(self) -> str | None:
        """The highest severity, None without findings."""
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
    seed: int = 0,
    progress: Progress = silent,
) -> Diagnosis:
    """Diagnose the negatives of a run.

    Args:
        run: a run, or its folder.
        temperature: of the loss they are for.
        encoder: as it is now: says how stale the run is, from a sample of documents that is encoded anew.
        thresholds: from where on a number is a finding.
        seed: of the samples.
    """
    run = Run(run) if isinstance(run, str) else run
    advance = progress("read run", 1)
    subject = Subject.of_run(run)
    advance(1)
    subject = with_hidden_positives(subject, run, seed, progress)
    return examine(subject, temperature, encoder, thresholds, seed, progress)


def examine(
    subject: Subject,
    temperature: float = 0.05,
    encoder: Encoder | None = None,
    thresholds: Thresholds | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Diagnosis:
    """Diagnose negatives that are in memory; arguments as for `diagnose`."""
    if not temperature > 0:
        raise UsageError(f"temperature={temperature} must be above 0")
    rng = np.random.default_rng(seed)
    measured = Measured()
    steps: tuple[Callable[[], Measured], ...] = (
        lambda: metrics.completeness(subject),
        lambda: metrics.hardness(subject, rng),
        lambda: metrics.false_negatives(subject),
        lambda: metrics.gradient(subject, temperature),
        lambda: metrics.diversity(subject, rng),
        lambda: metrics.hubness(subject),
        lambda: surface_bias(subject, rng),
        lambda: metrics.geometry(subject, rng),
        lambda: search_quality(subject, rng),
    )
    advance = progress("measure", len(steps) + (encoder is not None))
    for step in steps:
        _add(measured, step())
        advance(1)
    if encoder is not None:
        _add(measured, _against(subject, encoder, rng, progress))
        advance(1)
    return Diagnosis(subject, measured, judge(measured, thresholds or Thresholds(), subject.name))


def _against(subject: Subject, encoder: Encoder, rng: np.random.Generator, progress: Progress) -> Measured:
    if subject.vectors is None:
        raise UsageError(
            f"{subject.name} keeps no vectors that the encoder's could be compared with: mine without --cache"
        )
    fit(encoder, subject.pairs, progress)
    rows = metrics.sampled(len(subject.pairs.document_ids), SAMPLE, rng)
    prompt = subject.info["config"]["document_prompt"]
    fresh = encoder.encode(subject.pairs.documents.take(rows), prompt=prompt)
    if fresh.shape[1] != subject.vectors[1].shape[1]:
        raise UsageError(
            f"the encoder gives vectors of {fresh.shape[1]} components, the run has {subject.vectors[1].shape[1]}: "
            f"it is another model"
        )
    return staleness(subject, fresh, rows)


def _add(whole: Measured, part: Measured) -> None:
    whole.numbers |= part.numbers
    whole.ids |= part.ids
