"""Saved indexes: the same answers after loading; nothing damaged, foreign or made up is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from hardneg.errors import RunError
from hardneg.index.factory import make_index
from hardneg.index.files import load_index, save_index
from hardneg.index.hnsw import HNSWIndex, check_graph_file
from hardneg.storage.files import sha256_file

from .test_approximate import clustered

KINDS = {"exact": [], "ivf": ["centroids.npy", "order.npy", "offsets.npy"], "hnsw": ["graph.faiss"]}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_loaded_answers_like_saved(tmp_path: Path, name: str, metric: str) -> None:
    documents, queries = clustered(800), clustered(40, seed=1)
    index, _ = make_index(name, documents, metric, k=10, recall=0.9)
    save_index(index, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*KINDS[name], "index.json"])
    again = load_index(tmp_path, documents)
    before, after = index.search(queries, 10), again.search(queries, 10)
    assert before.documents.tobytes() == after.documents.tobytes()
    assert before.scores.tobytes() == after.scores.tobytes()


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in KINDS.items() for file in files])
def test_damage_is_seen_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str
) -> None:
    documents = clustered(300)
    save_index(make_index(name, documents, k=5, recall=0.9)[0], tmp_path)
    monkeypatch.setattr(faiss, "read_index", lambda path: pytest.fail("handed to the native reader"))
    path = tmp_path / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=f"{file} is missing or damaged.*made again"):
        load_index(tmp_path, documents)
    path.unlink()
    with pytest.raises(RunError, match="missing or damaged"):
        load_index(tmp_path, documents)


def test_index_of_other_documents(tmp_path: Path) -> None:
    documents = clustered(300)
    save_index(make_index("ivf", documents, k=5)[0], tmp_path)
    for other in (clustered(300, seed=9), documents[:299]):
        with pytest.raises(RunError, match="other documents"):
            load_index(tmp_path, other)


def head_of(folder: Path) -> dict[str, Any]:
    """What `index.json` says, without its checksum. A file without one is read as well, as from older versions."""
    head = json.loads((folder / "index.json").read_text())
    return {name: value for name, value in head.items() if name != "checksum"}


def write_head(folder: Path, head: dict[str, Any]) -> None:
    (folder / "index.json").write_text(json.dumps(head))


def sign(folder: Path) -> None:
    """What somebody could do who makes up an index: right checksums around wrong content."""
    head = head_of(folder)
    write_head(folder, {**head, "files": {file: sha256_file(folder / file) for file in head["files"]}})


def test_a_changed_description_is_noticed(tmp_path: Path) -> None:
    documents = clustered(300)
    save_index(make_index("ivf", documents, k=5)[0], tmp_path)
    head = json.loads((tmp_path / "index.json").read_text())
    write_head(tmp_path, {**head, "settings": {**head["settings"], "gap": 0.01}})
    with pytest.raises(RunError, match="does not fit its own checksum"):
        load_index(tmp_path, documents)
    write_head(tmp_path, head_of(tmp_path))
    load_index(tmp_path, documents)  # as an older version wrote it


def test_lists_that_point_nowhere(tmp_path: Path) -> None:
    documents = clustered(300)
    save_index(make_index("ivf", documents, k=5)[0], tmp_path)
    good = {file: np.load(tmp_path / file) for file in KINDS["ivf"]}
    bad = [
        ("order.npy", good["order.npy"] + 1),
        ("order.npy", np.zeros(300, np.int32)),
        ("order.npy", good["order.npy"].astype(np.int64)),
        ("offsets.npy", good["offsets.npy"][::-1]),
        ("offsets.npy", good["offsets.npy"][:-1]),
        ("centroids.npy", good["centroids.npy"][:, :5]),
        ("offsets.npy", np.where(np.arange(18) == 9, -(2**63) + 5, good["offsets.npy"])),
        ("centroids.npy", good["centroids.npy"] * np.float32(np.nan)),
        ("centroids.npy", good["centroids.npy"] * np.float32(1e30)),
        ("centroids.npy", good["centroids.npy"][:0]),
        ("centroids.npy", good["centroids.npy"].ravel()),
    ]
    for file, array in bad:
        for name, value in good.items():
            np.save(tmp_path / name, value)
        np.save(tmp_path / file, array)
        sign(tmp_path)
        with pytest.raises(RunError, match=rf"do not fit 300 documents of 24 dimensions \({file}"):
            load_index(tmp_path, documents)
    for name, value in good.items():
        np.save(tmp_path / name, value)
    write_head(tmp_path, {**head_of(tmp_path), "settings": {"gap": 0.1, "map": "taxi"}})
    sign(tmp_path)
    with pytest.raises(RunError, match="do not fit"):
        load_index(tmp_path, documents)
    (tmp_path / "order.npy").write_bytes(b"no array")
    sign(tmp_path)
    with pytest.raises(RunError, match=r"order\.npy is no array"):
        load_index(tmp_path, documents)


@pytest.mark.parametrize(("kind", "key"), [("ivf", "gap"), ("hnsw", "reach")])
@pytest.mark.parametrize("value", [-1, 1e300, 10**40, "x", None, True, [1], {}])
def test_settings_are_checked(tmp_path: Path, kind: str, key: str, value: object) -> None:
    """A NaN margin once let a search run forever."""
    documents = clustered(300)
    save_index(make_index(kind, documents, k=5)[0], tmp_path)
    head = head_of(tmp_path)
    write_head(tmp_path, {**head, "settings": {**head["settings"], key: value}})
    with pytest.raises(RunError, match=rf"index\.json: the setting '{key}' is"):
        load_index(tmp_path, documents)
    for number in (float("nan"), float("inf")):
        write_head(tmp_path, {**head, "settings": {**head["settings"], key: number}})
        with pytest.raises(RunError, match=r"index\.json is not readable as JSON"):
            load_index(tmp_path, documents)


@pytest.mark.parametrize(
    "change",
    [
        {"index": ["ivf"]}, {"index": None}, {"metric": "taxi"}, {"metric": ["l2"]}, {"files": []}, {"files": {"a": 1}},
        {"vectors": 7}, {"schema": None}, {"settings": []},
    ],
)  # fmt: skip
def test_a_head_that_describes_no_index(tmp_path: Path, change: dict[str, object]) -> None:
    documents = clustered(300)
    save_index(make_index("ivf", documents, k=5)[0], tmp_path)
    write_head(tmp_path, {**head_of(tmp_path), **change})
    with pytest.raises(RunError, match=r"index\.json (does not describe an index|is not what hardneg writes)"):
        load_index(tmp_path, documents)


@pytest.mark.parametrize("key", ["schema", "index", "metric", "settings", "vectors", "files"])
def test_a_head_without_one_of_its_entries(tmp_path: Path, key: str) -> None:
    documents = clustered(300)
    save_index(make_index("ivf", documents, k=5)[0], tmp_path)
    write_head(tmp_path, {name: value for name, value in head_of(tmp_path).items() if name != key})
    with pytest.raises(RunError, match=rf"index\.json is not what hardneg writes .*{key}"):
        load_index(tmp_path, documents)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    """Links that lead in a circle, to a folder or to a device; deep nesting; a header that asks for too much memory."""
    documents = clustered(300)
    folder = tmp_path / "index"
    save_index(make_index("ivf", documents, k=5)[0], folder)
    path, good = folder / "order.npy", (folder / "order.npy").read_bytes()
    for target in (path, tmp_path, Path("/dev/zero"), tmp_path / "nothing"):
        path.unlink()
        path.symlink_to(target)
        with pytest.raises(RunError, match=r"order\.npy is missing or damaged"):
            load_index(folder, documents)
    path.unlink()
    for shape in (
        b"(300000000000000,), }",
        b"(-3,), 'x': (1,), }",
        b"((3, 4), (5, 6)), }",
        b"(10**10**10,), }",
        b"(((((",
    ):
        header = good[:128].replace(b"(300,), }" + b" " * (len(shape) - 9), shape.ljust(9))
        assert header != good[:128]
        path.write_bytes(header + good[128:])
        sign(folder)
        with pytest.raises(RunError, match=r"order\.npy"):
            load_index(folder, documents)
    (folder / "index.json").write_text("[" * 100_000)
    with pytest.raises(RunError, match=r"index\.json is"):
        load_index(folder, documents)


def graph_bytes(index: HNSWIndex, change: Callable[[faiss.IndexHNSWFlat], None], path: Path) -> bytes:
    """The file of a graph in which something was changed."""
    save_index(index, path)
    graph = faiss.read_index(str(path / "graph.faiss"))
    change(graph)
    faiss.write_index(graph, str(path / "graph.faiss"))
    return (path / "graph.faiss").read_bytes()


def with_vector(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[faiss.IndexHNSWFlat], None]:
    def apply(graph: faiss.IndexHNSWFlat) -> None:
        vector = getattr(graph.hnsw, name)
        faiss.copy_array_to_vector(np.ascontiguousarray(change(faiss.vector_to_array(vector))), vector)

    return apply


def at(place: int, value: int) -> Callable[[np.ndarray], np.ndarray]:
    def apply(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[place] = value
        return array

    return apply


def upper_link_to_a_low_document(graph: faiss.IndexHNSWFlat) -> None:
    """On level 1, a link to a document that is only on level 0: faiss would read links that belong to the next one."""
    hnsw = graph.hnsw
    levels, links = faiss.vector_to_array(hnsw.levels), faiss.vector_to_array(hnsw.neighbors)
    begin = int(faiss.vector_to_array(hnsw.offsets)[hnsw.entry_point])
    links[begin + int(faiss.vector_to_array(hnsw.cum_nneighbor_per_level)[1])] = int(np.flatnonzero(levels == 1)[0])
    faiss.copy_array_to_vector(links, hnsw.neighbors)


GRAPHS = {
    "link too high": (with_vector("neighbors", at(5, 300)), "a link leads to a document that there is not"),
    "link below -1": (with_vector("neighbors", at(5, -2)), "a link leads to a document that there is not"),
    "upper link": (upper_link_to_a_low_document, "not on its level"),
    "offset": (with_vector("offsets", at(7, 2**40)), "lists of links have the wrong lengths"),
    "fewer links": (with_vector("neighbors", lambda links: links[:-1]), "lists of links are out of range"),
    "fewer levels": (with_vector("levels", lambda levels: levels[:-1]), "does not hold the levels of 300"),
    "level 0": (with_vector("levels", at(3, 0)), "does not hold the levels"),
    "level 99": (with_vector("levels", at(3, 99)), "does not hold the levels"),
    "starts": (with_vector("cum_nneighbor_per_level", at(1, -7)), "its levels are out of order"),
    "entry": (lambda graph: setattr(graph.hnsw, "entry_point", 300), "its entry point"),
    "highest": (lambda graph: setattr(graph.hnsw, "max_level", 9), "its entry point"),
    "count": (lambda graph: setattr(graph, "ntotal", 299), "an index of 299 documents"),
    "dimension": (lambda graph: setattr(graph, "d", 23), "documents of 23 dimensions"),
    "metric": (lambda graph: setattr(graph, "metric_type", faiss.METRIC_L2), "another metric"),
}


@pytest.mark.parametrize(("change", "message"), GRAPHS.values(), ids=GRAPHS)
def test_a_graph_is_checked_before_faiss_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[faiss.IndexHNSWFlat], None], message: str
) -> None:
    documents = clustered(300)
    index = HNSWIndex(documents, links=4)
    graph_bytes(index, lambda graph: None, tmp_path)
    load_index(tmp_path, documents)
    graph_bytes(index, change, tmp_path)
    sign(tmp_path)
    monkeypatch.setattr(faiss, "read_index", lambda path: pytest.fail("handed to the native reader"))
    with pytest.raises(RunError, match=rf"graph\.faiss holds no graph of 300 documents.*{message}"):
        load_index(tmp_path, documents)


def test_every_cut_of_a_graph_is_noticed(tmp_path: Path) -> None:
    content = graph_bytes(HNSWIndex(clustered(40), links=2), lambda graph: None, tmp_path)
    check_graph_file(memoryview(content), 40, 24, squared=False)
    for length in range(len(content)):
        with pytest.raises(ValueError, match=r"it (ends too early|holds|is|does not)"):
            check_graph_file(memoryview(content[:length]), 40, 24, squared=False)
    with pytest.raises(ValueError, match="does not hold the vectors"):
        check_graph_file(memoryview(content + b"0"), 40, 24, squared=False)


def test_graphs_that_are_something_else(tmp_path: Path) -> None:
    documents = clustered(300)
    save_index(make_index("hnsw", documents, k=5)[0], tmp_path)
    flat = faiss.IndexFlatIP(24)
    flat.add(documents)
    small = faiss.IndexHNSWFlat(24, 8)
    small.add(documents[:9])
    astray = faiss.IndexHNSWFlat(24, 8)
    astray.add(documents)
    links = faiss.vector_to_array(astray.hnsw.neighbors)
    links[5] = 10**6
    faiss.copy_array_to_vector(links, astray.hnsw.neighbors)
    for other, message in (
        (flat, "no graph of 300 documents of 24 dimensions .*it holds b'IxFI'"),
        (small, "no graph of 300 documents of 24 dimensions .*of 9 documents"),
        (astray, "no graph"),
    ):
        faiss.write_index(other, str(tmp_path / "graph.faiss"))
        sign(tmp_path)
        with pytest.raises(RunError, match=message):
            load_index(tmp_path, documents)
    for content in (b"0123456789" * 10, b""):
        (tmp_path / "graph.faiss").write_bytes(content)
        sign(tmp_path)
        with pytest.raises(RunError, match="no graph of 300 documents"):
            load_index(tmp_path, documents)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "other-2"}, "schema 'other-2'"),
        ({"index": "tree"}, "does not describe an index"),
        ({"files": {"../../etc/passwd": "0"}}, "does not describe an index"),
        ({"settings": None}, "is not what hardneg writes"),
    ],
)
def test_foreign_descriptions(tmp_path: Path, change: dict[str, object], message: str) -> None:
    documents = clustered(100)
    with pytest.raises(RunError, match="does not exist"):
        load_index(tmp_path / "nowhere", documents)
    save_index(make_index("ivf", documents, k=5)[0], tmp_path)
    write_head(tmp_path, {**head_of(tmp_path), **change})
    with pytest.raises(RunError, match=message):
        load_index(tmp_path, documents)
