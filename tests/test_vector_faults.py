"""What vectors do to a diagnosis: their metric, one vector for many texts, long ones; and what the ends of texts tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hardneg
from hardneg.diagnostics.measures.surface import _at_longest
from hardneg.diagnostics.measures.vector_faults import _largest_group
from tests.conftest import WORDS, unit

N, D = 300, 24


def world() -> tuple[hardneg.Pairs, np.ndarray, np.ndarray]:
    """300 queries, each near to its document among 600."""
    rng = np.random.default_rng(3)
    documents = unit(rng.standard_normal((2 * N, D)))
    queries = unit(documents[:N] + 0.15 * rng.standard_normal((N, D)))
    texts = [f"{i} {' '.join(rng.choice(WORDS, 5))}" for i in range(2 * N)]
    pairs = hardneg.Pairs.from_columns([f"what is {i}" for i in range(N)], texts[:N], corpus=texts[N:])
    return pairs, queries, documents


def diagnosed(folder: Path, queries: np.ndarray, documents: np.ndarray, **more: Any) -> hardneg.Run:
    for name, array in (("q", queries), ("d", documents)):
        np.save(folder / f"{name}.npy", array.astype(np.float32))
    given = {"query_embeddings": str(folder / "q.npy"), "corpus_embeddings": str(folder / "d.npy")}
    return hardneg.mine(world()[0], folder / "run", hardneg.MineOptions(**given, depth=30, **more), force=True)


def finding(run: hardneg.Run, code: str, **more: Any) -> Any:
    return next((each for each in hardneg.diagnose(run, **more).findings if each.code == code), None)


def test_temperatures_are_those_of_the_metric(tmp_path: Path) -> None:
    """Of unit vectors the inner product is the cosine, and the negative squared distance is twice the cosine, less 2."""
    _, queries, documents = world()
    ranges = {}
    for metric in ("cosine", "ip", "l2"):
        (tmp_path / metric).mkdir()
        numbers = hardneg.diagnose(diagnosed(tmp_path / metric, queries, documents, metric=metric)).measured.numbers
        ranges[metric] = np.array([numbers["temperature_low"], numbers["temperature_high"]])
    # The steps from one tried temperature to the next are of a sixth.
    np.testing.assert_allclose(ranges["ip"], ranges["cosine"], rtol=0.2)
    np.testing.assert_allclose(ranges["l2"], 2 * ranges["cosine"], rtol=0.2)


def test_one_vector_for_many_queries_is_named(tmp_path: Path) -> None:
    _, queries, documents = world()
    clean = diagnosed(tmp_path, queries, documents)
    assert finding(clean, "one-vector") is None
    (tmp_path / "faulty").mkdir()
    same = queries.copy()
    same[np.arange(0, N, 4)] = queries[1]
    found = finding(diagnosed(tmp_path / "faulty", same, documents), "one-vector")
    assert found.severity == "error"
    assert found.value == pytest.approx((N / 4 + 1) / N)
    assert "of the queries have one and the same vector" in found.text


def test_equal_texts_may_have_one_vector() -> None:
    vectors = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    assert _largest_group(vectors, np.array([5, 5, 5, 6, 7])).tolist() == [3, 4]
    assert _largest_group(vectors, np.array([5, 5, 5, 6, 6])).tolist() == []


def test_a_hub_by_its_length_is_told_from_one_without_content(tmp_path: Path) -> None:
    _, queries, documents = world()
    longer = documents * np.exp(np.random.default_rng(0).normal(0, 0.7, (len(documents), 1)))
    found = finding(diagnosed(tmp_path, queries, longer, metric="ip"), "hub")
    assert "times as long as the median one" in found.text
    assert found.fix == "normalize the vectors, or mine with --metric cosine"
    (tmp_path / "point").mkdir()
    middle = documents.copy()
    middle[-1] = unit(queries.mean(0, keepdims=True))[0]
    leaning = unit(queries + 1.0 * middle[-1])
    found = finding(diagnosed(tmp_path / "point", leaning, middle), "hub")
    assert "long" not in found.text
    assert "has it no content" in found.fix


def test_passages_of_one_size_are_not_taken_for_texts_that_were_cut(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    long = [" ".join(rng.choice([*WORDS, "considerable", "arrangement", "afterwards"], 200)) for _ in range(100)]
    share, cut = _at_longest([each[:300] for each in long])
    assert share > 0.9
    assert cut
    windows = [" ".join(each.split()[i : i + 40]) for each in long for i in range(0, 200, 40)]
    assert _at_longest(windows) == (1.0, False)
    asked = [" ".join(rng.permutation(each.split())[:6]) for each in windows[:200]]
    pairs = hardneg.Pairs.from_columns(asked, windows[:200], corpus=windows[200:])
    found = hardneg.diagnose(hardneg.mine(pairs, tmp_path / "run", depth=20, negatives=3))
    truncated = next(each for each in found.findings if each.code == "truncated")
    assert truncated.severity == "info"
    assert found.measured.numbers["at_longest"] == 0
    assert found.measured.numbers["of_one_size"] == 1.0
