"""Every export format, in every file type, and back again through our own readers."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from hardneg import DataError, MineOptions, Pairs, Run, UsageError, export, mine, read_pairs
from hardneg.data.builder import Builder
from hardneg.false_negatives.filters import PosteriorFilter
from hardneg.false_negatives.model import Posterior

from .conftest import write_jsonl

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three queries: two positives and 3 negatives; one positive and 2 of 3 negatives; no positive."""
    builder = Builder(None)
    for i, text in enumerate(["alpha, beta", 'say "gamma"\tnow', "new\nline"]):
        builder.add_query(f"q{i}", text, where="")
    for i in range(8):
        builder.add_document(f"d{i}", f"text {i} ü", title=f"title {i}" if i % 2 else "", where="")
    for query, document in ((0, 0), (0, 1), (1, 2)):
        builder.relate(query, document, 1)
    for i in (3, 4, 5, 6, 7):
        builder.set_group("document", i, "g")
    builder.set_group("query", 1, "g")
    pairs = Pairs.from_contents(builder.finish("test"))
    options = MineOptions(negatives=3, filters=("group",), default_filters=False)
    return mine(pairs, tmp_path_factory.mktemp("exports") / "run", options).folder


@pytest.fixture
def run(mined: Path, tmp_path: Path) -> Run:
    """A copy of that run."""
    return Run(shutil.copytree(mined, tmp_path / "run"))


def truth(run: Run) -> Rows:
    pairs = run.pairs()
    texts = dict(zip(pairs.document_ids.to_pylist(), pairs.documents.slice(0, 8), strict=True))
    queries = dict(zip(pairs.query_ids.to_pylist(), pairs.queries.slice(0, 3), strict=True))
    return [
        {
            "id": row["query_id"],
            "query": queries[row["query_id"]],
            "pos": list(zip(row["positive_ids"], row["positive_scores"], strict=True)),
            "neg": list(zip(row["negative_ids"], row["negative_scores"], strict=True)),
            "texts": texts,
        }
        for row in run.negatives().to_pylist()
    ]


def expected(run: Run, format: str, scores: bool) -> Rows:
    rows: Rows = []
    for r in truth(run):
        text, query, pos, neg = r["texts"], r["query"], r["pos"], r["neg"]
        if format == "triplet":
            rows += [
                {"query": query, "positive": text[p], "negative": text[n]} | ({"scores": [ps, ns]} if scores else {})
                for p, ps in pos
                for n, ns in neg
            ]
        elif format == "n-tuple":
            filled = [*neg, *[(None, None)] * (3 - len(neg))]
            rows += [
                {"query": query, "positive": text[p]}
                | {f"negative_{i}": text.get(n) for i, (n, _) in enumerate(filled, 1)}
                | ({"scores": [ps, *(s for _, s in filled)]} if scores else {})
                for p, ps in pos
            ]
        elif format == "labeled-pair":
            rows += [
                {"query": query, "document": text[d]} | ({"score": s} if scores else {"label": label})
                for label, side in ((1, pos), (0, neg))
                for d, s in side
            ]
        elif format == "labeled-list":
            both = [*pos, *neg]
            values = {"scores": [s for _, s in both]} if scores else {"labels": [1] * len(pos) + [0] * len(neg)}
            rows.append({"query": query, "documents": [text[d] for d, _ in both]} | values)
        elif format == "flagembedding" and pos:
            row = {"query": query, "pos": [text[d] for d, _ in pos], "neg": [text[d] for d, _ in neg]}
            extra = {"pos_scores": [s for _, s in pos], "neg_scores": [s for _, s in neg]} if scores else {}
            rows.append(row | extra)
        elif format == "tevatron" and pos:
            sides = {"positive_passages": pos, "negative_passages": neg}
            rows.append(
                {"query_id": r["id"], "query": query}
                | {
                    name: [
                        {
                            "docid": d,
                            "title": f"title {d[1:]}" if int(d[1:]) % 2 else "",
                            "text": f"text {d[1:]} ü",
                        }
                        | ({"score": s} if scores else {})
                        for d, s in side
                    ]
                    for name, side in sides.items()
                }
            )
        elif format == "tevatron-corpus" and pos:
            sides = {"positive": pos, "negative": neg}
            row = {"query_id": r["id"], "query_text": query}
            row |= {f"{name}_document_ids": [d for d, _ in side] for name, side in sides.items()}
            rows.append(
                row | ({f"{name}_scores": [s for _, s in side] for name, side in sides.items()} if scores else {})
            )
        elif format == "ms-swift" and pos:
            # A row for each positive: of several in a row, the embedding task of ms-swift reads the first alone.
            asked, negatives = talk(query), [talk(text[d]) for d, _ in neg]
            rows += [
                {"messages": asked, "positive_messages": [talk(text[d])], "negative_messages": negatives}
                for d, _ in pos
            ]
        elif format == "margin-mse":
            rows += [
                {
                    "query": query,
                    "positive": text[p],
                    "negative": text[n],
                    "label": float(np.float32(ps) - np.float32(ns)),
                }
                for p, ps in pos
                for n, ns in neg
            ]
    return rows


def talk(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def load(path: Path) -> Rows:
    if path.suffix == ".parquet":
        rows: Rows = pq.read_table(path).to_pylist()
        return rows
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f, delimiter="," if path.suffix == ".csv" else "\t"))


TABLES = (
    "triplet", "n-tuple", "labeled-pair", "labeled-list", "flagembedding", "tevatron", "ms-swift", "margin-mse"
)  # fmt: skip


@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize(
    ("format", "suffix"),
    [
        *((format, suffix) for format in TABLES for suffix in (".jsonl", ".parquet", ".csv", ".tsv")),
        ("tevatron-corpus", ".jsonl"),
    ],
)
def test_tables(run: Run, tmp_path: Path, format: str, suffix: str, scores: bool) -> None:
    if format == "tevatron-corpus":
        report = export(run, format, tmp_path / "out", scores=scores, short="null")
        rows = load(tmp_path / "out" / "train.jsonl")
    else:
        scores = scores and format != "ms-swift"
        report = export(run, format, tmp_path / f"out{suffix}", scores=scores, short="null")
        rows = load(tmp_path / f"out{suffix}")
    wanted = expected(run, format, scores)
    assert len(rows) == len(wanted) == report.rows > 0
    for row, want in zip(rows, wanted, strict=True):
        if suffix in (".csv", ".tsv"):
            cells = {}
            for name, cell in want.items():
                is_list = isinstance(cell, list)
                cells[name] = json.loads(row[name]) if is_list else row[name]
                want[name] = cell if is_list else "" if cell is None else str(cell)
            row = cells
        assert list(row) == list(want)
        if "label" in want and format == "margin-mse":
            assert float(row.pop("label")) == pytest.approx(float(want.pop("label")))
        assert row == (pytest.approx(want) if "score" in want and suffix != ".csv" else want)


def test_what_is_left_out_is_counted(run: Run, tmp_path: Path) -> None:
    assert [len(r["neg"]) for r in truth(run)] == [3, 2, 3]
    assert export(run, "triplet", tmp_path / "a.jsonl").left_out == Counter({"without a positive": 1})
    report = export(run, "n-tuple", tmp_path / "b.jsonl")
    assert report.left_out == Counter({"without a positive": 1, "with fewer negatives than asked": 1})
    assert (report.rows, report.queries) == (2, 1)
    assert export(run, "labeled-list", tmp_path / "c.jsonl").left_out == Counter()


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three queries with 2, 1 and no negatives of 2, and a posterior that said how likely each is relevant."""
    pairs = Pairs.from_columns(
        ["a", "b", "c"], ["pa", "pb", "pc"], corpus=["n1", "n2"], groups=["x", "y", "z"], corpus_groups=["z", "w"]
    )
    queries, documents = np.eye(3, 4, dtype=np.float32), np.eye(5, 4, dtype=np.float32) + 0.1
    posterior = Posterior(("score",), (1.0,), -3.0, 1.0, "groups")
    options = MineOptions(negatives=2, filters=("group", PosteriorFilter(posterior=posterior), "rank:max=4"))
    return mine(pairs, tmp_path_factory.mktemp("exports") / "short", options, vectors=(queries, documents), force=True)


def test_what_training_libraries_cannot_hold_is_left_out_by_default(short: Run, tmp_path: Path) -> None:
    """Nulls, and empty lists of negatives, end in errors in the libraries that the formats are named after."""
    negatives = {row["query_id"]: len(row["negative_ids"]) for row in short.negatives().to_pylist()}
    with_any = sum(count > 0 for count in negatives.values())
    for format in ("flagembedding", "tevatron", "ms-swift"):
        report = export(short, format, tmp_path / f"{format}.jsonl")
        assert report.queries == with_any == 3 - report.left_out["without a negative"]
        kept = load(tmp_path / f"{format}.jsonl")
        assert all(row.get("neg") or row.get("negative_passages") or row.get("negative_messages") for row in kept)
        export(short, format, tmp_path / f"{format}-all.jsonl", short="null")
        assert len(load(tmp_path / f"{format}-all.jsonl")) == 3
    export(short, "n-tuple", tmp_path / "n.jsonl")
    assert all(None not in row.values() for row in load(tmp_path / "n.jsonl"))


@pytest.mark.parametrize(
    "format", ["triplet", "n-tuple", "labeled-pair", "labeled-list", "flagembedding", "tevatron", "margin-mse"]
)
def test_false_probabilities(short: Run, tmp_path: Path, format: str) -> None:
    wanted = {
        (row["query_id"], chance)
        for row in short.negatives().to_pylist()
        for chance in row["negative_false_probability"]
    }
    assert wanted
    export(short, format, tmp_path / "out.jsonl", false_probability=True, short="null")
    text = (tmp_path / "out.jsonl").read_text()
    for _, chance in wanted:
        assert str(float(np.float32(chance))) in text or str(chance) in text


def test_false_probabilities_that_nobody_knows(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not say how likely its negatives are relevant"):
        export(run, "triplet", tmp_path / "out.jsonl", false_probability=True)


def test_pylate(run: Run, tmp_path: Path) -> None:
    """Tables of ids, all rows with the same number of scores, and texts beside them."""
    report = export(run, "pylate", tmp_path / "out")
    rows = load(tmp_path / "out" / "train.jsonl")
    first = truth(run)[0]
    assert [row["document_ids"] for row in rows] == [[p, *(n for n, _ in first["neg"])] for p, _ in first["pos"]]
    assert rows[0]["scores"] == pytest.approx([first["pos"][0][1], *(s for _, s in first["neg"])])
    assert report.left_out == Counter({"without a positive": 1, "with fewer negatives than asked": 1})
    texts = {row["document_id"]: row["text"] for row in load(tmp_path / "out" / "documents.jsonl")}
    assert texts == first["texts"]
    assert [row["query_id"] for row in load(tmp_path / "out" / "queries.jsonl")] == ["q0", "q1", "q2"]
    with pytest.raises(DataError, match="holds files, but no tevatron-corpus export"):
        export(run, "tevatron-corpus", tmp_path / "out", overwrite=True)


def test_msmarco_triples(run: Run, tmp_path: Path) -> None:
    export(run, "msmarco", tmp_path / "triples.tsv")
    lines = [line.split("\t") for line in (tmp_path / "triples.tsv").read_text("utf-8").splitlines()]
    wanted = [
        [" ".join(row[name].split()) for name in ("query", "positive", "negative")]
        for row in expected(run, "triplet", False)
    ]
    assert lines == wanted


def test_qrels_have_grades(tmp_path: Path) -> None:
    rows = [("q1", "d1", 2), ("q1", "d2", 1), ("q1", "d3", 0), ("q2", "d4", 1)]
    folder = tmp_path / "beir"
    write_jsonl(folder / "corpus.jsonl", [{"_id": f"d{i}", "text": f"text {i}"} for i in range(6)])
    write_jsonl(folder / "queries.jsonl", [{"_id": q, "text": q} for q in ("q1", "q2")])
    (folder / "qrels").mkdir()
    (folder / "qrels" / "train.tsv").write_text(
        "".join(f"{q}\t{d}\t{g}\n" for q, d, g in [("query-id", "corpus-id", "score"), *rows])
    )
    run = mine(str(folder), tmp_path / "run", MineOptions(negatives=1))
    assert export(run, "qrels", tmp_path / "qrels.txt").rows == 4
    assert (tmp_path / "qrels.txt").read_text() == "".join(f"{q} 0 {d} {g}\n" for q, d, g in rows)


def test_most_positives(run: Run, tmp_path: Path) -> None:
    export(run, "triplet", tmp_path / "a.jsonl", max_positives=1)
    first = truth(run)[0]
    best = max(first["pos"], key=lambda pair: pair[1])[0]
    rows = [row for row in load(tmp_path / "a.jsonl") if row["query"] == first["query"]]
    assert {row["positive"] for row in rows} == {first["texts"][best]}
    assert len(rows) == 3


def test_trec(run: Run, tmp_path: Path) -> None:
    export(run, "trec", tmp_path / "run.trec")
    lines = [line.split() for line in (tmp_path / "run.trec").read_text().splitlines()]
    flat = [(r["id"], d, i, s) for r in truth(run) for i, (d, s) in enumerate(r["neg"], 1)]
    assert [(a, d, int(i), tag) for a, _, d, i, _, tag in lines] == [(a, d, i, "hardneg") for a, d, i, _ in flat]
    assert [float(line[4]) for line in lines] == pytest.approx([s for *_, s in flat], abs=1e-6)


def test_beir_and_back(run: Run, tmp_path: Path) -> None:
    export(run, "beir", tmp_path / "beir")
    again = read_pairs(str(tmp_path / "beir"))
    pairs = run.pairs()
    assert again.query_ids.equals(pairs.query_ids)
    assert again.document_ids.equals(pairs.document_ids)
    assert again.documents.slice(0, 8) == pairs.documents.slice(0, 8)
    assert again.positives.padded().tolist() == pairs.positives.padded().tolist()
    negatives = [sorted(d for d, _ in r["neg"]) for r in truth(run)]
    ids = again.document_ids.to_pylist()
    assert [[ids[d] for d in row if d >= 0] for row in again.judged_negatives.padded()] == negatives


@pytest.mark.parametrize("format", ["flagembedding", "tevatron", "labeled-pair", "triplet"])
def test_read_back(run: Run, tmp_path: Path, format: str) -> None:
    export(run, format, tmp_path / "out.jsonl")
    again = read_pairs(str(tmp_path / "out.jsonl"))
    texts = again.documents.slice(0, len(again.document_ids))
    found = {
        query: {texts[d] for d in row if d >= 0}
        for query, row in zip(again.queries.slice(0, len(again)), again.positives.padded(), strict=True)
    }
    wanted = {r["query"]: {r["texts"][p] for p, _ in r["pos"]} for r in truth(run)}
    assert {q: p for q, p in found.items() if p} == {q: p for q, p in wanted.items() if p}


def test_sentence_transformers_can_train_on_it(run: Run, tmp_path: Path) -> None:
    from datasets import load_dataset

    export(run, "triplet", tmp_path / "out.parquet")
    dataset = load_dataset("parquet", data_files=str(tmp_path / "out.parquet"), split="train", cache_dir=str(tmp_path))
    assert dataset.column_names == ["query", "positive", "negative"]
    assert len(dataset) == 8


def test_errors(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'triplet'"):
        export(run, "triplets", tmp_path / "a.jsonl")
    with pytest.raises(UsageError, match="must end in one of"):
        export(run, "triplet", tmp_path / "a.txt")
    with pytest.raises(UsageError, match="unknown value 'nul'"):
        export(run, "n-tuple", tmp_path / "a.jsonl", short="nul")
    export(run, "triplet", tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="a.jsonl exists"):
        export(run, "triplet", tmp_path / "a.jsonl")
    export(run, "triplet", tmp_path / "a.jsonl", overwrite=True)


def test_ids_with_spaces_cannot_be_trec(tmp_path: Path) -> None:
    pairs = Pairs.from_columns(["q"], ["a"], corpus=["b"], query_ids=["my query"])
    run = mine(pairs, tmp_path / "run", MineOptions(negatives=1))
    with pytest.raises(DataError, match="'my query' holds white space"):
        export(run, "trec", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_beir_export_that_is_refused_for_an_id_leaves_nothing_and_keeps_what_was_there(
    run: Run, tmp_path: Path
) -> None:
    pairs = Pairs.from_columns(["q"], ["a"], corpus=["b"], corpus_ids=["my document"])
    bad = mine(pairs, tmp_path / "bad", MineOptions(negatives=1))
    with pytest.raises(DataError, match="'my document' holds white space"):
        export(bad, "beir", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    export(run, "beir", tmp_path / "old")
    before = {path: path.read_bytes() for path in (tmp_path / "old").rglob("*") if path.is_file()}
    with pytest.raises(DataError, match="'my document' holds white space"):
        export(bad, "beir", tmp_path / "old", overwrite=True)
    assert {path: path.read_bytes() for path in (tmp_path / "old").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "split", ["../../x", "..", ".", "", "/etc/x", "a/b", "a\\b", "a\0b", "x" * 300, " x", "a\nb", None, 3]
)
def test_a_run_cannot_lead_a_beir_export_out_of_its_folder(run: Run, tmp_path: Path, split: object) -> None:
    run.info["config"]["read"]["split"] = split
    with pytest.raises(DataError, match=r"run\.json names the split .*cannot be part of a file name"):
        export(run, "beir", tmp_path / "deep" / "er" / "beir")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_ids_that_readers_of_qrels_take_for_quoted(tmp_path: Path) -> None:
    pairs = Pairs.from_columns(["q"], ["a"], corpus=["b"], query_ids=['"a"'])
    run = mine(pairs, tmp_path / "run", MineOptions(negatives=1))
    with pytest.raises(DataError, match="starts with a quote, which TREC files and qrels cannot"):
        export(run, "beir", tmp_path / "beir")


def test_places_that_cannot_be_written_to(run: Run, tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "file").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"folder\.jsonl is a folder: give the name of a file"):
            export(run, "triplet", tmp_path / "folder.jsonl", overwrite=overwrite)
        with pytest.raises(UsageError, match="file: an export as beir is a folder"):
            export(run, "beir", tmp_path / "file", overwrite=overwrite)
    with pytest.raises(UsageError, match="out .--out. -: an export as beir is a folder"):
        export(run, "beir", "-")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_carriage_returns_do_not_break_rows(tmp_path: Path, suffix: str) -> None:
    """The csv module does not quote them unless lines end with one, and reads them as the end of a row."""
    texts = ["a\rb", "c\r\nd", "e\n", "\r", "f\0g"]
    pairs = Pairs.from_columns(
        [f"{i} {text}" for i, text in enumerate(texts)], [f"{text} {i}" for i, text in enumerate(texts)]
    )
    run = mine(pairs, tmp_path / "run", MineOptions(negatives=1, default_filters=False))
    export(run, "labeled-pair", tmp_path / f"out{suffix}")
    assert {row["query"] for row in load(tmp_path / f"out{suffix}")} == {f"{i} {text}" for i, text in enumerate(texts)}
    assert b"\r\n1" not in (tmp_path / f"out{suffix}").read_bytes()


@pytest.mark.parametrize(
    ("format", "name"),
    [("msmarco", "x.parquet"), ("qrels", "x.jsonl"), ("trec", "x.csv"), ("pylate", "x.jsonl"), ("beir", "x.tsv")],
)
def test_names_that_would_mislead_are_refused(run: Run, tmp_path: Path, format: str, name: str) -> None:
    with pytest.raises(UsageError, match="would mislead"):
        export(run, format, tmp_path / name)


def test_an_interrupted_export_leaves_no_rows_beside_texts_of_another(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    for format, rows in (("pylate", "train.jsonl"), ("tevatron-corpus", "train.jsonl"), ("beir", "qrels/train.tsv")):
        export(run, format, tmp_path / format)
        assert (tmp_path / format / rows).is_file()
        with monkeypatch.context() as patch:
            patch.setattr("hardneg.exports.folders.write_text", fail)
            with pytest.raises(KeyboardInterrupt):
                export(run, format, tmp_path / format, overwrite=True)
        assert not (tmp_path / format / rows).exists()


def test_parts_without_a_place_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ms-swift has no place for scores"):
        export(run, "ms-swift", tmp_path / "x.jsonl", scores=True)
    with pytest.raises(UsageError, match="is no single table"):
        run.to_dataset("beir")
