"""A finished run as arrays again, part by part."""

from __future__ import annotations

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
from hardneg.encoders.precomputed import aligned, open_vectors
from hardneg.errors import RunError
from hardneg.index.vectors import VectorStore
from hardneg.mining.candidates import NEAREST_FOUND, Candidates, Context
from hardneg.mining.filters.base import KEPT, lowest_scores
from hardneg.mining.guides import guide_embedder
from hardneg.mining.inputs import Resources
from hardneg.mining.run import PART_ROWS, Run
from hardneg.progress import Progress, silent
from hardneg.storage.arrays import Float, Mask, Ragged
from hardneg.storage.arrow import read_parquet, values_of
from hardneg.storage.files import read_json, sha256_file
from hardneg.storage.vectors import EmbeddingStore


@dataclass(frozen=True)
class Part:
    """One part of a run.

    Attributes:
        number: of the part.
        candidates: as the search found them, without the queries' vectors.
        all_positive_scores: float32 `[n, p]`, scores of all positives; -inf where there is none.
        kept: bool `[n, K]`, what no filter rejected.
        rejected_by_posterior: bool `[n, K]`, what a posterior rejected after every filter before it had kept it.
    """

    number: int
    candidates: Candidates
    all_positive_scores: Float
    kept: Mask
    rejected_by_posterior: Mask


class Reopened:
    """The candidates of a finished run, to be filtered, judged or learned from again.

    Args:
        run: a finished run.
        embeddings: folder in which vectors of guide models are kept.
        pairs: its dataset, if it was read already.
        batch_size, device: of guide models.
        progress: called with the stages.
    """

    def __init__(
        self,
        run: Run,
        embeddings: Path | None = None,
        *,
        pairs: Pairs | None = None,
        batch_size: int = 32,
        device: str | None = None,
        progress: Progress = silent,
    ) -> None:
        self.run = run
        self.pairs: Pairs = run.pairs() if pairs is None else pairs
        config, resources = run.info["config"], Resources(batch_size, device, progress=progress)
        guides = guide_embedder(
            self.pairs, embeddings or run.folder, resources, seed=config["seed"], precision=config["precision"]
        )
        self.context = Context(
            self.pairs,
            _index_opener(run, self.pairs),
            self.pairs.known_positives(),
            guides,
            self._nearest,
        )

    @property
    def parts(self) -> int:
        return len(self.run.candidate_files())

    def __iter__(self) -> Iterator[Part]:
        return map(self.part, range(self.parts))

    def part(self, number: int) -> Part:
        path = self.run.candidate_files()[number]
        start, stop = number * PART_ROWS, min((number + 1) * PART_ROWS, len(self.pairs))
        rows, place, table = _table(path, self.pairs, start, stop, ["document_id", "score", "verdict"])
        shape = (stop - start, int(place.max(initial=-1)) + 1)
        found = np.full(shape, -1, np.int32)
        scores = np.full(shape, -np.inf, np.float32)
        kept, rejected = np.zeros(shape, bool), np.zeros(shape, bool)
        found[rows, place] = _places(table["document_id"], self.pairs.document_ids, path)
        scores[rows, place] = values_of(table["score"])
        kept[rows, place] = pc.equal(table["verdict"], KEPT).to_numpy()
        rejected[rows, place] = pc.starts_with(table["verdict"], "posterior").to_numpy()
        part = self._positive_scores.take(np.arange(start, stop))
        width = int(part.lengths.max(initial=0))
        all_positive = np.full((stop - start, width), -np.inf, np.float32)
        all_positive[np.arange(width) < part.lengths[:, None]] = part.values
        empty = np.empty((stop - start, 0), np.float32)
        candidates = Candidates(np.arange(start, stop), found, scores, lowest_scores(all_positive), empty)
        return Part(number, candidates, all_positive, kept, rejected)

    @cached_property
    def _positive_scores(self) -> Ragged:
        column = self.run.negatives()["positive_scores"].combine_chunks()
        lengths = values_of(column.value_lengths())
        return Ragged(np.concatenate([[0], np.cumsum(lengths)]), values_of(column.flatten()))

    def _nearest(self) -> NDArray[np.int32]:
        nearest = np.full((len(self.pairs), NEAREST_FOUND), -1, np.int32)
        for number, path in enumerate(self.run.candidate_files()):
            start, stop = number * PART_ROWS, min((number + 1) * PART_ROWS, len(self.pairs))
            rows, place, table = _table(path, self.pairs, start, stop, ["document_id"])
            few = place < NEAREST_FOUND
            documents = table["document_id"].filter(pa.array(few))
            nearest[start + rows[few], place[few]] = _places(documents, self.pairs.document_ids, path)
        return nearest


def _table(
    path: Path, pairs: Pairs, start: int, stop: int, columns: list[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64], pa.Table]:
    """(query of each row, counted from `start`; place of each among the query's; the columns) of one part."""
    table = read_parquet(path, ["query_id", *columns])
    rows = _places(table["query_id"], pairs.query_ids.slice(start, stop - start), path)
    if len(rows) and (np.diff(rows) < 0).any():
        raise RunError(f"{path}: the queries are not in the order of the dataset: the run is damaged")
    counts = np.bincount(rows, minlength=stop - start)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts), table


def _places(column: pa.ChunkedArray, ids: pa.Array, path: Path) -> NDArray[np.int64]:
    places = pc.index_in(column, value_set=ids)
    if places.null_count:
        first = column.filter(pc.is_null(places))[0].as_py()
        raise RunError(f"{path}: the id {first!r} is not in the run's dataset: the run is damaged")
    return values_of(places).astype(np.int64)


def open_run_vectors(run: Run, pairs: Pairs, side: str) -> Any | None:
    """The vectors `[n, d]` that a run was mined with, memory-mapped; None if it keeps none (mined with --cache).

    Args:
        run: the run.
        pairs: its dataset.
        side: `queries` or `documents`.

    Raises:
        RunError: a file of vectors that the run was given is missing or has changed.
    """
    config, fingerprints = run.info["config"], run.info["fingerprints"]
    option = "query_embeddings" if side == "queries" else "corpus_embeddings"
    if config[option] is not None:
        path = Path(config[option])
        if not path.exists() or sha256_file(path) != fingerprints[option]:
            raise RunError(f"{path} is missing or has changed since the run was made: its vectors are needed")
        rows = (
            (pairs.query_rows, pairs.source_query_rows)
            if side == "queries"
            else (pairs.document_rows, pairs.source_document_rows)
        )
        return aligned(open_vectors(path), *rows, str(path), side)
    wanted = fingerprints.get("query_vectors" if side == "queries" else "document_vectors")
    for manifest in sorted((run.folder / "embeddings").glob(f"{side}-*/manifest.json")):
        head = read_json(manifest)
        store = EmbeddingStore(manifest.parent, head["key"], head["rows"], head["dimension"], head["dtype"])
        if head["key"] == wanted and store.complete:
            return store.open()
    return None


def _index_opener(run: Run, pairs: Pairs) -> Callable[[], VectorStore]:
    """A function that opens the document vectors when a filter first needs them."""

    def open_index() -> VectorStore:
        vectors = open_run_vectors(run, pairs, "documents")
        if vectors is None:
            raise RunError(
                f"{run.folder} keeps no document vectors: this filter needs them; mine again without --cache"
            )
        return VectorStore(vectors, run.info["config"]["metric"])

    return open_index
