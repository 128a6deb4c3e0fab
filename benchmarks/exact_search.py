"""Exact top-k search against faiss IndexFlatIP, and against the matrix product that it cannot beat.

Documents: the real MiniLM vectors of the given data and jittered copies of them; queries: jittered copies of
documents. Every system runs in its own process, in turns; rates count 2 n N d operations.

    python benchmarks/exact_search.py --data ../shared/data
    python benchmarks/exact_search.py --data ../shared/data --documents 1000000 --queries 2048 --systems auto
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from common import (
    in_own_process,
    jittered_vectors,
    machine,
    mapped_mb,
    median_and_spread,
    now_mb,
    peak_mb,
    unit,
    versions,
)

KERNELS = ("auto", "int8", "bfloat16", "float32")
PRODUCTS = ("float32", "bfloat16", "int8")


def make_vectors(data: Path, documents: int, queries: int, folder: Path) -> None:
    folders = [data / name for name in ("banking77", "cranfield") if (data / name / "minilm").exists()]
    corpus = jittered_vectors(folders, documents, 0.5, seed=0)
    generator = np.random.default_rng(1)
    chosen = corpus[generator.choice(documents, queries, replace=queries > documents)]
    noise = generator.standard_normal(chosen.shape, np.float32) * 0.6 / np.sqrt(chosen.shape[1])
    np.save(folder / "documents.npy", corpus)
    np.save(folder / "queries.npy", unit(chosen + noise).astype(np.float32))


def run_hardneg(folder: Path, kernel: str, k: int) -> dict[str, object]:
    import hardneg

    documents = np.load(folder / "documents.npy", mmap_mode="r")
    queries = np.load(folder / "queries.npy")
    hardneg.ExactIndex(np.array(documents[:64]), "ip", kernel=kernel).search(queries[:8], 8)
    before, mapped = now_mb(), mapped_mb()
    start = time.perf_counter()
    index = hardneg.ExactIndex(documents, "ip", kernel=kernel)
    built = time.perf_counter() - start
    found = index.search(queries, k)
    seconds = time.perf_counter() - start
    np.save(folder / f"scores-{kernel}.npy", found.scores)
    np.save(folder / f"documents-{kernel}.npy", found.documents)
    return {
        "seconds": seconds,
        "built": built,
        # Pages of the mapped corpus are the system's to drop; what the search itself holds is the rest.
        "extra": peak_mb() - before - (mapped_mb() - mapped),
        "kernel": index.kernel.name,
    }


def run_faiss(folder: Path, k: int) -> dict[str, object]:
    import faiss

    documents, queries = np.load(folder / "documents.npy"), np.load(folder / "queries.npy")
    small = faiss.IndexFlatIP(documents.shape[1])
    small.add(documents[:64])
    small.search(queries[:8], 8)
    before = now_mb()
    start = time.perf_counter()
    index = faiss.IndexFlatIP(documents.shape[1])
    index.add(documents)
    built = time.perf_counter() - start
    scores, rows = index.search(queries, k)
    seconds = time.perf_counter() - start
    np.save(folder / "scores-faiss.npy", scores)
    np.save(folder / "documents-faiss.npy", rows)
    return {"seconds": seconds, "built": built, "extra": peak_mb() - before, "kernel": "sgemm"}


def run_product(name: str, dimension: int) -> dict[str, object]:
    """The rate of the bare matrix product, 1024 x 8192 x d, best of many: what a perfect search would reach."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left = torch.randn(1024, dimension, generator=generator)
    right = torch.randn(8192, dimension, generator=generator)
    if name == "int8":
        left, right = ((m * 30).clamp(-127, 127).to(torch.int8) for m in (left, right))
        out = torch.empty(1024, 8192, dtype=torch.int32)
        multiply = lambda: torch._int_mm(left, right.t(), out=out)  # noqa: E731
    else:
        dtype = getattr(torch, name)
        left, right = left.to(dtype), right.to(dtype)
        out = torch.empty(1024, 8192, dtype=dtype)
        multiply = lambda: torch.mm(left, right.t(), out=out)  # noqa: E731
    multiply()
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        multiply()
        best = min(best, time.perf_counter() - start)
    return {"rate": 2.0 * 1024 * 8192 * dimension / best / 1e9}


def recall(folder: Path, name: str) -> tuple[float, float]:
    """(share of equal rows, share of scores that reach faiss's k-th score but for rounding): the second ignores ties."""
    ours, theirs = (np.load(folder / f"documents-{which}.npy") for which in (name, "faiss"))
    ids = np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(ours, theirs, strict=True)])
    scores, last = np.load(folder / f"scores-{name}.npy"), np.load(folder / "scores-faiss.npy")[:, -1:]
    return float(ids), float((scores >= last - 2e-6).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with banking77/minilm and cranfield/minilm")
    parser.add_argument("--documents", type=int, default=105_000)
    parser.add_argument("--queries", type=int, default=10_240)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--systems", nargs="+", default=["faiss", *KERNELS], choices=["faiss", *KERNELS])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        kind, _, name = args.one.partition(":")
        if kind == "product":
            result = run_product(name, np.load(args.folder / "queries.npy", mmap_mode="r").shape[1])
        else:
            result = run_faiss(args.folder, args.k) if kind == "faiss" else run_hardneg(args.folder, kind, args.k)
        print(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_vectors(args.data, args.documents, args.queries, folder)
        dimension = np.load(folder / "queries.npy", mmap_mode="r").shape[1]
        jobs = [*args.systems, *(f"product:{name}" for name in PRODUCTS)]
        results: dict[str, list[dict[str, float]]] = {job: [] for job in jobs}
        for _ in range(args.repeat):
            for job in jobs:
                given = ["--one", job, "--folder", place, "--k", str(args.k)]
                results[job].append(in_own_process(__file__, *given))
        report(args, folder, dimension, results)


def report(args: argparse.Namespace, folder: Path, dimension: int, results: dict[str, list[dict[str, float]]]) -> None:
    print(machine())
    print(versions("hardneg", "faiss-cpu", "torch", "numpy"))
    print(f"{args.queries:,} queries, {args.documents:,} x {dimension} documents, top {args.k}; {args.repeat} repeats")
    work = 2.0 * args.queries * args.documents * dimension / 1e9
    limits = {name: statistics.median(r["rate"] for r in results[f"product:{name}"]) for name in PRODUCTS}
    print("matrix product alone, GOP/s:", ", ".join(f"{name} {rate:,.0f}" for name, rate in limits.items()))
    heads = ("system", "seconds: median (range)", "GOP/s", "of product", "extra MB", "recall", "ties aside")
    print(f"{heads[0]:<20} {heads[1]:<25} {heads[2]:>6} {heads[3]:>11} {heads[4]:>9} {heads[5]:>8} {heads[6]:>10}")
    for system in args.systems:
        runs = results[system]
        kernel = str(runs[-1]["kernel"])
        rate = work / statistics.median(r["seconds"] for r in runs)
        share = rate / limits.get(kernel, limits["float32"])
        extra = statistics.median(r["extra"] for r in runs)
        both = recall(folder, system) if "faiss" in results else (float("nan"), float("nan"))
        name = system if system in ("faiss", kernel) else f"{system} ({kernel})"
        print(
            f"{name:<20} {median_and_spread([r['seconds'] for r in runs]):<25} {rate:>6,.0f} {share:>10.0%} "
            f"{extra:>9,.0f} {both[0]:>8.4f} {both[1]:>10.4f}"
        )
    if "faiss" in results and "auto" in results:
        medians = {name: statistics.median(r["seconds"] for r in results[name]) for name in ("faiss", "auto")}
        print(f"auto is {medians['faiss'] / medians['auto']:.2f} x as fast as faiss IndexFlatIP")


if __name__ == "__main__":
    main()
