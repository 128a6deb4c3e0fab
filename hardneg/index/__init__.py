"""Nearest neighbors: exact and approximate indexes, and how good an approximate one is."""

from hardneg.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
