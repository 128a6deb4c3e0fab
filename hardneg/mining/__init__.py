"""Mining: search candidates, filter them, sample negatives, and write a run."""

from hardneg.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
