"""Hard batches by the vectors that the training made: what is near what, what is forgotten, resumed, shared by ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hardneg
from hardneg.bank.pair_graph import PairVectors
from hardneg.bank.sampler import MemoryBankSampler
from hardneg.data.pairs import Pairs
from hardneg.errors import RunError, UsageError
from hardneg.training.options import TrainOptions

from .processes import on_two_ranks
from .test_hard_batches import EACH, TOPICS, pairs  # noqa: F401
from .test_trainer import encoder, made_pairs, quiet, weights

BY_TRAINING = "hard:group=8,graph=training"


def random_vectors(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 24, generator=torch.Generator().manual_seed(seed))


def several() -> Pairs:
    """40 queries with one to three positives, some shared, and documents that nobody owns."""
    rng = np.random.default_rng(4)
    positives = [[f"answer {j}" for j in rng.choice(60, int(rng.integers(1, 4)), replace=False)] for _ in range(40)]
    return Pairs.from_columns([f"question {i}" for i in range(40)], positives, corpus=[f"note {i}" for i in range(9)])


def filled(of: Pairs, seed: int = 0) -> tuple[PairVectors, np.ndarray, np.ndarray]:
    made = PairVectors(of, of.known_positives())
    queries, documents = random_vectors(len(of), seed), random_vectors(len(of.document_ids), seed + 1)
    rows, owned = of.positives.row_numbers(), of.positives.values
    for some in np.array_split(np.arange(len(rows)), 7):
        made.write(rows[some], owned[some], 3 * queries[rows[some]], documents[owned[some]])
    return made, *(torch.nn.functional.normalize(x, dim=1).half().float().numpy() for x in (queries, documents))


def test_the_nearest_positives_of_others() -> None:
    of = several()
    made, queries, documents = filled(of)
    found = made.near(10)
    assert found is not None
    owned, known = set(of.positives.values.tolist()), of.known_positives()
    for i in range(len(of)):
        own = set(known.take(np.array([i])).values.tolist())
        scores = queries[i] @ documents.T
        expected = [int(j) for j in np.argsort(-scores, kind="stable") if int(j) in owned - own][:10]
        assert found.documents[i][found.kept[i]].tolist()[:10] == expected
        assert not own & set(found.documents[i][found.kept[i]].tolist())


def test_what_was_not_trained_on_or_is_no_number_is_near_nothing() -> None:
    of = several()
    made = PairVectors(of, of.known_positives())
    assert made.near(5) is None
    rows = np.arange(6)
    positives = of.positives.values[of.positives.offsets[:6]]
    vectors = random_vectors(6, 0)
    vectors[2], vectors[3], vectors[4, 1] = float("nan"), 0.0, float("inf")
    made.write(rows, positives, vectors, random_vectors(6, 1))
    found = made.near(5)
    assert found is not None
    near = found.kept.sum(1) > 0
    assert near.tolist() == [True, True, False, False, False, True] + [False] * 34
    assert set(found.documents[found.kept].tolist()) <= set(positives.tolist())
    made.write(rows[:1], positives[:1], vectors[2:3], vectors[2:3])  # a vector that broke takes the place of a good one
    again = made.near(5)
    assert again is not None
    assert not again.kept[0].any()
    assert positives[0] not in set(again.documents[again.kept].tolist())


def test_neighbors_in_a_mixture_are_of_one_source() -> None:
    first, second = made_pairs(), several()
    mixed = hardneg.mixture({"a": first, "b": second})
    made, _, _ = filled(mixed)
    found = made.near(12)
    assert found is not None
    assert mixed.mixed is not None
    for source in range(2):
        start, stop = mixed.mixed.span(source)
        documents = found.documents[mixed.mixed.rows(source)]
        assert ((documents < 0) | ((documents >= start) & (documents < stop))).all()
        assert (found.kept[mixed.mixed.rows(source)].sum(1) >= 12).all()


def topical_vectors(sampler: MemoryBankSampler, batch: list[Any]) -> None:
    """A direction for each topic, with some noise."""
    rows = np.array([[each.query, each.positive] for each in batch])
    noise = random_vectors(2 * len(batch), len(batch))
    side = torch.eye(24)[torch.from_numpy(rows[:, 0] % TOPICS)]
    sampler.keep_vectors(rows[:, 0], rows[:, 1], side + 0.05 * noise[::2], side + 0.05 * noise[1::2])


def test_the_first_epoch_is_random_and_then_topics_stand_together(pairs: Pairs) -> None:  # noqa: F811
    made = MemoryBankSampler(pairs, batch_size=32, negatives=0, batches=BY_TRAINING)
    topics = []
    for _ in range(3):
        each = []
        for batch in made:
            topical_vectors(made, batch)
            each.append(len({example.query % TOPICS for example in batch}))
            made.advance()
        assert len(each) == TOPICS * EACH // 32
        topics.append(float(np.mean(each)))
        made.end_epoch()
    assert topics[0] > 9
    assert max(topics[1:]) < 6


def test_a_sampler_goes_on_from_any_batch(pairs: Pairs) -> None:  # noqa: F811
    def go_on(made: MemoryBankSampler, batches: int) -> list[list[tuple[int, int]]]:
        found: list[list[tuple[int, int]]] = []
        while len(found) < batches:
            for batch in made:
                topical_vectors(made, batch)
                made.advance()
                found.append([(each.query, each.positive) for each in batch])
                if len(found) == batches:
                    break
            else:
                made.end_epoch()
        return found

    def new() -> MemoryBankSampler:
        return MemoryBankSampler(pairs, batch_size=32, negatives=0, batches=BY_TRAINING)

    whole = go_on(new(), 15)
    for done in range(1, 14):
        first, second = new(), new()
        go_on(first, done)
        second.load_state_dict(first.state_dict())
        assert go_on(second, 15 - done) == whole[done:]


def test_vectors_where_none_are_kept_and_states_of_other_pairs(pairs: Pairs) -> None:  # noqa: F811
    made = MemoryBankSampler(pairs, batch_size=32, negatives=0, batches="hard:group=8")
    with pytest.raises(UsageError, match=r"graph=training' only, not for 'hard:group=8'"):
        made.keep_vectors(np.arange(2), np.arange(2), torch.eye(2), torch.eye(2))
    with pytest.raises(UsageError, match="graph='mind' must be one of mined, training"):
        TrainOptions(batches="hard:graph=mind")
    vectors = filled(several())[0]
    state = vectors.state_dict()
    for broken in (
        {"queries": state["queries"]}, {**state, "documents": state["documents"][1:]}, {**state, "queries": state["queries"].float()},
        {**state, "queries": state["queries"] * float("inf")}, {**state, "documents": state["documents"][:, 1:]},
    ):  # fmt: skip
        with pytest.raises(RunError, match="vectors of other pairs, or damaged"):
            vectors.load_state_dict(broken)


OPTIONS = {
    "steps": 22, "batch_size": 16, "negatives": 0, "filters": (), "batches": BY_TRAINING, "learning_rate": 0.01, "log_every": 1,
    "save_every": 1,
}  # fmt: skip


class Stop:
    """Ends a training in the middle, as an error would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def log(self, step: int, values: dict[str, float]) -> None:
        if step >= self.step:
            raise OSError("the end")

    def close(self) -> None:
        pass


def test_a_training_encodes_nothing_for_it_and_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    of, asked = made_pairs(), []

    class Counted(hardneg.HashedEncoder):
        def encode(self, texts: Any, *, prompt: str = "") -> np.ndarray:
            asked.append(len(texts))
            return super().encode(texts, prompt=prompt)

    def train(out: str, model: Any, **more: Any) -> dict[str, Any]:
        return hardneg.train(of, model, tmp_path / out, TrainOptions(**OPTIONS), device="cpu", warn=quiet, **more)  # type: ignore[arg-type]

    model = Counted(dimension=16, buckets=512)
    model.fitted = True
    result = train("whole", model)
    assert not asked
    assert not result.get("generations")
    random = hardneg.train(
        of, encoder(), tmp_path / "random", TrainOptions(**{**OPTIONS, "batches": "random"}), device="cpu", warn=quiet  # type: ignore[arg-type]
    )  # fmt: skip
    assert random["steps"] == result["steps"]
    whole = train("again", encoder())
    for step in (4, 8, 13):
        with pytest.raises(OSError, match="the end"):
            train(f"cut {step}", encoder(), callbacks=[Stop(step)])
        resumed = train(f"cut {step}", encoder(), resume=True)
        assert resumed["steps"] == whole["steps"]
        assert (weights(tmp_path / f"cut {step}" / "last") == weights(tmp_path / "again" / "last")).all()
    assert (weights(tmp_path / "random" / "last") != weights(tmp_path / "again" / "last")).any()


def train_on(rank: int, folder: Path) -> None:
    options = TrainOptions(**{**OPTIONS, "batch_size": 8})  # type: ignore[arg-type]
    hardneg.train(made_pairs(), encoder(), folder / "two", options, device="cpu", warn=quiet)


def test_two_ranks_compose_the_batches_of_one(tmp_path: Path) -> None:
    on_two_ranks(train_on, tmp_path)
    hardneg.train(made_pairs(), encoder(), tmp_path / "one", TrainOptions(**OPTIONS), device="cpu", warn=quiet)  # type: ignore[arg-type]
    difference = np.abs(weights(tmp_path / "two" / "last") - weights(tmp_path / "one" / "last"))
    assert np.median(difference) < 1e-3
