"""The built-in rules about what tells of false negatives: nothing, two that disagree, a posterior of another selection, or masks."""

from __future__ import annotations

import math
import shlex

from hardneg.diagnostics.estimates import Estimate, Measurements
from hardneg.diagnostics.findings.base import Finding, FindingRule
from hardneg.diagnostics.findings.thresholds import Thresholds


class UnknownFalseNegatives(FindingRule):
    """Reports that the share of false negatives is unknown.

    This is so for a run without a posterior whose dataset has no groups, or whose filter `group` removed what groups could
    tell of, and which has too few hidden positives to learn from.
    """

    def check(self, measured: Measurements, thresholds: Thresholds, run: str) -> Finding | None:
        """Report the share of negatives that score above the positive, as an upper limit of the share that is false."""
        if measured.numbers.get("false_source") != "range" or not math.isfinite(measured.numbers["false_high"]):
            return None
        high = float(measured.numbers["false_high"])
        text = f"how many negatives are relevant is not known: {high:.1%} of them score above the positive"
        if measured.numbers.get("groups_removed"):
            text += (
                "; the groups tell nothing of it, because the filter 'group' removed the negatives of a query's group"
            )
        place, posterior = shlex.quote(run), shlex.quote(f"posterior:{run}/posterior.json")
        fix = f"hardneg calibrate {place} && hardneg select {place} --add-filter {posterior} --out {shlex.quote(run + '-2')}"
        return Finding("false-negatives-unknown", "info", text, "false_high", high, 0.0, [], fix)


class AboveAnnounced(FindingRule):
    """Reports a posterior that expects far more false negatives than it announced: it was calibrated for another selection."""

    def check(self, measured: Measurements, thresholds: Thresholds, run: str) -> Finding | None:
        """Compare two numbers of one posterior. What it may be wrong by is in both, so no interval is needed."""
        said, now = (measured.numbers.get(name) for name in ("false_announced", "false_expected"))
        if said is None or now is None or not now > thresholds.announced * said:
            return None
        changed = measured.numbers.get("announced_for")
        text = (
            f"by the posterior {now:.1%} of the negatives are expected to be false, {now / said:.1f} times the {said:.1%} that it "
            f"announced for another selection{f' ({changed})' if changed else ''}"
        )
        place, posterior = shlex.quote(run), shlex.quote(f"posterior:{run}/posterior.json")
        fix = f"hardneg calibrate {place} && hardneg select {place} --add-filter {posterior} --out {shlex.quote(run + '-2')}"
        severity = "warning" if now > thresholds.false_share else "info"
        return Finding("false-announced", severity, text, "false_expected", now, thresholds.announced * said, [], fix)


class GroupsDisagree(FindingRule):
    """Reports groups and a posterior that say different shares of false negatives."""

    def check(self, measured: Measurements, thresholds: Thresholds, run: str) -> Finding | None:
        """Compare the two intervals: they must not meet."""
        by, groups = measured.numbers.get("false_share"), measured.numbers.get("false_by_groups")
        if not isinstance(by, Estimate) or not isinstance(groups, Estimate):
            return None
        if not (groups.low > by.high or groups.high < by.low):
            return None
        more = groups.value > by.value
        why = (
            "groups are broader than relevance, or the posterior knows nothing of them"
            if more
            else "relevant documents are in other groups, or the posterior takes what is near for relevant"
        )
        text = (
            f"groups and the {measured.numbers.get('false_source')} disagree: by groups {groups.value:.1%} of the negatives are false "
            f"({groups.low:.1%} to {groups.high:.1%}), else {by.value:.1%} ({by.low:.1%} to {by.high:.1%}): {why}"
        )
        judged = shlex.quote(f"{run}-judged.csv")
        fix = f"hardneg judge {shlex.quote(run)} --sample 300 --out {judged}   # judgements tell which is right"
        return Finding(
            "groups-disagree", "warning", text, "false_by_groups", groups.value, by.high if more else by.low, [], fix
        )


class MaskedMuch(FindingRule):
    """Reports a training that masks far more of its batches than its filters reject among the nearest candidates."""

    code, number = "masked-much", "masked"

    def check(self, measured: Measurements, thresholds: Thresholds, run: str) -> Finding | None:
        """Compare the share of masked entries with its limit, and with the shares that filters reject, where these are known."""
        masked = measured.numbers.get(self.number)
        rejected = sum(float(value) for name, value in measured.numbers.items() if name.startswith("rejected/"))
        limit = max(thresholds.masked, thresholds.masked_times * rejected)
        if masked is None or not masked > limit or float(measured.numbers.get("alone", 0)) >= 1:
            return None  # where every negative is masked, the training says so itself
        text = f"{masked:.0%} of the documents of a batch are masked: they are no negatives of a query there"
        if rejected:
            text += f", though the filters reject only {rejected:.0%} of the nearest candidates"
        fix = (
            "loosen what the loss masks by (a higher threshold= of posterior, a higher max= of shared-neighbors, a smaller margin), "
            "or draw batches at random (--batches random)"
        )
        return Finding("masked-much", "warning", text, self.number, float(masked), limit, [], fix)
