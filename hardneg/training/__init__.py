"""Training an encoder with mined, refreshed and filtered negatives."""

from hardneg.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
