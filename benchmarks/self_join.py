"""The nearest neighbors of every document among all others: hardneg beside what else does this work on a processor.

All systems get the same float32 unit vectors in memory, k, and 500 checked queries. hardneg's seconds hold the choice of its probe
margin by exact search; every peer is given, for nothing, the smallest setting of a ladder that reaches the recall on the checked
queries. A system that cannot search in bulk gets all queries in one call. `share`: only this share of the queries is asked, and the
search counts in full (marked ~), for systems whose time is proportional to the queries. Each runs in a process of its own, the
peers with the Python of an environment in which they are installed:

    python -m venv PEERS && PEERS/bin/pip install faiss-cpu usearch pynndescent scann lorann
    python benchmarks/self_join.py --data ../shared/data --kind real --documents 200000 --peers PEERS/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import in_own_process, machine, peak_mb, versions

CHECKED = 500
OURS = ("hardneg",)
PEERS = (
    "faiss-ivf", "faiss-big-batch", "faiss-pq-fastscan", "faiss-rabitq-fastscan", "faiss-nndescent", "pynndescent", "usearch-exact",
    "scann", "lorann",
)  # fmt: skip
Search = Callable[[np.ndarray, Any], np.ndarray]


def ladder(low: int, high: int) -> Iterator[int]:
    while low <= high:
        yield low
        low = max(low + 1, int(low * 1.25))


def faiss_lists(documents: np.ndarray, what: str) -> tuple[Search, Iterator[int], str]:
    import faiss

    d, lists = documents.shape[1], round(len(documents) ** 0.5)
    coded = {"faiss-pq-fastscan": f"PQ{d // 4}x4fs,Refine(SQfp16)", "faiss-rabitq-fastscan": "RaBitQfs,Refine(SQfp16)"}
    made = f"IVF{lists},{coded.get(what, 'Flat')}"
    index = faiss.index_factory(d, made, faiss.METRIC_INNER_PRODUCT)
    inner = faiss.downcast_index(faiss.extract_index_ivf(index))
    inner.cp.max_points_per_centroid = 64
    index.train(documents[np.sort(np.random.default_rng(0).permutation(len(documents))[: 64 * lists])])
    index.add(documents)
    if hasattr(index, "k_factor"):
        index.k_factor = 4

    def search(queries: np.ndarray, nprobe: int, k: int) -> np.ndarray:
        inner.nprobe = nprobe
        if what == "faiss-big-batch" and len(queries) > CHECKED:
            from faiss.contrib.big_batch_search import big_batch_search

            return big_batch_search(inner, queries, k, method="knn_function", threaded=2)[1]
        return index.search(queries, k)[1]

    return search, ladder(1, lists), "nprobe {} of " + f"{lists}, {made}"


def prepared(system: str, documents: np.ndarray, k: int) -> tuple[Any, Iterator[int], str]:
    """(search(queries, setting, k) -> rows, the settings from fast to slow, how the setting is named)."""
    if system == "faiss-nndescent":
        import faiss

        index = faiss.IndexNNDescentFlat(documents.shape[1], k, faiss.METRIC_INNER_PRODUCT)
        index.nndescent.GK = k
        index.add(documents)
        return lambda queries, setting, k: index.search(queries, k)[1], iter([0]), "GK = k"
    if system.startswith("faiss"):
        return faiss_lists(documents, system)
    if system == "usearch-exact":
        from usearch.index import MetricKind, search

        def exactly(queries: np.ndarray, setting: int, k: int) -> np.ndarray:
            # It keeps all distances of a call: 512 queries with a million documents take 8 GB.
            parts = [queries[start : start + 256] for start in range(0, len(queries), 256)]
            return np.concatenate([search(documents, each, k, MetricKind.IP, exact=True).keys for each in parts])

        return exactly, iter([0]), "exact"
    if system == "scann":
        import scann

        leaves = round(2 * len(documents) ** 0.5)
        made = scann.scann_ops_pybind.builder(documents, k, "dot_product").tree(
            num_leaves=leaves, num_leaves_to_search=10, training_sample_size=min(len(documents), 64 * leaves)
        )
        index = made.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(4 * k).build()

        def searched(queries: np.ndarray, setting: int, k: int) -> np.ndarray:
            return index.search_batched_parallel(queries, leaves_to_search=setting, pre_reorder_num_neighbors=4 * k)[0]

        return searched, ladder(2, leaves), "{} of " + f"{leaves} leaves, 4 k reordered"
    import lorann

    lists = round(len(documents) ** 0.5)
    index = lorann.LorannIndex(documents, lists, global_dim=256, rank=32, distance=lorann.IP)
    index.build()

    def probed(queries: np.ndarray, setting: int, k: int) -> np.ndarray:
        return np.asarray(index.search(queries, k, setting, 4 * k))

    return probed, ladder(2, lists), "{} of " + f"{lists} clusters, 4 k reranked"


def recall(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, true, strict=True)]))


def run(system: str, folder: Path, k: int, target: float, share: float) -> dict[str, Any]:
    documents, true = np.load(folder / "documents.npy"), np.load(folder / "truth.npy")
    checked = np.linspace(0, len(documents) - 1, CHECKED).astype(np.int64)
    if system == "hardneg":
        from hardneg.index.factory import tuned
        from hardneg.index.ivf import IVFIndex

        start = time.perf_counter()
        index = IVFIndex(documents, "ip")
        built = time.perf_counter() - start
        measured = tuned(index, documents, k, min(1.0, target + 0.01))
        tuning = time.perf_counter() - start - built
        found = index.search(documents, k).documents
        seconds, how = time.perf_counter() - start, f"ivf {index.lists}, said {measured.measured:.3f}"
        return {**result(built, seconds, recall(found[checked], true), how), "tuning": tuning}
    if system == "pynndescent":
        import pynndescent

        pynndescent.NNDescent(documents[:2000], metric="dot", n_neighbors=k, n_jobs=2)  # compiles
        start = time.perf_counter()
        found = pynndescent.NNDescent(documents, metric="dot", n_neighbors=k, n_jobs=2).neighbor_graph[0]
        return result(0, time.perf_counter() - start, recall(found[checked], true), "defaults")
    start = time.perf_counter()
    search, settings, name = prepared(system, documents, k)
    built = time.perf_counter() - start
    reached, setting = 0.0, 0
    for setting in settings:
        reached = recall(search(documents[checked], setting, k), true)
        if reached >= target:
            break
    few = np.sort(np.random.default_rng(1).permutation(len(documents))[: int(share * len(documents))])
    asked = documents if share == 1 else documents[few]
    start = time.perf_counter()
    found = search(asked, setting, k)
    seconds = (time.perf_counter() - start) / share
    reached = recall(found[checked], true) if share == 1 else reached
    return result(built, built + seconds, reached, name.format(setting))


def result(built: float, seconds: float, reached: float, how: str) -> dict[str, Any]:
    return {"build": built, "seconds": seconds, "recall": reached, "how": how, "peak": peak_mb()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with banking77/minilm and cranfield/minilm, for `real`")
    parser.add_argument("--kind", choices=("real", "mixture"), default="real")
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--recall", type=float, default=0.9)
    parser.add_argument("--share", type=float, default=0.05, help="share of the queries that usearch is asked")
    parser.add_argument("--systems", nargs="+", default=[*OURS, *PEERS], choices=[*OURS, *PEERS])
    parser.add_argument("--peers", default=sys.executable, help="the Python that has the peers")
    parser.add_argument("--longest", type=float, default=600, help="seconds after which a system is given up")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run(args.one, args.folder, args.k, args.recall, args.share)))
        return
    from approximate_search import make_vectors

    print(machine())
    print(versions("hardneg", "faiss-cpu", "torch", "numpy"))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_vectors(args.kind, args.data, args.documents, 1, folder)
        documents = np.load(folder / "documents.npy", mmap_mode="r")
        import hardneg

        checked = np.linspace(0, len(documents) - 1, CHECKED).astype(np.int64)
        np.save(folder / "truth.npy", hardneg.ExactIndex(documents, "ip").search(documents[checked], args.k).documents)
        print(f"\n{args.kind}: every one of {args.documents:,} documents, top {args.k}, recall {args.recall} or more")
        print(f"{'system':<23}{'seconds':>9}{'build':>8}{'tuning':>8}{'recall':>8}{'peak MB':>9}  setting")
        for system in args.systems:
            share = args.share if system == "usearch-exact" else 1.0
            given = [
                "--one",
                system,
                "--folder",
                place,
                "--k",
                str(args.k),
                "--recall",
                str(args.recall),
                "--share",
                str(share),
            ]
            try:
                r = in_own_process(__file__, *given) if system in OURS else of_peers(args.peers, given, args.longest)
            except subprocess.TimeoutExpired:
                print(f"{system:<23}  more than {args.longest:,.0f} s", flush=True)
                continue
            except subprocess.CalledProcessError as error:
                print(f"{system:<23}  failed ({error.returncode})", flush=True)
                continue
            seconds = ("~" if share < 1 else "") + format(r["seconds"], ".1f")
            tuning = format(r["tuning"], ".1f") if "tuning" in r else "given"
            line = f"{system:<23}{seconds:>9}{r['build']:>8.1f}{tuning:>8}{r['recall']:>8.3f}{r['peak']:>9,.0f}  {r['how']}"
            print(line, flush=True)


def of_peers(python: str, given: list[str], longest: float) -> dict[str, Any]:
    done = subprocess.run(
        [python, __file__, *given], stdout=subprocess.PIPE, text=True, check=True, timeout=longest,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    value: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return value


if __name__ == "__main__":
    main()
