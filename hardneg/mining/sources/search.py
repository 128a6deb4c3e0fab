"""The search of several sources at once: their lists, fused, with what each says of each candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.errors import UsageError
from hardneg.index.base import Neighbors
from hardneg.mining.candidates import Listed
from hardneg.mining.sources.base import CandidateSource, OpenSource, SourceInputs, labels_of
from hardneg.mining.sources.encoder import Dense
from hardneg.mining.sources.fusion import Fusion, fuse
from hardneg.registry import spec_of
from hardneg.storage.arrays import Float


@dataclass(frozen=True)
class FusedSearch:
    """Sources that are searched together.

    Attributes:
        sources: the sources, in the order in which they were asked for.
        opened: the same, ready to list candidates.
        labels: their names in the run.
        fusion: how their lists become one.
    """

    sources: tuple[CandidateSource, ...]
    opened: tuple[OpenSource, ...]
    labels: tuple[str, ...]
    fusion: Fusion

    @classmethod
    def open(cls, sources: Sequence[CandidateSource], fusion: Fusion, inputs: SourceInputs) -> FusedSearch:
        """Open all sources; see `CandidateSource.open` for errors."""
        labels = labels_of(tuple(sources))
        opened = []
        for each in sources:
            advance = inputs.resources.progress(f"open {each.name}", 1)
            opened.append(each.open(inputs))
            advance(1)
        return cls(tuple(sources), tuple(opened), labels, fusion)

    def search(self, queries: NDArray[np.int64], vectors: Float, k: int, index: Any) -> tuple[Neighbors, Listed]:
        """The first k documents of the fused list of n queries.

        Args:
            queries: int64 `[n]`, rows of the dataset's queries.
            vectors: float32 `[n, d]`, their embeddings.
            k: depth of each source, and of the fused list.
            index: the index of the documents by the encoder of the run, which scores every candidate.

        Returns:
            (documents in the order of the fused list, with the scores of the encoder; what the sources say of them).
        """
        lists = [
            _checked(source, each.search(queries, k), len(queries), k, index.size)
            for source, each in zip(self.sources, self.opened, strict=True)
        ]
        documents, listed = fuse(self.fusion, self.labels, lists, k)
        scores = index.pair_scores(vectors, documents)
        return Neighbors(scores, documents), listed

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprints of what decides the candidates, by name."""
        prints = {
            f"candidates:{label}": each.fingerprint
            for label, each in zip(self.labels, self.opened, strict=True)
            if each.fingerprint is not None
        }
        return {name: value for name, value in prints.items() if value is not None}

    @property
    def notes(self) -> list[str]:
        return [note for each in self.opened for note in each.notes]

    def to_json(self) -> dict[str, Any]:
        """What `run.json` says of the sources."""
        named = zip(self.labels, self.sources, strict=True)
        return {"sources": {label: spec_of(each) for label, each in named}, "fusion": spec_of(self.fusion)}


def only_dense(sources: Sequence[CandidateSource]) -> bool:
    """Whether the search by the encoder is the only source, so that nothing is to be fused."""
    return len(sources) == 1 and type(sources[0]) is Dense and not sources[0].label


def _checked(source: CandidateSource, found: Any, queries: int, k: int, documents: int) -> Neighbors:
    """What a source returned; UsageError if it is not what was promised. Unchecked, a wrong row would be another document."""
    if not isinstance(found, Neighbors) or not all(isinstance(each, np.ndarray) for each in found):
        raise UsageError(
            f"the candidates {source.name!r}: search must return Neighbors(scores, documents) of two arrays"
        )
    rows, scores = found.documents, found.scores
    if rows.shape != (queries, k) or scores.shape != rows.shape or rows.dtype.kind != "i":
        raise UsageError(
            f"the candidates {source.name!r}: search returned arrays {rows.shape} of {rows.dtype} and {scores.shape}, expected "
            f"integers and scores of {(queries, k)}"
        )
    if (rows < -1).any() or (rows >= documents).any():
        raise UsageError(
            f"the candidates {source.name!r}: search returned rows that are not in the corpus of {documents:,}"
        )
    ordered = np.sort(rows, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise UsageError(f"the candidates {source.name!r}: search returned a document twice for one query")
    if np.isinf(scores[rows >= 0]).any():
        raise UsageError(f"the candidates {source.name!r}: search returned an infinite score")
    return Neighbors(scores.astype(np.float32, copy=False), rows.astype(np.int32, copy=False))
