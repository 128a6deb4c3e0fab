"""Judges: models that say whether a document is relevant to a query. Their answers are noisy evidence, never the truth."""

from hardneg.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
