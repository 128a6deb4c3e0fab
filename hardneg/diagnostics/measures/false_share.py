"""False negatives: the share of negatives that are relevant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from hardneg.data.pairs import Pairs
from hardneg.diagnostics.estimates import LISTED, Estimate, Measurements, finite_mean, names_of, row_means
from hardneg.diagnostics.subject import Subject
from hardneg.false_negatives.model import MISFIT
from hardneg.mining.filters.identity import Group


def false_negatives(subject: Subject) -> Measurements:
    """Measure the share of negatives that are relevant.

    The numbers are `false_share`, the estimated share, and `false_source`, the evidence for it. The evidence is the
    first of these that exists:

    - `posterior`: the share is the mean of `negative_false_probability`. Where the posterior was learned without judgements, the
      interval holds its own error as well (the range of levels, and its misfit on other sets).
    - `groups`: the share of negatives in the group of their query. Groups say nothing about a run whose filter `group`
      removed such negatives: their share is 0, whatever the share of relevant documents without the right group.
    - `hidden positives`: the share is the mean probability according to a posterior learned from hidden positives (see
      `with_hidden_positives`).
    - `range`: nothing tells the share, so there is no `false_share`. Instead, `false_low` is 0, and `false_high` is the
      share of negatives that score above the positive. `groups_removed` is there if a filter `group` is the reason.

    Where a posterior tells the share and groups could, `false_by_groups` is what they say. `false_announced` is the share that the
    posterior announced when it was calibrated, and `false_expected` what it expects of these negatives, which the selection that it
    was calibrated for did not have if it is another number; `announced_for` says how that selection differed.
    """
    out = Measurements()
    real = subject.real
    shares, source = shares_of(subject)
    if shares is None:
        above = np.where(
            real & np.isfinite(subject.positive)[:, None], subject.scores > subject.positive[:, None], np.nan
        )
        out.numbers |= {"false_source": "range", "false_low": 0.0, "false_high": float(finite_mean(above))}
        if filtered_by_group(subject):
            out.numbers["groups_removed"] = True
        return out
    per_query = row_means(shares)
    out.numbers |= {
        "false_source": source,
        "false_share": _with_own_error(subject, Estimate.share_of(per_query), source),
    }
    out.numbers |= _besides(subject, source, float(np.nanmean(shares)) if np.isfinite(shares).any() else np.nan)
    worst = np.flatnonzero(np.nan_to_num(per_query) > 0)
    worst = worst[np.argsort(-per_query[worst], kind="stable")][:LISTED]
    out.ids["most_false_queries"] = names_of(subject.pairs.query_ids, worst)
    return out


def _besides(subject: Subject, source: str, mean: float) -> dict[str, Any]:
    """What groups say besides a posterior, and what this announced."""
    out: dict[str, Any] = {}
    groups = told_by_groups(subject, np.arange(len(subject.pairs)), subject.documents)
    if source != "groups" and groups is not None and np.isfinite(groups).any():
        out["false_by_groups"] = Estimate.share_of(row_means(groups))
    said = subject.announced
    if source == "posterior" and said is not None and np.isfinite(mean):
        out |= {"false_announced": said.expected, "false_expected": mean * said.corrected}
        out["announced_for"] = ", ".join(said.changed(subject.info["config"]))
    return out


def shares_of(subject: Subject) -> tuple[NDArray[Any] | None, str]:
    """How relevant each negative is, and what tells it.

    Returns:
        (`[n, K]` from 0 to 1, NaN where it is not known or no negative; or None if nothing tells it. The evidence: `posterior`,
        `hidden positives`, `groups` or `range`, as in `false_negatives`).
    """
    if subject.probability is not None:
        return np.where(subject.real, subject.probability, np.nan), subject.told_by
    shares = told_by_groups(subject, np.arange(len(subject.pairs)), subject.documents)
    return (None, "range") if shares is None else (shares, "groups")


def told_by_groups(
    subject: Subject, queries: NDArray[np.integer], documents: NDArray[np.integer]
) -> NDArray[np.float64] | None:
    """Whether documents have the group of their query.

    Args:
        subject: the run.
        queries: int `[m]`, rows of queries; documents: int `[m, K]`, rows of documents, -1 for padding.

    Returns:
        float64 `[m, K]`: 1 or 0; NaN for padding and for queries without a group. None if groups tell nothing: there are none, or
        the run's filter `group` removed what they could tell of.
    """
    return None if filtered_by_group(subject) else in_group(subject.pairs, queries, documents)


def in_group(pairs: Pairs, queries: NDArray[np.integer], documents: NDArray[np.integer]) -> NDArray[np.float64] | None:
    """Like `told_by_groups`, for a dataset, whatever filters a run had; None if it has no groups."""
    groups = pairs.query_groups, pairs.document_groups
    if groups[0] is None or groups[1] is None:
        return None
    asked = groups[0][queries][:, None]
    return np.where((documents >= 0) & (asked >= 0), asked == groups[1][documents], np.nan)


def _with_own_error(subject: Subject, share: Estimate, source: str) -> Estimate:
    """The estimate, with the error of the posterior in its interval."""
    if source != "posterior" or subject.level_range is None or subject.probability is None:
        return share
    odds = logit(subject.probability[subject.real].astype(np.float64).clip(1e-9, 1 - 1e-9))
    shifted = [float(np.nanmean(expit(odds + shift))) for shift in subject.level_range]
    low, high = min(shifted) / MISFIT, max(shifted) * MISFIT
    return replace(share, low=min(share.low, low), high=min(1.0, max(share.high, high)))


def filtered_by_group(subject: Subject) -> bool:
    """Whether the filter `group` removed the negatives that groups could show to be relevant."""
    counts = subject.info.get("counts", {})
    return any(name.partition("#")[0] == Group.name for name in counts.get("verdicts", {}))
