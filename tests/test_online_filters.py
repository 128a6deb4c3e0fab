"""Filters in the loss: what they mask, and what is said of those that the loss does not use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import hardneg
from hardneg.errors import UsageError
from hardneg.false_negatives.features import SHARED_FEATURES
from hardneg.false_negatives.model import Posterior
from hardneg.losses.infonce import InfoNCE
from hardneg.losses.variants import Variants
from hardneg.mining.candidates import Candidates, Context
from hardneg.mining.specs import parse_filters
from hardneg.training.online_filters import OnlineFilters, Rows

from .test_trainer import made_pairs

CPU = torch.device("cpu")


def online(specs: list[str], pairs: hardneg.Pairs | None = None) -> OnlineFilters:
    pairs = pairs or made_pairs(groups=True)

    class Store:
        documents = np.ones((len(pairs.document_ids), 2), np.float32)

    context = Context(
        pairs, lambda: None, pairs.known_positives(), lambda model: (np.ones((len(pairs), 2)), Store), None
    )
    return OnlineFilters(parse_filters(specs, training=True), pairs, context, CPU)


def posterior(folder: Path, name: str, threshold: float) -> str:
    made = Posterior(tuple(SHARED_FEATURES), (1.0, 1.0, 1.0), -1.0, threshold, "judgements", {}, {})
    made.save(folder / name)
    return f"posterior:{folder / name}"


def test_filters_that_the_loss_does_not_use_are_named(tmp_path: Path) -> None:
    first, second = posterior(tmp_path, "a.json", 0.3), posterior(tmp_path, "b.json", 0.4)
    cases: list[tuple[list[str], list[str]]] = [
        (["group", "margin:absolute=0.1", "margin:relative=0.2", "shared-neighbors:max=0.5"], []),
        (["rank:max=9"], ["rank"]),
        (["duplicate:near=0.9"], ["duplicate:near=0.9"]),
        (["guide:hashed", "guide:st:other"], ["guide:st:other"]),
        (["guide:hashed", "guide:hashed,margin=0.1"], []),
        ([first, second], [first]),
        (["shared-neighbors:max=0.5", first], ["shared-neighbors:max=0.5"]),
        (["posterior:learned", first], [first]),
        (["posterior:learned", "shared-neighbors:max=0.5"], ["shared-neighbors:max=0.5"]),
        (["shared-neighbors:max=0.5", "shared-neighbors:max=0.3"], []),
    ]
    for specs, named in cases:
        assert online(specs).mined_only == named, specs
    with pytest.raises(UsageError, match="2 filters 'posterior:learned' with different thresholds: give one"):
        online(["posterior:learned", "posterior:learned,threshold=0.4"])


def test_of_several_limits_the_strictest_counts(tmp_path: Path) -> None:
    guides = online(["guide:hashed,margin=0.1", "guide:hashed,margin=0.3", "guide:hashed"])
    assert guides.variants(Variants()).guide_margin == 0.3
    shared = online(["shared-neighbors:max=0.5", "shared-neighbors:max=0.3"])
    assert shared.posterior is not None
    assert shared.posterior.intercept == -0.3
    both = online([posterior(tmp_path, "a.json", 0.3), posterior(tmp_path, "b.json", 0.4)])
    assert both.limit == 0.4  # of the one that is used


def test_groups_of_all_positives_are_masked() -> None:
    """The query has no group; its two positives are of the groups 1 and 2. Against the filter on candidates."""
    pairs = hardneg.Pairs.from_columns(
        ["one", "two", "three"], [["a", "b"], ["c"], ["d"]], corpus=["e", "f"], groups=None
    )
    groups = {"document_groups": np.array([1, 2, 2, 3, 1, 4]), "query_groups": np.array([-1, -1, 3])}
    pairs = replace(pairs, **groups)
    filters = online(["group"], pairs)
    rows = Rows(torch.arange(3), torch.tensor([0, 2, 3]), torch.tensor([4, 5]), torch.tensor([1, 3]))
    loss = InfoNCE(0.5)
    vectors = torch.randn(10, 4)
    loss(vectors[:3], vectors[3:6], shared=vectors[6:8], bank=vectors[8:], **filters.masks(rows))
    documents = np.array([0, 2, 3, 4, 5, 1, 3], np.int32)
    table = np.tile(documents, (3, 1))
    context = Context(pairs, lambda: None, pairs.known_positives(), None, None)
    zeros = np.zeros(table.shape, np.float32)
    candidates = Candidates(np.arange(3), table, zeros, zeros[:, 0], np.empty((3, 0), np.float32))
    masked = parse_filters(["group"]).verdicts(candidates, context) != 0
    own = np.arange(3), np.arange(3)
    masked[own] = False  # what is no negative is not masked either
    assert float(loss.statistics["masked"]) == pytest.approx(masked.sum() / (masked.size - 3))
    masked[own] = True
    assert masked[0].tolist() == [True, True, False, True, False, True, False]
