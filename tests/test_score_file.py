"""Scores of a teacher that ran elsewhere: read from a file by ids, kept as those of `hardneg score --scorer` are."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hardneg
from hardneg import DataError, HardnegWarning, MineOptions, Pairs, UsageError, mine, score, select
from hardneg.mining import Run, SelectOptions
from hardneg.mining.teachers import TEACHER, Teachers
from hardneg.training.options import TrainOptions
from hardneg.training.teaching import Teaching
from tests.conftest import pairs_of_words, run_here
from tests.test_sources import Letters

Table = list[tuple[str, str, float]]


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    found: Pairs = pairs_of_words()
    return found


@pytest.fixture(scope="module")
def mined(pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> Run:
    options = MineOptions(depth=20, negatives=3, filters=("rank:min=3",))
    return mine(pairs, tmp_path_factory.mktemp("mined") / "run", options, encoder=Letters())


@pytest.fixture
def run(mined: Run, tmp_path: Path) -> Run:
    shutil.copytree(mined.folder, tmp_path / "run")
    return Run(tmp_path / "run")


@pytest.fixture(scope="module")
def table(mined: Run, pairs: Pairs) -> Table:
    """A score of each candidate and each positive, in no order; some are whole numbers."""
    rng = np.random.default_rng(1)
    documents = pairs.document_ids.to_pylist()
    found = {(r["query_id"], r["document_id"]) for r in pq.read_table(mined.candidate_files()[0]).to_pylist()}
    found |= {(q, documents[p]) for q, p in zip(pairs.query_ids.to_pylist(), pairs.positives.values, strict=True)}
    each = sorted(found)
    return [(*each[i], round(float(rng.normal(0, 3)), i % 7 and 4)) for i in rng.permutation(len(each))]


def write_lines(rows: Table, path: Path, names: tuple[str, str, str] = ("query_id", "doc_id", "score")) -> Path:
    text = "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_table(rows: Table, path: Path, header: tuple[str, ...] | None, delimiter: str) -> Path:
    with open(path, "w", newline="") as f:
        writer = csv.writer(f, delimiter=delimiter, lineterminator="\n")
        writer.writerows([*([header] if header else []), *rows])
    return path


def write_trec(rows: Table, path: Path) -> Path:
    path.write_text("".join(f"{q} Q0 {d} {i} {s} tag\n" for i, (q, d, s) in enumerate(rows, 1)))
    return path


def write_shards(rows: Table, folder: Path) -> Path:
    folder.mkdir()
    for i in range(2):
        columns = zip(*rows[i::2], strict=True)
        pq.write_table(pa.table(dict(zip(("qid", "pid", "score"), columns, strict=True))), folder / f"{i}.parquet")
    return folder


def write_rows_of_lists(rows: Table, path: Path) -> Path:
    """Rows of FlagEmbedding; every second score of a query is called that of a positive."""
    lines = []
    for query in sorted({q for q, _, _ in rows}):
        row: dict[str, Any] = {"query_id": query, "query": "text", "pos": [], "neg": []}
        own = [(d, s) for q, d, s in rows if q == query]
        for side, each in (("pos", own[::2]), ("neg", own[1::2])):
            row[f"{side}_id"], row[f"{side}_scores"] = [d for d, _ in each], [s for _, s in each]
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")
    return path


FORMS: dict[str, Callable[[Table, Path], Path]] = {
    "lines": lambda rows, at: write_lines(rows, at / "s.jsonl"),
    "packed": lambda rows, at: write_lines(rows, at / "s.jsonl.gz", ("query-id", "corpus-id", "score")),
    "list": lambda rows, at: write(
        at / "s.json", json.dumps([{"qid": q, "pid": d, "score": str(s)} for q, d, s in rows])
    ),
    "csv": lambda rows, at: write_table(rows, at / "s.csv", ("query_id", "document_id", "Score"), ","),
    "bare csv": lambda rows, at: write_table(rows, at / "s.csv", None, ","),
    "tsv": lambda rows, at: write_table(rows, at / "s.tsv", ("query-id", "corpus-id", "score"), "\t"),
    "bare tsv": lambda rows, at: write_table(rows, at / "s.tsv", None, "\t"),
    "three columns": lambda rows, at: write_table(rows, at / "scores.txt", None, " "),
    "trec": lambda rows, at: write_trec(rows, at / "reranked.run"),
    "trec as tsv": lambda rows, at: write_trec(rows, at / "reranked.tsv"),
    "shards": lambda rows, at: write_shards(rows, at / "shards"),
    "lists": lambda rows, at: write_rows_of_lists(rows, at / "scored.jsonl"),
}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def kept(run: Run, name: str = TEACHER) -> dict[tuple[str, str], float]:
    rows = pq.read_table(run.folder / "teacher" / name / "part-00000.parquet").to_pylist()
    return {(r["query_id"], r["document_id"]): r["score"] for r in rows}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_scores(form: str, run: Run, table: Table, tmp_path: Path) -> None:
    done = score(run, scores=FORMS[form](table, tmp_path))
    assert (done.pairs, done.new) == (len(table), len(table))
    assert done.file is not None
    assert (done.file.scores, done.file.notes) == (len(table), [])
    assert (done.file.candidates, done.file.positives) == (done.file.of_candidates, done.file.of_positives)
    assert done.file.of_positives == 40
    assert kept(run) == {(q, d): float(np.float32(s)) for q, d, s in table}
    # The hash is of the scores and not of the file, so the same ones in another form are those of the same teacher.
    again = score(run, scores=write_lines(table[::-1], tmp_path / "again.jsonl"))
    assert (again.fingerprint, again.new, again.pairs) == (done.fingerprint, 0, len(table))


def test_they_are_kept_as_those_of_a_model_are(run: Run, tmp_path: Path) -> None:
    """Written out and read again, the scores of an encoder are the same bytes."""
    score(run, "encoder:module:tests.test_sources:Ends", name="ends")
    rows = [(q, d, s) for (q, d), s in kept(run, "ends").items()]
    score(run, scores=write_lines(rows, tmp_path / "ends.jsonl"), name="file")
    left, right = (pq.read_table(run.folder / "teacher" / name / "part-00000.parquet") for name in ("ends", "file"))
    assert left.equals(right)
    assert left.schema.equals(right.schema)
    assert sorted(p.name for p in (run.folder / "teacher" / "file").iterdir()) == ["part-00000.parquet", "teacher.json"]


def test_only_some_first_and_the_rest_later(run: Run, table: Table, tmp_path: Path) -> None:
    path = write_lines(table, tmp_path / "s.jsonl")
    ranks = {(r["query_id"], r["document_id"]): r["rank"] for r in pq.read_table(run.candidate_files()[0]).to_pylist()}
    with pytest.warns(HardnegWarning, match=r"candidates that only='first:5' \(--only first:5\) leaves out"):
        first = score(run, scores=path, only="first:5")
    assert first.file is not None
    assert first.file.left_out > 100
    assert all(ranks.get(pair, 0) <= 5 for pair in kept(run) if pair not in positives_of(run))
    assert positives_of(run) <= set(kept(run))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        second = score(run, scores=path, only="kept")
    every = score(run, scores=path)
    assert second.new > 0
    assert first.new + second.new + every.new == every.pairs == len(table)
    fresh = run.folder.parent / "fresh"
    shutil.copytree(run.folder, fresh)
    shutil.rmtree(fresh / "teacher")
    score(fresh, scores=path)
    part = Path("teacher") / TEACHER / "part-00000.parquet"
    assert (fresh / part).read_bytes() == (run.folder / part).read_bytes()


def positives_of(run: Run) -> set[tuple[str, str]]:
    pairs = run.pairs()
    ids = pairs.document_ids.to_pylist()
    return {(q, ids[p]) for q, p in zip(pairs.query_ids.to_pylist(), pairs.positives.values.tolist(), strict=True)}


def test_what_is_not_of_the_run_is_counted(run: Run, pairs: Pairs, table: Table, tmp_path: Path) -> None:
    there = {(q, d) for q, d, _ in table}
    far = [(q, d, 1.0) for q in ("q0", "q7") for d in pairs.document_ids.to_pylist() if (q, d) not in there]
    lost = {(q, d) for q, d, _ in table[:5]} | {("q3", d) for q, d in positives_of(run) if q == "q3"}
    lacking = [row for row in table if row[:2] not in lost]
    rows = [("x9", "d1", 1.0), ("q1", "y\x1b", 2.0), *far, *lacking, ("x9", "d2", 1.0), lacking[0]]
    path = write_lines(rows, tmp_path / "s.jsonl")
    done = run_here("score", run.folder, "--scores", path, "--json")
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stderr.split())
    for words in (
        "2 scores name queries that the run does not have (the first: 'x9')",
        "1 score names a document that the run does not have (the first: 'y\\x1b')",
        f"{len(far)} scores are of pairs that are neither candidate nor positive (the first: query 'q0', document '{far[0][1]}')",
        "1 score is there twice, of one pair and equal",
        "positives ha",
        "margin-mse",
    ):
        assert words in told, (words, told)
    value = json.loads(done.stdout)
    assert value["new"] == value["pairs"] == len(lacking)
    file = value["file"]
    assert (file["unknown_queries"], file["unknown_documents"], file["no_candidates"], file["repeated"]) == (
        2,
        1,
        len(far),
        1,
    )
    assert file["positives"] < file["of_positives"] == 40
    assert f"took the scores of {file['candidates']:,} of {file['of_candidates']:,} candidates" in told
    assert file["candidates"] + file["positives"] == len(lacking)
    with pytest.raises(UsageError, match=r"not scored all positives: hardneg score .*run --scores FILE --overwrite"):
        select(run, SelectOptions(filters=("teacher:margin=0.1",)), tmp_path / "chosen")


GOOD = '{"query_id": "q0", "doc_id": "d0", "score": 1}\n'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.jsonl", GOOD + '{"query_id": "q0", "doc_id": "d1", "score": NaN}\n', r"s.jsonl, line 2: .*finite"),
        ("s.jsonl", GOOD + '{"query_id": "q0", "doc_id": "d1", "score": 1e39}\n', r"s.jsonl, line 2: .*32 bits"),
        ("s.jsonl", GOOD + '{"query_id": "q0", "doc_id": "d1", "score": null}\n', r"s.jsonl, line 2: .*a number"),
        ("s.jsonl", GOOD + '{"query_id": "q0", "score": 1}\n', r"s.jsonl, line 2: there is no 'doc_id'"),
        ("s.jsonl", GOOD + '{"query_id": "", "doc_id": "d1", "score": 1}\n', r"s.jsonl, line 2: the id is"),
        ("s.jsonl", GOOD * 2 + GOOD.replace("1}", "2}"), r"s.jsonl, line 3: .*'q0' and document 'd0' is 2, but 1 in .*line 2"),
        ("s.jsonl", '{"query": "x", "doc_id": "d1", "score": 1}\n', r"line 1: no column looks like a query id"),
        ("s.jsonl", '{"query_id": "x", "positive_id": "d1", "score": 1}\n', r"no column looks like a document id"),
        ("s.jsonl", '{"query_id": "x", "doc_id": "d1", "logit": 1}\n', r"no column looks like a score"),
        ("s.jsonl", '{"query": "x", "pos": ["t"], "pos_scores": [1.0]}\n', r"no 'query_id'.*--format flagembedding --ids"),
        ("s.jsonl", '{"id": "q0", "pos_id": ["d0"], "pos_scores": [1.0, 2.0]}\n', r"2 pos_scores, but 1 ids"),
        ("s.jsonl", "", r"holds no score.*query_id, document_id and score"),
        ("s.csv", "query_id,doc_id,score\n", r"holds no score"),
        ("s.csv", "query_id,doc_id,score\nq0,d1,inf\n", r"s.csv, line 2: .*finite"),
        ("s.csv", "q0,d1,1,2\n", r"no header, and 4 columns"),
        ("s.tsv", "q0\td1\tnan\nq0\td2\t1\n", r"s.tsv, line 1: .*finite"),
        ("s.run", "q0 Q0 d1 1 inf x\n", r"s.run, line 1: .*finite"),
        ("s.run", "q0 Q0 d1 1 2.5 x\nq0 Q0 d1 2 2.25 x\n", r"line 2: .* is 2.25, but 2.5 in .*line 1"),
        ("s.txt", "q0 d1 1\nq0 d2 2\n", r"counts 1, 2, 3, .*these are ranks"),
        ("s.jsonl", GOOD.replace("q0", "Q-0"), r"none of its 1 scores .*names a query .*'Q-0'.*other ids"),
        ("s.jsonl", None, "does not exist"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(run: Run, tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        score(run, scores=tmp_path / name)
    assert not (run.folder / "teacher").exists()


def test_places_are_found_in_blocks_and_in_several_files(
    run: Run, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole blocks are read as columns, where no line is known; the line is found all the same."""
    monkeypatch.setattr("hardneg.data.readers.json_blocks._BLOCK", 200)
    query, document, value = table[600]
    write_lines([*table, (query, document, value + 1)], tmp_path / "s.jsonl")
    with pytest.raises(DataError, match=rf"s.jsonl, line {len(table) + 1}: .* in .*s.jsonl, line 601\."):
        score(run, scores=tmp_path / "s.jsonl")
    folder = write_shards([*table, (query, document, value + 1)], tmp_path / "shards")
    place = len(table) // 2 + 1
    with pytest.raises(DataError, match=rf"(?s){len(table) % 2}\.parquet, row {place}: .* in .*0\.parquet, row 301\."):
        score(run, scores=folder)


def test_other_scores_of_a_name_are_not_replaced_by_mistake(run: Run, table: Table, tmp_path: Path) -> None:
    score(run, scores=write_lines(table, tmp_path / "a.jsonl"))
    before = kept(run)
    other = write_lines([(q, d, s + 1) for q, d, s in table], tmp_path / "b.jsonl")
    with pytest.raises(
        UsageError, match=r"holds scores of scores:.*a.jsonl, which are not those of scores:.*b.jsonl.*--overwrite"
    ):
        score(run, scores=other)
    with pytest.raises(DataError, match="holds no score"):  # nothing is removed for a file that cannot be read
        score(run, scores=write(tmp_path / "c.jsonl", ""), overwrite=True)
    assert kept(run) == before
    assert score(run, scores=other, overwrite=True).new == len(table)
    assert kept(run) != before
    for wrong in ({}, {"scorer": "encoder:hashed", "scores": other}):
        with pytest.raises(UsageError, match="either a model that scores"):
            score(run, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="first:K"):
        score(run, scores=other, only="best")
    done = run_here("score", run.folder)
    assert (done.returncode, "--scores FILE" in done.stderr) == (2, True)


def test_filters_exports_and_trainings_read_them(run: Run, table: Table, tmp_path: Path) -> None:
    of = {(q, d): float(np.float32(s)) for q, d, s in table}
    done = run_here("score", run.folder, "--scores", write_trec(table, tmp_path / "r.run"), "--name", "api")
    assert done.returncode == 0, done.stderr
    chosen = select(run, SelectOptions(filters=("teacher:api,max=0.5",)), tmp_path / "chosen")
    rows = pq.read_table(chosen.candidate_files()[0]).to_pylist()
    left = [of[r["query_id"], r["document_id"]] for r in rows if r["verdict"] == "kept"]
    assert left
    assert max(left) <= 0.5
    out = tmp_path / "m.jsonl"
    done = run_here("export", run.folder, "--format", "margin-mse", "--scores", "teacher:api", "--ids", "--out", out)
    assert done.returncode == 0, done.stderr
    for row in map(json.loads, out.read_text().splitlines()):
        margin = of[row["query_id"], row["positive_id"]] - of[row["query_id"], row["negative_id"]]
        assert row["label"] == pytest.approx(margin, abs=1e-5)
    for spec in ("kl:alone,teacher=api", "margin-mse:alone,teacher=api"):
        options = TrainOptions(steps=2, batch_size=20, negatives=3, distill=spec)
        folder = tmp_path / spec.partition(":")[0]
        hardneg.train(
            run.pairs(), hardneg.HashedEncoder(8), folder, options, run=run, device="cpu", warn=lambda message: None
        )
        logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert any(row.get("distillation", 0) > 0 for row in logged)


def test_our_own_export_comes_back_scored(run: Run, tmp_path: Path) -> None:
    """The way through other tools: export with ids, let them add `pos_scores` and `neg_scores`, and read the file."""
    run.export("flagembedding", tmp_path / "f.jsonl", ids=True)
    rows = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines()]
    for row in rows:
        row["pos_scores"], row["neg_scores"] = [9.0] * len(row["pos"]), [float(i) for i in range(len(row["neg"]))]
    path = write(tmp_path / "scored.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    done = score(run, scores=path)
    assert done.file is not None
    assert done.file.positives == 40
    run.export("flagembedding", tmp_path / "g.jsonl", ids=True, scores="teacher")
    assert [json.loads(line) for line in (tmp_path / "g.jsonl").read_text().splitlines()] == rows


@pytest.mark.slow
def test_a_warning_names_what_would_score_the_rest(run: Run, table: Table, tmp_path: Path) -> None:
    score(run, "encoder:module:tests.test_sources:Ends", only="first:9", name="ends")
    some = Teaching("kl:teacher=ends", run, run.pairs())
    command = f"hardneg score {run.folder} --scorer encoder:module:tests.test_sources:Ends --only kept --name ends"
    assert command in str(some.warning())
    assert run_here(*command.split()[1:]).returncode == 0
    assert Teaching("kl:teacher=ends", run, run.pairs()).warning() is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        score(run, scores=write_lines(table[::2], tmp_path / "half.jsonl"))
    told = str(Teaching("kl", run, run.pairs()).warning())
    assert f"hardneg score {run.folder} --scores FILE --overwrite, where FILE has their scores too" in told
    bare = [row for row in table if row[:2] not in positives_of(run)]
    with pytest.warns(HardnegWarning, match="40 of 40 positives have no score"):
        score(run, scores=write_lines(bare, tmp_path / "bare.jsonl"), name="bare")
    told = str(Teaching("kl:teacher=bare", run, run.pairs()).warning())
    assert told.startswith(
        "the teacher has scored 0% of the positives; the queries of the others compare their negatives alone"
    )
    with pytest.raises(
        UsageError, match=r"none of the positives, which margin-mse compares with: hardneg score .* --name bare"
    ):
        Teaching("margin-mse:teacher=bare", run, run.pairs())
    assert Teachers(run.folder / "teacher", run.pairs()).names == ["bare", "ends", "teacher"]
