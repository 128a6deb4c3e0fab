"""The options of a mining pass."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from hardneg.data.options import ReadOptions
from hardneg.errors import DataError, UsageError, suggestion
from hardneg.index.base import METRICS, IndexSpec
from hardneg.index.factory import INDEXES
from hardneg.mining.filters.base import Filter
from hardneg.mining.samplers import Sampler
from hardneg.mining.specs import parse_filters, parse_sampler
from hardneg.registry import spec_of
from hardneg.storage.vectors import PRECISIONS


@dataclass(frozen=True, kw_only=True)
class MineOptions:
    """All options that decide the result of a mining pass.

    Attributes:
        encoder: `hashed`, `st:NAME_OR_PATH` or `module:PKG.MOD:FACTORY`; not used if embeddings are given.
        query_embeddings, corpus_embeddings: `.npy` files of vectors, in the order of the source's rows.
        index: `exact`, `ivf`, `hnsw`, or `auto`, which decides by size; or an index, or a function that makes one
            (see `Index`).
        recall: share of the nearest documents that an approximate index should find; the share it does find is measured.
        index_device: where an exact index searches: `cpu`, or `cuda`, whose scores differ by rounding.
        metric: `cosine`, `ip` or `l2`.
        depth: number of candidates for each query; None: 100, or the whole corpus if it is smaller.
        max_depth: how deep to search for a query that filters leave with fewer than `negatives`; None: 4 * depth.
        negatives: number of negatives for each query.
        filters: specs or `Filter` objects, applied in order after `known` and the default filters.
        default_filters: whether to use `empty` and `duplicate:text`.
        sampler: a spec, or an object with `log_weights(candidates)`.
        seed: seed of all random choices.
        query_prompt, document_prompt: text that is put before each query and each document.
        precision: number format of stored vectors, `float16` or `float32`.
        read: how to read the source.
    """

    encoder: str = "hashed"
    query_embeddings: str | None = None
    corpus_embeddings: str | None = None
    index: IndexSpec = "auto"
    recall: float = 0.95
    index_device: str = "cpu"
    metric: str = "cosine"
    depth: int | None = None
    max_depth: int | None = None
    negatives: int = 7
    filters: tuple[str | Filter, ...] = ()
    default_filters: bool = True
    sampler: str | Sampler = "top"
    seed: int = 0
    query_prompt: str = ""
    document_prompt: str = ""
    precision: str = "float16"
    read: ReadOptions = field(default_factory=ReadOptions)

    def validate(self) -> None:
        """Raise UsageError for mistakes that can be found before any work starts."""
        parse_filters(self.filters, self.default_filters)
        parse_sampler(self.sampler)
        for name, value, known in (
            *((("index", self.index, INDEXES),) if isinstance(self.index, str) else ()),
            ("metric", self.metric, METRICS),
            ("precision", self.precision, PRECISIONS),
        ):
            if value not in known:
                raise UsageError(f"unknown {name} {value!r}.{suggestion(value, known)}")
        if not 0 < self.recall <= 1:
            raise UsageError(f"recall {self.recall} must be above 0 and at most 1")
        if self.negatives < 1 or (self.depth is not None and self.depth < 1):
            raise UsageError("negatives and depth must be 1 or more")
        depth = 100 if self.depth is None else self.depth
        if self.negatives > depth:
            raise UsageError(
                f"{self.negatives} negatives per query cannot come from {depth} candidates: raise --depth to {self.negatives} or more"
            )
        if self.max_depth is not None and self.max_depth < depth:
            raise UsageError(f"max depth {self.max_depth} is below the depth {depth}")
        if (self.query_embeddings is None) != (self.corpus_embeddings is None):
            raise UsageError("give both query embeddings and corpus embeddings, or neither")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"the seed {self.seed} must be 0 to 2^63 - 1")

    def to_json(self) -> dict[str, Any]:
        """The options as plain values. `spec_of` writes filters, samplers and indexes that are objects as text."""
        value = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        value |= {"filters": [spec_of(each) for each in self.filters]}
        value |= {name: spec_of(getattr(self, name)) for name in ("sampler", "index")}
        value["read"] = dataclasses.asdict(self.read)
        if self.read.corpus is not None:
            value["read"]["corpus"] = str(self.read.corpus)
        return value


def resolve_depth(options: MineOptions, documents: int) -> tuple[int, int]:
    """(depth, max depth) for a corpus of this many documents.

    Raises:
        DataError: the options ask for more candidates than there are documents.

    >>> resolve_depth(MineOptions(depth=50), documents=1000)
    (50, 200)
    """
    if options.depth is not None and options.depth > documents:
        raise DataError(
            f"depth {options.depth} is more than the {documents:,} documents of the corpus: use --depth {documents} or less"
        )
    depth = min(100, documents) if options.depth is None else options.depth
    max_depth = 4 * depth if options.max_depth is None else options.max_depth
    return depth, min(max(depth, max_depth), documents)
