"""Hard batches: pairs that are hard for one another stand in one batch, so that in-batch negatives are hard and cost nothing.

Pairs are the nodes of a graph. A query points at its mined candidates, and each candidate at a pair that owns it as a positive.
What the filters reject is no edge, so no false negative is put beside a query on purpose. Or a query points at the positives that are
nearest to it by the vectors that the last epoch made of both (see `PairVectors`). Groups grow breadth first from random pairs
over the nearest pairs, and batches are put together from groups. No document more is encoded than with random batches.

Global contrastive batch sampling (Sachidananda et al. 2022, arXiv 2210.12874), BatchSampler (Yang et al. 2023, arXiv 2306.03355),
B3 (Thirukovalluru et al. 2025, arXiv 2505.11293).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.errors import UsageError, suggestion
from hardneg.losses.arguments import number, whole
from hardneg.mining.mined import Mined
from hardneg.mining.spec_options import SpecOptions, split_spec, written_spec
from hardneg.storage.arrays import Int, Ragged

RANDOM = "random"
MINED, TRAINING = GRAPHS = ("mined", "training")

_BLOCK = 1 << 14  # queries whose neighbors are looked up at once


@dataclass(frozen=True)
class HardBatches:
    """How hard batches are composed.

    Attributes:
        group: pairs in a group. A batch holds several groups, unless it is smaller.
        near: nearest pairs of a pair over which groups grow.
        share: share of the pairs of an epoch that stand in hard batches; the others stand in random ones.
        graph: what is near what: `mined`, by the mined candidates that the filters kept; or `training`, by the vectors that the last
            epoch made of the pairs, so that nothing is encoded. The first epoch is random then.

    Raises:
        UsageError: a number out of range.

    >>> HardBatches(group=64).spec
    'hard:group=64'
    """

    group: int = 32
    near: int = 48
    share: float = 1.0
    graph: str = MINED

    def __post_init__(self) -> None:
        whole("hard batches: group", self.group, 2)
        whole("hard batches: near", self.near, 1)
        number("hard batches: share", self.share, 0, 1, above=True)
        if self.graph not in GRAPHS:
            raise UsageError(f"hard batches: graph={self.graph!r} must be one of {', '.join(GRAPHS)}")

    @property
    def spec(self) -> str:
        return written_spec(self, "hard")

    def order(self, near: NDArray[np.int32], queries: Int, documents: Int, size: int, rng: np.random.Generator) -> Int:
        """An order of m pairs, which is cut into batches of `size`.

        Args:
            near: int32 `[m, K]` from `near_pairs`: pairs that are near the query of each pair, -1: none.
            queries, documents: int64 `[m]`, a key for the query and the document of each pair.
            size: pairs of a batch, over all ranks.
            rng: what groups begin with, and the order of groups and of batches.

        Returns:
            int64 `[m]`, a permutation.
        """
        count = len(near)
        hard = round(self.share * count / size) * size if self.share < 1 else count
        shuffled = rng.permutation(count)
        group = min(self.group, size)
        runs = list(_groups(near[:, : self.near], shuffled[: min(hard, count)], queries, documents, group))
        last = [runs.pop()] if runs and len(runs[-1]) < group else []
        parts = [*(runs[i] for i in rng.permutation(len(runs))), *last]
        grouped = np.concatenate(parts) if parts else shuffled[:0]
        batches = [each[i : i + size] for each in (grouped, shuffled[hard:]) for i in range(0, len(each), size)]
        full = [each for each in batches if len(each) == size]
        rest = [each for each in batches if len(each) < size]  # at the end, where it moves no group from its place
        if self.share < 1:
            full = [full[i] for i in rng.permutation(len(full))]
        return np.concatenate([*full, *rest]) if batches else shuffled


def _groups(near: NDArray[np.int32], starts: Int, queries: Int, documents: Int, size: int) -> Iterator[Int]:
    """Groups of `size` of the pairs in `starts`, grown breadth first; a group without further neighbors takes a random pair."""
    free = np.zeros(len(near), bool)
    free[starts] = True
    following = iter(starts.tolist())
    members: list[int] = []
    seen: tuple[set[int], set[int]] = set(), set()  # texts in the group, of which each stands in a batch once
    grown = 0  # members whose neighbors were looked at
    query_of, document_of = queries.tolist(), documents.tolist()

    def add(pair: int) -> None:
        free[pair] = False
        members.append(pair)
        seen[0].add(query_of[pair])
        seen[1].add(document_of[pair])

    while True:
        if len(members) >= size:
            yield np.array(members, np.int64)
            members.clear()
            seen[0].clear()
            seen[1].clear()
            grown = 0
        if grown < len(members):
            row = near[members[grown]]
            grown += 1
            for pair in row[(row >= 0) & free[row]].tolist():
                if (
                    len(members) < size
                    and free[pair]
                    and query_of[pair] not in seen[0]
                    and document_of[pair] not in seen[1]
                ):
                    add(pair)
            continue
        start = next((pair for pair in following if free[pair]), None)
        if start is None:
            break
        add(start)
    if members:
        yield np.array(members, np.int64)


def near_pairs(
    mined: Mined, queries: Int, owned: Int, size: int, near: int, rng: np.random.Generator
) -> NDArray[np.int32]:
    """The graph: for each pair, the pairs that own the nearest candidates of its query which the filters kept.

    Args:
        mined: candidates of all queries of the dataset.
        queries: int64 `[m]`, the row of the query of each pair.
        owned: int64 `[m]`, the row of the positive of each pair.
        size: number of documents.
        near: most pairs for each.
        rng: which of several owners of a document is taken.

    Returns:
        int32 `[m, near]`, the nearest first, filled up with -1.
    """
    owners = Ragged.from_pairs(owned, np.arange(len(owned)), size)
    counts = owners.lengths
    out = np.full((len(queries), near), -1, np.int32)
    for start in range(0, len(queries), _BLOCK):
        rows = queries[start : start + _BLOCK]
        documents = mined.documents[rows]
        many = np.where(mined.kept[rows] & (documents >= 0), counts[documents], 0)
        chosen = owners.offsets[documents] + (rng.random(documents.shape) * many).astype(np.int64)
        pairs = np.where(many > 0, owners.values[np.minimum(chosen, len(owners.values) - 1)], -1)
        first = np.argsort(pairs < 0, axis=1, kind="stable")[:, :near]
        out[start : start + len(rows), : first.shape[1]] = np.take_along_axis(pairs, first, 1)
    return out


def parse_batches(spec: Any) -> HardBatches | None:
    """How batches are composed: `hard:group=32` or a `HardBatches`; None for `random`.

    Raises:
        UsageError: the message says what is wrong with the spec.

    >>> parse_batches("hard:group=16"), parse_batches("random")
    (HardBatches(group=16, near=48, share=1.0, graph='mined'), None)
    """
    if isinstance(spec, HardBatches):
        return spec
    if not isinstance(spec, str):
        raise UsageError(f"batches={spec!r} must be 'random', 'hard', 'hard:group=32' or a HardBatches(...)")
    name, words, given = split_spec(spec, "batches")
    if name not in (RANDOM, "hard"):
        raise UsageError(f"batches={spec!r}.{suggestion(name, (RANDOM, 'hard'))}")
    options = SpecOptions(spec, "batches", words, given)
    if name == RANDOM:
        options.done()
        return None
    default = HardBatches()
    made = HardBatches(
        options.integer("group", default.group, 2) or 2,
        options.integer("near", default.near, 1) or 1,
        options.number("share", default.share, 0, 1) or 0.0,
        options.text("graph", default.graph) or "",
    )
    options.done()
    return made
