"""Judges that err: what they find, what a guarantee makes of them, what relabelling is worth, and how fast they are asked.

    HF_HUB_OFFLINE=1 python benchmarks/judges.py --data ../shared/data share coverage relabel requests

The judge is made from the truth, with 10 % errors in both directions: of one pair it always says the same.

share      false negatives among 7 a query, before and after the most suspicious negatives were judged and replaced
coverage   200 draws: how often an interval of the false share holds it, and how wide it is; certificates that are wrong
relabel    nDCG@10 of an encoder trained on Banking77 with negatives that are left, dropped, ignored and promoted
requests   requests a second against a server on this machine that takes 20 ms for an answer
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import beta

sys.path.insert(0, str(Path(__file__).parent))
from common import machine, versions
from false_negatives import learned
from worlds import World, banking, commands, cranfield, scifact

import hardneg
from hardneg.false_negatives.guarantee import p_value
from hardneg.false_negatives.prediction_powered import Halves, allotted, normal_interval, powered_p, share_interval
from hardneg.hashing import mix
from hardneg.storage.arrays import Ragged

ERRORS = 0.1


def worlds(data: Path, only: list[str]) -> Iterator[World]:
    makers: dict[str, Callable[[], Iterable[World]]] = {
        "banking77": lambda: [banking(data)],
        "cranfield": lambda: [cranfield(data, 0)],
        "scifact": lambda: [scifact(data)],
        "tldr": lambda: commands(data),
    }
    for name, make in makers.items():
        if not only or name in only:
            yield from make()


def noisy(world: World, missed: float = ERRORS, accused: float = ERRORS, seed: int = 0) -> np.ndarray:
    """What the judge says of every candidate, bool [n, K]: the truth, with errors that depend on the pair alone."""
    rows = world.candidates.queries.astype(np.uint64)[:, None] * np.uint64(1 << 32)
    numbers = mix(mix(rows + world.candidates.documents.astype(np.uint64)) ^ mix(np.array([seed], np.uint64)))
    chance = numbers.astype(np.float64) / 2.0**64
    return np.where(world.truth, chance >= missed, chance < accused)


def shares(world: World) -> None:
    p, said = learned(world), noisy(world)
    chosen = world.chosen(p, 1.0)
    print(f"| {world.name} | {world.truth[chosen].mean():.4f}", end="")
    total = int(chosen.sum())
    for spent in (total // 10, total // 4, total // 2, total):
        open_, judged = world.open.copy(), np.zeros(world.open.shape, bool)
        left = spent
        while left > 0:  # what takes the place of a rejected one is judged as well
            kept = open_ & (np.cumsum(open_, 1) <= 7)
            todo = np.argwhere(kept & ~judged)
            if not len(todo):
                break
            order = np.argsort(-p[todo[:, 0], todo[:, 1]], kind="stable")[: min(left, max(1, spent // 4))]
            rows, columns = todo[order].T
            judged[rows, columns] = True
            open_[rows[said[rows, columns]], columns[said[rows, columns]]] = False
            left -= len(order)
        kept = open_ & (np.cumsum(open_, 1) <= 7)
        print(f" | {world.truth[kept].mean():.4f} ({spent - left:,})", end="")
    alone = world.default(p)
    print(f" | {alone[0]:.4f}", end="")
    open_ = world.open & (p <= alone[2])
    kept = open_ & (np.cumsum(open_, 1) <= 7)
    open_ &= ~(kept & said)
    kept = open_ & (np.cumsum(open_, 1) <= 7)
    print(f" | {world.truth[kept].mean():.4f} |", flush=True)


def coverage(world: World, times: int = 200, judged: int = 1000, checks: int = 100) -> None:
    p, said_all = learned(world), noisy(world)
    for label, chosen in (("all", world.chosen(p, 1.0)), ("posterior", world.default(p)[3])):
        truth, said = world.truth[chosen], said_all[chosen]
        share, m = truth.mean(), len(truth)
        n, k = min(judged, m), min(checks, m)
        inside, widths = np.zeros(5), np.zeros(5)
        for seed in range(times):
            order = np.random.default_rng(seed).permutation(m)[:n]
            f, y = said[order], truth[order]
            count = int(f.sum())
            found = [_exact(count, n)]
            first = np.arange(n) < k
            found.append(_exact(int(y[:k].sum()), k))
            found.append(normal_interval(Halves.of(f, first, y), m, 0.95))
            ones, zeros = allotted((count, n - count), k)
            checked = np.zeros(n, bool)
            checked[np.flatnonzero(f)[:ones]] = checked[np.flatnonzero(~f)[:zeros]] = True
            found.append(normal_interval(Halves.of(f, checked, y), m, 0.95))
            found.append(share_interval(Halves.of(f, checked, y), m, 0.95))
            inside += [low <= share <= high for low, high in found]
            widths += [high - low for low, high in found]
        cells = " | ".join(f"{i / times:.1%}, {w / times:.3f}" for i, w in zip(inside, widths, strict=True))
        print(f"| {world.name}, {label} | {share:.3f} | {said.mean():.3f} | {cells} |", flush=True)


def _exact(count: int, n: int) -> tuple[float, float]:
    low = 0.0 if count == 0 else float(beta.ppf(0.025, count, n - count + 1))
    return low, 1.0 if count == n else float(beta.ppf(0.975, count + 1, n - count))


def certificates(world: World, alpha: float = 0.1, times: int = 200) -> None:
    """A judge that misses half of what is relevant, and negatives of which more than alpha are false."""
    p = learned(world)
    steps = np.quantile(p[world.open], np.linspace(0.02, 1, 200))
    chosen = next(c for c in (world.chosen(p, t) for t in steps) if c.any() and world.truth[c].mean() > 1.2 * alpha)
    truth, said = world.truth[chosen], noisy(world, missed=0.5, accused=0.01)[chosen]
    m, level, wrong = len(truth), 0.035, np.zeros(3)
    for seed in range(times):
        order = np.random.default_rng(seed).permutation(m)[:1500]
        f, y = said[order], truth[order]
        ones, zeros = allotted((int(f.sum()), int((~f).sum())), 150)
        checked = np.zeros(len(f), bool)
        checked[np.flatnonzero(f)[:ones]] = checked[np.flatnonzero(~f)[:zeros]] = True
        wrong += [
            p_value(int(f.sum()), len(f), m, alpha) <= level,
            p_value(int(y[:150].sum()), 150, m, alpha) <= level,
            powered_p(Halves.of(f, checked, y), m, alpha) <= level,
        ]
    print(
        f"{world.name}: {truth.mean():.3f} of the negatives are false, alpha {alpha:g}, and the judge misses half. Certified "
        f"wrongly in {times} draws: its word alone {wrong[0] / times:.1%}, a person alone {wrong[1] / times:.1%}, the judge "
        f"corrected by a person {wrong[2] / times:.1%} (allowed: 3.5 %)",
        flush=True,
    )


def relabelling(data: Path, seeds: int) -> None:
    from hardneg.mining.mine import mine
    from hardneg.mining.select import SelectOptions, select

    pairs = hardneg.read_pairs(str(data / "banking77"), hardneg.ReadOptions(split="train"))
    groups, own = pairs.document_groups, pairs.query_groups
    assert groups is not None
    assert own is not None
    rng = np.random.default_rng(0)
    able = rng.permutation(np.flatnonzero(pairs.positives.lengths > 0))
    train, held = np.sort(able[:3000]), np.sort(able[3000:3500])
    asked = replace(pairs.of_queries(train), digests={**pairs.digests, "labels": "train"})
    test = pairs.of_queries(held)
    lists = [np.flatnonzero(groups == g) for g in own[held]]
    rows = np.repeat(np.arange(len(held)), [len(each) for each in lists])
    test = replace(test, positives=Ragged.from_pairs(rows, np.concatenate(lists), len(held)), positive_grades=None)
    folder = Path(tempfile.mkdtemp(prefix="judges-"))
    vectors = data / "banking77" / "minilm"
    np.save(folder / "q.npy", np.load(vectors / "queries.npy")[pairs.query_rows][train])
    np.save(folder / "d.npy", np.load(vectors / "corpus.npy")[pairs.document_rows])
    texts = hardneg.Pairs.from_columns  # the run needs a source of its own: the same documents, some of the queries
    corpus = pairs.documents.slice(0, len(pairs.document_ids))
    positives = [[corpus[d] for d in asked.positives.take(np.array([i])).values] for i in range(len(asked))]
    built = texts(
        asked.queries.slice(0, len(asked)), positives,
        query_ids=asked.query_ids.to_pylist(), corpus=corpus, corpus_ids=None,
    )  # fmt: skip
    first = {text: row for row, text in reversed(list(enumerate(corpus)))}
    place = np.array([first[text] for text in built.documents.slice(0, len(built.document_ids))])
    options = hardneg.MineOptions(
        query_embeddings=str(folder / "q.npy"), corpus_embeddings=str(folder / "d.npy"), depth=50, negatives=7
    )
    run = mine(built, folder / "run", options)
    truth_of = groups[place]
    table = run.negatives(built).to_pylist()
    row_of = {id: i for i, id in enumerate(built.document_ids.to_pylist())}
    query = np.repeat(np.arange(len(table)), [len(each["negative_ids"]) for each in table])
    document = np.array([row_of[id] for each in table for id in each["negative_ids"]])
    truth = truth_of[document] == own[train][query]
    error = np.random.default_rng(1).random(len(truth)) < ERRORS
    said = truth ^ error
    print(f"{len(truth):,} negatives judged: {truth.mean():.3f} false, {said.mean():.3f} called so")
    with open(folder / "e.csv", "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["query_id", "document_id", "relevant", "grade", "judge"])
        ids = [each["query_id"] for each in table for _ in each["negative_ids"]]
        named = [id for each in table for id in each["negative_ids"]]
        writer.writerows(zip(ids, named, said.astype(int), 3 * said.astype(int), ["stub"] * len(ids), strict=True))
    print("\n| negatives | false among them | nDCG@10 by seed | mean |\n| --- | --- | --- | --- |")
    for how in ("left", "drop", "ignore", "promote"):
        chosen = run
        if how != "left":
            select(run, SelectOptions(relabel=how, evidence=str(folder / "e.csv")), folder / how)
            chosen = hardneg.Run(folder / how)
        left = [(row["query_id"], id) for row in chosen.negatives().to_pylist() for id in row["negative_ids"]]
        places = {id: i for i, id in enumerate(built.query_ids.to_pylist())}
        false = np.mean([truth_of[row_of[d]] == own[train][places[q]] for q, d in left])
        scores = []
        for seed in range(seeds):
            encoder = hardneg.HashedEncoder(dimension=128, seed=seed)
            encoder.fit(corpus)
            settings = hardneg.TrainOptions(
                steps=400, batch_size=32, negatives=4, refresh="never", learning_rate=0.01, seed=seed, filters=()
            )
            hardneg.train(
                built, encoder, folder / f"t-{how}-{seed}", settings, run=chosen, device="cpu", warn=lambda _: None
            )
            best = hardneg.make_encoder(f"hashed:{folder / f't-{how}-{seed}' / 'last'}")
            scores.append(hardneg.evaluate(test, best).means["ndcg@10"])
        print(f"| {how} | {false:.3f} | {', '.join(f'{s:.4f}' for s in scores)} | {np.mean(scores):.4f} |", flush=True)


def requests() -> None:
    from hardneg.judges.base import JudgeOptions, make_judge

    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.judge_server import JudgeServer

    os.environ.setdefault("OPENAI_API_KEY", "none")
    print("\n| at once | requests | seconds | requests a second |\n| --- | --- | --- | --- |")
    for at_once, count in ((1, 100), (8, 800), (64, 3000)):
        pairs = [(f"query {i}", f"document {i} " + "word " * 100) for i in range(count)]
        with JudgeServer(lambda query, document: 1, seconds=0.02) as server, tempfile.TemporaryDirectory() as cache:
            judge = make_judge("openai:stub", JudgeOptions(url=server.url, cache=cache, concurrency=at_once))
            start = time.perf_counter()
            judge.judge(pairs)
            seconds = time.perf_counter() - start
        print(f"| {at_once} | {count:,} | {seconds:.2f} | {count / seconds:,.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["share", "coverage", "relabel", "requests"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--only", nargs="*", default=[], help="sets of share and coverage: banking77 cranfield scifact tldr"
    )
    args = parser.parse_args()
    print(machine(), versions())
    if "requests" in args.parts:
        requests()
    if "share" in args.parts:
        print(
            "\nshare: | set | none judged | a tenth | a quarter | half | as many as negatives | posterior | then judged |"
        )
    if "coverage" in args.parts:
        print(
            "\ncoverage: | set, negatives | false | called false | judge alone | person alone | both | allotted | allotted, exact |"
        )
    for world in worlds(args.data, args.only) if {"share", "coverage"} & set(args.parts) else ():
        if "share" in args.parts:
            shares(world)
        if "coverage" in args.parts:
            coverage(world)
            if world.name.startswith("banking77"):
                certificates(world)
    if "relabel" in args.parts:
        relabelling(args.data, args.seeds)


if __name__ == "__main__":
    main()
