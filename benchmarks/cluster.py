"""A pass over many machines: the same bytes, the speed-up here, and a simulation of the task graph for corpora that do not fit here.

same      FOLDER or builtin:NAME: the run of `hardneg mine`, and of each engine with 1, 2 and 7 shards, compared byte for byte.
measure   seconds with one and two processes on this machine, and what the simulation says for the same work.
simulate  machines, memory, bytes moved and hours for 10M to 10B documents, with stragglers and failures.

The simulation hands out the tasks of a real plan (`hardneg.tasks.graph.Schedule`) to workers whose tasks take as long as rates say.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import tempfile
import time
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, versions

from hardneg import MineOptions, Pairs, ReadOptions, mine
from hardneg.hashing import mix
from hardneg.mining.parts import PART_ROWS
from hardneg.mining.run_folder import VOLATILE
from hardneg.storage.files import sha256_file
from hardneg.tasks import mine_with
from hardneg.tasks.graph import Schedule, Task
from hardneg.tasks.plan import BLOCK_PARTS, Given, Model, Plan, SearchIndex, cut


@dataclass(frozen=True)
class Rates:
    """What one worker does in a second.

    Attributes:
        encode: texts.
        products: multiplications and additions of a search, 2 n N d in all.
        read, write: bytes, from and to the shared file system.
        judge: queries, filtered and sampled.
        task: seconds that a task takes besides.
        start: seconds until a worker is ready.
        shared: bytes a second that the file system gives all workers together.
    """

    encode: float = 2000.0
    products: float = 2.0e12
    read: float = 1.0e9
    write: float = 1.0e9
    judge: float = 20000.0
    task: float = 0.5
    start: float = 30.0
    shared: float = 50e9


@dataclass
class Cluster:
    """Workers, and what goes wrong with them.

    Attributes:
        workers: their number.
        mtbf: mean hours until a worker dies, which is then started anew.
        slow, factor: share of tasks that are slow, and how many times longer these take.
    """

    workers: int
    mtbf: float = math.inf
    slow: float = 0.0
    factor: float = 4.0


@dataclass
class Told:
    """What a simulation found: hours, by kind of task; tasks that were lost with their workers; bytes read and written."""

    hours: float = 0.0
    busy: dict[str, float] = field(default_factory=dict)
    lost: int = 0
    read: float = 0.0
    written: float = 0.0
    tasks: int = 0


def plan_of(documents: int, queries: int, dimension: int, shards: int, depth: int = 100, given: bool = False) -> Plan:
    """A plan of this size, without any data."""
    parts = -(-queries // PART_ROWS)
    blocks = cut(queries, max(-(-parts // BLOCK_PARTS), min(parts, shards)), PART_ROWS)
    bounds = cut(documents, shards)
    both = {"queries": queries, "documents": documents}
    vectors = {side: Given("", [0, n], [""], dimension, "float16") for side, n in both.items()} if given else {}
    models = [] if given else [Model("st:model", "", dimension, {}, {}, None)]
    config = {"metric": "cosine", "precision": "float16"}
    index = {"main": SearchIndex("exact", depth, 1.0, 0, "queries")}
    return Plan(config, {}, queries, documents, bounds, blocks, models, vectors, [depth, 4 * depth], 0, index, {})


def work_of(plan: Plan, task: Task, rates: Rates, deeper: float) -> tuple[float, float, float]:
    """(seconds, bytes read, bytes written) of a task. `deeper`: the share of queries that need the second round."""
    width, depth = 2 * plan.dimension, plan.depths[0]
    seconds = read = written = 0.0
    if task.kind == "encode":
        bounds = plan.pieces(task.words[0])
        rows = bounds[task.numbers[1] + 1] - bounds[task.numbers[1]]
        seconds, written = rows / rates.encode, rows * width
    elif task.kind == "norms":
        start, stop = plan.shard(task.numbers[0])
        read, written = (stop - start) * width, 4 * (stop - start)
    elif task.kind == "search":
        (i, j), first = task.numbers, task.words[0] == "r0"
        queries, documents = np.diff(plan.block(i))[0] * (1 if first else deeper), np.diff(plan.shard(j))[0]
        if queries:
            seconds = 2.0 * queries * documents * plan.dimension / rates.products
            read, written = documents * width + queries * width, queries * depth * (8 if first else 32)
    elif task.kind == "merge":
        queries = np.diff(plan.block(task.numbers[0]))[0] * (1 if task.words[0] == "r0" else deeper)
        read, written = queries * depth * 8 * plan.shard_count, queries * depth * 8
    elif task.kind in ("judge", "write"):
        queries = np.diff(plan.block(task.numbers[0]))[0]
        seconds, read, written = queries / rates.judge, queries * depth * 9, queries * depth * 12
    elif task.kind == "store":
        read = written = plan.count(task.words[0]) * width
    elif task.kind == "finish":
        read = written = plan.queries * 200
    return seconds + rates.task + read / rates.read + written / rates.write, read, written


def simulate(plan: Plan, cluster: Cluster, rates: Rates, deeper: float = 0.02, seed: int = 0) -> Told:
    """Hand out the tasks of a plan to workers that are slow at times and die at times."""
    schedule, told, rng = Schedule(plan), Told(), np.random.default_rng(seed)
    told.tasks = len(schedule.tasks)
    share = rates.shared / cluster.workers
    rates = replace(rates, read=min(rates.read, share), write=min(rates.write, share))
    free = [(rates.start, worker, -1) for worker in range(cluster.workers)]  # when, who, the shard that it has open
    heapq.heapify(free)
    running: list[tuple[float, int, str, int, bool]] = []
    doing: set[str] = set()
    now = 0.0
    while not schedule.finished:
        while free:
            at, worker, shard = free[0]
            if running and at > running[0][0]:
                break
            task = schedule.choose(shard, doing)
            if task is None:
                break
            heapq.heappop(free)
            seconds, read, written = work_of(plan, task, rates, deeper)
            if task.shard == shard and task.kind == "search":  # its pages are in memory already
                seconds -= min(read / rates.read, seconds / 2)
                read = 0.0
            seconds *= cluster.factor if _chance(seed, task.name, worker) < cluster.slow else 1.0
            begin = max(now, at)
            death = rng.exponential(cluster.mtbf * 3600) if math.isfinite(cluster.mtbf) else math.inf
            dies = death < seconds
            heapq.heappush(running, (begin + min(death, seconds), worker, task.name, max(task.shard, shard), dies))
            doing.add(task.name)
            told.busy[task.kind] = told.busy.get(task.kind, 0.0) + min(death, seconds) / 3600
            told.read, told.written = told.read + read, told.written + written
        if not running:
            now = free[0][0]
            continue
        now, worker, name, shard, dies = heapq.heappop(running)
        doing.discard(name)
        if dies:
            told.lost += 1
            heapq.heappush(free, (now + rates.start, worker, -1))
        else:
            schedule.mark(name)
            heapq.heappush(free, (now, worker, shard))
    told.hours = now / 3600
    return told


def _chance(seed: int, task: str, worker: int) -> float:
    """A number from 0 to 1 that depends on these alone."""
    bits = mix(np.array([zlib.crc32(f"{seed} {task} {worker}".encode())], np.uint64))
    return float(bits[0]) / 2.0**64


def files(folder: Path) -> dict[str, str]:
    found = {p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    info = json.loads((folder / "run.json").read_text())
    found["run.json"] = json.dumps({k: v for k, v in info.items() if k not in VOLATILE}, sort_keys=True)
    return found


def same(source: str, engines: list[str], encoder: str, splits: str) -> None:
    print(machine(), versions("hardneg", "torch", "ray"), sep="\n")
    options = MineOptions(encoder=encoder, filters=("margin:relative=0.05",), read=ReadOptions(split=splits))
    with tempfile.TemporaryDirectory() as place:
        start = time.perf_counter()
        run = mine(source, Path(place) / "whole", options)
        print(f"mine: {time.perf_counter() - start:.1f} s, {run.info['counts']['widened']:,} queries searched deeper")
        expected = files(Path(place) / "whole")
        for engine in engines:
            for shards in (1, 2, 7):
                out = Path(place) / f"{engine.replace(':', '')}-{shards}"
                start = time.perf_counter()
                _, losses = mine_with(engine, source, out, options, shards=shards)
                differ = [name for name, value in files(out).items() if expected.get(name) != value]
                differ += [name for name in expected if not (out / name).exists()]
                seconds = time.perf_counter() - start
                print(f"{engine}, {shards} shards: {differ or 'the same bytes'}, {seconds:.1f} s {losses.said() or ''}")


def measure(documents: int, queries: int, dimension: int, shards: int, repeat: int) -> None:
    print(machine(), versions("hardneg", "torch", "numpy"), sep="\n")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        vectors = rng.standard_normal((documents, dimension), np.float32)
        np.save(folder / "d.npy", vectors.astype(np.float16))
        np.save(
            folder / "q.npy",
            (vectors[:queries] + rng.standard_normal((queries, dimension), np.float32)).astype(np.float16),
        )
        pairs = Pairs.from_columns(
            [f"q{i}" for i in range(queries)],
            [f"d{i}" for i in range(queries)],
            corpus=[f"d{i}" for i in range(documents)],
        )
        options = MineOptions(
            query_embeddings=str(folder / "q.npy"), corpus_embeddings=str(folder / "d.npy"), index="exact"
        )
        seconds: dict[str, list[float]] = {}
        infos: dict[str, dict[str, Any]] = {}
        for turn in range(repeat):
            for name in ("mine", "processes:1", "processes:2"):
                out = folder / f"{name.replace(':', '')}-{turn}"
                start = time.perf_counter()
                if name == "mine":
                    run = mine(pairs, out, options, threads=1)
                else:
                    run, _ = mine_with(name, pairs, out, options, shards=shards, threads=1)
                seconds.setdefault(name, []).append(time.perf_counter() - start)
                infos[name] = run.info
        for name, found in seconds.items():
            print(f"{name}: {np.median(found):.1f} s ({min(found):.1f}-{max(found):.1f})", infos[name]["timings"])
        one, two = (float(np.median(seconds[f"processes:{n}"])) for n in (1, 2))
        alone = float(np.median(seconds["mine"]))
        print(f"speed-up with two processes: {one / two:.2f}; over mine with one thread: {alone / two:.2f}")
        timings, plan = infos["processes:1"]["timings"], plan_of(documents, queries, dimension, shards, given=True)
        tasks = len(Schedule(plan).tasks)
        busy = sum(timings.get(kind, 0.0) for kind in ("norms", "search", "merge", "judge", "write"))
        products = 2.0 * documents * queries * dimension / max(timings["search"], 1e-9)
        rates = Rates(
            products=products, read=1e12, write=1e12, judge=2.0 * queries / (timings["judge"] + timings["write"]),
            task=timings["merge"] / tasks, start=0.0,
        )  # fmt: skip
        fixed = one - busy
        for workers in (1, 2):
            told = simulate(plan, Cluster(workers), rates, deeper=0.0)
            measured = (one, two)[workers - 1]
            print(
                f"simulated, {workers} processes: {told.hours * 3600 + fixed:.1f} s, measured {measured:.1f} s, of which plan and "
                f"start {fixed:.1f} s"
            )


SCENARIOS = (  # documents, queries, shards, workers
    (10_000_000, 1_000_000, 16, 8),
    (100_000_000, 10_000_000, 64, 32),
    (1_000_000_000, 10_000_000, 128, 128),
    (10_000_000_000, 1_000_000, 512, 512),
)


def table(dimension: int, rates: Rates, only: list[int]) -> None:
    print(f"{dimension} dimensions in float16; a worker: {rates}")
    print(
        "| documents | queries | workers | tasks | vectors | ids, memory a worker | read | written | hours, ideal | hours, with "
        "stragglers and deaths | tasks lost | slowest kinds, worker hours |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for documents, queries, shards, workers in SCENARIOS:
        if only and documents not in only:
            continue
        plan = plan_of(documents, queries, dimension, shards)
        ideal = simulate(plan, Cluster(workers), rates)
        real = simulate(plan, Cluster(workers, mtbf=200.0, slow=0.05), rates)
        vectors = (documents + queries) * dimension * 2
        ids = documents * (8 + 12 + 8 * 3 + 8)  # offsets and bytes of ids, three keys, row numbers
        slowest = ", ".join(
            f"{kind} {hours:,.1f}" for kind, hours in sorted(ideal.busy.items(), key=lambda e: -e[1])[:3]
        )
        print(
            f"| {documents:,} | {queries:,} | {workers} | {ideal.tasks:,} | {vectors / 1e12:,.2f} TB | {ids / 1e9:,.1f} GB | "
            f"{ideal.read / 1e12:,.1f} TB | {ideal.written / 1e12:,.1f} TB | {ideal.hours:,.1f} | {real.hours:,.1f} | {real.lost} | "
            f"{slowest} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    one = commands.add_parser("same")
    one.add_argument("source")
    one.add_argument("--engines", nargs="+", default=["local", "processes:2", "ray:2"])
    one.add_argument("--encoder", default="hashed")
    one.add_argument("--split", default="train")
    two = commands.add_parser("measure")
    for name, value in (("documents", 150_000), ("queries", 65_536), ("dimension", 256), ("shards", 4), ("repeat", 3)):
        two.add_argument(f"--{name}", type=int, default=value)
    three = commands.add_parser("simulate")
    three.add_argument("--dimension", type=int, default=768)
    three.add_argument("--documents", type=int, nargs="*", default=[], help="only these numbers of documents")
    for name, value in Rates().__dict__.items():
        three.add_argument(f"--{name}", type=float, default=value)
    given = vars(parser.parse_args())
    what = given.pop("what")
    if what == "same":
        same(given["source"], given["engines"], given["encoder"], given["split"])
    elif what == "measure":
        measure(**given)
    else:
        table(given.pop("dimension"), only=given.pop("documents"), rates=Rates(**given))


if __name__ == "__main__":
    main()
