"""The file for judging is opened in spreadsheets: no cell is a formula there, and every id is read back exactly."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hardneg
from hardneg.data.builder import Builder
from hardneg.data.pairs import Pairs
from hardneg.errors import DataError
from hardneg.false_negatives.judgement_file import as_cell, from_cell
from hardneg.false_negatives.judgements import read_judgements
from tests.conftest import run_here

FORMULAS = "=+-@\t\r"
NASTY = [
    '=HYPERLINK("http://x")', "+1", "-1", "@sum", "\t=1", "\r=1", "'=1", "''=1", "'", "''", "'tis", "a\0b", "line\nbreak", "cr\rx",
    '"quoted"', "'\t", "=", "plain", ";", " =1",
]  # fmt: skip


@given(st.text(alphabet=st.one_of(st.sampled_from("'=+-@\t\ra"), st.characters(codec="utf-8"))))
def test_every_text_comes_back(text: str) -> None:
    cell = as_cell(text)
    assert from_cell(cell) == text
    assert not cell.startswith(tuple(FORMULAS))
    assert cell in (text, "'" + text)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> hardneg.Run:
    builder = Builder(None)
    for i, nasty in enumerate(NASTY):
        builder.add_query(nasty, f"{nasty} query {i}", where="")
        builder.add_document(nasty, f"{nasty} text {i}", where="")
        builder.relate(i, i, 1.0)
    folder = tmp_path_factory.mktemp("judge")
    return hardneg.mine(Pairs.from_contents(builder.finish("nasty")), folder / "run", hardneg.MineOptions(negatives=3))


def test_no_cell_is_a_formula_and_ids_come_back(run: hardneg.Run, tmp_path: Path) -> None:
    out = tmp_path / "f.csv"
    done = run_here("judge", run.folder, "--out", out, "--sample", "200")
    assert done.returncode == 0, done.stderr
    with open(out, encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    texts = ("query_id", "document_id", "query", "positive", "document")
    assert [row[name] for row in rows for name in texts if row[name].startswith(tuple(FORMULAS))] == []
    assert {from_cell(row["query_id"]) for row in rows} <= set(NASTY)
    assert any(row["query_id"] == "''=1" for row in rows)
    for i, row in enumerate(rows):
        row["relevant"] = str(i % 2)
    with open(out, "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    pairs = run.pairs()
    judged = read_judgements(out, pairs)
    ids = pairs.query_ids.to_pylist(), pairs.document_ids.to_pylist()
    found = {(ids[0][q], ids[1][d]): r for q, d, r in zip(judged.query, judged.document, judged.relevant, strict=True)}
    wanted = {(from_cell(r["query_id"]), from_cell(r["document_id"])): r["relevant"] == "1" for r in rows}
    assert found == wanted
    assert len(found) == len(rows)


def test_the_help_tells_of_the_quote() -> None:
    assert "single quote in front" in " ".join(run_here("judge", "--help-all").stdout.split())
    assert "exactly as they are" in " ".join(run_here("export", "--help-all").stdout.split())


def test_exports_are_exact(run: hardneg.Run, tmp_path: Path) -> None:
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        hardneg.export(run, "triplet", tmp_path / f"t{suffix}")
        with open(tmp_path / f"t{suffix}", encoding="utf-8", newline="") as f:
            rows = list(csv.DictReader(f, delimiter=delimiter))
        assert {row["query"] for row in rows} == {f"{nasty} query {i}" for i, nasty in enumerate(NASTY)}


def test_files_for_judging_that_cannot_be_read(run: hardneg.Run, tmp_path: Path) -> None:
    path, pairs = tmp_path / "f.csv", run.pairs()
    path.write_text("query_id;document_id;relevant\na;b;1\n")
    with pytest.raises(DataError, match="with commas between the cells, not ';'"):
        read_judgements(path, pairs)
    path.write_text('query_id,document_id,relevant\n"a,b,1\n' + "x,y,0\n" * 50)  # the quote would swallow all lines
    with pytest.raises(DataError, match=r"f\.csv is not readable as CSV"):
        read_judgements(path, pairs)
    long = "x" * 200_000  # more than the csv module reads by default
    path.write_text("query_id,document_id,relevant,note\n" + f"plain,plain,1,{long}\n" * 3)
    assert read_judgements(path, pairs).relevant.tolist() == [True]
    path.unlink()
    with pytest.raises(DataError, match=r"f\.csv does not exist"):
        read_judgements(path, pairs)
    path.mkdir()
    with pytest.raises(DataError, match=r"f\.csv is a folder"):
        read_judgements(path, pairs)
