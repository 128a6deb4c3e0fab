"""What users type: specs of all parts, and options, in Python, in JSON and in a file of options (`--config`)."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import click
import numpy as np

from hardneg.bank.hard_batches import parse_batches
from hardneg.data.options import ReadOptions
from hardneg.encoders.devices import parse_devices
from hardneg.encoders.lora import Lora
from hardneg.evaluation.ranking import parse_measures
from hardneg.index.factory import make_index
from hardneg.judges.base import make_judge
from hardneg.judges.cost import Budget, Prices
from hardneg.mining.candidates import Candidates
from hardneg.mining.filters.limits import Margin, Rank, Score, Window
from hardneg.mining.options import MineOptions
from hardneg.mining.samplers import draw, query_keys
from hardneg.mining.select import SelectOptions
from hardneg.mining.specs import (
    check_guides,
    names_code,
    no_code,
    parse_filter,
    parse_filters,
    parse_fusion,
    parse_sampler,
    parse_sources,
)
from hardneg.refresh.staleness import Schedule, Staleness
from hardneg.registry import spec_of
from hardneg.storage.json_files import decode_json
from hardneg.tasks.engines import parse_engine
from hardneg.training.fine_tuning import parse_rates
from hardneg.training.options import TrainOptions
from hardneg.training.teaching import Distillation
from tests.faults.kind import Kind, Typed
from tests.faults.mutators import TEXTS, json_text, sometimes_damaged
from tests.faults.sources import write

FILTERS = (
    "known", "empty", "duplicate", "duplicate:text", "duplicate:near=0.95", "distinct", "answer", "group", "rank:min=10,max=100",
    "score:min=0.2,max=0.8", "window:first=10,last=50", "margin:absolute=0.05", "margin:relative=0.05", "shared-neighbors:max=0.25",
    "crowd:max=0.9", "guide:hashed,margin=0.1", "guide:st:NAME,margin=0", "cross-encoder:NAME,max=0.5", "teacher:max=0.5",
    "teacher:margin=0.1", "posterior:p.json,threshold=0.3", "posterior:learned,threshold=0.2",
)  # fmt: skip
SAMPLERS = ("top", "uniform", "softmax", "softmax:temperature=0.05", "simans:a=100,b=0")
SOURCES = (
    "dense",
    "bm25",
    "bm25:k1=1.2,b=0.75",
    "bm25:depth=50,label=words",
    "trec:FILE,label=other",
    "encoder:hashed",
    "given",
)
FUSIONS = ("rrf", "rrf:k=60", "scores", "scores:weights=1+2", "interleave")
SCHEDULES = ("never", "epoch", "steps:500", "staleness:drift=0.05,overlap=0.7,check=100")
ENCODERS = ("hashed:FOLDER", "glyphs:FOLDER", "st:", "open_clip:MODEL,pretrained=TAG", "module:", "hashd")
JUDGES = ("openai:gpt-4o-mini", "cross-encoder:NAME", "opena")
DISTILLS = ("kl", "margin-mse:weight=0.1", "kl:alone,temperature=2,teacher=NAME")
BATCHES = ("random", "hard", "hard:group=32,near=48,share=0.5", "hard:graph=training,group=16")
INDEXES = ("auto", "exact", "ivf", "hnsw", "cosine", "ip", "l2")

_NUMBERS = (
    "nan", "inf", "-inf", "1e999", "-1", "0", "1", "1e-320", "1e38", "1e40", "9" * 5000, "-" + "9" * 400, "1_000", "٣", "0x10", "",
    " ", "1e", "++1", "1.5", str(1 << 63), str(1 << 64), "0.0", "-0", "²", "½", "1e308", "99999999999",
)  # fmt: skip

_DOCUMENTS = np.eye(6, 4, dtype=np.float32) + np.float32(0.1)
_CANDIDATES = Candidates(
    np.arange(2),
    np.array([[0, 1, 2, 3], [4, 5, -1, -1]], np.int32),
    np.array([[0.9, 0.5, 0.5, -0.1], [0.3, 0.2, -np.inf, -np.inf]], np.float32),
    np.array([0.8, np.nan], np.float32),
    _DOCUMENTS[:2],
)


def damaged_spec(spec: str, rng: Random) -> str:
    """A spec in which words, names, values or characters are replaced, left out, repeated, or put at another place."""
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        what = rng.randrange(8)
        head, colon, rest = spec.partition(":")
        parts = rest.split(",")
        i = rng.randrange(len(parts))
        name, equals, _ = parts[i].partition("=")
        if what <= 2 and equals:
            parts[i] = name + "=" + (rng.choice(_NUMBERS) if what else rng.choice(TEXTS)[:2000])
        elif what == 3:
            parts[i] = rng.choice(TEXTS)[:2000] + rng.choice(("", "=1", "="))
        elif what == 4:
            parts.insert(i, rng.choice((*parts, "", "=", "a=b=c", "max=1", "min=0")))
        elif what == 5:
            del parts[i]
        elif what == 6:
            head = rng.choice((*TEXTS, head + " ", head.upper(), head[1:], "object", "module", "module:os:getcwd"))[
                :2000
            ]
        else:
            at = rng.randrange(len(spec) + 1)
            spec = (
                spec[:at]
                + rng.choice((",", ":", "=", "@", "+", "\0", "\ud800", " ", "é", "-"))
                + spec[at + rng.randrange(2) :]
            )
            continue
        spec = head + rng.choice((*[colon] * 8, ":", "")) + ",".join(parts)
    return spec


def _again(part: Any, parse: Callable[[str], Any]) -> Any:
    """The part itself. What is written of it describes an equal part, if it can be read at all."""
    spec = spec_of(part)
    if not spec.startswith("object:"):
        assert spec_of(parse(spec)) == spec
    return part


def _of_filter(spec: str) -> None:
    made = _again(parse_filter(spec), parse_filter)
    if isinstance(made, Rank | Score | Margin | Window):
        kept = made.keep(_CANDIDATES, None, _CANDIDATES.real)  # type: ignore[arg-type]
        assert kept.shape == _CANDIDATES.documents.shape
        assert made.more_may_pass(_CANDIDATES).shape == (2,)
    chain = parse_filters([made, spec], training=bool(made.only_in_training))
    check_guides(chain)
    assert chain.names[0] == "kept"


def _of_sampler(spec: str) -> None:
    made = _again(parse_sampler(spec), parse_sampler)
    keys = query_keys(_ids())
    chosen = draw(made, _CANDIDATES, _CANDIDATES.real, 2, 0, keys)
    assert chosen.shape == (2, 2)
    assert (chosen[0] >= 0).all()


@cache
def _ids() -> Any:
    import pyarrow as pa

    return pa.array(["a", "b"])


def _of_sources(spec: str) -> None:
    for made in parse_sources(spec.split(";")):
        assert isinstance(spec_of(made), str)


def _of_fusion(spec: str) -> None:
    assert spec_of(_again(parse_fusion(spec), parse_fusion))


def _of_schedule(spec: str) -> None:
    made = Schedule.parse(spec)
    assert isinstance(made.stale(Staleness(0.1, 0.5, 3, 10)), bool)
    assert made.steps is None or made.steps >= 1


def _of_index(spec: str) -> None:
    name, _, metric = spec.partition(";")
    make_index(name, _DOCUMENTS, metric)[0].search(_DOCUMENTS, 2)


def _of_rates(spec: str) -> None:
    assert all(math.isfinite(rate) and rate > 0 for _, rate in parse_rates(spec.split(";")))


def _of_encoder(spec: str) -> None:
    kind = spec.partition(":")[0]
    if names_code(spec):  # code is the user's own: only that no file may name it is to be seen here
        no_code(spec, "FILE")
        raise AssertionError
    if kind in ("st", "open_clip"):  # these load whole libraries, which tests of theirs do
        return
    from hardneg.encoders.factory import make_encoder

    make_encoder(spec)


def _of_judge(spec: str) -> None:
    if spec.partition(":")[0] != "cross-encoder":  # loads a model
        make_judge(spec)


_PARSERS: tuple[tuple[tuple[str, ...], Callable[[str], Any]], ...] = (
    (FILTERS, _of_filter),
    (SAMPLERS, _of_sampler),
    (tuple(f"dense;{each}" for each in SOURCES[1:]), _of_sources),
    (FUSIONS, _of_fusion),
    (SCHEDULES, _of_schedule),
    (ENCODERS, _of_encoder),
    (JUDGES, _of_judge),
    (DISTILLS, Distillation.parse),
    (BATCHES, parse_batches),
    (("8", "r=8,alpha=16,dropout=0.1,targets=query+value"), Lora.parse),
    (("document=1e-5", "query=0.1;*.embeddings.*=1"), _of_rates),
    (("ndcg@10", "recall@100", "mrr@1", "map@5"), lambda spec: parse_measures(spec.split(","))),
    (("local", "processes:4", "ray:2"), parse_engine),
    (("cpu:2", "cpu"), parse_devices),
    (("0.15,0.60",), lambda spec: Prices.parse(spec).cost(10, 10)),
    (("2.5", "500requests", "200000 tokens"), Budget.parse),
    (tuple(f"{name};{metric}" for name in INDEXES[:4] for metric in INDEXES[4:]), _of_index),
)


def make_spec(rng: Random) -> str:
    """The number of a parser, and a spec for it."""
    number = rng.randrange(len(_PARSERS))
    return f"{number} {damaged_spec(rng.choice(_PARSERS[number][0]), rng)}"


def read_spec(text: str) -> None:
    number, _, spec = text.partition(" ")
    _PARSERS[int(number)][1](spec)


# Options in Python: any value in the place of any option.

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 1 << 31, 1 << 63, 1 << 64, -(1 << 63), 10**400, 0.0, 0.5, 1.0, -0.5, 1.5, 1e308, 5e-324, "nan",
    "inf", "-inf", "10**5000", "", "x", "auto", "exact", "top", "uniform", "cosine", "ip", "l2", "random", "no", "fp16", [], ["x"],
    [None], [[]], [["a", 1]], [1, 2], [0.5], {}, {"a": 1}, {"start": 0}, b"", b"bytes", (), ("rank:min=2",), ("margin:relative=0.1",),
    ("ndcg@10",), (8, 16), "\ud800", "a\0b", "../x", "٣", "kl", "8", "epoch", "steps:5", "hashed", "train",
)  # fmt: skip
_SPECIAL: dict[str, Any] = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "10**5000": 10**5000}
_CLASSES = (TrainOptions, MineOptions, SelectOptions, ReadOptions)


def make_options(rng: Random) -> str:
    """The number of a class of options, and some of its fields with values, as Python writes them."""
    number = rng.randrange(len(_CLASSES))
    names = list(_CLASSES[number].__dataclass_fields__)
    given = {rng.choice(names): rng.choice(_VALUES) for _ in range(rng.choice((1, 1, 2, 3)))}
    return repr((number, given))


def read_options(text: str) -> None:
    number, given = ast.literal_eval(text)
    given = {name: _SPECIAL.get(value, value) if isinstance(value, str) else value for name, value in given.items()}
    options = _CLASSES[number](**given)
    if isinstance(options, TrainOptions):
        assert TrainOptions.from_json(options.to_json()) == options
        assert options.changed(options) == []
    if isinstance(options, MineOptions):
        options.validate()
        assert options.to_json()["negatives"] == options.negatives
    if isinstance(options, ReadOptions):
        assert isinstance(options.corpora, list)


# Options in JSON, as a training keeps them.


def make_options_json(folder: Path, rng: Random) -> None:
    options = TrainOptions(
        steps=3, filters=("margin:relative=0.05",), batches="hard:group=8", bank=8, lora="8"
    ).to_json()
    text = json_text(options, rng, rng.choice((0.0, 0.005, 0.02, 0.1)))
    write(folder / "options.json", sometimes_damaged(text.encode("utf-8", "surrogatepass"), rng, 0.1))


def read_options_json(folder: Path) -> None:
    value = decode_json(folder / "options.json")
    here = TrainOptions(steps=4)
    errors = []
    for use in (
        lambda: TrainOptions.from_json(value).to_json(),
        lambda: here.changed(value),
        lambda: here.lengthened(value),
    ):
        try:
            use()
        except Exception as error:  # the others have their turn, too
            errors.append(error)
    if errors:
        raise next((each for each in errors if type(each).__module__ != "hardneg.errors"), errors[0])


# A file of options for the command line.

_TOML = (
    "3", "0", "-1", "0.5", "nan", "inf", "-inf", "true", "false", '""', '"x"', '"top"', '"rank:min=2"', "[]", '["group"]',
    "[1, 2]", "[[1]]", "{}", "{a = 1}", "1979-05-27", "07:32:00", "9" * 30, "9" * 5000, "0x" + "f" * 400, "[" * 60 + "]" * 60,
    "[" * 9000 + "]" * 9000, '"module:os:getcwd"', "'''a\nb'''", '"\\u0000"', "1_000", "0b1", '["x", 1]', "1e400", '"nan"', '"7"',
)  # fmt: skip


def make_config(folder: Path, rng: Random) -> None:
    command = rng.choice(("mine", "select", "train", "diagnose", "judge", "export", "evaluate"))
    names = [option for each in _command(command).params for option in each.opts if option.startswith("--")]
    lines = [] if rng.random() < 0.5 else [f"[{rng.choice((command, command, 'mine', 'x', command + '.x', '[mine]'))}]"]
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        name = (
            rng.choice(names).lstrip("-")
            if rng.random() < 0.9
            else rng.choice((*TEXTS[:20], "source", "config", "help"))
        )
        key = (
            name
            if rng.random() < 0.8
            else rng.choice((name.replace("-", "_"), f'"{name}"', f"{name}.x", f"{command}.{name}"))
        )
        lines.append(f"{key} = {rng.choice(_TOML)}")
    text = rng.choice(("\n", "\n", "\r\n", "\n\n")).join(lines)
    write(folder / "command", command.encode())
    write(folder / "options.toml", sometimes_damaged(text.encode("utf-8", "surrogatepass"), rng, 0.15))


@cache
def _command(name: str) -> click.Command:
    from hardneg_cli.config import with_config
    from hardneg_cli.main import cli

    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return with_config(found, cli.list_commands(click.Context(cli)))


def read_config(folder: Path) -> None:
    """Parse a command line that names the file, up to where the command would begin."""
    command = _command((folder / "command").read_text())
    arguments = [
        "--config",
        str(folder / "options.toml"),
        *["x"] * sum(isinstance(p, click.Argument) for p in command.params),
    ]
    command.make_context(command.name, arguments)


KINDS: dict[str, Kind | Typed] = {
    "specs": Typed(make_spec, read_spec, (click.UsageError,)),
    "options": Typed(make_options, read_options),
    "options in JSON": Kind(make_options_json, read_options_json),
    "options in TOML": Kind(make_config, read_config, refuses=(click.ClickException,)),
}
