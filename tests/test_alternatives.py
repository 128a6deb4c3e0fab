"""Fixes are tried before they are offered, and what they would cost is said."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hardneg
from hardneg.diagnostics.alternatives import alternatives, better_fixes
from hardneg.diagnostics.diagnose import diagnose
from hardneg.diagnostics.findings.base import Finding
from hardneg.diagnostics.measures.diversity import repeated
from hardneg.diagnostics.subject import Subject
from hardneg.mining.mine import mine
from hardneg.mining.options import MineOptions
from hardneg.progress import silent
from hardneg.storage.arrow import values_of

from .conftest import run_here, unit


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> hardneg.Run:
    """Queries of groups whose positives are rather far: most candidates score above them."""
    folder = tmp_path_factory.mktemp("fixes")
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((10, 8))
    group, asked = np.arange(300) % 10, np.arange(100) % 10
    texts = [f"text {i}" for i in range(300)]
    far = rng.random(100) < 0.85
    positives = [texts[rng.choice(np.flatnonzero((group == asked[i]) != far[i]))] for i in range(100)]
    pairs = hardneg.Pairs.from_columns(
        [f"query {i}" for i in range(100)], positives, corpus=texts, groups=asked, corpus_groups=group
    )
    vectors = dict(zip(texts, unit(centres[group] + 0.8 * rng.standard_normal((300, 8))), strict=True))
    documents = np.stack([vectors[text] for text in pairs.documents.slice(0, 300)])
    queries = unit(centres[asked] + 0.8 * rng.standard_normal((100, 8)))
    return mine(pairs, folder / "run", MineOptions(depth=100, negatives=5), vectors=(queries, documents), force=True)


def test_a_fix_is_tried_and_its_cost_is_that_of_the_selection(run: hardneg.Run, tmp_path: Path) -> None:
    found = diagnose(run)
    finding = next(each for each in found.findings if each.code == "above-positive")
    assert found.alternatives[0].added == ()
    margins = [(f"margin:relative={m}",) for m in ("0.1", "0.05", "0.02", "0.01", "0")]
    assert [each.added for each in found.alternatives[1:]] == [("group",), *margins]
    for tried in found.alternatives[1:]:
        words = shlex.split(tried.command)
        assert words[:3] == ["hardneg", "select", str(run.folder)]
        chosen = run.select(tmp_path / tried.added[0], add_filters=tried.added)
        counts = {int(k): v for k, v in chosen.info["counts"]["negatives"].items()}
        assert tried.short == pytest.approx(sum(v for k, v in counts.items() if k < 5) / 100)
        scores = values_of(chosen.negatives()["negative_scores"].combine_chunks().flatten())
        assert tried.mean_score == pytest.approx(float(scores.mean()), abs=1e-6)
        assert tried.above_positive == 0 or tried.added == ("group",)
    assert found.alternatives[0].above_positive > 0.5
    enough = [each for each in found.alternatives[2:] if each.short <= found.alternatives[0].short + 0.02]
    if enough:
        assert finding.fix.startswith(enough[0].command)
    else:
        assert "no margin leaves enough of these candidates" in finding.fix


def test_the_false_share_of_an_alternative_is_that_of_its_negatives(run: hardneg.Run, tmp_path: Path) -> None:
    tried = diagnose(run).alternatives[-1]
    chosen = run.select(tmp_path / "chosen", add_filters=tried.added)
    pairs = chosen.pairs()
    assert pairs.query_groups is not None
    assert pairs.document_groups is not None
    ids = {id: i for i, id in enumerate(pairs.document_ids.to_pylist())}
    same = [
        pairs.document_groups[ids[document]] == pairs.query_groups[i]
        for i, row in enumerate(chosen.negatives()["negative_ids"].to_pylist())
        for document in row
    ]
    assert tried.false_share == pytest.approx(np.mean(same))


def copied(added: str) -> Finding:
    return Finding("copied", "warning", "copies", "copied_near", 0.1, 0.02, [], f"hardneg select R {added} --out R2")


def with_vectors(pairs: hardneg.Pairs, vectors: np.ndarray, folder: Path, **options: Any) -> hardneg.Run:
    """A run that keeps its vectors; those of the queries are drawn at random."""
    folder.mkdir()
    queries = unit(np.random.default_rng(1).standard_normal((len(pairs), vectors.shape[1])))
    for name, array in (("q", queries), ("d", vectors)):
        np.save(folder / f"{name}.npy", array.astype(np.float32), allow_pickle=False)
    given = {"query_embeddings": str(folder / "q.npy"), "corpus_embeddings": str(folder / "d.npy"), **options}
    return mine(pairs, folder / "run", MineOptions(**given), force=True)


def test_what_changes_nothing_is_not_offered(tmp_path: Path, run: hardneg.Run) -> None:
    """Neither filters that the run has already, nor those that reject none of its negatives."""
    asked = hardneg.Pairs.from_columns([f"query {i}" for i in range(60)], [f"answer {i}" for i in range(60)])
    made = with_vectors(asked, unit(np.random.default_rng(0).standard_normal((60, 8))), tmp_path / "made", depth=30)
    near, helps = copied("--add-filter duplicate:near=1.5"), copied("--add-filter duplicate:near=0.5")
    plain = copied("--default-filters")
    tried = alternatives(made, Subject.of_run(made), [near, plain, helps], silent)
    filters = [(), ("duplicate:near=1.5",), ("duplicate:near=0.5",)]
    assert [(each.added, each.changed > 0) for each in tried] == list(zip(filters, (False, False, True), strict=True))
    fixed = [each.fix for each in better_fixes([near, plain, helps], tried, 0.02, made.info["config"])]
    assert "changes none of the negatives" in fixed[0]
    assert "has the default filters already" in fixed[1]
    assert not any("hardneg select" in each for each in fixed[:2])
    assert fixed[2].startswith(tried[2].command)
    chosen = made.select(tmp_path / "chosen", add_filters=("duplicate:near=0.5",))
    (found,) = better_fixes([helps], [], 0.02, chosen.info["config"])
    assert "the run has duplicate:near=0.5 already" in found.fix
    subject = Subject.of_run(chosen)
    assert subject.vectors is not None
    assert tried[2].near_duplicates == pytest.approx(np.nanmean(repeated(subject.vectors[1], subject.documents)))
    assert Subject.of_run(run).vectors is None  # so that no vectors can be compared
    (found,) = better_fixes([near], alternatives(run, Subject.of_run(run), [near], silent), 0.02, run.info["config"])
    assert "does not keep what duplicate:near=1.5 needs" in found.fix


def test_copies_among_negatives_are_cured_in_the_corpus(tmp_path: Path) -> None:
    """No filter compares negatives with one another, but for equal texts: that is offered where it helps, else the truth is said."""
    texts = [f"text {i} " + " ".join(f"w{(i * k) % 97}" for k in range(1, 9)) for i in range(60)]
    near = [f"{text} version {k}" for text in texts for k in range(3)]
    pairs = hardneg.Pairs.from_columns([f"{text} asked" for text in texts], texts, corpus=near)
    found = diagnose(mine(pairs, tmp_path / "near", MineOptions(depth=20)))
    said = {each.code: each.fix for each in found.findings}
    for code in ("duplicates", "duplicate-corpus"):
        assert said[code].startswith("keep one of each group of copies in the corpus")
        assert "--add-filter" not in said[code]
    # Equal texts, which the default filters would leave out: `distinct` is offered, and the trial shows that it helps.
    equal = hardneg.Pairs.from_columns(
        [f"query {i}" for i in range(60)], [f"answer {i}" for i in range(60)], corpus=[f"other {i // 3}" for i in range(180)],
        corpus_ids=[f"c{i}" for i in range(180)],
    )  # fmt: skip
    rows = np.array(equal.documents.slice(0, len(equal.document_ids)))
    _, of = np.unique(rows, return_inverse=True)
    documents = unit(np.random.default_rng(0).standard_normal((of.max() + 1, 16)))[of]
    made = with_vectors(equal, documents, tmp_path / "equal", depth=40, default_filters=False)
    found = diagnose(made)
    fix = next(each.fix for each in found.findings if each.code == "duplicates")
    assert shlex.split(fix)[:5] == ["hardneg", "select", str(made.folder), "--add-filter", "distinct"]
    now, after = found.alternatives[0], next(each for each in found.alternatives if each.added == ("distinct",))
    assert now.near_duplicates is not None
    assert now.near_duplicates > 0.4
    assert after.near_duplicates == 0


def test_they_are_shown_side_by_side(run: hardneg.Run) -> None:
    shown = run_here("diagnose", run.folder).stdout
    assert "tried on these candidates" in shown
    assert "margin:relative=0.05" in shown


def test_a_run_without_such_fixes_tries_nothing(tmp_path: Path) -> None:
    pairs = hardneg.Pairs.from_columns(
        [f"question {i}" for i in range(30)], [f"question {i} answered" for i in range(30)]
    )
    found = diagnose(mine(pairs, tmp_path / "run", MineOptions(negatives=2)))
    assert not [each for each in found.findings if "--add-filter margin" in each.fix]
    assert found.alternatives == [] or found.alternatives[0].added == ()


def test_a_diagnosis_says_what_it_found(run: hardneg.Run, tmp_path: Path) -> None:
    found = diagnose(run)
    assert repr(found).startswith(f"<Diagnosis of '{run.folder}':")
    assert "above-positive" not in repr(found)
    assert "score above the positive" in repr(found)
    assert "<table>" in found._repr_html_()
    found.to_html(tmp_path / "report.html")
    assert "score above the positive" in (tmp_path / "report.html").read_text()
    assert (
        repr(run.pairs())
        == "<Pairs 'columns': 100 queries, 300 documents, 100 positives, 0 judged negatives, with groups>"
    )


def test_what_leaves_the_finding_is_not_offered(tmp_path: Path) -> None:
    """A filter that takes a few of the copies away and leaves nearly all; one that takes them all is offered with what it does."""
    rng = np.random.default_rng(0)
    names = [f"w{i}" for i in range(500)]
    texts = [" ".join(rng.choice(names, 20)) for _ in range(80)]
    # Each with three others that hold it and go on for long: copies by their words, whose vectors are far.
    longer = [f"{text} {' '.join(rng.choice(names, 30))}" for text in texts for _ in range(3)]
    nearly = [f"{text} again" for text in texts[:20]]
    pairs = hardneg.Pairs.from_columns([" ".join(text.split()[:9]) for text in texts], texts, corpus=[*longer, *nearly])
    found = diagnose(mine(pairs, tmp_path / "run", MineOptions(depth=30)))
    finding = next(each for each in found.findings if each.code == "copied")
    now, tried = found.alternatives[0], next(each for each in found.alternatives if each.added)
    assert tried.added == ("duplicate:near=0.95",)
    assert tried.changed > 0.1
    assert now.values["copied_near"] == pytest.approx(finding.value, abs=1e-9)
    assert 0.75 * now.values["copied_near"] < tried.values["copied_near"]
    assert finding.fix.startswith("remove these copies from the corpus")
    assert f"leaves {tried.values['copied_near']:.1%} of {now.values['copied_near']:.1%}" in finding.fix
    chosen = diagnose(hardneg.select(tmp_path / "run", hardneg.SelectOptions(filters=tried.added), tmp_path / "chosen"))
    assert chosen.measured.numbers["copied_near"].value == pytest.approx(tried.values["copied_near"], abs=0.02)


@pytest.mark.parametrize("helps", [False, True])
def test_a_sampler_is_tried_as_well(tmp_path: Path, helps: bool) -> None:
    """All near documents are positives of others: drawing from more candidates helps where these are others, and only there."""
    rng = np.random.default_rng(0)
    d = unit(rng.standard_normal((560, 16)))
    d[:60] = unit(np.full(16, 0.25) + 0.3 * unit(rng.standard_normal((60, 16))))
    pairs = hardneg.Pairs.from_columns(
        [f"query {i}" for i in range(60)], [f"answer {i}" for i in range(60)], corpus=[f"other {i}" for i in range(500)]
    )
    folder = tmp_path / "it is"
    folder.mkdir()
    q = unit(d[:60] + 0.2 * unit(rng.standard_normal((60, 16))))
    for name, array in (("q", q), ("d", d)):
        np.save(folder / f"{name}.npy", array.astype(np.float32), allow_pickle=False)
    given = {"query_embeddings": str(folder / "q.npy"), "corpus_embeddings": str(folder / "d.npy")}
    made = mine(pairs, folder / "run", MineOptions(depth=300 if helps else 50, **given), force=True)
    found = diagnose(made)
    finding = next(each for each in found.findings if each.code == "others-positives")
    tried = found.alternatives[-1]
    assert (tried.added, tried.sampler) == ((), "uniform")
    drawn = hardneg.select(made, hardneg.SelectOptions(sampler="uniform"), tmp_path / "drawn")
    assert diagnose(drawn).measured.numbers["others_positives"].value == pytest.approx(tried.values["others_positives"])
    if helps:
        assert shlex.split(finding.fix)[:5] == ["hardneg", "select", str(made.folder), "--sampler", "uniform"]
        assert f"100.0% -> {tried.values['others_positives']:.1%}" in finding.fix
    else:
        assert finding.fix.startswith("mine deeper")
        assert "tried: the sampler uniform leaves" in finding.fix
    assert "none: sampler uniform" in run_here("diagnose", made.folder).stdout
