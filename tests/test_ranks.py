"""A transformer on two ranks: weights as on one, though its pooler has no gradient and it encodes twice before the gradients."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hardneg
from hardneg.encoders.sentence_transformers import SentenceTransformersEncoder
from hardneg.training.distributed import _buckets
from hardneg.training.towers import Towers

from .processes import on_two_ranks
from .test_encoders import minilm

TOPICS = ("rivers", "engines", "painters", "glaciers", "planets", "spices", "castles", "bridges")


def pairs(count: int = 32) -> hardneg.Pairs:
    kinds = [TOPICS[i % len(TOPICS)] for i in range(count)]
    return hardneg.Pairs.from_columns(
        [f"what is known of {kind} number {i}" for i, kind in enumerate(kinds)],
        [f"a report on {kind}, part {i}, with figures" for i, kind in enumerate(kinds)],
    )


def towers(several: bool) -> Towers:
    """MiniLM without dropout, whose numbers would differ between one process and two."""
    made = []
    for _ in range(1 + several):
        model = SentenceTransformersEncoder(minilm(), device="cpu")
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        made.append(model)
    return Towers(*made)


OPTIONS = {"steps": 3, "negatives": 1, "refresh": "never", "depth": 8, "learning_rate": 1e-4, "warmup": 0.0,
           "filters": (), "negative_sampling": "top", "weight_decay": 0.1, "bank": 0, "mini_batch_size": None}  # fmt: skip


def train_on(rank: int, folder: Path, several: bool, changed: dict[str, object]) -> None:
    options = hardneg.TrainOptions(**{**OPTIONS, "batch_size": 4, **changed})  # type: ignore[arg-type]
    hardneg.train(pairs(), towers(several), folder / "two", options, device="cpu", warn=lambda message: None)


def trained_weights(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        for name, tensor in load_file(path).items():
            found[f"{path.relative_to(folder)}/{name}"] = tensor
    return found


@pytest.mark.parametrize(
    ("several", "changed"),
    [(False, {}), (True, {"mini_batch_size": 3})],
    ids=["one encoder", "two encoders in mini-batches"],
)
@pytest.mark.slow
def test_a_transformer_on_two_ranks_trains_as_on_one(tmp_path: Path, several: bool, changed: dict[str, object]) -> None:
    on_two_ranks(partial(train_on, several=several, changed=changed), tmp_path)
    options = hardneg.TrainOptions(**{**OPTIONS, "batch_size": 8})  # type: ignore[arg-type]
    hardneg.train(pairs(), towers(several), tmp_path / "one", options, device="cpu", warn=lambda message: None)
    one, two = (trained_weights(tmp_path / name / "last") for name in ("one", "two"))
    before = trained_weights(Path(minilm()))
    assert one.keys() == two.keys()
    moved = 0
    for name, tensor in one.items():
        np.testing.assert_allclose(two[name], tensor, atol=3e-5)
        original = before["model.safetensors/" + name.rsplit("/", 1)[1]]
        if "pooler" in name:  # it takes no part: neither gradients nor weight decay reach it
            assert np.array_equal(tensor, original)
            assert np.array_equal(two[name], original)
        else:
            moved += not np.array_equal(tensor, original)
    assert moved > 50


def test_buckets_hold_all_gradients_in_order() -> None:
    gradients = [torch.zeros(n) for n in (3, 4, 100, 1, 1)] + [torch.zeros(2, dtype=torch.float64)]
    found = list(_buckets(gradients, most=8))
    assert [[g.numel() for g in bucket] for bucket in found] == [[3, 4], [100], [1, 1], [2]]
