"""Which queries a finding concerns, so that a report can show just these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hardneg.diagnostics.findings.base import Finding
from hardneg.diagnostics.measures.false_share import shares_of
from hardneg.diagnostics.subject import Subject
from hardneg.storage.arrow import values_of

_LIKELY = 0.5  # P(relevant) from which a negative is likely false

Worth = NDArray[np.float64]


@dataclass(frozen=True)
class Flags:
    """The queries that findings concern.

    Attributes:
        codes: the code of each finding that concerns certain queries, each once.
        concerned: bool `[f, n]`, the queries that each of them concerns.
        worst: int64, the rows of these queries by code, the worst first.
    """

    codes: list[str]
    concerned: NDArray[np.bool_]
    worst: dict[str, NDArray[np.int64]]

    def of(self, rows: NDArray[np.int64]) -> list[list[int]]:
        """The places in `codes` of the findings that concern each of these queries."""
        return [np.flatnonzero(each).tolist() for each in self.concerned[:, rows].T]

    def counts(self, rows: NDArray[np.int64]) -> list[int]:
        """How many of these queries each finding concerns. Of most findings only some queries are named, so not how many there are."""
        return [int(count) for count in self.concerned[:, rows].sum(1)]


def flagged(subject: Subject, findings: list[Finding]) -> Flags:
    """The queries that each finding concerns.

    A finding of which it is known how to tell from the negatives of a query concerns all queries that have it; any other one
    concerns the queries that it names, and those with a negative that it names.
    """
    codes, worth = [], []
    for finding in findings:
        badness = _BADNESS[finding.code](subject) if finding.code in _BADNESS else None
        if badness is None:
            badness = _named(subject, finding.ids)
        if finding.code not in codes and (badness > 0).any():
            codes.append(finding.code)
            worth.append(badness)
    table = np.array(worth).reshape(len(codes), len(subject.pairs))
    worst = {
        code: np.argsort(-each, kind="stable")[: int((each > 0).sum())] for code, each in zip(codes, table, strict=True)
    }
    return Flags(codes, table > 0, worst)


def _named(subject: Subject, ids: list[str]) -> Worth:
    """1 for each query that is named, or has a negative that is named."""
    wanted = pa.array(ids, pa.string())
    queries, documents = (
        values_of(pc.fill_null(pc.index_in(each.cast(pa.string()), value_set=wanted), -1)) >= 0
        for each in (subject.pairs.query_ids, subject.pairs.document_ids)
    )
    if not documents.any() or queries.any():
        return np.asarray(queries, np.float64)
    return np.asarray((documents[subject.documents] & subject.real).any(1), np.float64)


def _likely_false(subject: Subject) -> Worth | None:
    """How much of a query's negatives is likely relevant; 0 if none is; None if nothing tells it."""
    shares, _ = shares_of(subject)
    if shares is None:
        return None
    chance = np.nan_to_num(shares, nan=0.0)
    return np.where(chance.max(1, initial=0.0) >= _LIKELY, chance.sum(1), 0.0)


def _above_positive(subject: Subject) -> Worth:
    with np.errstate(invalid="ignore"):
        over = np.nan_to_num(subject.scores - subject.positive[:, None], nan=0.0)
    return np.asarray(over.max(1, initial=0.0).clip(0), np.float64)


def _too_few(subject: Subject) -> Worth:
    return np.asarray((subject.asked - subject.counts).clip(0), np.float64)


def _with_hub(subject: Subject) -> Worth:
    """1 for the queries with the most frequent negative."""
    times = np.bincount(subject.documents[subject.real], minlength=1)
    return np.asarray((subject.real & (subject.documents == times.argmax())).any(1), np.float64)


_BADNESS: dict[str, Callable[[Subject], Worth | None]] = {
    "false-negatives": _likely_false,
    "above-positive": _above_positive,
    "few-negatives": _too_few,
    "hub": _with_hub,
}
