"""Candidates that the dataset brings along: the negatives of its rows, and what was judged not relevant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.index.base import Neighbors
from hardneg.mining.sources.base import CandidateSource, OpenSource, SourceInputs, shortened
from hardneg.mining.spec_options import SpecOptions
from hardneg.storage.arrays import Ragged, members

_KEPT = "hardneg mine --candidates given reads them"


class _Lists:
    """The given documents of each query, in the order of the source."""

    fingerprint: str | None = None  # the fingerprint `labels` of the run knows them

    def __init__(self, pairs: Pairs) -> None:
        nothing = Ragged(np.zeros(len(pairs) + 1, np.int64), np.zeros(0, np.int64))
        self.lists = pairs.given or nothing, pairs.judged_negatives
        both = self.lists[0].lengths + self.lists[1].lengths
        self.reach = int(both.max(initial=0))
        without = int((both == 0).sum())
        self.notes = [f"given: {without:,} of {len(pairs):,} queries bring no negatives along"] if without else []

    def search(self, queries: NDArray[np.int64], k: int) -> Neighbors:
        first, second = (each.take(queries) for each in self.lists)
        documents, more = first.padded(), second.padded()
        more = np.where(members(more, first) & (more >= 0), -1, more)
        both = np.concatenate([documents, more], 1)
        order = np.argsort(both < 0, axis=1, kind="stable")
        both = np.take_along_axis(both, order, 1)
        scores = np.where(both >= 0, np.float32(np.nan), np.float32(-np.inf))
        return shortened(scores.astype(np.float32), both.astype(np.int32), k)


@dataclass(frozen=True, kw_only=True)
class Given(CandidateSource):
    """The negatives that the dataset brings along for each query, in its order, and those that it judges not relevant."""

    name: ClassVar[str] = "given"
    per_source: ClassVar[bool] = True

    def lacks(self, pairs: Pairs) -> str | None:
        if pairs.given is not None or len(pairs.judged_negatives.values):
            return None
        return (
            f"the dataset {pairs.name!r} brings no negatives along, so --candidates given has none to list. If its rows have some, "
            f"read it with ReadOptions(negatives='candidates'); {_KEPT}"
        )

    def open(self, inputs: SourceInputs) -> OpenSource:
        return _Lists(inputs.pairs)


def given_from_spec(v: SpecOptions) -> CandidateSource:
    return Given(label=v.text("label", "") or "")
