"""What is wrong, in words: each finding with its severity, the number behind it, where to look, and what would help."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hardneg.diagnostics.metrics import Estimate, Measured
from hardneg.errors import UsageError, suggestion

SEVERITIES = ("info", "warning", "error")


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


@dataclass(frozen=True)
class _Rule:
    """When a number is a finding, and what is said then.

    Attributes:
        code, number, ids: see `Finding`; `ids` names some of what was measured.
        info, warning, error: names of thresholds.
        text, fix: with `{v}` for the number and the name of anything else that was measured; in a fix `{run}`, `{out}` and
            `{posterior}` as a shell wants them.
        above: whether the number is too high; else it is too low.
        chance: name of what chance gives: below five times that nothing is said.
    """

    code: str
    number: str
    text: str
    fix: str
    warning: str = ""
    error: str = ""
    ids: str = ""
    above: bool = True
    chance: str = ""
    info: str = ""


_RULES = (
    _Rule(
        "false-negatives", "false_share", "about {v:.1%} of the negatives are relevant documents that nobody labelled",
        "hardneg calibrate {run} && hardneg select {run} --filter {posterior} --out {out}",
        "false_share", "false_share_error", "most_false_queries",
    ),
    _Rule(
        "easy", "relative",
        "the negatives are hardly nearer than random documents ({v:.2f}, where 0 is random and 1 as near as positives)",
        "hardneg select {run} --sampler top --out {out}, a lower rank:min, or a better encoder", "easy", "easy_error", above=False,
    ),
    _Rule(
        "above-positive", "above_positive",
        "{v:.0%} of the negatives score above the positive: the encoder is weak here, or they are false",
        "hardneg select {run} --filter margin:relative=0.05 --out {out}",
        info="above_positive", ids="smallest_margin_queries",
    ),
    _Rule(
        "duplicates", "near_duplicates", "{v:.0%} of a query's negatives are nearly the same text as another of them",
        "hardneg select {run} --filter duplicate:near=0.95 --filter distinct --out {out}",
        "near_duplicates", ids="near_duplicate_documents",
    ),
    _Rule(
        "duplicate-corpus", "corpus_near_duplicates",
        "{v:.0%} of the documents have a near copy in the corpus: copies of positives become negatives",
        "hardneg select {run} --filter duplicate:near=0.95 --out {out}, or remove the copies",
        "corpus_near_duplicates", ids="near_duplicate_documents",
    ),
    _Rule(
        "hub", "hub_share", "one document is a negative of {v:.0%} of the queries",
        "look at it: a page without content? Remove it, or filter by score or rank",
        "hub", "hub_error", "hubs", chance="hub_expected",
    ),
    _Rule(
        "collapse", "rank_share", "the vectors use {v:.0%} of their directions: the space has collapsed",
        "train with a higher temperature or a lower learning rate, or mine with another checkpoint",
        "rank", "rank_error", above=False,
    ),
    _Rule(
        "collapse", "mean_cosine", "two random documents have a cosine of {v:.2f}: all vectors point the same way",
        "train with a higher temperature or a lower learning rate, or mine with another checkpoint",
        error="mean_cosine_error",
    ),
    _Rule(
        "temperature-low", "effective_share",
        "at this temperature one or two negatives of a query make up the gradient ({v:.0%} of them count)",
        "a temperature between {temperature_low:.3g} and {temperature_high:.3g}", "effective", above=False,
    ),
    _Rule(
        "looks", "surface_auc",
        "negatives can be told from positives by their looks alone (AUC {v:.2f}): a model will learn the looks",
        "mine from a corpus of the positives' kind, or clean both alike", "surface_auc",
    ),
    _Rule(
        "words", "lexical_auc",
        "negatives can be told from positives by words alone, whatever the query (AUC {v:.2f}; + of positives, - of negatives)",
        "mine from a corpus of the positives' kind, or take out what marks them", "lexical_auc", ids="telling_words",
    ),
    _Rule(
        "truncated", "at_longest", "{v:.0%} of the documents are exactly as long as the longest: texts were cut off",
        "cut later, or split long documents into passages", "at_longest",
    ),
    _Rule(
        "few-negatives", "few", "{v:.1%} of the queries have fewer negatives than asked for",
        "mine with a larger --depth or --max-depth, or loosen the filter with most verdicts",
        "few", "few_error", "queries_with_few",
    ),
    _Rule(
        "recall", "recall", "the index found {v:.0%} of the nearest documents",
        "hardneg mine --recall 0.98, or --index exact", "recall", above=False,
    ),
    _Rule(
        "stale", "drift", "the encoder has moved since the negatives were mined (drift {v:.3f})",
        "mine again, or refresh more often", "drift",
    ),
    _Rule(
        "stale", "overlap_with_fresh", "of the nearest documents then, {v:.0%} are nearest now",
        "mine again, or refresh more often", "overlap", above=False,
    ),
    _Rule(
        "stale-scores", "stale_scores",
        "{v:.0%} of the scores are not those of the run's vectors: they were replaced after the search", "mine again",
        error="stale_scores_error",
    ),
)  # fmt: skip


def judge(measured: Measured, thresholds: Thresholds, run: str) -> list[Finding]:
    """All findings, the worst first."""
    found = [_applied(rule, measured, thresholds, run) for rule in _RULES]
    if measured.numbers.get("false_source") == "range" and math.isfinite(measured.numbers["false_high"]):
        high = float(measured.numbers["false_high"])
        text = f"how many negatives are relevant is not known: {high:.1%} of them score above the positive"
        fix = f"hardneg calibrate {shlex.quote(run)}"
        found.append(Finding("false-negatives-unknown", "info", text, "false_high", high, 0.0, [], fix))
    return sorted((each for each in found if each is not None), key=lambda each: -SEVERITIES.index(each.severity))


def _applied(rule: _Rule, measured: Measured, thresholds: Thresholds, run: str) -> Finding | None:
    """The finding of a rule with the highest severity whose threshold is passed for sure: with the whole interval."""
    number = measured.numbers.get(rule.number)
    if number is None:
        return None
    value, sure = (
        (number.value, number.low if rule.above else number.high) if isinstance(number, Estimate) else (number, number)
    )
    if not math.isfinite(sure):
        return None
    least = 5 * float(measured.numbers.get(rule.chance, 0.0))
    for severity, name in (("error", rule.error), ("warning", rule.warning), ("info", rule.info)):
        if not name:
            continue
        limit = float(getattr(thresholds, name))
        limit = max(limit, least) if rule.chance else limit
        if sure > limit if rule.above else sure < limit:
            said = {**measured.numbers, "v": value, "run": shlex.quote(run), "out": shlex.quote(f"{run}-2")}
            said["posterior"] = shlex.quote(f"posterior:{run}/posterior.json")
            ids = measured.ids.get(rule.ids, [])
            text, fix = rule.text.format(**said), rule.fix.format(**said)
            return Finding(rule.code, severity, text, rule.number, float(value), limit, ids, fix)
    return None
