"""Files, arrays and vectors on disk: written whole or not at all, checked when they are read."""

from hardneg.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
