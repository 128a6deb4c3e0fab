"""Limits above or below which a measurement becomes a finding."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path

from hardneg.errors import UsageError, suggestion


@dataclass(frozen=True)
class Thresholds:
    """From where on a number is worth a word. Each is a warning, and an error where there are two.

    They lie between what seven runs without a planted fault gave and what the fault gives that each is for; what false
    negatives cost was measured by training with them (both: `benchmarks/thresholds.py`, "Limits of a diagnosis" in
    `benchmarks/RESULTS.md`).

    Attributes:
        false_share, false_share_error: of negatives that are relevant. Up to 0.05 they cost nothing that could be measured,
            with 0.3 about half is lost of what mined negatives gain over random ones (Banking77).
        easy, easy_error: hardness between random (0) and positive (1).
        above_positive: share of negatives that score above the positive; only for information, as an encoder that is to
            be trained finds many.
        near_duplicates: share of a query's negatives that repeat another one; corpus_near_duplicates: of the corpus.
        hub, hub_error: share of the queries that one document is a negative of (five times what chance gives, at least).
        rank, rank_error: effective rank as a share of the largest possible.
        mean_cosine_error: of two random documents.
        effective: effective number of negatives at the temperature, as a share.
        surface_auc, lexical_auc: of telling negatives from positives by looks, and by words.
        at_longest: share of documents that are exactly as long as the longest.
        few, few_error: share of queries with fewer negatives than asked.
        recall: of the index.
        drift, overlap: against an encoder as it is now (ANCE refreshes long before; see `Schedule`).
        stale_scores_error: share of scores that the run's own vectors do not give.
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
        """From a JSON object of some of them; UsageError names what is not understood."""
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
