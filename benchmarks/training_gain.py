"""Does it help? One model, trained in several ways with the same steps; then in-batch training again with the same time.

The model is an embedding bag of hashed words as a sentence-transformers model, which both sides train: the same weights at
the start, the same data, batch size, steps, optimizer, learning rates, temperature, clipping. Ways:

    in-batch          negatives of the batch only
    static            mined once, at the start
    refreshed         mined anew after every epoch, beside the training
    + bank + filter   the same with a memory bank, a filter (of candidates, batch and bank), and negatives drawn around the
                      positive's score (SimANS)
    peer              sentence-transformers: its miner, then MultipleNegativesRankingLoss in its trainer
    peer, margin      the same with a relative margin in its miner (it leaves out queries that fall short of negatives)
    peer in-batch     the same without its miner
    in-batch, time    in-batch with as many steps as make the wall-clock time of '+ bank + filter'

Seconds are of mining and training, without evaluation. Measures are of the last weights on the test split.

    HF_HUB_OFFLINE=1 python benchmarks/training_gain.py --set builtin:pycode
    HF_HUB_OFFLINE=1 python benchmarks/training_gain.py --set ../shared/data/tldr
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import in_own_process, machine, versions

import hardneg
from hardneg.encoders.features import hashed_features
from hardneg.evaluation.retrieval import evaluate_vectors

WARMUP = 10  # steps, of trainings that end at a time
WAYS = ("in-batch", "static", "refreshed", "+ bank + filter", "peer in-batch", "peer", "peer, margin")


def model_of(pairs: hardneg.Pairs, seed: int) -> Any:
    """The embedding bag as a sentence-transformers model, set by latent semantic analysis of the training pairs."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import InputModule, Normalize

    from hardneg.encoders.embed import fit
    from hardneg.progress import silent

    encoder = hardneg.HashedEncoder(dimension=256, seed=seed)
    fit(encoder, pairs, silent)

    class Bag(InputModule):
        def __init__(self) -> None:
            super().__init__()
            self.table = encoder.table

        def preprocess(self, inputs: list[str], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
            features, offsets = hashed_features([(prompt or "") + text for text in inputs], encoder.buckets)
            return {"input_ids": torch.from_numpy(features), "offsets": torch.from_numpy(offsets[:-1])}

        def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
            features["sentence_embedding"] = self.table(features["input_ids"], features["offsets"])
            return features

        def get_embedding_dimension(self) -> int:
            return 256

        def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
            torch.save(self.state_dict(), Path(output_path) / "bag.pt")

    return SentenceTransformer(modules=[Bag(), Normalize()], device="cpu")


def measured(model: Any, test: hardneg.Pairs) -> dict[str, float]:
    queries = model.encode(test.queries.slice(0, len(test)), batch_size=512)
    documents = model.encode(test.documents.slice(0, len(test.document_ids)), batch_size=512)
    return evaluate_vectors(test, queries, documents, ("ndcg@10", "mrr@10", "recall@100")).means


def ours(args: argparse.Namespace, way: str, train: hardneg.Pairs, folder: Path, model: Any, steps: int) -> float:
    from hardneg.encoders.sentence_transformers import SentenceTransformersEncoder

    more: dict[str, Any] = {"negatives": 0}
    if way != "in-batch":
        more = {
            "negatives": args.negatives,
            "depth": args.depth,
            "refresh": "never" if way == "static" else args.refresh,
        }
    if way == "+ bank + filter":
        more |= {"filters": tuple(args.filter), "policy": args.policy}
        more |= {"bank": args.bank, "bank_age": args.bank_age} if args.bank else {}
    options = hardneg.TrainOptions(
        steps=steps, batch_size=args.batch, learning_rate=args.rate, seed=args.seed, save_every=10**9, **more
    )
    start = time.perf_counter()
    hardneg.train(train, SentenceTransformersEncoder(model, batch_size=512), folder / "out", options, device="cpu")
    return time.perf_counter() - start


def until(end: float) -> Any:
    """A callback of transformers' trainer that ends a training at `end` of `time.perf_counter`."""
    from transformers import TrainerCallback

    class Until(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control.should_training_stop = time.perf_counter() >= end
            return control

    return Until()


def peer(
    args: argparse.Namespace,
    way: str,
    train: hardneg.Pairs,
    folder: Path,
    model: Any,
    steps: int,
    limit: float | None = None,
) -> tuple[float, int]:
    """Mine and train as sentence-transformers does: (seconds, steps). With `limit` it ends after so many, at a constant rate."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.util import mine_hard_negatives

    rows = train.positives.row_numbers()
    queries, documents = train.queries.slice(0, len(train)), train.documents.slice(0, len(train.document_ids))
    columns = {"anchor": [queries[i] for i in rows], "positive": [documents[j] for j in train.positives.values]}
    start = time.perf_counter()
    dataset = Dataset.from_dict(columns)
    if way != "peer in-batch":
        dataset = mine_hard_negatives(
            dataset, model, corpus=documents, range_max=args.depth, num_negatives=args.negatives, batch_size=512,
            relative_margin=args.peer_margin if way == "peer, margin" else None, output_format="n-tuple",
            sampling_strategy="random", verbose=False,
        )  # fmt: skip
    mined = time.perf_counter() - start
    asked = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "peer"), max_steps=steps, per_device_train_batch_size=args.batch,
        learning_rate=args.rate, warmup_steps=round(0.1 * steps) if limit is None else WARMUP, max_grad_norm=1.0,
        lr_scheduler_type="linear" if limit is None else "constant_with_warmup",
        weight_decay=0.0, optim="adamw_torch_fused", batch_sampler="no_duplicates", save_strategy="no", report_to="none",
        disable_tqdm=True, seed=args.seed, use_cpu=args.device == "cpu", bf16=args.device != "cpu", logging_strategy="no",
        dataloader_drop_last=True, dataloader_num_workers=args.workers,
    )  # fmt: skip
    loss = MultipleNegativesRankingLoss(model, scale=20.0)
    stops = [] if limit is None else [until(start + limit)]
    trainer = SentenceTransformerTrainer(model=model, args=asked, train_dataset=dataset, loss=loss, callbacks=stops)
    start = time.perf_counter()
    trainer.train()
    print(f"peer: {len(columns['anchor']):,} pairs, {len(dataset):,} after mining ({mined:.0f} s)", flush=True)
    return mined + time.perf_counter() - start, trainer.state.global_step


def one(args: argparse.Namespace) -> dict[str, Any]:
    train, test = (hardneg.read_pairs(args.set, hardneg.ReadOptions(split=s)) for s in ("train", args.split))
    model = model_of(train, args.seed)
    steps = args.steps or args.epochs * (int((train.positives.lengths > 0).sum()) // args.batch)
    if args.way == "untrained":
        return {
            **measured(model, test),
            "steps": steps,
            "seconds": 0.0,
            "sizes": [len(train), len(test), len(test.document_ids)],
        }
    with tempfile.TemporaryDirectory() as folder:
        if args.way.startswith("peer"):
            seconds = peer(args, args.way, train, Path(folder), model, steps)[0]
        else:
            seconds = ours(args, args.way, train, Path(folder), model, steps)
    model.eval()
    return {**measured(model, test), "steps": steps, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--negatives", type=int, default=4)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--refresh", default="epoch", help="schedule of all ways that refresh")
    parser.add_argument("--bank", type=int, default=2048)
    parser.add_argument("--bank-age", type=int, default=20)
    parser.add_argument("--filter", action="append", default=[])
    parser.add_argument(
        "--policy", default="simans", help="of '+ bank + filter'; the others draw uniformly, as the peer does"
    )
    parser.add_argument("--peer-margin", type=float, default=0.05, help="relative margin of the peer's miner")
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.set_defaults(device="cpu", workers=0)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.filter = args.filter or ["shared-neighbors:max=0.5"]
    if args.way:
        print(json.dumps(one(args)))
        return
    print(machine())
    print(versions("hardneg", "torch", "sentence-transformers", "transformers", "accelerate"))
    names = [
        "set", "split", "epochs", "batch", "rate", "negatives", "depth", "refresh", "bank", "bank_age", "policy", "peer_margin",
    ]  # fmt: skip
    common = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in names]
    common += [f"--filter={spec}" for spec in args.filter]
    first = in_own_process(__file__, *common, "--way=untrained")
    queries, asked, documents = first["sizes"]
    print(f"{args.set}: {queries:,} queries to train on; {asked:,} test queries in {documents:,} documents")
    print(f"{first['steps']:,} steps of {args.batch}; {' '.join(common[2:])}; {args.seeds} seeds: median (range)")
    print(f"{'way':<20}{'steps':>7}{'nDCG@10':>24}{'MRR@10':>10}{'Recall@100':>12}{'seconds':>10}")
    _row("untrained", [first])
    seconds: dict[str, float] = {}
    ways = [*args.ways, *(["in-batch, time"] if {"in-batch", "+ bank + filter"} <= set(args.ways) else [])]
    for way in ways:
        more = []
        if way == "in-batch, time":
            ratio = seconds["+ bank + filter"] / seconds["in-batch"]
            more = [f"--steps={round(first['steps'] * ratio)}"]
        runs = [
            in_own_process(
                __file__, *common, f"--way={'in-batch' if way == 'in-batch, time' else way}", f"--seed={seed}", *more
            )
            for seed in range(args.seeds)
        ]
        seconds[way] = statistics.median(r["seconds"] for r in runs)
        _row(way, runs)


def _row(way: str, runs: list[dict[str, Any]]) -> None:
    def median(name: str) -> float:
        return float(np.median([r[name] for r in runs]))

    values = [100 * r["ndcg@10"] for r in runs]
    spread = f"{np.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"
    line = (
        f"{way:<20}{runs[0]['steps']:>7}{spread:>24}{100 * median('mrr@10'):>10.2f}{100 * median('recall@100'):>12.2f}"
    )
    print(line + f"{median('seconds'):>10.0f}", flush=True)


if __name__ == "__main__":
    main()
