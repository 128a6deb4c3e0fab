"""Every source format is read right, and every kind of bad input is named with its file and line."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hardneg.data.options import ReadOptions
from hardneg.data.pairs import Pairs, open_pairs
from hardneg.data.read import read_pairs
from hardneg.errors import DataError, UsageError

from .conftest import write_jsonl

ROWS = [
    {"id": "a", "query": "what is red", "positive": "red is a colour", "group": "colour"},
    {"id": "b", "query": "what is a dog", "positive": "a dog is an animal", "group": "animal"},
    {"id": "c", "query": "what is blue", "positive": "blue is a colour", "group": "colour"},
]


def relations(pairs: Pairs) -> dict[str, list[str]]:
    documents = pairs.documents.slice(0, len(pairs.document_ids))
    return {
        query: [documents[d] for d in pairs.positives.take(np.array([i])).values]
        for i, query in enumerate(pairs.queries.slice(0, len(pairs)))
    }


EXPECTED = {row["query"]: [row["positive"]] for row in ROWS}


def as_file(tmp_path: Path, kind: str) -> Path:
    if kind == "jsonl":
        return write_jsonl(tmp_path / "pairs.jsonl", ROWS)
    if kind in ("csv", "tsv"):
        path = tmp_path / f"pairs.{kind}"
        with open(path, "w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, list(ROWS[0]), delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(ROWS)
        return path
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "pairs.parquet")
        return tmp_path / "pairs.parquet"
    from datasets import Dataset, DatasetDict

    dataset = Dataset.from_list(ROWS)
    if kind == "hf":
        dataset.save_to_disk(str(tmp_path / "hf"))
    else:
        DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(str(tmp_path / "hf"))
    return tmp_path / "hf"


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet", "hf", "hf-dict"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_pairs_in_every_container(tmp_path: Path, kind: str, on_disk: bool) -> None:
    folder = tmp_path / "store" if on_disk else None
    pairs = read_pairs(str(as_file(tmp_path, kind)), folder=folder)
    for read in [pairs, *([open_pairs(folder)] if folder else [])]:
        assert relations(read) == EXPECTED
        assert read.query_ids.to_pylist() == ["a", "b", "c"]
        assert read.query_groups is not None
        assert read.query_groups.tolist() == [0, 1, 0]


def test_split_of_a_saved_dataset(tmp_path: Path) -> None:
    path = str(as_file(tmp_path, "hf-dict"))
    assert len(read_pairs(path, ReadOptions(split="test"))) == 1
    with pytest.raises(DataError, match="no split 'dev'; it has: test, train"):
        read_pairs(path, ReadOptions(split="dev"))


def test_beir(beir: Path) -> None:
    pairs = read_pairs(str(beir))
    # 10 named by train, 1 (number 11) named by no split at all; number 10 belongs to test.
    assert pairs.query_ids.to_pylist() == ["0", "1", "2", "größe", "4", "5", "6", "7", "8", "9", "11"]
    assert pairs.positives.lengths.tolist() == [2, *[1] * 9, 0]
    assert pairs.positives.take(np.array([0])).values.tolist() == [0, 20]
    assert pairs.judged_negatives.lengths.tolist() == [0, 1, *[0] * 9]
    assert pairs.judged_negatives.values.tolist() == [30]
    assert pairs.query_rows.tolist() == [*range(10), 11]
    assert read_pairs(str(beir), ReadOptions(split="test")).query_ids.to_pylist() == ["10", "11"]


def test_beir_groups_and_titles(beir: Path) -> None:
    rows = [json.loads(line) for line in (beir / "corpus.jsonl").read_text().splitlines()]
    rows[5]["title"] = "A title"
    write_jsonl(beir / "corpus.jsonl", rows)
    (beir / "groups.tsv").write_text("id\tgroup\nd0\tx\nd1\tx\n5\ty\nnobody\tz\n")
    pairs = read_pairs(str(beir))
    assert pairs.documents.take(np.array([5])) == ["A title " + rows[5]["text"]]
    assert pairs.document_groups is not None
    assert pairs.query_groups is not None
    assert pairs.document_groups[:3].tolist() == [0, 0, -1]
    assert pairs.query_groups.tolist() == [-1] * 5 + [1] + [-1] * 5
    assert pairs.notes["groups_of_unknown_ids"] == 1


def test_flagembedding(tmp_path: Path) -> None:
    rows = [{"query": "q1", "pos": ["p1", "p2"], "neg": ["n1"]}, {"query": "q2", "pos": ["p1"]}]
    pairs = read_pairs(str(write_jsonl(tmp_path / "f.jsonl", rows)))
    assert relations(pairs) == {"q1": ["p1", "p2"], "q2": ["p1"]}
    assert pairs.documents.slice(0, 3) == ["p1", "p2", "n1"]


def test_tevatron(tmp_path: Path) -> None:
    row = {
        "query_id": 7,
        "query": "q",
        "positive_passages": [{"docid": "1", "title": "T", "text": "p"}],
        "negative_passages": [{"docid": "2", "title": "", "text": "n"}],
    }
    pairs = read_pairs(str(write_jsonl(tmp_path / "t.jsonl", [row])))
    assert relations(pairs) == {"q": ["T p"]}
    assert pairs.query_ids.to_pylist() == ["7"]
    assert pairs.document_ids.to_pylist() == ["1", "2"]


def test_rows_of_one_query_are_put_together(tmp_path: Path) -> None:
    rows = [{"query": "q", "answer": "a"}, {"query": "q", "answer": "b"}, {"query": "r", "answer": "a"}]
    pairs = read_pairs(str(write_jsonl(tmp_path / "p.jsonl", rows)))
    assert relations(pairs) == {"q": ["a", "b"], "r": ["a"]}
    assert pairs.notes == {"repeated_query_rows": 1, "repeated_document_rows": 1}
    assert pairs.query_rows.tolist() == [0, 2]
    assert pairs.document_rows.tolist() == [0, 1]


def test_equal_texts_under_different_ids_share_their_known_positives(tmp_path: Path) -> None:
    rows = [{"id": 1, "query": "Q", "answer": "a"}, {"id": 2, "query": " q", "answer": "b"}]
    pairs = read_pairs(str(write_jsonl(tmp_path / "p.jsonl", rows)))
    assert len(pairs) == 2
    assert pairs.positives.lengths.tolist() == [1, 1]
    assert pairs.known_positives().take(np.arange(2)).padded().tolist() == [[0, 1], [0, 1]]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "p.jsonl", [{"frage": "q", "antwort": ["a", "b"], "nummer": 5, "klasse": "k"}]))
    options = ReadOptions(
        query_column="frage", positive_column="antwort", id_column="nummer", group_column="klasse"
    )  # fmt: skip
    pairs = read_pairs(path, options)
    assert relations(pairs) == {"q": ["a", "b"]}
    assert pairs.query_ids.to_pylist() == ["5"]
    assert pairs.query_groups is not None
    with pytest.raises(DataError, match="line 1: no column looks like a query; it has: frage"):
        read_pairs(path)
    with pytest.raises(DataError, match="no column 'frages'. Did you mean 'frage'"):
        read_pairs(path, ReadOptions(query_column="frages"))


def test_both_columns_that_are_missing_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("foo,bar\na b,c d\n", "utf-8")
    with pytest.raises(DataError, match="looks like a query.*And for the positive: no column looks like a positive"):
        read_pairs(str(path))
    with pytest.raises(DataError, match="no column 'q'.*And for the positive: there is no column 'p'"):
        read_pairs(str(path), ReadOptions(query_column="q", positive_column="p"))
    with pytest.raises(DataError, match=r"no column 'q'\. Known: foo, bar\.$"):
        read_pairs(str(path), ReadOptions(query_column="q", positive_column="bar"))


def test_labelled_pairs_hold_judgements(tmp_path: Path) -> None:
    rows = [
        {"sentence1": "q", "sentence2": "yes", "label": 1},
        {"sentence1": "q", "sentence2": "no", "label": 0},
        {"sentence1": "q", "sentence2": "both", "label": 1},
        {"sentence1": "q", "sentence2": "both", "label": 0},
    ]
    pairs = read_pairs(str(write_jsonl(tmp_path / "p.jsonl", rows)))
    assert relations(pairs) == {"q": ["yes", "both"]}
    assert pairs.judged_negatives.values.tolist() == [1]
    assert pairs.query_groups is None


def test_class_labels_are_groups(tmp_path: Path) -> None:
    rows = [{"text": "t", "query": "q", "label": 17}]
    assert read_pairs(str(write_jsonl(tmp_path / "p.jsonl", rows))).query_groups is not None


def test_query_without_positive_is_kept(tmp_path: Path) -> None:
    rows = [{"query": "q", "positive": None}, {"query": "r", "positive": "a"}]
    assert relations(read_pairs(str(write_jsonl(tmp_path / "p.jsonl", rows)))) == {"q": [], "r": ["a"]}


@pytest.mark.parametrize("suffix", ["jsonl", "beir"])
def test_extra_corpus(tmp_path: Path, suffix: str) -> None:
    pairs_path = write_jsonl(tmp_path / "p.jsonl", [{"query": "q", "positive": "a"}])
    folder = tmp_path / "corpus"
    path = write_jsonl(folder / "corpus.jsonl", [{"_id": "x", "text": "b", "title": "t"}, {"_id": "y", "text": "c"}])
    pairs = read_pairs(str(pairs_path), ReadOptions(corpus=folder if suffix == "beir" else path))
    assert pairs.documents.slice(0, 3) == ["a", "t b", "c"]
    assert pairs.document_ids.to_pylist() == ["d0", "x", "y"]


def test_generated_ids_avoid_given_ones(tmp_path: Path) -> None:
    row = {"query": "q", "positive": "a", "document_id": "d0", "negative": "n"}
    pairs = read_pairs(str(write_jsonl(tmp_path / "p.jsonl", [row])))
    assert pairs.document_ids.to_pylist() == ["d0", "d1"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b'{"query": "q", "positive": "p"}\n{"query": \n', r"p.jsonl, line 2: not a JSON object"),
        ("p.jsonl", b'{"query": "q", "positive": "p"}\n"text"\n', r"line 2: expected a JSON object, got a str"),
        ("p.jsonl", b'[{"query": "q"},\n', r"line 1: not a JSON object"),
        ("p.jsonl", b'{"query": "q", "positive": "p\xff"}\n', r"line 1: not valid UTF-8 .*byte"),
        ("p.jsonl", b'{"query": "q", "positive": "\\ud800"}\n', r"line 1: .*surrogate"),
        ("p.jsonl", b'{"query": "q", "positive": "p"}\n{"query": "q"}\n', r"line 2: there is no column 'positive'"),
        ("p.jsonl", b'{"query": 3, "positive": "p"}\n', r"line 1: the query is of type int"),
        ("p.jsonl", b'{"id": null, "query": "q", "positive": "p"}\n', r"line 1: the id is None"),
        ("p.jsonl", b'{"id": 1, "query": "q", "positive": "p"}\n{"id": 1, "query": "other", "positive": "p"}\n',
         r"line 2: query id '1' stands for another text before \(row 0\)"),
        ("p.jsonl", b'{"query": "q", "positive": "p", "relevance": "much"}\n', r"line 1: the relevance is 'much'"),
        ("p.jsonl", b"\n\n", "no rows"),
        ("p.csv", b"query,positive\nq,p,x\n", r"p.csv, line 2: 3 fields, but the header names 2"),
        ("p.csv", b"query,positive\nq,\xff\n", r"not valid UTF-8"),
        ("p.csv", b'query,positive\n"q,p\n', r"p.csv, line 2"),
        ("p.parquet", b"PAR1 not really", r"not a readable Parquet file"),
        ("p.bin", b"", r"cannot tell what this is"),
        ("f.jsonl", b'{"query": "q", "pos": ["p"]}\n{"query": "q", "pos": "p"}\n', r"line 2: 'pos' is of type str"),
        ("t.jsonl", b'{"query": "q", "positive_passages": []}\n', r"line 1: there is no 'query_id'"),
        ("t.jsonl", b'{"query_id": 1, "query": "q", "positive_passages": ["p"]}\n', r"line 1: a passage is of type str"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_pairs(str(tmp_path / name), folder=tmp_path / "store")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus.jsonl", "", "the corpus is empty"),
        ("queries.jsonl", "", "query id '0' is unknown"),
        ("corpus.jsonl", '{"_id": "x"}\n', "line 1: there is no 'text'"),
        ("corpus.jsonl", '{"text": "x"}\n', "line 1: there is no '_id'"),
        (
            "qrels/train.tsv",
            "query-id\tcorpus-id\tscore\n0\td99\t1\n",
            r"train.tsv, line 2: the document id 'd99' is unknown",
        ),
        ("qrels/train.tsv", "query-id\tcorpus-id\tscore\n0\td9\tx\n", r"line 2: the score is 'x', expected a number"),
        ("qrels/train.tsv", "query-id\tcorpus-id\tscore\n0\td9\n", r"line 2: 2 fields"),
        ("qrels/train.tsv", "query-id\tcorpus-id\tscore\n0\td9\tnan\n", r"expected a finite number"),
    ],
)
def test_bad_beir(beir: Path, file: str, content: str, message: str) -> None:
    (beir / file).write_text(content)
    if content == "":
        (beir / "qrels" / "test.tsv").unlink()
        if file == "corpus.jsonl":
            (beir / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n")
    with pytest.raises(DataError, match=message):
        read_pairs(str(beir))


def test_unknown_ids_can_be_skipped_and_are_counted(beir: Path) -> None:
    with open(beir / "qrels" / "train.tsv", "a") as f:
        f.write("0\td99\t1\nnobody\td1\t1\n")
    with pytest.raises(DataError, match="--skip-unknown"):
        read_pairs(str(beir))
    assert read_pairs(str(beir), ReadOptions(skip_unknown=True)).notes["skipped_unknown_judgements"] == 2


def test_missing_things(tmp_path: Path, beir: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_pairs(str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="no split 'dev'; it has: test, train"):
        read_pairs(str(beir), ReadOptions(split="dev"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="this folder is no dataset"):
        read_pairs(str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="Did you mean 'pycode'"):
        read_pairs("builtin:pycod")
    with pytest.raises(UsageError, match="Did you mean 'tevatron'"):
        read_pairs(str(beir), ReadOptions(format="tevatrom"))


def test_saved_dataset_cannot_point_outside(tmp_path: Path) -> None:
    path = as_file(tmp_path, "hf")
    state = json.loads((path / "state.json").read_text())
    state["_data_files"] = [{"filename": "../../secret.arrow"}]
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match="outside the folder"):
        read_pairs(str(path))


def test_empty_texts_are_counted(tmp_path: Path) -> None:
    rows = [{"query": "", "positive": "p"}, {"query": "q", "positive": " \n"}, {"query": "r", "positive": "o"}]
    assert read_pairs(str(write_jsonl(tmp_path / "p.jsonl", rows))).notes == {
        "empty_query_texts": 1,
        "blank_positives": 1,
    }


def test_from_columns() -> None:
    pairs = Pairs.from_columns(["q", "r", "q"], ["a", ["b", "c"], "d"], corpus=["e", "a"], groups=["x", "y", "x"])
    assert relations(pairs) == {"q": ["a", "d"], "r": ["b", "c"]}
    assert pairs.documents.slice(0, 5) == ["a", "b", "c", "d", "e"]
    assert pairs.document_groups is not None
    assert pairs.document_groups.tolist() == [0, 1, 1, 0, -1]
    with pytest.raises(DataError, match="no queries"):
        Pairs.from_columns([], [], corpus=["x"])


def test_texts_on_disk_in_any_order(tmp_path: Path) -> None:
    rows = [{"query": f"q{i}", "positive": f"text number {i} ü" * (i % 7)} for i in range(5000)]
    pairs = read_pairs(str(write_jsonl(tmp_path / "p.jsonl", rows)), folder=tmp_path / "store")
    texts = [text for batch in pairs.documents.batches() for text in batch]
    assert len(texts) == len(pairs.document_ids)
    wanted = np.random.default_rng(0).integers(0, len(texts), 3000)
    assert pairs.documents.take(wanted) == [texts[i] for i in wanted]
    assert pairs.queries.select(np.array([4999, 3])).slice(0, 2) == ["q4999", "q3"]


def test_reading_does_not_keep_the_texts(tmp_path: Path) -> None:
    """80 MB of corpus, and a process that may grow by far less."""
    import subprocess
    import sys

    path = tmp_path / "corpus.jsonl"
    with open(path, "w") as f:
        for i in range(4000):
            f.write(json.dumps({"query": f"q{i}", "positive": f"{i} " + "x" * 20_000}) + "\n")
    code = (
        "import sys, resource, numpy as np\n"
        "from pathlib import Path\n"
        "from hardneg.data.read import read_pairs\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak()\n"
        "pairs = read_pairs(sys.argv[1], folder=Path(sys.argv[2]))\n"
        "count = sum(len(t) for batch in pairs.documents.batches() for t in batch)\n"
        "assert count > 80_000_000, count\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "store")], capture_output=True, text=True, check=True
    )
    # A batch of 256 texts is 5 MB here, and is held a few times over on its way to disk.
    assert float(done.stdout) < 60, f"reading 80 MB of text took {done.stdout.strip()} MB"


@pytest.mark.parametrize("count", [1, 255, 256, 257, 600])
def test_digests_cover_every_text(count: int) -> None:
    """They are what keeps vectors of other texts from being reused: the definition, computed anew."""
    texts = [f"text {i} é" for i in range(count)]
    pairs = Pairs.from_columns(["a query"] * count, texts)
    whole = b"".join(len(e).to_bytes(8, "little") + e for e in (text.encode() for text in texts))
    assert pairs.digests["documents"] == hashlib.sha256(whole).hexdigest()
    assert pairs.digests["queries"] == hashlib.sha256((7).to_bytes(8, "little") + b"a query").hexdigest()
