"""Features once: what judge, calibrate and select cost with and without the features that a run keeps; the neighbor graph.

    python benchmarks/features.py --data DATA --encoder hashed --depth 300 --repeat 2
    python benchmarks/features.py --graph 120000

`--data` mines a set, then runs calibrate, judge, select and calibrate on the selection: once with `features/` removed before each
command, once with it kept, in turns. `--graph` searches the neighbors of N documents (a mixture of clusters, in random order) with
one and the same index in the order of the file and list by list.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hardneg import calibrate, judge, select
from hardneg.data.read import read_pairs
from hardneg.false_negatives.shared_neighbors import neighbor_graph
from hardneg.index.factory import make_index
from hardneg.index.ivf import IVFIndex
from hardneg.index.recall import others
from hardneg.index.vectors import VectorStore
from hardneg.mining.mine import mine
from hardneg.mining.options import MineOptions
from hardneg.mining.select import SelectOptions

BLOCK = 16384


def cpu_seconds(work: Callable[[], object]) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commands(run: Path, place: Path, kept: bool) -> tuple[dict[str, float], str]:
    """CPU seconds of each command, and the hash of the selection's negatives."""
    selected = place / "selected"
    seconds: dict[str, float] = {}

    def timed(name: str, folder: Path, work: Callable[[], object]) -> None:
        if not kept:
            shutil.rmtree(folder / "features", ignore_errors=True)
        seconds[name] = cpu_seconds(work)

    shutil.rmtree(run / "features", ignore_errors=True)
    timed("calibrate", run, lambda: calibrate(run).save(place / "p.json"))
    timed("judge", run, lambda: judge(run, place / "j.csv"))
    options = SelectOptions(add_filters=(f"posterior:{place / 'p.json'}",))
    timed("select", run, lambda: select(run, options, selected, overwrite=True))
    timed("calibrate the selection", selected, lambda: calibrate(selected))
    return seconds, hashlib.sha256((selected / "negatives.parquet").read_bytes()).hexdigest()


def of_a_run(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        mine(read_pairs(options.data), run, MineOptions(encoder=options.encoder, depth=options.depth))
        found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        hashes = set()
        for _ in range(options.repeat):
            for kept in (False, True):
                seconds, digest = commands(run, Path(place), kept)
                found[kept].append(seconds)
                hashes.add(digest)
        size = sum(path.stat().st_size for path in (run / "features").iterdir())
    assert len(hashes) == 1, "the selections differ"
    print("| command | CPU s, features anew (range) | kept (range) |\n| --- | --- | --- |")
    for name in found[True][0]:
        columns = [[seconds[name] for seconds in found[kept]] for kept in (False, True)]
        print(
            f"| {name} | "
            + " | ".join(f"{statistics.median(c):.1f} ({min(c):.1f}-{max(c):.1f})" for c in columns)
            + " |"
        )
    totals = [statistics.median(sum(seconds.values()) for seconds in found[kept]) for kept in (False, True)]
    print(
        f"| all | {totals[0]:.1f} | {totals[1]:.1f} |\n\nfeatures/ takes {size / 1e6:.0f} MB; the negatives are the same bytes"
    )


def of_a_graph(size: int, k: int = 49) -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2000, 384)).astype(np.float32)
    vectors = centres[rng.integers(2000, size=size)] + rng.standard_normal((size, 384)).astype(np.float32)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    store = VectorStore(vectors, "cosine")
    index, _ = make_index("ivf", vectors, k=k + 1)
    assert isinstance(index, IVFIndex)

    def in_file_order() -> np.ndarray:
        near = []
        for start in range(0, size, BLOCK):
            rows = np.arange(start, min(start + BLOCK, size))
            near.append(others(index.search(vectors[rows].astype(np.float32), k + 1).documents, rows))
        return np.concatenate(near)

    for name, work in (
        ("order of the file", in_file_order),
        ("list by list, index included", lambda: neighbor_graph(store, k)[0]),
    ):
        start = time.perf_counter()
        found = work()
        print(
            f"{name}: {time.perf_counter() - start:.1f} s, {hashlib.sha256(np.sort(found, 1).tobytes()).hexdigest()[:12]}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--encoder", default="hashed")
    parser.add_argument("--depth", type=int, default=300)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--graph", type=int, help="number of documents")
    options = parser.parse_args()
    if options.data:
        of_a_run(options)
    if options.graph:
        of_a_graph(options.graph)


if __name__ == "__main__":
    main()
