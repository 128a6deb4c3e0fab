"""Diagnose negatives: measure them, report problems, and write HTML reports."""

from hardneg.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
