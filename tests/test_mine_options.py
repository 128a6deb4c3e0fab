"""The options of mining and selecting: their types, and what is done to values before any work starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hardneg
from hardneg import MineOptions, Pairs, SelectOptions, UsageError
from hardneg.mining import parse_filters
from hardneg.mining.filters import Margin, Rank
from hardneg.mining.filters.base import Chain


def test_a_generator_of_filters_is_read_once() -> None:
    options = MineOptions(filters=(f"rank:max={i}" for i in (50, 60)))  # type: ignore[arg-type]
    options.validate()
    assert options.filters == ("rank:max=50", "rank:max=60")
    assert options.to_json()["filters"] == ["rank:max=50", "rank:max=60"]
    assert SelectOptions(filters=(each for each in ["group"])).filters == ("group",)  # type: ignore[arg-type]
    assert MineOptions(filters=Margin(relative=0.1) & Rank(max=3)).filters == (Margin(relative=0.1), Rank(max=3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given", ["margin:relative=0.05", Margin(relative=0.05), Margin, {"group"}, {"group": 1}, 3, b"group"]
)
def test_one_filter_is_no_list_of_filters(given: Any) -> None:
    for take in (
        lambda: MineOptions(filters=given),
        lambda: SelectOptions(filters=given),
        lambda: parse_filters(given),
    ):
        with pytest.raises(UsageError, match="filters is a list of"):
            take()


def test_numbers_of_numpy_and_paths_are_taken(tmp_path: Path) -> None:
    options = MineOptions(
        depth=np.int64(5), max_depth=np.uint8(6), negatives=np.int32(2), seed=np.uint64(3), recall=np.float32(0.5),  # type: ignore[arg-type]
        default_filters=np.bool_(False), query_embeddings=tmp_path / "q.npy", corpus_embeddings=tmp_path / "d.npy",  # type: ignore[arg-type]
    )  # fmt: skip
    options.validate()
    written = json.loads(json.dumps(options.to_json()))
    assert (written["depth"], written["max_depth"], written["negatives"], written["seed"]) == (5, 6, 2, 3)
    assert written["default_filters"] is False
    assert written["query_embeddings"] == str(tmp_path / "q.npy")
    assert SelectOptions(negatives=np.int64(2)).negatives == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *((name, (1.0, "3", True, [3], np.nan)) for name in ("depth", "max_depth", "negatives", "seed")),
        ("recall", ("0.9", True, None, float("nan"), float("inf"))),
        ("default_filters", (1, "yes", None)),
        *((name, (3, None, b"x")) for name in ("encoder", "metric", "precision")),
        *((name, (3, b"x")) for name in ("query_prompt", "document_prompt")),
        ("query_embeddings", (3, np.zeros(3))),
        ("index_device", (0, None)),
        ("index", (3, None)),
        ("read", ({}, None)),
    ],
)  # fmt: skip
def test_wrong_types_are_refused_by_name(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(UsageError, match=f"the option {name} must be .* not "):
            MineOptions(**{name: value}).validate()
    if name in ("negatives", "seed", "default_filters"):
        for value in values:
            if value is not None:
                with pytest.raises(UsageError, match=f"the option {name} must be .* not "):
                    SelectOptions(**{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (MineOptions(filters=("guide:nope",)), "the filter 'guide' needs the encoder 'nope', which is unknown"),
        (MineOptions(filters=("guide:st:",)), "'st:', which is incomplete"),
        (MineOptions(index_device="cudda"), "the device 'cudda' cannot be used"),
        (MineOptions(index_device="cuda", index="ivf"), "the index 'ivf' runs on the processor only"),
        (MineOptions(sampler=None), "a sampler is written as a spec"),  # type: ignore[arg-type]
        (MineOptions(filters=(None,)), "a filter is written as a spec"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_what_is_found_before_any_work(options: MineOptions, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        hardneg.mine("nowhere.jsonl", tmp_path / "run", options)
    assert not (tmp_path / "run").exists()


def test_select_checks_guides_and_seeds_first(tmp_path: Path) -> None:
    pairs = Pairs.from_columns([f"q{i}" for i in range(9)], [f"d{i}" for i in range(9)])
    run = hardneg.mine(pairs, tmp_path / "run", MineOptions(depth=9))
    for options, message in (
        (SelectOptions(filters=("guide:nope",)), "'nope', which is unknown"),
        (SelectOptions(seed=-1), "the seed -1 must be"),
    ):
        with pytest.raises(UsageError, match=message):
            hardneg.select(run, options, tmp_path / "again")
        assert not (tmp_path / "again").exists()


def test_too_many_filters_are_refused() -> None:
    assert len(parse_filters([Rank(max=i + 1) for i in range(96)]).filters) == 100
    with pytest.raises(UsageError, match="104 filters are too many: use at most 100"):
        parse_filters([Rank(max=i + 1) for i in range(100)])
    with pytest.raises(UsageError, match="too many"):
        Chain([Rank()] * 200)
