"""What a diagnosis finds of faults planted in real data, and what it says of the same data without them.

Three sets: `builtin:pycode` and SciFact with the hashed encoder, and Cranfield with MiniLM vectors. Every fault is planted alone, in
the texts, labels, vectors or negatives of the clean run. Found: the finding that the fault is for. Also: other findings about
data that the clean run does not have.

    python benchmarks/data_faults.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from common import machine, unit, versions

import hardneg
from hardneg.data.texts import Texts, text_key
from hardneg.diagnostics.estimates import Estimate, Measurements
from hardneg.diagnostics.findings.data_rules import DATA_RULES
from hardneg.diagnostics.findings.thresholds import Thresholds
from hardneg.diagnostics.measures.agreement import agreement
from hardneg.diagnostics.measures.completeness import completeness
from hardneg.diagnostics.measures.copies import copies
from hardneg.diagnostics.measures.diversity import hubness
from hardneg.diagnostics.measures.found_positives import found_positives
from hardneg.diagnostics.measures.gradient import gradient
from hardneg.diagnostics.measures.hardness import hardness
from hardneg.diagnostics.measures.leaks import leaks
from hardneg.diagnostics.measures.lexical_overlap import bm25, lexical_overlap
from hardneg.diagnostics.measures.others import never_retrieved, others_positives
from hardneg.diagnostics.measures.slices import slices
from hardneg.diagnostics.retrieved import with_retrieved
from hardneg.diagnostics.subject import Subject
from hardneg.progress import silent
from hardneg.storage.arrays import members


@dataclass(frozen=True)
class Case:
    """A run to measure, and what it is measured with."""

    subject: Subject
    evaluation: hardneg.Pairs
    second: object
    temperature: float = 0.05


Plant = Callable[[Case, np.random.Generator], Case | None]


def measured(case: Case) -> Measurements:
    subject, out = case.subject, Measurements()
    steps: tuple[Callable[[np.random.Generator], Measurements], ...] = (
        lambda rng: completeness(subject),
        lambda rng: hardness(subject, rng),
        lambda rng: gradient(subject, case.temperature),
        lambda rng: hubness(subject),
        lambda rng: found_positives(subject, rng),
        lambda rng: others_positives(subject, rng),
        lambda rng: never_retrieved(subject),
        lambda rng: copies(subject, rng),
        lambda rng: lexical_overlap(subject, rng),
        lambda rng: slices(subject),
        lambda rng: leaks(subject, case.evaluation, rng),
        lambda rng: agreement(subject, case.second, rng, silent),  # type: ignore[arg-type]
    )
    for step in steps:
        more = step(np.random.default_rng(0))
        out.numbers |= more.numbers
        out.ids |= more.ids
    return out


def findings(found: Measurements) -> dict[str, float]:
    """The value of each finding about the data, by code."""
    each = [rule.check(found, Thresholds(), "run") for rule in DATA_RULES]
    return {finding.code: finding.value for finding in each if finding is not None}


def prepared(name: str, data: Path, folder: Path) -> Case:
    where = name if name.startswith("builtin") else str(data / name)
    train, test = ("test", "train") if name.startswith("builtin") else ("train", "test")
    pairs = hardneg.read_pairs(where, hardneg.ReadOptions(split=train))
    options: dict[str, str] = {}
    if (data / name / "minilm").exists():
        options = {
            option: str(data / name / "minilm" / f"{side}.npy")
            for option, side in (("query_embeddings", "queries"), ("corpus_embeddings", "corpus"))
        }
    run = hardneg.mine(pairs, folder / name.replace(":", "-"), hardneg.MineOptions(**options))  # type: ignore[arg-type]
    evaluation = hardneg.read_pairs(where, hardneg.ReadOptions(split=test))
    subject = with_retrieved(Subject.of_run(run), run)
    return Case(subject, evaluation, hardneg.HashedEncoder(dimension=128, seed=3))


def with_texts(pairs: hardneg.Pairs, changed: dict[int, str]) -> hardneg.Pairs:
    """The dataset with other texts of these documents."""
    texts = pairs.documents.slice(0, len(pairs.document_ids))
    keys, bodies = pairs.document_keys.copy(), pairs.body_keys.copy()
    for row, text in changed.items():
        texts[row] = text
        keys[row] = bodies[row] = text_key(text)
    table = pa.table({"text": pa.array(texts, pa.large_string())})
    return replace(pairs, documents=Texts(table), document_keys=keys, body_keys=bodies)


def mislabelled(case: Case, rng: np.random.Generator) -> Case:
    """A third of the pairs have the positive of another query."""
    pairs = case.subject.pairs
    values = pairs.positives.values.copy()
    chosen = np.sort(rng.choice(len(values), len(values) // 3, replace=False))
    values[chosen] = values[np.roll(chosen, len(chosen) // 2)]
    return replace(
        case,
        subject=replace(
            case.subject, pairs=replace(pairs, positives=replace(pairs.positives, values=values)), retrieved=None
        ),
    )


def lost(case: Case, rng: np.random.Generator) -> Case:
    """The search finds the positive of a fifth of the queries."""
    seen = case.subject.retrieved
    assert seen is not None
    keep = (rng.random(len(seen.queries)) < 0.2)[case.subject.pairs.positives.take(seen.queries).row_numbers()]
    return replace(case, subject=replace(case.subject, retrieved=replace(seen, ranks=np.where(keep, seen.ranks, 0))))


def near_queries(case: Case, rng: np.random.Generator) -> Case:
    """Each two queries ask the same; the first negative is the other's positive."""
    subject = case.subject
    assert subject.vectors is not None
    count = len(subject.pairs) // 2 * 2
    vectors = np.array(subject.vectors[0], np.float32)
    vectors[1:count:2] = vectors[:count:2]
    positives = subject.pairs.positives
    other = np.arange(count) ^ 1
    some = positives.lengths[other] > 0
    documents = subject.documents.copy()
    documents[np.arange(count)[some], 0] = positives.values[positives.offsets[other[some]]]
    return replace(case, subject=replace(subject, documents=documents, vectors=(vectors, subject.vectors[1])))


def of_others(case: Case, rng: np.random.Generator) -> Case | None:
    """All negatives are positives of other queries; where they are not nearly all documents."""
    pairs = case.subject.pairs
    used = np.unique(pairs.positives.values)
    if len(used) > 0.9 * len(pairs.document_ids):
        return None
    documents = rng.choice(used, case.subject.documents.shape).astype(np.int32)
    own = members(documents, pairs.known_positives())
    for _ in range(20):  # never one of the query's own
        documents[own] = rng.choice(used, int(own.sum()))
        own = members(documents, pairs.known_positives())
    return replace(case, subject=replace(case.subject, documents=documents))


def rewritten(change: Callable[[str, int], str], meaning: bool = False) -> Plant:
    """The first negative of each query is a document of its own with the text of its positive, changed."""

    def plant(case: Case, rng: np.random.Generator) -> Case:
        subject = case.subject
        pairs = subject.pairs
        assert subject.vectors is not None
        rows = np.flatnonzero((pairs.positives.lengths > 0) & (subject.counts > 0))
        first = pairs.positives.values[pairs.positives.offsets[rows]]
        free = np.setdiff1d(np.arange(len(pairs.document_ids)), pairs.positives.values)
        if len(free) < len(rows):  # every document is a positive: take those of the other half of the queries
            half = len(rows) // 2
            free, rows, first = np.setdiff1d(first[half:], first[:half]), rows[:half], first[:half]
        count = min(len(free), len(rows))
        free, rows, first = free[:count], rows[:count], first[:count]
        texts = pairs.documents.take(first)
        documents = subject.documents.copy()
        documents[rows, 0] = free
        vectors = np.array(subject.vectors[1], np.float32)
        if meaning:
            noise = unit(rng.standard_normal((len(rows), vectors.shape[1])))
            vectors[free] = unit(np.asarray(subject.vectors[1], np.float32)[first]) + 0.2 * noise
        changed = {int(row): change(text, i) for i, (row, text) in enumerate(zip(free, texts, strict=True))}
        keep = with_texts(pairs, changed)
        return replace(
            case, subject=replace(subject, pairs=keep, documents=documents, vectors=(subject.vectors[0], vectors))
        )

    return plant


def chunk(text: str, i: int) -> str:
    words = text.split()
    return " ".join([*words[-max(12, len(words) // 3) :], *(f"then{i}x{j}" for j in range(len(words)))])


def foreign(text: str, i: int) -> str:
    return " ".join(f"x{word[::-1]}" for word in text.split())


def hubs(case: Case, rng: np.random.Generator) -> Case:
    """One document in a thousand (three at least) is the first three negatives of everyone."""
    documents = case.subject.documents.copy()
    few = rng.choice(len(case.subject.pairs.document_ids), 3, replace=False)
    documents[:, :3] = few
    return replace(case, subject=replace(case.subject, documents=documents))


def never(case: Case, rng: np.random.Generator) -> Case:
    """Four of five documents are no candidate."""
    seen = case.subject.retrieved
    assert seen is not None
    times = np.where(rng.random(len(seen.times)) < 0.8, 0, seen.times * 5)
    return replace(case, subject=replace(case.subject, retrieved=replace(seen, times=times)))


def lexical(case: Case, rng: np.random.Generator) -> Case:
    """The negatives are the nearest by BM25."""
    subject = case.subject
    pairs = subject.pairs
    total = len(pairs.document_ids)
    scores = bm25(pairs.queries.slice(0, len(pairs)), pairs.documents.slice(0, total), np.ones(total, bool))
    assert scores is not None
    known = pairs.known_positives().take(np.arange(len(pairs)))
    scores[known.row_numbers(), known.values] = -1
    best = np.argsort(-scores, axis=1, kind="stable")[:, : subject.documents.shape[1]].astype(np.int32)
    return replace(case, subject=replace(subject, documents=best))


def leak(case: Case, rng: np.random.Generator) -> Case:
    """A tenth of the evaluation queries are training queries with their answers, half of them with two words added."""
    pairs, evaluation = case.subject.pairs, case.evaluation
    rows = np.flatnonzero(evaluation.positives.lengths > 0)[:2000]
    asked = evaluation.queries.take(rows)
    given = [
        evaluation.documents.take(evaluation.positives.take(rows[i : i + 1]).values[:1])[0] for i in range(len(rows))
    ]
    trained = np.flatnonzero(pairs.positives.lengths > 0)[: max(3, len(rows) // 10)]
    for i, (query, row) in enumerate(zip(pairs.queries.take(trained), trained, strict=True)):
        asked[i] = query if i % 2 else f"{query} please"
        given[i] = pairs.documents.take(pairs.positives.take(np.array([row])).values[:1])[0]
    return replace(case, evaluation=hardneg.Pairs.from_columns(asked, given))


def bad_slice(case: Case, rng: np.random.Generator) -> Case:
    """All negatives of the shortest quarter of the queries are above the positive; of the others, none is."""
    subject = case.subject
    sizes = np.array([len(text) for text in subject.pairs.queries.slice(0, len(subject.pairs))])
    positive = np.where(sizes <= np.quantile(sizes, 0.25), -1.0, 2.0).astype(np.float32)
    return replace(case, subject=replace(subject, positive=np.where(np.isfinite(subject.positive), positive, np.nan)))


def easy(case: Case, rng: np.random.Generator) -> Case:
    """Random documents as negatives, at temperature 0.02."""
    subject = case.subject
    assert subject.vectors is not None
    documents = rng.integers(0, len(subject.pairs.document_ids), subject.documents.shape).astype(np.int32)
    q = unit(np.asarray(subject.vectors[0], np.float32))
    d = unit(np.asarray(subject.vectors[1], np.float32)[documents.ravel()]).reshape(*documents.shape, -1)
    scores = np.einsum("bd,bkd->bk", q, d).astype(np.float32)
    return replace(case, subject=replace(subject, documents=documents, scores=scores), temperature=0.02)


class AtRandom:
    """An encoder for which a query is near its positive, and negatives are random documents."""

    dimension = 64

    def __init__(self, subject: Subject) -> None:
        pairs, rng = subject.pairs, np.random.default_rng(7)
        self.of = dict(
            zip(
                pairs.documents.slice(0, len(pairs.document_ids)),
                unit(rng.standard_normal((len(pairs.document_ids), 64))),
                strict=True,
            )
        )
        some = np.flatnonzero(pairs.positives.lengths > 0)
        first = pairs.documents.take(pairs.positives.values[pairs.positives.offsets[some]])
        self.of |= {query: self.of[text] for query, text in zip(pairs.queries.take(some), first, strict=True)}

    def encode(self, texts: list[str], *, prompt: str = "") -> np.ndarray:
        return np.stack([self.of[text] for text in texts]).astype(np.float32)

    def fingerprint(self) -> str:
        return "at random"


NUMBERS = (
    "mislabelled", "hit_rate", "near_query_positives", "copied_near", "chunk_overlap", "translations", "hub_skew",
    "never_retrieved", "bm25_also", "leaked_queries", "leaked_pairs", "teaching", "second_relative",
)  # fmt: skip

FAULTS: tuple[tuple[str, str, Plant], ...] = (
    ("mislabelled", "a third of the positives exchanged", mislabelled),
    ("positives-lost", "four of five positives not found", lost),
    ("near-query", "the positive of the same question as a negative", near_queries),
    ("others-positives", "only positives of others as negatives", of_others),
    ("copied", "a negative equals the positive but for case", rewritten(lambda text, i: f"  {text.upper()}")),
    ("copied", "a negative is the positive with words added", rewritten(lambda text, i: f"{text} see also {i}")),
    ("chunks", "a negative overlaps with the positive", rewritten(chunk)),
    ("translations", "a negative is the positive in other words", rewritten(foreign, meaning=True)),
    ("hub-skew", "three documents are negatives of everyone", hubs),
    ("never-retrieved", "four of five documents never found", never),
    ("lexical", "negatives by BM25", lexical),
    ("leak", "a tenth of the evaluation trained on", leak),
    ("slice", "short queries only have bad negatives", bad_slice),
    ("taught-out", "random negatives", easy),
    (
        "second-encoder",
        "another encoder finds them far",
        lambda case, rng: replace(case, second=AtRandom(case.subject)),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["builtin:pycode", "scifact", "cranfield"])
    parser.add_argument("--only", nargs="+", help="codes of the findings whose faults are planted")
    args = parser.parse_args()
    print(machine())
    print(versions("hardneg", "torch", "scikit-learn"))
    with tempfile.TemporaryDirectory() as name:
        for each in args.sets:
            case = prepared(each, args.data, Path(name))
            found = measured(case)
            clean = findings(found)
            size = f"{len(case.subject.pairs):,} queries, {len(case.subject.pairs.document_ids):,} documents"
            print(f"\n{each} ({size}); clean: {clean or 'nothing'}", flush=True)
            for number in NUMBERS:
                value = found.numbers.get(number)
                value = value.value if isinstance(value, Estimate) else value
                print(f"  clean {number} {'-' if value is None else format(value, '.3f')}")
            for code, what, plant in FAULTS:
                if args.only and code not in args.only:
                    continue
                planted = plant(case, np.random.default_rng(0))
                if planted is None:
                    print(f"  {code:<17} {what:<50} cannot be planted here")
                    continue
                now = findings(measured(planted))
                more = sorted(set(now) - set(clean) - {code})
                said = f"found ({now[code]:.2f})" if code in now else "MISSED"
                print(f"  {code:<17} {what:<50} {said:<14} also: {', '.join(more) or '-'}", flush=True)


if __name__ == "__main__":
    main()
