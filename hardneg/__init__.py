"""hardneg: hard negatives for training embedding models. The public names; each is loaded when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hardneg.data.exports import export as export
    from hardneg.data.formats import ReadOptions as ReadOptions
    from hardneg.data.formats import read_pairs as read_pairs
    from hardneg.data.pairs import Pairs as Pairs
    from hardneg.encoders.base import Encoder as Encoder
    from hardneg.encoders.base import make_encoder as make_encoder
    from hardneg.encoders.hashed import HashedEncoder as HashedEncoder
    from hardneg.errors import DataError as DataError
    from hardneg.errors import HardnegError as HardnegError
    from hardneg.errors import RunError as RunError
    from hardneg.errors import UsageError as UsageError
    from hardneg.index.base import Index as Index
    from hardneg.index.base import Neighbours as Neighbours
    from hardneg.index.exact import ExactIndex as ExactIndex
    from hardneg.mining.candidates import Candidates as Candidates
    from hardneg.mining.filters import Chain as Chain
    from hardneg.mining.filters import Filter as Filter
    from hardneg.mining.mine import mine as mine
    from hardneg.mining.options import MineOptions as MineOptions
    from hardneg.mining.run import Run as Run
    from hardneg.mining.select import SelectOptions as SelectOptions
    from hardneg.mining.select import select as select
    from hardneg.mining.specs import parse_filter as parse_filter
    from hardneg.mining.specs import parse_filters as parse_filters
    from hardneg.mining.specs import parse_sampler as parse_sampler

_HOME = {
    "Candidates": "hardneg.mining.candidates",
    "Chain": "hardneg.mining.filters",
    "DataError": "hardneg.errors",
    "Encoder": "hardneg.encoders.base",
    "ExactIndex": "hardneg.index.exact",
    "Filter": "hardneg.mining.filters",
    "HardnegError": "hardneg.errors",
    "HashedEncoder": "hardneg.encoders.hashed",
    "Index": "hardneg.index.base",
    "MineOptions": "hardneg.mining.options",
    "Neighbours": "hardneg.index.base",
    "Pairs": "hardneg.data.pairs",
    "ReadOptions": "hardneg.data.formats",
    "Run": "hardneg.mining.run",
    "RunError": "hardneg.errors",
    "SelectOptions": "hardneg.mining.select",
    "UsageError": "hardneg.errors",
    "export": "hardneg.data.exports",
    "make_encoder": "hardneg.encoders.base",
    "mine": "hardneg.mining.mine",
    "parse_filter": "hardneg.mining.specs",
    "parse_filters": "hardneg.mining.specs",
    "parse_sampler": "hardneg.mining.specs",
    "read_pairs": "hardneg.data.formats",
    "select": "hardneg.mining.select",
}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hardneg' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
