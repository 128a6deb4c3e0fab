"""Evidence besides the encoder's: a model corrected by a person, two judges, known answers, pairs that do not hold."""

# ruff: noqa: F811
from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import hardneg as hn
from hardneg.errors import DataError, UsageError
from hardneg.false_negatives.agreement import Agreement
from hardneg.false_negatives.consistency import check_pairs
from hardneg.false_negatives.prediction_powered import (
    Halves,
    allotted,
    chance_of_so_few,
    normal_interval,
    powered_p,
    rejects,
    share_interval,
)

from .conftest import hardneg, write_jsonl
from .judge_server import JudgeServer
from .test_calibrate import data, fill, mined, topic_of  # noqa: F401


def drawn(rng: np.random.Generator, m: int, judged: int, checks: int, allot: bool) -> Halves:
    """Negatives of which 10 % are false, a judge with 20 % errors, and a person's checks."""
    truth = np.arange(m) < m // 10
    said = truth ^ (np.random.default_rng(0).random(m) < 0.2)
    order = rng.permutation(m)[:judged]
    f, y = said[order], truth[order]
    checked = np.arange(judged) < checks
    if allot:
        ones, zeros = allotted((int(f.sum()), int((~f).sum())), checks)
        checked[:] = False
        checked[np.flatnonzero(f)[:ones]] = checked[np.flatnonzero(~f)[:zeros]] = True
    return Halves.of(f, checked, y)


@pytest.mark.parametrize(("judged", "allot"), [(200, False), (200, True), (100, True)])
def test_intervals_hold_in_200_draws(judged: int, allot: bool) -> None:
    """95 % intervals hold the truth, and the judge's own share never does; tests at a true null pass rarely."""
    rng, inside, passed, near = np.random.default_rng(1), 0, 0, 0
    for _ in range(200):
        halves = drawn(rng, 200, judged, 30, allot)
        low, high = share_interval(halves, 200, 0.95)
        inside += low <= 0.1 <= high
        low, high = normal_interval(halves, 200, 0.95)
        near += low <= 0.1 <= high
        passed += rejects(halves, 200, 20, 0.05)  # that 20 or more are false, which is true
        assert halves.said[0] / judged > 0.14  # what the judge alone would say
    assert inside >= 186
    assert near >= 180
    assert passed <= 16


def test_the_chance_is_that_of_counting() -> None:
    """All draws of a small case, counted one by one, over all ways to share out the false ones."""
    from itertools import combinations

    halves = Halves((5, 6), (2, 3), (1, 0))
    observed = halves.estimate
    for false in range(12):
        best = 0.0
        for ones in range(max(0, false - 6), min(5, false) + 1):
            few = total = 0
            for a in combinations(range(5), 2):
                for b in combinations(range(6), 3):
                    found = 5 * sum(i < ones for i in a) / 2 + 6 * sum(i < false - ones for i in b) / 3
                    few, total = few + (found <= observed + 1e-9), total + 1
            best = max(best, few / total)
        assert chance_of_so_few(halves, false) == pytest.approx(best, abs=1e-12)


def test_a_perfect_judge_needs_little_checking() -> None:
    said = (20, 1980)
    halves = Halves(said, (20, 80), (20, 0))
    assert halves.estimate == 20
    low, high = share_interval(halves, 2000, 0.95)
    alone = Halves((0, 2000), (0, 100), (0, 1))
    assert low == pytest.approx(0.01)
    assert high <= share_interval(alone, 2000, 0.95)[1]
    assert powered_p(Halves(said, (0, 0), (0, 0)), 2000, 0.05) == 1.0
    # All is checked: one more than alpha is above, and just alpha is not.
    assert powered_p(Halves((1000, 1000), (1000, 1000), (51, 50)), 2000, 0.05) == 1.0
    assert powered_p(Halves((1000, 1000), (1000, 1000), (50, 50)), 2000, 0.05) < 1e-9


def test_kappa_and_rates() -> None:
    """The example of Cohen's paper on kappa, and rates with exact intervals."""
    agreement = Agreement(200, both=40, judge_only=10, person_only=20, neither=130)
    assert agreement.kappa == pytest.approx((0.85 - 0.6) / 0.4)
    low, high = agreement.kappa_interval
    assert 0.48 < low < agreement.kappa < high < 0.77
    assert agreement.missed[0] == pytest.approx(1 / 3)
    assert agreement.false_alarms[0] == pytest.approx(10 / 140)
    assert agreement.missed[1] < 1 / 3 < agreement.missed[2]
    assert Agreement(5, 0, 0, 0, 5).to_json()["kappa"] is None


@pytest.mark.slow
def test_a_model_is_refused_alone_and_corrected_by_a_person(
    mined: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through the command and a server: a judge with one error in ten, and a person who checks a part."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def grade(query: str, document: str) -> int:
        q, d = int(query.split()[1]), int(document.split()[1])
        same = q % 30 == d % 30
        return 3 * int(same ^ ((q * 3 + d * 13) % 10 == 0))

    with JudgeServer(grade) as server:
        asked = [
            "judge",
            mined,
            "--sample",
            "1500",
            "--alpha",
            "0.1",
            "--judge",
            "openai:stub",
            "--judge-url",
            server.url,
        ]
        asked += ["--judge-cache", tmp_path / "cache", "--concurrency", "16", "--out"]
        refused = hardneg(*asked, tmp_path / "m.csv")
        assert refused.returncode == 2
        assert "1,500 pairs to ask about" in refused.stderr
        assert not server.requests
        done = hardneg(*asked, tmp_path / "m.csv", "--yes", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["judges"]["openai:stub"]["requests"] == 1500
        # Two stages: a first judge, and the server for the open cases.
        done = hardneg(
            "judge", mined, "--sample", "300", "--alpha", "0.1", "--judge", "cross-encoder:module:tests.test_calibrate:make_oracle",
            "--then", "openai:stub", "--then-pairs", "40", "--judge-url", server.url, "--judge-cache", tmp_path / "cache2", "--yes",
            "--out", tmp_path / "two.csv", "--json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    with open(tmp_path / "two.csv", newline="") as f:
        assert sum(row["judge"] == "openai:stub" for row in csv.DictReader(f)) == 40
    with open(tmp_path / "m.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert sum(bool(row["prompt"]) for row in rows) == 1
    assert {row["judge"] for row in rows} == {"openai:stub"}
    alone = hardneg("calibrate", mined, tmp_path / "m.csv", "--out", tmp_path / "p.json")
    assert alone.returncode == 1
    assert "not by a person" in alone.stderr
    done = hardneg(
        "judge",
        mined,
        "--predictions",
        tmp_path / "m.csv",
        "--sample",
        "400",
        "--alpha",
        "0.1",
        "--out",
        tmp_path / "c.csv",
    )
    assert done.returncode == 0, done.stderr
    person = fill(tmp_path / "c.csv", tmp_path / "person.csv")
    done = hardneg(
        "calibrate", mined, person, "--predictions", tmp_path / "m.csv", "--out", tmp_path / "p.json", "--json"
    )
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    agreement = value["report"]["judge"]["agreement"]
    assert agreement["pairs"] == 400
    assert 0.3 < agreement["kappa"] < 0.95
    assert value["guarantee"]["low"] <= value["guarantee"]["estimate"] <= value["guarantee"]["high"]
    # Other answers than those the person's pairs were chosen by, and pairs that were chosen are no plain sample.
    (tmp_path / "other.csv").write_text((tmp_path / "m.csv").read_text() + "\n")
    with pytest.raises(DataError, match="other judgements"):
        hn.calibrate(mined, person, predictions=tmp_path / "other.csv")
    with pytest.raises(DataError, match="one known chance"):
        hn.calibrate(mined, person)
    with pytest.raises(UsageError, match="corrected by"):
        hn.calibrate(mined, predictions=tmp_path / "m.csv")


def test_known_answers(tmp_path: Path) -> None:
    rows = [
        {"query": "who built the tower", "positive": "Eiffel built the tower", "answers": ["Gustave Éiffel", "no"]},
        {"query": "what is bread", "positive": "bread is food", "answers": ["food"]},
    ]
    source = write_jsonl(tmp_path / "pairs.jsonl", rows)
    write_jsonl(tmp_path / "more.jsonl", [{"text": t} for t in (
        "the tower of GUSTAVE EIFFEL, built", "no tower is built", "who built foods and tower", "bread as food", "seafood and bread",
    )])  # fmt: skip
    run = hn.mine(
        source, tmp_path / "run", depth=7, filters=["answer:column=answers"], corpus=str(tmp_path / "more.jsonl")
    )
    by = {row["query_id"]: row["negative_ids"] for row in run.negatives().to_pylist()}
    pairs = run.pairs()
    text = dict(
        zip(pairs.document_ids.to_pylist(), pairs.documents.take(np.arange(len(pairs.document_ids))), strict=True)
    )
    asked = dict(zip(pairs.query_ids.to_pylist(), pairs.queries.take(np.arange(2)), strict=True))
    found = {asked[q]: {text[d] for d in ids} for q, ids in by.items()}
    assert "the tower of GUSTAVE EIFFEL, built" not in found["who built the tower"]
    assert "no tower is built" in found["who built the tower"]  # "no" is too short to tell
    assert "bread as food" not in found["what is bread"]
    assert {"seafood and bread", "who built foods and tower"} <= found["what is bread"]
    for spec, message in (("answer:column=reply", "no column 'reply'"), ("answer:gone.jsonl,column=a", "gone.jsonl")):
        with pytest.raises((DataError, UsageError), match=message):
            hn.mine(
                source, tmp_path / "other", depth=7, filters=[spec], corpus=str(tmp_path / "more.jsonl"), overwrite=True
            )
    with pytest.raises(UsageError, match="give the column"):
        hn.parse_filter("answer")


def test_pairs_that_do_not_hold(mined: Path, tmp_path: Path) -> None:
    run = hn.Run(mined)
    found = check_pairs(run, top=20)
    pairs = run.pairs()
    # By the candidates themselves: a positive that is nowhere among the first 20.
    expected = []
    rank = {}
    import pyarrow.parquet as pq

    for path in run.candidate_files():
        for row in pq.read_table(path).to_pylist():
            rank[row["query_id"], row["document_id"]] = row["rank"]
    for i, row in enumerate(run.negatives().to_pylist()):
        if row["positive_ids"] and not any(rank.get((row["query_id"], id), 99) <= 20 for id in row["positive_ids"]):
            expected.append(i)
    assert len(expected) > 5
    assert np.flatnonzero(found.not_found).tolist() == expected
    done = hardneg("check-pairs", mined, "--out", tmp_path / "d.txt", "--json")
    assert json.loads(done.stdout)["positive_not_found"] == len(expected)
    left = hardneg("select", mined, "--leave-out", tmp_path / "d.txt", "--out", tmp_path / "left")
    assert left.returncode == 0, left.stderr
    after = hn.Run(tmp_path / "left")
    assert (after.pairs().positives.lengths[expected] == 0).all()
    assert (
        after.pairs().positives.lengths.sum() == pairs.positives.lengths.sum() - pairs.positives.lengths[expected].sum()
    )
    removed = {(i, d) for i in expected for d in pairs.positives.take(np.array([i])).values.tolist()}
    kept = hn.Mined.of_run(after)
    assert not any((kept.kept[q] & (kept.documents[q] == d)).any() for q, d in removed)
    # A judge that finds a candidate better than the positive.
    done = hardneg("judge", mined, "--of", "positives", "--sample", "50", "--out", tmp_path / "pos.csv")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "pos.csv", newline="") as f:
        row = next(csv.DictReader(f))
    assert topic_of(row["query_id"]) == topic_of(row["document_id"])
    other = next(d for (q, d) in rank if q == row["query_id"] and d not in row["document_id"])
    with open(tmp_path / "graded.csv", "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["query_id", "document_id", "relevant", "grade", "judge"])
        writer.writerows([[row["query_id"], row["document_id"], 0, 1, "x"], [row["query_id"], other, 1, 3, "x"]])
    better = check_pairs(run, evidence=[tmp_path / "graded.csv"])
    asked = pairs.query_ids.to_pylist().index(row["query_id"])
    assert np.flatnonzero(better.better).tolist() == [asked]
    assert better.judged == 1
    with pytest.raises(UsageError, match="depth of the run"):
        check_pairs(run, top=61)


@pytest.mark.parametrize("depth", [1, 3])
def test_pairs_of_a_run_that_is_not_deep(tmp_path: Path, depth: int) -> None:
    rows = [{"query": f"question {i}", "positive": f"answer {i}"} for i in range(8)]
    hn.mine(write_jsonl(tmp_path / "pairs.jsonl", rows), tmp_path / "run", depth=depth, negatives=1)
    done = hardneg("check-pairs", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert f"note: --top is {depth}, not 20" in done.stderr
    assert f"among their {depth} nearest" in done.stdout
    assert check_pairs(tmp_path / "run").top == depth
    with pytest.raises(UsageError, match="depth of the run"):
        check_pairs(tmp_path / "run", top=20)
