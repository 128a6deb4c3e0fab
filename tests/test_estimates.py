"""Estimates and their intervals: against formulas and by drawing; numbers that must not depend on the size of a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import beta

import hardneg
from hardneg.data.id_rows import IdRows
from hardneg.diagnostics.diagnose import diagnose, examine
from hardneg.diagnostics.estimates import Estimate
from hardneg.diagnostics.measures.diversity import diversity
from hardneg.diagnostics.measures.geometry import geometry
from hardneg.diagnostics.measures.nearest import near_others
from hardneg.diagnostics.measures.words import area_under_curve, cross_validated_auc, fit_logistic
from hardneg.diagnostics.subject import Subject
from hardneg.errors import DataError
from hardneg.false_negatives.calibrate import calibrate
from hardneg.false_negatives.model import MISFIT
from hardneg.mining.mine import mine
from hardneg.mining.options import MineOptions

from .conftest import unit


@pytest.mark.parametrize(("found", "count"), [(0, 50), (1, 50), (25, 50), (50, 50), (3, 7), (0, 1)])
def test_intervals_of_shares_are_wilsons(found: int, count: int) -> None:
    """Near the exact interval (Clopper and Pearson), and never of no width."""
    values = np.arange(count) < found
    estimate = Estimate.share_of(values)
    z, p = 1.959964, found / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(p * (1 - p) / count + z * z / (4 * count**2))
    assert (estimate.low, estimate.high) == pytest.approx((max(middle - half, 0), min(middle + half, 1)), abs=1e-9)
    exact = beta.ppf([0.025, 0.975], [max(found, 1e-9), found + 1], [count - found + 1, max(count - found, 1e-9)])
    assert np.abs(np.array([estimate.low, estimate.high]) - exact).max() < (0.25 if count < 10 else 0.04)
    assert estimate.low <= p <= estimate.high
    assert estimate.high - estimate.low > 0.01


@pytest.mark.parametrize("rate", [0.01, 0.2])
@pytest.mark.parametrize("each", [1, 7])
def test_intervals_hold_the_truth_as_often_as_they_say(rate: float, each: int) -> None:
    """Shares of queries with one or seven negatives, whose chances differ from query to query."""
    rng, held, draws = np.random.default_rng(0), 0, 2000
    for _ in range(draws):
        chance = rng.beta(0.5, 0.5 / rate * (1 - rate), 200)
        estimate = Estimate.share_of(rng.binomial(each, chance) / each)
        held += estimate.low <= rate <= estimate.high
    assert held / draws > 0.92


def test_a_whole_population_has_no_interval_and_a_single_value_no_end() -> None:
    assert Estimate.share_of(np.array([0.0, 1.0]), total=2) == Estimate(0.5, 0.5, 0.5, 2)
    half = Estimate.share_of(np.arange(100) < 50, total=200)
    alone = Estimate.share_of(np.arange(100) < 50)
    assert half.high - half.low < alone.high - alone.low
    assert Estimate.mean_of(np.array([3.0])).high == np.inf
    assert np.isnan(Estimate.share_of(np.array([np.nan])).value)


def subject_of(vectors: np.ndarray, queries: int = 20) -> Subject:
    """The nearest three documents of a few queries."""
    pairs = hardneg.Pairs.from_columns(
        [f"query {i}" for i in range(queries)], [f"text {i}" for i in range(queries)],
        corpus=[f"text {i}" for i in range(queries, len(vectors))],
    )  # fmt: skip
    documents = np.tile(np.arange(3, dtype=np.int32), (queries, 1))
    scores = np.full((queries, 3), 0.5, np.float32)
    recall = {"measured": 1.0, "k": 3, "queries": 0}
    info = {
        "counts": {"verdicts": {}},
        "config": {"metric": "cosine"},
        "resolved": {"index": "exact", "depth": 100, "recall": recall},
    }
    return Subject(
        "made",
        pairs,
        documents,
        scores,
        documents + 1,
        None,
        np.full(queries, 0.6, np.float32),
        3,
        (vectors[:queries], vectors),
        info,
    )


@pytest.mark.parametrize("size", [1_000, 20_000, pytest.param(120_000, marks=pytest.mark.slow)])
def test_copies_are_found_whatever_the_size_of_the_corpus(size: int) -> None:
    """A quarter of the documents have a copy, somewhere."""
    rng = np.random.default_rng(0)
    vectors = unit(rng.standard_normal((size, 16))).astype(np.float16)
    copies = rng.permutation(size)[: size // 4 // 2 * 2].reshape(2, -1)
    vectors[copies[1]] = vectors[copies[0]]
    subject = subject_of(vectors)
    estimate = diversity(subject, np.random.default_rng(1)).numbers["corpus_near_duplicates"]
    by_chance = 0.02 if size < 50_000 else 0.1  # in 16 dimensions, strangers may be that near
    assert 0.25 - 0.06 < estimate.value < 0.25 + 0.06 + by_chance
    assert estimate.low <= 0.25 + by_chance


def test_few_documents_are_no_collapse() -> None:
    """30 random documents in 384 dimensions use as many directions as 30 documents can."""
    rng = np.random.default_rng(0)
    few = subject_of(unit(rng.standard_normal((30, 384))))
    numbers = geometry(few, rng).numbers
    assert numbers["rank_share"] > 0.9
    assert not [each for each in examine(few).findings if each.code == "collapse"]
    flat = unit(rng.standard_normal((30, 384)) * 0.01 + rng.standard_normal(384))
    assert [each for each in examine(subject_of(flat)).findings if each.code == "collapse"]


def test_a_temperature_beyond_its_own_interval_is_said() -> None:
    rng = np.random.default_rng(0)
    subject = subject_of(unit(rng.standard_normal((200, 16))))
    subject.scores[:] = [0.7, 0.6, 0.5]
    high = float(examine(subject).measured.numbers["temperature_high"])
    assert not [each for each in examine(subject, temperature=high).findings if each.code == "temperature-high"]
    found = [each for each in examine(subject, temperature=10 * high).findings if each.code == "temperature-high"]
    assert len(found) == 1
    assert "10.0 times the highest" in found[0].text


class Lookup:
    """An encoder that knows the vector of each text."""

    dimension = 12

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        self.vectors = vectors

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> np.ndarray:
        return np.stack([self.vectors[text] for text in texts]).astype(np.float32)

    def fingerprint(self) -> str:
        return "lookup"


def test_the_interval_of_the_false_share_holds_the_posteriors_own_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((20, 12))
    asked, topics = np.arange(400) % 20, np.arange(600) % 20
    queries = unit(centres[asked] + 0.7 * rng.standard_normal((400, 12)))
    documents = unit(centres[topics] + 0.7 * rng.standard_normal((600, 12)))
    texts = [f"document {i}" for i in range(600)]
    positives = [texts[rng.choice(np.flatnonzero(topics == each))] for each in asked]
    pairs = hardneg.Pairs.from_columns([f"query {i}" for i in range(400)], positives, corpus=texts)
    vectors = dict(zip([f"query {i}" for i in range(400)], queries, strict=True)) | dict(
        zip(texts, documents, strict=True)
    )
    mine(pairs, tmp_path / "run", MineOptions(depth=60), encoder=Lookup(vectors))
    posterior = calibrate(tmp_path / "run")
    posterior.save(tmp_path / "p.json")
    run = hardneg.Run(tmp_path / "run").select(tmp_path / "chosen", add_filters=(f"posterior:{tmp_path / 'p.json'}",))
    share = diagnose(run).measured.numbers["false_share"]
    said = posterior.report["expected_range"]
    assert share.value == pytest.approx(posterior.report["expected"], rel=0.05)
    assert (share.low, share.high) == pytest.approx(said, rel=0.1)
    assert share.high / share.low > MISFIT
    (tmp_path / "p.json").unlink()
    alone = diagnose(run).measured.numbers["false_share"]
    assert alone.high - alone.low < share.high - share.low


@pytest.mark.parametrize(("size", "dimension"), [(1, 8), (300, 16), (9_000, 200)])
@pytest.mark.parametrize("kind", ["spread", "copies", "collapsed"])
def test_near_others_are_those_of_a_naive_search(size: int, dimension: int, kind: str) -> None:
    """With few and with many components, few near ones and a space in which all are near; zero vectors are left out."""
    rng = np.random.default_rng(size)
    vectors = rng.standard_normal((size, dimension)).astype(np.float32)
    if kind == "copies":
        vectors[size // 2 :] = vectors[: size - size // 2] * 3 + 0.05 * rng.standard_normal((size - size // 2, 1))
    if kind == "collapsed":
        vectors = vectors * 0.05 + 1
    vectors[size // 3 :: 50] *= 0 if size > 1 else 1
    rows, others, count = near_others(vectors.astype(np.float16), "corpus", 0.95, 3, np.random.default_rng(1))
    lengths = np.linalg.norm(vectors.astype(np.float16).astype(np.float64), axis=1)
    assert count == int((lengths > 0).sum())
    assert (lengths[rows] > 0).all()
    assert len(rows) == (0 if size == 1 else len(np.unique(rows)))
    exact = vectors.astype(np.float16).astype(np.float64) / np.maximum(lengths, 1e-9)[:, None]
    for row, found in zip(rows[:200], others, strict=False):
        cosines = exact @ exact[row]
        cosines[row] = -1
        found = found[found >= 0]
        expected = np.sort(cosines[cosines > 0.95 + 1e-5])[::-1][:3]
        assert row not in found
        assert len(expected) <= len(found) <= 3
        assert cosines[found][: len(expected)] == pytest.approx(expected, abs=2e-6)
        assert (cosines[found] > 0.95 - 1e-5).all()


def test_vectors_that_are_no_numbers_are_named() -> None:
    vectors = np.random.default_rng(0).standard_normal((900, 16)).astype(np.float32)
    vectors[700, 3] = np.nan
    with pytest.raises(DataError, match=r"1 of 900 corpus vectors hold NaN.*rows 700"):
        near_others(vectors, "corpus", 0.95, 1, np.random.default_rng(0))


def test_the_regression_on_words_is_that_of_liblinear() -> None:
    """The same weights for dense and sparse tables, and the same area under the curve."""
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    table = (rng.random((400, 60)) < 0.1).astype(np.float64)
    kinds = (rng.random(400) < 0.3 + 0.4 * table[:, 0]).astype(int)
    known = LogisticRegression(solver="liblinear", random_state=0, tol=1e-8).fit(table, kinds)
    for each in (table, sparse.csr_matrix(table)):
        weights, intercept = fit_logistic(each, kinds)
        assert weights == pytest.approx(known.coef_[0], abs=0.01)
        assert intercept == pytest.approx(known.intercept_[0], abs=0.01)
    scores = np.round(table @ known.coef_[0], 1)  # with ties
    assert area_under_curve(scores, kinds) == pytest.approx(roc_auc_score(kinds, scores))
    assert cross_validated_auc(table, kinds, np.arange(400)) < area_under_curve(table @ known.coef_[0], kinds)
    assert cross_validated_auc(table, kinds, np.zeros(400, int)) == 0.5  # one document is never learned from


def test_a_column_that_repeats_ids_finds_the_same_rows() -> None:
    ids = IdRows(pa.array([f"d{i}" for i in range(50)], pa.large_string()))
    wanted = [None if i % 17 == 0 else f"d{i * 7 % 60}" for i in range(900)]
    expected = [-1 if each is None or int(each[1:]) >= 50 else int(each[1:]) for each in wanted]
    column = pa.array(wanted, pa.string())
    for given in (column, column.cast(pa.large_string()), column.dictionary_encode(), column[1:], column[:3]):
        at = 1 if len(given) == 899 else 0
        assert ids.of(given).tolist() == expected[at : at + len(given)]
    strangers = pa.array([f"x{i}" for i in range(900)], pa.string())
    assert ids.of(strangers).tolist() == [-1] * 900
