"""Filters against naive loops, their composition, and their specs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hardneg
import hardneg.mining.filters as f
from hardneg.data.pairs import Pairs
from hardneg.data.texts import fold
from hardneg.errors import UsageError
from hardneg.false_negatives.features import SHARED_FEATURES, PairFeatures
from hardneg.false_negatives.filters import LearnedPosterior, SharedNeighbors
from hardneg.index.exact import ExactIndex
from hardneg.mining.candidates import Candidates, Context
from hardneg.mining.filters.base import index_scores, lowest_scores
from hardneg.mining.filters.limits import below_margin
from hardneg.mining.specs import parse_filter, parse_filters, parse_sampler
from hardneg.storage.arrays import Ragged, members

from .conftest import unit


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_members_equals_sets(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 8))
    sets = [data.draw(st.lists(st.integers(0, 30), max_size=data.draw(st.sampled_from([3, 25])))) for _ in range(rows)]
    values = data.draw(st.lists(st.lists(st.integers(-1, 31), min_size=6, max_size=6), min_size=rows, max_size=rows))
    numbers = [(i, v) for i, s in enumerate(sets) for v in s]
    r, v = (np.array([pair[k] for pair in numbers], np.int64) for k in (0, 1))
    ragged = Ragged.from_pairs(r, v, rows)
    assert [sorted(set(s)) for s in sets] == [ragged.take(np.array([i])).values.tolist() for i in range(rows)]
    found = members(np.array(values), ragged)
    assert found.tolist() == [[x in s for x in row] for row, s in zip(values, sets, strict=True)]


@settings(max_examples=200, deadline=None)
@given(
    s=st.floats(-1, 1, width=32),
    p=st.floats(-1, 1, width=32),
    absolute=st.none() | st.floats(0, 1, width=32),
    relative=st.none() | st.floats(0, 1, width=32),
)
def test_margin(s: float, p: float, absolute: float | None, relative: float | None) -> None:
    kept = bool(below_margin(np.array([[s]], np.float32), np.array([[p]], np.float32), absolute, relative)[0, 0])
    limits = [np.float32(p) - np.float32(absolute)] if absolute is not None else []
    limits += [np.float32(p) - abs(np.float32(p)) * np.float32(relative)] if relative is not None else []
    assert kept == all(np.float32(s) <= limit for limit in limits)
    if kept and (absolute is not None or relative is not None):
        assert s <= p  # whatever the sign of p, nothing that scores above the positive stays


def test_margin_without_a_positive_rejects_nothing() -> None:
    assert below_margin(np.ones((1, 3), np.float32), np.full((1, 1), np.nan, np.float32), 0.5, 0.5).all()


TEXTS = ["Red", " red ", "ＲＥＤ", "red\tfish", "blue", "Straße", "STRASSE", "", "green", "the red query"]
QUERY = "the RED  query"


@pytest.fixture
def world() -> tuple[Candidates, Context]:
    """One query; its positive is document 0; candidates are all documents, nearest first."""
    rng = np.random.default_rng(0)
    pairs = Pairs.from_columns(
        [QUERY, "other"],
        [TEXTS[0], TEXTS[5]],
        corpus=TEXTS,
        groups=["g", "h"],
    )
    assert pairs.documents.slice(0, 2) == ["Red", "Straße"]
    vectors = unit(rng.standard_normal((len(pairs.document_ids), 8)))
    index = ExactIndex(vectors)
    queries = unit(rng.standard_normal((2, 8)))
    found = index.search(queries, len(vectors))
    positive = index_scores(index, queries, pairs.positives)
    candidates = Candidates(np.arange(2), found.documents, found.scores, lowest_scores(positive), queries)
    return candidates, Context(pairs, lambda: index, pairs.known_positives())


def rejected(world: tuple[Candidates, Context], one: f.Filter, query: int = 0) -> set[str]:
    candidates, context = world
    texts = context.pairs.documents.slice(0, len(context.pairs.document_ids))
    keep = one.keep(candidates, context, candidates.real)
    return {texts[d] for d, k in zip(candidates.documents[query], keep[query], strict=True) if not k}


def test_known_duplicate_empty_group(world: tuple[Candidates, Context]) -> None:
    assert rejected(world, f.Known()) == {"Red"}
    assert rejected(world, f.Duplicate()) == {"Red", " red ", "ＲＥＤ", "the red query"}
    assert rejected(world, f.Duplicate(), 1) == {"Straße", "STRASSE"}
    assert rejected(world, f.Empty()) == {""}
    assert rejected(world, f.Group()) == {"Red"}


def test_near_duplicates(world: tuple[Candidates, Context]) -> None:
    candidates, context = world
    vectors = np.asarray(context.index.documents)
    near = 0.4
    texts = context.pairs.documents.slice(0, len(vectors))
    expected = {
        texts[d]
        for d in range(len(vectors))
        if vectors[d] @ vectors[0] >= near or vectors[d] @ candidates.vectors[0] >= near
    }
    assert rejected(world, f.Duplicate(near=near)) == expected
    assert "Red" in expected


def test_distinct_keeps_the_nearest_copy(world: tuple[Candidates, Context]) -> None:
    candidates, context = world
    texts = context.pairs.documents.slice(0, len(context.pairs.document_ids))
    seen: set[str] = set()
    expected = []
    for d in candidates.documents[0]:
        folded = fold(texts[d])
        expected.append(folded not in seen or folded == "")
        seen.add(folded)
    assert f.Distinct().keep(candidates, context, candidates.real)[0].tolist() == expected
    assert not all(expected)


def test_rank_and_score(world: tuple[Candidates, Context]) -> None:
    candidates, context = world
    keep = f.Rank(min=3, max=5).keep(candidates, context, candidates.real)
    assert np.flatnonzero(keep[0]).tolist() == [2, 3, 4]
    keep = f.Rank(min=3).keep(candidates, context, candidates.real)
    assert (keep == (np.arange(candidates.documents.shape[1]) >= 2)).all()
    assert keep.shape == candidates.documents.shape
    keep = f.Score(min=-0.1, max=0.3).keep(candidates, context, candidates.real)
    assert keep.tolist() == ((candidates.scores >= np.float32(-0.1)) & (candidates.scores <= np.float32(0.3))).tolist()


def test_crowd_compares_the_mean_of_three_cosines(world: tuple[Candidates, Context]) -> None:
    candidates, context = world
    context.find_nearest = lambda: candidates.documents
    found = PairFeatures(context).of(SHARED_FEATURES, candidates)
    mean = sum(found.values()) / np.float32(3)
    one = SharedNeighbors(max=float(np.median(mean)))
    assert (one.keep(candidates, context, candidates.real) == (mean <= np.float32(one.max))).all()


def test_chain_writes_the_first_verdict(world: tuple[Candidates, Context]) -> None:
    candidates, context = world
    chain = f.Known() & f.Duplicate() & f.Rank(max=4) & f.Rank(min=2)
    assert chain.names == ["kept", "known", "duplicate", "rank", "rank#2"]
    verdicts = chain.verdicts(candidates, context)
    alive = np.ones(candidates.documents.shape, bool)
    for code, one in enumerate(chain.filters, 1):
        no = alive & ~one.keep(candidates, context, alive)
        assert (verdicts[no] == code).all()
        alive &= ~no
    assert (verdicts[alive] == 0).all()


def test_which_filters_guess() -> None:
    """A judgement outweighs a guess, and nothing else: a copy stays a copy, however it was judged."""
    sure = [f.Known(), f.Empty(), f.Duplicate(), f.Distinct()]
    guesses = [f.Group(), f.Rank(), f.Score(), f.Margin(relative=0.1)]
    assert not any(one.guesses for one in sure)
    assert all(one.guesses for one in guesses)


@pytest.mark.parametrize("count", [101, 102, 200])
def test_a_chain_holds_what_verdicts_can_count(count: int) -> None:
    assert len(f.Chain([f.Rank()] * 100).names) == 101
    with pytest.raises(UsageError, match=f"{count} filters are too many"):
        f.Chain([f.Rank()] * count)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (np.ones((2, 3), bool), r"an array of bool of shape \(2, 3\)"),
        (np.ones((2, 10), np.int64), "an array of int64"),
        (None, "None"),
        ([True], "a list"),
    ],
)
def test_what_a_filter_answers_is_checked(world: tuple[Candidates, Context], answer: Any, words: str) -> None:
    class Odd(f.Rank):
        name = "odd"

        def keep(self, candidates: Candidates, context: Context, alive: Any) -> Any:
            return answer

        def more_may_pass(self, candidates: Candidates) -> Any:
            return answer

    candidates, context = world
    assert candidates.documents.shape == (2, 10)
    with pytest.raises(UsageError, match=f"the filter 'odd': its keep must return .*, but it returned {words}"):
        f.Chain([Odd()]).verdicts(candidates, context)
    with pytest.raises(UsageError, match=f"its more_may_pass must return .*, but it returned {words}"):
        f.Chain([Odd()]).more_may_pass(candidates)


def test_judged_negatives_are_exempt_from_guesses_only() -> None:
    class RejectAll(f.Rank):
        def keep(self, candidates: Candidates, context: Context, alive: Any) -> Any:
            return np.zeros(candidates.documents.shape, bool)

    class RejectAllSurely(RejectAll):
        guesses = False

    from hardneg.data.builder import Builder

    builder = Builder(None)
    q = builder.add_query("q", "q", where="")
    for i in range(4):
        d = builder.add_document(f"d{i}", f"d{i}", where="")
        if i < 2:
            builder.relate(q, d, 1 - i)
    pairs = Pairs.from_contents(builder.finish("x"))
    candidates = Candidates(
        np.array([0]),
        np.arange(4, dtype=np.int32)[None],
        np.zeros((1, 4), np.float32),
        np.zeros(1, np.float32),
        np.zeros((1, 2), np.float32),
    )
    context = Context(pairs, lambda: ExactIndex(np.eye(4, dtype=np.float32)), pairs.known_positives())
    assert f.Chain([f.Known(), RejectAll()]).verdicts(candidates, context).tolist() == [[1, 0, 2, 2]]
    assert f.Chain([f.Known(), RejectAllSurely()]).verdicts(candidates, context).tolist() == [[1, 2, 2, 2]]


def test_more_may_pass(world: tuple[Candidates, Context]) -> None:
    candidates, _ = world
    assert not f.Rank(max=5).more_may_pass(candidates).any()
    assert f.Rank(max=500).more_may_pass(candidates).all()
    last = candidates.scores[:, -1]
    assert not f.Score(min=float(last.max()) + 0.1).more_may_pass(candidates).any()
    assert f.Score(min=-2.0).more_may_pass(candidates).all()
    assert f.Margin(relative=0.05).more_may_pass(candidates).all()


def test_titles_do_not_hide_duplicates() -> None:
    from hardneg.data.builder import Builder

    builder = Builder(None)
    q = builder.add_query("q", "to be or not", where="")
    for i, (title, text) in enumerate([("A", "body"), ("B", "body"), ("C", "to be or not"), ("D", ""), ("E", "")]):
        builder.add_document(f"d{i}", text, title=title, where="")
    builder.relate(q, 0, 1)
    builder.relate(q, 3, 1)
    pairs = Pairs.from_contents(builder.finish("x"))
    documents = np.arange(5, dtype=np.int32)[None]
    candidates = Candidates(
        np.array([0]), documents, np.zeros((1, 5), np.float32), np.zeros(1, np.float32), np.eye(1, 5)
    )
    context = Context(pairs, lambda: ExactIndex(np.eye(5, dtype=np.float32)), pairs.known_positives())
    # 4 has a title and no body, like 3, and is another document all the same.
    assert f.Duplicate().keep(candidates, context, candidates.real).tolist() == [[False, False, False, False, True]]


def test_parse() -> None:
    assert parse_filter("duplicate") == parse_filter("duplicate:text") == f.Duplicate()
    assert parse_filter("duplicate:near=0.95") == f.Duplicate(near=0.95)
    assert parse_filter("rank:min=10,max=100") == f.Rank(min=10, max=100)
    assert parse_filter("score:min=0.2,max=0.8") == f.Score(min=0.2, max=0.8)
    assert parse_filter("margin:relative=0.05") == f.Margin(relative=0.05)
    assert parse_filter("guide:st:a/b,margin=0.1") == f.Guide(model="st:a/b", margin=0.1)
    assert parse_filter("cross-encoder:x,max=.5") == f.CrossEncoder(model="x", max=0.5)
    assert parse_filter("posterior:learned") == LearnedPosterior(threshold=0.2)
    assert parse_filters(["posterior:learned,threshold=0.4"], training=True).filters[-1] == LearnedPosterior(
        threshold=0.4
    )
    with pytest.raises(UsageError, match="learned while training; for a mining pass, learn one of a run"):
        parse_filters(["posterior:learned"])
    names = parse_filters(["known", "group", "duplicate:text"]).names
    assert names == ["kept", "known", "empty", "duplicate", "distinct", "group"]
    assert parse_filters(["group"], defaults=False).names == ["kept", "known", "group"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("margn:relative=1", "unknown filter 'margn'. Did you mean 'margin'"),
        ("posterior", "the file, as in posterior:run/posterior.json"),
        ("posterior:x.json,threshold=2", "threshold=2 must be 0 to 1"),
        ("crowd", "give max="),
        ("margin:relativ=0.1", "no option 'relativ'. Did you mean 'relative'"),
        ("margin:relative=five", "relative='five' is not a number"),
        ("margin:relative=-1", "must be 0 or more"),
        ("margin:relative=nan", "must be 0 or more"),
        ("margin", "give absolute=, relative= or both"),
        ("margin:relative=1,relative=2", "given twice"),
        ("rank:min=5,max=2", "max is below min"),
        ("rank:min=0", "must be 1 or more"),
        ("rank:min=1.5", "whole number"),
        ("score", "give min=, max= or both"),
        ("score:min=1,max=0", "max is below min"),
        ("guide", "the guide model"),
        ("cross-encoder:x", "give max=, margin= or both"),
        ("group:strict", "'strict' is not understood"),
        ("known:off=1", "no option 'off'"),
    ],
)
def test_parse_errors(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_filter(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tops", "Did you mean 'top'"),
        ("softmax:temperature=0", "temperature=0 must be"),
        ("softmax:t=1", "no option 't'"),
        ("simans:a=-1", "a=-1 must be 0 or more"),
    ],
)
def test_sampler_errors(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_sampler(spec)


def test_copies_never_both_become_negatives_by_default(tmp_path: Path) -> None:
    """Five texts, each under three ids, as shingled copies of a collection are: a query gets each text once at most."""
    from hardneg import MineOptions, Pairs, mine

    texts = [f"a document about subject {i}" for i in range(12)]
    corpus = [t for t in texts for _ in range(3)]
    pairs = Pairs.from_columns(
        ["what about subject 0", "what about subject 5"], [texts[0], texts[5]], corpus=corpus,
        corpus_ids=[f"c{i}" for i in range(len(corpus))],
    )  # fmt: skip
    chosen = mine(pairs, tmp_path / "a", MineOptions(negatives=4)).negatives().to_pylist()
    text_of = dict(
        zip(pairs.document_ids.to_pylist(), pairs.documents.take(np.arange(len(pairs.document_ids))), strict=True)
    )
    for row in chosen:
        assert len({text_of[id] for id in row["negative_ids"]}) == len(row["negative_ids"]) == 4
    both = mine(pairs, tmp_path / "b", MineOptions(negatives=4, default_filters=False)).negatives().to_pylist()
    assert any(len(row["negative_ids"]) > len({text_of[id] for id in row["negative_ids"]}) for row in both)


def test_copies_of_what_was_dropped_are_no_negatives(tmp_path: Path) -> None:
    """A document that judgements call relevant takes its copies with it, as a positive does."""
    import csv

    texts = [f"answer {i} about {['bread', 'rivers', 'trains', 'clouds'][i % 4]}" for i in range(24)]
    pairs = hardneg.Pairs.from_columns(
        [f"question {i} about {['bread', 'rivers', 'trains', 'clouds'][i % 4]}" for i in range(24)], texts,
        corpus=[f"{text.upper()}  " for text in texts],
    )  # fmt: skip
    run = hardneg.mine(pairs, tmp_path / "run", hardneg.MineOptions(depth=20, negatives=3))

    def negatives(of: hardneg.Run) -> list[tuple[str, str]]:
        table = of.to_dataset("triplet", ids=True)
        return list(zip(table["query_id"], table["negative_id"], strict=True))

    rows = negatives(run)[:30]
    with open(tmp_path / "e.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("query_id", "document_id", "relevant"), *((q, d, 1) for q, d in rows)])
    ids = pairs.document_ids.to_pylist()
    folded = {d: text.strip().casefold() for d, text in zip(ids, pairs.documents, strict=True)}
    gone = {(q, folded[d]) for q, d in rows}
    dropped = hardneg.select(
        run, hardneg.SelectOptions(relabel="drop", evidence=(str(tmp_path / "e.csv"),)), tmp_path / "dropped"
    )
    assert not [(q, d) for q, d in negatives(dropped) if (q, folded[d]) in gone]
