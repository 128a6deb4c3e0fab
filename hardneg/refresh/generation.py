"""A generation: one build of the index, with the vectors, the neighbors of every query, and the step they come from."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from hardneg.data.mixed import Mixed
from hardneg.errors import DataError, RunError, UsageError, suggestion
from hardneg.index.base import Index, Neighbors
from hardneg.index.files import load_index_of, save_index, vectors_checksum
from hardneg.index.per_source import make_index_of, search_rows
from hardneg.index.recall import Recall
from hardneg.index.vectors import checked_threads
from hardneg.refresh.drift import compensate, rows_to_encode
from hardneg.refresh.encode import Encode, Items, Stopped, encode_rows
from hardneg.registry import spec_of
from hardneg.storage.arrays import Int
from hardneg.storage.files import read_array, write_array
from hardneg.storage.json_files import decode_json, write_json
from hardneg.storage.vectors import PRECISIONS

SCHEMA = "hardneg-generation-1"


@dataclass(frozen=True)
class Recipe:
    """How generations are built.

    Attributes:
        index: as for `make_index`; or a function that builds an index from vectors and a metric.
        metric, recall, threads, seed, device: as for `make_index`.
        depth: neighbors mined for every query, and the k of the recall.
        precision: number format of the stored vectors, `float16` or `float32`.
        share: share of the documents that a refresh encodes; 1 encodes all. The vectors of the others are
            drift-compensated, see `hardneg.refresh.drift`.
        sources: the sources of a mixture, each of which gets an index of its own; None: the dataset is of one.

    Raises:
        UsageError: a value that cannot be used.
    """

    index: str | Callable[[Any, str], Index] = "auto"
    metric: str = "cosine"
    recall: float = 0.95
    depth: int = 100
    precision: str = "float16"
    share: float = 1.0
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    sources: Mixed | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"unknown precision {self.precision!r}.{suggestion(self.precision, PRECISIONS)}")
        if not 0 < self.share <= 1:
            raise UsageError(f"share={self.share} must be above 0 and at most 1")
        if not isinstance(self.index, str) and isinstance(self.index, Index) and not isinstance(self.index, type):
            raise UsageError(
                "the vectors change with every generation: give an index by name, or a function that builds one"
            )
        if self.depth < 1:
            raise UsageError(f"depth={self.depth} must be 1 or more")
        checked_threads(self.threads)

    def to_json(self) -> dict[str, Any]:
        """Plain values; a function that builds the index is named, and so are sources."""
        plain = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "sources"}
        named = {} if self.sources is None else {"sources": list(self.sources.names)}
        return {**plain, "index": spec_of(self.index), **named}


@dataclass(frozen=True)
class Generation:
    """One build of the index. It never changes, so a reader can go on using it while the next one takes its place.

    Attributes:
        number: 0 for the first generation.
        step: training step of the encoder that made the vectors.
        ids: int64 `[N]`, the caller's numbers of the documents.
        vectors: `[N, d]`, float16 or float32.
        index: over the vectors.
        recall: of the index.
        neighbors: of every query, int32 rows (of `ids`) and float32 scores `[n, depth]`; None without queries.
        checksum: of the vectors, see `vectors_checksum`.
        encoded_at: int64 `[N]`, the step at which each document was last encoded; below `step` for vectors that were
            drift-compensated.
        compensation_error: 1 - mean cosine of compensated and fresh vectors, on documents that the map was not learned from;
            0 when everything was encoded.
        seconds: spent on `encode`, `build` and `search`.
    """

    number: int
    step: int
    ids: Int
    vectors: NDArray[np.floating]
    index: Index
    recall: Recall
    neighbors: Neighbors | None
    checksum: str
    encoded_at: Int
    compensation_error: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def dimension(self) -> int:
        return int(self.vectors.shape[1])

    def rows_of(self, ids: NDArray[np.integer]) -> Int:
        """int64: the rows of these documents, -1 for documents that this generation does not have."""
        order = np.argsort(self.ids, kind="stable")
        place = np.searchsorted(self.ids[order], ids).clip(max=len(order) - 1)
        rows = order[place]
        return np.where(self.ids[rows] == ids, rows, -1)

    def times_retrieved(self) -> Int:
        """int64 `[N]`: how often each document is among the neighbors of a query."""
        if self.neighbors is None:
            return np.zeros(len(self.ids), np.int64)
        found = self.neighbors.documents
        return np.bincount(found[found >= 0], minlength=len(self.ids))

    def search(self, queries: NDArray[np.floating], k: int) -> Neighbors:
        """The `k` nearest documents, as rows of `ids`; see `Index.search`."""
        return self.index.search(queries, k)


@dataclass(frozen=True)
class Order:
    """A generation to be built.

    Attributes:
        documents, ids: the corpus.
        queries: (items, number of items) for which neighbors are mined.
        number, step: of the new generation.
        before: the generation that it replaces; None for the first.
    """

    documents: Items
    ids: Int
    queries: tuple[Items, int] | None
    number: int
    step: int
    before: Generation | None = None


def build(recipe: Recipe, order: Order, encode: Encode, stop: Callable[[], bool]) -> Generation:
    """Encode, build the index, and mine the neighbors of every query; raises Stopped, or DataError for bad vectors."""
    seconds: dict[str, float] = {}
    last = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[stage], last = round(now - last, 4), now
        if stop():
            raise Stopped

    vectors, encoded_at, compensation_error = _document_vectors(recipe, order, encode, stop)
    asked = None
    if order.queries is not None:
        rows = np.arange(order.queries[1])
        asked = encode_rows(encode, order.queries[0], rows, rows, "query", recipe.precision, stop)
    lap("encode")
    depth = min(recipe.depth, len(order.ids))
    index, recall = make_index_of(
        recipe.sources, recipe.index, vectors, recipe.metric, queries=asked, k=depth, recall=recipe.recall, seed=recipe.seed,
        threads=recipe.threads, device=recipe.device,
    )  # fmt: skip
    lap("build")
    neighbors = None if asked is None else search_rows(index, np.arange(len(asked)), asked, depth)
    lap("search")
    return Generation(
        order.number, order.step, order.ids, vectors, index, recall, neighbors, vectors_checksum(vectors), encoded_at,
        compensation_error, seconds,
    )  # fmt: skip


def _document_vectors(
    recipe: Recipe, order: Order, encode: Encode, stop: Callable[[], bool]
) -> tuple[NDArray[Any], Int, float]:
    """(vectors, the step at which each was encoded, the error of the drift-compensated ones)."""
    before, ids = order.before, order.ids
    at = np.full(len(ids), order.step)
    if before is None or recipe.share == 1:
        rows, old = np.arange(len(ids)), None
    else:
        old = before.rows_of(ids)
        rows, sampled = rows_to_encode(
            recipe.share, old, before.encoded_at, before.times_retrieved(), recipe.seed + order.number
        )
    fresh = encode_rows(encode, order.documents, rows, ids, "document", recipe.precision, stop)
    if before is not None and fresh.shape[1] != before.dimension:
        raise DataError(
            f"the encoder now gives vectors of {fresh.shape[1]} dimensions, generation {before.number} has "
            f"{before.dimension}: a changed model needs an index of its own"
        )
    if before is None or old is None or len(rows) == len(ids):
        return fresh, at, 0.0
    rest = np.setdiff1d(np.arange(len(ids)), rows)
    known = np.flatnonzero(old[rows] >= 0)
    trial = np.searchsorted(rows[known], sampled[::5])
    moved, error = compensate(before.vectors, old[rows[known]], fresh[known], trial, old[rest])
    vectors = np.empty((len(ids), fresh.shape[1]), fresh.dtype)
    vectors[rows], vectors[rest] = fresh, moved
    at[rest] = before.encoded_at[old[rest]]
    return vectors, at, error


def save_generation(generation: Generation, folder: Path) -> None:
    """Write a generation: its arrays, its index, and `generation.json` with a SHA-256 of every array."""
    arrays: dict[str, NDArray[Any]] = {name: getattr(generation, name) for name in ("ids", "vectors", "encoded_at")}
    if generation.neighbors is not None:
        arrays |= {"scores": generation.neighbors.scores, "neighbours": generation.neighbors.documents}
    files = {f"{name}.npy": write_array(folder / f"{name}.npy", array) for name, array in arrays.items()}
    save_index(generation.index, folder / "index")
    head = {name: getattr(generation, name) for name in ("number", "step", "checksum", "seconds")}
    head["carry_error"] = generation.compensation_error  # the name in files since version 0.1
    write_json(
        folder / "generation.json", {"schema": SCHEMA, **head, "recall": asdict(generation.recall), "files": files}
    )


def save_once(generation: Generation, folder: Path) -> str:
    """Write a generation into a folder of its own in `folder`, unless it is there already; returns its name."""
    name = f"generation-{generation.number}-{generation.checksum[:12]}"
    if not (folder / name / "generation.json").exists():  # written last
        save_generation(generation, folder / name)
    return name


def load_saved(folder: Path, name: Any, recipe: Recipe) -> Generation:
    """A generation that `save_once` wrote; RunError if it is missing, damaged, or not the one that its name says."""
    if not re.fullmatch(r"generation-\d+-[0-9a-f]{12}", str(name)):
        raise RunError(f"{folder}: {name!r} is no name of a generation: start anew")
    generation = load_generation(
        folder / name,
        recipe.threads,
        recipe.device,
        None if isinstance(recipe.index, str) else recipe.index,
        recipe.sources,
    )
    if name != f"generation-{generation.number}-{generation.checksum[:12]}":
        raise RunError(f"{folder / name} holds another generation than its name says: start anew")
    return generation


def load_generation(
    folder: Path, threads: int | None = None, device: str = "cpu", build: Callable[[Any, str], Index] | None = None,
    sources: Mixed | None = None,
) -> Generation:  # fmt: skip
    """A generation that `save_generation` wrote; RunError when it is missing, damaged or foreign."""
    head = _read_head(folder / "generation.json")
    arrays = {
        name.removesuffix(".npy"): read_array(folder / name, digest)
        for name, digest in head["files"].items()
        if name in (*_ARRAYS, *_NEIGHBORS)
    }
    vectors, ids, encoded_at = arrays["vectors"], arrays["ids"], arrays["encoded_at"]
    fault = _fault_of_vectors(vectors, ids, encoded_at)
    if fault is not None or vectors_checksum(vectors) != head["checksum"]:
        raise RunError(
            f"{folder}: ids and vectors do not belong together ({fault or 'the checksum is another'}): {_REMEDY}"
        )
    neighbors = None
    if "scores" in arrays:
        neighbors = Neighbors(arrays["scores"], arrays["neighbours"])
        if not _fit(neighbors, len(ids)):
            raise RunError(f"{folder}: the neighbors name documents that there are not: {_REMEDY}")
    try:
        index = load_index_of(sources, folder / "index", vectors, threads=threads, device=device, build=build)
    except DataError as error:  # these vectors are not the caller's
        raise RunError(f"{folder / 'vectors.npy'} holds vectors that cannot be searched ({error}): {_REMEDY}") from None
    return Generation(
        head["number"], head["step"], ids, vectors, index, Recall(**head["recall"]), neighbors, head["checksum"],
        encoded_at, float(head.get("carry_error", 0.0)), dict(head.get("seconds", {})),
    )  # fmt: skip


_REMEDY = "refresh the index anew"

_ARRAYS = ("ids.npy", "vectors.npy", "encoded_at.npy")

_NEIGHBORS = ("scores.npy", "neighbours.npy")  # both or none


def _read_head(path: Path) -> dict[str, Any]:
    """What `generation.json` says. RunError if an entry is missing or is not what it should be."""
    head = decode_json(path, _REMEDY)  # its entry `checksum` is that of the vectors
    try:
        msgspec.convert(head, _Head)
    except msgspec.ValidationError as error:
        raise RunError(f"{path} does not describe a generation ({error}): {_REMEDY}") from None
    files = set(head["files"])
    if head["schema"] != SCHEMA or not set(_ARRAYS) <= files or len(files & set(_NEIGHBORS)) == 1:
        raise RunError(f"{path} does not describe a generation: {_REMEDY}")
    return head


_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class _Recall(msgspec.Struct, forbid_unknown_fields=True):
    """A `Recall` in `generation.json`."""

    measured: _Share
    error: Annotated[float, msgspec.Meta(ge=0)]
    target: _Share
    k: _Count
    queries: _Count


class _Head(msgspec.Struct):
    """What `generation.json` holds."""

    schema: str
    number: _Count
    step: Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]
    checksum: str
    recall: _Recall
    files: dict[str, str]
    carry_error: float = 0.0
    seconds: dict[str, float] = {}


def _fault_of_vectors(vectors: NDArray[Any], ids: NDArray[Any], encoded_at: NDArray[Any]) -> str | None:
    """What is wrong with the arrays of a generation, or None."""
    if vectors.ndim != 2 or vectors.dtype not in (np.float16, np.float32) or not vectors.size:
        return f"vectors.npy holds {vectors.dtype} {list(vectors.shape)}"
    for name, array in (("ids", ids), ("encoded_at", encoded_at)):
        if array.dtype != np.int64 or array.shape != (len(vectors),):
            return f"{name}.npy holds {array.dtype} {list(array.shape)} for {len(vectors):,} vectors"
    if len(np.unique(ids)) != len(ids):
        return "ids.npy repeats a number"
    return None


def _fit(neighbors: Neighbors, size: int) -> bool:
    """Whether these are neighbors among `size` documents."""
    scores, rows = neighbors.scores, neighbors.documents
    if scores.dtype != np.float32 or rows.dtype != np.int32 or rows.ndim != 2 or rows.shape != scores.shape:
        return False
    return bool(
        rows.size > 0
        and ((rows >= -1) & (rows < size)).all()
        and np.where(rows >= 0, np.isfinite(scores), scores == -np.inf).all()
    )
