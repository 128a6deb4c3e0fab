"""Whether the known pairs of a run hold: positives that the search does not find, and candidates that a judge finds better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.errors import UsageError
from hardneg.false_negatives.judgements import read_judgements
from hardneg.mining.filters.base import lowest_scores
from hardneg.mining.reopen import Reopened
from hardneg.mining.run import Run
from hardneg.progress import Progress, with_progress
from hardneg.storage.arrays import Mask, Ragged, pair_keys

TOP = 20  # as long as the run is that deep


@dataclass(frozen=True)
class Consistency:
    """The queries of a run, and what is doubtful about their positives.

    Attributes:
        top: how deep a positive should be found (consistency filtering of Promptagator, arXiv 2209.11755).
        not_found: bool `[n]`: none of the query's positives is among its `top` nearest documents.
        better: bool `[n]`: a judge grades a candidate above every judged positive of the query; False where nothing was judged.
        with_positives, judged: number of queries with a positive, and of those with a judged candidate and positive.
    """

    top: int
    not_found: Mask
    better: Mask
    with_positives: int
    judged: int

    @property
    def doubtful(self) -> NDArray[np.int64]:
        """int64: the rows of the queries that fail either."""
        return np.flatnonzero(self.not_found | self.better)

    def to_json(self, run: Run, examples: int = 20) -> dict[str, Any]:
        """Counts, and the ids of some queries of each kind."""
        ids = run.pairs().query_ids

        def some(mask: Mask) -> list[str]:
            return [ids[int(i)].as_py() for i in np.flatnonzero(mask)[:examples]]

        return {
            "queries_with_positives": self.with_positives,
            "top": self.top,
            "positive_not_found": int(self.not_found.sum()),
            "positive_not_found_queries": some(self.not_found),
            "queries_judged": self.judged,
            "better_candidate": int(self.better.sum()),
            "better_candidate_queries": some(self.better),
            "doubtful": len(self.doubtful),
        }


@with_progress
def check_pairs(
    run: str | Path | Run,
    *,
    top: int | None = None,
    evidence: Sequence[str | Path] = (),
    progress: Progress | bool = False,
) -> Consistency:
    """Check the known pairs of a run.

    A positive counts as found if fewer than `top` candidates score higher. That needs no search: the scores of positives and of
    candidates are those of the run.

    Args:
        run: a finished run.
        top: how many documents may be nearer, at most the depth of the run. None: 20, or the depth if that is less.
        evidence: files of judgements with grades: of candidates, and of positives (`judge` with `of='positives'`).
        progress: called with the progress.

    Raises:
        UsageError: `top` is more than the depth of the run. DataError: the judgements cannot be used.
    """
    assert callable(progress)
    reopened = Reopened(run if isinstance(run, Run) else Run(run), progress=progress)
    depth = int(reopened.run.info["resolved"]["depth"])
    top = min(TOP, depth) if top is None else top
    if not 1 <= top <= depth:
        raise UsageError(f"top {top} must be 1 to {depth}, the depth of the run: deeper, nothing is known")
    n = len(reopened.pairs)
    not_found = np.zeros(n, bool)
    advance = progress("pairs", n)
    for part in reopened:
        best = -lowest_scores(Ragged(part.positive_scores.offsets, -part.positive_scores.values))
        best = np.where(np.isnan(best), -np.inf, best)
        nearer = (part.candidates.scores > best[:, None]).sum(1)
        not_found[part.candidates.queries] = (nearer >= top) & np.isfinite(best)
        advance(len(best))
    better, judged = np.zeros(n, bool), 0
    if evidence:
        better, judged = _better([Path(each) for each in evidence], reopened)
    return Consistency(top, not_found, better, int((reopened.pairs.positives.lengths > 0).sum()), judged)


def _better(evidence: Sequence[Path], reopened: Reopened) -> tuple[Mask, int]:
    """bool `[n]`, and how many queries have a grade of a candidate and of a positive."""
    pairs = reopened.pairs
    keys = pair_keys(pairs.positives.row_numbers(), pairs.positives.values, len(pairs.document_ids))
    best = np.full((2, len(pairs)), -np.inf)
    for file in evidence:
        judged = read_judgements(file, pairs, partial=True)
        value = np.where(np.isnan(judged.grade), judged.relevant.astype(np.float64), judged.grade)
        is_positive = np.isin(judged.key(pairs), keys)
        for side in (0, 1):
            here = is_positive == bool(side)
            np.maximum.at(best[side], judged.query[here], value[here])
    both = np.isfinite(best).all(0)
    return both & (best[0] > best[1]), int(both.sum())
