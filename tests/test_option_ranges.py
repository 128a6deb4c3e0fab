"""What the help shows of a number is what is accepted."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import click
import pytest
from hardneg_cli.main import cli
from hardneg_cli.options import THREADS, Finite
from hardneg_cli.train import train

from hardneg.errors import UsageError
from hardneg.index.vectors import MOST_THREADS
from hardneg.mining.options import MineOptions
from hardneg.training.options import TrainOptions

from .conftest import run_here

NEEDED: dict[str, dict[str, Any]] = {
    name: {"bank": 8} for name in ("bank_age", "bank_start", "bank_fresh", "momentum")
} | {"temperature": {"metric": "ip"}}


def around(kind: Any) -> list[tuple[float, bool]]:
    """(value, whether the help says that it is accepted) at both ends of a range and just outside."""
    whole = isinstance(kind, click.IntRange)
    found: list[tuple[float, bool]] = []
    for end, is_open, away in ((kind.min, kind.min_open, -1), (kind.max, kind.max_open, 1)):
        if end is not None:
            out = end + away if whole else math.nextafter(end, away * math.inf)
            inside = end - away if whole else math.nextafter(end, -away * math.inf)
            found += [(out, False), (end, not is_open), (inside, True)]
    return found


def accepted(kind: Any, **given: Any) -> bool:
    try:
        kind(**given)
    except UsageError:
        return False
    return True


def mine_with(**given: Any) -> None:
    MineOptions(**given).validate()


def numbers() -> list[click.Parameter]:
    known = {field.name for field in fields(TrainOptions)}
    return [each for each in train.params if isinstance(each.type, click.IntRange | Finite) and each.name in known]


@pytest.mark.parametrize("option", numbers(), ids=lambda each: each.name)
def test_of_train(option: click.Parameter) -> None:
    name = str(option.name)
    for value, shown in around(option.type):
        given = value if name != "max_grad_norm" or value else None  # 0 switches clipping off
        assert accepted(TrainOptions, **{name: given}, **NEEDED.get(name, {})) == shown, value


def test_of_mine() -> None:
    command = cli.get_command(click.Context(cli), "mine")  # type: ignore[attr-defined]
    options = {each.name: each.type for each in command.params}
    for name in ("recall", "seed"):
        for value, shown in around(options[name]):
            assert accepted(mine_with, **{name: value}) == shown, (name, value)
    assert (THREADS.min, THREADS.max) == (1, MOST_THREADS)


def test_no_number_is_shown_without_its_range() -> None:
    free = {"relevant_from", "promote_from", "cut"}  # grades and scores of others
    context = click.Context(cli)
    for name in cli.list_commands(context):  # type: ignore[attr-defined]
        for each in cli.get_command(context, name).params:  # type: ignore[attr-defined]
            bare = isinstance(each.type, click.types.FloatParamType | click.types.IntParamType)
            if bare and not isinstance(each.type, click.IntRange | Finite):
                assert each.name in free, (name, each.name)


def test_the_answer_names_the_range() -> None:
    for words, message in (
        (("train", "a.jsonl", "--out", "x", "--learning-rate", "0"), "0.0 is not in the range x>0"),
        (("train", "a.jsonl", "--out", "x", "--epochs", "nan"), "nan is not"),
        (("mine", "a.jsonl", "--out", "x", "--recall", "0"), "0<x<=1"),
        (("calibrate", "run", "--confidence", "0.4"), "0.5<=x<1"),
        (("judge", "run", "--out", "f.csv", "--seed", str(2**70)), "is not in the range"),
    ):
        done = run_here(*words)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr, done.stderr
    assert "[x>0" in run_here("train", "--help").stdout
