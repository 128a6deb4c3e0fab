"""A diagnosis of unusual runs: no negatives at all, queries without positives, several sources, logs that tell nothing."""

from __future__ import annotations

import csv
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

import hardneg
from hardneg.diagnostics.compare import compare
from hardneg.diagnostics.diagnose import diagnose
from hardneg.diagnostics.findings.rules import find
from hardneg.diagnostics.findings.thresholds import Thresholds
from hardneg.diagnostics.measures.gradient import weights
from hardneg.diagnostics.ranking import rank
from hardneg.diagnostics.report.page import check_report
from hardneg.diagnostics.training_run import diagnose_training
from hardneg.errors import DataError, UsageError
from tests.conftest import run_here

TOPICS = ["bread", "rivers", "trains", "clouds", "chess", "violins"]


def texts(count: int, what: str) -> list[str]:
    return [f"{what} {i} about {TOPICS[i % 6]} and {TOPICS[i % 5]} number {i * 7}" for i in range(count)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> hardneg.Run:
    """120 queries, every third of them without a positive."""
    folder = tmp_path_factory.mktemp("edges")
    queries, documents = texts(120, "question"), texts(120, "answer")
    (folder / "set" / "qrels").mkdir(parents=True)
    for name, values in (("queries", queries), ("corpus", documents)):
        rows = [json.dumps({"_id": f"{name[0]}{i}", "text": text}) for i, text in enumerate(values)]
        (folder / "set" / f"{name}.jsonl").write_text("\n".join(rows))
    judged = [f"q{i}\tc{i}\t1" for i in range(120) if i % 3]
    (folder / "set" / "qrels" / "train.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))
    return hardneg.mine(folder / "set", folder / "run", depth=30, negatives=4)


def test_no_negatives_at_all(tmp_path: Path, run: hardneg.Run) -> None:
    pairs = hardneg.Pairs.from_columns(["one question"], ["one answer"])
    with pytest.raises(DataError):
        hardneg.mine(pairs, tmp_path / "none")
    found = diagnose(tmp_path / "none")
    assert [each.code for each in found.findings if each.severity == "error"] == ["few-negatives"]
    shutil.copytree(tmp_path / "none", tmp_path / "copy")
    assert compare(tmp_path / "none", tmp_path / "copy").changes == []
    with pytest.raises(UsageError, match="only runs over one dataset compare"):
        compare(run, tmp_path / "none")


def test_queries_without_positives_are_no_part_of_what_teaches(tmp_path: Path, run: hardneg.Run) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert np.isnan(weights(np.array([[0.5, -np.inf]]), np.array([np.nan]), 0.05)).all()
        other = hardneg.select(run, hardneg.SelectOptions(filters=("rank:min=2",)), tmp_path / "other")
        ranked = rank([run, other])
    seen = next(each for each in ranked.runs if each.name == str(run.folder))
    told = diagnose(run).measured.numbers["teaching"]
    assert seen.measures["teaching"].value == pytest.approx(told.value, abs=1e-6)


def test_a_margin_is_tried_on_the_queries_that_it_applies_to(run: hardneg.Run) -> None:
    found = diagnose(run, thresholds=Thresholds(above_positive=-1.0))
    tried = {each.added: each for each in found.alternatives}
    widest = tried["margin:relative=0.1",]
    kept = hardneg.select(run, hardneg.SelectOptions(filters=("margin:relative=0.1",)), run.folder.parent / "margin")
    subject = diagnose(kept).subject
    asked = np.isfinite(subject.positive)
    assert widest.short == pytest.approx(float((subject.counts < 4)[asked].mean()))
    assert widest.above_positive == 0.0


def test_the_recall_of_an_index_is_not_measured_on_fused_lists(tmp_path: Path, run: hardneg.Run) -> None:
    source = run.folder.parent / "set"
    fused = hardneg.mine(source, tmp_path / "fused", depth=30, negatives=4, candidates=["dense", "bm25"])
    found = diagnose(fused)
    assert found.measured.numbers["recall"] == 1.0  # as the exact index says
    assert "recall" not in {each.code for each in found.findings}


def test_where_positives_are_like_random_documents_nothing_else_is_said_of_the_scale() -> None:
    from hardneg.diagnostics.estimates import Estimate, Measurements

    bad = Estimate(0.5, 0.45, 0.55, 100)
    numbers = {"beats_random": bad, "relative": -500.0, "temperature_outside": 3.0, "temperature": 0.05}
    numbers |= {"temperature_low": 0.002, "temperature_high": 0.002}
    assert [each.code for each in find(Measurements(numbers), Thresholds(), "run")] == ["positives-like-random"]
    good = Estimate(0.95, 0.9, 0.99, 100)
    assert "easy" in {each.code for each in find(Measurements(numbers | {"beats_random": good}), Thresholds(), "run")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relevant": "yes"}, "must be empty, 0 or 1"),
        ({"query_id": "nobody"}, "query_id is not in the run's dataset"),
        ({"document_id": "'=1+1"}, "document_id is not in the run's dataset"),
        (None, "holds no pairs"),
    ],
)
def test_a_report_takes_only_pairs_of_its_run(
    tmp_path: Path, run: hardneg.Run, change: dict[str, str] | None, message: str
) -> None:
    hardneg.judge(run, tmp_path / "f.csv", sample=30)
    check_report(tmp_path / "r.html", run, tmp_path / "f.csv")
    with open(tmp_path / "f.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with open(tmp_path / "bad.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows([] if change is None else [{**rows[0], **change}, *rows[1:]])
    with pytest.raises(DataError, match=message):
        check_report(tmp_path / "r.html", run, tmp_path / "bad.csv")


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path, run: hardneg.Run) -> None:
    (tmp_path / "note.html").write_text("mine")
    done = run_here("diagnose", run.folder, "--html", tmp_path / "note.html")
    assert done.returncode == 1
    assert "no report of hardneg" in done.stderr
    assert "measure" not in done.stderr


@pytest.mark.parametrize("log", ["", "\ufffd{]\n", '{"step": 1}\n'])
def test_a_log_that_tells_nothing_is_not_called_good(tmp_path: Path, log: str) -> None:
    (tmp_path / "train.json").write_text(json.dumps({"schema": "hardneg-train-1", "finished": True}))
    (tmp_path / "log.jsonl").write_text(log)
    found = diagnose_training(tmp_path)
    assert [each.code for each in found.findings] == ["short-log"]
    assert found.fails("warning")


def test_a_run_of_one_pair_is_shown(tmp_path: Path) -> None:
    """Estimates of one query have no interval."""
    (tmp_path / "one.csv").write_text("query,positive\na question,its answer\n")
    run_here("mine", tmp_path / "one.csv", "--out", tmp_path / "run")
    done = run_here("diagnose", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "queries with too few negatives" in done.stdout
