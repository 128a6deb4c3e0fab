"""The plan of a pass: how queries and documents are cut, and everything that a worker must find as the planner did."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import msgspec

from hardneg.errors import RunError
from hardneg.mining.environment import package_version
from hardneg.mining.parts import PART_ROWS
from hardneg.storage.files import fingerprint, sha256_file
from hardneg.storage.json_files import read_json, write_json
from hardneg.storage.vectors import SHARD_ROWS

FILE = "plan.json"
SCHEMA = "hardneg-plan-1"
BLOCK_PARTS = 16  # parts of a run in a block of queries at most: 65,536 queries
PIECE_SHARDS = 16  # shards of vectors that one task encodes at most: 262,144 texts; what a dead worker loses
GRAPH_ROWS = 1 << 16  # documents in a block whose neighbors are searched
MOST_SHARDS = 1 << 14
SIDES = ("queries", "documents")
_CONFIG = ("metric", "precision", "seed", "negatives", "sampler", "filters", "default_filters")  # what tasks need of it

Count = Annotated[int, msgspec.Meta(ge=0)]
Bounds = list[Count]


@dataclass(frozen=True)
class Model:
    """An encoder of the pass.

    Attributes:
        spec: as for `make_encoder`.
        fingerprint: of its weights.
        dimension: d.
        prompts: the text before each query and each document, by side.
        keys: of the vectors, by side; see `vector_keys`.
        number_format: what `go_on` of the encoder needs: `precision` and `precision_reason`; None: it has no choice.
    """

    spec: str
    fingerprint: str
    dimension: Annotated[int, msgspec.Meta(ge=1)]
    prompts: dict[str, str]
    keys: dict[str, str]
    number_format: dict[str, str] | None = None


@dataclass(frozen=True)
class Given:
    """Vectors that were given in a file.

    Attributes:
        file: its path.
        rows: what the file is cut into: row 0, ..., number of rows.
        sha256: of the vectors in each of these spans.
        dimension, dtype: of the vectors.
    """

    file: str
    rows: Bounds
    sha256: list[str]
    dimension: Annotated[int, msgspec.Meta(ge=1)]
    dtype: Literal["float16", "float32", "float64"]


@dataclass(frozen=True)
class SearchIndex:
    """An index over the documents.

    Attributes:
        kind: `exact` or `ivf`.
        k: the number of neighbors that it is tuned for.
        recall, seed: see `make_index`.
        queries: what it is tuned on: `queries` or `documents`.
    """

    kind: Literal["exact", "ivf"]
    k: Annotated[int, msgspec.Meta(ge=1)]
    recall: float
    seed: Count
    queries: Literal["queries", "documents"]


@dataclass(frozen=True)
class Plan:
    """A pass that is cut into tasks.

    Attributes:
        config: the options, as `MineOptions.to_json` writes them.
        fingerprints: of the dataset, the encoder, the vectors and the files of filters.
        queries, documents: their numbers, n and N.
        shards: rows of the documents at which the shards of the corpus begin, and N.
        blocks: the same of the queries.
        models: the encoder of the pass, if it encodes, then those of guides.
        given: the vectors by side, if they were given.
        depths: the depths of the searches, one a round of filtering.
        nearest: number of documents that are found for every query, for filters that compare queries; 0: none.
        indexes: the index of the pass, `main`; and `graph`, that of the documents' own neighbors, if filters need them.
        head: entries of `run.json` that are known already.
        warnings: warnings that are known already.
        force: whether doubts about given vectors were overruled.
        cache: the folder of vectors, if it is not in the run.
        version: of hardneg.
    """

    config: dict[str, Any]
    fingerprints: dict[str, str | None]
    queries: Count
    documents: Count
    shards: Bounds
    blocks: Bounds
    models: list[Model]
    given: dict[str, Given]
    depths: list[Count]
    nearest: Count
    indexes: dict[str, SearchIndex]
    head: dict[str, Any]
    warnings: list[str] = field(default_factory=list)
    force: bool = False
    cache: str | None = None
    version: str = ""
    schema: str = SCHEMA

    def save(self, folder: Path) -> None:
        """Write the plan into `progress` of a run folder."""
        write_json(folder / "progress" / FILE, asdict(self), checksum=True)

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """The plan of a run folder.

        Raises:
            RunError: there is none, it is damaged, or another version of hardneg wrote it.
        """
        path = folder / "progress" / FILE
        remedy = "plan anew: hardneg mine SOURCE --out ANOTHER_RUN --plan SHARDS"
        value = read_json(path, checksum=True, remedy=remedy)
        here = str(package_version("hardneg"))
        if value.get("schema") != SCHEMA or value.get("version") != here:
            raise RunError(
                f"{path} was written by hardneg {value.get('version')}, and this is hardneg {here}: work on it with that version, or "
                f"{remedy}"
            )
        try:
            plan = msgspec.convert(value, cls)
        except msgspec.ValidationError as error:
            raise RunError(f"{path} is not what hardneg writes ({error}): {remedy}") from None
        fault = plan._fault()
        if fault is not None:
            raise RunError(f"{path} is not what hardneg writes ({fault}): {remedy}")
        return plan

    def _fault(self) -> str | None:
        """What no plan of hardneg's has; None: nothing."""
        for name, bounds, total in (("shards", self.shards, self.documents), ("blocks", self.blocks, self.queries)):
            rising = all(a < b for a, b in pairwise(bounds))
            if not bounds or bounds[0] != 0 or bounds[-1] != total or not rising:
                return f"{name} do not go from 0 to {total:,}"
        if any(begin % PART_ROWS for begin in self.blocks[:-1]):
            return f"blocks do not begin at multiples of {PART_ROWS:,}"
        # Without limits, the tasks of made-up numbers would be counted for ever.
        if any(b - a > BLOCK_PARTS * PART_ROWS for a, b in pairwise(self.blocks)):
            return f"a block has more than {BLOCK_PARTS * PART_ROWS:,} queries"
        if self.documents >= 1 << 31 or self.shard_count > MOST_SHARDS:
            return f"{self.documents:,} documents in {self.shard_count:,} shards"
        lacking = [name for name in _CONFIG if name not in self.config]
        if lacking:
            return f"config lacks {lacking[0]}"
        if any(b <= a for a, b in pairwise(self.depths)):
            return "depths do not rise"
        if not self.depths or min(self.depths) < 1 or "main" not in self.indexes:
            return "no search"
        if not self.models and not self.given:
            return "no encoder and no vectors"
        if self.given and set(self.given) != set(SIDES):
            return f"vectors of {', '.join(self.given)}, not of {' and '.join(SIDES)}"
        # Keys name folders of the run.
        if any(
            not re.fullmatch("[0-9a-f]{16,128}", model.keys.get(side, "")) for model in self.models for side in SIDES
        ):
            return "a key of vectors is no hash"
        return None

    @property
    def name(self) -> str:
        """A hash of the plan, which the records of its tasks hold: those of another one do not count."""
        return fingerprint(asdict(self))

    @property
    def metric(self) -> str:
        return str(self.config["metric"])

    @property
    def dimension(self) -> int:
        return self.given["documents"].dimension if self.given else self.models[0].dimension

    @property
    def shard_count(self) -> int:
        return len(self.shards) - 1

    @property
    def block_count(self) -> int:
        return len(self.blocks) - 1

    def shard(self, number: int) -> tuple[int, int]:
        """(start, stop): the documents of a shard."""
        return self.shards[number], self.shards[number + 1]

    def block(self, number: int) -> tuple[int, int]:
        """(start, stop): the queries of a block."""
        return self.blocks[number], self.blocks[number + 1]

    def parts(self, block: int) -> range:
        """The parts of the run that a block of queries is written to."""
        start, stop = self.block(block)
        return range(start // PART_ROWS, -(-stop // PART_ROWS))

    def count(self, side: str) -> int:
        return self.queries if side == "queries" else self.documents

    def pieces(self, side: str) -> list[int]:
        """Rows at which the pieces of a side begin that are encoded by one task each, and its number of rows."""
        rows = self.count(side)
        shards = -(-rows // SHARD_ROWS)
        size = SHARD_ROWS * min(PIECE_SHARDS, max(1, -(-shards // max(1, self.shard_count))))
        return [*range(0, rows, size), rows]

    def pieces_of(self, side: str, start: int, stop: int) -> range:
        """The pieces that rows from `start` to `stop` lie in."""
        bounds = self.pieces(side)
        return range(bisect.bisect_right(bounds, start) - 1, bisect.bisect_left(bounds, stop))

    def graph_blocks(self) -> list[int]:
        """Places, in the order in which the documents' own neighbors are searched, at which the blocks begin; and N."""
        return [*range(0, self.documents, GRAPH_ROWS), self.documents]


def cut(total: int, count: int, multiple: int = 1) -> list[int]:
    """`total` rows in up to `count` spans of about the same size, which begin at multiples of a number.

    >>> cut(10, 3), cut(10, 3, 4), cut(3, 7)
    ([0, 3, 6, 10], [0, 4, 8, 10], [0, 1, 2, 3])
    """
    units = -(-total // multiple)
    count = min(count, units)
    return [*(i * units // count * multiple for i in range(count)), total]


class _SourceInfo(TypedDict):
    files: dict[str, str]


def check_source(folder: Path) -> None:
    """RunError if a file of the dataset has changed since the plan was written."""
    remedy = "plan anew with another --out"
    recorded = read_json(folder / "progress" / "source.json", _SourceInfo, checksum=True, remedy=remedy)["files"]
    for path in _files(folder / "source"):
        name = path.relative_to(folder).as_posix()
        if recorded.pop(name, None) != sha256_file(path):
            raise RunError(
                f"{path} has changed since the plan was written: restore it, or plan anew with another --out"
            )
    if recorded:
        raise RunError(f"{folder / next(iter(recorded))} is missing: restore it, or plan anew with another --out")


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
