"""What the limits of a diagnosis rest on: its numbers on clean runs, on planted faults, and what false negatives cost.

Clean runs: mined from the sets with the hashed encoder, and with MiniLM vectors where there are some. Planted: the same faults
in `builtin:pycode` as in the tests. `--false-share`: Banking77, where groups tell the truth: an embedding bag is trained with
four mined negatives a query of which a given share is of the query's own intent, beside in-batch and random negatives.

    python benchmarks/thresholds.py --data ../shared/data
    python benchmarks/thresholds.py --data ../shared/data --false-share
    python benchmarks/thresholds.py --data ../shared/data --faults          # in three real sets
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, median_and_spread, unit, versions

import hardneg
from hardneg.diagnostics.diagnose import Diagnosis, diagnose, examine
from hardneg.diagnostics.estimates import Estimate
from hardneg.diagnostics.subject import Subject
from hardneg.encoders.embed import fit
from hardneg.progress import silent
from hardneg.storage.arrays import members

NUMBERS = (
    "relative", "above_positive", "near_duplicates", "corpus_near_duplicates", "hub_share", "rank_share", "mean_cosine",
    "effective_share", "surface_auc", "lexical_auc", "at_longest", "few", "recall", "drift", "overlap_with_fresh",
    "stale_scores",
)  # fmt: skip
SHARES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)


def number(found: Diagnosis, name: str) -> float:
    value = found.measured.numbers.get(name, np.nan)
    return float(value.value if isinstance(value, Estimate) else value)


def mined(
    pairs: hardneg.Pairs, folder: Path, vectors: tuple[Any, Any] | None = None, doubted: bool = False, **options: Any
) -> hardneg.Run:
    if vectors is not None:
        for name, array in zip(("query_embeddings", "corpus_embeddings"), vectors, strict=True):
            options[name] = str(folder.with_suffix(f".{name}.npy"))
            np.save(options[name], np.asarray(array, np.float32), allow_pickle=False)
    return hardneg.mine(pairs, folder, hardneg.MineOptions(**options), force=doubted)


def clean(data: Path, folder: Path) -> Iterator[tuple[str, Diagnosis]]:
    for name in ("builtin:pycode", "banking77", "cranfield", "scifact", "tldr"):
        where = name if name.startswith("builtin") else str(data / name)
        pairs = hardneg.read_pairs(where, hardneg.ReadOptions(split="train"))
        run = mined(pairs, folder / name.replace(":", "-"))
        same = hardneg.HashedEncoder()  # fitted to the same texts, it is the run's encoder
        yield f"{name}, hashed", diagnose(run, encoder=same)
        if (data / name / "minilm").exists():
            vectors = [np.load(data / name / "minilm" / f"{side}.npy") for side in ("queries", "corpus")]
            yield f"{name}, MiniLM", diagnose(mined(pairs, folder / f"{name}-m", (vectors[0], vectors[1])))


def planted(code: hardneg.Pairs, folder: Path) -> Iterator[tuple[str, str, str, Diagnosis]]:
    """(code of the finding, its number, what was planted, diagnosis); the first is the run without a fault."""
    encoder = hardneg.HashedEncoder()
    fit(encoder, code, silent)
    texts, asked = code.documents.slice(0, len(code.document_ids)), code.queries.slice(0, len(code))
    q, d = encoder.encode(asked), encoder.encode(texts)
    first = code.positives.values[code.positives.offsets[:-1]]
    others = [texts[i] for i in np.setdiff1d(np.arange(len(texts)), first)]
    run = mined(code, folder / "clean")
    subject = Subject.of_run(run)
    assert subject.vectors is not None
    rng = np.random.default_rng(0)

    def rebuilt(change: Any, more: tuple[str, ...] = ()) -> hardneg.Pairs:
        return hardneg.Pairs.from_columns(
            asked, [change(texts[i]) for i in first], corpus=[*map(change, others), *more]
        )

    yield "", "", "nothing", diagnose(run, encoder=encoder)
    yield "false-negatives", "false_share", "a tenth of them false, by groups", examine(with_false_groups(subject, rng))
    yield (
        "easy",
        "relative",
        "random negatives",
        diagnose(mined(code, folder / "a", depth=len(texts), sampler="uniform")),
    )
    copies = rebuilt(lambda text: text, tuple(f"{text}\n# v{k}" for text in texts for k in range(2)))
    found = diagnose(mined(copies, folder / "b"))
    yield "duplicates", "near_duplicates", "three of each document", found
    yield "duplicate-corpus", "corpus_near_duplicates", "three of each document", found
    hub = d.copy()
    hub[17] = unit(q.mean(0, keepdims=True))[0]
    yield "hub", "hub_share", "a hub", diagnose(mined(code, folder / "c", (q + 0.8 * hub[17], hub)))
    basis = np.linalg.qr(rng.standard_normal((256, 5)))[0]
    flat = diagnose(mined(code, folder / "d", (q @ basis @ basis.T, d @ basis @ basis.T)))
    yield "collapse", "rank_share", "5 of 256 directions", flat
    lean = 6 * np.eye(1, 256, 3)
    yield "collapse", "mean_cosine", "all lean to one side", diagnose(mined(code, folder / "e", (q + lean, d + lean)))
    yield "temperature-low", "effective_share", "temperature 0.002", diagnose(run, temperature=0.002)
    yield "temperature-high", "temperature_outside", "temperature 3", diagnose(run, temperature=3.0)
    longest = np.argsort([len(text) for text in texts])[-60:].astype(np.int32)
    looks = examine(with_documents(subject, rng.choice(longest, subject.documents.shape)))
    yield "looks", "surface_auc", "the longest documents", looks
    marked = rebuilt(lambda text: f"{text}\n# maintained", tuple(f"{text}\n# deprecated" for text in texts))
    nobodys = np.setdiff1d(np.arange(len(marked.document_ids)), marked.positives.values).astype(np.int32)
    other = Subject.of_run(mined(marked, folder / "f"))
    told = [i for i in nobodys.tolist() if "# deprecated" in marked.documents.slice(i, i + 1)[0]]
    words = examine(with_documents(other, rng.choice(np.array(told, np.int32), other.documents.shape)))
    yield "words", "lexical_auc", "a word marks them", words
    yield (
        "truncated",
        "at_longest",
        "cut at 150 characters",
        diagnose(mined(rebuilt(lambda text: text[:150]), folder / "g")),
    )
    strict = f"score:max={np.quantile(subject.scores[subject.real], 0.02):.4f}"
    few = mined(code, folder / "h", depth=20, max_depth=20, filters=(strict,))
    yield "few-negatives", "few", "a filter that is too strict", diagnose(few)
    yield "recall", "recall", "half of the nearest are missing", examine(half_found(subject, rng))
    now = hardneg.HashedEncoder()
    now.fit(texts[:400])
    found = diagnose(run, encoder=now)
    yield "stale", "drift", "an encoder fitted elsewhere", found
    yield "stale", "overlap_with_fresh", "an encoder fitted elsewhere", found
    shuffled = np.asarray(subject.vectors[1])[rng.permutation(len(texts))]
    replaced = examine(replace(subject, vectors=(subject.vectors[0], shuffled)))
    yield "stale-scores", "stale_scores", "vectors in another order", replaced
    strange = mined(code, folder / "i", (q, d[rng.permutation(len(d))]), doubted=True)
    yield "positives-like-random", "beats_random", "vectors of other texts", diagnose(strange)


def with_false_groups(subject: Subject, rng: np.random.Generator) -> Subject:
    """Every query has a group of its own, which a tenth of its negatives have as well."""
    mine = np.arange(len(subject.pairs))
    groups = np.arange(len(subject.pairs.document_ids)) + 10**6
    documents = subject.documents.copy()
    chosen = (rng.random(documents.shape) < 0.1) & subject.real
    free = np.setdiff1d(np.arange(len(groups)), subject.pairs.positives.values)
    free = free if len(free) > len(groups) // 10 else np.arange(len(groups))
    extra = rng.choice(free, int(chosen.sum()))
    groups[extra] = np.broadcast_to(mine[:, None], documents.shape)[chosen]
    documents[chosen] = extra
    pairs = replace(subject.pairs, query_groups=mine, document_groups=groups)
    return with_documents(replace(subject, pairs=pairs), documents)


def with_documents(subject: Subject, documents: np.ndarray) -> Subject:
    """With other negatives, and their scores."""
    assert subject.vectors is not None
    q, d = (unit(np.asarray(each, np.float32)) for each in subject.vectors)
    scores = np.einsum("bd,bkd->bk", q, d[np.maximum(documents, 0)]).astype(np.float32)
    return replace(subject, documents=documents, scores=np.where(documents >= 0, scores, subject.scores))


def faults(data: Path, sets: list[str]) -> None:
    """Which faults are found in real sets, and what else is said then that is not said of the clean run."""
    for name in sets:
        where, split = (name, "test") if name.startswith("builtin") else (str(data / name), "train")
        pairs = hardneg.read_pairs(where, hardneg.ReadOptions(split=split))
        pairs = pairs.of_queries(np.flatnonzero(pairs.positives.lengths > 0))
        print(f"\n{name} ({len(pairs):,} queries, {len(pairs.document_ids):,} documents)", flush=True)
        with tempfile.TemporaryDirectory() as place:
            clean: set[str] = set()
            for code, value, what, found in planted(pairs, Path(place)):
                said = {f.code: f.severity for f in found.findings if f.severity != "info"}
                if not code:
                    clean = set(said)
                    print(f"  clean: {said or 'nothing'}", flush=True)
                    continue
                hit = code in {f.code for f in found.findings}
                more = sorted(set(said) - clean - {code})
                print(
                    f"  {code:<22} {what:<34} {'found' if hit else 'MISSED':<7} {number(found, value):6.2f}   also: "
                    f"{', '.join(more) or '-'}",
                    flush=True,
                )


def half_found(subject: Subject, rng: np.random.Generator) -> Subject:
    """With the negatives of an index that finds every other one of the 40 nearest documents."""
    assert subject.vectors is not None
    q, d = (unit(np.asarray(each, np.float32)) for each in subject.vectors)
    nearest = hardneg.ExactIndex(d).search(q, 48).documents
    nearest[members(nearest, subject.pairs.known_positives())] = -1
    nearest = np.take_along_axis(nearest, np.argsort(nearest < 0, axis=1, kind="stable"), 1)[:, :40]
    width = subject.documents.shape[1]
    found = np.argsort(rng.random(nearest.shape), axis=1)[:, :20]
    found = np.take_along_axis(nearest, np.sort(found, axis=1), 1)[:, :width].astype(np.int32)
    ranks = np.broadcast_to(np.arange(1, width + 1, dtype=np.int32), found.shape)
    return with_documents(replace(subject, ranks=ranks), found)


def limits(data: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = list(clean(data, folder))
        code = hardneg.read_pairs("builtin:pycode", hardneg.ReadOptions(split="test"))
        values = {each: (what, number(found, each)) for _, each, what, found in planted(code, folder)}
    for label, found in rows:
        codes = ", ".join(f"{f.code} ({f.severity})" for f in found.findings)
        print(f"{label}: {codes or 'nothing'}")
    print(f"\n{'number':<24}{'clean: median (range)':>28}{'planted':>10}  fault")
    for each in NUMBERS:
        seen = [value for value in (number(found, each) for _, found in rows) if np.isfinite(value)]
        what, value = values.get(each, ("", np.nan))
        print(f"{each:<24}{median_and_spread(seen):>28}{value:>10.2f}  {what}")


def trained(train: hardneg.Pairs, test: hardneg.Pairs, negatives: hardneg.Mined | None, count: int, seed: int) -> float:
    """nDCG@10 of an embedding bag after three epochs with `count` of these negatives a query."""
    torch.manual_seed(seed)
    model = hardneg.HashedEncoder(dimension=256, seed=seed)
    fit(model, train, silent)
    model.train()
    sampler = hardneg.MemoryBankSampler(train, negatives, batch_size=128, negatives=count, drop_last=True, seed=seed)
    steps = 3 * len(sampler)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0, fused=True)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / (0.1 * steps), (steps - i) / (0.9 * steps))
    )
    criterion, known = hardneg.InfoNCE(0.05), train.known_positives()
    for _ in range(3):
        for batch in sampler:
            q, p = np.array([e.query for e in batch]), np.array([e.positive for e in batch])
            hard = np.array([e.negatives for e in batch], np.int64).reshape(len(batch), -1)
            shared = np.setdiff1d(hard, p)
            vectors = [model.vectors(train.queries.take(q)), model.vectors(train.documents.take(p))]
            more: dict[str, Any] = {"ids": hardneg.PerRole(positives=torch.from_numpy(p)[:, None])}
            if len(shared):
                more["shared"] = model.vectors(train.documents.take(shared))
                more["ids"] = replace(more["ids"], shared=torch.from_numpy(shared))
            loss = criterion(*vectors, known_ids=torch.from_numpy(known.take(q).padded()).long(), **more)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rates.step()
        sampler.end_epoch()
    model.eval()
    return 100 * hardneg.evaluate(test, model, ("ndcg@10",)).means["ndcg@10"]


def with_false(train: hardneg.Pairs, share: float, seed: int, slots: int = 20) -> hardneg.Mined:
    """Near documents of other intents than the query's, and so large a share of its own."""
    model = hardneg.HashedEncoder(dimension=256, seed=seed)
    fit(model, train, silent)
    documents = model.encode(train.documents.slice(0, len(train.document_ids)))
    found = hardneg.ExactIndex(documents).search(model.encode(train.queries.slice(0, len(train))), 400).documents
    assert train.query_groups is not None
    assert train.document_groups is not None
    same = train.document_groups[found] == train.query_groups[:, None]
    known = train.known_positives()
    out = np.full((len(train), slots), -1, np.int32)
    false = round(share * slots)
    for i in range(len(train)):
        mine = set(known.take(np.array([i])).values.tolist())
        own = [j for j in found[i][same[i]] if j not in mine][:false]
        others = found[i][~same[i]][: slots - len(own)]
        out[i, : len(own) + len(others)] = [*own, *others]
    scores = np.zeros(out.shape, np.float32)
    return hardneg.Mined(out, scores, np.zeros(len(train), np.float32), out >= 0)


def false_share(data: Path, seeds: int) -> None:
    train, test = (hardneg.read_pairs(str(data / "banking77"), hardneg.ReadOptions(split=s)) for s in ("train", "test"))
    print(f"{'negatives':<36}{'nDCG@10: median (range)':>28}")
    ways: list[tuple[str, float | None, int]] = [("in-batch", None, 0), ("4 random ones", None, 4)]
    ways += [(f"4 mined, {share:.0%} of them false", share, 4) for share in SHARES]
    for label, share, count in ways:
        values = [
            trained(train, test, None if share is None else with_false(train, share, seed), count, seed)
            for seed in range(seeds)
        ]
        print(f"{label:<36}{median_and_spread(values):>28}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--false-share", action="store_true")
    parser.add_argument("--faults", nargs="*", metavar="SET", help="sets to plant faults in")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    print(machine())
    print(versions("hardneg", "torch", "scikit-learn"))
    if args.faults is not None:
        faults(args.data, args.faults or ["builtin:pycode", "scifact", "cranfield"])
    elif args.false_share:
        false_share(args.data, args.seeds)
    else:
        limits(args.data)


if __name__ == "__main__":
    main()
