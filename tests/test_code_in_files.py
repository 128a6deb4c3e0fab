"""Nothing that a file names is imported or run, and a damaged posterior is refused by the name of its file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hardneg
from hardneg import MineOptions, Pairs, RunError, SelectOptions, TrainOptions, UsageError, registry
from hardneg.false_negatives.features import SHARED_FEATURES
from hardneg.false_negatives.model import Posterior
from hardneg.mining.specs import names_code, no_code
from tests.conftest import run_here

POSTERIOR = Posterior(SHARED_FEATURES, (1.0, 2.0, 3.0), -3.0, 0.25, "known positives", {}, {"n": 1}, None)
GUARANTEE: dict[str, Any] = {
    "threshold": 0.2,
    "selection": {"sampler": "top", "negatives": 7, "seed": 0, "default_filters": True, "filters": []},
}


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module that must never be imported."""
    (tmp_path / "evil_module.py").write_text("def f():\n    raise SystemExit('the code was run')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "evil_module"
    assert "evil_module" not in sys.modules


@pytest.fixture
def run(tmp_path: Path) -> hardneg.Run:
    pairs = Pairs.from_columns([f"question {i}" for i in range(30)], [f"answer {i}" for i in range(30)])
    return hardneg.mine(pairs, tmp_path / "run", MineOptions(depth=20))


def with_config(run: hardneg.Run, **changed: Any) -> hardneg.Run:
    """The run with other options in its run.json, as somebody else could hand it over."""
    info = json.loads((run.folder / "run.json").read_text())
    info.pop("checksum", None)
    info["schema_version"] = 1
    info["config"] |= changed
    (run.folder / "run.json").write_text(json.dumps(info))
    return hardneg.Run(run.folder)


@pytest.mark.parametrize("spec", ["guide:module:{}:f", "cross-encoder:module:{}:f,max=0.3", "guide: module :{}:f"])
def test_filters_of_a_run(spec: str, evil: str, run: hardneg.Run, tmp_path: Path) -> None:
    spec = spec.format(evil)
    planted = with_config(run, filters=[spec])
    with pytest.raises(RunError, match=r"run.json names code that would be run: .*type it yourself") as error:
        hardneg.select(planted, SelectOptions(sampler="uniform"), tmp_path / "again")
    assert repr(spec) in str(error.value)
    done = run_here("select", run.folder, "--negatives", "2", "--out", tmp_path / "again")
    assert (done.returncode, "names code" in done.stderr) == (1, True)
    assert not (tmp_path / "again").exists()
    # Other filters of the caller's own make the run usable.
    hardneg.select(planted, SelectOptions(filters=("rank:min=2",)), tmp_path / "again")


def test_the_sampler_of_a_run(run: hardneg.Run, tmp_path: Path) -> None:
    planted = with_config(run, sampler="mine:module:evil_module:f")
    for use in (
        lambda: hardneg.select(planted, SelectOptions(negatives=2), tmp_path / "again"),
        lambda: hardneg.judge(planted, tmp_path / "f.csv", posterior=posterior_of(planted)),
        lambda: hardneg.calibrate(planted),
    ):
        with pytest.raises(RunError, match="names code that would be run"):
            use()


def posterior_of(run: hardneg.Run) -> Posterior:
    encoder = {"encoder": run.info["fingerprints"]["encoder"]}
    return Posterior(SHARED_FEATURES, (1.0, 2.0, 3.0), -3.0, 0.25, "known positives", encoder)


@pytest.mark.parametrize("feature", ["guide:module:{}:f", "cross-encoder:module:{}:f"])
def test_features_of_a_posterior(feature: str, evil: str, run: hardneg.Run, tmp_path: Path) -> None:
    feature = feature.format(evil)
    path = tmp_path / "p.json"
    value = posterior_of(run).to_json()
    path.write_text(json.dumps({**value, "features": {feature: 1.0}}))
    spec = f"posterior:{path}"
    for use in (
        lambda: Posterior.load(path),
        lambda: hardneg.select(run, SelectOptions(filters=(spec,)), tmp_path / "again"),
        lambda: hardneg.mine(run.pairs(), tmp_path / "other", MineOptions(filters=(spec,))),
        lambda: TrainOptions(filters=(spec,)),
    ):
        with pytest.raises(RunError, match="names code that would be run") as error:
            use()
        assert str(path) in str(error.value)
    for command in (
        ("judge", run.folder, "--out", tmp_path / "f.csv", "--posterior", path),
        ("calibrate", run.folder, tmp_path / "f.csv", "--posterior", path),
        ("select", run.folder, "--filter", spec, "--out", tmp_path / "again"),
    ):
        done = run_here(*command)
        assert (done.returncode, "names code" in done.stderr) == (1, True), done.stderr


def test_a_posterior_that_could_not_be_loaded_is_not_saved(evil: str, run: hardneg.Run, tmp_path: Path) -> None:
    named = Posterior((f"guide:module:{evil}:f",), (1.0,), 0.0, 0.5, "groups")
    with pytest.raises(UsageError, match="names a module, which is never taken from a file"):
        named.save(tmp_path / "p.json")
    done = run_here("calibrate", run.folder, "--learn", "groups", "--feature", f"guide:module:{evil}:f")
    assert (done.returncode, "never taken from a file" in done.stderr) == (2, True)
    assert not (tmp_path / "p.json").exists()


class Guide:
    """An encoder that a caller names."""

    dimension = 2

    def encode(self, texts: Any, *, prompt: str = "") -> np.ndarray:
        return np.array([[len(text) % 7 + 1, 1] for text in texts], np.float32)

    def fingerprint(self) -> str:
        return "guide-of-a-caller"


def test_a_caller_may_name_code_and_register_it(
    run: hardneg.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = f"guide:module:{__name__}:Guide"
    named = hardneg.select(run, SelectOptions(filters=(spec,)), tmp_path / "named")
    with pytest.raises(RunError, match="names code"):
        hardneg.select(named, SelectOptions(negatives=2), tmp_path / "again")
    monkeypatch.setitem(registry._PARTS, "encoder", dict(registry._PARTS["encoder"]))
    registry.register("encoder", "own", lambda rest, options: Guide())
    own = hardneg.select(run, SelectOptions(filters=("guide:own",)), tmp_path / "own")
    assert hardneg.select(own, SelectOptions(seed=1), tmp_path / "third").info["config"]["filters"] == ["guide:own"]


def test_what_names_code() -> None:
    for spec in (
        "module:a:b",
        "guide:module:a:b,margin=0",
        "cross-encoder:module:a:b",
        "guide: module:a:b",
        "guide:x,module:a:b",
    ):
        assert names_code(spec)
    for spec in (
        "guide:st:NAME",
        "guide:hashed:/my/module",
        "posterior:/my/module:x/p.json",
        "margin:relative=0.1",
        "modules:x",
    ):
        assert not names_code(spec)
        no_code(spec, "run.json")
    with pytest.raises(RunError, match=r"run.json has 3 where the text of a spec belongs"):
        no_code(3, "run.json")  # type: ignore[arg-type]


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("intercept", "1" + "0" * 400), ("intercept", "1" + "0" * 5000), ("intercept", "NaN"), ("intercept", "true"),
        ("intercept", '"1"'), ("threshold", "[0.5]"), ("threshold", "null"), ("features", "[1]"), ("features", '"score"'),
        ("features", '{"score": "1"}'), ("features", '{"score": true}'), ("features", '{"score": 1e999}'),
        ("features", '{"score": 1' + "0" * 400 + "}"), ("features", "{}"), ("source", "3"), ("source", "[]"),
        ("fingerprints", '{"encoder": 3}'), ("fingerprints", '{"encoder": ["a"]}'), ("fingerprints", '[["a", "b"]]'),
        ("report", '"x"'), ("report", "[[1, 2]]"), ("report", DEEP), ("guarantee", "3"), ("guarantee", "{}"),
        ("guarantee", "[[1, 2]]"), ("guarantee", json.dumps({**GUARANTEE, "threshold": "0.2"})),
        ("guarantee", json.dumps({**GUARANTEE, "selection": 3})), ("guarantee", json.dumps({**GUARANTEE, "selection": {}})),
        ("guarantee", json.dumps({**GUARANTEE, "selection": {**GUARANTEE["selection"], "filters": [3]}})),
        ("guarantee", json.dumps({**GUARANTEE, "selection": {**GUARANTEE["selection"], "filters": "group"}})),
        ("guarantee", json.dumps({**GUARANTEE, "selection": {**GUARANTEE["selection"], "sampler": None}})),
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_damaged_posteriors(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    rest = {key: value for key, value in POSTERIOR.to_json().items() if key != name}
    path.write_text(json.dumps(rest)[:-1] + f', "{name}": {text}}}')
    with pytest.raises(RunError) as error:
        Posterior.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "name", ["features", "intercept", "threshold", "source", "fingerprints", "report", "guarantee"]
)
def test_posteriors_without_an_entry(name: str, tmp_path: Path) -> None:
    value = {key: each for key, each in POSTERIOR.to_json().items() if key != name}
    with pytest.raises(RunError, match=f"p.json is a damaged posterior .*{name}"):
        Posterior.from_json(value, "p.json")


def test_values_in_memory_that_are_no_posterior() -> None:
    for value in ([], None, "x", {"kind": ["hardneg posterior"]}):
        with pytest.raises(RunError, match="the checkpoint is no posterior"):
            Posterior.from_json(value, "the checkpoint")  # type: ignore[arg-type]
    with pytest.raises(RunError, match="finite"):
        Posterior.from_json({**POSTERIOR.to_json(), "intercept": float("nan")}, "the checkpoint")


def test_a_whole_guarantee_is_read() -> None:
    value = {**POSTERIOR.to_json(), "guarantee": GUARANTEE}
    assert Posterior.from_json(value, "p.json").guarantee == GUARANTEE
