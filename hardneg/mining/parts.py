"""The parts of a run: blocks of queries, each written as a whole with a record, and joined at the end.

A part is finished when its record exists. A record is written after its files, so a run that is killed loses only the part
that it was working on.
"""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hardneg import renamed
from hardneg.data.pairs import Pairs
from hardneg.errors import RunError
from hardneg.mining.miner import Judged
from hardneg.mining.relabels import FILE as RELABELS
from hardneg.mining.run_folder import SCHEMA_VERSION, VOLATILE, WITH_SOURCES, PartInfo
from hardneg.mining.run_tables import CANDIDATE_SCHEMA, NEGATIVE_SCHEMA, listed_columns
from hardneg.storage.arrow import numbers, read_parquet, strings, values_of
from hardneg.storage.files import atomic_path, sha256_file
from hardneg.storage.json_files import read_json, write_json

PART_ROWS = 4096  # queries in each part: fixed, so that the files do not depend on how the work was divided


@dataclass
class Counts:
    """Counts of a run, summed over its parts.

    Attributes:
        queries: number of queries.
        candidates: number of candidates of all queries.
        widened: number of queries that were searched deeper.
        without_positives: number of queries without a positive.
        verdicts: number of candidates by verdict.
        negatives: number of queries by their number of negatives.
        sources: number of candidates by the sources that listed them, if there were several.
    """

    queries: int = 0
    candidates: int = 0
    widened: int = 0
    without_positives: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    negatives: Counter[int] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)

    def add(self, other: Counts) -> None:
        """Add the counts of another part."""
        self.queries += other.queries
        self.candidates += other.candidates
        self.widened += other.widened
        self.without_positives += other.without_positives
        self.verdicts.update(other.verdicts)  # `+=` would drop filters that rejected nothing
        self.negatives.update(other.negatives)
        self.sources.update(other.sources)

    def to_json(self) -> dict[str, Any]:
        return {
            "queries": self.queries,
            "candidates": self.candidates,
            "widened": self.widened,
            "without_positives": self.without_positives,
            "verdicts": dict(self.verdicts),
            "negatives": {str(k): v for k, v in sorted(self.negatives.items())},
            **({"sources": dict(self.sources)} if self.sources else {}),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Counts:
        return cls(
            value["queries"],
            value["candidates"],
            value["widened"],
            value["without_positives"],
            Counter(value["verdicts"]),
            Counter({int(k): v for k, v in value["negatives"].items()}),
            Counter(value.get("sources", {})),
        )


class PartWriter:
    """Writes the parts and, at the end, the whole run.

    Args:
        folder: the run folder.
        pairs: the dataset; its ids are written.
        verdict_names: the name of each verdict code, as from `Chain.names`.
    """

    def __init__(self, folder: Path, pairs: Pairs, verdict_names: list[str]) -> None:
        self.folder, self.pairs, self.verdict_names = folder, pairs, verdict_names
        self.parts = -(-len(pairs) // PART_ROWS)

    def span(self, part: int) -> tuple[int, int]:
        """(start, stop): the rows of the queries in this part."""
        return part * PART_ROWS, min((part + 1) * PART_ROWS, len(self.pairs))

    def finished(self, part: int) -> bool:
        """Whether this part is on disk, complete and undamaged. A damaged part is mined again."""
        try:
            record = self._record(part)
        except RunError:
            return False
        if any(renamed.verdict(name) != name for name in record["counts"]["verdicts"]):
            return False  # written by an older version, with a name that the other parts will not have
        return all(
            (self.folder / name).is_file() and sha256_file(self.folder / name) == record["files"][name]
            for name in self._names(part)
        )

    def _names(self, part: int) -> tuple[str, str]:
        """The files of a part: its candidates and its negatives."""
        return f"candidates/part-{part:05d}.parquet", f"progress/negatives-{part:05d}.parquet"

    def _record(self, part: int) -> dict[str, Any]:
        """The record of a part; RunError if it is missing, damaged or that of another part."""
        path = self.folder / "progress" / f"part-{part:05d}.json"
        record = read_json(path, PartInfo, checksum=True)
        if (record["start"], record["stop"]) != self.span(part) or set(record["files"]) != set(self._names(part)):
            raise RunError(f"{path} is not the record of part {part}")
        return record

    def write(self, part: int, judged: Judged) -> None:
        """Write the files of a part, then its record."""
        start, stop = self.span(part)
        names = self._names(part)
        write_parquet(self.folder / names[0], [candidate_table(judged, self.pairs, self.verdict_names)])
        write_parquet(self.folder / names[1], [negative_table(judged, self.pairs)])
        files = {name: sha256_file(self.folder / name) for name in names}
        counts = count(judged, self.verdict_names)
        record = {"start": start, "stop": stop, "files": files, "counts": counts.to_json()}
        write_json(self.folder / "progress" / f"part-{part:05d}.json", record, checksum=True)

    def mean_probability(self) -> float | None:
        """The mean P(relevant) of all negatives that were written; None where nothing estimates it, or there are none."""
        total, count = 0.0, 0
        for part in range(self.parts):
            table = read_parquet(self.folder / self._names(part)[1], columns=["negative_false_probability"])
            values = values_of(table.column(0).combine_chunks().flatten().drop_null())
            total, count = total + float(values.sum(dtype=np.float64)), count + len(values)
        return total / count if count else None

    def finish(self, head: dict[str, Any]) -> dict[str, Any]:
        """Join the parts, write run.json, and remove `progress/`.

        Args:
            head: entries of run.json, besides those that this method adds.

        Returns:
            The content of run.json.
        """
        counts = Counts()
        files: dict[str, str] = {}
        for part in range(self.parts):
            record = self._record(part)
            counts.add(Counts.from_json(record["counts"]))
            files |= {name: sha for name, sha in record["files"].items() if name.startswith("candidates/")}
        parts = (self.folder / "progress" / f"negatives-{part:05d}.parquet" for part in range(self.parts))
        scores = ScoreQuantiles()
        write_parquet(self.folder / "negatives.parquet", map(scores.see, map(read_parquet, parts)))
        for name in ("negatives.parquet", RELABELS):
            if (self.folder / name).is_file():
                files[name] = sha256_file(self.folder / name)
        for path in sorted(
            p
            for name in ("source", "embeddings")
            for p in (self.folder / name).rglob("*")
            if p.is_file() and not p.name.startswith(".hardneg-")
        ):
            files[path.relative_to(self.folder).as_posix()] = sha256_file(path)
        run = {
            "schema_version": WITH_SOURCES if counts.sources else SCHEMA_VERSION,
            **head,
            "counts": counts.to_json(),
            "scores": scores.quantiles(),
            "files": dict(sorted(files.items())),
        }
        write_json(self.folder / "run.json", run, checksum=True, volatile=VOLATILE)
        shutil.rmtree(self.folder / "progress")
        return run


def write_parquet(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write tables of one schema to one file, one after the other."""
    tables = iter(tables)
    first = next(tables)
    names = first.schema.names
    # Scores hardly ever repeat.
    scored = dict.fromkeys(
        (each.name for each in first.schema if each.type == pa.float32()), "BYTE_STREAM_SPLIT"
    ) if "score" in names else None  # fmt: skip
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(
            temporary,
            first.schema,
            compression="zstd",
            store_schema=False,  # so that readers see plain strings, not dictionaries
            use_dictionary=[name for name in names if scored is None or name not in scored],
            dictionary_pagesize_limit=1 << 26,
            column_encoding=scored,
            write_statistics=["query_id"],  # those of other columns are of no use, and cost half the time
        ) as writer,
    ):
        for table in itertools.chain([first], tables):
            writer.write_table(table, row_group_size=1 << 20)


def candidate_table(judged: Judged, pairs: Pairs, verdict_names: list[str]) -> pa.Table:
    """The candidates of a part in `CANDIDATE_SCHEMA`, with dictionaries for its string columns."""
    candidates = judged.candidates
    real = candidates.real
    counts = real.sum(1)
    rows = candidates.documents[real]
    # The dictionary holds only the documents of this part. Marking them is cheaper than sorting them.
    marked = np.zeros(len(pairs.document_ids), bool)
    marked[rows] = True
    used = np.flatnonzero(marked)
    code = np.cumsum(marked, dtype=np.int32) - 1
    queries = pa.DictionaryArray.from_arrays(
        numbers(np.repeat(np.arange(len(counts), dtype=np.int32), counts)),
        pairs.query_ids.take(numbers(candidates.queries)),
    )
    documents = pa.DictionaryArray.from_arrays(numbers(code[rows]), pairs.document_ids.take(numbers(used)))
    verdicts = pa.DictionaryArray.from_arrays(numbers(judged.verdicts[real].astype(np.int8)), strings(verdict_names))
    ranks = np.broadcast_to(candidates.ranks, real.shape)[real]
    columns = [queries, documents, numbers(ranks), numbers(candidates.scores[real]), verdicts]
    more = {} if candidates.listed is None else listed_columns(candidates.listed, real)
    return pa.table([*columns, *more.values()], names=[*CANDIDATE_SCHEMA.names, *more])


def negative_table(judged: Judged, pairs: Pairs) -> pa.Table:
    """The negatives of a part in `NEGATIVE_SCHEMA`."""
    candidates = judged.candidates
    positives = pairs.positives.take(candidates.queries)
    real = judged.chosen >= 0
    rows, _ = np.nonzero(real)
    columns = judged.chosen[real]
    counts = real.sum(1)
    n = len(candidates.queries)
    arrays = [
        pairs.query_ids.take(numbers(candidates.queries)),
        _lists(positives.lengths, pairs.document_ids.take(numbers(positives.values))),
        _lists(positives.lengths, numbers(judged.positive_scores.values)),
        _lists(counts, pairs.document_ids.take(numbers(candidates.documents[rows, columns]))),
        _lists(counts, numbers(candidates.scores[rows, columns])),
        _lists(counts, numbers(candidates.ranks[columns])),
        pa.nulls(n, pa.list_(pa.float32()))
        if judged.false_probability is None
        else _lists(counts, numbers(judged.false_probability[real])),
    ]
    return pa.table(arrays, schema=NEGATIVE_SCHEMA)


def _lists(lengths: np.ndarray, values: pa.Array) -> pa.ListArray:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(numbers(offsets), values)


def count(judged: Judged, verdict_names: list[str]) -> Counts:
    """The counts of a part."""
    real = judged.candidates.real
    verdicts = np.bincount(judged.verdicts[real], minlength=len(verdict_names))
    negatives = np.bincount((judged.chosen >= 0).sum(1))
    listed = judged.candidates.listed
    return Counts(
        queries=len(judged.verdicts),
        candidates=int(real.sum()),
        widened=judged.widened,
        without_positives=int(np.isnan(judged.candidates.positive_scores).sum()),
        verdicts=Counter({name: int(v) for name, v in zip(verdict_names, verdicts, strict=True)}),
        negatives=Counter({i: int(v) for i, v in enumerate(negatives) if v}),
        sources=Counter() if listed is None else Counter(
            {label: int(((ranks > 0) & real).sum()) for label, ranks in zip(listed.labels, listed.ranks, strict=True)}
        ),
    )  # fmt: skip


class ScoreQuantiles:
    """Quantiles of positive scores, of negative scores, and of lowest positive minus negative, collected table by table."""

    def __init__(self) -> None:
        self._scores: dict[str, list[np.ndarray]] = {"positive": [], "negative": [], "difference": []}

    def see(self, table: pa.Table) -> pa.Table:
        """Collect the scores of a table of negatives, and return the table unchanged."""
        positive, negative = _values(table, "positive_scores"), _values(table, "negative_scores")
        lengths = [
            values_of(table[name].combine_chunks().value_lengths()) for name in ("positive_scores", "negative_scores")
        ]
        lowest = np.full(len(table), np.nan, np.float32)
        scored = lengths[0] > 0
        if scored.any():
            starts = np.cumsum(lengths[0]) - lengths[0]
            lowest[scored] = np.minimum.reduceat(positive, starts[scored])
        difference = np.repeat(lowest, lengths[1]) - negative
        for name, values in zip(self._scores, (positive, negative, difference[~np.isnan(difference)]), strict=True):
            self._scores[name].append(values.copy())
        return table

    def quantiles(self) -> dict[str, dict[str, float] | None]:
        """Mean and quantiles of the positive scores, the negative scores and their difference; None without scores."""
        return {name: _quantiles(np.concatenate(arrays)) for name, arrays in self._scores.items()}


def _values(table: pa.Table, name: str) -> np.ndarray:
    return values_of(table[name].combine_chunks().flatten())


def _quantiles(values: np.ndarray) -> dict[str, float] | None:
    if len(values) == 0:
        return None
    at = {"min": 0, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1}
    quantiles = np.quantile(values, list(at.values()))
    return {"mean": float(values.mean(dtype=np.float64)), **dict(zip(at, map(float, quantiles), strict=True))}
