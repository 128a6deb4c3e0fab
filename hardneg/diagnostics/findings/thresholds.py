"""Thresholds above or below which a measurement becomes a finding."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path

from hardneg.errors import UsageError, suggestion


@dataclass(frozen=True)
class Thresholds:
    """The limits of all findings. A limit gives a warning; where there are two, the second gives an error.

    Each limit lies between the values of seven runs without a planted fault and the value with the fault that it is meant for. The
    cost of false negatives was measured by training with them (both: `benchmarks/thresholds.py`, "Limits of a diagnosis" in
    `benchmarks/RESULTS.md`).

    Attributes:
        false_share, false_share_error: share of negatives that are relevant. Up to 0.05 no cost could be measured; 0.3 costs about
            half of what mined negatives gain over random ones (Banking77).
        easy, easy_error: hardness, between random documents (0) and positives (1).
        above_positive: share of negatives that score above the positive. It is only information, because an untrained encoder finds
            many.
        near_duplicates: share of a query's negatives that repeat another one.
        corpus_near_duplicates: the same share in the corpus.
        hub, hub_error: share of the queries that have the same document as a negative (at least five times the share by chance).
        rank, rank_error: effective rank, as a share of the largest possible.
        mean_cosine_error: mean cosine of two random documents.
        effective: effective number of negatives at the temperature, as a share.
        surface_auc, lexical_auc: AUC of telling negatives from positives by their form, and by their words.
        at_longest: share of documents that are exactly as long as the longest one.
        few, few_error: share of queries with fewer negatives than requested.
        recall: recall of the index.
        drift, overlap: compared with the encoder as it is now (ANCE refreshes long before; see `Schedule`).
        stale_scores_error: share of scores that do not match the run's own vectors.
    """

    false_share: float = 0.05
    false_share_error: float = 0.3
    easy: float = 0.3
    easy_error: float = 0.1
    above_positive: float = 0.6
    near_duplicates: float = 0.1
    corpus_near_duplicates: float = 0.2
    hub: float = 0.1
    hub_error: float = 0.2
    rank: float = 0.1
    rank_error: float = 0.03
    mean_cosine_error: float = 0.9
    effective: float = 0.25
    surface_auc: float = 0.8
    lexical_auc: float = 0.85
    at_longest: float = 0.05
    few: float = 0.02
    few_error: float = 0.5
    recall: float = 0.9
    drift: float = 0.05
    overlap: float = 0.7
    stale_scores_error: float = 0.05

    @classmethod
    def load(cls, path: str | Path) -> Thresholds:
        """Load some or all limits from a JSON object. Raises UsageError that names what is not understood."""
        try:
            value = json.loads(Path(path).read_text("utf-8"))
        except FileNotFoundError:
            raise UsageError(f"{path} does not exist") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is not readable as JSON ({error})") from None
        if not isinstance(value, dict):
            raise UsageError(f"{path} must hold a JSON object of thresholds")
        names = [each.name for each in fields(cls)]
        for name, number in value.items():
            if name not in names:
                raise UsageError(f"{path}: there is no threshold {name!r}.{suggestion(name, names)}")
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise UsageError(f"{path}: the threshold {name} is {number!r}, expected a number")
        return cls(**value)
