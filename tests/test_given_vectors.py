"""Vectors from files with ids: in any order they give the same run, or an error that names the id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hardneg
from hardneg.encoders.precomputed import open_vectors
from hardneg.errors import DataError

N, D = 40, 8


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A BEIR folder whose ids say nothing of the order."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": f"d{i * 7 % N}", "text": f"text {i}"}) + "\n" for i in range(N))
    )
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{i}", "text": f"question {i}"}) + "\n" for i in range(10))
    )
    rows = "".join(f"q{i}\td{i}\t1\n" for i in range(10))
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    return folder


def vectors(seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    documents = {f"d{i}": rng.normal(size=D).astype(np.float32) for i in range(N)}
    queries = {f"q{i}": (documents[f"d{i}"] + rng.normal(size=D) * 0.3).astype(np.float32) for i in range(10)}
    return queries, documents


def write(path: Path, table: dict[str, np.ndarray], order: list[int]) -> Path:
    names = [list(table)[i] for i in order]
    array = np.stack([table[name] for name in names])
    if path.suffix == ".npz":
        np.savez(path, ids=np.array(names), vectors=array)
    elif path.suffix == ".npy":
        np.save(path, array)
    else:
        pq.write_table(
            pa.table({"docid": names, "embedding": pa.FixedSizeListArray.from_arrays(array.ravel(), D), "x": names}),
            path,
        )
    return path


def mined(source: Path, out: Path, queries: Path, documents: Path) -> list[dict[str, Any]]:
    options = hardneg.MineOptions(
        negatives=3, depth=10, query_embeddings=str(queries), corpus_embeddings=str(documents)
    )
    return hardneg.mine(str(source), out, options, overwrite=True).negatives().to_pylist()


@pytest.mark.parametrize("kind", [".npz", ".parquet"])
def test_ten_orders_give_the_same_run(source: Path, tmp_path: Path, kind: str) -> None:
    queries, documents = vectors()
    in_order = [f"d{i * 7 % N}" for i in range(N)]
    plain = write(tmp_path / "plain.npy", {name: documents[name] for name in in_order}, list(range(N)))
    expected = mined(source, tmp_path / "run", write(tmp_path / "q.npy", queries, list(range(10))), plain)
    rng = np.random.default_rng(0)
    for _ in range(10):
        files = [
            write(tmp_path / f"{name}{kind}", table, rng.permutation(len(table)).tolist())
            for name, table in (("q", queries), ("d", documents))
        ]
        assert mined(source, tmp_path / "run", *files) == expected
    chosen = hardneg.SelectOptions(negatives=2, add_filters=("margin:relative=0.9",))
    selected = hardneg.select(tmp_path / "run", chosen, out=tmp_path / "selected")  # reads the vectors again
    assert len(selected.negatives()) == 10


def test_more_vectors_than_documents_do_not_matter(source: Path, tmp_path: Path) -> None:
    queries, documents = vectors()
    files = [write(tmp_path / f"{n}.npz", t, list(range(len(t)))) for n, t in (("q", queries), ("d", documents))]
    expected = mined(source, tmp_path / "a", *files)
    more = {"other": np.ones(D, np.float32), **documents}
    assert (
        mined(source, tmp_path / "b", files[0], write(tmp_path / "more.parquet", more, list(range(N + 1)))) == expected
    )


def test_an_id_without_a_vector_is_named(source: Path, tmp_path: Path) -> None:
    queries, documents = vectors()
    q = write(tmp_path / "q.npz", queries, list(range(10)))
    d = write(tmp_path / "d.parquet", documents, list(range(1, N)))
    with pytest.raises(
        DataError, match=r"d.parquet: no vector for 1 of 40 documents, such as 'd0'; its ids are like 'd1'"
    ):
        mined(source, tmp_path / "run", q, d)


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def lists(rows: list[Any], kind: pa.DataType | None = None) -> pa.Array:
    return pa.array(rows, pa.list_(kind or pa.float32()))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a", "a"], "v": lists([[1.0], [2.0]])}, "the id 'a' appears more than once"),
        ({"id": ["a", None], "v": lists([[1.0], [2.0]])}, "1 of 2 ids are missing"),
        ({"id": ["a", "b"], "v": lists([[1.0], [2.0, 3.0]])}, "have 1 to 2 components"),
        ({"id": ["a", "b"], "v": lists([[1.0], None])}, "1 of 2 vectors in 'v' are missing"),
        ({"id": ["a", "b"], "v": lists([[1.0], [None]])}, "1 numbers in 'v' are missing"),
        ({"id": ["a", "b"], "v": ["x", "y"]}, "expected one column of lists of floats and one of ids"),
        ({"v": lists([[1.0]])}, "expected one column of lists of floats and one of ids"),
        ({"id": [1.5], "v": lists([[1.0]])}, "the ids in 'id' are double"),
        ({"id": ["a"], "v": lists([[1]], pa.int64())}, "expected one column of lists of floats"),
    ],
)
def test_parquet_files_that_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_vectors(parquet(tmp_path / "f.parquet", **columns))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"vectors": np.ones((2, 3))}, "expected one array of floats"),
        ({"ids": np.array(["a", "b"]), "v": np.ones((3, 2))}, "2 ids for 3 vectors"),
        ({"ids": np.array(["a", "a"]), "v": np.ones((2, 2))}, "the id 'a' appears more than once"),
        ({"ids": np.array(["a", None], dtype=object), "v": np.ones((2, 2))}, "not a readable .npz file"),
        ({}, "it holds nothing"),
    ],
)
def test_npz_files_that_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(DataError, match=message):
        open_vectors(tmp_path / "f.npz")


def test_numbers_are_ids_as_they_are_written(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", ids=np.array([7, 10]), v=np.ones((2, 2), np.float16))
    given = open_vectors(tmp_path / "f.npz")
    assert given.ids.to_pylist() == ["7", "10"]
    assert given.array.dtype == np.float16
    given = open_vectors(parquet(tmp_path / "f.parquet", _id=[7, 10], v=lists([[1.0], [2.0]], pa.float64())))
    assert given.ids.to_pylist() == ["7", "10"]
    assert given.array.tolist() == [[1.0], [2.0]]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from([".npz", ".parquet"]), place=st.floats(0, 1), byte=st.integers(0, 255), cut=st.booleans())
def test_damaged_files_are_refused_or_read(tmp_path: Path, kind: str, place: float, byte: int, cut: bool) -> None:
    path = write(tmp_path / f"f{kind}", vectors()[1], list(range(N)))
    data = bytearray(path.read_bytes())
    at = int(place * (len(data) - 1))
    if cut:
        del data[at:]
    else:
        data[at] = byte
    path.write_bytes(data)
    try:
        given = open_vectors(path)
    except DataError as error:
        message = str(error)
    else:
        message = path.name if given.array.shape[0] == len(given.ids) else "another number of vectors than of ids"
    assert path.name in message


@pytest.mark.parametrize("kind", [".npy", ".npz"])
def test_vectors_in_the_order_of_the_corpus_file_go_to_its_documents(tmp_path: Path, kind: str) -> None:
    """The pairs name three documents first, in another order than the corpus file, whose vectors are given."""
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({"query": f"q{i}", "positive": f"text {i}"}) + "\n" for i in (2, 0, 1))
    )
    order = [3, 0, 1, 4, 2, 5]
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": f"d{i}", "text": f"text {i}"}) + "\n" for i in order)
    )
    queries, documents = np.eye(6, dtype=np.float32)[[2, 0, 1]], np.eye(6, dtype=np.float32)[order]
    np.save(tmp_path / "q.npy", queries)
    np.save(tmp_path / "d.npy", documents)
    read = hardneg.ReadOptions(corpus=str(tmp_path / "corpus.jsonl"))

    def run(vectors: Path) -> list[dict[str, Any]]:
        options = hardneg.MineOptions(
            negatives=2, query_embeddings=str(tmp_path / "q.npy"), corpus_embeddings=str(vectors), read=read
        )
        return (
            hardneg.mine(str(tmp_path / "pairs.jsonl"), tmp_path / "run", options, overwrite=True)
            .negatives()
            .to_pylist()
        )

    pairs = hardneg.read_pairs(str(tmp_path / "pairs.jsonl"), read)
    names = pairs.document_ids.to_pylist()
    if kind == ".npz":  # the positives have ids of their own: those of the texts that the pairs brought
        vectors = np.stack(
            [documents[order.index(int(pairs.documents.take(np.array([i]))[0][-1]))] for i in range(len(names))]
        )
        np.savez(tmp_path / "d.npz", ids=np.array(names), v=vectors)
    for row in run(tmp_path / f"d{kind}"):
        assert row["positive_scores"] == [1.0]
    np.save(tmp_path / "d.npy", documents[:5])
    with pytest.raises(
        DataError, match=r"5 vectors for 6 documents, of the pairs and of the corpus, .* of the 6 rows of the corpus"
    ):
        run(tmp_path / "d.npy")


def test_vectors_of_a_corpus_that_lacks_a_positive_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"query": "a", "positive": "x"}\n{"query": "b", "positive": "y"}\n')
    (tmp_path / "corpus.jsonl").write_text('{"text": "y"}\n{"text": "z"}\n{"text": "w"}\n')
    np.save(tmp_path / "q.npy", np.eye(4, dtype=np.float32)[:2])
    np.save(tmp_path / "d.npy", np.eye(4, dtype=np.float32)[:3])
    files = {"query_embeddings": str(tmp_path / "q.npy"), "corpus_embeddings": str(tmp_path / "d.npy")}
    read = hardneg.ReadOptions(corpus=str(tmp_path / "corpus.jsonl"))
    with pytest.raises(DataError, match=r"1 documents of the pairs are not in it, such as 'd0'"):
        hardneg.mine(
            str(tmp_path / "pairs.jsonl"), tmp_path / "run", hardneg.MineOptions(negatives=1, read=read, **files)
        )


def test_vectors_in_memory_are_in_the_order_of_the_dataset(tmp_path: Path) -> None:
    """Whoever has the dataset in memory has its documents in order, the positives first."""
    pairs = hardneg.Pairs.from_columns(["a", "b"], ["x", "y"], corpus=["z", "y", "w", "x"])
    assert pairs.documents.take(np.arange(4)) == ["x", "y", "z", "w"]
    vectors = np.eye(4, dtype=np.float32)
    run = hardneg.mine(
        pairs, tmp_path / "run", hardneg.MineOptions(negatives=1, depth=4), vectors=(vectors[:2], vectors)
    )
    assert [row["positive_scores"] for row in run.negatives().to_pylist()] == [[1.0], [1.0]]


def test_formats_of_ids_and_numbers(tmp_path: Path) -> None:
    """Categoricals, views, bytes; half floats; suffixes in capitals."""
    half = pa.array([[np.float16(1.5)], [np.float16(2)]], pa.list_(pa.float16()))
    kinds = (pa.array(["a", "b"]).dictionary_encode(), pa.array(["a", "b"], pa.large_string()), pa.array(["a", "b"]))
    for i, names in enumerate(kinds):
        given = open_vectors(parquet(tmp_path / f"{i}.PARQUET", id=names, v=half))
        assert given.ids.to_pylist() == ["a", "b"]
        assert given.array.tolist() == [[1.5], [2.0]]
        assert given.array.dtype == np.float16
    np.savez(tmp_path / "f.npz", ids=np.array([b"a", b"b"]), v=np.ones((2, 1)))
    (tmp_path / "f.npz").rename(tmp_path / "g.NPZ")
    assert open_vectors(tmp_path / "g.NPZ").ids.to_pylist() == ["a", "b"]
    np.savez(tmp_path / "f.npz", ids=np.array(["a", "\ud800"]), v=np.ones((2, 1)))
    with pytest.raises(DataError, match="the ids in 'ids' are no texts in UTF-8"):
        open_vectors(tmp_path / "f.npz")


def test_prompts_beside_vectors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(hardneg.UsageError, match="have no effect on vectors"):
        hardneg.MineOptions(query_embeddings="q.npy", corpus_embeddings="d.npy", query_prompt="x: ").validate()


def test_a_column_of_texts_is_a_sequence_for_those_who_walk_it() -> None:
    pairs = hardneg.Pairs.from_columns([f"q {i}" for i in range(30)], [f"d {i}" for i in range(30)])
    assert list(pairs.documents) == pairs.documents.slice(0, 30)
    assert len(pairs.queries) == 30
    hardneg.HashedEncoder(dimension=4).fit(pairs.documents)
