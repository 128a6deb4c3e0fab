"""Files, arrays and vectors on disk. They are written whole or not at all, and checked when they are read."""

from hardneg.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
