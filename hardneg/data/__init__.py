"""Where datasets come from: readers, and `Pairs`, the columns that everything else works on."""

from hardneg.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
