"""hardneg: hard negatives for training embedding models. The public names; each is loaded when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hardneg.bank.memory_bank import MemoryBank as MemoryBank
    from hardneg.bank.memory_bank import MomentumEncoder as MomentumEncoder
    from hardneg.bank.mined import Mined as Mined
    from hardneg.bank.sampler import Curriculum as Curriculum
    from hardneg.bank.sampler import Examples as Examples
    from hardneg.bank.sampler import MemoryBankSampler as MemoryBankSampler
    from hardneg.calibration.calibrate import NotCertified as NotCertified
    from hardneg.calibration.calibrate import calibrate as calibrate
    from hardneg.calibration.calibrate import judge as judge
    from hardneg.data.exports import export as export
    from hardneg.data.formats import ReadOptions as ReadOptions
    from hardneg.data.formats import read_pairs as read_pairs
    from hardneg.data.pairs import Pairs as Pairs
    from hardneg.diagnostics.compare import Comparison as Comparison
    from hardneg.diagnostics.compare import compare as compare
    from hardneg.diagnostics.diagnose import Diagnosis as Diagnosis
    from hardneg.diagnostics.diagnose import diagnose as diagnose
    from hardneg.diagnostics.findings import Finding as Finding
    from hardneg.diagnostics.findings import Thresholds as Thresholds
    from hardneg.diagnostics.live import Diagnostics as Diagnostics
    from hardneg.encoders.base import Encoder as Encoder
    from hardneg.encoders.base import Trainable as Trainable
    from hardneg.encoders.base import make_encoder as make_encoder
    from hardneg.encoders.hashed import HashedEncoder as HashedEncoder
    from hardneg.encoders.snapshot import ModuleSnapshots as ModuleSnapshots
    from hardneg.encoders.snapshot import ProcessSnapshots as ProcessSnapshots
    from hardneg.errors import DataError as DataError
    from hardneg.errors import HardnegError as HardnegError
    from hardneg.errors import RunError as RunError
    from hardneg.errors import UsageError as UsageError
    from hardneg.index.base import Index as Index
    from hardneg.index.base import Neighbours as Neighbours
    from hardneg.index.choose import Recall as Recall
    from hardneg.index.choose import make_index as make_index
    from hardneg.index.device import DeviceIndex as DeviceIndex
    from hardneg.index.exact import ExactIndex as ExactIndex
    from hardneg.index.files import load_index as load_index
    from hardneg.index.files import save_index as save_index
    from hardneg.index.generation import Generation as Generation
    from hardneg.index.generation import Recipe as Recipe
    from hardneg.index.hnsw import HNSWIndex as HNSWIndex
    from hardneg.index.ivf import IVFIndex as IVFIndex
    from hardneg.index.refreshed import RefreshedIndex as RefreshedIndex
    from hardneg.index.refreshed import RefreshError as RefreshError
    from hardneg.index.staleness import Schedule as Schedule
    from hardneg.index.staleness import Staleness as Staleness
    from hardneg.losses.caching import cached_backward as cached_backward
    from hardneg.losses.infonce import InfoNCE as InfoNCE
    from hardneg.losses.infonce import Sides as Sides
    from hardneg.losses.infonce import Variants as Variants
    from hardneg.losses.tiles import Tiles as Tiles
    from hardneg.mining.candidates import Candidates as Candidates
    from hardneg.mining.filters import Chain as Chain
    from hardneg.mining.filters import Filter as Filter
    from hardneg.mining.mine import mine as mine
    from hardneg.mining.options import MineOptions as MineOptions
    from hardneg.mining.posterior import Posterior as Posterior
    from hardneg.mining.reopen import Reopened as Reopened
    from hardneg.mining.run import Run as Run
    from hardneg.mining.select import SelectOptions as SelectOptions
    from hardneg.mining.select import select as select
    from hardneg.mining.sketch import Sketch as Sketch
    from hardneg.mining.sketch import make_sketch as make_sketch
    from hardneg.mining.specs import parse_filter as parse_filter
    from hardneg.mining.specs import parse_filters as parse_filters
    from hardneg.mining.specs import parse_sampler as parse_sampler
    from hardneg.training.evaluate import Evaluation as Evaluation
    from hardneg.training.evaluate import evaluate as evaluate
    from hardneg.training.evaluate import evaluate_vectors as evaluate_vectors
    from hardneg.training.options import TrainOptions as TrainOptions
    from hardneg.training.towers import Towers as Towers
    from hardneg.training.train import Held as Held
    from hardneg.training.train import train as train

_HOME = {
    "Candidates": "hardneg.mining.candidates",
    "Chain": "hardneg.mining.filters",
    "Comparison": "hardneg.diagnostics.compare",
    "Curriculum": "hardneg.bank.sampler",
    "DataError": "hardneg.errors",
    "DeviceIndex": "hardneg.index.device",
    "Diagnosis": "hardneg.diagnostics.diagnose",
    "Diagnostics": "hardneg.diagnostics.live",
    "Encoder": "hardneg.encoders.base",
    "Evaluation": "hardneg.training.evaluate",
    "ExactIndex": "hardneg.index.exact",
    "Examples": "hardneg.bank.sampler",
    "Filter": "hardneg.mining.filters",
    "Finding": "hardneg.diagnostics.findings",
    "Generation": "hardneg.index.generation",
    "HNSWIndex": "hardneg.index.hnsw",
    "HardnegError": "hardneg.errors",
    "Held": "hardneg.training.train",
    "HashedEncoder": "hardneg.encoders.hashed",
    "IVFIndex": "hardneg.index.ivf",
    "Index": "hardneg.index.base",
    "InfoNCE": "hardneg.losses.infonce",
    "MemoryBank": "hardneg.bank.memory_bank",
    "MemoryBankSampler": "hardneg.bank.sampler",
    "MineOptions": "hardneg.mining.options",
    "Mined": "hardneg.bank.mined",
    "ModuleSnapshots": "hardneg.encoders.snapshot",
    "MomentumEncoder": "hardneg.bank.memory_bank",
    "Neighbours": "hardneg.index.base",
    "NotCertified": "hardneg.calibration.calibrate",
    "Pairs": "hardneg.data.pairs",
    "Posterior": "hardneg.mining.posterior",
    "ReadOptions": "hardneg.data.formats",
    "ProcessSnapshots": "hardneg.encoders.snapshot",
    "Recall": "hardneg.index.choose",
    "Recipe": "hardneg.index.generation",
    "RefreshError": "hardneg.index.refreshed",
    "RefreshedIndex": "hardneg.index.refreshed",
    "Reopened": "hardneg.mining.reopen",
    "Run": "hardneg.mining.run",
    "RunError": "hardneg.errors",
    "Schedule": "hardneg.index.staleness",
    "SelectOptions": "hardneg.mining.select",
    "Sides": "hardneg.losses.infonce",
    "Sketch": "hardneg.mining.sketch",
    "Staleness": "hardneg.index.staleness",
    "Thresholds": "hardneg.diagnostics.findings",
    "Tiles": "hardneg.losses.tiles",
    "Towers": "hardneg.training.towers",
    "TrainOptions": "hardneg.training.options",
    "Trainable": "hardneg.encoders.base",
    "UsageError": "hardneg.errors",
    "Variants": "hardneg.losses.infonce",
    "cached_backward": "hardneg.losses.caching",
    "calibrate": "hardneg.calibration.calibrate",
    "compare": "hardneg.diagnostics.compare",
    "diagnose": "hardneg.diagnostics.diagnose",
    "evaluate": "hardneg.training.evaluate",
    "evaluate_vectors": "hardneg.training.evaluate",
    "export": "hardneg.data.exports",
    "judge": "hardneg.calibration.calibrate",
    "load_index": "hardneg.index.files",
    "make_encoder": "hardneg.encoders.base",
    "make_index": "hardneg.index.choose",
    "make_sketch": "hardneg.mining.sketch",
    "mine": "hardneg.mining.mine",
    "parse_filter": "hardneg.mining.specs",
    "parse_filters": "hardneg.mining.specs",
    "parse_sampler": "hardneg.mining.specs",
    "read_pairs": "hardneg.data.formats",
    "save_index": "hardneg.index.files",
    "select": "hardneg.mining.select",
    "train": "hardneg.training.train",
}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hardneg' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
