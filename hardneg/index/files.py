"""Save an index to a folder, and load it. The vectors of the documents are not part of the folder.

`index.json` describes the index and holds the SHA-256 of every other file. A file is read, by numpy or faiss, only
after its checksum is verified. A checksum only tells that a file is the one that `index.json` names: anybody can write
both. So the lists of an IVF index are checked against the documents before they are used. A graph is checked before faiss
reads it, because faiss trusts its files: only the kind of graph that `HNSWIndex` builds, of these documents, with all its
links in range, is given to faiss, and nothing else ever is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import faiss
import numpy as np
from numpy.typing import NDArray

from hardneg.data.mixed import Mixed
from hardneg.errors import RunError
from hardneg.index.base import METRICS, Index
from hardneg.index.factory import make_index
from hardneg.index.hnsw import HNSWIndex, check_graph_file
from hardneg.index.ivf import MOST_LISTS, IVFIndex
from hardneg.index.kmeans import Centroids
from hardneg.index.per_source import PerSource
from hardneg.index.vectors import LONGEST, Documents
from hardneg.storage.arrays import Int
from hardneg.storage.files import atomic_path, check_file, read_array, sha256_file, write_array
from hardneg.storage.json_files import read_json, write_json

SCHEMA = "hardneg-index-1"
_SAMPLE = 1024  # documents that go into the checksum of the vectors

_REMEDY = "build the index again"


class _Head(TypedDict):
    """What `index.json` holds. Newer ones also have a checksum of their own."""

    schema: str
    index: str
    metric: str
    settings: dict[str, Any]
    vectors: str
    files: dict[str, str]


def vectors_checksum(documents: Documents) -> str:
    """The SHA-256 of the shape of the documents `[N, d]` and of up to 1,024 of their vectors, taken at equal distances.

    It detects other documents and another encoder, but not the change of a single vector.
    """
    rows = np.unique(np.linspace(0, len(documents) - 1, min(len(documents), _SAMPLE)).astype(np.int64))
    digest = hashlib.sha256(str(tuple(documents.shape)).encode())
    digest.update(np.ascontiguousarray(documents[rows], np.float32).tobytes())
    return digest.hexdigest()


def save_index(index: Index, folder: str | Path) -> None:
    """Write an index to `folder`, without its documents.

    For an exact index, and for an index of your own kind, only `index.json` is written. `load_index` builds the index
    again. The indexes of a mixture are in folders of their own, `source-0` and so on, see `load_index_of`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(index, PerSource):
        for i, part in enumerate(index.parts):
            save_index(part, folder / f"source-{i}")
        return
    files: dict[str, str] = {}
    settings: dict[str, Any] = {}
    if isinstance(index, IVFIndex):
        for name, array in (
            ("centroids", index.centroids.vectors),
            ("order", index.order),
            ("offsets", index.offsets),
        ):
            files[f"{name}.npy"] = write_array(folder / f"{name}.npy", array)
        settings = {"gap": index.probe_margin, "map": index.centroids.metric}
    elif isinstance(index, HNSWIndex):
        path = folder / "graph.faiss"
        with atomic_path(path) as temporary:
            faiss.write_index(index.graph, str(temporary))
        files[path.name] = sha256_file(path)
        settings = {"reach": index.ef_search}
    head = {"schema": SCHEMA, "index": index.name, "metric": index.metric, "settings": settings}
    head |= {"vectors": vectors_checksum(index.documents), "files": files}
    write_json(folder / "index.json", head, checksum=True)


def load_index(
    folder: str | Path,
    documents: Documents,
    *,
    threads: int | None = None,
    device: str = "cpu",
    build: Callable[[Any, str], Index] | None = None,
) -> Index:
    """Load an index that `save_index` wrote.

    Args:
        folder: the folder that `save_index` wrote.
        documents: the vectors `[N, d]` of the same documents.
        threads: the number of worker threads; by default as many as torch uses.
        device: the device of an exact index. It may differ from the device of the saved index.
        build: a function that builds an index of your own kind from the vectors and the metric.

    Raises:
        RunError: the folder holds no index, is damaged, or belongs to other documents. The message says which.
    """
    folder = Path(folder)
    head = read_json(folder / "index.json", _Head, remedy=_REMEDY)
    if head["schema"] != SCHEMA:
        raise RunError(f"{folder / 'index.json'}: schema {head['schema']!r}, expected {SCHEMA!r}: {_REMEDY}")
    files_of: dict[str, set[str]] = {
        "exact": set(),
        "ivf": {"centroids.npy", "order.npy", "offsets.npy"},
        "hnsw": {"graph.faiss"},
    }
    name, files, settings, metric = str(head["index"]), head["files"], head["settings"], str(head["metric"])
    if build is not None and name not in files_of:
        files_of[name] = set()
    if name not in files_of or metric not in METRICS or set(files) != files_of[name]:
        raise RunError(f"{folder / 'index.json'} does not describe an index: build it again")
    for file, digest in files.items():
        check_file(folder / file, digest)
    if head["vectors"] != vectors_checksum(documents):
        raise RunError(f"{folder} holds an index of other documents: build the index of these documents again")
    if build is not None and name not in ("exact", "ivf", "hnsw"):
        return build(documents, metric)
    if name == "exact":
        return make_index("exact", documents, metric, threads=threads, device=device)[0]
    if name == "ivf":
        return _ivf(folder, files, documents, metric, settings, threads)
    return _hnsw(folder, documents, metric, settings, threads)


def load_index_of(
    mixed: Mixed | None, folder: Path, documents: Documents, *, threads: int | None = None, device: str = "cpu",
    build: Callable[[Any, str], Index] | None = None,
) -> Index:  # fmt: skip
    """Load an index that `save_index` wrote; for a mixture, one for each of its sources.

    Args:
        mixed: the sources of the dataset; None: it is of one.
        folder, documents, threads, device, build: as for `load_index`.

    Raises:
        RunError: as for `load_index`, or the documents are not those of the sources.
    """
    if mixed is None:
        return load_index(folder, documents, threads=threads, device=device, build=build)
    if int(mixed.starts[-1]) != len(documents):
        raise RunError(
            f"{folder} holds an index of {len(documents):,} documents, the sources have {mixed.starts[-1]:,}: {_REMEDY}"
        )
    parts = [
        load_index(
            folder / f"source-{i}", documents[slice(*mixed.span(i))], threads=threads, device=device, build=build
        )
        for i in range(len(mixed))
    ]
    return PerSource(documents, parts, mixed.queries)


def _ivf(
    folder: Path,
    files: dict[str, str],
    documents: Documents,
    metric: str,
    settings: dict[str, Any],
    threads: int | None,
) -> IVFIndex:
    """Load an IVF index. RunError if its lists do not fit the documents."""
    centroids, order, offsets = (
        read_array(folder / f"{name}.npy", files[f"{name}.npy"]) for name in ("centroids", "order", "offsets")
    )
    fault = _fault_of_lists(centroids, order, offsets, *documents.shape)
    if fault is None and settings.get("map") not in METRICS:
        fault = f"index.json: the setting 'map' is {settings.get('map')!r}, not one of {', '.join(METRICS)}"
    if fault is not None:
        raise RunError(
            f"{folder}: the lists of the index do not fit {len(documents):,} documents of {documents.shape[1]} "
            f"dimensions ({fault}): {_REMEDY}"
        )
    return IVFIndex(
        documents,
        metric,
        centroids=Centroids(centroids, str(settings["map"])),
        order=(order, offsets),
        probe_margin=_setting(folder, settings, "gap", 0.0, most=float(np.finfo(np.float32).max)),
        threads=threads,
    )


def _fault_of_lists(
    centroids: NDArray[Any], order: NDArray[Any], offsets: NDArray[Any], size: int, dimension: int
) -> str | None:
    """What is wrong with the arrays of an IVF index of `size` documents, or None."""
    lists = len(centroids) if centroids.ndim == 2 else 0
    if centroids.dtype != np.float32 or centroids.ndim != 2 or centroids.shape[1] != dimension:
        return f"centroids.npy holds {centroids.dtype} {list(centroids.shape)}"
    if not 1 <= lists <= min(MOST_LISTS, size):
        return f"centroids.npy holds {lists:,} lists"
    if not (np.abs(centroids) <= LONGEST).all():
        return "centroids.npy holds NaN, infinite or huge values"
    if order.dtype != np.int32 or order.shape != (size,) or not np.array_equal(np.sort(order), np.arange(size)):
        return f"order.npy does not hold each of the rows 0 to {size - 1:,} once"
    if offsets.dtype != np.int64 or offsets.shape != (lists + 1,):
        return f"offsets.npy holds {offsets.dtype} {list(offsets.shape)}"
    if offsets[0] != 0 or offsets[-1] != size or not _ascending(offsets):
        return f"offsets.npy does not ascend from 0 to {size:,}"
    return None


def _ascending(values: Int) -> bool:
    """Whether no value is smaller than the one before. Differences could overflow."""
    return bool((values[1:] >= values[:-1]).all())


def _hnsw(folder: Path, documents: Documents, metric: str, settings: dict[str, Any], threads: int | None) -> HNSWIndex:
    """Load an HNSW index. RunError if the file is no graph of these documents."""
    path = folder / "graph.faiss"
    size, dimension = documents.shape
    ef_search = _setting(folder, settings, "reach", 128, least=1, most=2**31 - 1)
    try:
        check_graph_file(np.memmap(path, np.uint8, "r").data, size, dimension, metric == "l2")
        graph = faiss.read_index(str(path))
    except (ValueError, RuntimeError, OSError) as error:
        raise RunError(
            f"{path} holds no graph of {size:,} documents of {dimension} dimensions ({error}): {_REMEDY}"
        ) from None
    return HNSWIndex(
        documents,
        metric,
        graph=graph,
        ef_search=int(ef_search),
        threads=threads,
    )


def _setting(
    folder: Path, settings: dict[str, Any], name: str, default: float, *, most: float, least: float = 0
) -> float:
    """A setting of `index.json`. RunError unless it is a number from `least` to `most`: with NaN, a search never ends."""
    value = settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise RunError(
            f"{folder / 'index.json'}: the setting {name!r} is {value!r}, not a number from {least:g} to {most:g}: "
            f"{_REMEDY}"
        )
    return value
