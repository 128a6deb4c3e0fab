"""Files as people have them: what each layout and container means, and what is asked for instead of guessed."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hardneg import DataError, MineOptions, Pairs, ReadOptions, Run, UsageError, export, mine, read_pairs
from tests.conftest import run_here, write_jsonl

THINGS = ["kettle", "bridge", "orchid", "glacier", "violin", "tractor"]
QUERIES = [f"where is the {thing}" for thing in THINGS]
TEXTS = [f"The {thing} is in hall {i}, behind the door." for i, thing in enumerate(THINGS)]
ROWS = [{"query": q, "positive": t} for q, t in zip(QUERIES, TEXTS, strict=True)]


def relations(pairs: Pairs, ragged: Any = None) -> dict[str, list[str]]:
    """The texts of the positives (or of other documents) of each query."""
    queries, documents = pairs.queries.slice(0, len(pairs)), pairs.documents.slice(0, len(pairs.document_ids))
    chosen = pairs.positives if ragged is None else ragged
    return {q: sorted(documents[d] for d in chosen.take(np.array([i])).values) for i, q in enumerate(queries)}


WANTED = {q: [t] for q, t in zip(QUERIES, TEXTS, strict=True)}


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as f:
        f.write(data)
    return bytes(sink.getvalue())


def csv_bytes(delimiter: str = ",") -> bytes:
    return "".join(
        delimiter.join(f'"{cell}"' for cell in row) + "\n" for row in [ROWS[0].keys(), *(r.values() for r in ROWS)]
    ).encode()


CONTAINERS: dict[str, bytes] = {
    "p.jsonl": lines(ROWS),
    "p.jsonl.gz": gzip.compress(lines(ROWS)),
    "p.jsonl.bz2": bz2.compress(lines(ROWS)),
    "p.jsonl.xz": lzma.compress(lines(ROWS)),
    "p.jsonl.zst": zstd(lines(ROWS)),
    "p.csv": csv_bytes(),
    "p.csv.gz": gzip.compress(csv_bytes()),
    "p.tsv": csv_bytes("\t"),
    "array.json": json.dumps(ROWS, indent=1).encode(),
    "array_in_a_line.json": json.dumps(ROWS).encode(),
    "columns.json": json.dumps({"query": QUERIES, "positive": TEXTS}).encode(),
    "pandas.json": json.dumps({n: {str(i): r[n] for i, r in enumerate(ROWS)} for n in ("query", "positive")}).encode(),
    "data.json": json.dumps({"version": 1, "data": ROWS}, indent=2).encode(),
    "lines.json": lines(ROWS),
    "bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
}


@pytest.mark.parametrize(
    ("name", "header", "said"),
    [
        ("a.csv", "question;answer", "separated by semicolons, .* read with commas"),
        ("a.csv", '"question";"answer"', "separated by semicolons"),
        ("a.csv", "question\tanswer", "separated by tabs, .*name it .tsv"),
        ("a.tsv", "question;answer", "separated by semicolons, .* read with tabs"),
    ],
)
def test_another_separator_is_said(tmp_path: Path, name: str, header: str, said: str) -> None:
    (tmp_path / name).write_text(f"{header}\nwhy, then?;because\nwhen?;now\n")
    with pytest.raises(DataError, match=rf"{name}, line 1: the header is one column.*{said}"):
        read_pairs(tmp_path / name)


def test_one_column_is_no_other_separator(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("text\none; two\n")
    pairs = read_pairs([{"query": "a", "answer": "b"}], corpus=tmp_path / "c.csv")
    assert list(pairs.documents) == ["b", "one; two"]


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(CONTAINERS[name])
    assert relations(read_pairs(str(tmp_path / name))) == WANTED


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_shards_in_a_folder_and_by_a_pattern(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(3):
        part, path = ROWS[2 * i : 2 * i + 2], folder / f"train-0000{i}-of-00003.{kind}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(part), path)
        elif kind == "csv":
            path.write_text("query,positive\n" + "".join(f'{r["query"]},"{r["positive"]}"\n' for r in part))
        else:
            write_jsonl(path, part)
    (folder / f"test-00000-of-00001.{kind}").write_bytes(b"")
    assert relations(read_pairs(str(folder))) == WANTED
    assert relations(read_pairs(str(folder / f"train*.{kind}"))) == WANTED
    with pytest.raises(DataError, match=r"there is no split 'dev'; it has: 'test', 'train'|it has: test, train"):
        read_pairs(str(folder), ReadOptions(split="dev"))
    with pytest.raises(DataError, match=r"does not exist"):
        read_pairs(str(folder / "valid*.jsonl"))


def as_dpr(i: int) -> dict[str, Any]:
    passage = {"title": f"T{i}", "text": TEXTS[i], "score": 1000, "passage_id": str(i)}
    other = {"title": f"T{i - 1}", "text": TEXTS[i - 1], "score": 10, "passage_id": str((i - 1) % 6)}
    other["title"] = f"T{(i - 1) % 6}"
    return {
        "question": QUERIES[i],
        "answers": ["x"],
        "positive_ctxs": [passage],
        "negative_ctxs": [],
        "hard_negative_ctxs": [other],
    }


LAYOUTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "dpr": as_dpr,
    "squad": lambda i: {
        "id": f"s{i}", "title": "M", "context": TEXTS[i], "question": QUERIES[i],
        "answers": {"text": ["hall"], "answer_start": [3]},
    },
    "msmarco": lambda i: {
        "query_id": i, "query": QUERIES[i], "answers": ["hall"],
        "passages": {"is_selected": [0, 1], "passage_text": [TEXTS[i - 1], TEXTS[i]]},
    },
    "chat": lambda i: {
        "messages": [{"role": "system", "content": "You search."}, {"role": "user", "content": QUERIES[i]}],
        "positive_messages": [[{"role": "user", "content": TEXTS[i]}]],
        "negative_messages": [[{"role": "user", "content": TEXTS[i - 1]}]],
    },
    "flagembedding": lambda i: {"query": QUERIES[i], "pos": [TEXTS[i]], "neg": [], "prompt": "p"},
    "tevatron": lambda i: {
        "query_id": str(i), "query": QUERIES[i], "positive_passages": [{"docid": str(i), "title": "", "text": TEXTS[i]}],
        "negative_passages": [],
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [LAYOUTS[layout](i) for i in range(6)])
    pairs = read_pairs(str(path))
    found = {
        q: [t.rpartition("\n")[2].removeprefix(f"T{i} ") for t in ts]
        for i, (q, ts) in enumerate(relations(pairs).items())
    }
    assert found == WANTED
    assert pairs.reading["format"] == layout
    assert len(pairs.document_ids) == 6
    assert relations(read_pairs(str(path), ReadOptions(format=layout))).keys() == WANTED.keys()


def test_squad_as_it_was_published(tmp_path: Path) -> None:
    questions = [[{"question": QUERIES[i], "id": f"s{i}", "answers": []}] for i in range(6)]
    paragraphs = [{"context": TEXTS[i], "qas": questions[i]} for i in range(6)]
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "M", "paragraphs": paragraphs}]}))
    pairs = read_pairs(str(path))
    assert relations(pairs) == WANTED
    assert pairs.query_ids.to_pylist() == [f"s{i}" for i in range(6)]


def test_ids_of_flagembedding_are_kept(tmp_path: Path) -> None:
    rows = [
        {
            "query": QUERIES[i], "pos": [TEXTS[i]], "neg": [TEXTS[i - 1]],
            "id": f"Q{i}", "pos_id": [f"P{i}"], "neg_id": [f"P{(i - 1) % 6}"],
        }
        for i in range(6)
    ]  # fmt: skip
    pairs = read_pairs(str(write_jsonl(tmp_path / "f.jsonl", rows)))
    assert pairs.query_ids.to_pylist() == [f"Q{i}" for i in range(6)]
    assert sorted(pairs.document_ids.to_pylist()) == [f"P{i}" for i in range(6)]
    judged = read_pairs(str(tmp_path / "f.jsonl"), ReadOptions(negatives="judged"))
    assert relations(judged, judged.judged_negatives) == {q: [TEXTS[i - 1]] for i, q in enumerate(QUERIES)}
    assert len(pairs.judged_negatives.values) == 0


def test_documents_named_by_id(tmp_path: Path) -> None:
    """Tevatron's newer layout."""
    rows = [
        {"query_id": str(i), "query_text": QUERIES[i], "positive_document_ids": [str(i)], "negative_document_ids": [str(5 - i)]}
        for i in range(6)
    ]  # fmt: skip
    source = write_jsonl(tmp_path / "t.jsonl", rows)
    corpus = write_jsonl(tmp_path / "c.jsonl", [{"docid": str(i), "document_text": TEXTS[i]} for i in range(6)])
    assert relations(read_pairs(str(source), ReadOptions(corpus=corpus))) == WANTED
    with pytest.raises(DataError, match="--corpus"):
        read_pairs(str(source))
    rows[3]["positive_document_ids"] = ["77"]
    write_jsonl(source, rows)
    with pytest.raises(DataError, match=r"t\.jsonl, line 4: the document id '77' is unknown"):
        read_pairs(str(source), ReadOptions(corpus=corpus))


def test_corpora_are_all_read(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "p.jsonl", ROWS)
    one = write_jsonl(tmp_path / "a.jsonl", [{"text": "first"}])
    (tmp_path / "collection.tsv").write_text("7\tsecond\n8\tthird\n")
    (tmp_path / "own.csv").write_text("id,what\n9,fourth\n")
    pairs = read_pairs(str(source), ReadOptions(corpus=(one, tmp_path / "collection.tsv")))
    texts = dict(zip(pairs.document_ids.to_pylist(), pairs.documents.slice(0, len(pairs.document_ids)), strict=True))
    assert len(texts) == 9
    assert (texts["7"], texts["8"]) == ("second", "third")
    with pytest.raises(DataError, match=r"own\.csv, line 2: no column looks like a text.*--text-column"):
        read_pairs(str(source), ReadOptions(corpus=tmp_path / "own.csv"))
    own = read_pairs(str(source), ReadOptions(corpus=tmp_path / "own.csv", text_column="what"))
    assert "fourth" in own.documents.slice(0, len(own.document_ids))
    out = tmp_path / "run"
    done = run_here("mine", source, "--out", out, "--corpus", one, "--corpus", tmp_path / "collection.tsv")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "read as pairs (told by its content)"
    assert (
        lines[1]
        == "columns: query = query (by its name), positive = positive (by its name), corpus text = text (by its name)"
    )
    assert re.fullmatch(r"found: \d+ queries, \d+ documents, \d+ pairs", lines[2])
    assert len(Run(out).pairs().document_ids) == 9


def test_groups_of_a_corpus(tmp_path: Path) -> None:
    rows = [{**row, "book": f"b{i // 2}"} for i, row in enumerate(ROWS)]
    source = write_jsonl(tmp_path / "p.jsonl", rows)
    corpus = write_jsonl(tmp_path / "c.jsonl", [{"text": f"more {i}", "book": f"b{i}"} for i in range(3)])
    pairs = read_pairs(str(source), ReadOptions(corpus=corpus, group_column="book"))
    assert pairs.document_groups is not None
    assert pairs.document_groups.tolist() == [0, 0, 1, 1, 2, 2, 0, 1, 2]


def test_triples_of_texts_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "triples.tsv"
    path.write_text("".join(f"{QUERIES[i]}\t{TEXTS[i]}\t{TEXTS[i - 1]}\n" for i in range(6)))
    pairs = read_pairs(str(path), ReadOptions(negatives="judged"))
    assert relations(pairs) == WANTED
    assert relations(pairs, pairs.judged_negatives) == {q: [TEXTS[i - 1]] for i, q in enumerate(QUERIES)}


def test_triples_of_ids(tmp_path: Path) -> None:
    path = tmp_path / "qidpidtriples.train.tsv"
    path.write_text("".join(f"10{i}\t{i}\t{(i + 1) % 6}\n" for i in range(6)))
    with pytest.raises(DataError, match=r"holds ids only; .*queries\.tsv and .*collection\.tsv, which does not exist"):
        read_pairs(str(path))
    (tmp_path / "queries.train.tsv").write_text("".join(f"10{i}\t{q}\n" for i, q in enumerate([*QUERIES, "unused"])))
    (tmp_path / "collection.tsv").write_text("".join(f"{i}\t{t}\n" for i, t in enumerate([*TEXTS, "another"])))
    pairs = read_pairs(str(path))
    assert relations(pairs) == WANTED
    assert len(pairs.document_ids) == 7
    path.write_text("777\t0\t1\n")
    with pytest.raises(DataError, match=r"line 1: the query id '777' is unknown"):
        read_pairs(str(path))


def test_ids_and_texts_are_no_pairs(tmp_path: Path) -> None:
    (tmp_path / "queries.tsv").write_text("100\twhere is it\n")
    with pytest.raises(
        DataError, match=r"line 1: this file has no header, and 2 columns of ids and texts, which are no"
    ):
        read_pairs(str(tmp_path / "queries.tsv"))


# What a label means.


def labelled(tmp_path: Path, labels: list[Any], **columns: str) -> Path:
    names = {"query": "query", "positive": "document", "label": "label", **columns}
    rows = [
        {names["query"]: QUERIES[i % 6], names["positive"]: TEXTS[(i + i // 6) % 6], names["label"]: label}
        for i, label in enumerate(labels)
    ]
    return write_jsonl(tmp_path / "p.jsonl", rows)


@pytest.mark.parametrize(
    "pair", [(1, 0), ("1", "0"), (True, False), ("True", "False"), (1, -1), ("1.0", "0.0"), ("yes", "no")]
)
@pytest.mark.parametrize("first", [0, 1])
def test_two_values_are_judgements(tmp_path: Path, pair: tuple[Any, Any], first: int) -> None:
    labels = [pair[0]] * 6 + [pair[1]] * 6
    path = labelled(tmp_path, labels)
    if first:  # the first row is a negative
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    pairs = read_pairs(str(path))
    assert relations(pairs) == WANTED
    assert len(pairs.judged_negatives.values) == 6
    assert pairs.reading["columns"]["relevance"] == "label"
    assert pairs.document_groups is None


@pytest.mark.parametrize("first", range(7))
def test_classes_are_groups_whatever_comes_first(tmp_path: Path, first: int) -> None:
    labels = [f"kind {(i + first) % 7}" for i in range(50)]
    pairs = read_pairs(str(labelled(tmp_path, labels)))
    assert pairs.query_groups is not None
    assert len(pairs.judged_negatives.values) == 0
    assert pairs.reading["columns"]["group"] == "label"


@pytest.mark.parametrize(
    "labels",
    [[0, 1, 2], ["entailment", "neutral", "contradiction"], [0.5, 4.2, 5.0]],
    ids=["numbers", "words", "grades"],
)
def test_inference_and_similarity_are_asked_for(tmp_path: Path, labels: list[Any]) -> None:
    path = labelled(tmp_path, labels * 4, query="sentence1", positive="sentence2")
    with pytest.raises(
        DataError, match=r"the column 'label' holds .*--relevance-column label. relevant_from=X .--relevant-from X"
    ):
        read_pairs(str(path))
    if not isinstance(labels[0], str):
        pairs = read_pairs(str(path), ReadOptions(relevance_column="label", relevant_from=max(labels)))
        assert len(pairs.positives.values) == 4
    everything = read_pairs(str(path), ReadOptions(group_column=""))
    assert len(everything.positives.values) == 12


def test_grades_of_pairs_are_asked_for(tmp_path: Path) -> None:
    path = labelled(tmp_path, [4.5, 1.0, 3.2] * 2, query="sentence1", positive="sentence2", label="score")
    with pytest.raises(DataError, match=r"the column 'score' grades the pairs.*--relevant-from"):
        read_pairs(str(path))
    pairs = read_pairs(str(path), ReadOptions(relevance_column="score", relevant_from=4))
    assert sorted(map(len, relations(pairs).values())) == [0, 0, 0, 0, 1, 1]
    assert pairs.notes["grades_that_say_nothing"] == 4


def test_blank_cells_are_no_texts(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("query,positive,negative\na,x,\nb,,y\nc, ,z\n")
    pairs = read_pairs(str(path))
    assert relations(pairs) == {"a": ["x"], "b": [], "c": []}
    assert sorted(pairs.documents.slice(0, len(pairs.document_ids))) == ["x", "y", "z"]
    assert pairs.notes["blank_positives"] == 2


def test_columns_of_negatives_by_any_name(tmp_path: Path) -> None:
    names = [
        "negative",
        "Negative",
        "negatives",
        "hard_negative",
        "hard_negatives",
        "neg_1",
        "negative1",
        "negative 2",
        "neg",
    ]
    row: dict[str, Any] = {"query": "q", "positive": "p", **{name: f"n{i}" for i, name in enumerate(names)}}
    pairs = read_pairs(str(write_jsonl(tmp_path / "p.jsonl", [row])), ReadOptions(negatives="judged"))
    assert relations(pairs, pairs.judged_negatives) == {"q": [f"n{i}" for i in range(9)]}


# BEIR.


@pytest.mark.parametrize(
    "form",
    ["query-id\tcorpus-id\tscore\n{}", "{}", "{4}", "{ }"],
    ids=["header", "no header", "TREC", "TREC with spaces"],
)
def test_every_line_of_qrels_counts(tmp_path: Path, form: str) -> None:
    write_jsonl(tmp_path / "corpus.jsonl", [{"_id": f"d{i}", "text": t} for i, t in enumerate(TEXTS)])
    write_jsonl(tmp_path / "queries.jsonl", [{"_id": f"q{i}", "text": q} for i, q in enumerate(QUERIES)])
    three = "".join(f"q{i}\td{i}\t1\n" for i in range(6))
    four = "".join(f"q{i}\t0\td{i}\t1\n" for i in range(6))
    (tmp_path / "qrels").mkdir()
    text = {"{}": three, "{4}": four, "{ }": four.replace("\t", " ")}.get(form) or form.format(three)
    (tmp_path / "qrels" / "train.tsv").write_text(text)
    assert relations(read_pairs(str(tmp_path))) == WANTED


def test_qrels_without_a_judgement_are_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "corpus.jsonl", [{"_id": "d", "text": "t"}])
    write_jsonl(tmp_path / "queries.jsonl", [{"_id": "q", "text": "t"}])
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n")
    with pytest.raises(DataError, match=r"train\.tsv: there is no judgement"):
        read_pairs(str(tmp_path))


def test_the_hubs_layout_of_beir(tmp_path: Path) -> None:
    tables = {
        "corpus/corpus-00000-of-00001": [{"_id": f"d{i}", "title": "", "text": t} for i, t in enumerate(TEXTS)],
        "queries/queries-00000-of-00001": [{"_id": f"q{i}", "title": "", "text": q} for i, q in enumerate(QUERIES)],
        "qrels/train-00000-of-00001": [{"query-id": f"q{i}", "corpus-id": f"d{i}", "score": 1.0} for i in range(4)],
        "qrels/test-00000-of-00001": [{"query-id": f"q{i}", "corpus-id": f"d{i}", "score": 1.0} for i in (4, 5)],
    }
    for name, rows in tables.items():
        path = tmp_path / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
    assert relations(read_pairs(str(tmp_path))) == {q: [t] for q, t in list(zip(QUERIES, TEXTS, strict=True))[:4]}
    assert len(read_pairs(str(tmp_path), ReadOptions(split="test"))) == 2


def test_grades_below_the_threshold_say_nothing(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "corpus.jsonl", [{"_id": f"d{i}", "text": t} for i, t in enumerate(TEXTS)])
    write_jsonl(tmp_path / "queries.jsonl", [{"_id": "q", "text": "q"}])
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "train.tsv").write_text("q\td0\t3\nq\td1\t1\nq\td2\t0\nq\td3\t-1\n")
    pairs = read_pairs(str(tmp_path), ReadOptions(relevant_from=2))
    assert relations(pairs) == {"q": [TEXTS[0]]}
    assert relations(pairs, pairs.judged_negatives) == {"q": sorted([TEXTS[2], TEXTS[3]])}
    assert pairs.notes["grades_that_say_nothing"] == 1
    assert relations(read_pairs(str(tmp_path))) == {"q": sorted(TEXTS[:2])}


# CSV and TSV.


def test_equal_names_of_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("query,positive,positive\na,b,c\n")
    with pytest.raises(DataError, match=r"line 1: the columns 2 and 3 are both called 'positive'"):
        read_pairs(str(tmp_path / "p.csv"))


def tsv(tmp_path: Path, texts: list[str]) -> Path:
    (tmp_path / "p.tsv").write_text("query\tpositive\n" + "".join(f"q{i}\t{t}\n" for i, t in enumerate(texts)))
    return tmp_path / "p.tsv"


@pytest.mark.parametrize("far", [0, 3000], ids=["near", "beyond 64 KiB"])
def test_the_whole_file_tells_whether_quotes_enclose(tmp_path: Path, far: int) -> None:
    plain = [f"text {i} " + "x" * 30 for i in range(far)]
    quotes = tsv(tmp_path, [*plain, '"one"', '"two ""2"""'])
    assert read_pairs(str(quotes)).documents.slice(far, far + 2) == ["one", 'two "2"']
    literal = tsv(tmp_path, [*plain, '"one" he said', '"two', "three"])
    assert read_pairs(str(literal)).documents.slice(far, far + 3) == ['"one" he said', '"two', "three"]


def test_quotes_that_may_mean_two_things_are_asked_for(tmp_path: Path) -> None:
    path = tsv(tmp_path, ["a", '"b', 'c"', "d"])  # four rows, or three of which one has a line break
    path.write_text(path.read_text().replace('q2\tc"', 'c"\tq2').replace('c"\tq2', 'q2\tc"'))
    with pytest.raises(DataError, match=r"p\.tsv, line 3: it cannot be told whether quotes enclose.*--quoting"):
        read_pairs(str(path))
    assert len(read_pairs(str(path), ReadOptions(quoting="none")).document_ids) == 4


def test_options_are_checked() -> None:
    for given in ({"format": "tevatrom"}, {"quoting": "some"}, {"negatives": "kept"}):
        with pytest.raises(UsageError, match="unknown"):
            ReadOptions(**given)  # type: ignore[arg-type]


# Columns in memory.


class Series:
    """Like a Series of pandas whose rows are shuffled or filtered: indexing goes by label, and labels are not positions."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, label: int) -> Any:
        raise KeyError(label)

    def __iter__(self) -> Any:
        return iter(self.values)

    def tolist(self) -> list[Any]:
        return list(self.values)


@pytest.mark.parametrize("kind", [list, tuple, Series, np.array, pa.array, iter])
def test_columns_are_taken_by_position(kind: Callable[[list[Any]], Any]) -> None:
    pairs = Pairs.from_columns(
        kind(QUERIES), kind(TEXTS), query_ids=kind([10 * i for i in range(6)]), groups=kind(list("abcabc")),
        corpus=kind(["more", "still more"]), corpus_groups=kind(["a", None]), corpus_ids=kind(["x", "y"]),
    )  # fmt: skip
    assert relations(pairs) == WANTED
    assert pairs.query_ids.to_pylist() == [str(10 * i) for i in range(6)]
    assert pairs.document_ids.to_pylist()[-2:] == ["x", "y"]
    assert pairs.query_groups is not None
    assert pairs.document_groups is not None
    assert pairs.query_groups.tolist() == [0, 1, 2, 0, 1, 2]
    assert pairs.document_groups.tolist() == [0, 1, 2, 0, 1, 2, 0, -1]


def test_missing_values_of_columns() -> None:
    pairs = Pairs.from_columns(
        ["a", "b", "c", "d"], ["x", None, float("nan"), ["y", ""]], groups=["g", float("nan"), None, ""]
    )
    assert relations(pairs) == {"a": ["x"], "b": [], "c": [], "d": ["y"]}
    assert pairs.query_groups is not None
    assert pairs.query_groups.tolist() == [0, -1, -1, -1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"queries": "abc", "positives": ["x"] * 3}, "queries is a str: give a list"),
        ({"queries": {"a": 1}, "positives": ["x"]}, "queries is a dict: give a list"),
        ({"queries": {"a"}, "positives": ["x"]}, "queries is a set: give a list"),
        ({"queries": 3, "positives": ["x"]}, "queries is a int: give a list"),
        ({"queries": ["a"], "positives": ["x"], "groups": ["g", "h"]}, "groups has 2 rows, but queries has 1"),
        ({"queries": ["a"], "positives": [3]}, "row 0: positives is 3, expected a text"),
        ({"queries": ["a"], "positives": [["x", 3]]}, "row 0: positives holds 3, expected texts"),
        (
            {"queries": ["a"], "positives": ["x"], "corpus": ["b"], "corpus_groups": []},
            "corpus_groups has 0 rows, but corpus",
        ),
    ],
)
def test_columns_that_cannot_be_used(given: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Pairs.from_columns(**given)


def test_inspect_says_what_a_file_is_taken_for(tmp_path: Path) -> None:
    path = labelled(tmp_path, [1] * 6 + [0] * 6)
    done = run_here("inspect", path, "--json")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["columns"] == {"query": "query", "positive": "document", "relevance": "label"}
    assert value["counts"] == {
        "queries": 6, "documents": 6, "pairs": 6, "queries_without_positives": 0, "judged_negatives": 6, "groups": 0,
        "documents_without_group": 0,
        "documents_in_the_largest_group": 0,
    }  # fmt: skip
    assert [each["positives"] for each in value["examples"]] == [[text] for text in TEXTS[:3]]
    assert "6 rows repeat a query: their positives were put together" in value["warnings"]
    shown = run_here("inspect", path)
    for words in ("format", "relevance", "column label", "judged negatives", QUERIES[0], TEXTS[0]):
        assert words in shown.stdout
    assert run_here("inspect", tmp_path / "none.jsonl").returncode == 1


HARD = [
    'quote "x"', "comma, tab\tx", "line\nbreak", "cr\rlone", "crlf\r\nx", '["a"]', "ünï 日本 👩‍🔬", "'single'", "=1+1", "back\\slash",
    "nbsp\u00a0", "\u2028sep", "trailing ", " 0", "\x0b", "None", "NaN", '""', "#", "a;b|c",
]  # fmt: skip


@pytest.fixture(scope="module")
def hard_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    pairs = Pairs.from_columns([f"q {text}" for text in HARD], [f"p {text}" for text in HARD])
    return mine(pairs, tmp_path_factory.mktemp("hard") / "run", MineOptions(depth=8, negatives=2))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv", ".tsv"])
@pytest.mark.parametrize("format", ["triplet", "n-tuple", "labeled-pair", "labeled-list", "flagembedding", "tevatron"])
def test_what_we_write_we_read(hard_run: Run, format: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"export{suffix}"
    export(hard_run, format, path)
    assert relations(read_pairs(str(path))) == relations(hard_run.pairs())


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_what_we_write_others_read(hard_run: Run, suffix: str, tmp_path: Path) -> None:
    import csv

    import pandas

    path = tmp_path / f"export{suffix}"
    export(hard_run, "labeled-pair", path)
    delimiter = "," if suffix == ".csv" else "\t"
    with open(path, encoding="utf-8", newline="") as file:
        by_csv = [tuple(row[:2]) for row in csv.reader(file, delimiter=delimiter)][1:]
    frame = pandas.read_csv(path, sep=delimiter, keep_default_na=False, dtype=str)
    by_pandas = list(zip(frame.iloc[:, 0], frame.iloc[:, 1], strict=True))
    assert by_csv == by_pandas
    assert {(f"q {text}", f"p {text}") for text in HARD} <= set(by_csv)


def test_series_of_pandas_are_taken_by_position() -> None:
    import pandas

    frame = pandas.DataFrame({"q": QUERIES, "p": TEXTS, "g": list("abcabc")})
    shuffled = frame.sample(frac=1, random_state=0)
    assert relations(Pairs.from_columns(shuffled.q, shuffled.p, groups=shuffled.g)) == WANTED
    some = frame[frame.g == "b"]
    assert relations(Pairs.from_columns(some.q, some.p)) == {QUERIES[1]: [TEXTS[1]], QUERIES[4]: [TEXTS[4]]}


def test_the_filter_group_says_what_it_cannot_see(tmp_path: Path) -> None:
    class Never:
        dimension = 2

        def encode(self, texts: Any, *, prompt: str = "") -> Any:
            raise AssertionError("nothing is encoded before the data are checked")

        def fingerprint(self) -> str:
            return "never"

    with pytest.raises(UsageError, match="the filter 'group' needs groups"):
        mine(Pairs.from_columns(QUERIES, TEXTS), tmp_path / "a", MineOptions(filters=("group",)), encoder=Never())
    some = Pairs.from_columns(QUERIES, TEXTS, groups=list("aabbcc"), corpus=["one", "two"])
    run = mine(some, tmp_path / "b", MineOptions(depth=5, negatives=1, filters=("group",)))
    assert "2 of 8 documents have no group: the filter 'group' keeps all of them" in run.info["warnings"]


def test_vectors_of_other_texts_are_refused(tmp_path: Path) -> None:
    """Those of the documents in another order: each positive would be some other document."""
    rng = np.random.default_rng(0)
    pairs = Pairs.from_columns([f"q{i}" for i in range(400)], [f"d{i}" for i in range(400)])
    queries = rng.standard_normal((400, 16)).astype(np.float32)
    documents = queries + 0.3 * rng.standard_normal((400, 16)).astype(np.float32)
    assert mine(pairs, tmp_path / "right", vectors=(queries, documents)).info["warnings"] == []
    with pytest.raises(DataError, match=r"the positives score no better than random documents .*in another order"):
        mine(pairs, tmp_path / "wrong", vectors=(queries, documents[rng.permutation(400)]))
    run = mine(pairs, tmp_path / "forced", vectors=(queries, documents[::-1]), force=True)
    assert run.info["warnings"][0].startswith("the positives score no better than random documents")


UNSEEN = [
    "\u200b",
    "\u200f",
    "\ufeff",
    "\xad",
    "\x00",
    "\x1b",
    "\u202e",
    "\u2060",
    "\ufe0f",
    "\u3164",
    "\x9b",
    "\U000e0041",
]


@pytest.mark.parametrize("unseen", UNSEEN, ids=lambda text: f"U+{ord(text):04X}")
def test_unseen_characters_make_no_other_text(unseen: str, tmp_path: Path) -> None:
    text = "the kettle is in hall 0"
    copies = [unseen + text, text + unseen, text.replace("kettle", f"ket{unseen}tle")]
    pairs = Pairs.from_columns(["where is it"], [text], corpus=[*copies, unseen, "another", "one more"])
    run = mine(pairs, tmp_path / "run", MineOptions(negatives=2))
    texts = dict(zip(pairs.document_ids.to_pylist(), pairs.documents.slice(0, len(pairs.document_ids)), strict=True))
    (row,) = run.negatives().to_pylist()
    assert {texts[id] for id in row["negative_ids"]} == {"another", "one more"}
    assert run.info["counts"]["verdicts"]["duplicate"] == 3
    assert run.info["counts"]["verdicts"]["empty"] == 1


@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.parametrize("indent", [None, 2])
def test_question_answer_sets_of_llama_index(numbered: bool, indent: int | None, tmp_path: Path) -> None:
    """Also where its ids are numbers, which objects of columns have too."""
    q, d = ("", "1") if numbered else ("q", "d")
    whole = {
        "queries": {f"{q}{i}": text for i, text in enumerate(QUERIES)},
        "corpus": {f"{d}{i}": text for i, text in enumerate([*TEXTS, "one more"])},
        "relevant_docs": {f"{q}{i}": [f"{d}{i}"] for i in range(len(QUERIES))},
    }
    path = tmp_path / "set.json"
    path.write_text(json.dumps(whole, indent=indent))
    pairs = read_pairs(str(path))
    assert pairs.reading["format"] == "llama-index"
    assert relations(pairs) == WANTED
    assert len(pairs.document_ids) == len(TEXTS) + 1
    whole["relevant_docs"][f"{q}0"] = ["nobody"]
    path.write_text(json.dumps(whole))
    with pytest.raises(DataError, match="'nobody' is unknown"):
        read_pairs(str(path))


def test_several_ways_to_ask(tmp_path: Path) -> None:
    """Rows of MTEB's reranking tasks: each way is a query with the positives of its row."""
    rows = [
        {"query": ["one way", "another"], "positive": ["yes", "indeed"], "negative": ["no"]},
        {"query": "plain", "positive": ["so"], "negative": []},
    ]
    pairs = read_pairs(str(write_jsonl(tmp_path / "m.jsonl", rows)), ReadOptions(negatives="judged"))
    assert relations(pairs) == {"one way": ["indeed", "yes"], "another": ["indeed", "yes"], "plain": ["so"]}
    assert relations(pairs, pairs.judged_negatives) == {"one way": ["no"], "another": ["no"], "plain": []}
    with pytest.raises(DataError, match="2 queries with one id"):
        read_pairs(str(write_jsonl(tmp_path / "n.jsonl", [{"id": "x", **rows[0]}, {"id": "y", **rows[1]}])))
