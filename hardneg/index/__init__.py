"""Nearest-neighbor search: exact and approximate indexes, and the measured recall of an approximate one.

To read the code, begin with `base` (the protocol of an index) and `vectors` (the documents and a metric). Exact search
consists of `kernels` (fast approximate scores with an error bound), `topk` (the k best documents so far), `thresholds`
(which documents need an exact score) and `exact` (the loop over the corpus). `cuda` is exact search on a GPU. The
approximate indexes are `ivf`, with its `kmeans`, and `hnsw`. `factory` chooses, builds and tunes an index, `recall`
holds the measured recall, and `files` saves and loads indexes.
"""

from hardneg.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
