"""Measures against ir-measures (trec_eval), and the command on a BEIR folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardneg.data.builder import Builder
from hardneg.data.options import ReadOptions
from hardneg.data.pairs import Pairs, open_pairs, save_pairs
from hardneg.data.read import read_pairs
from hardneg.encoders.hashed import HashedEncoder
from hardneg.errors import DataError, UsageError
from hardneg.evaluation.ranking import rank_measures
from hardneg.evaluation.retrieval import evaluate, evaluate_vectors
from hardneg.storage.arrays import Ragged

from .conftest import hardneg, write_jsonl

NAMES = ("ndcg@1", "ndcg@10", "map@5", "map@20", "mrr@10", "mrr@3", "recall@5", "recall@20")
THEIRS = {"ndcg": "nDCG", "map": "AP", "mrr": "RR", "recall": "R"}


@settings(max_examples=200, deadline=None)
@given(data=st.data(), graded=st.booleans())
def test_measures_equal_trec_eval(data: st.DataObject, graded: bool) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    n, size = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 40))
    found = np.stack([rng.permutation(size)[:20] for _ in range(n)])
    lengths = rng.integers(1, min(size, 15) + 1, n)
    relevant = Ragged.from_pairs(
        np.repeat(np.arange(n), lengths), np.concatenate([rng.permutation(size)[:m] for m in lengths]), n
    )
    grades = rng.integers(1, 4 if graded else 2, len(relevant.values))
    judged = zip(relevant.row_numbers(), relevant.values, grades, strict=True)
    qrels = [ir_measures.Qrel(str(i), str(d), int(grade)) for i, d, grade in judged]
    run = [ir_measures.ScoredDoc(str(i), str(d), -float(r)) for i in range(n) for r, d in enumerate(found[i])]
    asked = {name: ir_measures.parse_measure(f"{THEIRS[name.split('@')[0]]}@{name.split('@')[1]}") for name in NAMES}
    theirs = ir_measures.calc_aggregate(list(asked.values()), qrels, run)
    ours = rank_measures(found, relevant, NAMES, grades.astype(np.float64) if graded else None)
    for name in NAMES:
        assert ours[name].mean() == pytest.approx(theirs[asked[name]], abs=1e-9), name


@pytest.mark.parametrize(
    ("id", "text", "first"), [("x", "text 0", 1.0), ("another", "text 0", 0.5), ("x", "something else", 0.5)]
)
def test_the_querys_own_document_is_left_out(id: str, text: str, first: float) -> None:
    """The query lies on the first document; its positive comes next. With the query's id and text, the first is itself."""
    builder = Builder(None)
    query = builder.add_query("x", text, where="")
    for i, name in enumerate((id, "y", "z")):
        builder.add_document(name, f"text {i}", title="A title", where="")
    builder.relate(query, 1, 1)
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    found = evaluate_vectors(Pairs.from_contents(builder.finish("own")), vectors[:1], vectors, ("mrr@2", "recall@2"))
    assert found.means == {"mrr@2": first, "recall@2": 1.0}


def test_evaluating_an_encoder_is_evaluating_its_vectors(tmp_path: Path) -> None:
    texts = [f"{word} {other}" for word in ("red", "green", "blue") for other in ("cat", "dog", "bird", "fish")]
    pairs = Pairs.from_columns([f"the {text}" for text in texts], texts, corpus=["stone", "river"])
    encoder = HashedEncoder(dimension=32)
    found = evaluate(pairs, encoder, cache=tmp_path)
    documents = encoder.encode(pairs.documents.slice(0, 14))
    queries = encoder.encode(pairs.queries.slice(0, 12))
    assert replace(found, encoding=None) == evaluate_vectors(pairs, queries, documents)
    assert found.means["recall@10"] > 0.9
    assert found.queries == 12
    assert found.documents == 14
    scores = queries @ documents.T
    ranks = [int((scores[i] > scores[i, p]).sum()) + 1 for i, p in enumerate(pairs.positives.values)]
    assert found.means["mrr@10"] == pytest.approx(np.mean([1 / r if r <= 10 else 0 for r in ranks]), abs=1e-6)


def test_the_command(beir: Path) -> None:
    done = hardneg("evaluate", beir, "--split", "train", "--measure", "recall@60", "--measure", "mrr@10", "--json")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["means"]["recall@60"] == 1.0
    assert (value["queries"], value["queries_without_positives"]) == (10, 1)
    shown = hardneg("evaluate", beir, "--split", "test")
    assert shown.returncode == 0, shown.stderr
    assert "ndcg@10" in shown.stdout
    wrong = hardneg("evaluate", beir, "--measure", "precision@10")
    assert wrong.returncode == 2
    assert "unknown measure 'precision@10'" in wrong.stderr
    half = hardneg("evaluate", beir, "--query-embeddings", "x.npy")
    assert half.returncode == 2


class Lengths:
    """An encoder whose vectors differ in length, so that the metric decides what is near."""

    dimension = 2

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> np.ndarray:
        return np.array([[float(each) for each in text.split()] for text in texts], np.float32)

    def fingerprint(self) -> str:
        return "lengths"


def lengths() -> Lengths:
    return Lengths()


def test_the_metric_is_that_of_the_encoder_too(tmp_path: Path) -> None:
    """The positive (1, 0.2) of the query (1, 0) is nearest by distance only; (9, 9) wins by product, (3, 0) by angle."""
    pairs = Pairs.from_columns(["1 0"], ["1 0.2"], corpus=["9 9", "3 0"])
    found = {
        metric: evaluate(pairs, Lengths(), ("mrr@3",), metric=metric).means["mrr@3"]
        for metric in ("cosine", "ip", "l2")
    }
    assert found == {"cosine": pytest.approx(1 / 2), "ip": pytest.approx(1 / 3), "l2": 1.0}
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        "".join(
            json.dumps({"query": "1 0", "positive": "1 0.2", "negatives": [each]}) + "\n" for each in ("9 9", "3 0")
        )
    )
    args = (
        "evaluate",
        path,
        "--split",
        "train",
        "--encoder",
        f"module:{__name__}:lengths",
        "--measure",
        "mrr@3",
        "--json",
    )
    for metric, value in found.items():
        done = hardneg(*args, "--metric", metric)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["means"]["mrr@3"] == pytest.approx(value)
    wrong = hardneg(*args, "--metric", "l3")
    assert wrong.returncode == 2
    assert "unknown metric 'l3'. Did you mean 'l2'?" in wrong.stderr
    with pytest.raises(UsageError, match="encoder: 'hashed' is a spec"):
        evaluate(pairs, "hashed")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("queries", "documents", "message"),
    [
        (np.ones((1, 2)), np.ones((3, 2)), r"queries have shape \[1, 2\].*expected real numbers \[2, d\]"),
        (np.ones((2, 2)), np.ones((4, 2)), r"documents have shape \[4, 2\]"),
        (np.ones((2, 3)), np.ones((3, 2)), r"queries have shape \[2, 3\]"),
        (np.ones(2), np.ones((3, 2)), r"queries have shape \[2\]"),
        (np.ones((2, 2)) + 1j, np.ones((3, 2)), "type complex128"),
        (np.ones((2, 2)), np.ones((3, 2), bool), "documents .* type bool"),
    ],
)
def test_vectors_of_another_dataset_are_refused(queries: np.ndarray, documents: np.ndarray, message: str) -> None:
    pairs = Pairs.from_columns(["a", "b"], ["c", "d"], corpus=["e"])
    with pytest.raises(DataError, match=message):
        evaluate_vectors(pairs, queries, documents)


def test_nothing_to_find() -> None:
    pairs = Pairs.from_columns(["a"], [[]], corpus=["b"])
    with pytest.raises(DataError, match="no query of this split has a positive"):
        evaluate_vectors(pairs, np.ones((1, 2)), np.ones((1, 2)))
    with pytest.raises(UsageError, match="unknown measure"):
        evaluate_vectors(pairs, np.ones((1, 2)), np.ones((1, 2)), ("ndcg",))


def test_graded_judgements_of_a_folder(tmp_path: Path) -> None:
    """Relevances 1, 2 in that order: 0.86, as trec_eval counts gains; and ids of queries that are those of documents."""
    write_jsonl(tmp_path / "corpus.jsonl", [{"_id": str(i), "text": f"text {i}"} for i in range(3)])
    write_jsonl(tmp_path / "queries.jsonl", [{"_id": "0", "text": "a question"}])
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("0\t0\t1\n0\t1\t2\n")
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    for folder in (None, tmp_path / "kept"):
        pairs = read_pairs(str(tmp_path), ReadOptions(split="test"), folder)
        assert pairs.positive_grades is not None
        assert pairs.positive_grades.tolist() == [1.0, 2.0]
        found = evaluate_vectors(pairs, vectors[:1], vectors, ("ndcg@10",))
        assert found.means["ndcg@10"] == pytest.approx((1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3)))
    save_pairs(pairs, tmp_path / "again")
    again = open_pairs(tmp_path / "again")
    assert again.positive_grades is not None
    assert again.positive_grades.tolist() == [1.0, 2.0]
    assert again.digests == pairs.digests
