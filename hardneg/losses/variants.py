"""Variants of InfoNCE, each from its paper."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hardneg.errors import UsageError
from hardneg.losses.arguments import flag, number


@dataclass(frozen=True)
class Variants:
    """Variants of the loss, each from its paper.

    Attributes:
        symmetric: also rank the queries of each document, and average the two losses (CLIP, arXiv 2103.00020).
        query_query: the other queries are negatives as well (improved contrastive loss of GTE, arXiv 2308.03281).
        document_document: the other positives are negatives of each positive as well (same paper).
        decoupled: leave the positive out of the denominator (DCL, arXiv 2110.06848).
        tau_plus: expected share of false negatives, which is subtracted from the sum (debiased, arXiv 2007.00224).
        beta: concentration on hard negatives (HCL, arXiv 2010.04592): they are weighted by exp(beta * logit).
        label_smoothing: share of the target that is spread over all entries.
        hard_weight: weight of a mined hard negative; all others have weight 1.
        margin_absolute, margin_relative: mask what scores above positive - margin, see `AbovePositive`.
        guide_margin: with a guide: mask what it scores above its score of the positive, less this margin.
        suspect_above: with sketches: mask what is more likely than this to be relevant; None: weigh every entry by 1 - p.

    Raises:
        UsageError: a value out of range, or label_smoothing together with a variant that is not a cross-entropy.
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
        for name in ("symmetric", "query_query", "document_document", "decoupled"):
            flag(name, getattr(self, name))
        for name in ("tau_plus", "label_smoothing"):
            number(name, getattr(self, name), 0, 1, below=True)
        number("beta", self.beta, 0)
        number("hard_weight", self.hard_weight, 0, above=True)
        for name in ("margin_absolute", "margin_relative", "guide_margin"):
            value = getattr(self, name)
            if value is not None or name == "guide_margin":
                number(name, value, -math.inf)
        if self.suspect_above is not None:
            number("suspect_above", self.suspect_above, 0, 1)
        if self.label_smoothing and (self.decoupled or self.tau_plus or self.beta):
            raise UsageError(
                "label_smoothing has no meaning together with decoupled, tau_plus or beta: those are no cross-entropies"
            )
