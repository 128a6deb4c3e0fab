"""Candidates that are nearest by an encoder: that of the run, or another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.encoders.embed import embed, fit
from hardneg.encoders.factory import check_kind
from hardneg.index.base import Index, Neighbors
from hardneg.index.per_source import make_index_of, search_rows
from hardneg.mining.sources.base import CandidateSource, OpenSource, SourceInputs
from hardneg.mining.spec_options import SpecOptions
from hardneg.storage.files import fingerprint

_AHEAD = 1 << 14  # queries searched at once by an index for which a few cost nearly as much as many


class VectorSearch:
    """The nearest documents of queries by their vectors.

    An index that reads all documents at every search (see `Index.resident`) searches queries ahead, as they come in order.
    """

    def __init__(self, vectors: Any, index: Index, fingerprint: str | None, notes: list[str]) -> None:
        self.vectors, self.index, self.fingerprint, self.notes = vectors, index, fingerprint, notes
        self.reach = index.size
        self._ahead: tuple[int, Neighbors] | None = None

    def search(self, queries: NDArray[np.int64], k: int) -> Neighbors:
        start, stop = int(queries[0]), int(queries[-1]) + 1
        in_order = stop - start == len(queries) and bool((np.diff(queries) == 1).all())
        if self.index.resident or not in_order:
            return self._search(queries, k)
        if self._ahead is None or not self._covers(start, stop, k):
            self._ahead = start, self._search(np.arange(start, max(stop, min(start + _AHEAD, len(self.vectors)))), k)
        at, found = start - self._ahead[0], self._ahead[1]
        rows = slice(at, at + len(queries))
        return Neighbors(found.scores[rows], found.documents[rows])

    def _covers(self, start: int, stop: int, k: int) -> bool:
        assert self._ahead is not None
        begin, found = self._ahead
        return begin <= start and stop <= begin + len(found.scores) and found.scores.shape[1] == k

    def _search(self, queries: NDArray[np.int64], k: int) -> Neighbors:
        vectors = np.asarray(self.vectors[queries], np.float32)
        return search_rows(self.index, queries, vectors, k)


@dataclass(frozen=True, kw_only=True)
class Dense(CandidateSource):
    """The nearest documents by the encoder of the run."""

    name: ClassVar[str] = "dense"
    per_source: ClassVar[bool] = True

    def open(self, inputs: SourceInputs) -> OpenSource:
        return VectorSearch(inputs.vectors, inputs.index, None, [])


@dataclass(frozen=True, kw_only=True)
class OtherEncoder(CandidateSource):
    """The nearest documents by the cosine of another encoder, with its own prompts.

    Attributes:
        model: the spec of the encoder, as in `st:NAME`.
    """

    name: ClassVar[str] = "encoder"
    per_source: ClassVar[bool] = True
    words: ClassVar[tuple[str, ...]] = ("model",)
    model: str

    def lacks(self, pairs: Pairs) -> str | None:
        """Nothing; raises UsageError if no encoder has the name, before anything is encoded."""
        check_kind(self.model)
        return None

    def open(self, inputs: SourceInputs) -> OpenSource:
        config, resources = inputs.config, inputs.resources
        encoder = resources.encoder(self.model, config["seed"])
        fit(encoder, inputs.pairs, resources.progress)
        queries, documents, keys = embed(
            encoder, inputs.pairs, resources.embeddings(inputs.folder), query_prompt=None, document_prompt=None,
            precision=config["precision"], progress=resources.progress, label="candidate ",
        )  # fmt: skip
        kind = (
            config["index"]
            if isinstance(config["index"], str) and not config["index"].startswith("object:")
            else "auto"
        )
        depth = min(100 if config["depth"] is None else config["depth"], len(documents))
        index, recall = make_index_of(
            inputs.pairs.mixed,
            kind,
            documents,
            "cosine",
            queries=queries,
            k=depth,
            recall=config["recall"],
            seed=config["seed"],
        )
        missed = [] if recall.reached else [
            f"the index of {self.spec} finds {recall.measured:.3f} of the {recall.k} nearest documents, less than the "
            f"{recall.target} asked for: use --index exact"
        ]  # fmt: skip
        return VectorSearch(queries, index, fingerprint([encoder.fingerprint(), *keys, index.name]), missed)


def dense_from_spec(v: SpecOptions) -> CandidateSource:
    return Dense(label=v.text("label", "") or "")


def encoder_from_spec(v: SpecOptions) -> CandidateSource:
    return OtherEncoder(label=v.text("label", "") or "", model=v.word("the encoder, as in encoder:st:NAME"))
