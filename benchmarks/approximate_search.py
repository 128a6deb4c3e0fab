"""All queries at once: build an index and find the top 100 of every query, against faiss IVF and HNSW.

Seconds hold everything from the vectors to the answer, for hardneg its tuning and measuring of the recall, too. faiss
is given for nothing the smallest nprobe or efSearch that reaches the recall on the queries that are checked; hardneg
aims at a recall a hundredth higher, as it tunes on others. Every system runs in its own process, in turns. Two kinds
of vectors: `real` (384-d MiniLM vectors and jittered copies of them) and `mixture` (128-d, 4,000 Gaussian clusters
whose sizes follow a power law).

    python benchmarks/approximate_search.py --data ../shared/data --kind mixture --documents 1000000
    python benchmarks/approximate_search.py --data ../shared/data --kind real --documents 50000 200000 1000000
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from common import in_own_process, jittered_vectors, machine, median_and_spread, peak_mb, unit, versions

SYSTEMS = ("hardneg-ivf", "hardneg-exact", "faiss-ivf-1x", "faiss-ivf-4x", "faiss-hnsw")
CHECKED = 500  # queries that the recall is measured on, for every system


def make_vectors(kind: str, data: Path, documents: int, queries: int, folder: Path) -> None:
    generator = np.random.default_rng(1)
    if kind == "real":
        corpus = jittered_vectors([data / name for name in ("banking77", "cranfield")], documents, 0.5, seed=0)
        chosen = corpus[generator.choice(documents, queries, replace=queries > documents)]
        noise = generator.standard_normal(chosen.shape, np.float32) * 0.6 / np.sqrt(chosen.shape[1])
        asked = unit(chosen + noise)
    else:
        weights = generator.pareto(1.5, 4000) + 0.1
        centers = generator.standard_normal((4000, 128), np.float32) * np.linspace(1.5, 0.3, 128, dtype=np.float32)
        labels = generator.choice(4000, documents + queries, p=weights / weights.sum())
        both = generator.standard_normal((documents + queries, 128), np.float32) * np.linspace(
            1.2, 0.4, 128, dtype=np.float32
        )
        both += centers[labels]
        both = unit(both)
        corpus, asked = both[:documents], both[documents:]
    np.save(folder / "documents.npy", corpus.astype(np.float32))
    np.save(folder / "queries.npy", asked.astype(np.float32))


def truth(folder: Path, k: int) -> np.ndarray:
    import hardneg

    queries = np.load(folder / "queries.npy")
    chosen = np.linspace(0, len(queries) - 1, CHECKED).astype(np.int64)
    return (
        hardneg.ExactIndex(np.load(folder / "documents.npy", mmap_mode="r"), "ip").search(queries[chosen], k).documents
    )


def recall(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, true, strict=True)]))


def run(system: str, folder: Path, k: int, target: float) -> dict[str, object]:
    documents, queries = np.load(folder / "documents.npy"), np.load(folder / "queries.npy")
    checked = np.linspace(0, len(queries) - 1, CHECKED).astype(np.int64)
    true = np.load(folder / "truth.npy")
    if system.startswith("hardneg"):
        from hardneg.index.factory import make_index

        aimed = min(1.0, target + 0.01)  # it tunes on other queries than those that are checked here
        make_index("exact", documents[:64], "ip")[0].search(queries[:8], 8)
        start = time.perf_counter()
        index, measured = make_index(system.partition("-")[2], documents, "ip", queries=queries, k=k, recall=aimed)
        built = time.perf_counter() - start
        found = index.search(queries, k).documents
        seconds = time.perf_counter() - start
        how = f"{index.lists} lists, said {measured.measured:.3f}" if system == "hardneg-ivf" else index.kernel.name
        return {
            "build": built,
            "seconds": seconds,
            "recall": recall(found[checked], true),
            "how": how,
            "peak": peak_mb(),
        }
    import faiss

    start = time.perf_counter()
    dimension = documents.shape[1]
    if system == "faiss-hnsw":
        index = faiss.IndexHNSWFlat(dimension, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 40
    else:
        lists = round(math.sqrt(len(documents)) * int(system[-2]))
        coarse = faiss.IndexFlatIP(dimension)
        index = faiss.IndexIVFFlat(coarse, dimension, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid = 64
        index.train(documents)
    index.add(documents)
    built = time.perf_counter() - start
    setting, name = (k if system == "faiss-hnsw" else 1), "efSearch" if system == "faiss-hnsw" else "nprobe"
    while True:
        if system == "faiss-hnsw":
            index.hnsw.efSearch = setting
        else:
            index.nprobe = setting
        if recall(index.search(queries[checked], k)[1], true) >= target:
            break
        setting = max(setting + 1, int(setting * 1.2))
    start = time.perf_counter()
    found = index.search(queries, k)[1]
    seconds = built + time.perf_counter() - start
    how = f"{name} {setting}" + ("" if system == "faiss-hnsw" else f" of {index.nlist}")
    return {"build": built, "seconds": seconds, "recall": recall(found[checked], true), "how": how, "peak": peak_mb()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with banking77/minilm and cranfield/minilm, for `real`")
    parser.add_argument("--kind", choices=("real", "mixture"), default="mixture")
    parser.add_argument("--documents", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--recall", type=float, default=0.9)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--once", nargs="*", default=["hardneg-exact", "faiss-hnsw"], help="systems that are slow")
    parser.add_argument("--systems", nargs="+", default=SYSTEMS, choices=SYSTEMS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run(args.one, args.folder, args.k, args.recall)))
        return
    print(machine())
    print(versions("hardneg", "faiss-cpu", "torch", "numpy"))
    totals: dict[str, list[float]] = {system: [] for system in args.systems}
    for documents in args.documents:
        with tempfile.TemporaryDirectory() as place:
            make_vectors(args.kind, args.data, documents, args.queries, Path(place))
            np.save(Path(place) / "truth.npy", truth(Path(place), args.k))
            given = ["--folder", place, "--k", str(args.k), "--recall", str(args.recall)]
            results: dict[str, list[dict[str, object]]] = {system: [] for system in args.systems}
            for repeat in range(args.repeat):
                for system in args.systems:
                    if repeat == 0 or system not in args.once:
                        results[system].append(in_own_process(__file__, "--one", system, *given))
        print(
            f"\n{args.kind}: {args.queries:,} queries, {documents:,} documents, top {args.k}, recall {args.recall} or more"
        )
        print(f"{'system':<15}{'seconds: median (range)':<26}{'build':>8}{'recall':>8}{'peak MB':>9}  setting")
        for system, runs in results.items():
            seconds, built = ([float(r[n]) for r in runs] for n in ("seconds", "build"))
            totals[system].append(statistics.median(seconds))
            last = runs[-1]
            print(
                f"{system:<15}{median_and_spread(seconds):<26}{statistics.median(built):>8.1f}"
                f"{last['recall']:>8.3f}{last['peak']:>9,.0f}  {last['how']}",
                flush=True,
            )
    if len(args.documents) > 1:
        print("\nexponent of the seconds in the number of documents, least squares in logarithms:")
        for system, seconds in totals.items():
            print(f"{system:<15}{np.polyfit(np.log(args.documents), np.log(seconds), 1)[0]:.2f}")


if __name__ == "__main__":
    main()
