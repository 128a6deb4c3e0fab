"""False negatives among mined negatives, under the field's filters and under hardneg's posterior; its guarantee; its cost.

    HF_HUB_OFFLINE=1 python benchmarks/false_negatives.py --data ../shared/data          # tables
    python benchmarks/false_negatives.py --cost 100000 --data ../shared/data              # time and memory of the features

Banking77 has one known positive a query and the truth in groups.tsv. Cranfield has several judged positives a query: one
is kept as known, the others are the false negatives that can be counted. Beside them three sets
that nothing was tuned to: Banking77 under another encoder (hashed words, no neural network), scikit-learn's handwritten
digits, whose classes are the truth, and SciFact, where nearly every claim has one right abstract and little is false.

A filter's threshold decides how hard its negatives are, so filters are compared at one hardness, that of the 95 % margin
(keep what scores below 95 % of the positive, NV-Retriever): each filter's threshold is moved until the mean score of its
7 negatives is the same. Judged pairs are drawn at random from the candidates with seeds 0 to 19.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import in_own_process, jittered_vectors, machine, median_and_spread, now_mb, peak_mb, versions
from worlds import EVERY, LEXICAL, NEGATIVES, SEEDS, World, banking, cranfield, digits, scifact

import hardneg
from hardneg.data.pairs import Pairs
from hardneg.false_negatives.features import SHARED_FEATURES, PairFeatures
from hardneg.false_negatives.guarantee import certify
from hardneg.false_negatives.known import SKETCHED, fit_known
from hardneg.false_negatives.learn import LADDER, fit_judged
from hardneg.false_negatives.population import Population, ladder
from hardneg.index.exact import ExactIndex
from hardneg.mining.candidates import Candidates, Context
from hardneg.mining.filters.base import index_scores, lowest_scores
from hardneg.storage.arrays import Ragged, SharedLists


def learned(world: World) -> np.ndarray:
    """P(relevant) of all candidates, learned from the known positives alone."""
    model, world.report = fit_known(world.learnable)
    return model.probability(world.features)


def judged(world: World, count: int, seed: int, names: tuple[str, ...] | None) -> tuple[np.ndarray, dict]:
    rows, columns = np.nonzero(world.open)
    pick = np.random.default_rng(seed).choice(len(rows), count, replace=False)
    rows, columns = rows[pick], columns[pick]
    values = {name: value[rows, columns] for name, value in world.features.items()}
    model, report = fit_judged(values, world.truth[rows, columns], np.ones(count), rows, names, seed)
    return model.probability(world.features), report


def guide_risk(world: World) -> np.ndarray:
    """GISTEmbed's guide: how far the candidate's guide score is above the positive's; the hashed encoder guides."""
    made = hardneg.HashedEncoder(dimension=256)
    texts = world.pairs.documents.slice(0, len(world.pairs.document_ids))
    made.fit(texts)
    index = ExactIndex(np.asarray(made.encode(texts), np.float32))
    queries = np.asarray(made.encode(world.pairs.queries.take(world.candidates.queries)), np.float32)
    scores = index.pair_scores(queries, world.candidates.documents)
    positives = lowest_scores(index_scores(index, queries, world.positives.take(world.candidates.queries)))
    return scores - positives[:, None]


def row(name: str, results: list[tuple[float, float, float]], note: str = "") -> None:
    false, score, count = (np.array(column) for column in zip(*results, strict=True))
    spread = f" ± {false.std():.4f}" if len(false) > 1 else ""
    print(f"| {name} | {false.mean():.4f}{spread} | {score.mean():.3f} | {count.mean():.2f} | {note} |", flush=True)


def compare(world: World) -> None:
    n, k = world.open.shape
    hardness = world.margin[1]
    print(
        f"\n### {world.name}: {n:,} queries, depth {k}, {world.truth[world.open].mean():.3f} of the candidates relevant\n"
    )
    print("| filter | false among the kept | mean score | negatives a query | |\n| --- | --- | --- | --- | --- |")
    row("none", [world.at(np.zeros(world.open.shape), 1)])
    row("rank > 50", [world.at(np.where(world.candidates.ranks > 50, 0.0, 1.0) * np.ones(world.open.shape), 0.5)])
    row("score <= 0.6", [world.at(world.candidates.scores, 0.6)])
    row("margin 95 %", [world.margin])
    margin = world.candidates.scores - world.candidates.positive_scores[:, None]
    row("absolute margin 0.05", [world.at(margin, -0.05)])
    print("| *at the hardness of the 95 % margin:* | | | | |")
    row("score", [world.at_hardness(world.candidates.scores, hardness)])
    row("rank", [world.at_hardness(-world.candidates.ranks * np.ones(world.open.shape), hardness)])
    row("margin (any threshold)", [world.at_hardness(margin, hardness)])
    if "minilm" in world.name:  # digits have no texts, and the hashed encoder cannot guide itself
        row("guide (hashed encoder)", [world.at_hardness(guide_risk(world), hardness)])
    row("near-duplicate of the positive (embedding)", [world.at_hardness(world.features["positive_score"], hardness)])
    row("common neighbors: crowd_query alone", [world.at_hardness(world.features["shared_query"], hardness)])
    p = learned(world)
    row("**posterior, no judgement**", [world.at_hardness(p, hardness)], "known positives alone")
    if world.truth[world.open].mean() * 300 > 3:  # else many samples of 300 hold no relevant pair at all
        results = [judged(world, 300, seed, SHARED_FEATURES) for seed in SEEDS]
        row("**posterior, 300 judged**", [world.at_hardness(r, hardness) for r, _ in results], "crowds; seeds 0-19")
        results = [judged(world, 300, seed, None) for seed in SEEDS]
        row(
            "posterior, 300 judged",
            [world.at_hardness(r, hardness) for r, _ in results],
            "features by cross-validation",
        )
    oracle = [world.at_hardness(world.truth + 1e-3 * world.candidates.scores, hardness)]
    row("oracle", oracle)
    print("| *at its own threshold, no judgement:* | | | | |")
    for threshold in (0.05, 0.1, 0.2):
        row(f"posterior <= {threshold}", [world.at(p, threshold)], f"expected {expected(world, p, threshold):.4f}")
    row("oracle", [world.at(world.truth.astype(float), 0.5)])
    share = world.report["relevant_share"]
    print(
        f"\nrelevant among the open candidates: estimated {share:.3f}, true {world.truth[world.open].mean():.3f}; reliability:"
    )
    edges = [0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.01]
    cells = []
    for low, high in itertools.pairwise(edges):
        here = world.open & (p >= low) & (p < high)
        if here.sum() >= 50:
            cells.append(f"{p[here].mean():.3f} said, {world.truth[here].mean():.3f} true")
    print("; ".join(cells) + ".")


def expected(world: World, p: np.ndarray, threshold: float) -> float:
    kept = world.open & (p <= threshold)
    chosen = kept & (np.cumsum(kept, 1) <= NEGATIVES)
    return float(p[chosen].mean()) if chosen.any() else 0.0


def ablation(worlds: list[World]) -> None:
    print("\n### What each feature is worth\n")
    print(
        "False among the kept at the 95 % margin's hardness; logistic model of 300 (20 seeds) and of 10,000 judged pairs (3).\n"
    )
    print("| features | " + " | ".join(f"{w.name}: 300 | 10,000" for w in worlds) + " |")
    print("| --- |" + " --- | --- |" * len(worlds))
    sets: dict[str, tuple[str, ...]] = {
        "shared_query": ("shared_query",),
        "shared_positive": ("shared_positive",),
        "shared_votes": ("shared_votes",),
        "crowd_query, crowd_positive": SHARED_FEATURES[:2],
        "the three crowds": SHARED_FEATURES,
        "+ score, positive_score": (*SHARED_FEATURES, "score", "positive_score"),
        "+ margin": (*SHARED_FEATURES, "margin"),
        "+ reach_query, reach_positive": (*SHARED_FEATURES, "local_score_query", "local_score_positive"),
        "+ margin, reach_*": LADDER[-1],
        "+ log_rank": (*SHARED_FEATURES, "log_rank"),
        "+ lexical_*": (*SHARED_FEATURES, *LEXICAL),
        "all": (*SHARED_FEATURES, *EVERY, *LEXICAL),
        "all but the crowds": (*EVERY, *LEXICAL),
    }
    for label, names in sets.items():
        cells = []
        for world in worlds:
            for count, seeds in ((300, SEEDS), (10_000, range(3))):
                count = min(count, int(world.open.sum()) // 2)
                found = [world.at_hardness(judged(world, count, s, names)[0], world.margin[1])[0] for s in seeds]
                cells.append(f"{np.mean(found):.4f} ± {np.std(found):.4f}" if count == 300 else f"{np.mean(found):.4f}")
        print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


class Counted(Population):
    """A population whose candidates are given as arrays."""

    def __init__(self, world: World, p: np.ndarray) -> None:
        from hardneg.mining.samplers import Top, query_keys

        self.sampler, self.wanted, self.seed = Top(), NEGATIVES, 0
        self.keys = query_keys(world.pairs.query_ids)
        self.parts = [(world.candidates, world.open, p.astype(np.float32))]


def guarantee(world: World, alpha: float = 0.05, confidence: float = 0.95, times: int = 200) -> None:
    """Judgements drawn anew 200 times: how often the promise is broken, and what it costs in hardness."""
    population = Counted(world, learned(world))
    rungs = ladder(population, alpha)
    scores, truth = world.candidates.scores[world.open], world.truth[world.open]
    rates = [float(truth[c].mean()) for c in rungs.chosen]
    hardness = [float(scores[c].mean()) for c in rungs.chosen]
    able = np.flatnonzero(np.logical_or.reduce(rungs.chosen))
    # The hardest threshold of all that keeps alpha, as one who knows the truth would choose it.
    steps = np.unique(np.quantile(population.probabilities, np.linspace(0, 1, 400)))
    knowing = [world.at(population.parts[0][2], float(t)) for t in steps]
    best = max((h for false, h, _ in knowing if false <= alpha), default=float("nan"))
    oracle = world.at(world.truth.astype(float), 0.5)[1]
    for sample in (300, 600, 1200):
        held = min(round(0.75 * sample), len(able))
        got, broken = [], 0
        for seed in range(times):
            drawn = np.random.default_rng(seed).choice(able, held, replace=False)
            seen = [c[drawn] for c in rungs.chosen]
            tests = certify(
                rungs.thresholds, [int(c.sum()) for c in rungs.chosen], [int(s.sum()) for s in seen],
                [int((s & truth[drawn]).sum()) for s in seen], alpha, confidence,
            )  # fmt: skip
            passed = sum(test.passed for test in tests)
            if passed:
                got.append(hardness[passed - 1])
                broken += rates[passed - 1] > alpha
        kept = f"{np.mean(got):.3f}" if got else "-"
        lost = f"{best - np.mean(got):.3f}" if got else "-"
        shares = f"{len(got) / times:.1%} | {broken / times:.1%}"
        print(f"| {world.name} | {sample} | {shares} | {kept} | {lost} | {best:.3f} | {oracle:.3f} |", flush=True)


def redrawn(data: Path) -> None:
    """The known positives of Banking77 drawn anew from the queries' intents."""
    print("\n### banking77, minilm: known positives drawn anew (seeds 0-19)\n")
    print("| filter | false among the kept | mean score | negatives a query | |\n| --- | --- | --- | --- | --- |")
    world = banking(data)
    pairs, rows = world.pairs, world.candidates.queries
    own, groups = pairs.query_groups[rows], pairs.document_groups
    members_of = [np.flatnonzero(groups == g) for g in range(groups.max() + 1)]
    margins, posteriors = [], []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        drawn = np.array([rng.choice(members_of[g]) for g in own])
        while (same := pairs.document_keys[drawn] == pairs.query_keys[rows]).any():  # the query's own sentence is none
            drawn[same] = [rng.choice(members_of[g]) for g in own[same]]
        known = Ragged.from_pairs(rows, drawn, len(pairs))
        index = world.context.index
        scores = index.pair_scores(np.asarray(world.candidates.vectors, np.float32), drawn[:, None])[:, 0]
        candidates = replace(world.candidates, positive_scores=scores)
        context = Context(
            replace(pairs, positives=known), world.context.open_index, SharedLists(known, np.arange(len(pairs))), None,
            world.context.find_nearest,
        )  # fmt: skip
        context.cache["neighbor graph"] = PairFeatures(world.context).graph
        other = World(world.name, context.pairs, candidates, context, known, world.truth)
        margins.append(other.margin)
        posteriors.append(other.at_hardness(learned(other), other.margin[1]))
    row("margin 95 %", margins)
    row("**posterior, no judgement**", posteriors, "at each draw's own hardness")
    sketched(world)


def sketched(world: World) -> None:
    """The posterior as one inner product a pair, which is how training uses it."""
    import torch

    model, _ = fit_known(world.learnable, names=SKETCHED, hinged=False)
    posterior = hardneg.Posterior(model.features, model.weights, model.intercept, 0.1, "known positives")
    rows, documents = world.candidates.queries, world.candidates.documents.astype(np.int64)
    for components in (256, 512, 1024):
        sketch = hardneg.make_sketch(posterior, world.context, components)
        parts = [slice(i, i + 256) for i in range(0, len(rows), 256)]
        found = [sketch.probability(torch.from_numpy(rows[p]), torch.from_numpy(documents[p])).numpy() for p in parts]
        bank = torch.arange(4096)
        seconds = []
        for _ in range(10):
            started = time.perf_counter()
            sketch.probability(torch.arange(256), bank)
            seconds.append(time.perf_counter() - started)
        note = f"256 queries with a bank of 4,096: {1e3 * np.median(seconds):.0f} ms"
        row(f"sketch of {components} components", [world.at_hardness(np.concatenate(found), world.margin[1])], note)


def by_rank(data: Path) -> None:
    print("\n### Cranfield: false negatives by rank, one of the judged positives kept as known (seeds 0-19)\n")
    print("| filter | " + " | ".join(f"{a}-{b}" for a, b in BANDS) + " | first 7: false | mean score | negatives |")
    print("| --- |" + " --- |" * (len(BANDS) + 3))
    rows: dict[str, list[list[float]]] = {}
    for seed in SEEDS:
        world = cranfield(data, seed)
        p = learned(world)
        names = {
            "none": (np.zeros(p.shape), 1.0),
            "margin 95 %": (np.where(margin_ok(world), 0.0, 1.0), 0.5),
            "posterior <= 0.1, no judgement": (p, 0.1),
            "posterior at the margin's hardness": (p, threshold_at(world, p)),
        }
        for name, (risk, threshold) in names.items():
            kept = world.open & (risk <= threshold)
            shares = []
            for low, high in BANDS:
                band = kept[:, low - 1 : high]
                shares.append(float(world.truth[:, low - 1 : high][band].mean()) if band.any() else float("nan"))
            rows.setdefault(name, []).append([*shares, *world.at(risk, threshold)])
    for name, found in rows.items():
        table = np.array(found)
        cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(np.nanmean(table, 0), np.nanstd(table, 0), strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


PARTS = ("filters", "redrawn", "ranks", "guarantee", "ablation")

BANDS = ((1, 5), (6, 10), (11, 20), (21, 50), (51, 100))


def margin_ok(world: World) -> np.ndarray:
    p = world.candidates.positive_scores[:, None]
    return world.candidates.scores <= p - 0.05 * np.abs(p)


def threshold_at(world: World, p: np.ndarray) -> float:
    steps = np.unique(np.quantile(p[world.open], np.linspace(0, 1, 2001)))
    return float(next((t for t in steps if world.at(p, t)[1] >= world.margin[1]), 1.0))


def cost(data: Path, count: int, what: str) -> dict[str, float]:
    """Seconds and memory of the search and of the features, one after the other, in a process of its own."""
    folders = [data / name for name in ("banking77", "cranfield")]
    vectors = jittered_vectors(folders, 2 * count, 0.35, 0)
    queries, documents = vectors[:count], vectors[count:]
    pairs = Pairs.from_columns([f"q{i}" for i in range(count)], [f"d{i}" for i in range(count)])
    before = peak_from_now()
    index = ExactIndex(documents)
    started = time.perf_counter()
    found = [index.search(queries[i : i + 4096], 100) for i in range(0, count, 4096)]
    search = time.perf_counter() - started
    after_search = peak_mb()
    if what == "search":
        return {"search": search, "peak": after_search, "base": before}
    nearest = np.concatenate([each.documents[:, :10] for each in found])
    context = Context(pairs, lambda: index, pairs.known_positives(), None, lambda: nearest)
    features = PairFeatures(context)
    started = time.perf_counter()
    assert features.graph.size == count
    crowds = time.perf_counter() - started
    started = time.perf_counter()
    for i, each in enumerate(found):
        rows = np.arange(i * 4096, i * 4096 + len(each.documents))
        block = Candidates(rows, each.documents, each.scores, each.scores[:, 0], queries[rows])
        features.of(SHARED_FEATURES, block)
    pairwise = time.perf_counter() - started
    peak = peak_mb()
    return {"search": search, "crowds": crowds, "features": pairwise, "peak": peak, "base": before}


def peak_from_now() -> float:
    """Forget the peak so far; returns what is held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return now_mb()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cost", type=int, metavar="N", help="only time and memory, at N queries and documents")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="the tables to make")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        import json

        print(json.dumps(cost(args.data, args.cost, args.one)))
        return
    print(machine())
    print(versions("hardneg", "scikit-learn", "faiss-cpu", "torch"))
    if args.cost:
        common = ("--data", str(args.data), "--cost", str(args.cost), "--one", "all")
        found = [in_own_process(__file__, *common) for _ in range(args.repeat)]
        alone = [in_own_process(__file__, *common[:-1], "search") for _ in range(args.repeat)]
        for name in ("search", "crowds", "features"):
            print(f"{name}: {median_and_spread([each[name] for each in found])} s")
        ratios = [(each["crowds"] + each["features"]) / each["search"] for each in found]
        print(f"crowds and features, of the search: {median_and_spread(ratios)}")
        for name, runs in (("search alone", alone), ("search and features", found)):
            print(f"memory above the vectors, {name}: {median_and_spread([r['peak'] - r['base'] for r in runs])} MB")
        return
    tables = {"filters", "guarantee", "ablation"} & set(args.only)
    worlds = [banking(args.data), banking(args.data, "hashed"), digits()] if tables else []
    if "filters" in args.only:
        for world in [*worlds, cranfield(args.data, 0), scifact(args.data)]:
            compare(world)
    if "redrawn" in args.only:
        redrawn(args.data)
    if "ranks" in args.only:
        by_rank(args.data)
    if "guarantee" in args.only:
        print("\n### The guarantee: alpha 0.05, confidence 0.95, judgements drawn anew 200 times\n")
        print(
            "| set | judged | certified | promise broken | mean score | below the best threshold by | best threshold | oracle |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for world in [*worlds, cranfield(args.data, 0)]:
            guarantee(world)
    if "ablation" in args.only:
        ablation([worlds[0], worlds[1], cranfield(args.data, 0)])


if __name__ == "__main__":
    main()
