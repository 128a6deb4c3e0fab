"""A pass cut into tasks: the same bytes whatever the engine, the shards and the deaths of workers."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardneg import DataError, MineOptions, Pairs, RunError, UsageError, mine
from hardneg.mining.filters.base import Filter
from hardneg.storage.json_files import read_json, write_json
from hardneg.tasks import mine_with, plan_run, tasks_and_states, work
from hardneg.tasks.drive import News
from hardneg.tasks.engines import ProcessCrew
from hardneg.tasks.graph import Schedule, Task
from hardneg.tasks.plan import FILE, Plan, cut
from hardneg.tasks.records import Records
from hardneg.tasks.worker import Worker

from .conftest import run_here, unit, write_jsonl
from .test_mine import files

QUERIES, DOCUMENTS = 8300, 1200  # three parts of the run, so that there are several blocks


class Place:
    """A source with vectors in files, and the run that `mine` makes of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        rng = np.random.default_rng(0)
        documents = unit(rng.standard_normal((DOCUMENTS, 16)))
        positives = rng.integers(0, 900, QUERIES)
        queries = unit(documents[positives] + 0.1 * rng.standard_normal((QUERIES, 16)))
        self.pairs = Pairs.from_columns(
            [f"query {i}" for i in range(QUERIES)],
            [[f"doc {positives[i]}", f"doc {(positives[i] + 7) % 900}"][: 1 + i % 2] for i in range(QUERIES)],
            corpus=[f"doc {i}" for i in range(DOCUMENTS)],
        )
        np.save(folder / "q.npy", queries)
        np.save(folder / "d.npy", documents.astype(np.float16))
        self.options = MineOptions(
            query_embeddings=str(folder / "q.npy"), corpus_embeddings=str(folder / "d.npy"), depth=20, max_depth=100,
            filters=("margin:relative=0.45", "duplicate:near=0.97"), sampler="simans", seed=3,
        )  # fmt: skip
        self.run = mine(self.pairs, folder / "whole", self.options)
        self.files = files(folder / "whole")

    def out(self) -> Path:
        """Another run folder beside the vectors, whose place `run.json` tells."""
        self.count += 1
        return self.folder / f"run{self.count}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def planned(place: Place) -> Path:
    """A plan of two shards, of which nothing is done."""
    out = place.out()
    plan_run(place.pairs, out, place.options, shards=2)
    return out


def worker_process(run: Path, *more: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    code = "from hardneg_cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "work", str(run), *more], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )  # fmt: skip


@pytest.mark.parametrize("shards", [1, 2, pytest.param(7, marks=pytest.mark.slow)])
def test_the_bytes_are_those_of_mine(place: Place, shards: int) -> None:
    assert place.run.info["counts"]["widened"] > 1000  # three rounds
    out = place.out()
    run, losses = mine_with("local", place.pairs, out, place.options, shards=shards)
    assert files(out) == place.files
    assert run.info["environment"]["shards"] == shards
    assert losses.said() == []


@pytest.mark.slow
def test_processes_do_the_same(place: Place) -> None:
    out = place.out()
    seen: dict[str, int] = {}

    def progress(stage: str, total: int) -> Any:
        return lambda count: seen.update({stage: seen.get(stage, 0) + count})

    mine_with("processes:2", place.pairs, out, place.options, shards=3, progress=progress)
    assert files(out) == place.files
    assert seen["search"] == seen["write"] == QUERIES


def small(count: int = 2200) -> Pairs:
    rng = np.random.default_rng(1)
    words = [f"w{i}" for i in range(200)]
    topics = [" ".join(rng.choice(words, 4)) for _ in range(60)]
    return Pairs.from_columns(
        [f"{topics[i % 60]} {words[i % 200]} {i}" for i in range(count)],
        [f"{topics[i % 60]} {words[(3 * i) % 200]} answer {i}" for i in range(count)],
    )


@pytest.mark.slow
@pytest.mark.parametrize("lists", [False, True], ids=["exact", "lists"])
def test_encoders_guides_neighbors_and_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lists: bool) -> None:
    pairs = small()
    if lists:
        monkeypatch.setattr("hardneg.index.factory.AUTO_DOCUMENTS", 1000)
        monkeypatch.setattr("hardneg.index.factory.AUTO_QUERIES", 1000)
        monkeypatch.setattr("hardneg.tasks.plan.GRAPH_ROWS", 2048)
        monkeypatch.setattr("hardneg.tasks.neighbors._TOGETHER", 1024)
        monkeypatch.setattr("hardneg.false_negatives.shared_neighbors._BLOCK", 1024)
    filters = ("guide:hashed,margin=0.01", "shared-neighbors:max=0.8")
    options = MineOptions(depth=30, max_depth=60, filters=filters, index="ivf" if lists else "auto", negatives=5)
    whole = mine(pairs, tmp_path / "whole", options)
    assert {name for name, n in whole.info["counts"]["verdicts"].items() if n} >= {"shared-neighbors", "guide"}
    for shards in (1, 3):
        mine_with("local", pairs, tmp_path / f"{shards}", options, shards=shards)
        assert files(tmp_path / f"{shards}") == files(tmp_path / "whole")


@pytest.mark.parametrize("metric", [pytest.param("ip", marks=pytest.mark.slow), "l2"])
def test_lists_of_vectors_of_different_lengths(place: Place, tmp_path: Path, metric: str) -> None:
    rng = np.random.default_rng(5)
    documents = rng.standard_normal((DOCUMENTS, 16)).astype(np.float32) * rng.uniform(0.5, 2, (DOCUMENTS, 1)).astype(
        "f"
    )
    np.save(tmp_path / "d.npy", documents)
    options = dataclasses.replace(
        place.options, corpus_embeddings=str(tmp_path / "d.npy"), metric=metric, index="ivf", max_depth=80, filters=()
    )
    mine(place.pairs, tmp_path / "whole", options, force=True)
    mine_with("local", place.pairs, tmp_path / "run", options, shards=2, force=True)
    assert files(tmp_path / "run") == files(tmp_path / "whole")


@pytest.mark.slow
def test_several_workers_share_a_plan(place: Place, planned: Path) -> None:
    """Without any process that drives them: each takes what nobody else does."""
    workers = [worker_process(planned), worker_process(planned, "--wait", "60")]
    said = [worker.communicate(timeout=200)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    assert files(planned) == place.files
    did = [line.split()[0] for text in said for line in text.splitlines() if " in " in line]
    assert len(did) == len(set(did))


@pytest.mark.slow
def test_shares_of_a_job_array(place: Place, planned: Path) -> None:
    """One share alone waits for the others; both finish the run."""
    with pytest.raises(RunError, match=r"no task was finished for 0 seconds.*Start workers for them"):
        work(planned, share=(1, 2), wait=0.3)
    with pytest.raises(UsageError, match="3/2"):
        work(planned, share=(3, 2))
    other = worker_process(planned, "--shard", "2/2")
    work(planned, share=(1, 2), wait=100)
    assert other.wait(100) == 0
    assert files(planned) == place.files


SLOW_ENCODER = """
import os, pathlib, time
import numpy as np
class Slow:
    dimension = int(os.environ.get("DIMENSION", 8))
    def encode(self, texts, *, prompt=""):
        flag = pathlib.Path(__file__).with_name("flag")
        if os.environ.get("HANG") and not flag.exists():
            flag.write_text(str(os.getpid()))
            time.sleep(600)
        rows = [np.random.default_rng(abs(hash_of(text))).standard_normal(8) for text in texts]
        out = np.array(rows, np.float32)
        return out[:, :4] if os.environ.get("CUT") and len(texts) and "answer" in texts[0] else out
    def fingerprint(self):
        return os.environ.get("PRINT", "one")
def hash_of(text):
    import zlib
    return zlib.crc32(text.encode())
def make():
    return Slow()
"""


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MineOptions:
    """An encoder that hangs in the first process that encodes, if HANG is set; it writes its pid beside its code."""
    (tmp_path / "slow_encoder.py").write_text(SLOW_ENCODER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    sys.modules.pop("slow_encoder", None)
    return MineOptions(encoder="module:slow_encoder:make", depth=20)


def wait_for(path: Path) -> int:
    for _ in range(1200):
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def test_a_killed_worker_loses_nothing(slow: MineOptions, tmp_path: Path) -> None:
    """SIGKILL in the middle of a task: its claim is released, and another worker does it."""
    pairs = small(300)
    mine(pairs, tmp_path / "whole", slow)
    plan_run(pairs, tmp_path / "run", slow, shards=2)
    first = worker_process(tmp_path / "run", env={"HANG": "1"})
    assert wait_for(tmp_path / "flag") == first.pid
    states = dict(tasks_and_states(tmp_path / "run"))
    with pytest.raises(RunError, match="no task was finished"):  # the claim of a living worker is respected
        work(tmp_path / "run", wait=1)
    assert states["encode-00000-queries-00000"] == "ready"
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    work(tmp_path / "run")
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    assert work(tmp_path / "run") == 0  # it is finished
    done = run_here("work", tmp_path / "run", "--list")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'run'} is finished\n")


@pytest.mark.slow
def test_an_engine_replaces_a_killed_process_and_counts_it(
    slow: MineOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = small(300)
    mine(pairs, tmp_path / "whole", slow)
    monkeypatch.setenv("HANG", "1")
    before = ProcessCrew.news

    def news(self: ProcessCrew, timeout: float) -> list[News]:
        flag = tmp_path / "flag"
        if flag.exists() and not (tmp_path / "killed").exists() and flag.read_text():
            assert int(flag.read_text()) in self.pids
            (tmp_path / "killed").touch()
            os.kill(int(flag.read_text()), signal.SIGKILL)
        return before(self, timeout)

    monkeypatch.setattr(ProcessCrew, "news", news)
    _, losses = mine_with("processes:2", pairs, tmp_path / "run", slow)
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    (said,) = losses.said()
    assert re.fullmatch(r"1 workers died: encode-00000-\w+-00000: killed by signal 9 \(1\)", said)


def test_a_task_that_kills_every_worker_ends_the_pass(place: Place, planned: Path) -> None:
    from hardneg.progress import silent
    from hardneg.tasks.drive import drive

    class Deadly:
        size, replaced = 1, 0

        def send(self, worker: int, task: Task) -> None:
            self.task = task.name

        def news(self, timeout: float) -> list[News]:
            return [News(0, self.task, "died", message="killed by signal 9")]

        def replace(self, worker: int) -> None:
            self.replaced += 1

        def close(self) -> None:
            pass

    crew = Deadly()
    with pytest.raises(RunError, match=r"norms-00000 killed 3 workers \(killed by signal 9\)"):
        drive(planned, Plan.load(planned), crew, silent)
    assert crew.replaced == 2


def test_another_encoder_or_version_is_refused(
    slow: MineOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    plan_run(small(100), run, slow, shards=1)
    monkeypatch.setenv("PRINT", "two")
    with pytest.raises(RunError, match=r"module:slow_encoder:make' is another one here"):
        work(run)
    done = run_here("work", run)  # others do not try it again and again, but say it
    assert done.returncode == 1
    monkeypatch.setenv("PRINT", "one")
    Records(run, Plan.load(run).name).forget_failures()
    monkeypatch.setenv("CUT", "1")
    with pytest.raises(DataError, match=r"documents from row 0 on: .*returned shape \[100, 4\]"):
        mine_with("local", small(100), run, slow, resume=True)
    monkeypatch.delenv("CUT")
    value = json.loads((run / "progress" / FILE).read_text())
    del value["checksum"]
    write_json(run / "progress" / FILE, {**value, "version": "0.0.1"}, checksum=True)
    with pytest.raises(RunError, match=r"was written by hardneg 0\.0\.1"):
        work(run)


def test_inputs_that_changed_after_the_plan_are_refused(place: Place, planned: Path, tmp_path: Path) -> None:
    plan = Plan.load(planned)
    vectors = Path(plan.given["documents"].file)
    content = vectors.read_bytes()
    vectors.write_bytes(content[:-2] + b"\x00\x3c")
    try:
        with pytest.raises(RunError, match=r"d\.npy has changed since the plan was written"):
            work(planned)
    finally:
        vectors.write_bytes(content)
    texts = planned / "source" / "corpus.arrow"
    texts.write_bytes(texts.read_bytes() + b"x")
    with pytest.raises(RunError, match=r"corpus\.arrow has changed since the plan"):
        work(planned)
    texts.unlink()
    with pytest.raises(RunError, match=r"corpus\.arrow is missing"):
        work(planned)


CUT = pytest.param("cut", marks=pytest.mark.faults)  # told by the same checksum as what has changed


@pytest.mark.parametrize("how", [CUT, "changed", "removed", "no record"])
def test_damaged_results_are_made_again(place: Place, planned: Path, how: str) -> None:
    records = Records(planned, Plan.load(planned).name)
    worker = Worker(planned)
    schedule = Schedule(worker.plan)
    while (task := schedule.choose()) is not None and task.kind != "merge":
        worker.do(task)
        schedule.mark(task.name)
    name = "search-r0-00000-00001"
    assert name in records.done()
    path = records.path(name, "keys.npy")
    content = path.read_bytes()
    if how == "removed":
        path.unlink()
    elif how == "no record":
        (planned / "progress" / "tasks" / f"{name}.json").write_text("{}")
    else:
        path.write_bytes(content[:-8] if how == "cut" else content[:-8] + b"\x01" * 8)
    said: list[str] = []
    work(planned, report=said.append)
    assert any(name in line and "has to be done again" in line for line in said)
    assert files(planned) == place.files


def test_a_damaged_piece_of_vectors_is_encoded_again(slow: MineOptions, tmp_path: Path) -> None:
    pairs = small(300)
    mine(pairs, tmp_path / "whole", slow)
    run = tmp_path / "run"
    plan_run(pairs, run, slow, shards=2)
    for side in ("queries", "documents"):
        work(run, task=f"encode-00000-{side}-00000")
    largest = max((run / "progress" / "vectors").rglob("*.npy"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-16])
    said: list[str] = []
    work(run, report=said.append)
    assert any("missing or damaged" in line for line in said)
    assert files(run) == files(tmp_path / "whole")


HOLD = """
import sys, time
from pathlib import Path
from hardneg.storage.folders import claimed
with claimed(Path(sys.argv[1])) as ours:
    Path(sys.argv[2]).write_text("1")
    time.sleep(100)
"""


def test_a_claim_that_somebody_holds_for_ever_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardneg.tasks.drive._STUCK", 1.0)
    pairs, options, run = small(60), MineOptions(depth=10), tmp_path / "run"
    plan_run(pairs, run, options, shards=1)
    claim = run / "progress" / "claims" / "encode-00000-queries-00000"
    claim.parent.mkdir(parents=True, exist_ok=True)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(claim), str(tmp_path / "flag")])
    try:
        wait_for(tmp_path / "flag")
        with pytest.raises(RunError, match="another process has held the task encode-00000-queries-00000 for 1 s"):
            mine_with("local", pairs, run, options, resume=True)
    finally:
        holder.kill()
        holder.wait()
    mine_with("local", pairs, run, options, resume=True)
    mine(pairs, tmp_path / "whole", options)
    assert files(run) == files(tmp_path / "whole")


@pytest.fixture(scope="module")
def nearly(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run by `mine`, and one of the same options of which all but `finish` is done."""
    folder = tmp_path_factory.mktemp("nearly")
    pairs, options = small(60), MineOptions(depth=10)
    mine(pairs, folder / "whole", options)
    plan_run(pairs, folder / "run", options, shards=2)
    worker = Worker(folder / "run")
    schedule = Schedule(worker.plan)
    while (task := schedule.choose()) is not None and task.kind != "finish":
        worker.do(task)
        schedule.mark(task.name)
    return folder / "whole", folder / "run"


@pytest.mark.parametrize("how", [CUT, "changed", "removed"])
@pytest.mark.parametrize(
    "name",
    ["candidates/part-00000.parquet", "progress/negatives-00000.parquet", "progress/part-00000.json",
     "embeddings/documents-*/vectors.npy", "embeddings/queries-*/manifest.json"],
)  # fmt: skip
def test_what_stays_in_the_run_is_checked_before_it_is_sealed(
    nearly: tuple[Path, Path], tmp_path: Path, name: str, how: str
) -> None:
    whole, before = nearly
    run = tmp_path / "run"
    shutil.copytree(before, run)
    (path,) = run.glob(name)
    content = path.read_bytes()
    if how == "removed":
        path.unlink()
    else:
        middle = len(content) // 2
        path.write_bytes(
            content[:middle]
            if how == "cut"
            else content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        )
    said: list[str] = []
    work(run, report=said.append)
    assert any("has to be done again" in line for line in said)
    assert files(run) == files(whole)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"shards": [0, 100, 200]}, "shards do not go from 0 to"),
        ({"shards": []}, "shards do not go"),
        ({"shards": [0, 40, 20, 60]}, "shards do not go"),
        ({"blocks": [0, 200]}, "blocks do not go"),
        ({"documents": 10**18, "shards": [0, 10**18]}, "documents in 1 shards"),
        ({"documents": 10**6, "shards": [0, 10**6]}, "its plan is of"),
        ({"depths": []}, "no search"),
        ({"indexes": {}}, "no search"),
        ({"config": {}}, "config lacks metric"),
        ({"models": []}, "no encoder and no vectors"),
        ({"keys": "../../../../elsewhere"}, "a key of vectors is no hash"),
    ],
    ids=str,
)
def test_a_plan_of_somebody_else_is_looked_at(
    nearly: tuple[Path, Path], tmp_path: Path, edit: dict[str, Any], message: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(nearly[1], run)
    path = run / "progress" / "plan.json"
    value = read_json(path, checksum=True)
    if "keys" in edit:
        value["models"][0]["keys"]["queries"] = edit["keys"]
    else:
        value |= edit
    write_json(path, {name: entry for name, entry in value.items() if name != "checksum"}, checksum=True)
    with pytest.raises(RunError, match=message):
        work(run)
    assert not (run / "run.json").exists()


def test_one_task_at_a_time(planned: Path) -> None:
    with pytest.raises(UsageError, match="has no task 'nothing'"):
        work(planned, task="nothing")
    with pytest.raises(RunError, match=r"needs search-r0-00000-00000, .*do these first"):
        work(planned, task="merge-r0-00000")
    assert work(planned, task="norms-00000") == 1
    assert work(planned, task="norms-00000") == 0
    done = run_here("work", planned, "--list", "--json")
    assert json.loads(done.stdout)["states"]["done"] == 1
    listed = run_here("work", planned, "--list").stdout.splitlines()
    assert listed[0].split() == ["done", "norms-00000"]
    assert listed[-1].split() == ["waits", "finish"]
    record = json.loads((planned / "progress" / "tasks" / "norms-00000.json").read_text())
    assert record["task"] == "norms-00000"
    assert [len(digest) for digest in record["files"].values()] == [64]


class Own(Filter):
    name = "own"

    def keep(self, candidates: Any, context: Any, alive: Any) -> Any:
        return alive


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"index": "hnsw"}, "a graph .* cannot be sharded"),
        ({"candidates": ("dense", "given")}, "only the candidates 'dense'"),
        ({"filters": (Own(),)}, "the filter .*Own.* is an object of this process"),
    ],
)
def test_what_a_plan_cannot_hold_is_said_before_anything_is_written(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    for call in (
        lambda: plan_run(small(50), tmp_path / "run", MineOptions(**changed), shards=2),
        lambda: mine_with("local", small(50), tmp_path / "run", MineOptions(**changed)),
    ):
        with pytest.raises(UsageError, match=message):
            call()
    assert not (tmp_path / "run").exists()


def test_vectors_of_different_dimensions_and_ids_in_two_files(tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", np.ones((50, 4), np.float32))
    np.save(tmp_path / "d.npy", np.ones((50, 8), np.float32))
    given = MineOptions(query_embeddings=str(tmp_path / "q.npy"), corpus_embeddings=str(tmp_path / "d.npy"))
    with pytest.raises(DataError, match="query vectors have 4 dimensions, corpus vectors 8"):
        plan_run(small(50), tmp_path / "run", given, shards=2)
    write_jsonl(tmp_path / "pairs.jsonl", [{"query": "a", "positive": "b"}])
    write_jsonl(tmp_path / "one.jsonl", [{"_id": "x", "text": "one"}])
    write_jsonl(tmp_path / "two.jsonl", [{"_id": "x", "text": "another"}])
    done = run_here(
        "mine", tmp_path / "pairs.jsonl", "--corpus", tmp_path / "one.jsonl", "--corpus", tmp_path / "two.jsonl", "--out",
        tmp_path / "run", "--plan", "2",
    )  # fmt: skip
    assert done.returncode == 1
    assert "'x'" in done.stderr


def test_the_commands(tmp_path: Path) -> None:
    rows = [{"query": f"question {i} about w{i % 7}", "positive": f"answer {i} on w{i % 7}"} for i in range(60)]
    source = write_jsonl(tmp_path / "pairs.jsonl", rows)
    assert run_here("mine", source, "--out", tmp_path / "whole").returncode == 0
    planned = run_here("mine", source, "--out", tmp_path / "run", "--plan", "3")
    assert planned.returncode == 0, planned.stderr
    assert f"hardneg work {tmp_path / 'run'}" in " ".join(planned.stderr.split())
    again = run_here("mine", source, "--out", tmp_path / "run", "--plan", "3")
    assert again.returncode == 1
    worked = run_here("work", tmp_path / "run", "--json")
    assert worked.returncode == 0, worked.stderr
    assert json.loads(worked.stdout)["done"] > 10
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    engine = run_here(
        "mine", source, "--out", tmp_path / "run", "--engine", "local", "--shards", "2", "--overwrite", "--json"
    )
    assert engine.returncode == 0, engine.stderr
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    for wrong in (
        ("--engine", "locl"), ("--engine", "processes:0"), ("--plan", "2", "--engine", "local"), ("--shards", "2"),
        ("--plan", "2", "--overwrite"), ("--engine", "local", "--devices", "cpu:2"),
    ):  # fmt: skip
        assert run_here("mine", source, "--out", tmp_path / "other", *wrong).returncode == 2, wrong
    assert run_here("work", tmp_path / "nowhere").returncode == 1
    assert run_here("work", tmp_path / "run", "--shard", "0/4").returncode == 2


def test_a_planned_run_goes_on_with_an_engine_or_without(place: Place, planned: Path) -> None:
    work(planned, task="norms-00001")
    with pytest.raises(RunError, match="planned with 2 shards, not 5"):
        mine_with("local", place.pairs, planned, place.options, shards=5, resume=True)
    mine_with("local", place.pairs, planned, place.options, resume=True)
    assert files(planned) == place.files


def test_a_schedule_knows_what_is_ready(planned: Path) -> None:
    schedule = Schedule(Plan.load(planned))
    assert {schedule.tasks[name].kind for name in schedule.ready} == {"norms"}
    order = list(schedule.tasks)
    for name in order:
        assert name in schedule.ready, name
        schedule.mark(name)
    assert schedule.finished
    schedule.unmark("norms-00000")
    assert schedule.ready == {"norms-00000"}
    assert schedule.needed("search-r0-00001-00000") == ["norms-00000"]
    assert cut(20, 3, 8) == [0, 8, 16, 20]


def test_rounds_in_which_no_query_is_short(tmp_path: Path) -> None:
    """Filters that look at neighbors are not asked about a block without queries."""
    pairs, options = small(150), MineOptions(depth=20, filters=("shared-neighbors:max=0.9",))
    mine(pairs, tmp_path / "whole", options)
    mine_with("local", pairs, tmp_path / "cut", options, shards=2)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
