"""Which index, and how good it is: made by name or by size, tuned to a recall, and measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hardneg.errors import UsageError, suggestion
from hardneg.index.corpus import Documents
from hardneg.index.device import DeviceIndex
from hardneg.index.exact import ExactIndex
from hardneg.index.hnsw import HNSWIndex
from hardneg.index.ivf import IVFIndex

INDEXES = ("auto", "exact", "ivf", "hnsw")
AnyIndex = ExactIndex | IVFIndex | HNSWIndex | DeviceIndex

_SAMPLE = 2048  # queries that are searched exactly: half to tune, half to measure


@dataclass(frozen=True)
class Recall:
    """How many of the true neighbours an index finds.

    Attributes:
        measured: recall@k on queries that were not used to tune; 1 for an exact index, which need not be measured.
        error: standard error of it.
        target: what was asked for.
        k: neighbours a query.
        queries: how many it was measured on.
    """

    measured: float
    error: float
    target: float
    k: int
    queries: int

    @property
    def reached(self) -> bool:
        """Whether the target is reached, but for the error of the measurement."""
        return self.measured + self.error >= self.target

    def to_json(self) -> dict[str, Any]:
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


def fastest_index(documents: int, queries: int) -> str:
    """`exact` or `ivf`, whichever was faster from nothing to the answer; HNSW never was (benchmarks/RESULTS.md).

    Depends on the sizes alone: the same work gets the same index on every machine.
    """
    # A map pays when many queries share its cost, and when a list is a small part of the corpus.
    return "ivf" if documents >= 100_000 and queries >= 16_384 else "exact"


def make_index(
    name: str,
    documents: Documents,
    metric: str = "cosine",
    *,
    queries: Any = None,
    k: int = 100,
    recall: float = 0.95,
    seed: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    **settings: Any,
) -> tuple[AnyIndex, Recall]:
    """An index, tuned to a recall that is measured against exact search.

    Args:
        name: one of `INDEXES`.
        documents, metric, threads: see `Corpus`.
        queries: float `[n, d]`, all that will be asked, or some like them; a sample of them is searched exactly. By
            default the documents themselves.
        k: neighbours that will be asked for; the recall is measured at k.
        recall: target, above 0 and at most 1.
        seed: of the sample and of the map.
        device: of an exact index, `cuda` for example; scores on another device differ by rounding.
        settings: of the index, see its class.

    Raises:
        UsageError: an unknown name or a recall that cannot be.
    """
    if name not in INDEXES:
        raise UsageError(f"unknown index {name!r}.{suggestion(name, INDEXES)}")
    if not 0 < recall <= 1:
        raise UsageError(f"recall={recall} must be above 0 and at most 1")
    if settings and name not in ("ivf", "hnsw"):
        raise UsageError(f"the setting {next(iter(settings))!r} belongs to the index 'ivf' or 'hnsw', not to {name!r}")
    if device != "cpu":
        if name not in ("auto", "exact"):
            raise UsageError(f"the index {name!r} runs on the processor: use the index 'exact' on {device!r}")
        return DeviceIndex(documents, metric, device=device), Recall(1.0, 0.0, recall, k, 0)
    queries = documents if queries is None else queries
    if name == "auto":
        name = fastest_index(len(documents), len(queries))
    if name == "exact" or recall == 1:
        return ExactIndex(documents, metric, threads=threads), Recall(1.0, 0.0, recall, k, 0)
    index: IVFIndex | HNSWIndex
    if name == "ivf":
        index = IVFIndex(documents, metric, seed=seed, threads=threads, **settings)
    else:
        index = HNSWIndex(documents, metric, threads=threads, **settings)
    return index, tuned(index, queries, min(k, index.size), recall, seed)


def tuned(index: IVFIndex | HNSWIndex, queries: Any, k: int, recall: float, seed: int = 0) -> Recall:
    """Tune an index on one half of a sample of the queries, and measure it on the other."""
    chosen = np.random.default_rng(seed).permutation(len(queries))[:_SAMPLE]
    halves = np.sort(chosen[::2]), np.sort(chosen[1::2] if len(chosen) > 1 else chosen)
    exact = ExactIndex(index.documents, index.metric, threads=index.threads)
    both = np.asarray(queries[np.concatenate(halves)], np.float32)
    truth = exact.search(both, k).documents
    half = len(halves[0])
    index.tune(both[:half], truth[:half], recall)
    # A little more than asked for: another sample differs by about a standard error.
    shares = index.recalls(both[:half], truth[:half])
    index.tune(both[:half], truth[:half], min(1.0, recall + float(shares.std()) / half**0.5))
    shares = index.recalls(both[half:], truth[half:])
    return Recall(float(shares.mean()), float(shares.std()) / len(shares) ** 0.5, recall, k, len(shares))
