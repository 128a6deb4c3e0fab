"""Datasets: readers for the usual formats, and `Pairs`, the columns that the rest of the library works on."""

from hardneg.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
