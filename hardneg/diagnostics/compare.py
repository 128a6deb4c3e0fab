"""Compare two runs over one dataset that differ in their filters, encoder or generation."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.diagnostics.diagnose import Diagnosis, diagnose
from hardneg.diagnostics.estimates import Estimate, sampled
from hardneg.diagnostics.findings.base import SEVERITIES, Finding
from hardneg.diagnostics.findings.thresholds import Thresholds
from hardneg.diagnostics.measures.search import moved
from hardneg.diagnostics.subject import Subject
from hardneg.errors import UsageError
from hardneg.mining.run import PART_ROWS, Run
from hardneg.progress import Progress, silent
from hardneg.refresh.staleness import SAMPLE, Staleness
from hardneg.storage.arrow import read_parquet, values_of

ABSENT = "not a candidate"


@dataclass(frozen=True)
class Comparison:
    """The comparison of a run with an earlier one.

    Attributes:
        before, after: the two diagnoses.
        overlap: the share of a query's negatives that both runs have, of the run with fewer; mean over queries.
        hardness_shift: the mean score of a query's negatives, after minus before. Scores of two encoders are on two scales.
        staleness: how far the document vectors moved from one encoder or generation to the other (`drift`, and the `overlap` of
            their neighborhoods); None if a run has no vectors, or vectors of another size.
        flow: number of candidates by verdict before and verdict after.
        changes: findings that are new, gone, or of another severity.
    """

    before: Diagnosis
    after: Diagnosis
    overlap: Estimate
    hardness_shift: Estimate
    staleness: Staleness | None
    flow: dict[str, dict[str, int]]
    changes: list[tuple[str, Finding]]

    def to_json(self) -> dict[str, Any]:
        shown = {name: vars(getattr(self, name)) for name in ("overlap", "hardness_shift")}
        return {
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            **{n: {k: None if v != v else v for k, v in each.items()} for n, each in shown.items()},
            "staleness": None if self.staleness is None else asdict(self.staleness),
            "verdict_flow": self.flow,
            "changes": [{"change": change, **finding.to_json()} for change, finding in self.changes],
        }


def compare(
    first: Run | str, second: Run | str, *, temperature: float = 0.05, thresholds: Thresholds | None = None, seed: int = 0,
    progress: Progress = silent,
) -> Comparison:  # fmt: skip
    """Compare two runs over the same queries and documents. Raises UsageError if they differ in these."""
    runs = [Run(run) if isinstance(run, str) else run for run in (first, second)]
    found = [
        diagnose(run, temperature=temperature, thresholds=thresholds, seed=seed, progress=progress) for run in runs
    ]
    a, b = (diagnosis.subject for diagnosis in found)
    for kind in ("query_ids", "document_ids"):
        if not getattr(a.pairs, kind).cast(pa.string()).equals(getattr(b.pairs, kind).cast(pa.string())):
            raise UsageError(
                f"{a.name} and {b.name} are over other {kind.replace('_', ' ')}: only runs over one dataset compare"
            )
    shared = _shared(a.documents, b.documents)
    fewer = np.minimum(a.counts, b.counts)
    some = fewer > 0
    means = [np.where(s.real, s.scores, 0).sum(1) / np.maximum(s.counts, 1) for s in (a, b)]
    return Comparison(
        found[0], found[1], Estimate.mean_of(shared[some] / fewer[some]), Estimate.mean_of((means[1] - means[0])[some]),
        _staleness(a, b, seed), _flow(a.pairs, runs[0], runs[1], progress), _changes(found[0].findings, found[1].findings),
    )  # fmt: skip


def _shared(a: NDArray[np.int32], b: NDArray[np.int32]) -> NDArray[np.int64]:
    """`[n]`: the number of documents that the rows of both have in common."""
    out = np.zeros(len(a), np.int64)
    for j in range(a.shape[1]):
        out += ((a[:, j, None] == b) & (a[:, j, None] >= 0)).any(1)
    return out


def _staleness(a: Subject, b: Subject, seed: int) -> Staleness | None:
    if a.vectors is None or b.vectors is None or a.vectors[1].shape != b.vectors[1].shape:
        return None
    rows = sampled(len(a.pairs.document_ids), SAMPLE, np.random.default_rng(seed))
    return moved(a, b.vectors[1][rows], rows)


def _flow(pairs: Pairs, first: Run, second: Run, progress: Progress) -> dict[str, dict[str, int]]:
    """Count the candidates of either run by their verdicts in both, part by part, so that memory stays small."""
    total: Counter[tuple[str, str]] = Counter()
    files = first.candidate_files(), second.candidate_files()
    advance = progress("verdicts", len(files[0]))
    for number, paths in enumerate(zip(*files, strict=True)):
        start = number * PART_ROWS
        query_ids = pairs.query_ids.slice(start, PART_ROWS).cast(pa.string())
        sides = [_verdicts(path, query_ids, pairs.document_ids) for path in paths]
        keys = np.union1d(sides[0][0], sides[1][0])
        names = []
        for own, verdicts, known in sides:
            place = np.searchsorted(own, keys).clip(max=max(len(own) - 1, 0))
            there = own[place] == keys if len(own) else np.zeros(len(keys), bool)
            names.append((np.where(there, verdicts[place] if len(own) else 0, len(known)), [*known, ABSENT]))
        (one, left), (two, right) = names
        counts = np.bincount(one * len(right) + two, minlength=len(left) * len(right)).reshape(len(left), len(right))
        for i, j in zip(*np.nonzero(counts), strict=True):
            total[(left[i], right[j])] += int(counts[i, j])
        advance(1)
    flow: dict[str, dict[str, int]] = {}
    for (before, after), count in sorted(total.items(), key=lambda item: -item[1]):
        flow.setdefault(before, {})[after] = count
    return flow


def _verdicts(path: Any, query_ids: pa.Array, document_ids: pa.Array) -> tuple[NDArray[Any], NDArray[Any], list[str]]:
    """(sorted keys of the pairs, code of each pair's verdict, names of the verdicts) of a part."""
    table = read_parquet(path, ["query_id", "document_id", "verdict"])
    rows = values_of(pc.index_in(table["query_id"].cast(pa.string()), value_set=query_ids)).astype(np.int64)
    documents = values_of(pc.index_in(table["document_id"], value_set=document_ids)).astype(np.int64)
    known = pc.unique(table["verdict"])
    codes = values_of(pc.index_in(table["verdict"], value_set=known)).astype(np.int64)
    keys = rows * len(document_ids) + documents
    order = np.argsort(keys, kind="stable")
    return keys[order], codes[order], known.to_pylist()


def _changes(before: list[Finding], after: list[Finding]) -> list[tuple[str, Finding]]:
    then, now = ({finding.code: finding for finding in reversed(found)} for found in (before, after))
    out = [("new", now[code]) for code in now.keys() - then.keys()]
    out += [("gone", then[code]) for code in then.keys() - now.keys()]
    for code in then.keys() & now.keys():
        step = SEVERITIES.index(now[code].severity) - SEVERITIES.index(then[code].severity)
        if step:
            out.append(("worse" if step > 0 else "better", now[code]))
    return sorted(out, key=lambda change: (-SEVERITIES.index(change[1].severity), change[1].code))
