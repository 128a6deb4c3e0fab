"""`Mixed`: which dataset each query and each document of a mixture comes from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from hardneg.storage.arrays import Int, Ragged

MOST_WEIGHT = 1e6  # of a source


@dataclass(frozen=True)
class Mixed:
    """The sources of a mixture. Queries may come in any order; the documents of a source stand together.

    Attributes:
        names: of the s sources, distinct.
        weights: how often an epoch goes through the pairs of each source: 1: once, 2: twice, 0.1: through a tenth of them.
        queries: int64 `[n]`, the source of each query.
        starts: int64 `[s + 1]`, the first document of each source, and the number of documents at the end.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    queries: Int
    starts: Int

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def documents(self) -> Int:
        """int64 `[N]`: the source of each document."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def rows(self, source: int) -> Int:
        """int64: the queries of a source, in their order."""
        return np.flatnonzero(self.queries == source)

    def span(self, source: int) -> tuple[int, int]:
        """The first document of a source, and the one after its last."""
        return int(self.starts[source]), int(self.starts[source + 1])

    def of_queries(self, rows: Int) -> Mixed:
        """The same with these queries only."""
        return replace(self, queries=self.queries[rows])

    def settings(self) -> list[str]:
        """Each source with its weight, as `NAME:WEIGHT`."""
        return [
            f"{name}:{repr(weight).removesuffix('.0')}" for name, weight in zip(self.names, self.weights, strict=True)
        ]

    def head(self) -> dict[str, Any]:
        """What `dataset.json` says of the sources."""
        return {"names": list(self.names), "weights": list(self.weights)}

    def labels(self) -> dict[str, Int]:
        """What the labels of a dataset on disk say of them, int64."""
        return {"query_sources": self.queries, "source_starts": self.starts}


def fault_of(head: dict[str, Any], arrays: dict[str, np.ndarray], queries: int, documents: int) -> str | None:
    """The name of the first array that does not fit the sources that `dataset.json` names, or None.

    Args:
        head: what `Mixed.head` gave.
        arrays: the labels of a dataset on disk, whose positives and judged negatives were checked.
        queries, documents: their numbers.
    """
    sources = len(head["names"])
    if not 0 < sources == len(set(head["names"])) == len(head["weights"]) or min(head["weights"]) <= 0:
        return "source_starts"
    of_queries, starts = (arrays.get(name, np.empty(0, np.int64)) for name in ("query_sources", "source_starts"))
    if len(starts) != sources + 1 or starts[0] != 0 or starts[-1] != documents or (np.diff(starts) < 1).any():
        return "source_starts"
    if len(of_queries) != queries or of_queries.min(initial=0) < 0 or of_queries.max(initial=-1) >= sources:
        return "query_sources"
    of_documents = np.repeat(np.arange(sources), np.diff(starts))
    for side in ("positive", "negative", "given"):
        if f"{side}_offsets" in arrays:
            own = np.repeat(of_queries, np.diff(arrays[f"{side}_offsets"]))
            if not np.array_equal(own, of_documents[arrays[f"{side}_values"]]):  # a positive in another source
                return "query_sources"
    return None


def known_everywhere(lists: Ragged, asked: Int, classes: Int, mixed: Mixed, keys: Int) -> Ragged:
    """The known positives of texts that are asked in several sources, with their copies in all of them.

    A text that is relevant to a question in one source stands as another document in the others: it is relevant there as well.

    Args:
        lists: the known positives of each of c query texts.
        asked: int64 `[n]`, the source of each query.
        classes: int64 `[n]`, the text of each query, 0 to c - 1.
        mixed: the sources.
        keys: int64 `[N]`, the keys of the documents; 0 is an empty text.
    """
    counts = np.bincount(np.unique(classes * len(mixed) + asked) // len(mixed), minlength=len(lists))
    rows, values = lists.row_numbers(), lists.values
    chosen = (counts[rows] > 1) & (keys[values] != 0)
    if not chosen.any():
        return lists
    order = np.argsort(keys, kind="stable")
    ordered, wanted = keys[order], keys[values[chosen]]
    first, last = (np.searchsorted(ordered, wanted, side) for side in ("left", "right"))
    copies = Ragged(np.concatenate([[0], np.cumsum(last - first)]), np.empty(0, np.int64))
    places = np.arange(int(copies.offsets[-1])) + np.repeat(first - copies.offsets[:-1], last - first)
    more_rows = np.repeat(rows[chosen], last - first)
    return Ragged.from_pairs(np.concatenate([rows, more_rows]), np.concatenate([values, order[places]]), len(lists))
