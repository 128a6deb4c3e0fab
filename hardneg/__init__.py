"""Hard negatives for training embedding models: mining, filtering, sampling and diagnosis.

The most common names can be imported from here, the others from subpackages such as `hardneg.index` and
`hardneg.losses`. Each module is loaded when one of its names is first used. `__init__.pyi` lists all names.
"""

from hardneg.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
