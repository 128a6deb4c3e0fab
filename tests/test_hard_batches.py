"""Hard batches: what stands in one batch, that nothing is lost, and that a resumed epoch is the same."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hardneg
from hardneg.bank.examples import Example
from hardneg.bank.hard_batches import HardBatches, near_pairs, parse_batches
from hardneg.bank.sampler import MemoryBankSampler
from hardneg.data.pairs import Pairs
from hardneg.errors import RunError, UsageError
from hardneg.mining.mined import Mined
from hardneg.training.options import TrainOptions

TOPICS, EACH = 12, 16


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Twelve topics of 16 questions with an answer each, and documents that nobody asks for."""
    return Pairs.from_columns(
        [f"question {i} of topic {i % TOPICS}" for i in range(TOPICS * EACH)],
        [f"answer {i} of topic {i % TOPICS}" for i in range(TOPICS * EACH)],
        corpus=[f"note {i}" for i in range(40)],
    )


def topical(pairs: Pairs, seed: int = 0, turn: int = 0) -> Mined:
    """The candidates of each query: answers of its topic (or the next ones) in random order, some notes among them."""
    rng, count = np.random.default_rng(seed), TOPICS * EACH
    documents = np.empty((count, EACH + 3), np.int32)
    for i in range(count):
        own = [j for j in range(count) if j % TOPICS == (i + turn) % TOPICS]
        documents[i] = rng.permutation([*own, *rng.choice(np.arange(count, count + 40), 3, replace=False)])
    kept = documents != np.arange(count)[:, None]
    scores = np.tile(np.linspace(1, 0, EACH + 3, dtype=np.float32), (count, 1))
    return Mined(documents, scores, np.ones(count, np.float32), kept)


def sampler(
    pairs: Pairs, mined: Mined | None, spec: str | HardBatches = "hard:group=8", **more: Any
) -> MemoryBankSampler:
    return MemoryBankSampler(pairs, mined, **{"batch_size": 32, "negatives": 0, "batches": spec, **more})


def epoch(made: MemoryBankSampler) -> list[list[Example]]:
    batches = []
    for batch in made:
        batches.append(batch)
        made.advance()
    made.end_epoch()
    return batches


def topics_of(batch: list[Example]) -> list[int]:
    return sorted(Counter(example.query % TOPICS for example in batch).values(), reverse=True)


def test_batches_are_put_together_from_groups_of_a_topic(pairs: Pairs) -> None:
    made = sampler(pairs, topical(pairs))
    first, second = epoch(made), epoch(made)
    for batches in (first, second):
        assert [len(batch) for batch in batches] == [32] * 6
        assert sorted(e.query for batch in batches for e in batch) == list(range(TOPICS * EACH))
        assert all(set(topics_of(batch)) <= {8, 16, 24} for batch in batches)  # four groups, of one to four topics
    assert [e.query for b in first for e in b] != [e.query for b in second for e in b]
    assert len(topics_of(epoch(sampler(pairs, topical(pairs), "random"))[0])) > 6
    assert len(topics_of(epoch(sampler(pairs, None))[0])) > 6  # nothing was mined yet


def test_what_the_filters_reject_is_put_beside_nobody(pairs: Pairs) -> None:
    """A false negative is no edge: topics of which all candidates were rejected stand in random company."""
    mined = topical(pairs)
    mined.kept[np.arange(TOPICS * EACH) % TOPICS < 6] = False
    near = near_pairs(mined, np.arange(TOPICS * EACH), np.arange(TOPICS * EACH), len(pairs.document_ids), 10, rng())
    assert (near[np.arange(TOPICS * EACH) % TOPICS < 6] == -1).all()
    assert (near[11] % TOPICS == 11).all()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 6), st.integers(2, 12), st.integers(1, 30), st.sampled_from([1.0, 0.5, 0.1]),
    st.integers(0, 5),
)  # fmt: skip
def test_an_order_goes_through_all_pairs_and_groups_are_connected(
    count: int, width: int, group: int, size: int, share: float, seed: int
) -> None:
    generator = rng(seed)
    near = generator.integers(-1, count, (count, width)).astype(np.int32)
    keys = generator.integers(0, max(1, count // 2), count)
    order = HardBatches(group, width, share).order(near, np.arange(count), keys, size, rng(seed))
    assert sorted(order.tolist()) == list(range(count))
    if share == 1 and group <= size and size % group == 0:
        for start in range(0, count - count % group, group):
            members = order[start : start + group].tolist()
            for i, pair in enumerate(members[1:], 1):
                linked = any(pair in near[other] for other in members[:i])
                if linked:  # grown over an edge: a text that was in the group already was passed over
                    continue
                # A new beginning: nobody in the group had a neighbor left. Those after it in the order were free.
                later = set(order[start + i :].tolist()) if start + group == count else set(members[i:])
                seen = {int(keys[other]) for other in members[:i]}
                left = {int(n) for other in members[:i] for n in near[other] if n >= 0}
                assert not {n for n in left & later if int(keys[n]) not in seen}


def test_the_nearest_pairs_are_the_owners_of_the_candidates_in_their_order(pairs: Pairs) -> None:
    mined = topical(pairs)
    queries = rng().permutation(TOPICS * EACH)
    near = near_pairs(mined, queries, queries, len(pairs.document_ids), 10, rng())
    for place, row in zip(queries[:20], near[:20], strict=True):
        owned = [
            d for d, kept in zip(mined.documents[place], mined.kept[place], strict=True) if kept and d < TOPICS * EACH
        ]
        assert queries[row].tolist() == owned[:10]
    shared = np.repeat(queries[:3], 64)  # a document of 64 owners: any of them
    found = near_pairs(mined, queries, shared, len(pairs.document_ids), 10, rng())
    assert {int(shared[n]) for n in found[found >= 0]} <= set(shared.tolist())
    assert len(set(found[found >= 0].tolist())) > 20


@pytest.mark.parametrize("stop", range(1, 13))
def test_an_epoch_goes_on_as_it_began(pairs: Pairs, stop: int) -> None:
    """Candidates change in the middle of each epoch: those batches stay, and a resume after any of them goes on with the same."""
    generations = [topical(pairs, seed, turn) for seed, turn in ((0, 0), (1, 3), (2, 5))]

    def trained(made: MemoryBankSampler, batches: int) -> list[list[Example]]:
        out = []
        while len(out) < batches:
            for batch in made:
                out.append(batch)
                made.advance()
                if made.total in (3, 9):
                    made.rewind()
                    made.use(generations[made.total // 6 + 1])
                    break
                if len(out) == batches:
                    return out
            else:
                made.end_epoch()
        return out

    whole = trained(sampler(pairs, generations[0]), 16)
    assert sorted(e.query for batch in whole[:6] for e in batch) == list(range(TOPICS * EACH))
    begun = sampler(pairs, generations[0])
    assert trained(begun, stop) == whole[:stop]
    again = sampler(pairs, generations[0 if stop < 3 else 1 if stop < 9 else 2])
    again.load_state_dict(begun.state_dict())
    assert trained(again, 16 - stop) == whole[stop:]


def test_ranks_cut_the_same_batches(pairs: Pairs) -> None:
    mined = topical(pairs)
    one = epoch(sampler(pairs, mined))
    two = [epoch(sampler(pairs, mined, batch_size=16, rank=rank, ranks=2)) for rank in (0, 1)]
    assert [[*a, *b] for a, b in zip(*two, strict=True)] == one


def test_a_share_of_the_batches_is_hard(pairs: Pairs) -> None:
    batches = epoch(sampler(pairs, topical(pairs), "hard:group=16,share=0.5"))
    assert sorted(e.query for batch in batches for e in batch) == list(range(TOPICS * EACH))
    assert sum(topics_of(batch)[0] >= 8 for batch in batches) == 3


def test_states_that_do_not_fit_are_refused(pairs: Pairs) -> None:
    made = sampler(pairs, topical(pairs))
    next(iter(made))
    made.advance()
    state = made.state_dict()
    with pytest.raises(RunError, match="batches: 'hard:group=8' then, 'random' now"):
        sampler(pairs, None, "random").load_state_dict(state)
    with pytest.raises(RunError, match="batches: 'random' then"):
        made.load_state_dict({name: value for name, value in state.items() if name != "batches"})
    state["composition"] = state["composition"].clone()
    state["composition"][0] = state["composition"][1]
    with pytest.raises(RunError, match="damaged"):
        made.load_state_dict(state)


def test_specs() -> None:
    assert parse_batches("random") is None
    assert parse_batches("hard") == HardBatches()
    assert parse_batches(HardBatches(16, 9, 0.5).spec) == HardBatches(16, 9, 0.5)
    for spec, message in (
        ("hard:group=1", "2 or more"), ("harder", "Did you mean 'hard'"), ("hard:size=3", "no option 'size'"),
        ("random:group=3", "no option"), (7, "must be 'random'"), ("hard:share=0", "above 0"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            TrainOptions(batches=spec)  # type: ignore[arg-type]
    options = TrainOptions(batches=HardBatches(16))
    assert TrainOptions.from_json(options.to_json()).batches == "hard:group=16"


def test_a_training_without_mined_negatives_mines_for_its_batches(pairs: Pairs, tmp_path: Any) -> None:
    options = TrainOptions(steps=13, batch_size=32, negatives=0, batches="hard:group=8", refresh="steps:4", depth=20)
    result = hardneg.train(
        pairs, hardneg.HashedEncoder(16), tmp_path / "out", options, device="cpu", warn=lambda m: None
    )
    assert len(result["generations"]) == 2
    assert result["options"]["batches"] == "hard:group=8"
