"""Real datasets made from files of installed packages, for the demo, the tests and the examples."""

from hardneg.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
