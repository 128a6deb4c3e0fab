"""What refreshed negatives cost in the trainer of sentence-transformers, and what our miner takes beside theirs.

    HF_HUB_OFFLINE=1 python benchmarks/integrations.py --data DATA --model MODEL --steps 60

`DATA` is a BEIR folder, `MODEL` the folder of a sentence-transformers model. In turns: the trainer with a fixed table of mined
negatives and its own loss (MultipleNegativesRankingLoss), the same with `HardNegatives` that never refresh and our `InfoNCE`, and
with a refresh within the training. Then `mine_hard_negatives` of both, on the same texts with the same arguments.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from common import machine, versions
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    util,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from hardneg import read_pairs
from hardneg.integrations.mine_hard_negatives import mine_hard_negatives
from hardneg.integrations.sentence_transformers import HardNegatives, InfoNCE

BATCH = 16


def rows_of(data: str, most: int) -> list[dict[str, str]]:
    pairs = read_pairs(data)
    texts = pairs.documents.take(pairs.positives.values)
    queries = pairs.queries.take(pairs.positives.row_numbers())
    return [{"query": q, "positive": p} for q, p in zip(queries, texts, strict=True)][:most]


def trained(model_folder: str, rows: list[dict[str, str]], how: str, steps: int) -> float:
    """Seconds of `steps` steps; with a refresh, its own time within them included."""
    model = SentenceTransformer(model_folder, device="cpu")
    model.max_seq_length = 64
    negatives, dataset, loss, callbacks = None, None, None, []
    if how == "theirs":
        dataset = mine_hard_negatives(
            Dataset.from_list(rows), model, num_negatives=2, output_format="n-tuple", verbose=False
        )
        loss = MultipleNegativesRankingLoss(model)
    else:
        refresh = "never" if how == "no refresh" else f"steps:{steps // 2}"
        negatives = HardNegatives(rows, model, num_negatives=2, refresh=refresh)
        negatives.begin()
        dataset, loss, callbacks = negatives.dataset, InfoNCE(model, negatives), [negatives]
    with tempfile.TemporaryDirectory() as place:
        arguments = SentenceTransformerTrainingArguments(
            place, max_steps=steps, per_device_train_batch_size=BATCH, report_to=[], disable_tqdm=True, save_strategy="no",
            logging_steps=10_000, use_cpu=True,
        )  # fmt: skip
        trainer = SentenceTransformerTrainer(model, arguments, train_dataset=dataset, loss=loss, callbacks=callbacks)
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start


def mined(model_folder: str, rows: list[dict[str, str]], ours: bool) -> tuple[float, Any]:
    model = SentenceTransformer(model_folder, device="cpu")
    start = time.perf_counter()
    function = mine_hard_negatives if ours else util.mine_hard_negatives
    made = function(Dataset.from_list(rows), model, num_negatives=5, relative_margin=0.05, verbose=False)
    return time.perf_counter() - start, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    print(machine(), versions("sentence-transformers", "transformers", "datasets"), sep="\n")
    rows = rows_of(options.data, options.rows)
    torch.manual_seed(0)
    found: dict[str, list[float]] = {}
    for _ in range(options.repeat):
        for how in ("theirs", "no refresh", "one refresh"):
            found.setdefault(how, []).append(options.steps / trained(options.model, rows, how, options.steps))
    print(f"\n| negatives | steps/s ({len(rows):,} pairs, batch {BATCH}): median (range) |\n| --- | --- |")
    for how, values in found.items():
        print(f"| {how} | {statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f}) |")
    seconds: dict[bool, list[float]] = {True: [], False: []}
    made = {}
    for _ in range(options.repeat):
        for ours in (False, True):
            taken, made[ours] = mined(options.model, rows, ours)
            seconds[ours].append(taken)
    print("\n| mine_hard_negatives, texts to dataset | seconds: median (range) | rows |\n| --- | --- | --- |")
    for ours, name in ((True, "hardneg"), (False, "sentence-transformers")):
        values = seconds[ours]
        print(
            f"| {name} | {statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f}) | {len(made[ours]):,} |"
        )
    same = np.isin([str(row) for row in made[True]], [str(row) for row in made[False]]).mean()
    print(f"\n{same:.4f} of our rows are theirs")


if __name__ == "__main__":
    main()
