"""The mining pass: search, filter, sample, write a run."""

from hardneg.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
