"""Filters: which candidates may be negatives. One file a family."""

from hardneg.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
