"""Features against loops over pairs; the posterior as JSON, as numpy, as torch."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hardneg.data.pairs import Pairs
from hardneg.errors import RunError, UsageError
from hardneg.false_negatives.features import FEATURES, SHARED_FEATURES, PairFeatures, Term, check_features, rises
from hardneg.false_negatives.lexical import Lexical
from hardneg.false_negatives.model import LogisticModel, Posterior, check_identity, identity
from hardneg.false_negatives.sketch import Sketch, make_sketch
from hardneg.index.exact import ExactIndex
from hardneg.mining.candidates import Candidates, Context
from hardneg.mining.filters.base import index_scores, lowest_scores

from .conftest import WORDS, unit

QUERIES, DOCUMENTS = 12, 80


@pytest.fixture(scope="module")
def world() -> tuple[Candidates, Context]:
    """Queries with no, one and several positives."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(DOCUMENTS)]
    pairs = Pairs.from_columns(
        [f"{' '.join(rng.choice(WORDS, 3))} {i}" for i in range(QUERIES)],
        [[texts[5 * i + j] for j in range(i % 4)] for i in range(QUERIES)],
        corpus=texts,
    )
    total = len(pairs.document_ids)
    vectors, queries = unit(rng.standard_normal((total, 8))), unit(rng.standard_normal((QUERIES, 8)))
    index = ExactIndex(vectors)
    found = index.search(queries, 30)
    positives = index_scores(index, queries, pairs.positives)
    documents = found.documents.copy()
    scores = found.scores.copy()
    documents[3, 25:], scores[3, 25:] = -1, -np.inf
    candidates = Candidates(np.arange(QUERIES), documents, scores, lowest_scores(positives), queries)
    context = Context(pairs, lambda: index, pairs.known_positives(), None, lambda: found.documents)
    return candidates, context


SIMPLE = [name for name in FEATURES if not name.endswith(":")]


def test_simple_features_equal_loops(world: tuple[Candidates, Context]) -> None:
    candidates, context = world
    features = PairFeatures(context)
    found = features.of(SIMPLE, candidates)
    vectors = np.asarray(context.index.documents, np.float64)
    reach = features.graph.farthest_score
    lexical = naive_tfidf(context.pairs)
    for i in range(QUERIES):
        positives = context.pairs.positives.take(np.array([i])).values
        for j, d in enumerate(candidates.documents[i].tolist()):
            if d < 0:
                assert all(found[name][i, j] == 0 for name in SIMPLE)
                continue
            score = float(candidates.vectors[i].astype(np.float64) @ vectors[d])
            positive = max((float(vectors[p] @ vectors[d]) for p in positives), default=score)
            known = [float(candidates.vectors[i].astype(np.float64) @ vectors[p]) for p in positives]
            scores = [float(s) for s in candidates.scores[i] if np.isfinite(s)]
            middle = scores[10:60] if len(scores[10:60]) > 1 else scores
            mean, deviation = float(np.mean(middle)), float(np.std(middle)) + 1e-6
            after = scores[j + 1] if j + 1 < len(scores) else scores[j]
            words = lexical(("q", i), d)
            expected = {
                "score": score,
                "positive_score": positive,
                "margin": min(known, default=float(candidates.scores[i, 0])) - score,
                "local_score_query": score - reach[d],
                "local_score_positive": positive - reach[d],
                "log_rank": math.log(j + 1),
                "score_below": score - scores[0],
                "score_z": (score - mean) / deviation,
                "score_gap": (scores[j] - after) / deviation,
                "best_score": scores[0],
                "score_mean": mean,
                "score_spread": deviation,
                "lexical_query": words,
                "lexical_positive": max((lexical(("d", p), d) for p in positives.tolist()), default=words),
            }
            for name, value in expected.items():
                assert found[name][i, j] == pytest.approx(value, abs=2e-5, rel=1e-4), name
            assert set(expected) | set(SHARED_FEATURES) == set(SIMPLE)


def naive_tfidf(pairs: Pairs) -> Any:
    def words(text: str) -> Counter[str]:
        return Counter(word for word in text.lower().split() if len(word) > 1)

    documents = [words(text) for text in pairs.documents.slice(0, len(pairs.document_ids))]
    queries = [words(text) for text in pairs.queries.slice(0, len(pairs))]
    frequency = Counter(word for text in documents for word in text)

    def vector(text: Counter[str]) -> dict[str, float]:
        weights = {
            w: (1 + math.log(n)) * (math.log((1 + len(documents)) / (1 + frequency[w])) + 1) for w, n in text.items()
        }
        length = math.sqrt(sum(v * v for v in weights.values()))
        return {w: v / length for w, v in weights.items()}

    def compare(anchor: tuple[str, int], document: int) -> float:
        a = vector((queries if anchor[0] == "q" else documents)[anchor[1]])
        b = vector(documents[document])
        return sum(v * b.get(w, 0.0) for w, v in a.items())

    return compare


def test_crowd_features_take_the_best_positive_and_fall_back(world: tuple[Candidates, Context]) -> None:
    candidates, context = world
    features = PairFeatures(context)
    found = features.of(SHARED_FEATURES, candidates)
    graph = features.graph
    (query,) = graph.similarities([graph.of_queries(candidates.documents)], candidates.documents)
    assert np.array_equal(found["shared_query"], query)
    for i in range(QUERIES):
        positives = context.pairs.positives.take(np.array([i])).values
        row = candidates.documents[i : i + 1]
        each = [graph.similarities([graph.vectors.take(np.array([p]))], row)[0][0] for p in positives]
        expected = np.max(each, axis=0) if each else query[i]
        assert np.array_equal(found["shared_positive"][i], expected)
    votes = features.votes.of(np.arange(QUERIES))
    (voted,) = graph.similarities([votes], candidates.documents)
    silent = votes.counts.max(1) == 0
    assert np.array_equal(found["shared_votes"], np.where(silent[:, None], query, voted))


def test_some_columns_are_some_of_all(world: tuple[Candidates, Context]) -> None:
    candidates, context = world
    features = PairFeatures(context)
    columns = np.random.default_rng(0).integers(-1, 30, (QUERIES, 4))
    whole, some = features.of(SIMPLE, candidates), features.of(SIMPLE, candidates, columns)
    for name in SIMPLE:
        expected = np.where(columns >= 0, np.take_along_axis(whole[name], np.maximum(columns, 0), 1), 0)
        np.testing.assert_array_equal(some[name], expected, err_msg=name)


def test_features_of_a_block_do_not_depend_on_the_block(world: tuple[Candidates, Context]) -> None:
    candidates, context = world
    features = PairFeatures(context)
    whole = features.of(SIMPLE, candidates)
    for rows in (np.array([0]), np.array([7, 3]), np.arange(QUERIES)[::-1]):
        part = features.of(SIMPLE, candidates.rows(rows))
        for name in SIMPLE:
            assert part[name].tobytes() == whole[name][rows].tobytes(), name


def test_guide_features(world: tuple[Candidates, Context]) -> None:
    candidates, context = world
    rng = np.random.default_rng(1)
    queries, documents = unit(rng.standard_normal((QUERIES, 5))), unit(rng.standard_normal((DOCUMENTS, 5)))
    guided = Context(context.pairs, context.open_index, context.known, lambda model: (queries, ExactIndex(documents)))
    found = PairFeatures(guided).of(["guide:st:x"], candidates)["guide:st:x"]
    for i in (0, 3, 11):
        real = candidates.documents[i] >= 0
        np.testing.assert_allclose(found[i][real], documents[candidates.documents[i][real]] @ queries[i], atol=1e-6)
    with pytest.raises(UsageError, match="needs the texts"):
        PairFeatures(context).of(["guide:st:x"], candidates)


def test_votes_need_all_queries(world: tuple[Candidates, Context]) -> None:
    candidates, context = world
    alone = Context(context.pairs, context.open_index, context.known)
    with pytest.raises(UsageError, match="find_nearest"):
        PairFeatures(alone).of(SHARED_FEATURES, candidates)


def test_lexical_of_empty_texts() -> None:
    pairs = Pairs.from_columns(["red fish", "..."], ["a fish", "..."], corpus=["red fish", "tree"])
    found = Lexical(pairs).with_queries(np.arange(2), np.array([[1, 2, 3], [0, 1, -1]]))
    assert np.isfinite(found).all()
    assert found[1].tolist() == [0, 0, 0]


def test_terms_are_features_and_hinges() -> None:
    values = {"score": np.float32([0.2, 0.7]), "log_rank": np.float32([0.0, 3.0])}
    np.testing.assert_allclose(Term.parse("score>0.5").of(values), [0.0, 0.2], atol=1e-7)
    np.testing.assert_allclose(Term.parse("log_rank<2.3").of(values), [2.3, 0.0], atol=1e-6)
    assert torch.equal(Term.parse("score>0.5").of({"score": torch.tensor([0.25, 0.75])}), torch.tensor([0.0, 0.25]))
    for name in (
        "score",
        "score>0.5",
        "log_rank<2.302585",
        "score_z>-1e-07",
        "guide:st:a>b",
        "local_score_query>-0.25",
    ):
        assert str(Term.parse(name)) == name
    directions = {"score": 1, "score>0.5": 1, "log_rank": -1, "log_rank<2": 1, "best_score": 0, "margin<0": 1}
    assert {name: Term.parse(name).direction for name in directions} == directions
    for wrong, message in (
        ("score>x", "no number"),
        ("score>nan", "no number"),
        ("scores>1", "unknown feature 'scores'"),
    ):
        with pytest.raises(UsageError, match=message):
            Term.parse(wrong)


def test_a_posterior_with_hinges_is_saved_and_read(tmp_path: Path) -> None:
    in_loss = LogisticModel(("shared_query",), (2.0,), -1.0)
    made = Posterior(("score", "score>0.5"), (1.0, 2.0), -1.0, 0.2, "known positives", in_loss=in_loss)
    made.save(tmp_path / "p.json")
    read = Posterior.load(tmp_path / "p.json")
    assert read == made
    assert read.in_loss == in_loss
    assert read.needed == ("score",)
    value = {"score": np.float32([0.75])}
    assert read.probability(value)[0] == pytest.approx(1 / (1 + math.exp(1 - 0.75 - 0.5)))


def test_weights_that_overflow_are_no_probability() -> None:
    made = Posterior(("score<1e308", "score<1.1e308"), (1e308, -1e308), 0.0, 0.2, "judgements")
    with pytest.raises(RunError, match="overflow"):
        made.probability({"score": np.float32([0.5])})


def test_a_posterior_of_the_first_schema_is_still_read(tmp_path: Path) -> None:
    old = {**POSTERIOR.to_json(), "schema_version": 1}
    del old["in_loss"]
    (tmp_path / "p.json").write_text(json.dumps(old))
    assert Posterior.load(tmp_path / "p.json") == POSTERIOR


@pytest.mark.parametrize(
    "in_loss",
    [
        3,
        {},
        {"features": {}, "intercept": 0},
        {"features": {"x": 1}, "intercept": 0},
        {"features": {"score": 1}, "intercept": "a"},
    ],
)
def test_a_damaged_model_of_the_loss(tmp_path: Path, in_loss: Any) -> None:
    (tmp_path / "p.json").write_text(json.dumps({**POSTERIOR.to_json(), "in_loss": in_loss}))
    with pytest.raises(RunError, match="damaged"):
        Posterior.load(tmp_path / "p.json")


def test_names() -> None:
    check_features(["score", "guide:st:x", "cross-encoder:y"])
    for wrong in ("scores", "guide:", "guide", "guided:x"):
        with pytest.raises(UsageError, match="unknown feature"):
            check_features([wrong])
    assert rises("shared_query")
    assert rises("guide:st:x")
    assert not rises("margin")


POSTERIOR = Posterior(
    SHARED_FEATURES, (1.0, 2.0, 3.0), -3.0, 0.25, "known positives", {"encoder": "ab" * 32}, {"n": 1}, None
)


def test_posterior_survives_json(tmp_path: Path) -> None:
    POSTERIOR.save(tmp_path / "p.json")
    assert Posterior.load(tmp_path / "p.json") == POSTERIOR
    values = {name: np.linspace(-9, 9, 5, dtype=np.float32) for name in SHARED_FEATURES}
    expected = 1 / (1 + np.exp(3 - 6 * np.linspace(-9, 9, 5)))
    np.testing.assert_allclose(POSTERIOR.probability(values), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "x"}, "is no posterior"),
        ({"schema_version": 3}, "schema version 3"),
        ({"features": {"shared_query": "x"}}, "damaged"),
        ({"features": {"nonsense": 1.0}}, "damaged"),
        ({"features": {}}, "damaged"),
        ({"intercept": None}, "damaged"),
        ({"threshold": 1.5}, "damaged"),
        ({"intercept": 1e999}, "damaged"),
        ({"source": "a guess"}, "damaged"),
        ({"fingerprints": 3}, "damaged"),
    ],
)
def test_bad_posterior_files(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({**POSTERIOR.to_json(), **change}))
    with pytest.raises(RunError, match=message) as error:
        Posterior.load(path)
    assert str(path) in str(error.value)
    with pytest.raises(RunError, match="does not exist"):
        Posterior.load(tmp_path / "none.json")


def test_a_posterior_belongs_to_its_encoder() -> None:
    check_identity(POSTERIOR, {"encoder": "ab" * 32, "source": "x"}, "p.json")
    with pytest.raises(RunError, match="learned with another encoder .*abababababab then, cdcdcdcdcdcd now.*--force"):
        check_identity(POSTERIOR, {"encoder": "cd" * 32}, "p.json")
    check_identity(POSTERIOR, {"encoder": "cd" * 32}, "p.json", force=True)
    given = {"encoder": None, "query_embeddings": "1", "corpus_embeddings": "2"}
    assert identity(given) == {"query_embeddings": "1", "corpus_embeddings": "2"}


def test_probabilities_as_soft_weights_in_a_loss() -> None:
    """The same posterior on torch tensors, with gradients: each negative weighs 1 - p."""
    values = {
        name: torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3).requires_grad_() for name in SHARED_FEATURES
    }
    probability = torch.sigmoid(POSTERIOR.logit(values))
    plain = {name: value.detach().numpy().astype(np.float32) for name, value in values.items()}
    np.testing.assert_allclose(probability.detach().numpy(), POSTERIOR.probability(plain), atol=1e-6)
    positive, negative = (
        torch.tensor([0.9, 0.8]) / 0.05,
        torch.rand(2, 3, generator=torch.Generator().manual_seed(0)) / 0.05,
    )
    weighted = torch.logsumexp(torch.cat([positive[:, None], negative + torch.log1p(-probability)], 1), 1) - positive
    naive = [
        math.log1p(sum((1 - p) * math.exp(n - s) for p, n in zip(ps, ns, strict=True)))
        for ps, ns, s in zip(probability.tolist(), negative.tolist(), positive.tolist(), strict=True)
    ]
    np.testing.assert_allclose(weighted.detach().numpy(), naive, rtol=1e-6)
    weighted.sum().backward()
    assert torch.isfinite(values["shared_query"].grad).all()


def test_sketches_approach_the_posterior(world: tuple[Candidates, Context]) -> None:
    candidates, context = world
    exact = POSTERIOR.probability(PairFeatures(context).of(SHARED_FEATURES, candidates))
    one = np.flatnonzero(context.pairs.positives.lengths <= 1)  # of several positives a sketch knows the mean only
    errors = []
    for components in (64, 4096):
        sketch = make_sketch(POSTERIOR, context, components)
        rows, documents = torch.arange(QUERIES), torch.from_numpy(np.maximum(candidates.documents, 0).astype(np.int64))
        found = sketch.probability(rows, documents)
        every = sketch.probability(rows, torch.arange(DOCUMENTS))
        np.testing.assert_allclose(found, torch.gather(every, 1, documents), atol=1e-6)
        gap = np.abs(found.numpy() - exact)[one][candidates.documents[one] >= 0]
        errors.append(float(gap.mean()))
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 3
    assert torch.equal(make_sketch(POSTERIOR, context, 4096).queries, sketch.queries)
    half = sketch.to("cpu", torch.float16)
    np.testing.assert_allclose(half.probability(rows, documents), found, atol=0.01)


def test_a_sketch_of_several_positives_lies_between_them(world: tuple[Candidates, Context]) -> None:
    _, context = world
    only = Posterior(("shared_positive",), (1.0,), 0.0, 0.5, "groups")
    features = PairFeatures(context)
    sketch = make_sketch(only, context, 4096)
    for i in np.flatnonzero(context.pairs.positives.lengths > 1):
        positives = context.pairs.positives.take(np.array([i])).values
        row = np.arange(DOCUMENTS)[None]
        each = [features.graph.similarities([features.graph.vectors.take(np.array([p]))], row)[0][0] for p in positives]
        found = sketch.logit(torch.tensor([i]), torch.arange(DOCUMENTS))[0].numpy()
        assert (found > np.min(each, axis=0) - 0.05).all()


def test_a_sketch_suspects_no_more_than_the_posterior_expects(world: tuple[Candidates, Context]) -> None:
    """Of all pairs: of those above 0.2, the sum of P(relevant) is what the report says at most. Lower by an eighth at a time."""
    _, context = world
    eager = Posterior(SHARED_FEATURES, (4.0, 4.0, 4.0), -1.0, 0.5, "known positives")
    everything = make_sketch(eager, context)

    def suspected(sketch: Sketch) -> float:
        p = sketch.probability(torch.arange(QUERIES), torch.arange(DOCUMENTS)).double()
        return float(torch.where(p > 0.2, p, 0).sum()) / QUERIES

    free = suspected(everything)
    for found, outside, level in ((2.0, 0.5, None), (0.2, 0.0, None), (0.5, 0.1, 1.0), (free, 1.0, None)):
        report: dict[str, Any] = {"relevant_per_query_range": [0.1, found], "relevant_not_found": outside}
        if level is not None:
            report["level"] = {"slope": 1.0, "shift": level}
        limit = (found + outside) * np.exp(level or 0.0)
        sketch = make_sketch(replace(eager, report=report), context)
        assert suspected(sketch) <= limit
        if sketch.intercept != everything.intercept:
            assert limit < suspected(replace(sketch, intercept=sketch.intercept + 0.125)) <= free
        assert (sketch.intercept == everything.intercept) == (found == free)
        assert torch.equal(sketch.queries, everything.queries)
    for odd in ({}, {"relevant_per_query_range": [1.0, "x"], "relevant_not_found": 0}, {"relevant_per_query_range": 3}):
        assert make_sketch(replace(eager, report=odd), context).intercept == everything.intercept


def test_what_cannot_be_sketched(world: tuple[Candidates, Context]) -> None:
    _, context = world
    with pytest.raises(UsageError, match="margin is no inner product"):
        make_sketch(Posterior(("shared_query", "margin"), (1.0, 1.0), 0.0, 0.5, "groups"), context)
    with pytest.raises(UsageError, match="components=0"):
        make_sketch(POSTERIOR, context, 0)
