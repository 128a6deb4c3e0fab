"""A step of in-batch training of a transformer: hardneg's trainer, and sentence-transformers' with its loss.

Both train the same model from the same weights with the same optimizer, batch size and temperature, on texts of which each batch has
others. A run is a process of its own; the seconds are those of its threads on the processor, or of the clock on a GPU, and a step
is the difference between two numbers of steps, so that loading does not count.

    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python benchmarks/training_speed.py --model FOLDER --sets ../shared/data/tldr
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import in_own_process, machine, versions
from training_gain import peer

import hardneg

WAYS = ("hardneg", "peer")


def one(args: argparse.Namespace) -> dict[str, float]:
    from sentence_transformers import SentenceTransformer

    train = hardneg.read_pairs(args.set, hardneg.ReadOptions(split="train"))
    model = SentenceTransformer(args.model, device=args.device, model_kwargs={"dtype": torch.float32}).train()
    seconds = [_seconds(args, train, model, steps) for steps in (args.steps // 4, args.steps)]
    return {"step": (seconds[1] - seconds[0]) / (args.steps - args.steps // 4)}


def _seconds(args: argparse.Namespace, train: hardneg.Pairs, model: Any, steps: int) -> float:
    now = time.process_time if args.device == "cpu" else time.perf_counter
    start = now()
    with tempfile.TemporaryDirectory() as folder:
        if args.way == "peer":
            peer(args, "peer in-batch", train, Path(folder), model, steps)
        else:
            options = hardneg.TrainOptions(
                steps=steps, batch_size=args.batch, negatives=0, filters=(), refresh="never", learning_rate=args.rate,
                save_every=10**9, log_every=10**6,
            )  # fmt: skip
            hardneg.train(train, model, Path(folder) / "out", options, device=args.device, warn=lambda message: None)
    return now() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--model", required=True, help="folder of a sentence-transformers model")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--set", help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.set_defaults(seed=0, workers=0)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(one(args)))
        return
    print(machine())
    print(versions("hardneg", "torch", "sentence-transformers", "transformers", "accelerate"))
    given = [f"--{name}={getattr(args, name)}" for name in ("model", "batch", "steps", "rate", "device")]
    print(f"{'set':<24}{'hardneg, s a step':>24}{'sentence-transformers':>24}{'ratio':>8}")
    for name in args.sets:
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(args.repeat):
            for way in WAYS:
                found = in_own_process(__file__, "--sets=-", *given, f"--set={name}", f"--way={way}")
                taken[way].append(found["step"])
        said = [f"{statistics.median(x):.2f} ({min(x):.2f}-{max(x):.2f})" for x in taken.values()]
        ratio = statistics.median(taken["peer"]) / statistics.median(taken["hardneg"])
        print(f"{Path(name).name:<24}{said[0]:>24}{said[1]:>24}{ratio:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
