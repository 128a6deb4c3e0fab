"""Relabelled pairs: what judgements found false is dropped, ignored or promoted, in runs, exports and trainings, and undone."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import hardneg as hn
from hardneg.errors import DataError, RunError, UsageError
from hardneg.mining.mined import Mined
from hardneg.storage.arrays import members

from .conftest import hardneg

THINGS = ["bread", "rivers", "trains", "clouds", "chess"]


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> hn.Run:
    """Each query has one known positive; the seven other answers about its thing are relevant as well."""
    pairs = hn.Pairs.from_columns(
        [f"question {i} about {THINGS[i % 5]}" for i in range(40)],
        [f"answer {i} about {THINGS[i % 5]}" for i in range(40)],
    )
    return hn.mine(pairs, tmp_path_factory.mktemp("relabel") / "run", hn.MineOptions(depth=30, negatives=10))


def same(query: str, document: str) -> bool:
    return query.split()[-1] == document.split()[-1]


@pytest.fixture(scope="module")
def evidence(mined: hn.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All negatives of the run, judged by somebody who knows; grade 3 for even documents, 2 for odd ones."""
    folder = tmp_path_factory.mktemp("evidence")
    done = hardneg("judge", mined.folder, "--of", "negatives", "--sample", "1000", "--out", folder / "e.csv")
    assert done.returncode == 0, done.stderr
    assert "--relabel drop --evidence" in done.stdout
    with open(folder / "e.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert {(row["query_id"], row["document_id"]) for row in rows} == set(negatives(mined))
    for row in rows:
        row["relevant"] = str(int(same(row["query"], row["document"])))
        if row["relevant"] == "1":
            row["grade"], row["judge"] = str(3 - int(row["document"].split()[1]) % 2), "openai:stub"
    with open(folder / "e.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "e.csv"


def negatives(run: hn.Run) -> list[tuple[str, str]]:
    return [(row["query_id"], id) for row in run.negatives().to_pylist() for id in row["negative_ids"]]


def found(evidence: Path) -> dict[tuple[str, str], int]:
    with open(evidence, newline="") as f:
        rows = list(csv.DictReader(f))
    return {(r["query_id"], r["document_id"]): int(r["grade"]) for r in rows if r["relevant"] == "1"}


@pytest.mark.parametrize("how", ["drop", "ignore", "promote"])
def test_what_is_found_false_is_no_negative_any_more(mined: hn.Run, evidence: Path, tmp_path: Path, how: str) -> None:
    false = found(evidence)
    assert 20 < len(false) < len(negatives(mined))
    done = hardneg("select", mined.folder, "--relabel", how, "--evidence", evidence, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert f"relabelled: {how} {len(false)}" in done.stderr
    run = hn.Run(tmp_path / "run")
    assert not set(negatives(run)) & set(false)
    pairs, source = run.pairs(), run.pairs(relabelled=False)
    new = len(false) if how == "promote" else 0
    assert len(pairs.positives.values) == len(source.positives.values) + new
    rows = run.negatives().to_pylist()
    assert sum(len(row["positive_ids"]) for row in rows) == 40 + new
    assert all(len(row["positive_ids"]) == len(row["positive_scores"]) for row in rows)
    # Its own score is the one that the candidate had.
    scores = {
        (row["query_id"], id): score
        for path in mined.candidate_files()
        for row in pq.read_table(path).to_pylist()
        for id, score in [(row["document_id"], row["score"])]
    }
    for row in rows:
        for id, score in zip(row["positive_ids"], row["positive_scores"], strict=True):
            if (row["query_id"], id) in false:
                assert score == scores[row["query_id"], id]
    # A batch by chance: masked if ignored or promoted, not if only dropped.
    where = {id: i for i, id in enumerate(pairs.document_ids.to_pylist())}
    asked = {id: i for i, id in enumerate(pairs.query_ids.to_pylist())}
    known = pairs.known_positives()
    masked = [members(np.array([[where[d]]]), known.take(np.array([asked[q]])))[0, 0] for q, d in false]
    assert all(masked) == (how != "drop")
    assert any(masked) == (how != "drop")
    kept = Mined.of_run(run)
    assert not any(kept.kept[asked[q]][kept.documents[asked[q]] == where[d]].any() for q, d in false)
    # Undone, by a later selection: the bytes of the run before.
    plain = run.select(tmp_path / "plain", relabel="none")
    again = mined.select(tmp_path / "again")
    for name in ("negatives.parquet", "candidates/part-00000.parquet"):
        assert (plain.folder / name).read_bytes() == (again.folder / name).read_bytes()
    assert "relabels.parquet" not in plain.info["files"]
    assert "relabels" not in plain.info["fingerprints"]
    # Kept by a selection that says nothing about it.
    assert negatives(run.select(tmp_path / "kept", seed=3)) == negatives(run)


def test_only_what_is_good_enough_is_promoted(mined: hn.Run, evidence: Path, tmp_path: Path) -> None:
    false = found(evidence)
    run = mined.select(tmp_path / "run", relabel="promote", evidence=str(evidence), promote_from=3.0)
    best = {pair for pair, grade in false.items() if grade == 3}
    table = pq.read_table(tmp_path / "run" / "relabels.parquet").to_pylist()
    assert {(row["query_id"], row["document_id"]) for row in table if row["action"] == "promote"} == best
    assert {(row["query_id"], row["document_id"]) for row in table if row["action"] == "ignore"} == set(false) - best
    assert {row["judged_by"] for row in table} == {"openai:stub"}
    assert run.info["relabelled"] == {"ignore": len(false) - len(best), "promote": len(best)}


def test_exports_and_training_honour_it(mined: hn.Run, evidence: Path, tmp_path: Path) -> None:
    false = found(evidence)
    run = mined.select(tmp_path / "run", relabel="promote", evidence=str(evidence))
    run.export("qrels", tmp_path / "qrels")
    lines = [line.split() for line in (tmp_path / "qrels").read_text().splitlines()]
    assert set(false) <= {(query, document) for query, _, document, _ in lines}
    triplets = run.to_dataset("triplet")
    assert all(same(row["query"], row["positive"]) for row in triplets)
    assert len({(row["query"], row["positive"]) for row in triplets}) > 40
    source = mined.pairs()
    query, document = next(iter(false))
    seen: set[tuple[int, int]] = set()

    trained = run.relabelled(source)
    row = source.query_ids.to_pylist().index(query), source.document_ids.to_pylist().index(document)
    sampler = hn.MemoryBankSampler(trained, Mined.of_run(run), batch_size=8, negatives=2)
    for _ in range(12):
        for batch in sampler:
            seen |= {(each.query, each.positive) for each in batch}
            assert not any(
                d in trained.known_positives().take(np.array([e.query])).values for e in batch for d in e.negatives
            )
        sampler.end_epoch()
    assert row in seen  # the new positive is trained on
    options = hn.TrainOptions(steps=3, batch_size=8, negatives=2, refresh="never", learning_rate=0.01)
    result = hn.train(source, hn.HashedEncoder(16), tmp_path / "trained", options, run=run, device="cpu")
    assert result["steps"] == 3


def test_a_query_that_is_held_out_gets_no_positive(mined: hn.Run, evidence: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from hardneg.storage.arrays import Ragged

    run = mined.select(tmp_path / "run", relabel="promote", evidence=str(evidence))
    source = mined.pairs()
    kept = source.positives.row_numbers() >= 20
    rest = Ragged.from_pairs(source.positives.row_numbers()[kept], source.positives.values[kept], len(source))
    training = run.relabelled(replace(source, positives=rest))
    assert (training.positives.lengths[:20] == 0).all()
    assert training.positives.lengths[20:].sum() > 20


def test_what_cannot_be_relabelled(mined: hn.Run, evidence: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"relabel": "drop"}, "give both"), ({"evidence": str(evidence)}, "give both"), ({"relabel": "burn"}, "one of"),
        ({"relabel": "drop", "evidence": str(evidence), "promote_from": 2.0}, "promote"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            mined.select(tmp_path / "x", **options)
    for least in (float("nan"), float("inf"), -float("inf"), True, "3", 3.5, -1):
        with pytest.raises(UsageError, match="promote_from"):
            mined.select(tmp_path / f"x{least}", relabel="promote", evidence=str(evidence), promote_from=least)
    text = evidence.read_text().splitlines()
    (tmp_path / "none.csv").write_text("\n".join([text[0], *(line for line in text if ",0,question" in line)]))
    with pytest.raises(DataError, match="nothing to relabel"):
        mined.select(tmp_path / "x", relabel="drop", evidence=str(tmp_path / "none.csv"))
    run = mined.select(tmp_path / "run", relabel="drop", evidence=str(evidence))
    shutil.copytree(run.folder, tmp_path / "broken")
    (tmp_path / "broken" / "relabels.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match="checksum"):
        hn.Run(tmp_path / "broken")


def rewritten(evidence: Path, to: Path, change: Callable[[list[dict[str, str]]], None]) -> Path:
    with open(evidence, newline="") as f:
        rows = list(csv.DictReader(f))
    change(rows)
    with open(to, "w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return to


@pytest.mark.parametrize("column", ["query_id", "document_id"])
def test_ids_that_name_other_texts_are_refused(mined: hn.Run, evidence: Path, tmp_path: Path, column: str) -> None:
    """As where a column was sorted or shifted by itself."""

    def shifted(rows: list[dict[str, str]]) -> None:
        ids = [row[column] for row in rows]
        for row, id in zip(rows, [*ids[1:], ids[0]], strict=True):
            row[column] = id

    wrong = rewritten(evidence, tmp_path / "e.csv", shifted)
    what = column.removesuffix("_id")
    with pytest.raises(
        DataError, match=rf"the ids of the column '{column}' name other texts than those of the column '{what}'"
    ):
        hn.select(mined, hn.SelectOptions(relabel="promote", evidence=str(wrong)), tmp_path / "run")
    bare = rewritten(
        evidence, tmp_path / "b.csv", lambda rows: [row.pop(name) for row in rows for name in ("query", "document")]
    )
    hn.select(mined, hn.SelectOptions(relabel="drop", evidence=str(bare)), tmp_path / "run")


def test_a_person_counts_before_a_model(mined: hn.Run, evidence: Path, tmp_path: Path) -> None:
    pair = next(iter(found(evidence)))

    def denied(rows: list[dict[str, str]]) -> None:
        rows[:] = [row for row in rows if (row["query_id"], row["document_id"]) == pair]
        rows[0] |= {"relevant": "0", "judge": "", "grade": ""}

    person = rewritten(evidence, tmp_path / "p.csv", denied)
    for i, files in enumerate([(str(evidence), str(person)), (str(person), str(evidence))]):
        done = hardneg(
            "select",
            mined.folder,
            "--relabel",
            "promote",
            *(x for file in files for x in ("--evidence", file)),
            "--out",
            tmp_path / f"r{i}",
        )
        assert done.returncode == 0, done.stderr
        assert "on which files disagree: a person counts before a model, then the later file 1" in done.stderr
        assert f"promote {len(found(evidence)) - 1}" in done.stderr


def test_a_relabelled_run_over_other_data_is_called_that(mined: hn.Run, evidence: Path, tmp_path: Path) -> None:
    run = hn.select(mined, hn.SelectOptions(relabel="promote", evidence=str(evidence)), tmp_path / "run")
    other = hn.Pairs.from_columns([f"another {i}" for i in range(40)], [f"text {i}" for i in range(40)])
    with pytest.raises(UsageError, match="was mined from another dataset"):
        hn.train(
            other,
            hn.HashedEncoder(dimension=8),
            tmp_path / "out",
            hn.TrainOptions(steps=1, batch_size=8),
            run=run,
            device="cpu",
        )
