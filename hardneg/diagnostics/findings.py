"""What is wrong, in words: each finding with its severity, the number behind it, where to look, and what would help."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hardneg.diagnostics.metrics import Estimate, Measured
from hardneg.errors import UsageError, suggestion

SEVERITIES = ("info", "warning", "error")


@dataclass(frozen=True)
class Thresholds:
    """From where on a number is worth a word. Each is a warning, and an error where there are two.

    Attributes:
        false_share, false_share_error: of negatives that are relevant. 0.05 is what `hardneg calibrate` aims at; from a fifth on
            training with mined negatives fell behind random ones (Banking77, `benchmarks/RESULTS.md`).
        easy, easy_error: hardness between random (0) and positive (1).
        above_positive: share of negatives that score above the positive.
        near_duplicates: share of a query's negatives that repeat another one; corpus_near_duplicates: of the corpus.
        hub, hub_error: share of the queries that one document is a negative of (five times what chance gives, at least).
        rank, rank_error: effective rank as a share of the largest possible.
        mean_cosine_error: of two random documents.
        effective: effective number of negatives at the temperature, as a share.
        surface_auc: of telling negatives from positives by looks.
        at_longest: share of documents that are exactly as long as the longest.
        few, few_error: share of queries with fewer negatives than asked.
        recall: of the index.
        drift, overlap: against an encoder as it is now (ANCE refreshes long before; see `Schedule`).
        stale_scores_error: share of scores that the run's own vectors do not give.
    """

    false_share: float = 0.05
    false_share_error: float = 0.2
    easy: float = 0.3
    easy_error: float = 0.1
    above_positive: float = 0.6
    near_duplicates: float = 0.1
    corpus_near_duplicates: float = 0.2
    hub: float = 0.05
    hub_error: float = 0.2
    rank: float = 0.1
    rank_error: float = 0.03
    mean_cosine_error: float = 0.9
    effective: float = 0.25
    surface_auc: float = 0.8
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


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        code: a short name that stays the same.
        severity: one of `SEVERITIES`.
        text: what is wrong, in a sentence.
        number: the name of what was measured; value: what it is; threshold: what it was compared with.
        ids: queries or documents to look at.
        fix: the command or option that would help.
    """

    code: str
    severity: str
    text: str
    number: str
    value: float
    threshold: float
    ids: list[str] = field(default_factory=list)
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class _Judge:
    """Compares numbers with thresholds, and keeps what passes."""

    def __init__(self, measured: Measured) -> None:
        self.numbers, self.ids = measured.numbers, measured.ids
        self.found: list[Finding] = []

    def value(self, name: str) -> float | None:
        number = self.numbers.get(name)
        if isinstance(number, Estimate):
            number = number.value
        return None if number is None or not math.isfinite(number) else float(number)

    def sure(self, name: str, above: bool) -> float | None:
        """The end of the interval that says it with confidence: the low one for `above`."""
        number = self.numbers.get(name)
        if isinstance(number, Estimate):
            number = number.low if above else number.high
        return None if number is None or not math.isfinite(number) else float(number)

    def look(
        self, code: str, name: str, limits: dict[str, float], text: Callable[[float], str], fix: str, ids: str = "",
        above: bool = True,
    ) -> None:  # fmt: skip
        """A finding with the highest severity of those whose limit `name` passes for sure."""
        value, sure = self.value(name), self.sure(name, above)
        if value is None or sure is None:
            return
        passed = [s for s in SEVERITIES if s in limits and (sure > limits[s] if above else sure < limits[s])]
        if passed:
            severity = passed[-1]
            self.found.append(
                Finding(code, severity, text(value), name, value, limits[severity], self.ids.get(ids, []), fix)
            )


def judge(measured: Measured, thresholds: Thresholds, run: str) -> list[Finding]:
    """All findings, the worst first."""
    t, j = thresholds, _Judge(measured)
    j.look(
        "false-negatives", "false_share", {"warning": t.false_share, "error": t.false_share_error},
        lambda v: f"about {v:.1%} of the negatives are relevant documents that nobody labelled",
        f"hardneg calibrate {run} && hardneg select {run} --filter posterior:{run}/posterior.json", "most_false_queries",
    )  # fmt: skip
    if measured.numbers.get("false_source") == "range":
        high = j.value("false_high")
        if high is not None:
            j.found.append(
                Finding(
                    "false-negatives-unknown", "info",
                    f"how many negatives are relevant is not known: {high:.1%} of them score above the positive",
                    "false_high", high, 0.0, [], f"hardneg calibrate {run}",
                )
            )  # fmt: skip
    j.look(
        "easy", "relative", {"warning": t.easy, "error": t.easy_error},
        lambda v: f"the negatives are hardly nearer than random documents ({v:.2f}, where 0 is random and 1 as near as positives)",
        f"hardneg select {run} --sampler top, a lower rank:min, or a better encoder", above=False,
    )  # fmt: skip
    j.look(
        "above-positive", "above_positive", {"warning": t.above_positive},
        lambda v: f"{v:.0%} of the negatives score above the positive: the encoder is weak here, or they are false",
        f"hardneg select {run} --filter margin:relative=0.05, after hardneg calibrate {run}", "smallest_margin_queries",
    )  # fmt: skip
    j.look(
        "duplicates", "near_duplicates", {"warning": t.near_duplicates},
        lambda v: f"{v:.0%} of a query's negatives are nearly the same text as another of them",
        f"hardneg select {run} --filter duplicate:near=0.95 --filter distinct", "near_duplicate_documents",
    )  # fmt: skip
    j.look(
        "duplicate-corpus", "corpus_near_duplicates", {"warning": t.corpus_near_duplicates},
        lambda v: f"{v:.0%} of the documents have a near copy in the corpus: copies of positives become negatives",
        f"hardneg select {run} --filter duplicate:near=0.95, or remove the copies", "near_duplicate_documents",
    )  # fmt: skip
    chance = 5 * float(measured.numbers.get("hub_expected", 0.0))
    j.look(
        "hub", "hub_share", {"warning": max(t.hub, chance), "error": max(t.hub_error, chance)},
        lambda v: f"one document is a negative of {v:.0%} of the queries",
        "look at it: a page without content? Remove it, or filter by score or rank", "hubs",
    )  # fmt: skip
    if "dimension" in measured.numbers:
        measured.numbers["rank_share"] = measured.numbers["effective_rank"] / measured.numbers["dimension"]
    j.look(
        "collapse", "rank_share", {"warning": t.rank, "error": t.rank_error},
        lambda v: f"the vectors use {v:.0%} of their directions: the space has collapsed",
        "train with a higher temperature or a lower learning rate, or mine with another checkpoint", above=False,
    )  # fmt: skip
    j.look(
        "collapse", "mean_cosine", {"error": t.mean_cosine_error},
        lambda v: f"two random documents have a cosine of {v:.2f}: all vectors point the same way",
        "train with a higher temperature or a lower learning rate, or mine with another checkpoint",
    )  # fmt: skip
    low, high = j.value("temperature_low"), j.value("temperature_high")
    j.look(
        "temperature-low", "effective_share", {"warning": t.effective},
        lambda v: f"at this temperature one or two negatives of a query make up the gradient ({v:.0%} of them count)",
        f"a temperature between {low or 0:.3g} and {high or 1:.3g}", above=False,
    )  # fmt: skip
    j.look(
        "looks", "surface_auc", {"warning": t.surface_auc},
        lambda v: f"negatives can be told from positives by their looks alone (AUC {v:.2f}): a model will learn the looks",
        "mine from a corpus of the positives' kind, or clean both alike",
    )  # fmt: skip
    j.look(
        "truncated", "at_longest", {"warning": t.at_longest},
        lambda v: f"{v:.0%} of the documents are exactly as long as the longest: texts were cut off",
        "cut later, or split long documents into passages",
    )  # fmt: skip
    j.look(
        "few-negatives", "few", {"warning": t.few, "error": t.few_error},
        lambda v: f"{v:.1%} of the queries have fewer negatives than asked for",
        "mine with a larger --depth or --max-depth, or loosen the filter with most verdicts", "queries_with_few",
    )  # fmt: skip
    j.look(
        "recall", "recall", {"warning": t.recall},
        lambda v: f"the index found {v:.0%} of the nearest documents",
        "hardneg mine --recall 0.98, or --index exact", above=False,
    )  # fmt: skip
    j.look(
        "stale", "drift", {"warning": t.drift},
        lambda v: f"the encoder has moved since the negatives were mined (drift {v:.3f})", "mine again, or refresh more often",
    )  # fmt: skip
    j.look(
        "stale", "overlap_with_fresh", {"warning": t.overlap},
        lambda v: f"of the nearest documents then, {v:.0%} are nearest now", "mine again, or refresh more often", above=False,
    )  # fmt: skip
    j.look(
        "stale-scores", "stale_scores", {"error": t.stale_scores_error},
        lambda v: f"{v:.0%} of the scores are not those of the run's vectors: they were replaced after the search",
        "mine again",
    )  # fmt: skip
    return sorted(j.found, key=lambda finding: -SEVERITIES.index(finding.severity))
