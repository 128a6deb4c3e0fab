"""CLIP on pictures: does mining help where many pictures are right for each caption?

The digits of scikit-learn are written as PNG files, 1,348 to train on, each with one of 40 captions of its class; 449 to test. A CLIP
of 0.2 million weights is drawn at random, and trained with the symmetric loss and in-batch negatives alone. From there each way goes
on, with the same weights, data, batches of 32 pairs, learning rate and steps:

    in-batch            negatives of the batch only
    in-batch, group     the same; pictures and captions of the same class are masked
    mined               and three mined pictures for each caption, mined anew three times
    mined, group        the same; candidates of the same class are rejected, in the batch as well
    in-batch, time      in-batch, with as many steps as take the time of 'mined, group'

With --cold, the ways begin with the drawn weights.

Zero-shot accuracy: the share of the test pictures whose nearest caption, among "a handwritten zero" to "a handwritten nine", is
right, by the last weights. Seconds are those of a way alone.

    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python benchmarks/clip_digits.py --seeds 0 1 2
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
from common import machine, versions

import hardneg
from hardneg.demo_data.digits import write_digits, write_small_clip
from hardneg.losses.variants import Variants
from hardneg.training.evaluation_set import EvaluationSet

WAYS: dict[str, dict[str, Any]] = {
    "in-batch": {"negatives": 0},
    "in-batch, group": {"negatives": 0, "filters": ("group",)},
    "mined": {"negatives": 3},
    "mined, group": {"negatives": 3, "filters": ("group",)},
}


def train(folder: Path, start: Path, seed: int, steps: int, choices: dict[str, Any]) -> dict[str, float]:
    """Train once from the weights in `start`; returns the accuracy, the seconds of the training, and its steps."""
    pairs = hardneg.read_pairs(folder / "digits")
    read = hardneg.ReadOptions(split="test", caption_template="a handwritten {}")
    test = EvaluationSet(hardneg.read_pairs(folder / "digits", read), zero_shot=True)
    encoder = hardneg.make_encoder(f"st:{start}", device="cpu")
    refresh = f"steps:{max(1, steps // 4)}" if choices["negatives"] else "never"
    options = hardneg.TrainOptions(
        steps=steps, batch_size=32, temperature=0.07, variants=Variants(symmetric=True), seed=seed,
        evaluate_every=steps, refresh=refresh, **{"learning_rate": 1e-3, **choices},
    )  # fmt: skip
    begin = time.perf_counter()
    done = hardneg.train(
        pairs, encoder, folder / "trained", options, overwrite=True, device="cpu", warn=lambda text: None
    )
    seconds = time.perf_counter() - begin
    accuracy = test.evaluate(hardneg.Towers(encoder), ("mrr@10",))["zero-shot@1"]
    return {"accuracy": accuracy, "seconds": seconds, "steps": done["steps"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--first", type=int, default=160, help="steps with in-batch negatives before the ways part")
    parser.add_argument("--cold", action="store_true", help="leave these steps out")
    parser.add_argument("--out", type=Path, help="append the results of each training to this file, as JSON lines")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_digits(folder / "digits")
        for seed in given.seeds:
            start = write_small_clip(folder / f"clip-{seed}", seed=seed)
            if not given.cold:
                choices = {"negatives": 0, "learning_rate": 2e-3, "lr_scheduler": "constant"}
                found.setdefault("(start)", []).append(train(folder, start, seed, given.first, choices))
                _say(given.out, "(start)", seed, found["(start)"][-1])
                (folder / "trained" / "last").rename(start.with_name(f"first-{seed}"))
                start = start.with_name(f"first-{seed}")
            for way, choices in WAYS.items():
                found.setdefault(way, []).append(train(folder, start, seed, given.steps, choices))
                _say(given.out, way, seed, found[way][-1])
            slower = found["mined, group"][-1]["seconds"] / found["in-batch"][-1]["seconds"]
            again = train(folder, start, seed, round(given.steps * slower), WAYS["in-batch"])
            found.setdefault("in-batch, time", []).append(again)
            _say(given.out, "in-batch, time", seed, again)
    print(f"\n{machine()}; {versions('hardneg', 'torch', 'sentence-transformers', 'transformers', 'pillow')}\n")
    seeds = ", ".join(map(str, given.seeds))
    print(f"| way | steps | zero-shot accuracy, seeds {seeds} | mean | seconds |\n|---|---|---|---|---|")
    for way, runs in found.items():
        values = [run["accuracy"] for run in runs]
        steps, seconds = (statistics.mean(run[key] for run in runs) for key in ("steps", "seconds"))
        shown = ", ".join(f"{value:.3f}" for value in values)
        print(f"| {way} | {steps:.0f} | {shown} | {statistics.mean(values):.3f} | {seconds:.0f} |")


def _say(out: Path | None, way: str, seed: int, result: dict[str, float]) -> None:
    line = json.dumps({"way": way, "seed": seed, **result})
    print(line, flush=True)
    if out is not None:
        with open(out, "a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
