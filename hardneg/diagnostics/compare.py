"""Compare two runs over the same dataset, mined with other filters, another encoder or in a later generation."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hardneg import renamed
from hardneg.ambient import own_settings
from hardneg.data.id_rows import IdRows
from hardneg.data.pairs import Pairs
from hardneg.diagnostics.diagnose import Diagnosis, diagnose, examine
from hardneg.diagnostics.estimates import Estimate, sampled
from hardneg.diagnostics.evidence import common_evidence, judged_by_posteriors
from hardneg.diagnostics.findings.base import SEVERITIES, Finding
from hardneg.diagnostics.findings.thresholds import Thresholds
from hardneg.diagnostics.measures.false_share import filtered_by_group
from hardneg.diagnostics.measures.search import moved
from hardneg.diagnostics.ranking import Ranking, check_same, compared, ranking
from hardneg.diagnostics.subject import Subject
from hardneg.mining.parts import PART_ROWS
from hardneg.mining.run import Run
from hardneg.mining.run_tables import positions, read_candidates
from hardneg.progress import Progress, with_progress
from hardneg.refresh.staleness import SAMPLE, Staleness
from hardneg.storage.arrays import pair_keys
from hardneg.storage.arrow import values_of

ABSENT = "not a candidate"


@dataclass(frozen=True)
class Comparison:
    """The comparison of a run with an earlier one.

    Attributes:
        before, after: the diagnoses of the earlier and the later run.
        overlap: the number of negatives that both runs chose for a query, divided by the number in the run with fewer;
            mean over queries.
        hardness_shift: the mean score of a query's negatives in the later run, minus that in the earlier run; mean over
            queries. It means little if the runs used different encoders, whose scores are on different scales.
        staleness: how far the document vectors moved between the runs: their `drift`, and the `overlap` of their
            neighborhoods. None if a run has no vectors, or if the sizes of the vectors differ.
        flow: `flow[verdict in the earlier run][verdict in the later run]` is the number of candidates with these
            verdicts. A pair that is a candidate in only one run has the verdict `ABSENT` in the other.
        changes: the findings that differ, each with its change: `new`, `gone`, or `worse` or `better` for another
            severity.
        ranking: which of the two promises to teach more.
    """

    before: Diagnosis
    after: Diagnosis
    overlap: Estimate
    hardness_shift: Estimate
    staleness: Staleness | None
    flow: dict[str, dict[str, int]]
    changes: list[tuple[str, Finding]]
    ranking: Ranking

    def to_json(self) -> dict[str, Any]:
        """The comparison as printed by `hardneg compare --json`."""
        estimates = {name: vars(getattr(self, name)) for name in ("overlap", "hardness_shift")}
        return {
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            **{n: {k: None if v != v else v for k, v in each.items()} for n, each in estimates.items()},
            "staleness": None if self.staleness is None else asdict(self.staleness),
            "verdict_flow": self.flow,
            "changes": [{"change": change, **finding.to_json()} for change, finding in self.changes],
            "ranking": self.ranking.to_json(),
        }


@with_progress
@own_settings()
def compare(
    first: Run | str | Path, second: Run | str | Path, *, temperature: float = 0.05,
    thresholds: Thresholds | None = None, seed: int = 0, progress: Progress | bool = False,
) -> Comparison:  # fmt: skip
    """Compare two runs over the same queries and documents.

    Args:
        first: the earlier run, or the path of its folder.
        second: the later run, or the path of its folder.
        temperature: the temperature of the loss that you will train with.
        thresholds: the limits beyond which a number becomes a finding; None for the default limits.
        seed: the random seed for drawing samples.
        progress: True for bars, or a callback that receives the progress.

    Raises:
        RunError: a run is damaged.
        UsageError: the runs have different queries or documents.
    """
    assert callable(progress)  # see `with_progress`
    runs = [run if isinstance(run, Run) else Run(run) for run in (first, second)]
    check_same([(str(run.folder), run.pairs()) for run in runs])  # before the work
    diagnoses = [
        diagnose(run, temperature=temperature, thresholds=thresholds, seed=seed, progress=progress) for run in runs
    ]
    subjects = [diagnosis.subject for diagnosis in diagnoses]
    judged, notes = judged_by_posteriors(subjects, runs, compared(subjects, seed), progress)
    ranked = ranking(judged, temperature, seed, notes)
    diagnoses = _by_one_truth(diagnoses, temperature, thresholds, seed, progress)
    a, b = (diagnosis.subject for diagnosis in diagnoses)
    shared = _shared(a.documents, b.documents)
    fewer = np.minimum(a.counts, b.counts)
    both = fewer > 0  # queries with negatives in both runs
    means = [np.where(s.real, s.scores, 0).sum(1) / np.maximum(s.counts, 1) for s in (a, b)]
    return Comparison(
        diagnoses[0], diagnoses[1],
        Estimate.mean_of(shared[both] / fewer[both]), Estimate.mean_of((means[1] - means[0])[both]),
        _staleness(a, b, seed), _flow(a.pairs, runs[0], runs[1], progress),
        _changes(diagnoses[0].findings, diagnoses[1].findings),
        ranked,
    )  # fmt: skip


def _by_one_truth(
    diagnoses: list[Diagnosis], temperature: float, thresholds: Thresholds | None, seed: int, progress: Progress
) -> list[Diagnosis]:
    """The diagnoses with false negatives told by the same evidence: groups, where one run was calibrated and the other not, or was
    read without them. A run that was filtered by groups keeps its own: by itself, it is not told by them."""
    found = common_evidence([each.subject for each in diagnoses])
    if found.by != "groups":
        return diagnoses
    return [
        old
        if filtered_by_group(old.subject) or (old.subject.probability is None and same.pairs is old.subject.pairs)
        else examine(same, temperature, None, thresholds, (), seed, progress)
        for old, same in zip(diagnoses, found.subjects, strict=True)
    ]


def _shared(a: NDArray[np.int32], b: NDArray[np.int32]) -> NDArray[np.int64]:
    """int64 `[n]`: the number of documents that are both in a row of `a` and in the same row of `b`."""
    out = np.zeros(len(a), np.int64)
    for j in range(a.shape[1]):
        out += ((a[:, j, None] == b) & (a[:, j, None] >= 0)).any(1)
    return out


def _staleness(a: Subject, b: Subject, seed: int) -> Staleness | None:
    """How far a sample of the document vectors moved from `a` to `b`; None if they cannot be compared."""
    if a.vectors is None or b.vectors is None or a.vectors[1].shape != b.vectors[1].shape:
        return None
    rows = sampled(len(a.pairs.document_ids), SAMPLE, np.random.default_rng(seed))
    return moved(a, b.vectors[1][rows], rows)


def _flow(pairs: Pairs, first: Run, second: Run, progress: Progress) -> dict[str, dict[str, int]]:
    """Count the candidates of both runs by their verdicts before and after.

    The parts of the runs are read one after another, to use little memory.
    """
    total: Counter[tuple[str, str]] = Counter()
    files = first.candidate_files(), second.candidate_files()
    advance = progress("verdicts", len(files[0]))
    for number, paths in enumerate(zip(*files, strict=True)):
        start = number * PART_ROWS
        query_ids = pairs.query_ids.slice(start, PART_ROWS).cast(pa.string())
        sides = [_verdicts(path, query_ids, pairs.document_rows_of) for path in paths]
        keys = np.union1d(sides[0][0], sides[1][0])
        coded = []
        for side_keys, verdicts, names in sides:
            row = np.searchsorted(side_keys, keys).clip(max=max(len(side_keys) - 1, 0))
            present = side_keys[row] == keys if len(side_keys) else np.zeros(len(keys), bool)
            codes = np.where(present, verdicts[row] if len(side_keys) else 0, len(names))
            coded.append((codes, [*names, ABSENT]))
        (one, left), (two, right) = coded
        counts = np.bincount(one * len(right) + two, minlength=len(left) * len(right)).reshape(len(left), len(right))
        for i, j in zip(*np.nonzero(counts), strict=True):
            total[(left[i], right[j])] += int(counts[i, j])
        advance(1)
    flow: dict[str, dict[str, int]] = {}
    for (before, after), count in sorted(total.items(), key=lambda item: -item[1]):
        flow.setdefault(before, {})[after] = count
    return flow


def _verdicts(path: Any, query_ids: pa.Array, document_ids: IdRows) -> tuple[NDArray[Any], NDArray[Any], list[str]]:
    """Read the verdicts of one part of a run.

    Returns:
        (int64, a sorted key for each pair of query and document; int64, the code of each pair's verdict; the verdict
        that each code stands for, with the new names of filters).
    """
    table = read_candidates(path, ["query_id", "document_id", "verdict"])
    rows = positions(table["query_id"], query_ids, path)
    documents = positions(table["document_id"], document_ids, path)
    names = pc.unique(table["verdict"])
    codes = values_of(pc.index_in(table["verdict"], value_set=names)).astype(np.int64)
    keys = pair_keys(rows, documents, len(document_ids.ids))
    order = np.argsort(keys, kind="stable")
    return keys[order], codes[order], [renamed.verdict(str(name)) for name in names.to_pylist()]


def _changes(before: list[Finding], after: list[Finding]) -> list[tuple[str, Finding]]:
    """(change, finding) for each code whose finding is new, gone, worse or better, the most severe first."""
    then, now = ({finding.code: finding for finding in reversed(findings)} for findings in (before, after))
    out = [("new", now[code]) for code in now.keys() - then.keys()]
    out += [("gone", then[code]) for code in then.keys() - now.keys()]
    for code in then.keys() & now.keys():
        step = SEVERITIES.index(now[code].severity) - SEVERITIES.index(then[code].severity)
        if step:
            out.append(("worse" if step > 0 else "better", now[code]))
    return sorted(out, key=lambda change: (-SEVERITIES.index(change[1].severity), change[1].code))
