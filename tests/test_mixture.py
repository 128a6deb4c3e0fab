"""Mixtures of datasets: what they keep, batches of one source each, negatives of the own source, training on them."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hardneg_cli.train_sources import Source, parse_source
from hypothesis import given, settings
from hypothesis import strategies as st

import hardneg
from hardneg.bank.batches import distinct_batches
from hardneg.bank.sampler import MemoryBankSampler
from hardneg.data import open_pairs, parts_of, save_pairs
from hardneg.data.mixing import numbered, source_name
from hardneg.data.pairs import Pairs
from hardneg.demo_data.digits import write_digits
from hardneg.diagnostics.measures.batch import Collapse
from hardneg.errors import DataError, RunError, UsageError
from hardneg.index.files import load_index_of, save_index
from hardneg.index.per_source import PerSource, make_index_of
from hardneg.mining.mined import Mined
from hardneg.tasks.mine import plan_run
from hardneg.training import checkpoint
from hardneg.training.held_out import hold_out_each
from hardneg.training.options import TrainOptions
from hardneg.training.self_supervised import two_views
from tests.conftest import WORDS, run_here, write_jsonl
from tests.processes import Started, on_two_ranks
from tests.test_trainer import _log, encoder, quiet, weights


def one(name: str, count: int, corpus: int = 0, seed: int = 0, groups: bool = False) -> Pairs:
    rng = np.random.default_rng([seed, count])
    texts = [f"{' '.join(rng.choice(WORDS, 5))} {name}{i}" for i in range(count)]
    asked = [f"{' '.join(text.split()[:3])} {name}{i}" for i, text in enumerate(texts)]
    more = [f"{' '.join(rng.choice(WORDS, 4))} {name}" for _ in range(corpus)]
    return Pairs.from_columns(asked, texts, corpus=more, groups=[i % 5 for i in range(count)] if groups else None)


def three(groups: bool = False) -> Pairs:
    return hardneg.mixture(
        {"a": one("a", 60, 20, groups=groups), "b": one("b", 40), "c": one("c", 12, groups=groups)},
        weights={"b": 1.5, "c": 2},
    )


def candidates_of(pairs: Pairs, depth: int = 6, seed: int = 0) -> Mined:
    """Candidates of the own source of each query."""
    assert pairs.mixed is not None
    rng = np.random.default_rng(seed)
    spans = [pairs.mixed.span(int(i)) for i in pairs.mixed.queries]
    documents = np.stack([np.resize(rng.permutation(np.arange(*span)), depth) for span in spans]).astype(np.int32)
    shape = documents.shape
    return Mined(documents, np.zeros(shape, np.float32), np.zeros(len(pairs), np.float32), np.ones(shape, bool))


# The dataset.


def test_a_source_whose_positives_clash_keeps_a_short_batch(tmp_path: Path) -> None:
    """q0 has d0 and d1, the latter that of q1 too: in some epochs, eight pairs fill no batch of eight."""
    few = Pairs.from_columns(
        [*(f"q{i}" for i in range(8)), "q0"], [*(f"d{i}" for i in range(8)), "d1"], corpus=["e1", "e2"]
    )
    big = Pairs.from_columns([f"w{i}" for i in range(40)], [f"v{i}" for i in range(40)])
    sampler = hardneg.MemoryBankSampler(
        hardneg.mixture({"big": big, "few": few}), None, batch_size=8, negatives=0, drop_last=True
    )
    sizes = set()
    for _ in range(12):
        batches = list(sampler)
        of_few = [b for b in batches if sampler.pairs.mixed.queries[[each.query for each in b]][0] == 1]
        sizes.add(tuple(len(b) for b in of_few))
        assert sum(len(b) for b in of_few) in (7, 8)
        sampler.end_epoch()
    assert len(sizes) > 1


@pytest.mark.parametrize(
    ("count", "weight", "size"), [(12, 1.5, 8), (3, 1.5, 2), (5, 1.5, 4), (9, 2.7, 8), (40, 3.3, 8)]
)
def test_less_than_a_batch_is_lost(count: int, weight: float, size: int) -> None:
    a = Pairs.from_columns([f"q{i}" for i in range(count)], [f"d{i}" for i in range(count)])
    b = Pairs.from_columns([f"x{i}" for i in range(10)], [f"y{i}" for i in range(10)])
    mixed = hardneg.mixture({"a": a, "b": b}, {"a": weight})
    sampler = hardneg.MemoryBankSampler(mixed, None, batch_size=size, negatives=0, drop_last=True)
    for _ in range(5):
        batches = [[each.query for each in batch] for batch in sampler]
        of_a = sum(len(batch) for batch in batches if batch[0] < count)
        assert round(weight * count) - size < of_a <= round(weight * count)
        assert len(batches) == len(sampler)
        assert all(len(set(batch)) == size for batch in batches)
        sampler.end_epoch()


def test_every_row_keeps_its_text_and_knows_its_source(tmp_path: Path) -> None:
    parts = {"a": one("a", 6, 2, groups=True), "b": one("b", 4), "c": one("c", 3, groups=True)}
    mixed = hardneg.mixture(parts, weights={"b": 2.5})
    save_pairs(mixed, tmp_path / "saved")
    for pairs in (mixed, open_pairs(tmp_path / "saved")):
        assert pairs.mixed is not None
        assert pairs.mixed.settings() == ["a:1", "b:2.5", "c:1"]
        assert pairs.query_ids.to_pylist() == [f"{n}/{i}" for n, p in parts.items() for i in p.query_ids.to_pylist()]
        assert list(pairs.documents) == [text for p in parts.values() for text in p.documents]
        assert pairs.digests == mixed.digests
        for name, part in parts_of(pairs).items():
            own = parts[name]
            assert list(part.queries) == list(own.queries)
            assert list(part.documents) == list(own.documents)
            assert part.positives.padded().tolist() == own.positives.padded().tolist()
            assert part.mixed is None
        # A label of one source is none of another, even if it is written alike.
        assert pairs.document_groups is not None
        of = pairs.mixed.documents
        assert not set(pairs.document_groups[of == 0]) & set(pairs.document_groups[of == 2])
        assert (pairs.document_groups[of == 1] == -1).all()
        assert pairs.group_names[int(pairs.document_groups[of == 2][0])] == "c/0"
        few = pairs.of_queries(np.array([11, 0, 7]))
        assert few.mixed is not None
        assert few.mixed.queries.tolist() == [2, 0, 1]


@pytest.mark.parametrize("what", ["query_sources", "source_starts", "names", "mixture", "crossed"])
def test_damage_to_the_sources_is_noticed(tmp_path: Path, what: str) -> None:
    save_pairs(three(), tmp_path)
    head = json.loads((tmp_path / "dataset.json").read_text())
    arrays = {path.stem: np.load(path) for path in (tmp_path / "labels").glob("*.npy")}
    if what == "names":
        head["mixture"]["names"] = ["a", "b", "b"]
    elif what == "mixture":
        del head["mixture"]
    elif what == "crossed":  # with the right checksum: queries of one source under the name of another one
        arrays["query_sources"][0] = 1
    else:
        arrays.pop(what)
        (tmp_path / "labels" / f"{what}.npy").unlink()
    for name, array in arrays.items():
        np.save(tmp_path / "labels" / f"{name}.npy", array)
    if what in ("query_sources", "source_starts"):
        with pytest.raises(RunError, match=r"labels does not match"):
            open_pairs(tmp_path)
    from hardneg.data.dataset_files import labels_digest

    head["labels"] = labels_digest(arrays)
    (tmp_path / "dataset.json").write_text(json.dumps(head))
    with pytest.raises(RunError, match=r"(query_sources|source_starts)\.npy does not fit the rest"):
        open_pairs(tmp_path)


def test_what_cannot_be_mixed_is_refused_by_name() -> None:
    a, b = one("a", 5), one("b", 5)
    for sources, weight, message in (
        ({}, None, "needs a source"),
        (a, None, "several sources"),
        ({"a/b": a}, None, "'a/b' cannot be the name of a source"),
        ({"a": a, "again": a}, None, "'a' and 'again' are the same dataset"),
        ({"a": a, "b": b}, {"c": 2}, "weights name 'c', which is no source"),
        ({"a": a, "b": b}, {"b": 0}, "weight of the source 'b' is 0"),
        ({"a": a, "b": b}, {"b": float("nan")}, "weight of the source 'b' is nan"),
        ({"a": a, "b": b}, {"b": True}, "weight of the source 'b' is True"),
        ({"a": a, "b": b}, [1.0], "one for each of the 2 sources"),
        ({"a": hardneg.mixture({"x": a}), "b": b}, None, "'a' is a mixture itself"),
    ):
        with pytest.raises(UsageError, match=message):
            hardneg.mixture(sources, weight)  # type: ignore[arg-type]
    listed = hardneg.mixture([a, b], [1, 2])
    assert listed.mixed is not None
    assert listed.mixed.settings() == ["columns:1", "columns-2:2"]
    with pytest.raises(UsageError, match="two views"):
        two_views(listed)
    with pytest.raises(UsageError, match=r"evaluated each by itself.*parts_of"):
        hardneg.evaluate(listed, encoder())


def test_a_text_that_is_relevant_in_one_source_is_no_negative_in_another() -> None:
    """One question in two sources, whose answers stand in both corpora."""
    a = Pairs.from_columns(["who?", "when?"], ["Ann", "today"], corpus=["BOB", "Zoe"])
    b = Pairs.from_columns(["Who?"], ["bob"], corpus=["ann", "now", "then"])
    pairs = hardneg.mixture({"a": a, "b": b})
    assert len(pairs.document_ids) == 8, "a text that stands in two corpora is a document of each"
    known = pairs.known_positives().take(np.arange(3))
    texts = list(pairs.documents)
    assert [sorted(texts[j] for j in known.take(np.array([i])).values) for i in (0, 1)] == [
        ["Ann", "BOB", "ann", "bob"], ["today"],
    ]  # fmt: skip
    for batch in range(50):
        sampler = hardneg.MemoryBankSampler(pairs, batch_size=2, negatives=1, seed=batch)
        drawn = sampler.negatives_of(np.array([0, 2]), batch)
        assert texts[drawn[0, 0]] in ("today", "Zoe")
        assert texts[drawn[1, 0]] in ("now", "then")
    # Of a single dataset nothing changes: a question that stands in one source alone knows its own positives only.
    alone = hardneg.mixture({"a": a, "c": one("c", 3)}).known_positives()
    assert [alone.take(np.array([i])).values.tolist() for i in (0, 1)] == [[0], [1]]


# Batches.


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    heavy=st.lists(st.floats(0.3, 4.0), min_size=4, max_size=4),
    size=st.integers(1, 12),
    drop_last=st.booleans(),
    hard=st.booleans(),
    repeated=st.integers(1, 40),
    stop=st.integers(0, 30),
)
def test_each_batch_has_one_source_and_each_epoch_the_promised_pairs(
    counts: list[int], heavy: list[float], size: int, drop_last: bool, hard: bool, repeated: int, stop: int
) -> None:
    names = [f"s{i}" for i in range(len(counts))]
    parts = {  # documents of the first source are shared by several queries
        name: Pairs.from_columns(
            [f"{name} q{j}" for j in range(n)], [f"{name} d{j % repeated if i == 0 else j}" for j in range(n)],
            corpus=[f"{name} more {j}" for j in range(3)],
        )
        for i, (name, n) in enumerate(zip(names, counts, strict=True))
    }  # fmt: skip
    weight = {name: w for name, w, n in zip(names, heavy, counts, strict=False) if round(w * n) >= 1}
    pairs = hardneg.mixture({name: parts[name] for name in weight or names[:1]}, weight or None)
    assert pairs.mixed is not None
    mixed = pairs.mixed

    def sampler() -> hardneg.MemoryBankSampler:
        return hardneg.MemoryBankSampler(
            pairs, candidates_of(pairs), batch_size=size, negatives=1, drop_last=drop_last, seed=2,
            batches="hard:group=3" if hard else "random",
        )  # fmt: skip

    refused = ""
    try:
        drawn = [[(e.query, e.positive, e.negatives) for e in batch] for batch in sampler()]
    except UsageError as error:
        refused, drawn = str(error), []
    if refused:  # too few different positives for a full batch, and others are left out
        assert drop_last
        assert "'s0' do not fill one batch" in refused
        assert min(repeated, counts[0]) < size
        return
    found: Counter[int] = Counter()
    times: Counter[int] = Counter()
    for batch in drawn:
        sources = {int(mixed.queries[q]) for q, _, _ in batch}
        sources |= {int(mixed.documents[d]) for _, p, n in batch for d in (p, *n)}
        assert len(sources) == 1
        assert len({q for q, _, _ in batch}) == len(batch) <= size
        found[sources.pop()] += len(batch)
        times.update(q for q, _, _ in batch)
    for i in range(len(mixed)):
        rows = mixed.rows(i)
        expected = round(mixed.weights[i] * len(rows))
        if not drop_last:
            assert found[i] == expected
            assert {times[q] for q in rows.tolist()} <= {expected // len(rows), -(-expected // len(rows))}
        else:
            assert 0 < found[i] <= expected
    # Resumed in the middle, it draws what is left.
    half, again = sampler(), sampler()
    for number, _ in enumerate(half):
        if number >= min(stop, len(drawn) - 1):
            break
        half.advance()
    again.load_state_dict(half.state_dict())
    assert [[(e.query, e.positive, e.negatives) for e in batch] for batch in again] == drawn[half.done :]


def test_batches_of_the_sources_are_shuffled_and_epochs_differ() -> None:
    pairs = three()
    sampler = hardneg.MemoryBankSampler(pairs, batch_size=8, negatives=1)
    assert pairs.mixed is not None
    orders, chosen = [], []
    for _ in range(3):
        sources, queries = [], set()
        for batch in sampler:
            assert sampler.source == int(pairs.mixed.queries[batch[0].query])
            sources.append(sampler.source)
            queries |= {e.query for e in batch}
            sampler.advance()
        orders.append(sources)
        chosen.append(queries)
        assert len(sources) == len(sampler) == 8 + 8 + 3
        sampler.end_epoch()
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1], "the order of the sources is another one in each epoch"
    assert orders[0] != sorted(orders[0])
    part = hardneg.mixture({"a": one("a", 50), "b": one("b", 50)}, weights={"b": 0.2})
    sampler = hardneg.MemoryBankSampler(part, batch_size=5, negatives=1)
    seen = []
    for _ in range(2):
        seen.append({e.query for batch in sampler for e in batch if e.query >= 50})
        sampler.end_epoch()
    assert [len(each) for each in seen] == [10, 10]
    assert seen[0] != seen[1], "a fraction is another part in every epoch"


def test_repeated_pairs_stay_apart_whatever_their_texts() -> None:
    """A text in more than 4 of 5 batches may stand in one several times, a pair never."""
    queries, documents, pairs = np.arange(30) % 10, np.zeros(30, np.int64), np.arange(30) % 10
    found = [each.tolist() for each in distinct_batches(queries, documents, 7, 5, pairs=pairs)]
    assert sorted(place for each in found for place in each) == list(range(30))
    assert all(len(set(pairs[each])) == len(each) for each in found)


def test_sources_that_cannot_be_drawn_are_refused_by_name() -> None:
    a, few = one("a", 40), one("few", 5)
    with pytest.raises(UsageError, match=r"'few' has 5 pairs, of which the weight 0.05 takes less than one"):
        hardneg.MemoryBankSampler(hardneg.mixture({"a": a, "few": few}, {"few": 0.05}), batch_size=4)
    with pytest.raises(UsageError, match=r"'few' has 5 pairs in an epoch, too few for batches of 4 on each of 2 ranks"):
        hardneg.MemoryBankSampler(hardneg.mixture({"a": a, "few": few}), batch_size=4, ranks=2)
    blank = Pairs.from_columns(["q"], [None], corpus=["x"])
    with pytest.raises(UsageError, match="no query of the source 'blank' has a positive"):
        hardneg.MemoryBankSampler(hardneg.mixture({"a": a, "blank": blank}), batch_size=4)
    state = hardneg.MemoryBankSampler(hardneg.mixture({"a": a, "few": few}), batch_size=4).state_dict()
    with pytest.raises(RunError, match=r"sources: .*'few:1'.* then, .*'few:2'.* now"):
        hardneg.MemoryBankSampler(hardneg.mixture({"a": a, "few": few}, {"few": 2}), batch_size=4).load_state_dict(
            state
        )
    single = hardneg.mixture({"a": a, "single": one("single", 1, 9)})
    with pytest.raises(UsageError, match="the source 'single' has a single pair"):
        hardneg.train(single, encoder(), "unused", TrainOptions(negatives=0), device="cpu")
    with pytest.raises(UsageError, match="negatives=6 of the 5 documents of the source 'few'"):
        hardneg.train(
            hardneg.mixture({"a": a, "few": few}), encoder(), "unused", TrainOptions(negatives=6), device="cpu"
        )


def test_what_would_break_a_training_later_is_refused_at_once(tmp_path: Path) -> None:
    few = Pairs.from_columns(["k", "k", "z"], ["1", "2", "1"], corpus=["3", "4"])
    mixed = hardneg.mixture({"a": one("a", 40), "few": few})
    said = "the query 'few/q0' has 2 positives among 4 documents, which leaves 2 .1 such queries."
    with pytest.raises(UsageError, match=said):
        hardneg.train(mixed, encoder(), tmp_path / "out", TrainOptions(negatives=3), device="cpu", warn=quiet)
    blank = Pairs.from_columns(["q"], [None], corpus=["x"])
    for sets in ({"a": one("a", 9), "b": blank}, blank):
        with pytest.raises(UsageError, match="no query of the evaluation.* has a positive"):
            hardneg.train(
                one("a", 40), encoder(), tmp_path / "out", TrainOptions(), evaluation=sets, device="cpu", warn=quiet
            )
    assert not (tmp_path / "out" / "log.jsonl").exists()


def test_a_state_of_a_mixture_is_of_its_data_and_of_its_weights() -> None:
    a, b = one("a", 20), one("b", 20)
    state = hardneg.MemoryBankSampler(hardneg.mixture({"a": a, "b": b}, {"b": 1.0000001}), batch_size=4).state_dict()
    with pytest.raises(RunError, match="sources: "):
        hardneg.MemoryBankSampler(hardneg.mixture({"a": a, "b": b}, {"b": 1.0000002}), batch_size=4).load_state_dict(
            state
        )
    other = Pairs.from_columns(
        b.queries.slice(0, len(b)), ["another", *b.documents.slice(1, len(b.document_ids))[: len(b) - 1]]
    )
    with pytest.raises(RunError, match="digests: "):
        hardneg.MemoryBankSampler(
            hardneg.mixture({"a": a, "b": other}, {"b": 1.0000001}), batch_size=4
        ).load_state_dict(state)


def test_what_follows_a_file_and_is_no_weight(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "b.jsonl", [{"query": "q", "positive": "p"}])
    for odd in ("nan", "-1", "1e9", "2,0", ""):
        with pytest.raises(click.UsageError, match="is no weight"):
            parse_source(f"{path}:{odd}")


def test_the_bank_gives_rows_of_the_source_of_the_batch() -> None:
    pairs = three()
    assert pairs.mixed is not None
    bank = hardneg.MemoryBank(500, 4)
    sampler = hardneg.MemoryBankSampler(pairs, batch_size=8, negatives=1, bank=bank, bank_start=0)
    sizes = []
    for batch in sampler:
        view = sampler.bank_view()
        assert view is not None
        rows = torch.tensor([d for e in batch for d in (e.positive, *e.negatives)])
        source = int(pairs.mixed.queries[batch[0].query])
        assert {int(pairs.mixed.documents[i]) for i in view.ids.tolist()} <= {source}
        sizes.append(len(view))
        with pytest.raises(UsageError, match="needs the rows of the documents"):
            sampler.advance(torch.ones(len(rows), 4))
        sampler.advance(torch.ones(len(rows), 4), rows)
    assert 0 in sizes
    assert 0 < max(sizes) < len(bank)


# Search.


@pytest.mark.parametrize("index", ["exact", "ivf", "hnsw"])
def test_each_source_is_searched_alone_and_to_the_full_depth(tmp_path: Path, index: str) -> None:
    rng = np.random.default_rng(0)
    pairs = hardneg.mixture({"a": one("a", 30, 270), "b": one("b", 200, 100), "c": one("c", 8)})
    mixed = pairs.mixed
    assert mixed is not None
    # The sources lie apart, and queries of one lie among the documents of another: a joint search would find none of their own.
    centers = 5 * rng.standard_normal((3, 16)).astype(np.float32)
    documents = centers[mixed.documents] + rng.standard_normal((len(pairs.document_ids), 16)).astype(np.float32)
    queries = centers[(mixed.queries + 1) % 3] + rng.standard_normal((len(pairs), 16)).astype(np.float32)
    made, recall = make_index_of(mixed, index, documents, "cosine", queries=queries, k=12, recall=0.9)
    assert isinstance(made, PerSource)
    assert recall.reached
    found = made.search_rows(np.arange(len(pairs)), queries, 12)
    save_index(made, tmp_path)
    loaded = load_index_of(mixed, tmp_path, documents)
    assert isinstance(loaded, PerSource)
    for left, right in zip(found, loaded.search_rows(np.arange(len(pairs)), queries, 12), strict=True):
        assert (left == right).all()
    unit_q, unit_d = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (queries, documents))
    products = unit_q @ unit_d.T
    right_ones, all_of_them = 0, 0
    for row in range(len(pairs)):
        own = np.arange(*mixed.span(int(mixed.queries[row])))
        expected = own[np.argsort(-products[row, own], kind="stable")][:12]
        got = found.documents[row][found.documents[row] >= 0]
        assert np.isin(got, own).all()
        if index == "exact":
            assert got.tolist() == expected.tolist(), "8 documents, or the 12 nearest of the own source"
            assert (found.scores[row][len(got) :] == -np.inf).all()
        right_ones, all_of_them = right_ones + len(np.intersect1d(got, expected)), all_of_them + len(expected)
    assert right_ones >= 0.85 * all_of_them
    # Without a source it is an index of all documents.
    together = made.search(queries[:5], 7)
    if index == "exact":
        assert together.documents.tolist() == np.argsort(-products[:5], axis=1, kind="stable")[:, :7].tolist()
    (tmp_path / "source-1" / "index.json").unlink()
    with pytest.raises(RunError):
        load_index_of(mixed, tmp_path, documents)


def test_mining_a_mixture_finds_what_mining_its_sources_finds(tmp_path: Path) -> None:
    parts = {"a": one("a", 30, 30), "b": one("b", 50), "c": one("c", 4)}
    pairs = hardneg.mixture(parts)
    model = encoder()
    model.fit([*pairs.queries, *pairs.documents])
    options = hardneg.MineOptions(depth=10, max_depth=20, negatives=3)
    run = hardneg.mine(pairs, tmp_path / "all", options, encoder=model)
    rows = [row for file in run.candidate_files() for row in pq.read_table(file).to_pylist()]
    for name, part in parts.items():
        few = min(10, len(part.document_ids))
        own = hardneg.mine(part, tmp_path / name, options, encoder=model, depth=few)
        alone = [row for file in own.candidate_files() for row in pq.read_table(file).to_pylist()]
        of = [row for row in rows if row["query_id"].startswith(f"{name}/")]
        assert [(r["query_id"], r["document_id"], r["score"], r["verdict"]) for r in of] == [
            (f"{name}/{r['query_id']}", f"{name}/{r['document_id']}", r["score"], r["verdict"]) for r in alone
        ]
    assert hardneg.diagnose(run).measured.numbers["recall"].value == 1, "against each source, not all of them"
    again = hardneg.Run(tmp_path / "all").pairs()
    assert again.mixed is not None
    assert again.mixed.names == ("a", "b", "c")
    assert hardneg.mine(pairs, tmp_path / "all", options, encoder=model, resume=True).info == run.info
    with pytest.raises(UsageError, match="candidates 'bm25' of a mixture could be documents of another source"):
        hardneg.mine(pairs, tmp_path / "bm25", candidates=("dense", "bm25"))
    ready = hardneg.index.ExactIndex(np.ones((len(pairs.document_ids), 16), np.float32))
    with pytest.raises(UsageError, match="holds the documents of all sources"):
        hardneg.mine(pairs, tmp_path / "own", options, encoder=model, index=ready)
    trained = hardneg.train(
        pairs,
        model,
        tmp_path / "trained",
        TrainOptions(steps=4, batch_size=8, negatives=2),
        run=run,
        device="cpu",
        warn=quiet,
    )
    assert trained["steps"] == 4

    with pytest.raises(UsageError, match="a mixture cannot be cut into tasks"):
        plan_run(pairs, tmp_path / "tasks", shards=2)
    alone = hardneg.Run(tmp_path / "a")
    with pytest.raises(UsageError, match=r"mined from another dataset than a \+ b \+ c: mine the mixture itself"):
        hardneg.train(pairs, model, tmp_path / "wrong", TrainOptions(steps=1), run=alone, device="cpu")


def test_pictures_are_mixed_with_pictures_only(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    digits = [write_digits(tmp_path / name, most=most, seed=most) for name, most in (("few", 12), ("more", 20))]
    read = [hardneg.read_pairs(folder) for folder in digits]
    with pytest.raises(UsageError, match="the documents of 'few' are pictures, and those of 'texts' texts"):
        hardneg.mixture({"few": read[0], "texts": one("texts", 4)})
    save_pairs(read[1], tmp_path / "saved")  # where places of pictures are relative to the folder
    pairs = hardneg.mixture({"few": read[0], "more": open_pairs(tmp_path / "saved")})
    save_pairs(pairs, tmp_path / "both")
    for each in (pairs, open_pairs(tmp_path / "both")):
        items: list[Any] = each.documents.take(np.arange(len(each.document_ids)))
        assert [item.decode().size for item in items] == [(8, 8)] * len(items)


def test_trainers_that_make_their_own_batches_get_one_source() -> None:
    with pytest.raises(UsageError, match=r"'a \+ b \+ c' is a mixture.*give each source a HardNegatives"):
        hardneg.HardNegatives(three(), encoder())


# Training.

EVERYTHING: dict[str, Any] = {
    "steps": 18, "batch_size": 8, "negatives": 3, "refresh": "steps:5", "lag": 3, "share": 0.5, "bank": 100,
    "bank_start": 2, "momentum": 0.9, "save_every": 5, "log_every": 3, "evaluate_every": 6, "depth": 8,
    "filters": ("group", "shared-neighbors:max=0.6"), "learning_rate": 0.01, "seed": 3, "batches": "hard:group=4",
}  # fmt: skip

SCRIPT = """
import sys, hardneg
from tests.test_mixture import EVERYTHING, three
from tests.test_trainer import encoder
class Says:
    def log(self, step, values):
        print(step, flush=True)
    def close(self): pass
hardneg.train(three(groups=True), encoder(dropout=0.2), sys.argv[1], hardneg.TrainOptions(**EVERYTHING), evaluation=three(),
              device="cpu", callbacks=[Says()], resume=sys.argv[2] == "resume", warn=lambda message: None)
"""


def test_killed_and_resumed_it_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    result = hardneg.train(
        three(groups=True), encoder(dropout=0.2), tmp_path / "whole", TrainOptions(**EVERYTHING), evaluation=three(),
        device="cpu", warn=quiet,
    )  # fmt: skip
    with Started(SCRIPT, tmp_path / "killed", "new", cwd=Path(__file__).parent.parent) as process:
        while "9" not in process.said("out").split():
            assert process.poll() is None, process.said("err")
        process.kill()
    assert checkpoint.latest(tmp_path / "killed" / "checkpoints") is not None
    with pytest.raises(RunError, match=r"other weight of the source 'c' \(2.0 then, 1.0 now\)"):
        hardneg.train(
            hardneg.mixture(_parts(three(groups=True)), weights={"b": 1.5}), encoder(dropout=0.2), tmp_path / "killed",
            TrainOptions(**EVERYTHING), resume=True, device="cpu",
        )  # fmt: skip
    left = hardneg.mixture({name: part for name, part in _parts(three(groups=True)).items() if name != "c"})
    with pytest.raises(RunError, match=r"other source 'c' \(it has none now\)"):
        hardneg.train(left, encoder(), tmp_path / "killed", TrainOptions(**EVERYTHING), resume=True, device="cpu")
    with Started(SCRIPT, tmp_path / "killed", "resume", cwd=Path(__file__).parent.parent) as process:
        assert process.wait() == 0, process.said("err")
    assert _log(tmp_path / "killed") == _log(tmp_path / "whole")
    for name in ("best", "last"):
        assert (weights(tmp_path / "killed" / name) == weights(tmp_path / "whole" / name)).all()
    log = _log(tmp_path / "whole")
    assert {name for row in log for name in row if name.startswith("loss/")} == {"loss/a", "loss/b", "loss/c"}
    assert not any("source" in row for row in log)
    best = result["best"]
    assert best["ndcg@10"] == pytest.approx(np.mean([best[f"{name}/ndcg@10"] for name in "abc"]))
    assert best["ndcg@10"] == max(each["ndcg@10"] for each in result["evaluations"])
    written = json.loads((tmp_path / "whole" / "train.json").read_text())["data"]["sources"]
    assert written["b"] == {"weight": 1.5, "queries": 40, "documents": 40, "pairs": 40}
    assert len(result["generations"]) >= 2


def test_a_posterior_is_learned_from_all_sources(tmp_path: Path) -> None:
    parts = {"a": one("a", 80, 40), "b": one("b", 60, 20)}
    said: list[str] = []
    options = TrainOptions(steps=6, batch_size=8, negatives=2, depth=20, filters=("posterior:learned",))
    hardneg.train(hardneg.mixture(parts), encoder(), tmp_path, options, device="cpu", warn=said.append)
    assert any(text.startswith("posterior:learned") for text in said)
    assert (tmp_path / "posterior.json").exists() == any("threshold" in text for text in said)


def test_what_is_special_of_a_source_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    options = TrainOptions(steps=2, batch_size=16, negatives=2, filters=("group",))
    hardneg.train(three(groups=True), encoder(), tmp_path, options, device="cpu", warn=said.append)
    assert "the filter 'group' keeps everything of the source 'b', which has no groups" in said
    assert [text for text in said if "its batches are smaller" in text] == [
        "the source 'c' has fewer pairs in an epoch than a batch of 16: its batches are smaller"
    ]


def test_a_collapse_is_seen_in_batches_of_the_largest_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr(Collapse, "look", lambda self, rank: seen.append(rank))
    trained: list[int] = []
    kept = MemoryBankSampler.advance

    def advance(sampler: MemoryBankSampler, *given_: Any) -> None:
        assert sampler.source is not None
        trained.append(sampler.source)
        kept(sampler, *given_)

    monkeypatch.setattr(MemoryBankSampler, "advance", advance)
    options = TrainOptions(steps=10, batch_size=8, negatives=2, log_every=1)
    hardneg.train(three(), encoder(), tmp_path, options, device="cpu", warn=quiet)
    assert trained.count(0) == len(seen) > 0  # "a" and "b" have 60 pairs in an epoch, and the first counts
    assert len(set(trained)) > 1


def _parts(pairs: Pairs) -> dict[str, Pairs]:
    """The sources as they were before they were mixed."""
    groups = pairs.query_groups is not None
    return {"a": one("a", 60, 20, groups=groups), "b": one("b", 40), "c": one("c", 12, groups=groups)}


TWO: dict[str, Any] = {
    "steps": 12, "negatives": 2, "refresh": "steps:5", "lag": 2, "bank": 300, "bank_start": 1, "depth": 8, "learning_rate": 0.01,
    "evaluate_every": 6, "batches": "hard:group=4", "mini_batch_size": 3, "log_every": 1,
}  # fmt: skip


def two_sources() -> Pairs:
    return hardneg.mixture({"a": one("a", 60, 20), "b": one("b", 40)}, weights={"b": 1.5})


def train_on(rank: int, folder: Path) -> None:
    pairs = two_sources()
    hardneg.train(
        pairs, encoder(), folder / "two", TrainOptions(**TWO, batch_size=4), evaluation=pairs, device="cpu", warn=quiet
    )


def test_two_ranks_train_as_one(tmp_path: Path) -> None:
    on_two_ranks(partial(train_on), tmp_path)
    pairs = two_sources()
    hardneg.train(
        pairs,
        encoder(),
        tmp_path / "one",
        TrainOptions(**TWO, batch_size=8),
        evaluation=pairs,
        device="cpu",
        warn=quiet,
    )
    difference = np.abs(weights(tmp_path / "two" / "last") - weights(tmp_path / "one" / "last"))
    assert np.median(difference) < 1e-3
    for two, alone in zip(_log(tmp_path / "two"), _log(tmp_path / "one"), strict=True):
        assert set(two) == set(alone), "the same source at every step"


def test_a_question_that_is_held_out_of_one_source_is_trained_on_in_none() -> None:
    a, b, few = one("a", 100), one("b", 60), one("few", 5)
    rows = [str(text) for text in a.queries][:30]
    shared = Pairs.from_columns([*rows, *b.queries], [*(f"other {i}" for i in range(30)), *b.documents])
    trained, held, others = hold_out_each({"a": a, "shared": shared, "few": few}, seed=1)
    assert sorted(held) == ["a", "shared"]
    assert trained["few"] is few
    keys = {int(key) for each in held.values() for key in each.query_keys}
    for each in trained.values():
        assert not keys & set(each.query_keys[each.positives.lengths > 0].tolist())
    lost = sum(int((each.positives.lengths == 0).sum()) for each in trained.values())
    assert lost == sum(map(len, held.values())) + others
    assert others > 0


# The command.


def test_a_weight_is_told_from_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text, expected in (
        ("beir/scifact", Source("beir/scifact")),
        ("beir/scifact:2.0", Source("beir/scifact", 2.0)),
        ("pairs.jsonl:.5", Source("pairs.jsonl", 0.5)),
        ("builtin:pycode", Source("builtin:pycode")),
        ("builtin:pycode:3", Source("builtin:pycode", 3.0)),
        ("builtin:7", Source("builtin:7")),
        ("hf:7", Source("hf:7")),
        ("hf:someone/data:0.25", Source("hf:someone/data", 0.25)),
        ("s3://bucket/a.jsonl:2", Source("s3://bucket/a.jsonl", 2.0)),
        ("http://host:8080", Source("http://host:8080")),
        ("http://host:8080/a.jsonl", Source("http://host:8080/a.jsonl")),
        ("http://host:8080/a.jsonl:2", Source("http://host:8080/a.jsonl", 2.0)),
        ("a:b", Source("a:b")),
        ("-", Source("-")),
    ):
        assert parse_source(text) == expected
    (tmp_path / "a").write_text("")
    assert parse_source("a:2.0") == Source("a", 2.0)
    (tmp_path / "a:2.0").write_text("")
    found = parse_source("a:2.0")
    assert (found.spec, found.weight) == ("a:2.0", 1.0)
    assert "read as the file of this name" in str(found.note)
    assert "written a:2.00" in str(found.note)
    assert parse_source("a:2.00") == Source("a", 2.0)
    assert parse_source("a:2.0:3") == Source("a:2.0", 3.0)
    assert numbered([source_name(each) for each in ("x/train.jsonl", "y/train.csv")]) == ["train", "train-2"]


def write_source(path: Path, name: str, count: int) -> Path:
    pairs = one(name, count)
    texts = zip(pairs.queries, pairs.documents, strict=True)
    return write_jsonl(path, [{"query": query, "positive": positive} for query, positive in texts])


def test_the_command_mixes_sources(tmp_path: Path, beir: Path) -> None:
    a, b = write_source(tmp_path / "a.jsonl", "a", 60), write_source(tmp_path / "b.jsonl", "b", 44)
    shared = ("--epochs", "1", "--batch-size", "8", "--negatives", "2", "--device", "cpu", "--threads", "1")
    out = tmp_path / "out"
    done = run_here("train", f"{a}", "--source", f"{b}:1.5", "--out", str(out), *shared)
    assert done.returncode == 0, done.stderr
    assert f"source b: {b}, weight 1.5, 42 pairs, 44 documents" in done.stderr
    assert "source a: evaluated on 3 queries, which are not trained on" in done.stderr
    assert "each source" in done.stdout
    assert "mean" in done.stdout
    head = json.loads((out / "train.json").read_text())
    assert list(head["data"]["sources"]) == ["a", "b"]
    assert {"a/ndcg@10", "b/ndcg@10", "ndcg@10"} <= set(head["best"])
    # The same from a file, without a positional source.
    config = tmp_path / "options.toml"
    config.write_text(f'[train]\nsource = ["{a}", "{b}:1.5"]\nepochs = 1\n')
    same = tmp_path / "same"
    done = run_here("train", "--config", str(config), "--out", str(same), *shared[2:])
    assert done.returncode == 0, done.stderr
    assert (weights(same / "last") == weights(out / "last")).all()
    again = run_here(
        "train", f"{a}", "--source", f"{b}:2", "--out", str(out), "--resume", *shared[:1], "2", *shared[2:]
    )
    assert again.returncode == 1
    assert "weight of the source 'b' (1.5 then, 2.0 now)" in again.stderr


def test_the_command_refuses_what_does_not_fit(tmp_path: Path, beir: Path) -> None:
    a, b = write_source(tmp_path / "a.jsonl", "a", 20), write_source(tmp_path / "b.jsonl", "b", 20)
    out = ("--out", str(tmp_path / "out"), "--device", "cpu")
    for arguments, code, message in (
        ((), 2, "Missing argument 'SOURCE'"),
        ((f"{a}:2",), 2, "no effect on a single source"),
        ((f"{a}", "--source", f"{b}:0"), 2, "the weight 0 must be above 0"),
        ((f"{a}", "--source", f"{b}", "--self-supervised"), 2, "--self-supervised takes one SOURCE"),
        ((f"{a}", "--source", f"{a}"), 2, "are the same dataset"),
        ((f"{a}", "--source", f"{b}", "--eval-split", "dev"), 2, "no source has such a split"),
        ((f"{a}", "--source", str(tmp_path / "missing:2")), 1, "missing does not exist"),
    ):
        done = run_here("train", *arguments, *out)
        assert done.returncode == code, done.stderr
        assert message in done.stderr.replace("\n", " "), done.stderr
    done = run_here(
        "train",
        f"{a}",
        "--source",
        f"{beir}",
        "--eval-split",
        "test",
        "--steps",
        "2",
        "--batch-size",
        "4",
        "--negatives",
        "1",
        *out,
    )
    assert "source a: not evaluated (it has no splits)" in done.stderr
    assert done.returncode == 0, done.stderr


def test_sources_of_a_list_are_read(tmp_path: Path) -> None:
    a, b = write_source(tmp_path / "a.jsonl", "a", 5), write_source(tmp_path / "b.jsonl", "b", 4)
    pairs = hardneg.mixture([a, b])
    assert pairs.mixed is not None
    assert pairs.mixed.names == ("a", "b")
    with pytest.raises(DataError, match="does not exist"):
        hardneg.mixture([a, tmp_path / "missing.jsonl"])
