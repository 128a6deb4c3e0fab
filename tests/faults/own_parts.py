"""What mining wrote and reads again besides runs: indexes, vectors, plans and their records; limits of findings, answers of judges."""

from __future__ import annotations

import json
from functools import cache
from hashlib import sha256
from pathlib import Path
from random import Random

import numpy as np

from hardneg.data.pairs import Pairs
from hardneg.diagnostics.findings.thresholds import Thresholds
from hardneg.errors import RunError
from hardneg.index.factory import make_index
from hardneg.index.files import load_index, save_index
from hardneg.judges.answers import KeptAnswers
from hardneg.mining.options import MineOptions
from hardneg.storage.vectors import EmbeddingStore
from hardneg.tasks.graph import Schedule
from hardneg.tasks.mine import plan_run
from hardneg.tasks.plan import SIDES, Plan, check_source
from hardneg.tasks.records import Damaged, Outcome, Records
from tests.faults.damage import Files, changed_json, lay, made_once, one_changed, sealed_json
from tests.faults.kind import Kind, Typed
from tests.faults.mutators import damaged
from tests.faults.sources import write

VECTORS = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)

PAIRS = Pairs.from_columns(
    [f"query {i}" for i in range(24)], [f"text {i}" for i in range(24)], corpus=[f"more {i}" for i in range(8)]
)


# Indexes.


@cache
def _index_files(kind: str) -> Files:
    return made_once(lambda folder: save_index(make_index(kind, VECTORS, k=5, recall=0.9)[0], folder))


def make_index_folder(folder: Path, rng: Random) -> None:
    lay(folder, one_changed(_index_files(rng.choice(("exact", "ivf", "ivf", "hnsw", "hnsw"))), rng, "index.json"))


def read_index(folder: Path) -> None:
    found = load_index(folder, VECTORS, threads=1).search(VECTORS[:4], 5)
    assert ((found.documents >= -1) & (found.documents < len(VECTORS))).all()
    assert not np.isnan(found.scores).any()


# Vectors on disk.


@cache
def _vector_files(finished: bool) -> Files:
    def make(folder: Path) -> None:
        store = EmbeddingStore(folder, "k", len(VECTORS), VECTORS.shape[1])
        if finished:
            store.fill(lambda start, stop: VECTORS[start:stop], lambda rows: None)
        else:
            store._begin()
            store._write(0, VECTORS.astype(np.float16))

    return made_once(make)


def make_vectors(folder: Path, rng: Random) -> None:
    files = dict(_vector_files(rng.random() < 0.6))
    name = rng.choice(sorted(name for name, data in files.items() if data))
    if name.endswith(".npy"):
        files[name] = damaged(files[name], rng)
    elif name == "manifest.json":
        data = changed_json(files[name], rng)
        files[name] = sealed_json(data) if rng.random() < 0.8 else data
    else:
        lines = files[name].splitlines()
        at = rng.randrange(len(lines))
        lines[at] = changed_json(lines[at], rng) if rng.random() < 0.8 else damaged(lines[at], rng)
        files[name] = b"\n".join(lines) + b"\n"
    lay(folder, files)


def read_vectors(folder: Path) -> None:
    """Go on with vectors that were begun, or open those that are finished: both of them where both can be."""
    if (folder / "manifest.json").exists():
        store = EmbeddingStore.at(folder)
        if store.complete:
            assert np.asarray(store.open()).shape == (store.rows, store.dimension)
    store = EmbeddingStore(folder, "k", len(VECTORS), VECTORS.shape[1])
    store.fill(lambda start, stop: VECTORS[start:stop], lambda rows: None)
    assert np.array_equal(np.asarray(store.open()), VECTORS.astype(np.float16))


# Plans, and records of their tasks.


@cache
def _plan_files() -> Files:
    def make(folder: Path) -> None:
        np.save(folder / "d.npy", VECTORS[:32])
        np.save(folder / "q.npy", VECTORS[:24])
        given = {"query_embeddings": str(folder / "q.npy"), "corpus_embeddings": str(folder / "d.npy")}
        options = MineOptions(depth=8, negatives=2, index="ivf", filters=("shared-neighbors:max=0.9",), **given)  # type: ignore[arg-type]
        plan_run(PAIRS, folder / "run", options, shards=2, force=True)
        path = folder / "run" / "progress" / "plan.json"
        value = json.loads(path.read_bytes())
        for side, each in value["given"].items():
            each["file"] = f"/{side}.npy"  # not where it is made, which is another place each time
        path.write_bytes(sealed_json(json.dumps(value).encode()))
        plan = Plan.load(folder / "run")
        records = Records(folder / "run", plan.name)
        files = records.save("search-a", {"scores": VECTORS[:3]})
        records.write("search-a", ["b"], Outcome(files, {"n": 3}), 0.0)
        records.fail("search-b", RunError("no"))

    return {name.removeprefix("run/"): data for name, data in made_once(make).items() if name.startswith("run/")}


def make_plan(folder: Path, rng: Random) -> None:
    files = dict(_plan_files())
    names = [name for name in sorted(files) if name.startswith("progress/") and name.endswith(".json")]
    name = rng.choice(["progress/plan.json"] * 4 + names)
    data = changed_json(files[name], rng) if rng.random() < 0.95 else damaged(files[name], rng)
    files[name] = sealed_json(data) if rng.random() < 0.9 else data
    lay(folder, files)


def read_plan(folder: Path) -> None:
    plan = Plan.load(folder)
    check_source(folder)
    for side in SIDES:
        plan.pieces_of(side, 0, plan.count(side))
    assert plan.dimension > 0
    assert plan.metric
    graph = Schedule(plan)
    task = graph.choose()
    assert task is not None
    graph.set_done({task.name})
    records = Records(folder, json.loads(_plan_files()["progress/tasks/search-a.json"])["plan"])
    for task_name in sorted(records.done()):
        try:
            assert records.result(task_name)["n"] is not None
            records.check_all(task_name)
            assert records.array(task_name, "scores").shape[0] >= 0
        except (Damaged, KeyError):
            continue
    assert records.failure() is None or len(records.failure() or ()) == 3


# Limits of findings, and answers of a judge.


def make_limits(folder: Path, rng: Random) -> None:
    data = json.dumps({"hub": 0.2, "masked": 3, "teaching": 0.5}).encode()
    write(folder / "limits.json", changed_json(data, rng) if rng.random() < 0.8 else damaged(data, rng))
    keys = [sha256(b"%d" % i).hexdigest()[:40] for i in range(3)]
    lines = [json.dumps({"pair": key, "grade": i}).encode() for i, key in enumerate(keys)]
    at = rng.randrange(len(lines))
    lines[at] = changed_json(lines[at], rng) if rng.random() < 0.8 else damaged(lines[at], rng)
    kept = KeptAnswers(folder, {"judge": "x"})
    write(kept.path, b"\n".join(lines))


def read_limits(folder: Path) -> None:
    kept = KeptAnswers(folder, {"judge": "x"})
    with kept.alone():
        kept.put({kept.key("q", "d"): 3})
    assert KeptAnswers(folder, {"judge": "x"}).get(kept.key("q", "d")) == 3
    assert Thresholds.load(folder / "limits.json")


KINDS: dict[str, Kind | Typed] = {
    "index": Kind(make_index_folder, read_index, risky=True),
    "vectors": Kind(make_vectors, read_vectors, risky=True),
    "plan": Kind(make_plan, read_plan, risky=True),
    "limits and answers": Kind(make_limits, read_limits),
}
