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
from pathlib import Path

import numpy as np
import torch
from common import Finetuning, in_own_process, machine, median_and_spread, versions

MODES = ("none", "background", "background, niceness 10")


def run(args: argparse.Namespace) -> dict[str, object]:
    from hardneg.encoders.sentence_transformers import SentenceTransformersEncoder
    from hardneg.refresh.generation import Recipe
    from hardneg.refresh.refreshed_index import RefreshedIndex
    from hardneg.refresh.snapshot import ModuleSnapshots

    torch.set_num_threads(args.threads)
    training = Finetuning(args.data / args.set, args.batch)
    texts = training.pairs.documents.slice(0, min(args.documents, len(training.pairs.document_ids)))

    class Texts:
        def take(self, rows: np.ndarray) -> list[str]:
            return [texts[i] for i in rows]

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
        ids=len(texts),
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
