"""Sources of candidates: BM25 alone, the encoder alone, and both fused.

    HF_HUB_OFFLINE=1 python benchmarks/sources.py --data ../shared/data            # what they list
    HF_HUB_OFFLINE=1 python benchmarks/sources.py --data ../shared/data --train    # what training with each gives
    python benchmarks/sources.py --data ../shared/data --peer                      # fused order beside the package ranx

What they list, per set, with one known positive a query: the share of all positives among the first 100 (recall); of the first 7 that
the default filters leave, the share that is false, the mean score by the encoder, and the share of them that the encoder alone would
not have listed; then the share of false ones at one hardness (that of the 95 % margin on the encoder's own candidates), by the
posterior that knows nothing of sources and by the one that looks at their ranks and scores.

Training: a bag of hashed words, the same seconds of processor time for each way (mining not counted), one negative a pair, drawn
among the 7 of the run; in-batch negatives as well.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import in_own_process, machine, versions
from worlds import World, make_world, minilm

import hardneg
from hardneg.errors import DataError
from hardneg.false_negatives.features import PairFeatures
from hardneg.false_negatives.known import ASKED, fit_known
from hardneg.index.base import Neighbors
from hardneg.index.exact import ExactIndex
from hardneg.mining.resources import Resources
from hardneg.mining.sources import BM25, ReciprocalRank, Scores, SourceInputs
from hardneg.mining.sources.fusion import Fusion, fuse
from hardneg.storage.arrays import Ragged

DEPTH = 100
MORE = ("source_rank:bm25", "source_score:bm25")
WAYS: dict[str, tuple[tuple[str, ...], Fusion]] = {
    "dense": (("dense",), ReciprocalRank()),
    "bm25": (("bm25",), ReciprocalRank()),
    "fused, rrf": (("dense", "bm25"), ReciprocalRank()),
    "fused, scores": (("dense", "bm25"), Scores()),
}


def worlds(data: Path, only: list[str]) -> Iterator[tuple[World, np.ndarray]]:
    """Each set with one known positive a query, and the queries' vectors."""
    makers: dict[str, Callable[[], tuple[World, np.ndarray]]] = {
        "banking77": lambda: world_of(data / "banking77", "minilm", 2000),
        "cranfield": lambda: world_of(data / "cranfield", "minilm", 10_000),
        "scifact": lambda: world_of(data / "scifact", "minilm", 10_000),
        "tldr": lambda: world_of(data / "tldr", "hashed", 2000),
    }
    for name, make in makers.items():
        if not only or name in only:
            yield make()


def world_of(folder: Path, encoder: str, most: int) -> tuple[World, np.ndarray]:
    pairs = hardneg.read_pairs(str(folder), hardneg.ReadOptions(split="train"))
    stored = folder / "minilm"
    if encoder == "minilm" and stored.is_dir():
        queries = np.load(stored / "queries.npy")[pairs.query_rows].astype(np.float32)
        documents = np.load(stored / "corpus.npy")[pairs.document_rows].astype(np.float32)
    else:
        texts = [
            side.slice(0, n) for side, n in ((pairs.queries, len(pairs)), (pairs.documents, len(pairs.document_ids)))
        ]
        if encoder == "minilm":
            queries, documents = (minilm(each) for each in texts)
        else:
            made = hardneg.HashedEncoder(dimension=256)
            made.fit(texts[1][:: max(1, len(texts[1]) // 4000)])
            queries, documents = (np.asarray(made.encode(each)) for each in texts)
    rng = np.random.default_rng(0)
    rows = np.flatnonzero(pairs.positives.lengths > 0)
    rows = np.sort(rng.permutation(rows)[:most])
    kept = np.array([rng.choice(pairs.positives.take(rows[i : i + 1]).values) for i in range(len(rows))])
    known = Ragged.from_pairs(rows, kept, len(pairs))
    world = make_world(
        f"{folder.name}, {encoder}",
        pairs,
        rows,
        queries,
        documents,
        known,
        lambda found: truth_of(pairs, rows, found),
        DEPTH,
    )
    return world, queries


def truth_of(pairs: hardneg.Pairs, rows: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Which documents are relevant: those of the query's group, if there are groups, or else its positives."""
    if pairs.query_groups is not None and pairs.document_groups is not None:
        return pairs.document_groups[found] == pairs.query_groups[rows][:, None]
    relevant = pairs.positives.take(rows).padded()
    return np.any((found[:, :, None] == relevant[:, None, :]) & (relevant[:, None, :] >= 0), axis=2)


def with_sources(world: World, queries: np.ndarray, way: str) -> World:
    """The same queries with the candidates of some sources."""
    pairs, rows, index = world.pairs, world.candidates.queries, world.context.index
    assert isinstance(index, ExactIndex)
    labels, fusion = WAYS[way]
    lists = []
    for label in labels:
        if label == "dense":
            lists.append(Neighbors(world.candidates.scores, world.candidates.documents))
        else:
            inputs = SourceInputs(pairs, queries, index, Path("."), {}, Resources())
            opened = BM25().open(inputs)
            blocks = [opened.search(rows[i : i + 512], DEPTH) for i in range(0, len(rows), 512)]
            lists.append(Neighbors(*(np.concatenate([getattr(b, n) for b in blocks]) for n in ("scores", "documents"))))
    documents, listed = fuse(fusion, labels, lists, DEPTH)
    scores = index.pair_scores(np.asarray(queries[rows], np.float32), documents)
    candidates = replace(world.candidates, documents=documents, scores=scores, listed=listed)
    truth = truth_of(pairs, rows, documents) & (documents >= 0)
    return World(f"{world.name}, {way}", pairs, candidates, world.context, world.positives, truth)


def line(world: World, dense: World, hardness: float) -> str:
    """One row of the table."""
    pairs, rows = world.pairs, world.candidates.queries
    relevant = pairs.positives.take(rows).padded()
    found = np.any(relevant[:, :, None] == world.candidates.documents[:, None, :], axis=2) & (relevant >= 0)
    chosen = world.open & (np.cumsum(world.open, 1) <= 7)
    beyond = ~np.any(world.candidates.documents[:, :, None] == dense.candidates.documents[:, None, :], axis=2)
    cells = [
        f"{world.name} ({len(rows):,})", f"{found.sum() / (relevant >= 0).sum():.3f}", f"{world.truth[chosen].mean():.3f}",
        f"{world.candidates.scores[chosen].mean(dtype=np.float64):.3f}", f"{(beyond & chosen).sum() / chosen.sum():.3f}",
    ]  # fmt: skip
    listed = world.candidates.listed
    names = MORE if listed is not None and "bm25" in listed.labels else ()
    for more in [(), *([names] if names else [])]:
        for name in more:
            world.features.setdefault(name, feature(world, name))
        vars(world).pop("learnable", None)
        try:
            model, report = fit_known(world.learnable, names=(*ASKED, *more))
            p = model.probability(world.features)
            cells.append("rejects nothing" if "uninformative" in report else f"{world.at_hardness(p, hardness)[0]:.3f}")
        except DataError:
            cells.append("nothing to learn from")
    return "| " + " | ".join([*cells, *([] if names else ["-"])]) + " |"


def feature(world: World, name: str) -> np.ndarray:
    return PairFeatures(world.context, world.positives).of([name], world.candidates)[name]


def listing(args: argparse.Namespace) -> None:
    columns = ("positives in 100", "false", "mean score", "not by the encoder", "false at one hardness", "with sources")
    print(f"| set, candidates (queries) | {' | '.join(columns)} |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for world, queries in worlds(args.data, args.only):
        hardness = world.margin[1]
        for way in args.ways or WAYS:
            start = time.perf_counter()
            row = line(with_sources(world, queries, way), world, hardness)
            print(f"{row}  ({time.perf_counter() - start:.0f} s)", flush=True)


def train_one(folder: Path, way: str, seed: int, seconds: float) -> dict[str, Any]:
    """Train a bag of words with the negatives of one way, and measure it on the test split."""
    import torch

    train, test = (hardneg.read_pairs(str(folder), hardneg.ReadOptions(split=s)) for s in ("train", "test"))
    encoder = hardneg.HashedEncoder(dimension=256, seed=seed)
    with tempfile.TemporaryDirectory() as place:
        labels, _ = WAYS[way if way in WAYS else "dense"]
        options = hardneg.MineOptions(
            negatives=7, depth=50, seed=seed, candidates=labels, filters=("margin:relative=0.02",)
        )
        run = hardneg.mine(train, Path(place) / "run", options, encoder=encoder)
        table = run.negatives()["negative_ids"].to_pylist()
    place_of = {id: i for i, id in enumerate(train.document_ids.to_pylist())}
    negatives = [[place_of[d] for d in each] for each in table]
    rows = np.array([i for i in range(len(train)) if negatives[i] and train.positives.lengths[i]])
    rng, batch = np.random.default_rng(seed), min(128, len(rows))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=5e-3)
    torch.set_num_threads(1)
    start, steps = time.process_time(), 0
    while time.process_time() - start < seconds:
        here = rng.choice(rows, batch, replace=False)
        positive = [int(rng.choice(train.positives.take(here[i : i + 1]).values)) for i in range(batch)]
        texts = [train.queries.take(here), train.documents.take(np.array(positive))]
        if way != "in-batch":
            texts.append(train.documents.take(np.array([rng.choice(negatives[i]) for i in here])))
        vectors = [torch.nn.functional.normalize(encoder.vectors(each), dim=1) for each in texts]
        scores = vectors[0] @ torch.cat(vectors[1:]).t() / 0.05
        same = torch.from_numpy(np.array(positive)[:, None] == np.array(positive)[None, :]) & ~torch.eye(
            batch, dtype=torch.bool
        )
        scores[:, :batch] = scores[:, :batch].masked_fill(same, -1e4)
        loss = torch.nn.functional.cross_entropy(scores, torch.arange(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    encoder.eval()
    found = hardneg.evaluate(test, encoder)
    return {"ndcg": found.means["ndcg@10"], "steps": steps}


def training(args: argparse.Namespace) -> None:
    print("| set | way | steps | nDCG@10 of each seed | mean |\n| --- | --- | ---: | --- | ---: |")
    for name in args.only or ["scifact", "tldr"]:
        for way in args.ways or ("in-batch", "dense", "bm25", "fused, rrf"):
            more = ["--data", str(args.data), "--only", name, "--way", way, "--seconds", str(args.seconds)]
            found = [in_own_process(__file__, *more, "--seed", str(seed)) for seed in range(3)]
            values = [100 * each["ndcg"] for each in found]
            steps = int(np.mean([each["steps"] for each in found]))
            each = ", ".join(f"{value:.2f}" for value in values)
            print(f"| {name} | {way} | {steps} | {each} | {np.mean(values):.2f} |", flush=True)


def beside_ranx() -> None:
    """Fused lists of random rankings, here and by the package ranx: the same documents in the same order, but for equal worth."""
    from ranx import Run
    from ranx import fuse as theirs

    rng = np.random.default_rng(0)
    queries, width = 200, 50
    lists = []
    for _ in range(3):
        documents = np.stack([rng.permutation(200)[:width] for _ in range(queries)]).astype(np.int32)
        lists.append(Neighbors(-np.sort(-rng.standard_normal((queries, width)).astype(np.float32), axis=1), documents))
    named = [
        Run(
            {
                f"q{i}": {f"d{d}": float(s) for d, s in zip(each.documents[i], each.scores[i], strict=True)}
                for i in range(queries)
            }
        )
        for each in lists
    ]
    for fusion, norm, method in ((ReciprocalRank(), None, "rrf"), (Scores(), "min-max", "sum")):
        found, listed = fuse(fusion, "abc", lists, 600)
        fused = theirs(named, norm=norm, method=method)
        worst, swapped = 0.0, 0
        for i in range(queries):
            worth = fused[f"q{i}"]
            here = [f"d{d}" for d in found[i] if d >= 0]
            assert set(here) == set(worth)
            their = np.array([worth[d] for d in here])
            worst = max(worst, float(np.abs(their - listed.fused[i, : len(here)]).max()))
            swapped += int((np.diff(their) > 1e-9).sum())
        print(f"{method}: {queries} queries, largest difference of worth {worst:.1e}, pairs in another order {swapped}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--ways", nargs="+", default=[], choices=["in-batch", *WAYS])
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(train_one(args.data / args.only[0], args.way, args.seed, args.seconds)))
        return
    print(machine())
    print(versions("hardneg", "bm25s", "PyStemmer", "torch", "ranx"))
    if args.peer:
        beside_ranx()
    elif args.train:
        training(args)
    else:
        listing(args)


if __name__ == "__main__":
    main()
