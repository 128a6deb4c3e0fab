"""What the search of a run found: the ranks of the positives, and how often each document is a candidate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.diagnostics.subject import Retrieved, Subject
from hardneg.mining.filters.identity import Known
from hardneg.mining.parts import PART_ROWS
from hardneg.mining.run import Run
from hardneg.mining.run_tables import positions, read_candidates
from hardneg.progress import Progress, silent
from hardneg.storage.arrays import pair_keys
from hardneg.storage.arrow import values_of

PARTS = 6  # of a run that are read, spread over it: 24,576 queries; they bound time and memory


def with_retrieved(subject: Subject, run: Run, progress: Progress = silent) -> Subject:
    """Read what the search found: one pass over at most `PARTS` parts of the run's candidates, one after another.

    Args:
        subject: the negatives of `run`.
        run: the run.
        progress: called with the number of parts read.

    Returns:
        A copy of `subject` with `retrieved`.

    Raises:
        RunError: a part is damaged.
    """
    files, pairs = run.candidate_files(), subject.pairs
    if not files:
        return subject
    numbers = np.unique(np.linspace(0, len(files) - 1, min(PARTS, len(files))).astype(int))
    advance = progress("read candidates", len(numbers))
    read = []
    for number in numbers:
        read.append(_part(files[number], pairs, int(number) * PART_ROWS))
        advance(1)
    queries = np.concatenate([part.queries for part in read])
    depth = int(subject.info["resolved"]["depth"])
    return replace(subject, retrieved=Retrieved(queries, _ranks(read, pairs, queries), _times(read, pairs), depth))


@dataclass(frozen=True)
class _Part:
    """One part: its queries, the known positives among its candidates, and how often it has which document.

    Attributes:
        queries: int64 `[n]`, rows of the dataset.
        known: int64 `[m, 3]`, (query, document, rank) of each candidate that is a known positive.
        documents: Arrow strings, the distinct documents among the candidates.
        times: int64, how often each of them is a candidate.
    """

    queries: NDArray[np.int64]
    known: NDArray[np.int64]
    documents: pa.Array
    times: NDArray[np.int64]


def _part(path: Path, pairs: Pairs, start: int) -> _Part:
    table = read_candidates(path, ["query_id", "document_id", "rank", "verdict"])
    asked = pairs.query_ids.slice(start, PART_ROWS)
    known = table.filter(pc.starts_with(table["verdict"], Known.name))
    columns = (
        positions(known["query_id"], asked, path) + start,
        positions(known["document_id"], pairs.document_rows_of, path),
        values_of(known["rank"]).astype(np.int64),
    )
    coded = table["document_id"].combine_chunks()
    if not pa.types.is_dictionary(coded.type):
        coded = coded.dictionary_encode()
    times = np.bincount(values_of(coded.indices), minlength=len(coded.dictionary))
    return _Part(start + np.arange(len(asked)), np.stack(columns, 1), coded.dictionary, times)


def _ranks(read: list[_Part], pairs: Pairs, queries: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 `[p]`: the rank of each positive of these queries; 0 for one that is no candidate."""
    total = len(pairs.document_ids)
    positives = pairs.positives.take(queries)
    wanted = pair_keys(queries[positives.row_numbers()], positives.values, total)
    known = np.concatenate([part.known for part in read])
    keys = pair_keys(known[:, 0], known[:, 1], total)
    order = np.argsort(keys, kind="stable")
    keys, ranks = keys[order], known[order, 2]
    if len(keys) == 0:
        return np.zeros(len(wanted), np.int64)
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, ranks[place], 0)


def _times(read: list[_Part], pairs: Pairs) -> NDArray[np.int64]:
    """int64 `[N]`: how often each document is a candidate of these queries. All ids are looked up at once."""
    ids = pa.concat_arrays([part.documents.cast(pa.large_string()) for part in read])
    found = pairs.document_rows_of.of(ids)
    weights = np.concatenate([part.times for part in read])
    inside = found >= 0
    return np.bincount(found[inside], weights[inside], len(pairs.document_ids)).astype(np.int64)
