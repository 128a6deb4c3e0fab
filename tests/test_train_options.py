"""Options of a training: every type and limit, when they are created and from the command line; options that do not fit."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hardneg
from hardneg.bank.curriculum import Curriculum
from hardneg.errors import RunError, UsageError
from hardneg.losses.variants import Variants
from hardneg.training.options import TrainOptions

from .conftest import run_here
from .test_trainer import encoder, made_pairs

WRONG: tuple[Any, ...] = (None, "8", 2.5, math.nan, math.inf, -1, 10**30, (), object(), b"x")


@pytest.mark.parametrize("name", [each.name for each in fields(TrainOptions)])
def test_wrong_types_are_refused_by_name(name: str) -> None:
    """A value is refused with the name of its option, or it is the value of the option afterwards."""
    refused = 0
    for value in WRONG:
        try:
            made = TrainOptions(
                **{name: value, **({"bank": 8} if name in ("momentum", "bank_age", "bank_start") else {})}
            )
        except UsageError as error:
            said, refused = str(error), refused + 1
        else:
            # A temperature that is left out is that of the metric.
            assert getattr(made, name) == (0.05 if name == "temperature" and value is None else value)
            continue
        if name not in ("filters", "negative_sampling", "refresh", "measures"):  # those say what is wrong with the spec
            assert name in said
    assert refused >= 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": True}, "batch_size=True must be an integer"),
        ({"batch_size": 8.0}, "batch_size=8.0 must be an integer"),
        ({"seed": 2**32}, "seed=4294967296 must be 0 to 4294967295"),
        ({"seed": -1}, "seed=-1 must be 0 to 4294967295"),
        ({"workers": 10**6}, "workers=1000000 must be 0 to 1024"),
        ({"epochs": math.inf}, "epochs=inf must be above 0 and at most 1e+09, and finite"),
        ({"temperature": math.nan}, "temperature=nan must be 0.005 or more and at most 1, and finite"),
        ({"temperature": 0.001}, "temperature=0.001 must be 0.005 or more"),
        ({"weight_decay": math.nan}, "weight_decay=nan must be 0 or more"),
        ({"max_grad_norm": math.inf}, "max_grad_norm=inf must be above 0, and finite"),
        ({"share": math.nan}, "share=nan must be above 0 and at most 1"),
        ({"bank": 8, "momentum": math.nan}, "momentum=nan must be 0 or more and below 1"),
        ({"bank": 8, "momentum": 1.0}, "momentum=1.0 must be 0 or more and below 1"),
        ({"bank": 10**30}, "bank=1" + "0" * 30 + " must be 0 to"),
        ({"lag": -1}, "lag=-1 must be 0 or more"),
        ({"index": 0}, "index=0 must be the name of an index"),
        ({"index": "x"}, "index='x'. Known: auto, exact, ivf, hnsw"),
        ({"filters": "group"}, "filters='group' must be a tuple of texts, even if it is only one"),
        ({"measures": "mrr@10"}, "measures='mrr@10' must be a tuple of texts"),
        ({"measures": (3,)}, "unknown measure 3"),
        ({"measures": ("mrr@" + "9" * 6000,)}, "unknown measure"),
        ({"dimensions": (0,)}, "dimensions=0 must be 1 or more"),
        ({"dimensions": ()}, "dimensions must name one length or more"),
        ({"wait": 1}, "wait=1 must be True or False"),
        ({"refresh": None}, "refresh=None must be a text"),
        ({"variants": {}}, "variants={} must be a Variants(...)"),
    ],
)
def test_limits_are_checked_when_options_are_created(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        TrainOptions(**given)


def test_numbers_of_numpy_and_iterables_are_taken() -> None:
    options = TrainOptions(
        batch_size=np.int32(8), seed=np.uint64(3), learning_rate=np.float32(0.5), filters=(spec for spec in ["group"]),
        measures=["mrr@10"], dimensions=np.array([4, 8]),
    )  # fmt: skip
    assert options == TrainOptions(
        batch_size=8, seed=3, learning_rate=0.5, filters=("group",), measures=("mrr@10",), dimensions=(4, 8)
    )
    assert type(options.batch_size) is int
    assert TrainOptions.from_json(options.to_json()) == options


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (Variants, {"beta": math.nan}),
        (Variants, {"margin_absolute": math.nan}),
        (Variants, {"guide_margin": math.inf}),
        (Variants, {"suspect_above": 1.5}),
        (Variants, {"symmetric": 1}),
        (Variants, {"tau_plus": None}),
        (Curriculum, {"start": math.nan}),
        (Curriculum, {"batches": math.inf}),
        (Curriculum, {"batches": 0}),
    ],
)
def test_parts_of_options_are_checked(make: type, given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(given))):
        make(**given)


@pytest.mark.parametrize("wrong", [None, [], {"filters": []}, {"filters": [3]}, {"epochs": "x", "filters": []}])
def test_options_of_a_damaged_file_are_refused(wrong: Any) -> None:
    with pytest.raises(RunError, match="not the options of a training"):
        TrainOptions.from_json(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--temperature nan", "--temperature"),
        ("--temperature 0", "'--temperature': 0.0 is not in the range"),
        ("--weight-decay nan", "--weight-decay"),
        ("--bank 8 --momentum nan", "--momentum"),
        ("--bank 8 --momentum 1", "--momentum"),
        ("--share nan", "--share"),
        ("--epochs inf", "--epochs"),
        ("--epochs 1e300", "'--epochs': 1e+300 is not in the range"),
        ("--learning-rate inf", "--learning-rate"),
        ("--seed 99999999999999999999", "--seed"),
        ("--bank 99999999999999", "bank=99999999999999: the rows"),
        ("--bank 99999999999999999999", "bank=99999999999999999999 must be"),
        ("--negatives 99999999999999", "negatives=99999999999999 of"),
        ("--batch-size 1 --negatives 0", "batch_size=1 with negatives=0 and bank=0"),
        ("--dropout 1", "--dropout"),
        ("--dropout 2", "--dropout"),
        ("--dropout nan", "--dropout"),
        ("--warmup nan", "--warmup"),
        ("--max-grad-norm inf", "--max-grad-norm"),
    ],
)
def test_the_command_refuses_before_it_makes_a_folder(tmp_path: Path, beir: Path, options: str, message: str) -> None:
    done = run_here("train", beir, "--out", tmp_path / "out", "--device", "cpu", *options.split())
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        (made_pairs(), {"batch_size": 1, "negatives": 0}, "batch_size=1 with negatives=0 and bank=0: no query would"),
        (
            hardneg.Pairs.from_columns(["a"], ["b"], corpus=["c"]),
            {"batch_size": 8, "negatives": 0},
            "a single pair with negatives=0",
        ),
        (made_pairs(10), {"negatives": 30}, "negatives=30 of 30 documents"),
        (made_pairs(), {"dimensions": (8, 64)}, "dimensions=(8, 64): the vectors have 16 components"),
    ],
)
def test_options_that_do_not_fit_the_data_are_refused_before_work(
    tmp_path: Path, pairs: hardneg.Pairs, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        hardneg.train(pairs, encoder(), tmp_path / "out", TrainOptions(**options), device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_always_zero_is_said_once(tmp_path: Path) -> None:
    """Every document is of one group, so the filter masks every negative."""
    texts = [f"text {i}" for i in range(32)]
    pairs = hardneg.Pairs.from_columns([f"query {i}" for i in range(32)], texts, groups=[0] * 32)
    said: list[str] = []
    options = TrainOptions(steps=7, batch_size=8, negatives=0, filters=("group",), log_every=3)
    result = hardneg.train(pairs, encoder(), tmp_path / "out", options, device="cpu", warn=said.append)
    assert len(said) == 1
    assert "step 3: every negative of every query was masked in 3 of the last 3 batches, so their loss is 0" in said[0]
    assert result["warnings"] == said
