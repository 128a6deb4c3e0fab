"""Diagnose a run: measure its negatives and report problems."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hardneg import registry
from hardneg.ambient import own_settings
from hardneg.data.options import ReadOptions
from hardneg.data.pairs import Pairs
from hardneg.data.read import read_pairs
from hardneg.diagnostics.alternatives import Alternative, alternatives, better_fixes
from hardneg.diagnostics.commands import with_posterior_there
from hardneg.diagnostics.estimates import Measurements, sampled
from hardneg.diagnostics.findings.base import SEVERITIES, Finding, FindingRule
from hardneg.diagnostics.findings.rules import find
from hardneg.diagnostics.findings.thresholds import Thresholds
from hardneg.diagnostics.measures.agreement import agreement
from hardneg.diagnostics.measures.boilerplate import boilerplate
from hardneg.diagnostics.measures.completeness import completeness
from hardneg.diagnostics.measures.copies import copies
from hardneg.diagnostics.measures.diversity import diversity, hubness
from hardneg.diagnostics.measures.false_share import false_negatives
from hardneg.diagnostics.measures.found_positives import found_positives
from hardneg.diagnostics.measures.geometry import geometry
from hardneg.diagnostics.measures.gradient import gradient
from hardneg.diagnostics.measures.hardness import hardness
from hardneg.diagnostics.measures.hidden_positives import with_hidden_positives
from hardneg.diagnostics.measures.labelled import labelled
from hardneg.diagnostics.measures.leaks import leaks
from hardneg.diagnostics.measures.lexical_overlap import lexical_overlap
from hardneg.diagnostics.measures.others import never_retrieved, others_positives
from hardneg.diagnostics.measures.search import search_quality, staleness
from hardneg.diagnostics.measures.slices import slices
from hardneg.diagnostics.measures.sources import found_by
from hardneg.diagnostics.measures.surface import surface_bias
from hardneg.diagnostics.measures.vector_faults import vector_faults
from hardneg.diagnostics.retrieved import with_retrieved
from hardneg.diagnostics.subject import Subject
from hardneg.encoders.base import Encoder, prompt_of
from hardneg.encoders.embed import fit
from hardneg.encoders.factory import checked_encoder
from hardneg.errors import UsageError
from hardneg.mining.run import Run
from hardneg.progress import Progress, with_progress
from hardneg.refresh.staleness import SAMPLE


@dataclass(frozen=True)
class Diagnosis:
    """The result of a diagnosis.

    Attributes:
        subject: the negatives that were diagnosed.
        measured: the measurements by name. The modules of `hardneg.diagnostics.measures` define them.
        findings: the problems that were found, the most severe first.
        alternatives: selections that fixes suggest, tried on the run's candidates; empty if no fix is a selection.
    """

    subject: Subject
    measured: Measurements
    findings: list[Finding]
    alternatives: list[Alternative] = field(default_factory=list)

    @property
    def worst(self) -> str | None:
        """The highest severity among the findings; None if there are no findings."""
        return self.findings[0].severity if self.findings else None

    def fails(self, level: str) -> bool:
        """Whether any finding has this severity or a higher one. Raises UsageError for an unknown severity."""
        if level not in SEVERITIES:
            raise UsageError(f"unknown severity {level!r}; known: {', '.join(SEVERITIES)}")
        return any(SEVERITIES.index(finding.severity) >= SEVERITIES.index(level) for finding in self.findings)

    def to_html(self, path: str | Path, judgements: str | Path | None = None) -> None:
        """Write the report of a run as one HTML file, as `hardneg diagnose --html` does.

        Args:
            path: the path of the file.
            judgements: a file of `hardneg.judge`, whose pairs can be judged in the report.

        Raises:
            RunError: this is no diagnosis of a run, or the run is not there any more. DataError: another file is at `path`.
        """
        registry.verb("report")(self, Run(self.subject.name), path, judgements=judgements)

    def __repr__(self) -> str:
        found = "".join(f"\n  {each.severity}: {each.text}" for each in self.findings) or " no problems found"
        return f"<Diagnosis of {self.subject.name!r}:{found}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(each.severity)}</td><td style='text-align:left'>{html.escape(each.text)}<br><code>"
            f"{html.escape(each.fix)}</code></td></tr>"
            for each in self.findings
        )
        return f"<b>{html.escape(self.subject.name)}</b><table>{rows or '<tr><td>no problems found</td></tr>'}</table>"

    def to_json(self) -> dict[str, Any]:
        """The diagnosis as printed by `hardneg diagnose --json`."""
        return {
            "run": self.subject.name,
            "verdicts": self.subject.info["counts"]["verdicts"],
            **self.measured.to_json(),
            "findings": [finding.to_json() for finding in self.findings],
            "alternatives": [each.to_json() for each in self.alternatives],
        }


@with_progress
@own_settings()
def diagnose(
    run: Run | str | Path,
    *,
    temperature: float = 0.05,
    encoder: Encoder | None = None,
    thresholds: Thresholds | None = None,
    rules: Sequence[FindingRule] = (),
    evaluation: Pairs | str | Path | None = None,
    second_encoder: Encoder | None = None,
    seed: int = 0,
    progress: Progress | bool = False,
) -> Diagnosis:
    """Measure the negatives of a run and report problems.

    Args:
        run: a run, or the path of its folder.
        temperature: the temperature of the loss that you will train with.
        encoder: the encoder in its present state. It encodes a sample of the documents again, to measure how stale the
            run is. None skips this measurement.
        thresholds: the limits beyond which a number becomes a finding; None for the default limits.
        rules: your own rules, applied after the built-in ones.
        evaluation: an evaluation set, or the path of one, of which the split `test` is read, to look for its queries and positives in
            the training data; None looks for none.
        second_encoder: another encoder, which scores a sample of the negatives; None: none does.
        seed: the random seed for drawing samples.
        progress: True for bars, or a callback that receives the progress.

    Raises:
        RunError: the run is damaged.
        UsageError: the temperature is not above 0, or the encoder cannot be compared with the vectors of the run.

    >>> from hardneg import MineOptions, Pairs, mine
    >>> pairs = Pairs.from_columns(["a b", "c d"], ["e f", "g h"], corpus=["i j", "k l"])
    >>> run = mine(pairs, "run", MineOptions(negatives=1))
    >>> diagnose(run).measured.numbers["queries"]
    2
    """
    assert callable(progress)  # see `with_progress`
    run = run if isinstance(run, Run) else Run(run)
    if isinstance(evaluation, str | Path):
        evaluation = read_pairs(str(evaluation), ReadOptions(split="test"))
    if evaluation is not None and not isinstance(evaluation, Pairs):
        raise UsageError(
            f"evaluation is {type(evaluation).__name__}: give a dataset (hardneg.read_pairs), or the path of one"
        )
    advance = progress("read run", 1)
    subject = Subject.of_run(run)
    advance(1)
    subject = with_retrieved(with_hidden_positives(subject, run, seed, progress), run, progress)
    found = examine(
        subject, temperature, encoder, thresholds, rules, seed, progress, evaluation=evaluation, second_encoder=second_encoder
    )  # fmt: skip
    _merge(found.measured, found_by(subject, run))
    tried = alternatives(run, subject, found.findings, progress, temperature)
    fixed = better_fixes(found.findings, tried, (thresholds or Thresholds()).few, run.info["config"])
    fixed = with_posterior_there(run, fixed)
    return replace(found, findings=fixed, alternatives=tried)


@with_progress
@own_settings()
def examine(
    subject: Subject,
    temperature: float = 0.05,
    encoder: Encoder | None = None,
    thresholds: Thresholds | None = None,
    rules: Sequence[FindingRule] = (),
    seed: int = 0,
    progress: Progress | bool = False,
    *,
    evaluation: Pairs | None = None,
    second_encoder: Encoder | None = None,
) -> Diagnosis:
    """Like `diagnose`, for negatives in memory. The other arguments are those of `diagnose`."""
    assert callable(progress)  # see `with_progress`
    if not temperature > 0:
        raise UsageError(f"temperature={temperature} must be above 0")
    present = None if encoder is None else checked_encoder(encoder, "encoder")
    other = None if second_encoder is None else checked_encoder(second_encoder, "second_encoder")
    rng = np.random.default_rng(seed)
    measured = Measurements()
    steps: list[Callable[[], Measurements]] = [
        lambda: completeness(subject),
        lambda: hardness(subject, rng),
        lambda: false_negatives(subject),
        lambda: gradient(subject, temperature),
        lambda: diversity(subject, rng),
        lambda: hubness(subject),
        lambda: surface_bias(subject, rng),
        lambda: geometry(subject, rng),
        lambda: search_quality(subject, rng),
        # These draw from generators of their own, so that the numbers above stay those of earlier versions.
        lambda: found_positives(subject, _own(seed, 1)),
        lambda: others_positives(subject, _own(seed, 2)),
        lambda: never_retrieved(subject),
        lambda: copies(subject, _own(seed, 3)),
        lambda: lexical_overlap(subject, _own(seed, 4)),
        lambda: slices(subject),
        lambda: labelled(subject, _own(seed, 7)),
        lambda: vector_faults(subject, _own(seed, 8)),
        lambda: boilerplate(subject, _own(seed, 9)),
    ]
    if present is not None:
        steps.append(lambda: _encoder_staleness(subject, present, rng, progress))
    if other is not None:
        steps.append(lambda: agreement(subject, other, _own(seed, 5), progress))
    if evaluation is not None:
        steps.append(lambda: leaks(subject, evaluation, _own(seed, 6)))
    advance = progress("measure", len(steps))
    for step in steps:
        _merge(measured, step())
        advance(1)
    for rule in rules:
        _merge(measured, rule.measure(subject, rng))
    return Diagnosis(subject, measured, find(measured, thresholds or Thresholds(), subject.name, rules))


def _own(seed: int, number: int) -> np.random.Generator:
    """The random generator of one measurement."""
    return np.random.default_rng([seed, number])


def _encoder_staleness(
    subject: Subject, encoder: Encoder, rng: np.random.Generator, progress: Progress
) -> Measurements:
    """Encode a sample of the documents again, and compare the vectors with those of the run."""
    if subject.vectors is None:
        raise UsageError(
            f"{subject.name} has no stored vectors to compare with those of the encoder; mine again without --cache"
        )
    fit(encoder, subject.pairs, progress)
    rows = sampled(len(subject.pairs.document_ids), SAMPLE, rng)
    prompt = prompt_of(encoder, "document", subject.info["config"]["document_prompt"])
    fresh = encoder.encode(subject.pairs.documents.take(rows), prompt=prompt)
    if fresh.shape[1] != subject.vectors[1].shape[1]:
        raise UsageError(
            f"the encoder makes vectors with {fresh.shape[1]} components, but those of the run have "
            f"{subject.vectors[1].shape[1]}: it is another model"
        )
    return staleness(subject, fresh, rows)


def _merge(measured: Measurements, more: Measurements) -> None:
    measured.numbers |= more.numbers
    measured.ids |= more.ids
