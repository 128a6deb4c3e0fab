"""Two ranks encode a generation and an evaluation together: each its share, and the vectors are those of one rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardneg import HashedEncoder, Pairs, TrainOptions
from hardneg.bank.sampler import MemoryBankSampler
from hardneg.storage.files import fingerprint
from hardneg.training.batches import TrainingBatches
from hardneg.training.distributed import World, world
from hardneg.training.evaluation_set import EvaluationSet
from hardneg.training.negatives import MinedNegatives
from hardneg.training.share import Channel
from hardneg.training.towers import Towers

from .processes import on_two_ranks

COUNT = 2500  # documents: chunks of 1,024, 1,024 and 452


class Counted(HashedEncoder):
    """Counts the texts that it encodes, and may fail."""

    seen = 0
    fails_at = 1 << 60

    def encode(self, texts: Any, *, prompt: str = "") -> Any:
        Counted.seen += len(texts)
        if Counted.seen > Counted.fails_at:
            raise ValueError("the device is gone")
        return super().encode(texts, prompt=prompt)


def data() -> Pairs:
    return Pairs.from_columns(
        [f"question {i} of {i % 97}" for i in range(COUNT)], [f"answer {i} to {i % 89}" for i in range(COUNT)]
    )


def parts(here: World) -> tuple[Towers, MinedNegatives]:
    pairs, options = data(), TrainOptions(steps=4, refresh="steps:2", lag=1, depth=10, negatives=1)
    towers = Towers(
        Counted(dimension=16, buckets=512, seed=here.rank)
    )  # other weights on every rank, until they are shared
    for side in ("query", "document"):
        towers.tower(side).fitted = True
    batches = TrainingBatches(pairs, towers, options, here)
    assert isinstance(batches.sampler, MemoryBankSampler)
    return towers, MinedNegatives(pairs, towers, options, here, batches.sampler)


def story(here: World) -> dict[str, Any]:
    """What a training sees: two generations and an evaluation; and how many texts this rank encoded for each."""
    import torch

    torch.set_num_threads(1)
    towers, negatives = parts(here)
    told: dict[str, Any] = {"first": Counted.seen}

    def generation() -> str:
        assert negatives.index is not None
        now = negatives.index.generation
        assert now.neighbors is not None
        return fingerprint([now.checksum, now.neighbors.documents.tolist(), now.neighbors.scores.tolist()])

    told["generations"] = [generation()] if here.leads else []
    swapped = []
    for _ in range(4):
        with torch.no_grad():
            for parameter in towers.parameters():
                parameter.mul_(0.9).add_(0.01)
        swapped.append(negatives.updated())
    told |= {"swapped": swapped, "second": Counted.seen - told["first"]}
    told["generations"] += [generation()] if here.leads else []
    negatives.close()
    before = Counted.seen
    channel = Channel(here) if here.size > 1 else None
    told["evaluation"] = EvaluationSet(data()).evaluate(towers, ["ndcg@10"], channel)
    told["evaluated"] = Counted.seen - before
    return told


def failing(here: World) -> str:
    """What becomes of an evaluation in which rank 1 cannot encode."""
    towers, negatives = parts(here)
    negatives.close()
    Counted.fails_at = Counted.seen + 1000 if here.rank else Counted.fails_at
    channel = Channel(here)
    try:
        EvaluationSet(data()).evaluate(towers, ["ndcg@10"], channel)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "followed"


def tell_on(rank: int, folder: Path) -> None:
    with world("cpu") as here:
        told = [story(here), failing(here)]
    (folder / f"{rank}.json").write_text(json.dumps(told))


@pytest.mark.slow
def test_two_ranks_encode_what_one_does(tmp_path: Path) -> None:
    Counted.seen = 0
    with world("cpu") as here:
        one = story(here)
    on_two_ranks(tell_on, tmp_path)
    (first, said), (second, silent) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert len(one["generations"]) == 2
    assert one["generations"][0] != one["generations"][1]
    assert first["generations"] == one["generations"]
    assert first["evaluation"] == one["evaluation"] != {}
    assert second["evaluation"] == {}
    assert first["swapped"] == second["swapped"] == one["swapped"]
    assert any(one["swapped"])
    for part in ("first", "second", "evaluated"):
        assert first[part] + second[part] == one[part], part
        assert min(first[part], second[part]) >= 2000, part  # of 5,000: chunk 1 of each side, or chunks 0 and 2
    # A rank that cannot encode: rank 0 says so, and nobody waits for ever.
    assert said == "HardnegError: a rank could not encode: rank 1: the device is gone"
    assert silent == "followed" or "Connection closed" in silent  # rank 0 has left


def test_one_rank_asks_nobody() -> None:
    towers = Towers(HashedEncoder(dimension=16, buckets=64))
    towers.tower("query").fitted = True
    found = EvaluationSet(data()).evaluate(towers, ["recall@10"])
    assert np.isfinite(found["recall@10"])
    with pytest.raises(TypeError):
        EvaluationSet(data()).evaluate(towers)  # type: ignore[call-arg]
