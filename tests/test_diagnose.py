"""Faults planted in real data (functions and their docstrings) are found and named; metrics against naive loops."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import hardneg
from hardneg.diagnostics.diagnose import Diagnosis, diagnose, examine
from hardneg.diagnostics.estimates import Estimate, unit
from hardneg.diagnostics.findings.thresholds import Thresholds
from hardneg.diagnostics.measures.completeness import completeness
from hardneg.diagnostics.measures.diversity import diversity, hubness
from hardneg.diagnostics.measures.geometry import geometry
from hardneg.diagnostics.measures.gradient import gradient
from hardneg.diagnostics.measures.hardness import hardness
from hardneg.diagnostics.measures.search import search_quality
from hardneg.diagnostics.measures.surface import looks
from hardneg.diagnostics.subject import Subject
from hardneg.errors import RunError, UsageError
from tests.conftest import run_here

pytestmark = pytest.mark.xdist_group("pycode")  # one worker reads the sources and mines them once

COUNT = 400


@pytest.fixture(scope="module")
def code(some_code: hardneg.Pairs) -> hardneg.Pairs:
    """Some functions and their docstrings."""
    rows = np.random.default_rng(0).permutation(len(some_code))[:COUNT]
    assert some_code.query_groups is not None
    texts = list(some_code.documents.take(some_code.positives.take(rows).values))
    groups = some_code.query_groups[rows].tolist()
    return hardneg.Pairs.from_columns(some_code.queries.take(rows), texts, groups=groups)


@pytest.fixture(scope="module")
def vectors(code: hardneg.Pairs) -> tuple[np.ndarray, np.ndarray]:
    encoder = hardneg.HashedEncoder()
    encoder.fit(code.documents.slice(0, len(code.document_ids)) + code.queries.slice(0, len(code)))
    return encoder.encode(code.queries.slice(0, len(code))), encoder.encode(
        code.documents.slice(0, len(code.document_ids))
    )


@pytest.fixture(scope="module")
def clean(code: hardneg.Pairs, tmp_path_factory: pytest.TempPathFactory) -> hardneg.Run:
    return hardneg.mine(code, tmp_path_factory.mktemp("runs") / "clean")


@pytest.fixture(scope="module")
def found_in_clean(clean: hardneg.Run) -> Diagnosis:
    return diagnose(clean)


def mined_with(pairs: hardneg.Pairs, q: np.ndarray, d: np.ndarray, folder: Path, **options: Any) -> Diagnosis:
    for name, array in (("q", q), ("d", d)):
        np.save(folder / f"{name}.npy", array.astype(np.float32), allow_pickle=False)
    given = hardneg.MineOptions(
        query_embeddings=str(folder / "q.npy"), corpus_embeddings=str(folder / "d.npy"), **options
    )
    return diagnose(hardneg.mine(pairs, folder / "run", given, force=True))


def codes(found: Diagnosis, severity: str | None = None) -> set[str]:
    return {f.code for f in found.findings if severity in (None, f.severity)}


def rebuilt(code: hardneg.Pairs, change: Callable[[str], str], more: tuple[str, ...] = ()) -> hardneg.Pairs:
    texts = [change(text) for text in code.documents.slice(0, len(code.document_ids))]
    first = code.positives.values[code.positives.offsets[:-1]]
    return hardneg.Pairs.from_columns(code.queries.slice(0, len(code)), [texts[i] for i in first], corpus=more)


def test_a_clean_run_has_no_error(found_in_clean: Diagnosis) -> None:
    found = found_in_clean
    assert not codes(found, "error")
    assert found.worst in (None, "info", "warning")
    assert {"duplicates", "hub", "collapse", "temperature-low", "stale", "easy", "few-negatives", "recall"}.isdisjoint(
        codes(found)
    )
    assert not found.fails("error")


def test_false_negatives(clean: hardneg.Run) -> None:
    """A tenth of the negatives are given their query's label."""
    subject = Subject.of_run(clean)
    rng = np.random.default_rng(0)
    groups = np.arange(len(subject.pairs.document_ids)) + 10**6
    assert subject.pairs.query_groups is not None
    mine = subject.pairs.query_groups.copy()
    planted = replace(subject, pairs=replace(subject.pairs, query_groups=mine, document_groups=groups))
    assert "false-negatives" not in codes(examine(planted))
    documents = subject.documents.copy()
    chosen = rng.random(documents.shape) < 0.1
    # Each chosen place gets a document of its own that carries the query's group.
    count = int(chosen.sum())
    extra = rng.choice(len(groups), count)
    groups[extra] = np.broadcast_to(mine[:, None], documents.shape)[chosen]
    documents[chosen] = extra
    found = examine(replace(planted, documents=documents))
    finding = next(f for f in found.findings if f.code == "false-negatives")
    assert finding.severity in ("warning", "error")
    assert 0.04 < finding.value < 0.15
    assert finding.ids
    assert re.fullmatch(
        r"hardneg select .*--add-filter group --out .*", finding.fix
    )  # groups tell it, and leave them out


def test_the_posterior_speaks_of_false_negatives(clean: hardneg.Run) -> None:
    subject = Subject.of_run(clean)
    probability = np.where(subject.real, np.float32(0.4), np.float32(np.nan))
    found = examine(replace(subject, probability=probability))
    finding = next(f for f in found.findings if f.code == "false-negatives")
    assert finding.severity == "error"
    assert finding.value == pytest.approx(0.4)
    assert found.measured.numbers["false_source"] == "posterior"


def test_a_fix_can_be_typed_as_it_stands(clean: hardneg.Run, tmp_path: Path) -> None:
    """Also where the folder's name has a space in it."""
    folder = tmp_path / "a run"
    shutil.copytree(clean.folder, folder)
    subject = Subject.of_run(hardneg.Run(folder))
    found = examine(replace(subject, probability=np.where(subject.real, np.float32(0.4), np.float32(np.nan))))
    fix = next(f for f in found.findings if f.code == "false-negatives").fix
    for command in fix.split(" && "):
        name, *words = shlex.split(command)
        assert name == "hardneg"
        done = run_here(*words)
        assert done.returncode == 0, done.stderr
    assert len(hardneg.Run(tmp_path / "a run-2").negatives()) == len(clean.negatives())


def test_unknown_false_negatives_are_a_range(clean: hardneg.Run) -> None:
    subject = Subject.of_run(clean)
    found = examine(replace(subject, pairs=replace(subject.pairs, query_groups=None, document_groups=None)))
    assert "false-negatives-unknown" in codes(found, "info")
    assert found.measured.numbers["false_high"] > 0


def test_a_corpus_of_near_duplicates(code: hardneg.Pairs, tmp_path: Path) -> None:
    texts = code.documents.slice(0, len(code.document_ids))
    pairs = rebuilt(code, lambda text: text, tuple(f"{text}\n# v{k}" for text in texts for k in range(2)))
    found = diagnose(hardneg.mine(pairs, tmp_path / "run"))
    assert {"duplicates", "duplicate-corpus"} <= codes(found)
    said = next(each for each in found.findings if each.code == "duplicates")
    assert "nearly the vector" in said.text  # not: nearly the same text, which was not compared


def test_a_hub(code: hardneg.Pairs, vectors: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    q, d = vectors[0], vectors[1].copy()
    d[17] = q.mean(0) / np.linalg.norm(q.mean(0))
    q = q + 0.8 * d[17]
    found = mined_with(code, q, d, tmp_path)
    finding = next(f for f in found.findings if f.code == "hub")
    assert finding.ids[0] == code.document_ids[17].as_py()
    assert finding.severity == "error"


def test_collapsed_embeddings(code: hardneg.Pairs, vectors: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    """All vectors lean to one side; and: all lie in a few directions."""
    leaning = [x + 6 * np.eye(1, x.shape[1], 3) for x in vectors]
    (tmp_path / "a").mkdir()
    assert "collapse" in codes(mined_with(code, *leaning, tmp_path / "a"), "error")
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((256, 5)))[0]
    flat = [x @ basis @ basis.T for x in vectors]
    (tmp_path / "b").mkdir()
    assert "collapse" in codes(mined_with(code, *flat, tmp_path / "b"), "error")


def test_where_all_vectors_are_near_no_copies_are_found(
    code: hardneg.Pairs, vectors: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    """Distinct texts whose vectors share a constant: the numbers stay, but they are no facts about texts."""
    held = {"duplicates", "duplicate-corpus", "translations", "near-query"}
    for lean, collapsed in ((2.2, False), (6.0, True)):
        leaning = [x + lean * np.eye(1, x.shape[1], 3) for x in vectors]
        folder = tmp_path / str(lean)
        folder.mkdir()
        found = mined_with(code, *leaning, folder)
        assert ("collapse" in codes(found)) == collapsed
        assert not held & codes(found)
        said = next(each for each in found.findings if each.code == "all-near")
        assert said.severity == "info"
        assert said.value == found.measured.numbers["mean_cosine"] > 0.75
        assert "duplicate-corpus" in said.text
        assert found.measured.numbers["corpus_near_duplicates"].value > 0.2
        assert said.ids
        strict = examine(found.subject, thresholds=Thresholds(all_near=1.0))
        assert (bool(held & codes(strict))) != collapsed


def test_a_stale_run(clean: hardneg.Run, code: hardneg.Pairs) -> None:
    now = hardneg.HashedEncoder()
    now.fit(code.documents.slice(0, 400))
    found = diagnose(clean, encoder=now)
    assert "stale" in codes(found)
    same = hardneg.HashedEncoder()  # fitted to the run's dataset, as mining did: it has not moved
    assert diagnose(clean, encoder=same).measured.numbers["drift"] < 1e-3
    with pytest.raises(UsageError, match="it is another model"):
        diagnose(clean, encoder=hardneg.HashedEncoder(dimension=32))


def test_scores_of_other_vectors(clean: hardneg.Run) -> None:
    subject = Subject.of_run(clean)
    assert subject.vectors is not None
    shuffled = np.asarray(subject.vectors[1])[np.random.default_rng(0).permutation(len(subject.vectors[1]))]
    assert "stale-scores" in codes(examine(replace(subject, vectors=(subject.vectors[0], shuffled))), "error")


def test_vectors_of_other_texts(
    code: hardneg.Pairs, vectors: tuple[np.ndarray, np.ndarray], found_in_clean: Diagnosis, tmp_path: Path
) -> None:
    """Positives that score like random documents are the first thing that is said, as an error."""
    queries, documents = vectors
    shuffled = documents[np.random.default_rng(0).permutation(len(documents))]
    found = mined_with(code, queries, shuffled, tmp_path)
    assert found.findings[0].code == "positives-like-random"
    assert found.findings[0].severity == "error"
    assert found.measured.numbers["beats_random"].value == pytest.approx(0.5, abs=0.06)
    assert "positives-like-random" not in codes(found_in_clean)
    assert found_in_clean.measured.numbers["beats_random"].value > 0.9


@pytest.mark.slow
def test_truncated_texts(code: hardneg.Pairs, tmp_path: Path) -> None:
    found = diagnose(hardneg.mine(rebuilt(code, lambda text: text[:150]), tmp_path / "cut"))
    finding = next(f for f in found.findings if f.code == "truncated")
    assert finding.value > 0.5
    whole = diagnose(hardneg.mine(rebuilt(code, lambda text: text[: 60 + hash_of(text)]), tmp_path / "whole"))
    assert "truncated" not in codes(whole)


def hash_of(text: str) -> int:
    return sum(text.encode()) % 1500


def test_easy_negatives(code: hardneg.Pairs, tmp_path: Path) -> None:
    random = hardneg.MineOptions(depth=len(code.document_ids), sampler="uniform")
    found = diagnose(hardneg.mine(code, tmp_path / "run", random))
    assert "easy" in codes(found)
    assert found.measured.numbers["relative"] < 0.3


def test_a_temperature_that_is_too_low(clean: hardneg.Run) -> None:
    found = diagnose(clean, temperature=0.002)
    finding = next(f for f in found.findings if f.code == "temperature-low")
    low, high = (found.measured.numbers[name] for name in ("temperature_low", "temperature_high"))
    assert 0.002 < low < high
    assert f"{low:.3g}" in finding.fix
    assert "temperature-low" not in codes(diagnose(clean, temperature=(low * high) ** 0.5))


def test_too_few_negatives(code: hardneg.Pairs, tmp_path: Path) -> None:
    found = diagnose(
        hardneg.mine(code, tmp_path / "run", hardneg.MineOptions(depth=20, max_depth=20, filters=("score:max=0.2",)))
    )
    finding = next(f for f in found.findings if f.code == "few-negatives")
    assert finding.ids
    counts = found.subject.info["counts"]
    most = (
        f"the filter score, which rejects most ({counts['verdicts']['score']:,} of {counts['candidates']:,} candidates)"
    )
    assert most in finding.fix


def test_the_fix_of_too_few_negatives_replaces_the_depths(tmp_path: Path) -> None:
    """Typed as it stands, it mines deeper, whatever depths were given; of all documents there is nothing deeper."""
    source = tmp_path / "pairs.jsonl"
    source.write_text(
        "\n".join(json.dumps({"query": f"question {i}", "positive": f"answer {i} of {i % 7}"}) for i in range(60))
    )
    for depth, deeper in ((10, "20"), (60, "")):
        folder = tmp_path / str(depth)
        words = ["mine", str(source), "--out", str(folder), "--depth", str(depth), f"--max-depth={depth}"]
        options = hardneg.MineOptions(depth=depth, max_depth=depth, filters=("rank:min=8",))
        run = hardneg.mine(source, folder, options, command=words, force=True)
        found = diagnose(run, thresholds=Thresholds(few=-1.0))
        fix = next(f for f in found.findings if f.code == "few-negatives").fix
        assert "the filter rank, which rejects most" in fix
        if not deeper:
            assert fix.startswith("all documents are candidates already: loosen")
            continue
        name, *typed = shlex.split(fix.partition("   #")[0])
        assert name == "hardneg"
        assert [word for word in typed if word.startswith("--depth")] == ["--depth"]
        assert typed[typed.index("--depth") + 1] == deeper
        assert sum(word.startswith("--max-depth") for word in typed) == 1
        done = run_here(*typed, "--force")
        assert done.returncode == 0, done.stderr
        assert hardneg.Run(f"{folder}-2").info["resolved"]["max_depth"] == 60


def test_looks_give_negatives_away(clean: hardneg.Run, code: hardneg.Pairs) -> None:
    subject = Subject.of_run(clean)
    texts = [len(text) for text in code.documents.slice(0, len(code.document_ids))]
    positives = set(code.positives.values.tolist())
    assert len(positives) == len(texts)  # every function is somebody's answer
    longest = np.argsort(texts)[-60:].astype(np.int32)
    documents = longest[np.random.default_rng(0).integers(0, 60, subject.documents.shape)]
    found = examine(replace(subject, documents=documents))
    assert "looks" in codes(found)
    assert found.measured.numbers["length_ratio"] > 1.5


@pytest.mark.slow
def test_words_give_negatives_away(clean: hardneg.Run, code: hardneg.Pairs, tmp_path: Path) -> None:
    """Negatives are what is nobody's answer, and says so in a word of its own that is as long as any."""
    texts = code.documents.slice(0, len(code.document_ids))
    marked = tuple(f"{text}\n# deprecated" for text in texts)
    pairs = rebuilt(code, lambda text: f"{text}\n# maintained", marked)
    subject = Subject.of_run(hardneg.mine(pairs, tmp_path / "run"))
    nobodys = np.setdiff1d(np.arange(len(pairs.document_ids)), pairs.positives.values).astype(np.int32)
    documents = np.random.default_rng(0).choice(nobodys, subject.documents.shape)
    found = examine(replace(subject, documents=documents))
    finding = next(f for f in found.findings if f.code == "words")
    assert {"+maintained", "-deprecated"} == set(finding.ids[:2])
    assert finding.value > 0.95 > 0.75 > found.measured.numbers["surface_auc"]
    numbers = diagnose(clean).measured.numbers
    assert 0.4 < numbers["lexical_auc"] < 0.85


def test_recall_is_measured_whatever_the_run_says(clean: hardneg.Run, code: hardneg.Pairs, tmp_path: Path) -> None:
    """Against a loop over all documents, on a run whose index finds half; `run.json` is made to say that it finds all."""
    subject = Subject.of_run(clean)
    assert search_quality(subject, np.random.default_rng(0)).numbers["recall"].value > 0.999
    assert subject.vectors is not None
    rng = np.random.default_rng(1)
    q, d = (unit(each, np.arange(len(each))) for each in subject.vectors)
    scores = q @ d.T
    documents, ranks, expected = subject.documents.copy(), subject.ranks.copy(), []
    for i in range(len(q)):
        nearest = np.argsort(-scores[i])[:40]
        found = nearest[rng.random(40) < 0.5][:10]
        documents[i], ranks[i] = -1, 0
        chosen = np.arange(len(found))[-documents.shape[1] :]
        documents[i, : len(chosen)], ranks[i, : len(chosen)] = found[chosen], chosen + 1
        expected.append(len(found) / (1 + list(nearest).index(found[-1])))
    planted = replace(subject, documents=documents, ranks=ranks)
    measured = examine(planted)
    recall = measured.measured.numbers["recall"]
    assert recall.low - 0.02 <= np.mean(expected) <= recall.high + 0.02
    assert measured.measured.numbers["recall_said"] == 1
    assert "recall" in codes(measured, "warning")


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_recall_with_other_metrics(code: hardneg.Pairs, metric: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    q, d = (rng.standard_normal((n, 24)) * rng.uniform(0.5, 2, (n, 1)) for n in (len(code), len(code.document_ids)))
    found = mined_with(code, q, d, tmp_path, metric=metric, precision="float32")
    assert found.measured.numbers["recall"].value > 0.999
    assert found.subject.vectors is not None
    back = replace(found.subject, vectors=(found.subject.vectors[0], np.asarray(found.subject.vectors[1])[::-1]))
    assert examine(back).measured.numbers["recall"].value < 0.5


def test_hidden_positives_tell_of_false_negatives(tmp_path: Path) -> None:
    """Sixteen documents of each topic are relevant, three of them known: the share of the others among the negatives."""
    rng = np.random.default_rng(0)
    topics, each = 60, 16
    words = [[f"topic{t}word{i}" for i in range(9)] for t in range(topics)]
    texts = [" ".join(rng.choice(words[t], 5, replace=False)) + f" n{i}" for t in range(topics) for i in range(each)]
    rows, asked = np.repeat(np.arange(topics), 5), []
    for t in rows:
        asked.append(" ".join(rng.choice(words[t], 3, replace=False)) + f" q{len(asked)}")
    lines = [
        {"query": asked[i], "positives": [texts[t * each + j] for j in rng.choice(each, 3, replace=False)]}
        for i, t in enumerate(rows)
    ]
    source = tmp_path / "pairs.jsonl"
    source.write_text(
        "".join(json.dumps({"query": x["query"], "pos": x["positives"], "neg": []}) + "\n" for x in lines)
    )
    pairs = hardneg.read_pairs(str(source))
    run = hardneg.mine(pairs, tmp_path / "run", hardneg.MineOptions(depth=60, sampler="uniform", negatives=10))
    found = diagnose(run)
    topic = {text: i // each for i, text in enumerate(texts)}
    documents = [topic[text] for text in pairs.documents.slice(0, len(pairs.document_ids))]
    of_query = {text: int(t) for text, t in zip(asked, rows, strict=True)}
    mine = [of_query[text] for text in pairs.queries.slice(0, len(pairs))]
    subject = found.subject
    false = np.array(documents)[subject.documents] == np.array(mine)[:, None]
    truth = false[subject.real].mean()
    assert 0.1 < truth < 0.5
    assert found.measured.numbers["false_source"] == "hidden positives"
    assert found.measured.numbers["false_share"].value == pytest.approx(truth, rel=0.3)
    assert "false-negatives" in codes(found)


def test_numbers_against_loops(clean: hardneg.Run) -> None:
    subject = Subject.of_run(clean)
    table = clean.negatives().to_pylist()
    rng = np.random.default_rng(0)
    hard = hardness(subject, rng).numbers
    gaps = [
        min(r["positive_scores"]) - np.mean(r["negative_scores"])
        for r in table
        if r["negative_scores"] and r["positive_scores"]
    ]
    assert hard["margin"].value == pytest.approx(np.mean(gaps), abs=1e-5)
    above = [
        np.mean([s > min(r["positive_scores"]) for s in r["negative_scores"]]) for r in table if r["negative_scores"]
    ]
    assert hard["above_positive"].value == pytest.approx(np.mean(above), abs=1e-6)
    positive = [min(r["positive_scores"]) for r in table]
    negative = [s for r in table for s in r["negative_scores"]]
    auc = roc_auc_score([0] * len(positive) + [1] * len(negative), positive + negative)
    assert hard["overlap"] == pytest.approx(auc, abs=0.01)
    assert hard["score_by_place"][0] == pytest.approx(np.mean([r["negative_scores"][0] for r in table]), abs=1e-5)

    t = 0.05
    numbers = gradient(subject, t).numbers
    effective, weights = [], []
    for r in table:
        e = np.exp(np.array(r["negative_scores"]) / t)
        p = np.exp(min(r["positive_scores"]) / t)
        w = e / e.sum()
        effective.append(np.exp(-(w * np.log(w)).sum()))
        weights.append(p / (p + e.sum()))
    assert numbers["effective_negatives"].value == pytest.approx(np.mean(effective), rel=1e-4)
    assert numbers["positive_weight"] == pytest.approx(np.mean(weights), rel=1e-4)

    ids = [name for r in table for name in r["negative_ids"]]
    spread = diversity(subject, rng).numbers
    assert spread["distinct"] == pytest.approx(len(set(ids)) / len(ids))
    assert spread["coverage"] == pytest.approx(len(set(ids)) / len(subject.pairs.document_ids))
    times = np.array(
        [ids.count(name) for name in set(ids)] + [0] * (len(subject.pairs.document_ids) - len(set(ids))), float
    )
    hubs = hubness(subject)
    assert hubs.numbers["hub_skew"] == pytest.approx((((times - times.mean()) / times.std()) ** 3).mean(), rel=1e-6)
    assert hubs.numbers["hub_share"] == pytest.approx(times.max() / len(table))
    assert ids.count(hubs.ids["hubs"][0]) == times.max()
    assert completeness(subject).numbers["few"] == 0

    space = geometry(subject, rng).numbers
    assert subject.vectors is not None
    d = unit(subject.vectors[1], np.arange(len(subject.pairs.document_ids))).astype(np.float64)
    square = ((d[:300, None] - d[None, :300]) ** 2).sum(2)[np.triu_indices(300, 1)]
    assert space["uniformity"] == pytest.approx(np.log(np.exp(-2 * square).mean()), abs=0.1)
    first = subject.pairs.positives.values[subject.pairs.positives.offsets[:-1]]
    q = unit(subject.vectors[0], np.arange(len(subject.pairs)))
    assert space["alignment"].value == pytest.approx(((q - d[first]) ** 2).sum(1).mean(), abs=1e-3)


def test_intervals_hold_what_they_promise() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        found = Estimate.mean_of((rng.random(200) < 0.3).astype(float))
        inside += found.low <= 0.3 <= found.high
    assert 0.91 <= inside / 400 <= 0.98


def test_looks_of_texts() -> None:
    found = looks(["", "Ab1,", "größe x", "日本"])
    assert found[0].tolist() == [0] * 7
    assert found[1].tolist() == pytest.approx([np.log1p(4), np.log1p(1), 4, 0.25, 0.25, 0.25, 0])
    assert found[2, 6] == pytest.approx(2 / 7)
    assert found[3, 6] == 1


def test_command_line(clean: hardneg.Run, tmp_path: Path) -> None:
    done = run_here("diagnose", clean.folder, "--json", "--fail-on", "error")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["numbers"]["queries"] == len(clean.pairs())
    assert value["numbers"]["margin"]["low"] < value["numbers"]["margin"]["value"] < value["numbers"]["margin"]["high"]
    table = run_here("diagnose", clean.folder)
    assert table.returncode == 0
    assert "effective rank" in table.stdout
    strict = tmp_path / "strict.json"
    strict.write_text('{"hub": 0.00001, "hub_error": 0.00002, "effective": 0.99}')
    failed = run_here("diagnose", clean.folder, "--thresholds", strict, "--fail-on", "warning")
    assert failed.returncode == 3
    assert "one or two negatives" in failed.stdout
    strict.write_text('{"hubs": 1}')
    wrong = run_here("diagnose", clean.folder, "--thresholds", strict)
    assert wrong.returncode == 2
    assert "Did you mean 'hub'" in wrong.stderr
    assert run_here("diagnose", tmp_path / "nowhere").returncode == 1


def test_damaged_runs_are_said(clean: hardneg.Run, found_in_clean: Diagnosis) -> None:
    with pytest.raises(UsageError, match="temperature=0"):
        examine(Subject.of_run(clean), temperature=0)
    with pytest.raises(RunError, match="is no run folder"):
        diagnose("nowhere")
    with pytest.raises(UsageError, match="unknown severity"):
        found_in_clean.fails("fatal")


def test_thresholds_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    for text, message in (
        ('{"hub": "x"}', "expected a number"),
        ("[1]", "must hold a JSON object"),
        ("{", "not readable as JSON"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            Thresholds.load(path)
    path.write_text('{"hub": 0.5}')
    assert Thresholds.load(path).hub == 0.5


def test_compare_counts_by_hand(clean: hardneg.Run, tmp_path: Path) -> None:
    """Another selection: what flows where, counted from the two runs' own files."""
    import pyarrow.parquet as pq

    other = hardneg.select(
        clean, hardneg.SelectOptions(filters=("rank:min=20", "margin:absolute=0.05")), tmp_path / "other"
    )
    found = hardneg.compare(clean, other)
    sides = []
    for run in (clean, other):
        rows = [row for path in run.candidate_files() for row in pq.read_table(path).to_pylist()]
        sides.append({(row["query_id"], row["document_id"]): row["verdict"] for row in rows})
    flow: dict[str, dict[str, int]] = {}
    for pair in sides[0].keys() | sides[1].keys():
        before, after = (side.get(pair, "not a candidate") for side in sides)
        flow.setdefault(before, {}).setdefault(after, 0)
        flow[before][after] += 1
    assert found.flow == flow
    assert flow["kept"]["rank"] > 1000
    tables = [run.negatives().to_pylist() for run in (clean, other)]
    shared = []
    for a, b in zip(*tables, strict=True):
        fewer = min(len(a["negative_ids"]), len(b["negative_ids"]))
        if fewer:
            shared.append(len(set(a["negative_ids"]) & set(b["negative_ids"])) / fewer)
    assert found.overlap.value == pytest.approx(np.mean(shared))
    assert found.hardness_shift.value < 0
    same = hardneg.compare(clean, clean)
    assert same.staleness is not None
    assert (same.staleness.drift, same.staleness.overlap) == pytest.approx((0, 1), abs=1e-5)
    assert same.overlap.value == 1
    assert same.changes == []
    assert all(set(after) == {before} for before, after in same.flow.items())


@pytest.mark.slow
def test_compare_says_how_far_an_encoder_has_moved(
    code: hardneg.Pairs, vectors: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    """Two generations: the documents' vectors of the second are those of the first with noise."""
    noise = np.random.default_rng(0).standard_normal(vectors[1].shape) / 16
    moved = unit(vectors[1] + 0.5 * noise, np.arange(len(noise)))
    first, later, short = (
        hardneg.Run(mined_with(code, q, d, tmp_path_of(tmp_path, name)).subject.name)
        for name, q, d in (("a", *vectors), ("b", vectors[0], moved), ("c", vectors[0][:, :64], vectors[1][:, :64]))
    )
    found = hardneg.compare(first, later)
    assert found.staleness is not None
    assert found.staleness.drift == pytest.approx(1 - float((vectors[1] * moved).sum(1).mean()), abs=0.01)
    assert found.staleness.overlap < 0.9
    assert hardneg.compare(first, short).staleness is None


def tmp_path_of(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


@pytest.mark.slow
def test_compare_on_the_command_line(clean: hardneg.Run, tmp_path: Path) -> None:
    easy = hardneg.select(clean, hardneg.SelectOptions(filters=("score:max=0.03",)), tmp_path / "easy")
    done = run_here("compare", clean.folder, easy.folder, "--html", tmp_path / "c.html")
    assert done.returncode == 0, done.stderr
    assert "kept -> score" in done.stdout
    assert "new: error" in done.stdout  # far too few negatives are left
    assert "<!doctype html>" in (tmp_path / "c.html").read_text()[:20]
    value = json.loads(run_here("compare", clean.folder, easy.folder, "--json").stdout)
    assert {change["change"] for change in value["changes"]} & {"new", "worse"}
    pairs = hardneg.Pairs.from_columns(["a b", "c d"], ["e f", "g h"], corpus=["i j", "k l"])
    hardneg.mine(pairs, tmp_path / "small", hardneg.MineOptions(negatives=1))
    other = run_here("compare", clean.folder, tmp_path / "small")
    assert other.returncode == 2
    assert "only runs over one dataset compare" in other.stderr


def test_live(tmp_path: Path) -> None:
    """As a callback of the trainer, with real TensorBoard files; its numbers are those of the same step's vectors."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    from tests.test_trainer import encoder, made_pairs

    writer = SummaryWriter(str(tmp_path / "tb"))
    watch = hardneg.Diagnostics(writer, every=5)
    options = hardneg.TrainOptions(steps=22, batch_size=16, bank=64, bank_start=1, log_every=5, refresh="steps:6")
    told: list[dict[str, float]] = []

    class Log:
        def log(self, step: int, values: dict[str, float]) -> None:
            told.append({"step": step, **values})

        def close(self) -> None:
            pass

    hardneg.train(made_pairs(), encoder(), tmp_path / "out", options, device="cpu", callbacks=[watch, Log()])
    assert [row["step"] for row in watch.history] == [5, 10, 15, 20]
    own = {row["step"]: row for row in told}
    for row in watch.history:
        for name in ("effective_rank", "negative", "margin", "bank_age", "age"):
            assert row[name] == pytest.approx(own[row["step"]][name], rel=1e-4)
    writer.close()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert {"negatives/margin", "negatives/drift", "negatives/masked", "negatives/bank_age"} <= set(
        events.Tags()["scalars"]
    )
    assert {"negatives/positive_scores", "negatives/mined_scores", "negatives/bank_ages"} <= set(
        events.Tags()["histograms"]
    )


def test_live_sees_a_collapse() -> None:
    import torch

    watch = hardneg.Diagnostics(every=1)
    vectors = torch.randn(64, 32)
    watch.batch(1, vectors[:16], vectors)
    watch.batch(2, vectors[:16], vectors * 0.001 + torch.randn(1, 32))
    assert len(watch.warnings) == 1
    assert "the vectors collapse" in watch.warnings[0]
    with pytest.raises(UsageError, match="every=0"):
        hardneg.Diagnostics(every=0)
