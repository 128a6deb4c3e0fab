"""Save an index to a folder, and load it. The vectors of the documents are not part of the folder.

`index.json` describes the index and holds the SHA-256 of every other file. A file is read, by numpy or faiss, only
after its checksum is verified. The lists of an IVF index and the links of an HNSW graph are checked against the
documents before they are used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from hardneg.errors import RunError
from hardneg.index.base import METRICS, Index
from hardneg.index.factory import make_index
from hardneg.index.hnsw import HNSWIndex
from hardneg.index.ivf import IVFIndex
from hardneg.index.kmeans import Centroids
from hardneg.index.vectors import Documents
from hardneg.storage.files import atomic_path, check_file, read_array, sha256_file, write_array
from hardneg.storage.json_files import read_json, write_json

SCHEMA = "hardneg-index-1"
_SAMPLE = 1024  # documents that go into the checksum of the vectors


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
    again.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
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
    write_json(folder / "index.json", {**head, "vectors": vectors_checksum(index.documents), "files": files})


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
    head = read_json(folder / "index.json")
    if head.get("schema") != SCHEMA:
        raise RunError(
            f"{folder / 'index.json'}: schema {head.get('schema')!r}, expected {SCHEMA!r}: build the index again"
        )
    files_of: dict[str, set[str]] = {
        "exact": set(),
        "ivf": {"centroids.npy", "order.npy", "offsets.npy"},
        "hnsw": {"graph.faiss"},
    }
    name, files, settings = head.get("index"), head.get("files"), head.get("settings")
    if build is not None and isinstance(name, str) and name not in files_of:
        files_of[name] = set()
    if (
        not isinstance(name, str)
        or name not in files_of
        or head.get("metric") not in METRICS
        or not isinstance(files, dict)
        or set(files) != files_of[name]
        or not isinstance(settings, dict)
    ):
        raise RunError(f"{folder / 'index.json'} does not describe an index: build it again")
    for file, digest in files.items():
        check_file(folder / file, digest)
    if head.get("vectors") != vectors_checksum(documents):
        raise RunError(f"{folder} holds an index of other documents: build the index of these documents again")
    metric = str(head.get("metric"))
    if build is not None and name not in ("exact", "ivf", "hnsw"):
        return build(documents, metric)
    if name == "exact":
        return make_index("exact", documents, metric, threads=threads, device=device)[0]
    if name == "ivf":
        return _ivf(folder, files, documents, metric, settings, threads)
    return _hnsw(folder, documents, metric, settings, threads)


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
    size, dimension = documents.shape
    fits = (
        centroids.ndim == 2
        and centroids.dtype == np.float32
        and centroids.shape[1] == dimension
        and bool(np.isfinite(centroids).all())
        and order.dtype == np.int32
        and offsets.dtype == np.int64
        and offsets.shape == (len(centroids) + 1,)
        and np.array_equal(np.sort(order, axis=None), np.arange(size))
        and offsets[0] == 0
        and offsets[-1] == size
        and bool((np.diff(offsets) >= 0).all())
        and settings.get("map") in METRICS
    )
    if not fits:
        raise RunError(
            f"{folder}: the lists of the index do not fit {size:,} documents of {dimension} dimensions: "
            f"build the index again"
        )
    return IVFIndex(
        documents,
        metric,
        centroids=Centroids(centroids, str(settings["map"])),
        order=(order, offsets),
        probe_margin=_setting(folder, settings, "gap", 0.0, most=float(np.finfo(np.float32).max)),
        threads=threads,
    )


def _hnsw(folder: Path, documents: Documents, metric: str, settings: dict[str, Any], threads: int | None) -> HNSWIndex:
    """Load an HNSW index. RunError if the file is no graph of these documents."""
    path = folder / "graph.faiss"
    try:
        graph = faiss.read_index(str(path))
    except RuntimeError as error:
        raise RunError(f"{path} holds no graph that faiss can read ({error}): build the index again") from None
    if (
        not isinstance(graph, faiss.IndexHNSWFlat)
        or (graph.ntotal, graph.d) != documents.shape
        or not _links_stay_inside(graph)
    ):
        raise RunError(
            f"{path} holds no graph of {len(documents):,} documents of {documents.shape[1]} dimensions: "
            f"build the index again"
        )
    return HNSWIndex(
        documents,
        metric,
        graph=graph,
        ef_search=int(_setting(path.parent, settings, "reach", 128, most=2**31 - 1)),
        threads=threads,
    )


def _setting(folder: Path, settings: dict[str, Any], name: str, default: float, most: float) -> float:
    """A setting of `index.json`. RunError unless it is a number from 0 to `most`: NaN would let a search run forever."""
    value = settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise RunError(
            f"{folder / 'index.json'}: the setting {name!r} is {value!r}, not a number from 0 to {most:g}: build the index again"
        )
    return value


def _links_stay_inside(graph: faiss.IndexHNSWFlat) -> bool:
    """Whether all links of the graph lead to existing documents."""
    links, offsets, levels = (
        faiss.vector_to_array(vector) for vector in (graph.hnsw.neighbors, graph.hnsw.offsets, graph.hnsw.levels)
    )
    return bool(
        len(levels) == graph.ntotal
        and len(offsets) == graph.ntotal + 1
        and offsets[0] == 0
        and offsets[-1] == len(links)
        and (np.diff(offsets.astype(np.int64)) >= 0).all()
        and ((links >= -1) & (links < graph.ntotal)).all()
        and 0 <= graph.hnsw.entry_point < graph.ntotal
    )
