"""Exports write a run's negatives in the formats that training libraries read."""

from hardneg.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
