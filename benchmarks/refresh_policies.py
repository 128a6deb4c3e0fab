"""What a cheaper refresh costs in recall: policies against a full rebuild, on a model that is really being trained.

A MiniLM model is trained with in-batch InfoNCE on the pairs of a set; after some steps every policy makes the vectors
that mining would search, and the top 50 of the training queries (encoded anew) are compared with those that a full
re-encoding gives. Seconds count what each policy computes: encoding, mapping, building.

    HF_HUB_OFFLINE=1 python benchmarks/refresh_policies.py --data ../shared/data --set banking77 --steps 100
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import numpy as np
from common import Finetuning, machine, unit, versions

import hardneg
from hardneg.index.base import Neighbors
from hardneg.index.factory import make_index
from hardneg.index.ivf import IVFIndex
from hardneg.index.recall import shares_found
from hardneg.index.vectors import VectorStore
from hardneg.refresh.drift import _linear_map
from hardneg.refresh.generation import Generation, Order, Recipe, build

K = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", default="banking77")
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-5)
    args = parser.parse_args()
    training = Finetuning(args.data / args.set, args.batch, args.rate)
    pairs, encoder = training.pairs, training.encoder
    texts = pairs.documents.slice(0, len(pairs.document_ids))
    queries = pairs.queries.slice(0, min(2000, len(pairs)))
    training.model.eval()
    start = time.perf_counter()
    before = unit(encoder.encode(texts))
    full_seconds = time.perf_counter() - start
    query_before = unit(encoder.encode(queries))
    print(machine())
    print(versions("hardneg", "torch", "sentence-transformers"))
    print(
        f"{args.set}: {len(texts):,} documents, {len(queries):,} queries, batch {args.batch}, learning rate {args.rate}"
    )
    neighbors_before = hardneg.ExactIndex(before).search(query_before, K).documents
    done = 0
    for steps in args.steps:
        training.model.train()
        for _ in range(steps - done):
            training.step()
        training.model.eval()
        done = steps
        after, query_after = unit(encoder.encode(texts)), unit(encoder.encode(queries))
        truth = hardneg.ExactIndex(after).search(query_after, K).documents
        drift = 1 - float((before * after).sum(1).mean())
        overlap = shares_found(neighbors_before, truth).mean()
        print(f"\nafter {steps} steps: drift {drift:.4f}, overlap@{K} of old and new neighbors {overlap:.3f}")
        print(f"{'policy':<64} {'recall':>7} {'encoded':>8} {'seconds':>8}")
        encode_policies(before, after, query_after, neighbors_before, truth, full_seconds)
        index_policies(before, after, query_after, neighbors_before, truth)


def encode_policies(
    before: np.ndarray, after: np.ndarray, queries: np.ndarray, old: np.ndarray, truth: np.ndarray, full: float
) -> None:
    size, generator = len(before), np.random.default_rng(0)
    random_order = generator.permutation(size)
    retrieved = np.argsort(-np.bincount(old.ravel(), minlength=size) + generator.uniform(0, 0.5, size))

    def report(name: str, vectors: np.ndarray, share: float, extra: float) -> None:
        found = hardneg.ExactIndex(unit(vectors)).search(queries, K).documents
        recall = shares_found(found, truth).mean()
        print(f"{name:<64} {recall:>7.3f} {share:>8.0%} {share * full + extra:>8.1f}", flush=True)

    report("full re-encoding", after, 1.0, 0.0)
    report("nothing: old vectors", before, 0.0, 0.0)
    for share in (0.05, 0.1, 0.25, 0.5):
        count = int(share * size)
        for label, order in (("random", random_order), ("most retrieved", retrieved)):
            chosen = order[:count]
            mixed = before.copy()
            mixed[chosen] = after[chosen]
            report(f"{share:.0%} {label}, the rest old", mixed, share, 0.0)
            start = time.perf_counter()
            moved = (before @ _linear_map(before[chosen].astype(np.float64), after[chosen].astype(np.float64))).astype(
                np.float32
            )
            extra = time.perf_counter() - start
            moved = unit(moved)
            moved[chosen] = after[chosen]
            report(f"{share:.0%} {label}, the rest moved by the linear map of these", moved, share, extra)
            start = time.perf_counter()
            shifted = unit(before + (after[chosen] - before[chosen]).mean(0))
            extra = time.perf_counter() - start
            shifted[chosen] = after[chosen]
            report(f"{share:.0%} {label}, the rest moved by their mean shift", shifted, share, extra)
        report(*hardneg_policy(before, after, old, share))


def hardneg_policy(
    before: np.ndarray, after: np.ndarray, old: np.ndarray, share: float
) -> tuple[str, np.ndarray, float, float]:
    """A refresh with `Recipe(share=...)`, by the library's own code; encoding looks the vectors up."""
    ids = np.arange(len(before))
    neighbors = Neighbors(np.zeros(old.shape, np.float32), old)
    index, recall = make_index("exact", before)
    last = Generation(0, 0, ids, before, index, recall, neighbors, "", 0 * ids)
    asked: list[int] = []

    class Rows:
        def take(self, rows: np.ndarray) -> np.ndarray:
            asked.extend(rows)
            return after[rows]

    start = time.perf_counter()
    order = Order(Rows(), ids, None, 1, 1, last)
    made = build(
        Recipe(index="exact", share=share, precision="float32"), order, lambda items, side: items, lambda: False
    )
    name = f"hardneg, share={share} (carry error {made.compensation_error:.4f})"
    return name, made.vectors, len(asked) / len(before), time.perf_counter() - start


def index_policies(
    before: np.ndarray, after: np.ndarray, queries: np.ndarray, old: np.ndarray, truth: np.ndarray
) -> None:
    def report(name: str, recall: float, seconds: float) -> None:
        print(f"{name:<64} {recall:>7.3f} {'':>8} {seconds:>8.2f}", flush=True)

    start = time.perf_counter()
    hardneg.ExactIndex(after).search(queries, K)
    report("exact search of the new vectors", 1.0, time.perf_counter() - start)
    old_map = IVFIndex(before).centroids
    gap = None
    for name, clusters in (
        ("lists around new centroids", None),
        ("lists around the old centroids", copy.copy(old_map)),
    ):
        start = time.perf_counter()
        index = IVFIndex(after, centroids=clusters)
        built = time.perf_counter() - start
        if gap is None:
            index.tune(queries[:500], truth[:500], 0.95)
            gap = index.probe_margin
        index.probe_margin = gap
        start = time.perf_counter()
        found = index.search(queries, K).documents
        report(name, shares_found(found, truth).mean(), built + time.perf_counter() - start)
    for width in (5, 10, 20):
        start = time.perf_counter()
        neighbors = hardneg.ExactIndex(before).search(before, width).documents  # kept from the generation before
        kept = time.perf_counter() - start
        start = time.perf_counter()
        corpus, found = VectorStore(after), []
        for at in range(0, len(queries), 500):
            candidates = np.sort(neighbors[old[at : at + 500]].reshape(len(old[at : at + 500]), -1), axis=1)
            candidates[:, 1:][candidates[:, 1:] == candidates[:, :-1]] = -1
            scores = corpus.pair_scores(queries[at : at + 500], candidates)
            best = np.argpartition(-scores, K, axis=1)[:, :K]
            found.append(np.take_along_axis(candidates, best, 1))
        seconds = time.perf_counter() - start
        recall = shares_found(np.concatenate(found), truth).mean()
        report(f"{width} old neighbors of the {K} old neighbors, re-scored (+ {kept:.1f} s once)", recall, seconds)


if __name__ == "__main__":
    main()
