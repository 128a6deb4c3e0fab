"""Filters decide which candidates may become negatives. Each family has its own file."""

from hardneg.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
