"""Scores of a file become those of a teacher: which of them are of a run's positives and candidates, and what the others are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hardneg.data.id_rows import IdRows
from hardneg.data.notes import counted
from hardneg.data.pairs import Pairs
from hardneg.data.readers.scores import Scores, places_of, read_scores
from hardneg.data.texts import shown
from hardneg.errors import DataError
from hardneg.mining.reopen import Part, Reopened
from hardneg.storage.arrays import Float, Int, Mask, pair_keys

Unknown = tuple[int, str]  # the number of scores, and the first id


@dataclass(frozen=True)
class FileScores:
    """The scores of a file whose query and document a dataset has.

    Attributes:
        path: the file.
        keys: int64 `[m]`, the pairs (see `pair_keys`), ascending, each once.
        scores: float32 `[m]`.
        at: int64 `[m]`, which score of the file it is, from 0.
        total: number of scores in the file.
        repeated: how many of them repeat one before, of the same pair.
        queries, documents: scores of unknown queries, and of unknown documents of known queries.
    """

    path: Path
    keys: Int
    scores: Float
    at: Int
    total: int
    repeated: int
    queries: Unknown
    documents: Unknown

    def fingerprint(self, pairs: Pairs) -> str:
        """A hash of the scores and of the texts, whatever the format of the file and the order in it."""
        digest = hashlib.sha256(f"scores-1 {pairs.digests['queries']} {pairs.digests['documents']}".encode())
        digest.update(np.ascontiguousarray(self.keys, np.int64).tobytes())
        digest.update(np.ascontiguousarray(self.scores, np.float32).tobytes())
        return digest.hexdigest()


def read_score_file(path: Path, pairs: Pairs) -> FileScores:
    """Read scores from a file; see `read_scores`.

    Raises:
        DataError: the file is empty or malformed, or has two scores of one pair. The message names the file and the line.
    """
    query_rows, size = IdRows(pairs.query_ids), len(pairs.document_ids)
    keys: list[Int] = []
    values: list[Float] = []
    places: list[Int] = []
    unknown: tuple[list[Unknown], list[Unknown]] = ([], [])
    seen = 0

    def add(queries: pa.Array, documents: pa.Array, scores: Scores) -> None:
        nonlocal seen
        rows, columns = query_rows.of(queries), pairs.document_rows_of.of(documents)
        for lacking, ids, strange in zip(
            (rows < 0, (rows >= 0) & (columns < 0)), (queries, documents), unknown, strict=True
        ):
            where = np.flatnonzero(lacking)
            if len(where):
                strange.append((len(where), str(ids[int(where[0])].as_py())))
        known = np.flatnonzero((rows >= 0) & (columns >= 0))
        keys.append(pair_keys(rows[known], columns[known], size))
        values.append(scores[known].astype(np.float32))
        places.append((seen + known).astype(np.int64))
        seen += len(scores)

    total = read_scores(path, add)
    every = np.concatenate(keys)
    order = np.argsort(every, kind="stable")
    every, scores, at = every[order], np.concatenate(values)[order], np.concatenate(places)[order]
    again = np.zeros(len(every), bool)
    again[1:] = every[1:] == every[:-1]
    _check_once(path, pairs, every, scores, at, again)
    queries, documents = ((sum(n for n, _ in found), found[0][1] if found else "") for found in unknown)
    return FileScores(path, every[~again], scores[~again], at[~again], total, int(again.sum()), queries, documents)


def _check_once(path: Path, pairs: Pairs, keys: Int, scores: Float, at: Int, again: Mask) -> None:
    """DataError if a pair has two different scores."""
    differ = 1 + np.flatnonzero(again[1:] & (scores[1:] != scores[:-1]))
    if not len(differ):
        return
    # The first line of the file that says another score than a line before it.
    i = int(differ[np.argmin(at[differ])])
    first, second = places_of(path, [int(at[i - 1]), int(at[i])])
    query, document = _ids(pairs, int(keys[i]))
    raise DataError(
        f"{second}: the score of query {query} and document {document} is {scores[i]:.9g}, but {scores[i - 1]:.9g} in {first}. Leave "
        f"one of them"
    )


@dataclass
class FileCounts:
    """What was found in a file of scores.

    Attributes:
        file: its path.
        scores: number of scores in it.
        candidates, of_candidates: candidates that it scores, and that were asked for; positives are not among them.
        positives, of_positives: the same of positives.
        left_out: candidates that it scores and that were not asked for.
        unknown_queries, unknown_documents: scores of unknown queries, and of unknown documents.
        no_candidates: scores of pairs that are neither candidates nor positives of the run.
        repeated: scores that repeat one before.
        notes: what is to be known of them, in words.
    """

    file: str
    scores: int
    candidates: int = 0
    of_candidates: int = 0
    positives: int = 0
    of_positives: int = 0
    left_out: int = 0
    unknown_queries: int = 0
    unknown_documents: int = 0
    no_candidates: int = 0
    repeated: int = 0
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The values as JSON."""
        return asdict(self)


def scores_by_part(
    found: FileScores, run: Reopened, chosen: Callable[[Part], Mask], only: str, advance: Callable[[int], None]
) -> tuple[list[tuple[int, Int, Float]], FileCounts]:
    """The scores of a run's positives and candidates, in its parts.

    Args:
        found: the scores.
        run: the run.
        chosen: which candidates of a part are asked for, bool `[n, K]`.
        only: the same in words, for messages.
        advance: is told how many queries were looked at.

    Returns:
        (for each part that has some: its number, the pairs, ascending, and their scores; what was counted).

    Raises:
        DataError: none of the scores is of a pair that was asked for.
    """
    size = len(run.pairs.document_ids)
    counts = FileCounts(str(found.path), found.total, repeated=found.repeated)
    counts.unknown_queries, counts.unknown_documents = found.queries[0], found.documents[0]
    parts: list[tuple[int, Int, Float]] = []
    strangers: list[Int] = []
    for part in run:
        queries = part.candidates.queries
        low, high = np.searchsorted(found.keys, [int(queries[0]) * size, (int(queries[-1]) + 1) * size])
        keys, scores = found.keys[low:high], found.scores[low:high]
        known = run.pairs.positives.take(queries)
        positives = np.unique(pair_keys(queries[known.row_numbers()], known.values, size))
        every, asked = (
            np.setdiff1d(pair_keys(queries[rows], part.candidates.documents[rows, columns], size), positives)
            for rows, columns in (np.nonzero(part.candidates.real), np.nonzero(chosen(part)))
        )
        relevant, listed, wanted = (np.isin(keys, each) for each in (positives, every, asked))
        counts.candidates += int(wanted.sum())
        counts.of_candidates += len(asked)
        counts.positives += int(relevant.sum())
        counts.of_positives += len(positives)
        counts.left_out += int((listed & ~wanted).sum())
        strangers.append((low + np.flatnonzero(~relevant & ~listed)).astype(np.int64))
        taken = relevant | wanted
        if taken.any():
            parts.append((part.number, keys[taken], scores[taken]))
        advance(len(queries))
    strange = np.concatenate([np.zeros(0, np.int64), *strangers])
    counts.no_candidates = len(strange)
    counts.notes = _notes(counts, found, run.pairs, strange, only)
    if not parts:
        raise DataError(
            f"{found.path}: none of its {found.total:,} scores is of a positive or a candidate that was asked for, of "
            f"{run.run.folder}: {'; '.join(counts.notes)}. Are they of another dataset, or of other ids?"
        )
    return parts, counts


def _notes(counts: FileCounts, found: FileScores, pairs: Pairs, strange: Int, only: str) -> list[str]:
    """What became of the scores that were not taken, and which positives have none."""
    notes = []
    for what, (count, id) in (("query", found.queries), ("document", found.documents)):
        if count:
            is_of = counted(f"{{}} [score names a {what}|scores name {_PLURAL[what]}]", count)
            notes.append(f"{is_of} that the run does not have (the first: {shown(id)})")
    if len(strange):
        first = int(strange[np.argmin(found.at[strange])])
        query, document = _ids(pairs, int(found.keys[first]))
        said = counted(
            "{} [score is of a pair|scores are of pairs] that [is|are] neither candidate nor positive", len(strange)
        )
        notes.append(f"{said} (the first: query {query}, document {document})")
    if counts.left_out:
        notes.append(
            counted(
                f"{{}} [score is of a candidate|scores are of candidates] that --only {only} leaves out",
                counts.left_out,
            )
        )
    if counts.repeated:
        notes.append(counted("{} [score is|scores are] there twice, of one pair and equal", counts.repeated))
    lacking = counts.of_positives - counts.positives
    if lacking and counts.positives + counts.candidates:
        said = counted(f"{{}} of {counts.of_positives:,} positives [has|have] no score", lacking)
        notes.append(f"{said}: 'teacher:margin=', margin-mse and exports with these scores need it")
    return notes


_PLURAL = {"query": "queries", "document": "documents"}


def _ids(pairs: Pairs, key: int) -> tuple[str, str]:
    """The ids of a pair, for a message."""
    query, document = divmod(key, len(pairs.document_ids))
    return shown(pairs.query_ids[query].as_py()), shown(pairs.document_ids[document].as_py())
