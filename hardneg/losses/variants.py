"""Variants of InfoNCE, each from its paper."""

from __future__ import annotations

from dataclasses import dataclass

from hardneg.errors import UsageError


@dataclass(frozen=True)
class Variants:
    """Variants of the loss, each from its paper.

    Attributes:
        symmetric: documents look for their queries, too; the two losses are averaged (CLIP, arXiv 2103.00020).
        query_query: the other queries are negatives as well, document_document: so are the other positives, of each
            positive (improved contrastive loss of GTE, arXiv 2308.03281).
        decoupled: the positive is left out of the denominator (DCL, arXiv 2110.06848).
        tau_plus: share of the negatives that is expected to be false, taken off (debiased, arXiv 2007.00224).
        beta: concentration on hard negatives (HCL, arXiv 2010.04592); their logits are weighed by exp(beta * logit).
        label_smoothing: share of the target that is spread over all entries.
        hard_weight: how much a mined hard negative counts, others count 1.
        margin_absolute, margin_relative: what scores above positive - margin is no negative, see `AbovePositive`.
        guide_margin: what a guide scores above its score of the positive, less this, is no negative, where a guide is given.
        suspect_above: what a posterior finds more likely than this to be relevant is no negative; None: every entry is
            weighed by 1 - p, where sketches are given.
    """

    symmetric: bool = False
    query_query: bool = False
    document_document: bool = False
    decoupled: bool = False
    tau_plus: float = 0.0
    beta: float = 0.0
    label_smoothing: float = 0.0
    hard_weight: float = 1.0
    margin_absolute: float | None = None
    margin_relative: float | None = None
    guide_margin: float = 0.0
    suspect_above: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.tau_plus < 1 or not 0 <= self.label_smoothing < 1:
            raise UsageError("tau_plus and label_smoothing must be 0 or more and below 1")
        if self.beta < 0 or not self.hard_weight > 0:
            raise UsageError("beta must be 0 or more, hard_weight above 0")
        if self.label_smoothing and (self.decoupled or self.tau_plus or self.beta):
            raise UsageError(
                "label_smoothing has no meaning together with decoupled, tau_plus or beta: those are no cross-entropies"
            )
