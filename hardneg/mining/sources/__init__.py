"""Sources list candidates: the search by the encoder, BM25, other encoders, TREC runs, and what the dataset brings along."""

from hardneg.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
