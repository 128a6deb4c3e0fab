"""For the trainers of others: negatives that are mined again while they train, and our loss and miner in their forms."""

from hardneg.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
