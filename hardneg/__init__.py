"""Hard negatives for training embedding models: mined, filtered, sampled, diagnosed.

The names that people type most stand here, the others in their rooms (`hardneg.index`, `hardneg.losses`, ...). Each is
loaded when it is first used. They are listed in `__init__.pyi`.
"""

from hardneg.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
