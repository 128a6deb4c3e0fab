"""The built-in rules about the data: pairs, copies, hubs, leaks, slices, words, and what still teaches."""

from __future__ import annotations

import math
import shlex

from hardneg.diagnostics.estimates import Estimate, Measurements
from hardneg.diagnostics.findings.base import Finding, FindingRule
from hardneg.diagnostics.findings.slice_rules import WorstSlice
from hardneg.diagnostics.findings.threshold_rule import TaughtOut, ThresholdRule
from hardneg.diagnostics.findings.thresholds import Thresholds

_MANY = 0.5  # share of negatives that are positives of other queries from which it is worth saying

_INDEPENDENT = 1.5  # times the share of negatives that independent encoders would both put above the positive


class OthersPositives(FindingRule):
    """Reports negatives that are positives of other queries far more often than documents are."""

    def check(self, measured: Measurements, thresholds: Thresholds, run: str) -> Finding | None:
        """Compare the odds of the share among negatives with the odds among all documents."""
        share, expected = measured.numbers.get("others_positives"), measured.numbers.get("others_expected", 1.0)
        if not isinstance(share, Estimate) or not math.isfinite(share.low) or not 0 < expected < 1:
            return None
        times = _odds(share.low) / _odds(expected)
        if share.value < _MANY or times < thresholds.others:
            return None
        text = (
            f"{share.value:.0%} of the negatives are positives of other queries, but only {expected:.0%} of the documents are: every "
            f"positive is pushed away from all queries but its own, and other documents are hardly seen"
        )
        fix = f"hardneg select {shlex.quote(run)} --sampler uniform --out {shlex.quote(run + '-2')}   # or mine deeper (--depth)"
        if measured.numbers.get("sampler") == "uniform":
            fix = "mine deeper (--depth), or from more documents (--corpus): they are drawn at random from the candidates already"
        ids = measured.ids.get("near_query_queries", [])
        return Finding("others-positives", "info", text, "others_positives", share.value, _MANY, ids, fix)


class PositivesLost(FindingRule):
    """Reports positives that are seldom found, unless so many negatives are relevant that any one positive is lost among them."""

    def check(self, measured: Measurements, thresholds: Thresholds, run: str) -> Finding | None:
        """Compare the hit rate with its limit."""
        hits, false = measured.numbers.get("hit_rate"), measured.numbers.get("false_share")
        many = isinstance(false, Estimate) and false.value > thresholds.false_share_error
        if hits is None or many or not hits.high < thresholds.hit_rate:
            return None
        text = (
            f"a positive is found for only {hits.value:.0%} of the queries, among {measured.numbers['searched_depth']} candidates: "
            f"what is near is not what is relevant, so negatives and margins mean little"
        )
        items = measured.numbers.get("items", "texts")
        fix = f"take a better encoder for these {items}, or train this one first"
        ids = measured.ids.get("lost_queries", [])
        return Finding("positives-lost", "warning", text, "hit_rate", hits.value, thresholds.hit_rate, ids, fix)


class BothAbove(FindingRule):
    """Reports negatives that two encoders put above the positive, more often than if they erred independently."""

    def check(self, measured: Measurements, thresholds: Thresholds, run: str) -> Finding | None:
        """Compare the share with its limit, and with the share expected of independent encoders."""
        both, expected = measured.numbers.get("both_above_positive"), measured.numbers.get("both_expected", 1.0)
        limit = max(thresholds.both_above, _INDEPENDENT * expected)
        if both is None or not both.low > limit:
            return None
        text = (
            f"{both.value:.0%} of the negatives are above the positive for both encoders ({expected:.0%} if they erred "
            f"independently): they are relevant, unless the encoders are of one kind and err alike"
        )
        posterior = shlex.quote(f"posterior:{run}/posterior.json")
        fix = f"hardneg calibrate {shlex.quote(run)} && hardneg select {shlex.quote(run)} --add-filter {posterior}"
        fix += f" --out {shlex.quote(run + '-2')}"
        return Finding(
            "both-above", "info", text, "both_above_positive", both.value, limit, measured.ids.get("both_above_queries", []), fix
        )  # fmt: skip


def _odds(share: float) -> float:
    return math.inf if share >= 1 else share / (1 - share)


class NeverRetrieved(FindingRule):
    """Reports documents that no query retrieves, far more than chance leaves over."""

    def check(self, measured: Measurements, thresholds: Thresholds, run: str) -> Finding | None:
        """Compare the share with that expected of random candidates."""
        never, expected = measured.numbers.get("never_retrieved"), measured.numbers.get("never_expected", 1.0)
        if never is None or never - expected <= thresholds.never_retrieved:
            return None
        text = (
            f"{never:.0%} of the documents are a candidate of no query (by chance: {expected:.0%}): the search returns the "
            f"same few again and again"
        )
        ids = measured.ids.get("never_retrieved_documents", [])
        fix = "look at the hubs: remove documents without content, or take another encoder"
        limit = expected + thresholds.never_retrieved
        return Finding("never-retrieved", "warning", text, "never_retrieved", float(never), limit, ids, fix)


class CommonPositive(FindingRule):
    """Reports a text that is the positive of far more queries than others are."""

    code, number = "common-positive", "common_positive"

    def check(self, measured: Measurements, thresholds: Thresholds, run: str) -> Finding | None:
        """Compare its share of the queries with the limit, and with what the median positive has."""
        share, times = measured.numbers.get(self.number), float(measured.numbers.get("common_positive_times", 0))
        if (
            share is None
            or not float(share) > thresholds.common_positive
            or not times > thresholds.common_positive_times
        ):
            return None
        severity = "error" if float(share) > thresholds.common_positive_error else "warning"
        text = f"one text is the positive of {float(share):.1%} of the queries, {times:.0f} times as many as the median positive has"
        fix = "look at it: is it an answer, or what stood there when a page was not found? Leave its pairs out then"
        ids = measured.ids.get("common_positives", [])
        return Finding(self.code, severity, text, self.number, float(share), thresholds.common_positive, ids, fix)


class Boilerplate(FindingRule):
    """Reports a text that many documents, or many queries, share."""

    def __init__(self, side: str) -> None:
        """`side` is `document` or `query`: whose texts are looked at."""
        self.side, self.number = side, f"{side}_boilerplate"

    def check(self, measured: Measurements, thresholds: Thresholds, run: str) -> Finding | None:
        """Compare the share of texts that hold it with the limit."""
        share, shared = measured.numbers.get(self.number), measured.numbers.get(f"{self.number}_text")
        if not isinstance(share, Estimate) or shared is None or not share.low > thresholds.boilerplate:
            return None
        many = {"document": "documents", "query": "queries"}[self.side]
        text = (
            f"{share.value:.0%} of the {many} {shared}: it makes {many} near one another that have nothing else in common, and it "
            f"becomes part of every vector"
        )
        fix = (
            f"take it out of the {many}, and mine again; if it is an instruction to the encoder, give it with --{self.side}-prompt "
            f"instead"
        )
        ids = measured.ids.get(f"{self.number}_ids", [])
        return Finding("boilerplate", "warning", text, self.number, share.value, thresholds.boilerplate, ids, fix)


DATA_RULES: tuple[FindingRule, ...] = (
    Boilerplate("document"),
    Boilerplate("query"),
    ThresholdRule(
        "mislabelled", "mislabelled",
        "at most about {v:.0%} of the pairs look mislabelled: their positive is no nearer to the query than that of another query",
        "look at the pairs in mislabelled_pairs (--json): are {items} in another order, or positives of another query?",
        "mislabelled", "mislabelled_error", "lost_queries", info="mislabelled_few",
    ),
    PositivesLost(),
    ThresholdRule(
        "near-query", "near_query_positives",
        "{v:.0%} of the negatives are positives of a query with nearly the same vector (cosine above 0.95): they are relevant, if it "
        "asks the same",
        "hardneg calibrate {run} && hardneg select {run} --add-filter {posterior} --out {out}", "near_query", ids="near_query_queries",
    ),
    OthersPositives(),
    ThresholdRule(
        "copied", "copied_equal", "{v:.0%} of the negatives are the same {item} as a positive or the query: they are relevant",
        "hardneg select {run} --default-filters --out {out}", "copied", ids="copied_queries",
    ),
    ThresholdRule(
        "copied", "copied_near", "{v:.0%} of the negatives are nearly copies of a positive of their query: they are relevant",
        "hardneg select {run} --add-filter duplicate:near=0.95 --out {out}", "copied", ids="near_copied_queries",
    ),
    ThresholdRule(
        "chunks", "chunk_overlap",
        "{v:.0%} of the negatives are chunks that overlap with a positive: the beginning of one is the end of the other",
        "{mine} --filter group   # with a column 'group' that all chunks of one text share", "chunks",
        ids="chunk_queries",
    ),
    ThresholdRule(
        "translations", "translations",
        "{v:.0%} of the negatives have a vector near that of a positive (cosine above 0.9) and hardly a word in common: translations "
        "or paraphrases, if the encoder knows meaning",
        "hardneg select {run} --add-filter duplicate:near=0.9 --out {out}", "translations", ids="translation_queries",
    ),
    ThresholdRule(
        "hub-skew", "hub_skew",
        "a few documents are negatives of very many queries (skewness {v:.0f}): see the hubs",
        "look at the hubs: have they no content? Remove them, or filter by score or rank", "hub_skew", ids="hubs",
    ),
    NeverRetrieved(),
    ThresholdRule(
        "lexical", "bm25_also",
        "BM25 finds {v:.0%} of the negatives as well: they share words with the query, and a model may learn no more. An "
        "encoder that knows meaning finds others",
        "{otherwise}", info="lexical",
    ),
    ThresholdRule(
        "second-encoder", "second_relative",
        "for the second encoder the negatives are hardly nearer than random documents ({v:.2f}, where 0 is random and 1 as near as "
        "positives): they are hard for the first alone",
        "mine with the second encoder, or with both; a posterior is learned anew then (hardneg calibrate)",
        "second_easy", above=False,
    ),
    BothAbove(),
    ThresholdRule(
        "empty-positives", "empty_positives", "{v:.1%} of the pairs have a positive without {item}",
        "leave these pairs out, or read another column (hardneg inspect shows documents as they are read)",
        "empty_positives", "empty_positives_error", "empty_positive_queries",
    ),
    CommonPositive(),
    ThresholdRule(
        "answered", "answered_queries", "{v:.1%} of the queries hold the text of their own positive",
        "take the answers out of the queries: with them, looking for equal words is enough, and nothing is learned",
        "answered", "answered_error", "answered_query_ids",
    ),
    ThresholdRule(
        "repeated", "repeated_queries",
        "the positive repeats its query word for word: {v:.1%} of the pairs. The encoder learns to look for the query itself",
        "take the query out of its positive (a docstring out of the code, a question out of its answer), and mine again; no "
        "temperature helps",
        "repeated", "repeated_error", "repeated_query_ids",
    ),
    ThresholdRule(
        "one-vector", "one_vector", "the vectors of {v:.1%} of the queries are those of their positives, though the texts differ",
        "encode the queries again: their vectors were made of the documents", "one_vector", "one_vector_error", "one_vector_queries",
    ),
    ThresholdRule(
        "leak", "leaked_pairs", "{v:.1%} of the evaluation queries were trained on together with their answer",
        "take these queries out of the training data: leaked_training_pair_ids (--json) has them", "leaked", "leaked_error",
        "leaked_pair_ids",
    ),
    ThresholdRule(
        "leak", "leaked_queries", "{v:.1%} of the evaluation queries are, or nearly are, training queries",
        "take these queries out of the training data: leaked_training_ids (--json) has them", "leaked", "leaked_error",
        "leaked_query_ids",
    ),
    TaughtOut(
        "taught-out", "teaching",
        "{rest:.0%} of the negatives teach nothing at temperature {temperature:.3g} (softmax weight below 1%)",
        "{easier}", "teaching", above=False,
    ),
    WorstSlice(),
)  # fmt: skip
