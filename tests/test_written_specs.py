"""What is written of filters, samplers and indexes: a spec only if it makes the same object again, else what the object was."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import hardneg
from hardneg import Filter, MineOptions, Pairs, SelectOptions, UsageError, registry
from hardneg.index import ExactIndex
from hardneg.mining import Candidates, Context, parse_filter, parse_filters, parse_sampler
from hardneg.mining.filters import Margin, Rank
from hardneg.mining.samplers import Softmax
from hardneg.mining.spec_options import object_text, same, value_text
from hardneg.registry import spec_of

HERE = "object:tests.test_written_specs."


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return Pairs.from_columns([f"question {i}" for i in range(40)], [f"answer {i}" for i in range(40)])


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`registry.register`, undone after the test."""
    for kind in ("filter", "sampler"):
        monkeypatch.setitem(registry._PARTS, kind, dict(registry._PARTS[kind]))
    return registry.register


class Stricter(Margin):
    """A subclass that inherits the name of a built-in filter, but not what it keeps."""

    def keep(self, candidates: Candidates, context: Context, alive: NDArray[np.bool_]) -> NDArray[np.bool_]:
        kept: NDArray[np.bool_] = candidates.documents % 2 == 0
        return kept


class Last:
    """A sampler that calls itself by the name of a built-in one."""

    name = "top"

    def __init__(self, power: float = 1.0) -> None:
        self.power = power

    def log_weights(self, candidates: Candidates) -> NDArray[np.float64]:
        return self.power * np.broadcast_to(candidates.ranks, candidates.scores.shape).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Table(Filter):
    """A filter with an array, and with a value that is computed once."""

    name = "table"
    rows: Any = field(default_factory=lambda: np.zeros(3))

    @cached_property
    def total(self) -> float:
        return float(self.rows.sum())

    def keep(self, candidates: Candidates, context: Context, alive: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return candidates.documents >= self.total


def test_a_subclass_is_not_written_as_its_base_class(pairs: Pairs, tmp_path: Path) -> None:
    assert spec_of(Margin(absolute=0.1)) == "margin:absolute=0.1"
    text = spec_of(Stricter(absolute=0.1))
    assert text == HERE + "Stricter(absolute=0.1, relative=None)"
    run = hardneg.mine(pairs, tmp_path / "run", MineOptions(filters=(Stricter(absolute=9.0), Rank(max=3)), depth=12))
    assert run.info["config"]["filters"] == [HERE + "Stricter(absolute=9.0, relative=None)", "rank:max=3"]
    with pytest.raises(UsageError, match=r"'object:.*Stricter.* give the object again, as in SelectOptions\(filters"):
        hardneg.select(run, SelectOptions(sampler="uniform"), tmp_path / "again")
    with pytest.raises(UsageError, match=r"SelectOptions\(filters"):
        parse_filter(text)


def test_a_sampler_with_a_built_in_name(pairs: Pairs, tmp_path: Path) -> None:
    assert spec_of(Last(2.0)) == HERE + "Last(power=2.0)"
    run = hardneg.mine(pairs, tmp_path / "run", MineOptions(sampler=Last(), depth=12, negatives=3))
    with pytest.raises(UsageError, match=r"give the object again, as in SelectOptions\(sampler"):
        hardneg.select(run, SelectOptions(negatives=2), tmp_path / "again")
    for judge in (lambda: hardneg.judge(run, tmp_path / "f.csv"), lambda: hardneg.calibrate(run)):
        with pytest.raises(UsageError, match="give the object again"):
            judge()
    other = hardneg.select(run, SelectOptions(sampler="top", negatives=2), tmp_path / "other")
    assert other.info["config"]["sampler"] == "top"


def test_a_resumed_pass_tells_objects_apart(pairs: Pairs, tmp_path: Path) -> None:
    options = MineOptions(sampler=Last(1.0), filters=(Table(),), depth=12, negatives=3)
    run = hardneg.mine(pairs, tmp_path / "run", options)
    assert hardneg.mine(pairs, tmp_path / "run", options, resume=True).info == run.info
    for changed in ({"sampler": Last(2.0)}, {"filters": (Table(rows=np.ones(3)),)}):
        with pytest.raises(hardneg.RunError, match="other options"):
            hardneg.mine(pairs, tmp_path / "run", MineOptions(**{**vars(options), **changed}), resume=True)


def test_a_registered_object_has_a_spec(registered: Callable[..., None]) -> None:
    registered("filter", "table", lambda v: Table())
    registered("sampler", "top", lambda v: Last(v.number("power", 1.0)))
    assert spec_of(Table()) == "table"
    assert spec_of(Table(rows=np.ones(3))).startswith(HERE + "Table(rows=float64[3]:sha256-")
    assert isinstance(parse_sampler("top:power=2"), Last)
    assert spec_of(Last()) == "top"
    assert spec_of(Last(2.0)) == HERE + "Last(power=2.0)"  # its name alone would make another


def test_filters_with_arrays_are_written_and_compared() -> None:
    one, two = Table(rows=np.arange(3.0)), Table(rows=np.arange(4.0))
    assert re.fullmatch(r"table:rows=float64\[3\]:sha256-[0-9a-f]{16}", one.spec)
    assert one.spec == Table(rows=np.arange(3.0)).spec != two.spec
    assert parse_filters([one, two, Table(rows=np.arange(3.0))]).names[-2:] == ["table", "table#2"]
    assert one.total == 3.0
    assert same(one, Table(rows=np.arange(3.0)))  # a cached value is no difference


def test_no_text_holds_an_address() -> None:
    class Plain:
        pass

    def make(documents: Any, metric: str) -> ExactIndex:
        return ExactIndex(documents, metric)

    texts = [spec_of(make), spec_of(partial(make, metric="ip")), spec_of(lambda d, m: make(d, m)), object_text(Plain())]
    texts += [
        value_text(each) for each in ([Plain()], {"a": Plain()}, {Plain()}, Path("x"), 1 + 2j, np.array([Plain])[:0])
    ]
    assert not [text for text in texts if "0x" in text]
    assert texts[0] == f"{HERE}test_no_text_holds_an_address.<locals>.make"
    assert "metric=ip" in texts[1]


def test_an_index_does_not_take_a_built_in_name() -> None:
    class Mine(ExactIndex):
        pass

    vectors = np.eye(3, dtype=np.float32)
    assert spec_of(ExactIndex(vectors)) == spec_of(ExactIndex) == "exact"
    assert spec_of(Mine(vectors)) == spec_of(Mine) == f"{HERE}test_an_index_does_not_take_a_built_in_name.<locals>.Mine"


def test_numbers_of_numpy_in_a_spec() -> None:
    assert spec_of(Margin(absolute=np.float64(0.1))) == "margin:absolute=0.1"  # type: ignore[arg-type]
    assert spec_of(Softmax(temperature=np.float64(0.1))) == "softmax:temperature=0.1"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "name", "part", "message"),
    [
        ("filter", "crowd", print, "old name of 'shared-neighbors'"),
        ("filter", "object", print, "no spec"),
        ("sampler", "object", print, "no spec"),
        ("filter", " short", print, "blank"),
        ("filter", "too short", print, "blank"),
        ("encoder", "", print, "empty"),
        ("filter", "short", None, "with a function"),
        ("filter", "short", "short", "with a function"),
        ("filter", 3, print, "is text, not 3"),
        (["filter"], "short", print, "unknown kind"),
    ],
)
def test_what_cannot_be_registered(
    kind: Any, name: Any, part: Any, message: str, registered: Callable[..., None]
) -> None:
    with pytest.raises(UsageError, match=message):
        registered(kind, name, part)


def test_classes_are_no_parts() -> None:
    with pytest.raises(UsageError, match=r"Rank is a class: give an object of it, as in Rank\(...\)"):
        parse_filter(Rank)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"Last is a class: give an object"):
        parse_sampler(Last)  # type: ignore[arg-type]


def test_a_sampler_of_a_function_that_makes_none(registered: Callable[..., None]) -> None:
    registered("sampler", "none", lambda v: None)
    with pytest.raises(UsageError, match="returned a NoneType, which is no sampler"):
        parse_sampler("none")
