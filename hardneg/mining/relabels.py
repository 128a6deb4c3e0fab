"""Relabelled pairs of a run: candidates that were found relevant, what is done with them, and the evidence.

`drop`: the document is no mined negative of the query; the next candidate takes its place. `ignore`: it is also masked where it
occurs in training by chance, in the batch or a bank. `promote`: it becomes a positive of the query (RLHN, arXiv 2505.16967, found
that better than removing it); what is relevant, but below the given grade, is ignored.

`remove` is for known positives that a check found doubtful: they are neither positives nor negatives then. A query without any
other positive is not trained on, and left out of exports.

The pairs are in `relabels.parquet` of the run folder. The dataset in `source/` stays as it was read, so that another selection can
undo them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hardneg.data.id_rows import IdRows
from hardneg.data.pairs import Pairs
from hardneg.errors import RUN_DAMAGED, RunError
from hardneg.storage.arrays import Ragged, pair_keys
from hardneg.storage.arrow import read_parquet, values_of
from hardneg.storage.files import atomic_path

FILE = "relabels.parquet"

ACTIONS = ("drop", "ignore", "promote", "remove")

FOUND = ACTIONS[:3]  # what is done with candidates that were found relevant

HOW = (*FOUND, "none")

_SCHEMA = pa.schema(
    [("query_id", pa.string()), ("document_id", pa.string()), ("action", pa.string()), ("grade", pa.float64()),
     ("judged_by", pa.string())]
)  # fmt: skip


@dataclass(frozen=True)
class Relabels:
    """m relabelled pairs.

    Attributes:
        query, document: int64 `[m]`, rows of the dataset.
        action: int8 `[m]`, positions in `ACTIONS`.
        grade: float64 `[m]`, the evidence: a grade or score; NaN without one.
        judged_by: the name of the judge of each pair; "a person" for a person.
        left_alone: pairs of the evidence that were not relabelled, by reason.
    """

    query: NDArray[np.int64]
    document: NDArray[np.int64]
    action: NDArray[np.int8]
    grade: NDArray[np.float64]
    judged_by: list[str]
    left_alone: dict[str, int]

    def counts(self) -> dict[str, int]:
        """How many pairs were relabelled, by action, and how many were left alone, by reason."""
        found = {name: int((self.action == i).sum()) for i, name in enumerate(ACTIONS)}
        return {**{name: n for name, n in found.items() if n}, **{k: n for k, n in self.left_alone.items() if n}}

    def write(self, path: Path, pairs: Pairs) -> None:
        """Write `relabels.parquet`, in the order of the dataset."""
        order = np.lexsort((self.document, self.query))
        table = pa.table(
            [
                pairs.query_ids.take(pa.array(self.query[order])).cast(pa.string()),
                pairs.document_ids.take(pa.array(self.document[order])).cast(pa.string()),
                pa.array([ACTIONS[i] for i in self.action[order]], pa.string()),
                pa.array(self.grade[order]),
                pa.array([self.judged_by[i] for i in order], pa.string()),
            ],
            schema=_SCHEMA,
        )
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, store_schema=False)

    @classmethod
    def read(cls, path: Path, pairs: Pairs) -> Relabels:
        """Read `relabels.parquet`; RunError if it is damaged or of another dataset."""
        table = read_parquet(path, _SCHEMA.names)
        try:
            table = table.select(_SCHEMA.names).cast(_SCHEMA)
        except (pa.ArrowInvalid, KeyError, ValueError) as error:
            raise RunError(f"{path} is not what hardneg writes ({error}): {RUN_DAMAGED}") from None
        places = [
            ids.of(table[name])
            for name, ids in (("query_id", IdRows(pairs.query_ids)), ("document_id", pairs.document_rows_of))
        ]
        action = pc.index_in(table["action"].combine_chunks(), value_set=pa.array(ACTIONS))
        if any((each < 0).any() for each in places) or action.null_count or table["judged_by"].null_count:
            raise RunError(f"{path} holds an id that is not in the run's dataset, or no action: {RUN_DAMAGED}")
        query, document = places
        grade = table["grade"].to_numpy().astype(np.float64)
        return cls(query, document, values_of(action).astype(np.int8), grade, table["judged_by"].to_pylist(), {})

    def of(self, pairs: Pairs) -> Pairs:
        """The dataset with these labels. A query without positives gets none: it may be held out for evaluation."""
        n = len(pairs)
        promoted = (self.action == ACTIONS.index("promote")) & (pairs.positives.lengths > 0)[self.query]
        ignored = (self.action == ACTIONS.index("ignore")) | ((self.action == ACTIONS.index("promote")) & ~promoted)
        removed = self.action == ACTIONS.index("remove")
        ignored |= removed
        before = pairs.positives
        keys = pair_keys(before.row_numbers(), before.values, len(pairs.document_ids))
        own = pair_keys(self.query, self.document, len(pairs.document_ids))
        new = promoted & ~np.isin(own, keys)
        stays = ~np.isin(keys, own[removed])
        rows = np.concatenate([before.row_numbers()[stays], self.query[new]])
        values = np.concatenate([before.values[stays], self.document[new]])
        grades = None
        if pairs.positive_grades is not None:
            order = np.lexsort((values, rows))
            grades = np.concatenate([pairs.positive_grades[stays], np.ones(int(new.sum()))])[order]
        return replace(
            pairs,
            positives=Ragged.from_pairs(rows, values, n),
            positive_grades=grades,
            ignored=Ragged.from_pairs(self.query[ignored], self.document[ignored], n),
            dropped=Ragged.from_pairs(self.query, self.document, n),
        )

    @classmethod
    def removing(cls, queries: NDArray[np.int64], pairs: Pairs) -> Relabels:
        """All positives of these queries, removed."""
        taken = pairs.positives.take(queries)
        m = len(taken.values)
        action = np.full(m, ACTIONS.index("remove"), np.int8)
        rows = queries[taken.row_numbers()]
        return cls(rows, taken.values, action, np.full(m, np.nan), ["a check of pairs"] * m, {})

    def and_also(self, other: Relabels) -> Relabels:
        """These and others; the others count where both name a pair."""
        size = 1 + int(max(self.document.max(initial=0), other.document.max(initial=0)))
        keep = ~np.isin(pair_keys(self.query, self.document, size), pair_keys(other.query, other.document, size))
        query = np.concatenate([self.query[keep], other.query])
        document = np.concatenate([self.document[keep], other.document])
        action = np.concatenate([self.action[keep], other.action])
        grade = np.concatenate([self.grade[keep], other.grade])
        names = [name for name, kept in zip(self.judged_by, keep, strict=True) if kept]
        return Relabels(
            query, document, action, grade, [*names, *other.judged_by], {**self.left_alone, **other.left_alone}
        )

    def digest(self) -> str:
        """A hash of the pairs and what is done with them."""
        order = np.lexsort((self.document, self.query))
        parts = [np.ascontiguousarray(each[order]).tobytes() for each in (self.query, self.document, self.action)]
        return hashlib.sha256(b"".join(parts)).hexdigest()
