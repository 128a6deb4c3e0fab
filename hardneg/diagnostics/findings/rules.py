"""The built-in rules: when a measurement becomes a finding, and the text and fix of the finding."""

from __future__ import annotations

from collections.abc import Sequence

from hardneg.diagnostics.estimates import Measurements
from hardneg.diagnostics.findings.base import SEVERITIES, Finding, FindingRule
from hardneg.diagnostics.findings.data_rules import DATA_RULES
from hardneg.diagnostics.findings.false_rules import AboveAnnounced, GroupsDisagree, MaskedMuch, UnknownFalseNegatives
from hardneg.diagnostics.findings.near_rules import without_closeness
from hardneg.diagnostics.findings.threshold_rule import (
    Duplicates,
    Easy,
    FalseNegatives,
    FewNegatives,
    Hub,
    ThresholdRule,
)
from hardneg.diagnostics.findings.thresholds import Thresholds

_FEW = 20  # queries with negatives, below which findings about negatives are held back

_OF_NEGATIVES = {
    "above-positive", "chunks", "copied", "duplicates", "easy", "false-negatives", "false-negatives-unknown", "hub", "hub-skew",
    "lexical", "looks", "near-query", "others-positives", "slice", "taught-out", "temperature-high", "temperature-low",
    "translations", "words",
}  # fmt: skip

RULES: tuple[FindingRule, ...] = (
    ThresholdRule(
        "positives-like-random", "beats_random",
        "a positive is nearer to its query than a random document is in only {v:.0%} of the cases (50% by chance): {items} and "
        "vectors do not belong together, or the encoder knows nothing of these {items}. Nothing below means much",
        "check the order or the ids of the vectors (hardneg inspect shows documents as they are read), or take another encoder",
        error="like_random_error", above=False,
    ),
    FalseNegatives(
        "false-negatives", "false_share", "about {v:.1%} of the negatives are {told}",
        "{without_false}",
        "false_share", "false_share_error", "most_false_queries",
    ),
    AboveAnnounced(),
    GroupsDisagree(),
    Easy(
        "easy", "relative",
        "the negatives are hardly nearer than random documents ({v:.2f}, where 0 is random and 1 as near as positives)",
        "{nearest}",
        "easy", "easy_error", above=False,
    ),
    ThresholdRule(
        "above-positive", "above_positive",
        "{v:.0%} of the negatives score above the positive: the encoder is weak here, or they are false",
        "hardneg select {run} --add-filter margin:relative=0.05 --out {out}",
        info="above_positive", ids="smallest_margin_queries",
    ),
    Duplicates(
        "duplicates", "near_duplicates",
        "{v:.0%} of a query's negatives have nearly the vector of one that stands before them (cosine above 0.95): to the encoder "
        "they are nearly the same {item}",
        "{once}",
        "near_duplicates", ids="near_duplicate_documents",
    ),
    ThresholdRule(
        "duplicate-corpus", "corpus_near_duplicates",
        "{v:.0%} of the documents have nearly the vector of another one (cosine above 0.95): to the encoder they are nearly the same "
        "{item}, and what is nearly a positive becomes a negative",
        "keep one of each group of copies in the corpus, and mine again; the filter duplicate:near=0.95 rejects copies "
        "of a query's own positives alone",
        "corpus_near_duplicates", ids="near_duplicate_documents",
    ),
    Hub(
        "hub", "hub_share", "one document is a negative of {v:.0%} of the queries{long}",
        "{shorten}",
        "hub", "hub_error", "hubs", chance="hub_expected",
    ),
    *(
        ThresholdRule(
            "one-vector", f"one_vector_{side}_share",
            f"{{v:.1%}} of the {side} have one and the same vector, though their texts differ",
            "encode them again: a cache or a fallback gave one vector to many texts, or the encoder knows none of their words",
            "one_vector", "one_vector_error", f"{side}_of_one_vector",
        )
        for side in ("queries", "documents")
    ),
    ThresholdRule(
        "collapse", "rank_share", "the vectors use {v:.0%} of their directions: the space has collapsed",
        "train with a higher temperature or a lower learning rate, or mine with another checkpoint",
        "rank", "rank_error", above=False,
    ),
    ThresholdRule(
        "collapse", "mean_cosine", "two random documents have a cosine of {v:.2f}: all vectors point the same way",
        "train with a higher temperature or a lower learning rate, or mine with another checkpoint",
        error="mean_cosine_error",
    ),
    ThresholdRule(
        "temperature-low", "effective_share",
        "at this temperature one or two negatives of a query make up the gradient ({v:.0%} of them count)",
        "{suits}", "effective", above=False,
    ),
    ThresholdRule(
        "temperature-high", "temperature_outside",
        "the temperature {temperature:.3g} is {v:.1f} times the highest that suits these negatives: beside the others of a batch of "
        "32, near ones teach hardly more than far ones",
        "{suits}", info="temperature_outside",
    ),
    ThresholdRule(
        "looks", "surface_auc",
        "negatives can be told from positives by their looks alone (AUC {v:.2f}): a model will learn the looks",
        "mine from a corpus of the positives' kind, or clean both alike", "surface_auc",
    ),
    ThresholdRule(
        "words", "lexical_auc",
        "negatives can be told from positives by words alone, whatever the query (AUC {v:.2f}; + of positives, - of negatives)",
        "mine from a corpus of the positives' kind, or take out what marks them", "lexical_auc", ids="telling_words",
    ),
    ThresholdRule(
        "truncated", "at_longest", "{v:.0%} of the documents are exactly as long as the longest: texts were cut off",
        "cut later, or split long documents into passages", "at_longest",
    ),
    ThresholdRule(
        "truncated", "of_one_size",
        "{v:.0%} of the documents are exactly as long as the longest: they are passages or records of one size, or were cut off "
        "between words",
        "nothing, if they are passages; if they were cut off, cut later, or split long documents into passages",
        info="at_longest",
    ),
    FewNegatives(
        "few-negatives", "few", "{v:.1%} of the queries have fewer negatives than asked for",
        "{deeper}",
        "few", "few_error", "queries_with_few",
    ),
    ThresholdRule(
        "recall", "recall", "the index found {v:.0%} of the nearest documents",
        "{exact}", "recall", above=False,
    ),
    ThresholdRule(
        "stale", "drift", "the encoder has moved since the negatives were mined (drift {v:.3f})",
        "mine again, or refresh more often", "drift",
    ),
    ThresholdRule(
        "stale", "overlap_with_fresh", "of the nearest documents then, {v:.0%} are nearest now",
        "mine again, or refresh more often", "overlap", above=False,
    ),
    ThresholdRule(
        "stale-scores", "stale_scores",
        "{v:.0%} of the scores are not those of the run's vectors: they were replaced after the search", "mine again",
        error="stale_scores_error",
    ),
    UnknownFalseNegatives(),
    MaskedMuch(),
    *DATA_RULES,
)  # fmt: skip


def find(measured: Measurements, thresholds: Thresholds, run: str, rules: Sequence[FindingRule] = ()) -> list[Finding]:
    """Apply the built-in rules and `rules`.

    Returns:
        The findings, the most severe first.

    >>> [finding.code for finding in find(Measurements({"recall": 0.5}), Thresholds(), "run")]
    ['recall']
    """
    findings = [rule.check(measured, thresholds, run) for rule in (*RULES, *rules)]
    found = [each for each in findings if each is not None]
    if any(each.code == "positives-like-random" for each in found):
        # Where positives are like random documents, numbers that are measured between the two mean nothing.
        found = [each for each in found if each.code not in ("easy", "temperature-low", "temperature-high")]
    queries = float(measured.numbers.get("queries", 0))
    if queries >= _FEW and (1 - float(measured.numbers.get("none", 0))) * queries < _FEW:
        # What a handful of queries has left says nothing of the others, whose negatives are missing.
        found = [each for each in found if each.code not in _OF_NEGATIVES]
    found = without_closeness(found, measured, thresholds)
    return sorted(found, key=lambda each: -SEVERITIES.index(each.severity))
