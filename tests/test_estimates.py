"""Estimates and their intervals: against formulas and by drawing; numbers that must not depend on the size of a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta

import hardneg
from hardneg.diagnostics.diagnose import diagnose, examine
from hardneg.diagnostics.estimates import Estimate
from hardneg.diagnostics.measures.diversity import diversity
from hardneg.diagnostics.measures.geometry import geometry
from hardneg.diagnostics.subject import Subject
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


@pytest.mark.parametrize("size", [1_000, 20_000, 120_000])
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
