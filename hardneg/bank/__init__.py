"""Where a batch's negatives come from while training: mined ones, random ones, and a memory bank."""

from hardneg.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
