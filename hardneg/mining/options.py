"""The options of a mining pass."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch

from hardneg.data.options import Quoting, ReadOptions
from hardneg.encoders.number_format import NUMBER_FORMATS
from hardneg.errors import DataError, UsageError, no_giants, suggestion
from hardneg.index.base import METRICS, Index, IndexSpec
from hardneg.index.factory import INDEXES
from hardneg.mining.filters.base import Filter
from hardneg.mining.samplers import Sampler
from hardneg.mining.sources.base import CandidateSource, labels_of
from hardneg.mining.sources.fusion import Fusion
from hardneg.mining.specs import check_guides, filters_of, parse_filters, parse_fusion, parse_sampler, parse_sources
from hardneg.registry import spec_of
from hardneg.storage.files import check_name
from hardneg.storage.vectors import PRECISIONS


@dataclass(frozen=True, kw_only=True)
class MineOptions:
    """All options that decide the result of a mining pass.

    Attributes:
        encoder: `hashed`, `st:NAME_OR_PATH` or `module:PKG.MOD:FACTORY`; not used if embeddings are given.
        query_embeddings, corpus_embeddings: files of vectors: `.npy` in the order of the source's rows, or `.npz` or Parquet
            with ids (see `hardneg.encoders.precomputed.open_vectors`).
        index: `exact`, `ivf`, `hnsw`, or `auto`, which decides by size; or an index, or a function that makes one
            (see `Index`).
        recall: share of the nearest documents that an approximate index should find; the share it does find is measured.
        index_device: where an exact index searches: `cpu`, or `cuda`, whose scores differ by rounding.
        metric: `cosine`, `ip` or `l2`.
        depth: number of candidates for each query; None: 100, or the whole corpus if it is smaller.
        max_depth: how deep to search for a query that filters leave with fewer than `negatives`; None: 4 * depth.
        negatives: number of negatives for each query.
        filters: specs or `Filter` objects, applied in order after `known` and the default filters.
        default_filters: whether to use `empty`, `duplicate:text` and `distinct`.
        sampler: a spec, or an object with `log_weights(candidates)`.
        seed: seed of all random choices.
        query_prompt, document_prompt: text that is put before each query and each document; None: the encoder's own.
        precision: number format of stored vectors, `float16` or `float32`.
        encoder_precision: number format in which a sentence-transformers model multiplies: `float32`, `bfloat16`, `float16`, or
            `auto`, which takes bfloat16 where a short measurement finds it faster and the model bears it.
        candidates: where candidates come from: specs or `CandidateSource` objects. `dense` is the search by the encoder.
        fusion: how the lists of several sources become one: a spec, or a `Fusion`.
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
    query_prompt: str | None = None
    document_prompt: str | None = None
    precision: str = "float16"
    encoder_precision: str = "auto"
    candidates: tuple[str | CandidateSource, ...] = ("dense",)
    fusion: str | Fusion = "rrf"
    read: ReadOptions = field(default_factory=ReadOptions)

    def __post_init__(self) -> None:
        no_giants(self)
        # Values of numpy become plain ones, so that they can be written, and a generator of filters is read only once.
        for each in dataclasses.fields(self):
            object.__setattr__(self, each.name, plain(getattr(self, each.name)))
        object.__setattr__(self, "filters", filters_of(self.filters))
        if not isinstance(self.candidates, str | CandidateSource):
            if not isinstance(self.candidates, Iterable):
                raise UsageError(f"candidates is a list of specs and CandidateSources, not {self.candidates!r}")
            object.__setattr__(self, "candidates", tuple(self.candidates))

    def validate(self) -> None:
        """Raise UsageError for mistakes that can be found before any work starts."""
        check_types(self, _TYPES)
        for named in (
            self.query_embeddings,
            self.corpus_embeddings,
            *self.read.corpora,
            *self.filters,
            *self.candidates,
        ):
            if isinstance(named, str | Path):
                check_name(named)
        if not isinstance(self.index, str | Index) and not callable(self.index):
            raise UsageError(
                f"the option index must be a name, an index or a function that makes one, not {self.index!r}"
            )
        check_guides(parse_filters(self.filters, self.default_filters))
        parse_sampler(self.sampler)
        self._validate_candidates()
        for name, value, known in (
            *((("index", self.index, INDEXES),) if isinstance(self.index, str) else ()),
            ("metric", self.metric, METRICS),
            ("precision", self.precision, PRECISIONS),
            ("encoder precision", self.encoder_precision, NUMBER_FORMATS),
        ):
            if value not in known:
                raise UsageError(f"unknown {name} {value!r}.{suggestion(value, known)}")
        if not 0 < self.recall <= 1:
            raise UsageError(f"recall {self.recall} must be above 0 and at most 1")
        self._validate_depths()
        if (self.query_embeddings is None) != (self.corpus_embeddings is None):
            raise UsageError("give both query embeddings and corpus embeddings, or neither")
        if self.query_embeddings is not None and (self.query_prompt or self.document_prompt):
            raise UsageError(
                "query_prompt and document_prompt have no effect on vectors that are given: leave them out"
            )
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"the seed {self.seed} must be 0 to 2^63 - 1")
        check_device(self.index_device, self.index)

    def _validate_candidates(self) -> None:
        sources, fusion = parse_sources(self.candidates), parse_fusion(self.fusion)
        labels_of(sources)
        if len(sources) == 1 and spec_of(fusion) != "rrf":
            raise UsageError(f"the fusion {spec_of(fusion)!r} has no effect: there is only one source of candidates")
        weights = getattr(fusion, "weights", ())
        if weights and len(weights) != len(sources):
            raise UsageError(
                f"the fusion {spec_of(fusion)!r} has {len(weights)} weights for {len(sources)} sources of candidates: give one "
                f"for each, in their order"
            )

    def _validate_depths(self) -> None:
        if self.negatives < 1 or (self.depth is not None and self.depth < 1):
            raise UsageError("negatives and depth must be 1 or more")
        depth = 100 if self.depth is None else self.depth
        if self.negatives > depth:
            raise UsageError(
                f"{self.negatives} negatives per query cannot come from {depth} candidates: raise --depth to {self.negatives} or more"
            )
        if self.max_depth is not None and self.max_depth < depth:
            raise UsageError(f"max depth {self.max_depth} is below the depth {depth}")

    def to_json(self) -> dict[str, Any]:
        """The options as plain values. `spec_of` writes filters, samplers and indexes that are objects as text."""
        value = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        value |= {"filters": [spec_of(each) for each in self.filters]}
        value |= {name: spec_of(getattr(self, name)) for name in ("sampler", "index", "fusion")}
        value["candidates"] = [spec_of(each) for each in self.candidates]
        if value["candidates"] == ["dense"]:  # such a run is what it was before there were other sources
            del value["candidates"], value["fusion"]
        # Options at their defaults are left out if version 0.2 did not have them: its runs are resumed as well.
        read, unset = dataclasses.asdict(self.read), dataclasses.asdict(ReadOptions())
        corpora = [str(path) for path in self.read.corpora]
        read["corpus"] = None if not corpora else corpora[0] if len(corpora) == 1 else corpora
        read["image_root"] = plain(read["image_root"])
        added = (
            "relevant_from", "text_column", "negatives", "quoting", "images", "image_column", "caption_column",
            "caption_template", "image_root", "outside_images", "skip_broken", "group_positives",
        )  # fmt: skip
        if self.encoder_precision == "auto":
            del value["encoder_precision"]
        value["read"] = {n: v for n, v in read.items() if n not in added or v != unset[n]}
        return value


class MineChoices(TypedDict, total=False):
    """The options of a pass that `mine` takes by name: those of `MineOptions` and of `ReadOptions`, see there."""

    query_embeddings: str | None
    corpus_embeddings: str | None
    index: IndexSpec
    recall: float
    index_device: str
    metric: str
    depth: int | None
    max_depth: int | None
    negatives: int
    filters: Sequence[str | Filter]
    default_filters: bool
    sampler: str | Sampler
    seed: int
    query_prompt: str | None
    document_prompt: str | None
    precision: str
    encoder_precision: str
    candidates: Sequence[str | CandidateSource]
    fusion: str | Fusion
    read: ReadOptions

    format: str
    split: str
    query_column: str | None
    positive_column: str | None
    id_column: str | None
    document_id_column: str | None
    group_column: str | None
    relevance_column: str | None
    relevant_from: float | None
    text_column: str | None
    quoting: Quoting
    skip_unknown: bool
    images: str
    image_column: str | None
    caption_column: str | None
    caption_template: str
    image_root: str | os.PathLike[str] | None
    outside_images: bool
    skip_broken: bool
    group_positives: bool


def chosen(options: MineOptions, choices: Mapping[str, Any]) -> MineOptions:
    """The options with some replaced; UsageError for a name that is none.

    >>> changed = chosen(MineOptions(), {"negatives": 3, "query_column": "asked"})
    >>> changed.negatives, changed.read.query_column
    (3, 'asked')
    """
    known = [each.name for each in dataclasses.fields(MineOptions)]
    of_reading = [each.name for each in dataclasses.fields(ReadOptions) if each.name not in known]
    for name in choices:
        if name not in known and name not in of_reading:
            raise UsageError(f"mine has no option {name!r}.{suggestion(name, [*known, *of_reading])}")
    options = dataclasses.replace(options, **{name: value for name, value in choices.items() if name in known})
    reading = {name: value for name, value in choices.items() if name not in known}
    return dataclasses.replace(options, read=dataclasses.replace(options.read, **reading)) if reading else options


def with_given(options: MineOptions) -> MineOptions:
    """The options with a reading that remembers the negatives of the source, if these are candidates."""
    if isinstance(options.candidates, str) or not isinstance(options.read, ReadOptions):
        return options
    given = any(spec_of(each).partition(":")[0] == "given" for each in options.candidates)
    if not given or options.read.negatives != "corpus":
        return options
    return dataclasses.replace(options, read=dataclasses.replace(options.read, negatives="candidates"))


def with_corpus_file(choices: MineChoices, options: MineOptions | None, corpus: Any) -> MineChoices:
    """The choices with a file of additional documents."""
    read = choices.get("read") or (options or MineOptions()).read
    return {**choices, "read": dataclasses.replace(read, corpus=corpus)}


# What each option must be: types, and words for the message.
TEXT, COUNT, FLAG = ((str,), "text"), ((int,), "a whole number"), ((bool,), "True or False")
MAYBE_TEXT, MAYBE_COUNT = ((str, type(None)), "text or None"), ((int, type(None)), "a whole number or None")
MAYBE_FLAG = (bool, type(None)), "True, False or None"
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(("encoder", "index_device", "metric", "precision", "encoder_precision"), TEXT),
    **dict.fromkeys(("query_embeddings", "corpus_embeddings", "query_prompt", "document_prompt"), MAYBE_TEXT),
    **dict.fromkeys(("depth", "max_depth"), MAYBE_COUNT),
    **dict.fromkeys(("negatives", "seed"), COUNT),
    "recall": ((int, float), "a number"),
    "default_filters": FLAG,
    "read": ((ReadOptions,), "a ReadOptions"),
}


def plain(value: Any) -> Any:
    """A number of numpy as a number of Python, and a path as text. Other values stay as they are."""
    if isinstance(value, np.generic):
        return value.item()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def check_types(options: Any, types: Mapping[str, tuple[tuple[type, ...], str]]) -> None:
    """Raise UsageError if an option has a value of another type, or is not a finite number. A bool is no number.

    Args:
        options: an object with an attribute for each option.
        types: for each option, the types that it may have, and the words for them in a message.
    """
    for name, (allowed, words) in types.items():
        value = getattr(options, name)
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise UsageError(f"the option {name} must be {words}, not {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"the option {name} must be a finite number, not {value!r}")


def check_device(device: str, index: IndexSpec) -> None:
    """Raise UsageError if an index of this kind cannot search on this device."""
    if device == "cpu":
        return
    if isinstance(index, str) and index not in ("auto", "exact"):
        raise UsageError(f"the index {index!r} runs on the processor only: use the index 'exact' on {device!r}")
    try:
        torch.empty(0, device=torch.device(device))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"the option index_device: the device {device!r} cannot be used ({reason})") from None


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


def search_depths(depth: int, max_depth: int) -> Iterator[int]:
    """The depths of the searches, one a round.

    >>> list(search_depths(100, 1000))
    [100, 400, 1000]
    """
    yield depth
    while depth < max_depth:
        depth = min(4 * depth, max_depth)
        yield depth
