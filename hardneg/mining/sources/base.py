"""The base class of all sources of candidates."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.errors import UsageError
from hardneg.index.base import Index, Neighbors
from hardneg.mining.resources import Resources
from hardneg.mining.spec_options import written_spec

_LABEL = re.compile(r"[a-z][a-z0-9_-]{0,31}")

TAKEN = ("fusion", "source", "query", "document")  # labels that would be those of other columns


@dataclass(frozen=True)
class SourceInputs:
    """What a source may use to list candidates.

    Attributes:
        pairs: the dataset.
        vectors: `[n, d]`, the embeddings of its queries by the encoder of the run.
        index: the index of its documents by that encoder.
        folder: the folder of the run.
        config: the options of the run, as `MineOptions.to_json` writes them.
        resources: batch size, device, cache and progress.
    """

    pairs: Pairs
    vectors: Any
    index: Index
    folder: Path
    config: Mapping[str, Any]
    resources: Resources


class OpenSource(Protocol):
    """A source that is ready to list candidates of a dataset.

    Attributes:
        fingerprint: a hash of what decides its lists; None: the fingerprints of the run tell it already.
        notes: what users should know about it, such as counts of unknown ids.
        reach: the most documents that it can list for a query.
    """

    fingerprint: str | None
    notes: list[str]
    reach: int

    def search(self, queries: NDArray[np.int64], k: int) -> Neighbors:
        """The first k documents that the source lists for n queries.

        Args:
            queries: int64 `[n]`, rows of the dataset's queries.
            k: the number of documents.

        Returns:
            `[n, k]`, best first; -1 and -inf where there are fewer. Scores are NaN if the source has none.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class CandidateSource(ABC):
    """Base class of all sources of candidates. A subclass has a name and opens itself for a dataset.

    Attributes:
        name: the name in a spec, and the label if there is none.
        words: fields that a spec writes without their names, as in `trec:FILE`.
        per_source: whether the documents that it lists for a query of a mixture are all of the source of that query.
        label: the name of its columns in the run.
    """

    name: ClassVar[str] = "source"
    words: ClassVar[tuple[str, ...]] = ()
    per_source: ClassVar[bool] = False
    label: str = ""

    def __post_init__(self) -> None:
        if self.label and (not _LABEL.fullmatch(self.label) or self.label in TAKEN):
            raise UsageError(
                f"the label {self.label!r} of candidates must be lower-case letters, digits, '-' and '_', 32 at most, begin "
                f"with a letter, and be none of {', '.join(TAKEN)}"
            )

    @property
    def spec(self) -> str:
        """The source as text: its name, and the fields that differ from their defaults."""
        return written_spec(self, self.name, self.words)

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it reads."""
        return ()

    def lacks(self, pairs: Pairs) -> str | None:
        """What the dataset lacks for this source, as a sentence; None if nothing. Asked before anything is encoded."""
        return None

    @abstractmethod
    def open(self, inputs: SourceInputs) -> OpenSource:
        """Make everything ready for listing candidates."""


def labels_of(sources: tuple[CandidateSource, ...]) -> tuple[str, ...]:
    """The label of each source: its own, or its name; a second `trec` is called `trec_2`.

    Raises:
        UsageError: two sources have the same label of their own.
    """
    own = [each.label for each in sources if each.label]
    labels: list[str] = []
    for each in sources:
        if each.label:
            label = each.label
        else:
            number = 1
            while (label := each.name if number == 1 else f"{each.name}_{number}") in (*labels, *own):
                number += 1
        if label in labels:
            raise UsageError(
                f"two sources of candidates have the label {label!r}: give each its own, as in trec:FILE,label=NAME"
            )
        labels.append(label)
    return tuple(labels)


def shortened(scores: NDArray[np.float32], documents: NDArray[np.int32], k: int) -> Neighbors:
    """The first k of a ranking `[n, w]`, padded if it has fewer."""
    width = min(k, documents.shape[1])
    out = np.full((len(documents), k), -np.inf, np.float32), np.full((len(documents), k), -1, np.int32)
    out[0][:, :width], out[1][:, :width] = scores[:, :width], documents[:, :width]
    return Neighbors(*out)
