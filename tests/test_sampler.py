"""The batch sampler: what a step gets, again and again, whatever was read ahead."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from hardneg.bank.curriculum import Curriculum
from hardneg.bank.examples import Example, Examples
from hardneg.bank.sampler import MemoryBankSampler
from hardneg.data.pairs import Pairs
from hardneg.errors import RunError, UsageError
from hardneg.index.base import Neighbors
from hardneg.index.exact import ExactIndex
from hardneg.mining.candidates import Context
from hardneg.mining.filters.base import Chain
from hardneg.mining.filters.limits import Rank
from hardneg.mining.mine import mine
from hardneg.mining.mined import Mined
from hardneg.mining.options import MineOptions

from .conftest import unit

QUERIES, DOCUMENTS, K = 60, 90, 12


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Texts that repeat: queries 0 and 30 are one question, several share a positive; two have none."""
    texts = [f"document {i}" for i in range(DOCUMENTS)]
    return Pairs.from_columns(
        [f"query {i if i != 30 else 0}" for i in range(QUERIES)],
        [[] if i in (7, 8) else [texts[i % 20]] + ([texts[i + 20]] if i % 3 == 0 else []) for i in range(QUERIES)],
        corpus=texts,
        query_ids=[str(i) for i in range(QUERIES)],
    )


@pytest.fixture(scope="module")
def mined(pairs: Pairs) -> Mined:
    rng = np.random.default_rng(0)
    documents = np.stack([rng.permutation(len(pairs.document_ids))[:K] for _ in range(QUERIES)]).astype(np.int32)
    scores = -np.sort(-rng.random((QUERIES, K)).astype(np.float32), axis=1)
    known = pairs.known_positives()
    kept = np.array([[d not in known.take(np.array([i])).values for d in documents[i]] for i in range(QUERIES)])
    kept &= rng.random((QUERIES, K)) < 0.8
    kept[5] = False  # nothing left
    return Mined(documents, scores, np.full(QUERIES, 0.5, np.float32), kept)


def sampler(pairs: Pairs, mined: Mined | None, **more: Any) -> MemoryBankSampler:
    return MemoryBankSampler(pairs, mined, **{"batch_size": 8, "negatives": 3, **more})


def epochs(made: MemoryBankSampler, count: int) -> list[list[list[Example]]]:
    out = []
    for _ in range(count):
        batches = []
        for batch in made:
            batches.append(batch)
            made.advance()
        made.end_epoch()
        out.append(batches)
    return out


def test_every_epoch_goes_through_all_queries_without_duplicates_in_a_batch(pairs: Pairs, mined: Mined) -> None:
    first, second = epochs(sampler(pairs, mined), 2)
    for batches in (first, second):
        seen = Counter(example.query for batch in batches for example in batch)
        assert seen == Counter({i: 1 for i in range(QUERIES) if i not in (7, 8)})
        for batch in batches:
            for keys in (
                [int(pairs.query_keys[e.query]) for e in batch],
                [int(pairs.document_keys[e.positive]) for e in batch],
            ):
                assert len(set(keys)) == len(keys)
            for e in batch:
                known = pairs.known_positives().take(np.array([e.query])).values.tolist()
                assert e.positive in pairs.positives.take(np.array([e.query])).values
                assert len(set(e.negatives)) == 3
                assert not set(e.negatives) & set(known)
    assert [e.query for b in first for e in b] != [e.query for b in second for e in b]
    several = {e.query: e.positive for b in first for e in b}
    assert any(several[e.query] != e.positive for b in second for e in b)


def test_mined_negatives_come_first_and_random_ones_fill_up(pairs: Pairs, mined: Mined) -> None:
    for batch in epochs(sampler(pairs, mined, negative_sampling="top"), 1)[0]:
        for e in batch:
            kept = mined.documents[e.query][mined.kept[e.query]][:3].tolist()
            assert list(e.negatives)[: len(kept)] == kept
    drawn = Counter()
    for batches in epochs(sampler(pairs, mined, negative_sampling="uniform"), 30):
        drawn.update(d for batch in batches for e in batch if e.query == 12 for d in e.negatives)
    kept = mined.documents[12][mined.kept[12]].tolist()
    assert set(drawn) == set(kept)
    assert min(drawn.values()) >= 2


def test_random_negatives_only(pairs: Pairs) -> None:
    batches = epochs(sampler(pairs, None), 1)[0]
    found = {d for batch in batches for e in batch for d in e.negatives}
    assert len(found) > DOCUMENTS / 2
    assert all(e.negatives == () for batch in epochs(sampler(pairs, None, negatives=0), 1)[0] for e in batch)


def test_a_curriculum_goes_from_random_to_mined(pairs: Pairs, mined: Mined) -> None:
    made = sampler(pairs, mined, curriculum=Curriculum(0.0, 1.0, 200))
    shares = []
    for batches in epochs(made, 40):
        shares += [
            np.mean([d in mined.documents[e.query][mined.kept[e.query]] for e in batch for d in e.negatives])
            for batch in batches
            if not any(e.query == 5 for e in batch)
        ]
    assert np.mean(shares[:15]) < 0.25
    assert 0.4 < np.mean(shares[85:105]) < 0.75
    assert np.mean(shares[220:]) == 1.0


def test_the_seed_decides(pairs: Pairs, mined: Mined) -> None:
    assert epochs(sampler(pairs, mined, seed=3), 2) == epochs(sampler(pairs, mined, seed=3), 2)
    assert epochs(sampler(pairs, mined, seed=3), 1) != epochs(sampler(pairs, mined, seed=4), 1)


@pytest.mark.parametrize(
    ("stop", "workers"),
    [
        *((stop, 0) for stop in (0, 3, 7, 10)),
        (7, 2),
        *(pytest.param(stop, 2, marks=pytest.mark.slow) for stop in (0, 3, 10)),
    ],
)
def test_a_resumed_training_gets_the_same_batches(pairs: Pairs, mined: Mined, workers: int, stop: int) -> None:
    """Workers read ahead; what counts is what was trained on. A new generation comes at a named batch."""
    later = Mined(mined.documents[:, ::-1].copy(), mined.scores, mined.positive_scores, mined.kept[:, ::-1].copy())

    def train(made: MemoryBankSampler, steps: int, swap: int | None) -> list[Any]:
        seen: list[Any] = []
        while len(seen) < steps:
            loader = DataLoader(Examples(pairs), batch_sampler=made, num_workers=workers, collate_fn=list)
            for batch in islice(loader, steps - len(seen)):
                seen.append(batch)
                made.advance()
                if made.total == swap:
                    made.use(later, at=swap + 6)
            if len(seen) < steps or made.done == sum(1 for _ in made._batches(made.epoch)):
                made.end_epoch()
        return seen

    whole = train(sampler(pairs, mined), 14, 2)
    half = sampler(pairs, mined)
    before = train(half, stop, 2)
    state = json.loads(json.dumps(half.state_dict()))
    again = sampler(pairs, mined)
    again.load_state_dict(state)
    if stop >= 2:
        again.use(later, at=8) if stop <= 8 else again.use(later)
    after = train(again, 14 - stop, 2 if stop < 2 else None)
    assert before + after == whole
    for texts in whole[0]:
        assert texts.query == pairs.queries.take(np.array([texts.rows.query]))[0]
        rows = np.array([texts.rows.positive, *texts.rows.negatives])
        assert [texts.positive, *texts.negatives] == pairs.documents.take(rows)


def test_ranks_share_a_batch(pairs: Pairs, mined: Mined) -> None:
    alone = epochs(sampler(pairs, mined, batch_size=8), 1)[0]
    parts = [epochs(sampler(pairs, mined, batch_size=4, ranks=2, rank=rank), 1)[0] for rank in (0, 1)]
    joined = [a + b for a, b in zip(*parts, strict=True)]
    assert joined == alone


def test_drop_last_and_length(pairs: Pairs, mined: Mined) -> None:
    assert len(sampler(pairs, mined)) == 8
    batches = epochs(sampler(pairs, mined, drop_last=True), 1)[0]
    assert all(len(batch) == 8 for batch in batches)
    assert len(sampler(pairs, mined, drop_last=True)) == 7


def test_wrong_use(pairs: Pairs, mined: Mined) -> None:
    made = sampler(pairs, mined)
    next(iter(made))
    with pytest.raises(UsageError, match=r"batch 0 was given out already \(1 were\)"):
        made.use(mined, at=0)
    with pytest.raises(RunError, match="seed: 0 then, 1 now"):
        sampler(pairs, mined, seed=1).load_state_dict(made.state_dict())
    few = Mined(mined.documents[:3], mined.scores[:3], mined.positive_scores[:3], mined.kept[:3])
    with pytest.raises(UsageError, match="candidates of 3 queries for a dataset of 60"):
        made.use(few)
    for wrong in ({"batch_size": 0}, {"negatives": -1}, {"rank": 2, "ranks": 2}, {"negative_sampling": "hardest"}):
        with pytest.raises(UsageError):
            sampler(pairs, mined, **wrong)
    with pytest.raises(UsageError, match="curriculum"):
        Curriculum(start=2)
    with pytest.raises(UsageError, match="nothing to train on"):
        sampler(Pairs.from_columns(["a"], [[]], corpus=["b"]), None)
    tiny = Pairs.from_columns(["a", "c"], ["b", "d"])
    with pytest.raises(UsageError, match="of 2 documents only 1 can be negatives, 3 were asked for"):
        next(iter(sampler(tiny, None)))
    assert {e.negatives for e in next(iter(sampler(tiny, None, negatives=1)))} == {(0,), (1,)}


def test_candidates_of_a_run_and_of_a_generation(tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    made = Pairs.from_columns(
        [f"query {i}" for i in range(30)], [f"document {i}" for i in range(30)], corpus=[f"more {i}" for i in range(40)]
    )
    queries, documents = unit(rng.standard_normal((30, 8))), unit(rng.standard_normal((70, 8)))
    np.save(tmp_path / "q.npy", queries)
    np.save(tmp_path / "d.npy", documents)
    options = MineOptions(
        query_embeddings=str(tmp_path / "q.npy"), corpus_embeddings=str(tmp_path / "d.npy"), depth=10, max_depth=10,
        negatives=2, filters=("rank:min=2",),
    )  # fmt: skip
    of_run = Mined.of_run(mine(made, tmp_path / "run", options))
    index = ExactIndex(documents)
    found = index.search(queries, 10)
    context = Context(made, lambda: index, made.known_positives())
    # A generation's rows stand in another order than the corpus.
    order = rng.permutation(70)
    place = np.argsort(order)
    shuffled = Neighbors(found.scores, place[found.documents].astype(np.int32))
    of_generation = Mined.of_neighbors(shuffled, order.astype(np.int64), made, context, Chain([Rank(min=2)]))
    for name in ("documents", "scores", "kept"):
        np.testing.assert_array_equal(getattr(of_run, name), getattr(of_generation, name))
    truth = index.pair_scores(queries, made.positives.padded())[:, 0]
    inside = truth >= found.scores[:, -1]
    np.testing.assert_allclose(of_generation.positive_scores[inside], truth[inside])
    assert (of_generation.positive_scores[~inside] >= truth[~inside]).all()
    with pytest.raises(UsageError, match="need a context"):
        Mined.of_neighbors(shuffled, order, made, chain=Chain([Rank(min=2)]))
    with pytest.raises(UsageError, match="neighbors of 30 queries"):
        Mined.of_neighbors(shuffled, order, Pairs.from_columns(["a"], ["b"]))


def test_equal_questions_are_never_in_one_batch() -> None:
    """Each question is there twice, with another answer: in one batch, one's answer would be the other's negative."""
    questions = [f"question {i // 2}" for i in range(24)]
    pairs = Pairs.from_columns(questions, [f"answer {i}" for i in range(24)], query_ids=[str(i) for i in range(24)])
    texts = pairs.queries.slice(0, 24)
    for seed in range(40):
        for batch in MemoryBankSampler(pairs, batch_size=12, negatives=0, seed=seed):
            assert len({texts[example.query] for example in batch}) == len(batch)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_a_share_of_the_negatives_is_mined(pairs: Pairs, mined: Mined, share: float) -> None:
    """3 negatives times the share is no whole number: it is rounded up as often as makes the mean right."""
    everything = Mined(mined.documents, mined.scores, mined.positive_scores, np.ones_like(mined.kept))
    given: dict[str, Any] = {"negative_sampling": "top", "curriculum": Curriculum(share, share)}
    hard = []
    for seed in range(40):
        for batch in sampler(pairs, everything, seed=seed, **given):
            for example in batch:
                first = set(mined.documents[example.query, :3].tolist())
                hard.append(len(first & set(example.negatives)))
    # Random documents are among the first three by chance, 3 times in 90.
    assert np.mean(hard) == pytest.approx(3 * share, abs=0.2)


@pytest.mark.parametrize(
    ("share", "drop_last"),
    [
        (0.2, True),
        (0.2, False),
        (1.0, False),
        *(pytest.param(share, last, marks=pytest.mark.slow) for share in (0.05, 0.6) for last in (True, False)),
        pytest.param(1.0, True, marks=pytest.mark.slow),
    ],
)
def test_a_frequent_positive_costs_no_pairs(share: float, drop_last: bool) -> None:
    """A fifth of the queries with one positive: more than there are batches. All pairs are seen, in as many batches as else."""
    size, count = 32, 3200
    rng = np.random.default_rng(0)
    hot = rng.random(count) < share
    answers = [("the one answer" if h else f"answer {i}") for i, h in enumerate(hot)]
    pairs = Pairs.from_columns(
        [f"question {i}" for i in range(count)], answers, corpus=[f"other {i}" for i in range(50)]
    )
    sampler = MemoryBankSampler(pairs, batch_size=size, negatives=1, drop_last=drop_last)
    batches = list(sampler)
    assert len(batches) <= len(sampler) + 2
    seen = [example.query for batch in batches for example in batch]
    assert len(seen) == len(set(seen))
    assert len(seen) >= count - (2 * size if drop_last else 0)
    most = max(np.bincount([example.positive for example in batch]).max() for batch in batches)
    frequent = int(np.bincount([example.positive for batch in batches for example in batch]).max())
    assert most <= max(1, -(-5 * frequent // (4 * len(sampler))))
