"""Sources: which source of candidates found which share of the negatives, of the false ones and of the hard ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from hardneg.diagnostics.estimates import Measurements
from hardneg.diagnostics.measures.false_share import shares_of
from hardneg.diagnostics.subject import Subject
from hardneg.mining.reopen import Reopened
from hardneg.mining.run import Run
from hardneg.storage.arrays import Float, Mask

_HARD = 0.25  # share of the negatives that count as hard: those with the smallest margins


def found_by(subject: Subject, run: Run) -> Measurements:
    """Measure what each source of candidates brought to the negatives of a run; nothing if there was only one.

    The number `sources` has for each source, by its label:

    - `negatives`: the share of all negatives that it listed (a negative may be listed by several);
    - `alone`: the share that it alone listed;
    - `hard`: the share of the hard negatives that it listed. Hard is the quarter with the smallest margin to the positive;
    - `false`: the share of the false negatives that it listed, `false_rate`: the share of its negatives that are false, and
      `hard_rate`: the share of its negatives that are hard. What is false is told as in `false_negatives`; NaN if nothing tells it.
    """
    out = Measurements()
    if not run.sources:
        return out
    listed = _listed(subject, run)
    real = subject.real
    margins = np.where(real, subject.positive[:, None] - subject.scores, np.nan)
    known = np.isfinite(margins)
    hard = known & (margins <= (np.quantile(margins[known], _HARD) if known.any() else 0.0))
    told, _ = shares_of(subject)
    chances = None if told is None else np.asarray(told, np.float32)
    alone = listed.sum(0) == 1
    numbers: dict[str, Any] = {}
    for label, mine in zip(run.sources, listed, strict=True):
        numbers[label] = {
            "negatives": _share(mine, real),
            "alone": _share(mine & alone, real),
            "hard": _share(mine, hard),
            "hard_rate": _share(hard, mine & known),
            "false": np.nan if chances is None else _weighted(mine, chances),
            "false_rate": np.nan if chances is None else _mean(chances, mine),
        }
    out.numbers["sources"] = numbers
    return out


def _listed(subject: Subject, run: Run) -> Mask:
    """bool `[s, n, K]`: whether each source listed each negative."""
    out = np.zeros((len(run.sources), *subject.documents.shape), bool)
    for part in Reopened(run, pairs=subject.pairs):
        rows = part.candidates.queries
        columns = part.candidates.columns(subject.documents[rows])
        assert part.candidates.listed is not None
        for i, ranks in enumerate(part.candidates.listed.ranks):
            found = np.take_along_axis(ranks, np.maximum(columns, 0), 1) > 0
            out[i, rows] = found & (columns >= 0)
    return out


def _share(mine: Mask, every: Mask) -> float:
    """The share of `every` that is `mine`; NaN if there is none."""
    return float((mine & every).sum() / every.sum()) if every.any() else np.nan


def _weighted(mine: Mask, chances: Float) -> float:
    total = float(np.nansum(chances, dtype=np.float64))
    return float(np.nansum(np.where(mine, chances, 0), dtype=np.float64)) / total if total > 0 else np.nan


def _mean(chances: Float, mine: Mask) -> float:
    seen = chances[mine & np.isfinite(chances)]
    return float(seen.mean(dtype=np.float64)) if len(seen) else np.nan
