"""False negatives: the share of negatives that are relevant."""

from __future__ import annotations

import numpy as np

from hardneg.diagnostics.estimates import LISTED, Estimate, Measurements, finite_mean, names_of, row_means
from hardneg.diagnostics.subject import Subject
from hardneg.mining.filters.identity import Group


def false_negatives(subject: Subject) -> Measurements:
    """Measure the share of negatives that are relevant.

    The numbers are `false_share`, the estimated share, and `false_source`, the evidence for it. The evidence is the
    first of these that exists:

    - `posterior`: the share is the mean of `negative_false_probability`.
    - `groups`: the share of negatives in the group of their query. Groups say nothing about a run whose filter `group`
      removed such negatives: their share is 0, whatever the share of relevant documents without the right group.
    - `hidden positives`: the share is the mean probability according to a posterior learned from hidden positives (see
      `with_hidden_positives`).
    - `range`: nothing tells the share, so there is no `false_share`. Instead, `false_low` is 0, and `false_high` is the
      share of negatives that score above the positive. `groups_removed` is there if a filter `group` is the reason.
    """
    out = Measurements()
    real = subject.real
    by_group = filtered_by_group(subject)
    if subject.probability is not None:
        shares, source = np.where(real, subject.probability, np.nan), subject.told_by
    elif subject.pairs.query_groups is not None and subject.pairs.document_groups is not None and not by_group:
        query_group = subject.pairs.query_groups[:, None]
        same = query_group == subject.pairs.document_groups[subject.documents]
        shares, source = np.where(real & (query_group >= 0), same & (query_group >= 0), np.nan), "groups"
    else:
        above = np.where(
            real & np.isfinite(subject.positive)[:, None], subject.scores > subject.positive[:, None], np.nan
        )
        out.numbers |= {"false_source": "range", "false_low": 0.0, "false_high": float(finite_mean(above))}
        if by_group:
            out.numbers["groups_removed"] = True
        return out
    per_query = row_means(shares)
    out.numbers |= {"false_source": source, "false_share": Estimate.share_of(per_query)}
    worst = np.flatnonzero(np.nan_to_num(per_query) > 0)
    worst = worst[np.argsort(-per_query[worst], kind="stable")][:LISTED]
    out.ids["most_false_queries"] = names_of(subject.pairs.query_ids, worst)
    return out


def filtered_by_group(subject: Subject) -> bool:
    """Whether the filter `group` removed the negatives that groups could show to be relevant."""
    counts = subject.info.get("counts", {})
    return any(name.partition("#")[0] == Group.name for name in counts.get("verdicts", {}))
