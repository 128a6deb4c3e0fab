"""The posterior without judgements on sets of all kinds, beside the best simple filters, the version before, and the truth.

    HF_HUB_OFFLINE=1 python benchmarks/posterior.py --data ../shared/data

All with one known positive a query, 7 negatives, depth 300, no judgement. Filters are compared at one hardness, that of the 95 %
margin: each filter's threshold is moved until the mean score of its negatives is the same. `ceiling` is a logistic model of the
same features that is fitted to the truth (candidates of the ranks 1 to 60, five folds by query). At the threshold that `hardneg
calibrate` chooses for 5 %, the share that is false, and in brackets what was said: expected (from, to).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from scipy.special import expit, logit

sys.path.insert(0, str(Path(__file__).parent))
from common import machine, versions
from earlier_posterior import TELLING
from earlier_posterior import fit_known as earlier
from false_negatives import Counted, learned
from worlds import World, banking, commands, cranfield, digits, intents, passages, scifact, translations

from hardneg.errors import DataError
from hardneg.false_negatives.features import SHARED_FEATURES
from hardneg.false_negatives.guarantee import Test, certify, judgements_needed
from hardneg.false_negatives.known import ASKED, POSITIVE, fit_known
from hardneg.false_negatives.model import MISFIT
from hardneg.false_negatives.population import ladder


def sets(data: Path, only: list[str]) -> Iterator[World]:
    groups: dict[str, Callable[[], Iterable[World]]] = {
        "intents": lambda: intents(data),
        "digits": lambda: [digits()],
        "cranfield": lambda: (cranfield(data, seed) for seed in range(3)),
        "passages": lambda: passages(data),
        "commands": lambda: commands(data),
        "scifact": lambda: [scifact(data)],
        "translations": translations,
    }
    for name, make in groups.items():
        if not only or name in only:
            try:
                yield from make()
            except ModuleNotFoundError as error:
                print(f"({name}: not run, the package {error.name} is not installed)")


def ceiling(world: World) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    n, width = world.truth.shape
    names = [*ASKED, POSITIVE, "margin", "positive_score", "local_score_positive"]
    table = np.stack([world.features[name].astype(np.float64).ravel() for name in names], 1)
    table = (table - table.mean(0)) / (table.std(0) + 1e-9)
    truth, query = world.truth.ravel(), np.repeat(np.arange(n), width)
    near = np.tile(np.arange(width) < 60, n) & world.open.ravel()
    p = np.zeros(n * width)
    for train, test in GroupKFold(5).split(table, groups=query):
        used = train[near[train]]
        if truth[used].all() or not truth[used].any():
            p[test] = truth[used].mean()
            continue
        fitted = LogisticRegression(max_iter=500).fit(table[used], truth[used])
        p[test] = fitted.predict_proba(table[test])[:, 1]
    return p.reshape(n, width)


def before(world: World) -> np.ndarray | None:
    used = world.open | world.known
    try:
        model, _ = earlier({n: world.features[n][used] for n in (*SHARED_FEATURES, *TELLING[1:])}, world.known[used])
    except DataError:
        return None
    return model.probability(world.features)


def line(world: World) -> str:
    hardness = world.margin[1]
    cells = [f"{world.name} ({len(world.truth):,})", f"{world.margin[0]:.3f}"]
    cells.append(f"{world.at_hardness(world.candidates.scores, hardness)[0]:.3f}")
    old = before(world)
    cells.append("-" if old is None else f"{world.at_hardness(old, hardness)[0]:.3f}")
    started = time.perf_counter()
    model, report = fit_known(world.learnable)
    seconds = time.perf_counter() - started
    p = model.probability(world.features)
    cells.append(f"**{world.at_hardness(p, hardness)[0]:.3f}**")
    cells.append(f"{world.at_hardness(ceiling(world), hardness)[0]:.3f}")
    if old is None:
        cells.append("-")
    else:
        false, _, _, chosen = world.default(old)
        cells.append(f"{false:.3f} ({old[chosen].mean():.3f})")
    if "uninformative" in report:
        relevant = float(world.truth.sum(1).mean())
        return (
            "| " + " | ".join([*cells, "rejects nothing, says why", f"- for {relevant:.1f}", f"{seconds:.0f}"]) + " |"
        )
    false, _, _, chosen = world.default(p)
    odds = logit(p[chosen].clip(1e-12, 1 - 1e-12))
    low, high = (float(expit(odds + shift).mean()) for shift in report["level_range"])
    within = low / MISFIT <= false <= high * MISFIT
    said = f"{p[chosen].mean():.3f}, {low / MISFIT:.3f} to {min(1, high * MISFIT):.3f}"
    cells.append(f"{false:.3f} ({said}){'' if within else ' **outside**'}")
    low, high = report["relevant_per_query_range"]
    cells.append(f"{report['relevant_per_query']:.1f} ({low:.1f} to {high:.1f}) for {world.truth.sum(1).mean():.1f}")
    return "| " + " | ".join([*cells, f"{seconds:.0f}"]) + " |"


def promises(world: World, alpha: float = 0.05, confidence: float = 0.95, times: int = 200) -> Iterator[str]:
    """Judgements drawn anew: how often a threshold is certified, how often the promise is broken, and what it costs."""
    population = Counted(world, learned(world))
    rungs = ladder(population, alpha)
    scores, truth = world.candidates.scores[world.open], world.truth[world.open]
    rates = [float(truth[chosen].mean()) for chosen in rungs.chosen]
    hardness = [float(scores[chosen].mean()) for chosen in rungs.chosen]
    negatives = [int(chosen.sum()) for chosen in rungs.chosen]
    able = np.flatnonzero(np.logical_or.reduce(rungs.chosen))

    said = population.expected(rungs.thresholds[0])

    def tested(drawn: np.ndarray, look: int) -> list[Test]:
        seen = [chosen[drawn] for chosen in rungs.chosen]
        false = [int((each & truth[drawn]).sum()) for each in seen]
        return certify(rungs.thresholds, negatives, [int(each.sum()) for each in seen], false, alpha, confidence, look)

    for name in ("300 judgements", "as advised, up to 3 looks", "ten looks, 100 more each"):
        got, broken, used, enough, advised = [], 0, [], 0, 0
        for seed in range(times):
            order = np.random.default_rng(seed).permutation(able)
            held, passed = 225, 0
            for look in range(1, 11):
                tests = tested(order[:held], look)
                passed = sum(test.passed for test in tests)
                if look > 1 and name.startswith("as"):
                    advised += 1
                    enough += passed > 0
                if passed or name.startswith("300") or (name.startswith("as") and look == 3):
                    break
                more = (
                    judgements_needed(tests[0], alpha, confidence, held, said)[0]
                    if name.startswith("as")
                    else held + 75
                )
                if more is None or more > len(able):
                    break
                held = more
            used.append(held / 0.75)
            if passed:
                got.append(hardness[passed - 1])
                broken += rates[passed - 1] > alpha
        advice = f"{enough} of {advised}" if advised else "-"
        score = f"{np.mean(got):.3f}" if got else "-"
        cells = [
            world.name,
            name,
            f"{len(got) / times:.1%}",
            f"{broken / times:.1%}",
            f"{np.mean(used):.0f}",
            advice,
            score,
        ]
        yield "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", action="append", default=[], metavar="GROUP", help="only these groups of sets")
    parser.add_argument(
        "--reliability", action="store_true", help="also print how often the known one was where it was expected"
    )
    parser.add_argument(
        "--guarantee", action="store_true", help="only the guarantee, with judgements drawn anew 200 times"
    )
    args = parser.parse_args()
    print(machine())
    print(versions("hardneg", "scikit-learn", "scipy", "numpy"))
    if args.guarantee:
        print("\n| set | judged | certified | promise broken | mean judgements | advice was enough | mean score |")
        print("| --- |" + " --- |" * 6)
        for world in (banking(args.data), digits(), cranfield(args.data, 0)):
            for row in promises(world):
                print(row, flush=True)
        return
    print(
        "\n| set (queries) | 95 % margin | score alone | before | now | ceiling | before, default: true (said) | now, default: true "
        "(said, from to) | relevant found a query: said (range) for true | seconds |"
    )
    print("| --- |" + " --- |" * 9)
    for world in sets(args.data, args.only):
        print(line(world), flush=True)
        if args.reliability:
            _, report = fit_known(world.learnable)
            print(
                "; ".join(
                    f"P {p:.3f}: {expected:.1f} foretold, {seen} seen" for p, expected, seen in report["reliability"]
                )
            )


if __name__ == "__main__":
    main()
