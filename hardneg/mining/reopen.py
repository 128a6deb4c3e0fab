"""Reopen a finished run: read its candidates back into arrays, part by part."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.encoders.precomputed import open_aligned
from hardneg.errors import RUN_DAMAGED, RunError
from hardneg.index.vectors import VectorStore
from hardneg.mining.candidates import NEAREST_FOUND, Candidates, Context
from hardneg.mining.filters.base import KEPT, lowest_scores
from hardneg.mining.guides import guide_embedder
from hardneg.mining.kept_features import KeptFeatures
from hardneg.mining.parts import PART_ROWS
from hardneg.mining.resources import Resources
from hardneg.mining.run import Run
from hardneg.mining.run_folder import locate
from hardneg.mining.run_tables import check_ranking, positions, read_candidates, read_listed
from hardneg.mining.teachers import Teachers
from hardneg.progress import Progress, silent
from hardneg.storage.arrays import Float, Mask, Ragged, pair_keys
from hardneg.storage.arrow import rows_of, values_of
from hardneg.storage.vectors import EmbeddingStore


@dataclass(frozen=True)
class Part:
    """One part of a run: a block of queries and their candidates.

    Attributes:
        number: position of the part in the run, from 0.
        candidates: the candidates that the search found, without the query vectors.
        positive_scores: the scores of all positives of each query, float32.
        kept: bool `[n, K]`, True where no filter rejected the candidate.
        rejected_by_posterior: bool `[n, K]`, True where a posterior was the first filter to reject the candidate.
    """

    number: int
    candidates: Candidates
    positive_scores: Ragged
    kept: Mask
    rejected_by_posterior: Mask


class Reopened:
    """A finished run whose candidates can be filtered, judged or learned from again. Iterating over it gives its parts.

    Args:
        run: a finished run.
        embeddings: folder whose subfolder `embeddings` stores the vectors of guide models; None: the run folder.
        pairs: the dataset of the run, if it is already in memory; None: read it from the run.
        batch_size, device: settings for encoding with guide models.
        progress: callback that reports the progress of encoding with guide models.
    """

    def __init__(
        self,
        run: Run,
        embeddings: Path | None = None,
        *,
        pairs: Pairs | None = None,
        batch_size: int | None = None,
        device: str | None = None,
        progress: Progress = silent,
    ) -> None:
        self.run = run
        self.pairs: Pairs = run.pairs() if pairs is None else pairs
        _check_count(run)
        config = run.info["config"]
        resources = Resources(batch_size, device, encoder_precision=_precision_of(run), progress=progress)
        self.resources = resources
        guides = guide_embedder(
            self.pairs, embeddings or run.folder, resources, seed=config["seed"], precision=config["precision"]
        )
        self.context = Context(
            self.pairs,
            _index_opener(run, self.pairs),
            self.pairs.known_positives(),
            guides,
            self._nearest,
            KeptFeatures(run.folder / "features", self._made_from),
            Teachers(run.folder / "teacher", self.pairs),
        )

    @property
    def parts(self) -> int:
        """Number of parts."""
        return len(self.run.candidate_files())

    def __iter__(self) -> Iterator[Part]:
        for number in range(self.parts):
            yield self.part(number)

    def part(self, number: int) -> Part:
        """Read the part at position `number`; RunError if its file does not fit the dataset."""
        path = self.run.candidate_files()[number]
        start, stop = number * PART_ROWS, min((number + 1) * PART_ROWS, len(self.pairs))
        rows, columns, table = _table(path, self.pairs, start, stop, ["document_id", "score", "verdict"])
        shape = (stop - start, int(columns.max(initial=-1)) + 1)
        documents = np.full(shape, -1, np.int32)
        scores = np.full(shape, -np.inf, np.float32)
        kept, rejected = np.zeros(shape, bool), np.zeros(shape, bool)
        documents[rows, columns] = positions(table["document_id"], self.pairs.document_rows_of, path)
        scores[rows, columns] = values_of(table["score"])
        labels = self.run.sources
        listed = read_listed(path, labels, rows, columns, shape) if labels else None
        check_ranking(path, documents, scores, not labels)
        # Not `pc.equal`: for a Python string, Arrow imports pandas.
        kept[rows, columns] = values_of(pc.match_like(table["verdict"], KEPT))
        rejected[rows, columns] = values_of(pc.starts_with(table["verdict"], "posterior"))
        positives = self._scored_positives(np.arange(start, stop), documents, scores)
        empty = np.empty((stop - start, 0), np.float32)
        if self.context.kept is not None:
            self.context.kept.turn_to(number, start, documents)
        candidates = Candidates(np.arange(start, stop), documents, scores, lowest_scores(positives), empty, listed)
        return Part(number, candidates, positives, kept, rejected)

    def _scored_positives(
        self, queries: NDArray[np.int64], documents: NDArray[np.int32], scores: NDArray[np.float32]
    ) -> Ragged:
        """The scores of the positives of some queries. What was relabelled since was a candidate, and has its score there."""
        known, wanted = self._positive_rows.take(queries), self.pairs.positives.take(queries)
        found = self._positive_scores.take(queries)
        if np.array_equal(known.offsets, wanted.offsets) and np.array_equal(known.values, wanted.values):
            return found
        rows, columns = np.nonzero(documents >= 0)
        size = len(self.pairs.document_ids)
        own = pair_keys(known.row_numbers(), known.values, size)
        keys = np.concatenate([own, pair_keys(rows, documents[rows, columns], size)])
        values = np.concatenate([found.values, scores[rows, columns]])
        order = np.argsort(keys, kind="stable")  # the run's own scores of positives come first
        asked = pair_keys(wanted.row_numbers(), wanted.values, size)
        place = order[np.searchsorted(keys, asked, sorter=order).clip(max=len(order) - 1)]
        if (keys[place] != asked).any():
            raise RunError(f"{self.run.folder}: a positive of the dataset has no score: {RUN_DAMAGED}")
        return Ragged(wanted.offsets, values[place])

    @cached_property
    def _negatives(self) -> pa.Table:
        """The positives of each query and their scores, read once for both."""
        return self.run.negatives(self.pairs, positives_only=True)

    @cached_property
    def _positive_rows(self) -> Ragged:
        """The positives that the run has scores of."""
        column = self._negatives["positive_ids"].combine_chunks()
        rows = self.pairs.document_rows_of.of(column.flatten())
        return Ragged(np.concatenate([[0], np.cumsum(values_of(column.value_lengths()), dtype=np.int64)]), rows)

    @cached_property
    def _positive_scores(self) -> Ragged:
        column = self._negatives["positive_scores"].combine_chunks()
        lengths = values_of(column.value_lengths())
        return Ragged(np.concatenate([[0], np.cumsum(lengths)]), values_of(column.flatten()))

    def _made_from(self) -> dict[str, Any]:
        """What the features of candidates depend on: texts, labels, vectors, and what the other queries found."""
        prints = {
            name: value
            for name, value in self.run.info["fingerprints"].items()
            if name != "source" and not name.startswith("posterior:")
        }
        nearest = hashlib.sha256(self.context.nearest.tobytes()).hexdigest()
        return {"fingerprints": prints, "metric": self.run.info["config"]["metric"], "nearest": nearest}

    def _nearest(self) -> NDArray[np.int32]:
        """The first candidates of each query; of several sources, those with the highest scores."""
        nearest = np.full((len(self.pairs), NEAREST_FOUND), -1, np.int32)
        for number, path in enumerate(self.run.candidate_files()):
            start, stop = number * PART_ROWS, min((number + 1) * PART_ROWS, len(self.pairs))
            names = ["document_id", "score"] if self.run.sources else ["document_id"]
            rows, columns, table = _table(path, self.pairs, start, stop, names)
            if self.run.sources:
                columns = _places_by_score(rows, values_of(table["score"]))
            first = columns < NEAREST_FOUND
            documents = table["document_id"].filter(pa.array(first))
            nearest[start + rows[first], columns[first]] = positions(documents, self.pairs.document_rows_of, path)
        return nearest


def _places_by_score(rows: NDArray[np.int64], scores: Float) -> NDArray[np.int64]:
    """int64: the place of each candidate among those of its query in the order of the scores; `rows` ascends."""
    counts = np.bincount(rows)
    places = np.empty(len(rows), np.int64)
    places[np.lexsort((-scores, rows))] = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return places


def _check_count(run: Run) -> None:
    """RunError if the parts of a run hold more or fewer candidates than it counts."""
    found = sum(rows_of(path) for path in run.candidate_files())
    if found != run.info["counts"]["candidates"]:
        raise RunError(
            f"{run.folder} holds {found:,} candidates, but run.json counts {run.info['counts']['candidates']:,}: the run is "
            f"damaged"
        )


def _table(
    path: Path, pairs: Pairs, start: int, stop: int, columns: list[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64], pa.Table]:
    """Read one part of a run.

    Returns:
        (int64, the query of each table row, counted from `start`; int64, the position of each table row among
        the candidates of its query; the table with the given columns).

    Raises:
        RunError: the queries are unknown, or in another order than in the dataset.
    """
    table = read_candidates(path, ["query_id", *columns])
    rows = positions(table["query_id"], pairs.query_ids.slice(start, stop - start), path)
    if len(rows) and (np.diff(rows) < 0).any():
        raise RunError(f"{path}: the queries are not in the order of the dataset: {RUN_DAMAGED}")
    counts = np.bincount(rows, minlength=stop - start)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts), table


def open_run_vectors(run: Run, pairs: Pairs, side: str) -> Any | None:
    """Open the vectors `[n, d]` that a run was mined with, memory-mapped.

    Args:
        run: a finished run.
        pairs: the dataset of the run.
        side: `queries` or `documents`.

    Returns:
        The vectors, or None if the run stores none because it was mined with `--cache`.

    Raises:
        RunError: the run was mined with a file of vectors that is now missing or has changed.
    """
    config, fingerprints = run.info["config"], run.info["fingerprints"]
    option = "query_embeddings" if side == "queries" else "corpus_embeddings"
    if config[option] is not None:
        path = locate(run.folder, run.info, config[option], fingerprints[option])
        return open_aligned(path, pairs, side, fingerprints[option])
    key = fingerprints.get("query_vectors" if side == "queries" else "document_vectors")
    for manifest in sorted((run.folder / "embeddings").glob(f"{side}-*/manifest.json")):
        store = EmbeddingStore.at(manifest.parent)
        if store.head["key"] == key:
            if not store.complete:
                raise RunError(f"{manifest.parent} is damaged: its vectors do not fit their checksums: mine again")
            return store.open()
    return None


def _precision_of(run: Run) -> str:
    """The number format that guide models multiply in: chosen as in the pass, so that its vectors are found."""
    return str(run.info["config"].get("encoder_precision", "auto"))


def _index_opener(run: Run, pairs: Pairs) -> Callable[[], VectorStore]:
    """Return a function that opens the document vectors, so that they are read only if a filter needs them."""

    def open_index() -> VectorStore:
        vectors = open_run_vectors(run, pairs, "documents")
        if vectors is None:
            raise RunError(
                f"{run.folder} keeps no document vectors: this filter needs them; mine again without --cache"
            )
        return VectorStore(vectors, run.info["config"]["metric"])

    return open_index
