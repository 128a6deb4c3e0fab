"""What a diagnosis sees of the data: every number against the truth, and every fault planted in data of three sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata

import hardneg
from hardneg.diagnostics.diagnose import Diagnosis, diagnose, examine
from hardneg.diagnostics.estimates import Estimate, Measurements
from hardneg.diagnostics.findings.rules import find
from hardneg.diagnostics.findings.thresholds import Thresholds
from hardneg.diagnostics.measures.agreement import agreement
from hardneg.diagnostics.measures.copies import copies
from hardneg.diagnostics.measures.found_positives import found_positives
from hardneg.diagnostics.measures.leaks import leaks
from hardneg.diagnostics.measures.lexical_overlap import bm25, lexical_overlap
from hardneg.diagnostics.measures.others import never_retrieved, others_positives
from hardneg.diagnostics.measures.slices import slice_measures, slices, slicings
from hardneg.diagnostics.retrieved import with_retrieved
from hardneg.diagnostics.subject import Subject
from hardneg.errors import UsageError
from hardneg.mining.mine import mine
from hardneg.mining.options import MineOptions
from hardneg.progress import silent
from tests.conftest import run_here, unit

SIZES = (60, 300, 800)


def world(n: int, seed: int = 0) -> tuple[hardneg.Pairs, np.ndarray, np.ndarray]:
    """n queries, each with one positive near it and words of its own, and n other documents."""
    rng = np.random.default_rng(seed)
    names = [f"word{i}" for i in range(400)]
    texts = [" ".join(rng.choice(names, 30)) for _ in range(2 * n)]
    asked = [f"query {i} " + " ".join(text.split()[:6]) for i, text in enumerate(texts[:n])]
    pairs = hardneg.Pairs.from_columns(asked, texts[:n], corpus=texts[n:])
    d = unit(rng.standard_normal((2 * n, 48)))
    q = unit(d[:n] + 0.6 * unit(rng.standard_normal((n, 48))))
    return pairs, q, d


def mined(pairs: hardneg.Pairs, q: np.ndarray, d: np.ndarray, folder: Path, **options: object) -> hardneg.Run:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("q", q), ("d", d)):
        np.save(folder / f"{name}.npy", array.astype(np.float32), allow_pickle=False)
    given = {
        "query_embeddings": str(folder / "q.npy"),
        "corpus_embeddings": str(folder / "d.npy"),
        "depth": 20,
        **options,
    }
    return mine(pairs, folder / "run", MineOptions(**given), force=True)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, hardneg.Run]:
    return {n: mined(*world(n), tmp_path_factory.mktemp("worlds") / str(n)) for n in SIZES}


def codes(found: Diagnosis | Measurements) -> set[str]:
    findings = found.findings if isinstance(found, Diagnosis) else find(found, Thresholds(), "run")
    return {finding.code for finding in findings}


@pytest.mark.parametrize("n", SIZES)
def test_positives_and_candidates_are_counted_right(n: int, runs: dict[int, hardneg.Run]) -> None:
    """Ranks of positives, hit rate, MRR and documents without a query, against exact search in numpy."""
    pairs, q, d = world(n)
    subject = with_retrieved(Subject.of_run(runs[n]), runs[n])
    scores = unit(q) @ unit(d).T
    rank = np.array([rankdata(-scores[i])[pairs.positives.values[i]] for i in range(n)])
    hit = rank <= 20
    numbers = found_positives(subject, np.random.default_rng(0)).numbers
    assert numbers["searched"] == n
    assert numbers["hit_rate"].value == pytest.approx(hit.mean())
    assert numbers["hit_at_10"].value == pytest.approx((rank <= 10).mean())
    assert numbers["mrr"].value == pytest.approx(np.where(hit, 1 / rank, 0).mean())
    assert numbers["positives_nowhere"].value == pytest.approx(1 - hit.mean())
    nearest = np.argsort(-scores, axis=1)[:, :20]
    never = np.setdiff1d(np.arange(2 * n), nearest)
    assert never_retrieved(subject).numbers["never_retrieved"] == pytest.approx(len(never) / (2 * n))


@pytest.mark.parametrize("n", SIZES)
def test_a_clean_world_has_no_false_alarm(n: int, runs: dict[int, hardneg.Run]) -> None:
    found = diagnose(runs[n], temperature=0.2, evaluation=world(n, seed=1)[0])
    new = {
        "mislabelled",
        "positives-lost",
        "near-query",
        "others-positives",
        "copied",
        "chunks",
        "translations",
        "hub-skew",
    }
    new |= {"never-retrieved", "lexical", "leak", "taught-out", "slice"}
    assert not codes(found) & new, found.findings


@pytest.mark.parametrize("n", SIZES)
def test_mislabelled_pairs_are_counted_and_listed(n: int, tmp_path: Path) -> None:
    """A quarter of the pairs get the positive of another query."""
    pairs, q, d = world(n)
    wrong = np.arange(0, n, 4)
    values = pairs.positives.values.copy()
    values[wrong] = values[np.roll(wrong, 2)]
    mixed = replace(pairs, positives=replace(pairs.positives, values=values))
    run = mined(mixed, q, d, tmp_path)
    subject = with_retrieved(Subject.of_run(run), run)
    measured = found_positives(subject, np.random.default_rng(0))
    share = measured.numbers["mislabelled"]
    assert share.low <= len(wrong) / n <= share.high
    names = {pairs.query_ids[int(i)].as_py() for i in wrong}
    listed = {query for query, _, _ in measured.numbers["mislabelled_pairs"]}
    assert listed
    assert listed <= names
    if n > 100:
        finding = next(f for f in find(measured, Thresholds(), "run") if f.code == "mislabelled")
        assert finding.ids
        assert set(finding.ids) <= names


def planted(run: hardneg.Run, change: Callable[[Subject, np.random.Generator], Subject]) -> Subject:
    return change(Subject.of_run(run), np.random.default_rng(0))


@pytest.mark.parametrize("n", SIZES)
def test_positives_of_other_queries(n: int, runs: dict[int, hardneg.Run]) -> None:
    """All negatives are drawn from the positives, which are half of the documents; and: those of the nearest query."""

    def drawn(subject: Subject, rng: np.random.Generator) -> Subject:
        return replace(
            subject, documents=rng.choice(subject.pairs.positives.values, subject.documents.shape).astype(np.int32)
        )

    numbers = others_positives(Subject.of_run(runs[n]), np.random.default_rng(0)).numbers
    assert numbers["others_expected"] == 0.5
    subject = planted(runs[n], drawn)
    measured = others_positives(subject, np.random.default_rng(0))
    assert measured.numbers["others_positives"].value == 1
    assert "others-positives" in codes(measured)
    vectors = np.asarray(Subject.of_run(runs[n]).vectors[0]).copy()  # type: ignore[index]
    vectors[1::2] = vectors[::2]  # each two queries ask the same
    partner = np.arange(n) ^ 1
    documents = subject.documents.copy()
    documents[:, 0] = subject.pairs.positives.values[partner]
    near = replace(subject, documents=documents, vectors=(vectors, subject.vectors[1]))  # type: ignore[index]
    measured = others_positives(near, np.random.default_rng(0))
    share = measured.numbers["near_query_positives"]
    truth = (documents == subject.pairs.positives.values[partner][:, None]).mean()
    assert share.value == pytest.approx(truth)
    assert "near-query" in codes(measured)


@pytest.mark.parametrize("n", SIZES)
def test_copies_of_the_positive(n: int, tmp_path: Path) -> None:
    """The negatives of each query are: a near copy, a chunk that overlaps, a translation, an equal text, and others."""
    pairs, q, d = world(n)
    texts = pairs.documents.slice(0, n)
    foreign = [" ".join(f"foreign{word[4:]}" for word in text.split()) for text in texts]
    near = [f"{text} end" for text in texts]
    chunk = [" ".join([*text.split()[12:], *(f"more{i}x{j}" for j in range(12))]) for i, text in enumerate(texts)]
    equal = [f"  {text.upper()}" for text in texts]
    kinds = [near, chunk, foreign, equal]
    more = [text for kind in kinds for text in kind]
    asked = pairs.queries.slice(0, n)
    wide = hardneg.Pairs.from_columns(asked, texts, corpus=[*pairs.documents.slice(n, 2 * n), *more])
    noise = 0.2 * unit(np.random.default_rng(1).standard_normal((4 * n, 48)))
    vectors = unit(np.concatenate([d, np.tile(d[:n], (4, 1)) + noise]))
    run = mined(wide, q, vectors, tmp_path)
    subject = Subject.of_run(run)
    rows = np.arange(n)[:, None]
    documents = np.concatenate([2 * n + k * n + rows for k in range(4)] + [n + (rows + 1) % n], axis=1).astype(np.int32)
    made = replace(
        subject, documents=documents, scores=np.zeros(documents.shape, np.float32), ranks=np.ones_like(documents)
    )
    measured = copies(made, np.random.default_rng(0))
    for name in ("copied_near", "chunk_overlap", "translations", "copied_equal"):
        assert measured.numbers[name].value == pytest.approx(0.2), name
    assert {"copied", "chunks", "translations"} <= codes(measured)


def test_bm25_is_that_of_the_formula() -> None:
    """Against a loop over words."""
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(12)]
    documents = [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(15)]
    queries = [" ".join(rng.choice(words, 3, replace=False)) for _ in range(6)]
    mean = np.mean([len(text.split()) for text in documents])
    wanted = np.zeros((6, 15))
    for i, query in enumerate(queries):
        for j, text in enumerate(documents):
            for word in query.split():
                tf, df = text.split().count(word), sum(word in other.split() for other in documents)
                idf = np.log(1 + (15 - df + 0.5) / (df + 0.5))
                wanted[i, j] += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * len(text.split()) / mean))
    found = bm25(queries, documents, np.ones(15, bool))
    assert found is not None
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("n", SIZES)
def test_lexical_negatives(n: int, runs: dict[int, hardneg.Run]) -> None:
    """Negatives that share words with the query are found by BM25, random ones are not."""
    subject = Subject.of_run(runs[n])
    scores = bm25(subject.pairs.queries.slice(0, n), subject.pairs.documents.slice(0, 2 * n), np.ones(2 * n, bool))
    assert scores is not None
    scores[np.arange(n), subject.pairs.positives.values] = -1
    best = np.argsort(-scores, axis=1)[:, : subject.documents.shape[1]].astype(np.int32)
    measured = lexical_overlap(replace(subject, documents=best), np.random.default_rng(0))
    assert measured.numbers["bm25_also"].value > 0.98
    if n > 100:
        assert "lexical" in codes(measured)
    random = lexical_overlap(subject, np.random.default_rng(0)).numbers["bm25_also"]
    assert random.value < 3 * 20 / (2 * n) + 0.05


@pytest.mark.parametrize("n", SIZES)
def test_leaks(n: int, runs: dict[int, hardneg.Run]) -> None:
    """Of an evaluation set, a tenth are training queries, and a tenth nearly; half of these with their answer."""
    subject = Subject.of_run(runs[n])
    other = world(n, seed=1)[0]
    asked, answers = other.queries.slice(0, n), other.documents.slice(0, n)
    train, given = subject.pairs.queries.slice(0, n), subject.pairs.documents.slice(0, n)
    tenth = n // 10
    for i in range(tenth):
        asked[i] = train[i].upper()
        asked[tenth + i] = f"{given[i]} {i}"  # no training query
    for i in range(tenth):
        asked[2 * tenth + i] = f"{train[n - 1 - i]} please"
    for i in range(0, tenth, 2):
        answers[i] = f"{given[i]}"
    evaluation = hardneg.Pairs.from_columns(asked, answers)
    numbers = leaks(subject, evaluation, np.random.default_rng(0)).numbers
    assert numbers["leaked_queries_equal"].value == pytest.approx(tenth / n)
    assert numbers["leaked_queries"].value == pytest.approx(2 * tenth / n)
    assert numbers["leaked_positives_equal"].value == pytest.approx(len(range(0, tenth, 2)) / n)
    assert numbers["leaked_pairs"].value == pytest.approx(len(range(0, tenth, 2)) / n)


def test_slices_find_the_bad_source(tmp_path: Path) -> None:
    """A third of the queries come from a source whose negatives are above the positive."""
    pairs, q, d = world(600)
    ids = [f"{'bad' if i % 3 == 0 else 'good'}/{i}" for i in range(600)]
    named = hardneg.Pairs.from_columns(
        pairs.queries.slice(0, 600),
        pairs.documents.slice(0, 600),
        corpus=pairs.documents.slice(600, 1200),
        query_ids=ids,
    )
    run = mined(named, q, d, tmp_path)
    subject = Subject.of_run(run)
    positive = subject.positive.copy()
    positive[::3] = -1
    found = examine(replace(subject, positive=positive))
    row = found.measured.numbers["slices"][0]
    assert (row["by"], row["value"], row["queries"], row["worst"]) == ("source", "bad", 200, "above_positive")
    assert row["above_positive"]["value"] == 1
    finding = next(f for f in found.findings if f.code == "slice")
    assert "'bad'" in finding.text
    assert len(finding.ids) == 10
    assert all(id.startswith("bad/") for id in finding.ids)
    assert "labels, ids and vectors" in finding.fix  # all of their negatives are above the positive: no filter helps
    labels = {each.by: each for each in slicings(subject)}["source"]
    assert [labels.values[i] for i in labels.labels[:4]] == ["bad", "good", "good", "bad"]
    values = slice_measures(subject)["above_positive"]
    good = next(r for r in slices(subject).numbers["slices"] if r["value"] == "good")
    assert good["above_positive"]["value"] == pytest.approx(values[labels.labels == labels.values.index("good")].mean())


@pytest.mark.parametrize(
    ("bad", "first", "fix"),
    [
        (("above_positive", "positive_lost"), "the positive of 95% is not found", "labels, ids and vectors"),
        (("positive_lost",), "the positive of 95% is not found", "labels, ids and vectors"),
        (("few", "above_positive"), "95% have fewer negatives than asked for", "Loosen the filter score, which rejects most (7 of 9"),
        (("false_share",), "95% of their negatives are relevant", "hardneg calibrate run && hardneg select run --add-filter"),
    ],
)  # fmt: skip
def test_the_fix_of_a_slice_is_that_of_what_is_bad(bad: tuple[str, ...], first: str, fix: str) -> None:
    def share(value: float) -> Estimate:
        return Estimate(value, value - 0.01, value + 0.01, 1000)

    names = ("false_share", "above_positive", "positive_lost", "few")
    row: dict[str, Any] = {
        "by": "source",
        "value": "bad",
        "queries": 100,
        "worst": bad[0],
        "z": 9.0,
        "ids": ["bad/1", "bad/2"],
    }
    for name in names:
        value = 0.95 if name in bad else 0.1
        row[name] = {"value": value, "low": value - 0.02, "high": value + 0.02, "z": 9.0 if name in bad else 0.0}
    numbers: dict[str, Any] = {
        "slices": [row],
        "hit_rate": share(0.9),
        "rejects_most": "score, which rejects most (7 of 9)",
    }
    numbers |= {name: share(0.01) for name in ("false_share", "above_positive")} | {"few": 0.01}
    finding = next(f for f in find(Measurements(numbers), Thresholds(), "run") if f.code == "slice")
    assert f"far worse than the others: {first}" in finding.text
    assert fix in finding.fix
    assert finding.ids == ["bad/1", "bad/2"]
    assert finding.value == 0.95


def test_slices_of_groups_have_their_names(tmp_path: Path) -> None:
    """As the dataset names them, also in a run that is opened again; in a run without names, their numbers."""
    pairs, q, d = world(120)
    groups = ["lost card" if i % 3 == 0 else "top up" for i in range(120)]
    grouped = hardneg.Pairs.from_columns(
        pairs.queries.slice(0, 120),
        pairs.documents.slice(0, 120),
        groups=groups,
        corpus=pairs.documents.slice(120, 240),
    )
    assert grouped.group_names == ("lost card", "top up")
    subject = Subject.of_run(mined(grouped, q, d, tmp_path))
    assert subject.pairs.group_names == grouped.group_names
    found = {each.by: each for each in slicings(subject)}["group"]
    assert found.values == ["top up", "lost card"]
    assert [found.values[i] for i in found.labels] == groups
    rows = [row for row in slices(subject).numbers["slices"] if row["by"] == "group"]
    assert {(row["value"], row["queries"]) for row in rows} == {("lost card", 40), ("top up", 80)}
    earlier = replace(subject, pairs=replace(subject.pairs, group_names=()))
    assert {each.by: each for each in slicings(earlier)}["group"].values == ["1", "0"]
    one = replace(subject, pairs=replace(subject.pairs, group_names=("same", "same")))
    assert {each.by: each for each in slicings(one)}["group"].values == ["same (1)", "same (0)"]


class Given:
    """An encoder that knows the vectors of all texts."""

    dimension = 48

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        self.vectors = vectors

    def encode(self, texts: list[str], *, prompt: str = "") -> np.ndarray:
        return np.stack([self.vectors[text] for text in texts])

    def fingerprint(self) -> str:
        return "given"


def test_a_second_encoder(runs: dict[int, hardneg.Run]) -> None:
    """One that agrees, and one for which the negatives are random documents."""
    pairs, q, d = world(300)
    subject = Subject.of_run(runs[300])
    asked, texts = pairs.queries.slice(0, 300), pairs.documents.slice(0, 600)
    same = Given({**dict(zip(asked, q, strict=True)), **dict(zip(texts, d, strict=True))})
    numbers = agreement(subject, same, np.random.default_rng(0), silent).numbers
    assert numbers["second_agreement"].value == pytest.approx(1, abs=0.02)
    above = (subject.scores > subject.positive[:, None]).mean(1)
    assert numbers["both_above_positive"].low <= above.mean() <= numbers["both_above_positive"].high + 0.02
    fresh = unit(np.random.default_rng(5).standard_normal((600, 48)))
    other = Given(
        {**dict(zip(asked, fresh[pairs.positives.values], strict=True)), **dict(zip(texts, fresh, strict=True))}
    )
    found = examine(subject, second_encoder=other)
    assert abs(found.measured.numbers["second_agreement"].value) < 0.15
    assert found.measured.numbers["second_relative"].value == pytest.approx(0, abs=0.05)
    assert "second-encoder" in codes(found)


def test_negatives_that_teach_nothing(runs: dict[int, hardneg.Run]) -> None:
    subject = Subject.of_run(runs[300])
    assert "taught-out" not in codes(examine(subject, temperature=0.2))
    found = examine(subject, temperature=0.02)
    p = np.exp((np.concatenate([subject.positive[:, None], subject.scores], 1).astype(np.float64)) / 0.02)
    truth = (p[:, 1:] / p.sum(1, keepdims=True) >= 0.01).mean()
    assert found.measured.numbers["teaching"].value == pytest.approx(truth)
    assert ("taught-out" in codes(found)) == (truth < 0.48)


def test_options_of_the_command(runs: dict[int, hardneg.Run], tmp_path: Path) -> None:
    """--evaluation finds that the run's own data leaks into it."""
    pairs, *_ = world(300)
    rows = [
        f'{{"query": "{q}", "positive": "{p}"}}'
        for q, p in zip(pairs.queries.slice(0, 50), pairs.documents.slice(0, 50), strict=True)
    ]
    (tmp_path / "test.jsonl").write_text("\n".join(rows))
    done = run_here("diagnose", runs[300].folder, "--evaluation", tmp_path / "test.jsonl", "--fail-on", "error")
    assert done.returncode == 3, done.stderr
    assert "were trained on together with their answer" in done.stdout
    assert "100.00%" in done.stdout
    with pytest.raises(UsageError, match="encoder"):
        examine(Subject.of_run(runs[300]), second_encoder=object())  # type: ignore[arg-type]


def test_measurements_of_a_run_without_vectors_or_positives() -> None:
    pairs = hardneg.Pairs.from_columns(["a b", "c d"], [None, None], corpus=["x y"])
    documents = np.zeros((2, 1), np.int32)
    info = {
        "resolved": {"depth": 1, "index": "exact", "recall": {"measured": 1.0}},
        "config": {"filters": []},
        "command": None,
    }
    subject = Subject(
        "run",
        pairs,
        documents,
        np.zeros((2, 1), np.float32),
        documents + 1,
        None,
        np.full(2, np.nan, np.float32),
        1,
        None,
        info,
    )
    found = examine(subject)
    assert isinstance(found.measured, Measurements)
    assert "hit_rate" not in found.measured.numbers
    assert found.measured.to_json()["numbers"]["slices"] == []
