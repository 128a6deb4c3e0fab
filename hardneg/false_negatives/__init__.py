"""False negatives: how likely a candidate is a relevant document that nobody labelled, and what can be guaranteed about it."""

from hardneg.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
