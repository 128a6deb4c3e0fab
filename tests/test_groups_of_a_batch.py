"""A batch that is trained on is encoded in groups of texts of similar length: the same vectors and gradients, less padding."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hardneg.encoders.batches import _GROUP, groups
from hardneg.encoders.sentence_transformers import SentenceTransformersEncoder

TEXTS = [
    "one",
    *(f"{'some more words ' * 7}{i}" for i in range(5)),
    "two of them",
    *(f"short {i}" for i in range(20)),
    "",
]


def features_of(lengths: list[int], side: str) -> dict[str, object]:
    """Tokens 1, 2, ... of texts of these lengths, filled up with 0 on a side."""
    width = max(lengths)
    mask = torch.tensor([[1] * n + [0] * (width - n) for n in lengths])
    mask = mask if side == "right" else mask.flip(1)
    return {"attention_mask": mask, "input_ids": mask.cumsum(1) * mask, "modality": "text"}


def least(lengths: list[int]) -> int:
    """The lowest cost of all ways to cut the sorted lengths, by trying each."""
    ordered, found = sorted(lengths, reverse=True), []
    for cuts in range(len(lengths)):
        for places in itertools.combinations(range(1, len(lengths)), cuts):
            spans = itertools.pairwise([0, *places, len(lengths)])
            found.append(sum((b - a) * ordered[a] + _GROUP for a, b in spans))
    return min(found)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=9), st.sampled_from(["right", "left"]))
@settings(max_examples=60, deadline=None)
def test_groups_have_the_fewest_tokens_and_lose_none(lengths: list[int], side: str) -> None:
    made = groups(features_of(lengths, side), len(lengths))
    assert sorted(np.concatenate([each.rows for each in made]).tolist()) == list(range(len(lengths)))
    cost = 0
    for each in made:
        mask, tokens = each.features["attention_mask"], each.features["input_ids"]
        cost += mask.numel() + _GROUP
        for row, length in enumerate(lengths[i] for i in each.rows):
            assert tokens[row][mask[row] > 0].tolist() == list(range(1, length + 1))
        assert each.features["modality"] == "text"
    assert cost == least(lengths)


def test_a_large_batch_is_cut_in_few_places() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 257, 5000)
    made = groups({"attention_mask": torch.arange(256) < torch.from_numpy(lengths)[:, None]}, len(lengths))
    assert sum(each.features["attention_mask"].numel() for each in made) < 1.02 * lengths.sum()
    assert len(made) < 150


def whole(model: nn.Module) -> Callable[[list[str]], torch.Tensor]:
    return lambda texts: model(model.preprocess(texts))["sentence_embedding"]  # type: ignore[operator]


def test_vectors_and_gradients_are_those_of_the_whole_batch(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardneg.encoders.batches._GROUP", 4)
    model = SentenceTransformersEncoder(str(tiny_model), device="cpu").model.eval()
    other = copy.deepcopy(model)
    seen: list[tuple[int, ...]] = []
    model[0].register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0]["attention_mask"].shape)))
    made, expected = SentenceTransformersEncoder(model).vectors(TEXTS), whole(other)(TEXTS)
    assert len(seen) > 2
    assert sum(rows for rows, _ in seen) == len(TEXTS)
    assert sum(rows * length for rows, length in seen) < 0.5 * len(TEXTS) * max(length for _, length in seen)
    assert (made - expected).abs().max() < 1e-5
    weights = torch.linspace(-1, 1, made.numel()).reshape(made.shape)
    for vectors in (made, expected):
        (vectors * weights).sum().backward()
    for (name, here), there in zip(model.named_parameters(), other.parameters(), strict=True):
        assert (here.grad is None) == (there.grad is None), name
        if here.grad is not None and there.grad is not None:
            assert (here.grad - there.grad).abs().max() <= 1e-4 * max(1e-3, float(there.grad.abs().max())), name


def test_a_model_that_looks_at_the_batch_gets_whole_batches(tiny_model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    class Centered(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(size)

        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {**features, "sentence_embedding": self.norm(features["sentence_embedding"])}

    base = SentenceTransformersEncoder(str(tiny_model), device="cpu")
    torch.manual_seed(0)
    model = SentenceTransformer(modules=[*base.model, Centered(base.dimension)], device="cpu").train()
    for each in model.modules():
        if isinstance(each, nn.Dropout):
            each.p = 0.0
    with torch.no_grad():
        made, expected = SentenceTransformersEncoder(model).vectors(TEXTS), whole(model)(TEXTS)
    assert torch.equal(made, expected)
    assert made.mean(0).abs().max() < 1e-5
