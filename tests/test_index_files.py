"""Saved indexes: the same answers after loading; nothing damaged, foreign or made up is used."""

from __future__ import annotations

import json
from pathlib import Path

import faiss
import numpy as np
import pytest

from hardneg.errors import RunError
from hardneg.index.factory import make_index
from hardneg.index.files import _links_stay_inside, load_index, save_index
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


def sign(folder: Path) -> None:
    """What somebody could do who makes up an index: right checksums around wrong content."""
    head = json.loads((folder / "index.json").read_text())
    head["files"] = {file: sha256_file(folder / file) for file in head["files"]}
    (folder / "index.json").write_text(json.dumps(head))


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
        ("centroids.npy", good["centroids.npy"] * np.float32(np.nan)),
    ]
    for file, array in bad:
        for name, value in good.items():
            np.save(tmp_path / name, value)
        np.save(tmp_path / file, array)
        sign(tmp_path)
        with pytest.raises(RunError, match="do not fit 300 documents of 24 dimensions"):
            load_index(tmp_path, documents)
    head = json.loads((tmp_path / "index.json").read_text())
    for name, value in good.items():
        np.save(tmp_path / name, value)
    (tmp_path / "index.json").write_text(json.dumps({**head, "settings": {"gap": 0.1, "map": "taxi"}}))
    sign(tmp_path)
    with pytest.raises(RunError, match="do not fit"):
        load_index(tmp_path, documents)
    (tmp_path / "order.npy").write_bytes(b"no array")
    sign(tmp_path)
    with pytest.raises(RunError, match=r"order\.npy is no array"):
        load_index(tmp_path, documents)


@pytest.mark.parametrize(("kind", "key"), [("ivf", "gap"), ("hnsw", "reach")])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, "x", None, True, [1]])
def test_settings_are_checked(tmp_path: Path, kind: str, key: str, value: object) -> None:
    """A NaN margin once let a search run forever."""
    documents = clustered(300)
    save_index(make_index(kind, documents, k=5)[0], tmp_path)
    head = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**head, "settings": {**head["settings"], key: value}}))
    with pytest.raises(RunError, match=f"the setting '{key}' is"):
        load_index(tmp_path, documents)


@pytest.mark.parametrize("change", [{"index": ["ivf"]}, {"index": None}, {"metric": "taxi"}, {"metric": ["l2"]}])
def test_a_head_that_describes_no_index(tmp_path: Path, change: dict[str, object]) -> None:
    documents = clustered(300)
    save_index(make_index("ivf", documents, k=5)[0], tmp_path)
    head = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**head, **change}))
    with pytest.raises(RunError, match="does not describe an index"):
        load_index(tmp_path, documents)


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
        (flat, "no graph of 300 documents of 24 dimensions"),
        (small, "no graph of 300 documents of 24 dimensions"),
        (astray, "no graph"),  # newer versions of faiss see it themselves
    ):
        faiss.write_index(other, str(tmp_path / "graph.faiss"))
        sign(tmp_path)
        with pytest.raises(RunError, match=message):
            load_index(tmp_path, documents)
    assert not _links_stay_inside(astray)
    assert _links_stay_inside(small)
    (tmp_path / "graph.faiss").write_bytes(b"0123456789" * 10)
    sign(tmp_path)
    with pytest.raises(RunError, match="no graph that faiss can read"):
        load_index(tmp_path, documents)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "other-2"}, "schema 'other-2'"),
        ({"index": "tree"}, "does not describe an index"),
        ({"files": {"../../etc/passwd": "0"}}, "does not describe an index"),
        ({"settings": None}, "does not describe an index"),
    ],
)
def test_foreign_descriptions(tmp_path: Path, change: dict[str, object], message: str) -> None:
    documents = clustered(100)
    with pytest.raises(RunError, match="does not exist"):
        load_index(tmp_path / "nowhere", documents)
    save_index(make_index("ivf", documents, k=5)[0], tmp_path)
    head = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**head, **change}))
    with pytest.raises(RunError, match=message):
        load_index(tmp_path, documents)
