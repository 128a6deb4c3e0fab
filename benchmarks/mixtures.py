"""Batches of one source each, against batches of all sources: one model trained on several sets at once, with the same steps.

Model, optimizer, temperature and clipping are those of training_gain.py. Ways, with in-batch negatives only or mined ones:

    mixture           hardneg.mixture: each batch of one set, negatives of the own set
    joined            the same pairs and documents as one dataset: batches of all sets, negatives of any
    peer              sentence-transformers: a dict of datasets, MultiDatasetBatchSamplers.PROPORTIONAL, in-batch negatives

Measured on the test split of each set, with the documents of that set alone; seconds are of training.

    HF_HUB_OFFLINE=1 python benchmarks/mixtures.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import in_own_process, machine, versions
from training_gain import measured, model_of

import hardneg

WAYS = ("untrained", "joined, in-batch", "mixture, in-batch", "peer", "joined, mined", "mixture, mined")


def ours(args: argparse.Namespace, pairs: hardneg.Pairs, model: Any, steps: int, folder: Path) -> float:
    from hardneg.encoders.sentence_transformers import SentenceTransformersEncoder

    more: dict[str, Any] = {"negatives": 0}
    if args.way.endswith("mined"):
        more = {"negatives": 4, "depth": 50, "refresh": "epoch", "filters": ("shared-neighbors:max=0.5",)}
    options = hardneg.TrainOptions(
        steps=steps, batch_size=args.batch, learning_rate=args.rate, seed=args.seed, save_every=10**9, **more
    )
    start = time.perf_counter()
    trained = SentenceTransformersEncoder(model, batch_size=512)
    hardneg.train(pairs, trained, folder / "out", options, device="cpu", warn=lambda text: None)
    return time.perf_counter() - start


def peer(args: argparse.Namespace, sets: dict[str, hardneg.Pairs], model: Any, steps: int, folder: Path) -> float:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    given = {}
    for name, pairs in sets.items():
        rows = pairs.positives.row_numbers()
        anchors, positives = pairs.queries.take(rows), pairs.documents.take(pairs.positives.values)
        given[name] = Dataset.from_dict({"anchor": anchors, "positive": positives})
    asked = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "peer"), max_steps=steps, per_device_train_batch_size=args.batch,
        learning_rate=args.rate, warmup_steps=round(0.1 * steps), lr_scheduler_type="linear", max_grad_norm=1.0,
        weight_decay=0.0, optim="adamw_torch_fused", batch_sampler="no_duplicates", multi_dataset_batch_sampler="proportional",
        save_strategy="no", report_to="none", disable_tqdm=True, seed=args.seed, use_cpu=True, logging_strategy="no",
        dataloader_drop_last=True,
    )  # fmt: skip
    loss = MultipleNegativesRankingLoss(model, scale=20.0)
    trainer = SentenceTransformerTrainer(model=model, args=asked, train_dataset=given, loss=loss)
    start = time.perf_counter()
    trainer.train()
    return time.perf_counter() - start


def one(args: argparse.Namespace) -> dict[str, Any]:
    sets = {name: hardneg.read_pairs(args.data / name, hardneg.ReadOptions(split="train")) for name in args.sets}
    mixed = hardneg.mixture(sets)
    model = model_of(mixed, args.seed)
    steps = args.epochs * (int((mixed.positives.lengths > 0).sum()) // args.batch)
    seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        if args.way == "peer":
            seconds = peer(args, sets, model, steps, Path(folder))
        elif args.way != "untrained":
            pairs = mixed if args.way.startswith("mixture") else replace(mixed, mixed=None)
            seconds = ours(args, pairs, model, steps, Path(folder))
    model.eval()
    tests = {name: hardneg.read_pairs(args.data / name, hardneg.ReadOptions(split="test")) for name in args.sets}
    found = {name: measured(model, test)["ndcg@10"] for name, test in tests.items()}
    sizes = {name: int((pairs.positives.lengths > 0).sum()) for name, pairs in sets.items()}
    return {"ndcg@10": found, "steps": steps, "seconds": seconds, "sizes": sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["banking77", "scifact"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(one(args)))
        return
    print(machine())
    print(versions("hardneg", "torch", "sentence-transformers", "transformers"))
    common = [f"--data={args.data}", f"--epochs={args.epochs}", f"--batch={args.batch}", f"--rate={args.rate}"]
    for i, way in enumerate(args.ways):
        runs = [
            in_own_process(__file__, *common, f"--way={way}", f"--seed={seed}", "--sets", *args.sets)
            for seed in range(1 if way == "untrained" else args.seeds)
        ]
        if not i:
            print(
                f"pairs: {runs[0]['sizes']}; {runs[0]['steps']} steps of {args.batch}; nDCG@10, median (range) of {args.seeds} seeds"
            )
            print(f"{'way':<20}" + "".join(f"{name:>24}" for name in (*args.sets, "mean")) + f"{'seconds':>10}")
        columns = [[100 * run["ndcg@10"][name] for run in runs] for name in args.sets]
        columns.append(np.mean(columns, axis=0).tolist())
        cells = [f"{np.median(each):.2f} ({min(each):.2f}-{max(each):.2f})" for each in columns]
        print(
            f"{way:<20}"
            + "".join(f"{cell:>24}" for cell in cells)
            + f"{np.median([run['seconds'] for run in runs]):>10.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
