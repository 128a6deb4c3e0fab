"""Mining cut into tasks over files, so that any number of workers on any number of machines can do it, and any of them may die."""

from hardneg.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
