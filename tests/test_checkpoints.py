"""Checkpoints: finite numbers only, whole on a full disk, damaged in every way, killed at any moment."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import hardneg
from hardneg.errors import DataError, RunError
from hardneg.training import checkpoint
from hardneg.training.callbacks import LogFile
from hardneg.training.distributed import World
from hardneg.training.finite import FirstBadStep, first_not_finite
from hardneg.training.options import TrainOptions
from hardneg.training.towers import Towers

from .damage import json_values, mutate
from .processes import on_two_ranks
from .test_trainer import encoder, made_pairs, quiet, weights

HERE = World(0, 1, torch.device("cpu"))


def options(**more: Any) -> TrainOptions:
    return TrainOptions(**{"steps": 12, "batch_size": 8, "negatives": 0, "save_every": 5, "log_every": 10, **more})


def steps(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


class Fails(hardneg.HashedEncoder):
    """An encoder that breaks at a batch: its vectors become NaN, or its gradients do."""

    def __init__(self, how: str, batch: int) -> None:
        super().__init__(dimension=16, buckets=512)
        self.how, self.batch, self.count = how, batch, 0

    def vectors(self, texts: Any, *, prompt: str = "") -> torch.Tensor:
        found = super().vectors(texts, prompt=prompt)
        if self.training:
            self.count += 1
            if self.count == 2 * self.batch:  # queries and documents are encoded one after the other
                broken = torch.sqrt((self.table.weight * 0).sum())  # 0, with a gradient of NaN
                found = found * float("nan") if self.how == "vectors" else found + broken
        return found


@pytest.mark.parametrize("more", [{}, {"bank": 32, "bank_start": 1}, {"bank": 32, "momentum": 0.9}])
def test_the_step_that_broke_is_named_and_nothing_is_saved_after_it(tmp_path: Path, more: dict[str, Any]) -> None:
    """The log is written every 10 steps, checkpoints every 5: the loss of step 7 is not looked at until step 10."""
    pairs = made_pairs()
    with pytest.raises(
        DataError, match=r"step 7: .*NaN or infin.* The last checkpoint is from before, of step 5: .*00005$"
    ):
        hardneg.train(pairs, Fails("vectors", 7), tmp_path / "out", options(**more), device="cpu", evaluation=pairs)
    assert steps(tmp_path / "out") == ["step-00000005"]
    saved = load_file(tmp_path / "out" / "checkpoints" / "step-00000005" / "state.safetensors")
    assert all(bool(torch.isfinite(each).all()) for each in saved.values() if each.is_floating_point())
    assert not (tmp_path / "out" / "last").exists()


def test_weights_that_break_with_a_finite_loss_are_not_saved(tmp_path: Path) -> None:
    """The gradients of step 10 are NaN: its loss is finite, and the weights after it are not."""
    pairs = made_pairs()
    with pytest.raises(
        DataError, match=r"step 10: towers\.query_tower\.table\.weight holds NaN or infinity\. Lower the"
    ):
        hardneg.train(
            pairs, Fails("gradients", 10), tmp_path / "out", options(evaluate_every=5), device="cpu", evaluation=pairs
        )
    assert steps(tmp_path / "out") == ["step-00000005"]
    assert np.isfinite(weights(tmp_path / "out" / "best")).all()


def test_without_a_checkpoint_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"step 2: the loss is NaN.*There is no checkpoint from before"):
        hardneg.train(made_pairs(), Fails("vectors", 2), tmp_path / "out", options(), device="cpu")
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_losses_are_looked_at_without_waiting_for_the_device() -> None:
    """A tensor on the device `meta` has no values, so whatever waits for one fails."""
    bad = FirstBadStep(torch.device("meta"))
    bad.look(torch.zeros((), device="meta"), 1)
    bad = FirstBadStep(torch.device("cpu"))
    for step, loss in enumerate((1.0, float("inf"), float("nan"), 0.0), 1):
        bad.look(torch.tensor(loss), step)
    assert bad.value(HERE) == 2


def test_masks_of_a_model_may_be_infinite() -> None:
    state = {"towers": {"mask": torch.tensor([0.0, -torch.inf]), "weight": torch.ones(2)}, "more": [torch.ones(1)]}
    assert first_not_finite(state, {"towers.mask"}) is None
    assert first_not_finite(state, set()) == "towers.mask"
    state["towers"]["mask"] = torch.tensor([torch.nan])  # type: ignore[index]
    assert first_not_finite(state, {"towers.mask"}) == "towers.mask"
    state["more"] = [torch.tensor([torch.inf], dtype=torch.float16)]
    assert first_not_finite({"more": state["more"]}, set()) == "more.0"
    with pytest.raises(RunError, match=r"finite numbers only, not nan \(at \.a\)"):
        checkpoint.pack({"a": float("nan")}, {})


def stop_on(rank: int, folder: Path) -> None:
    world = World(rank, 2, torch.device("cpu"))
    bad = FirstBadStep(world.device)
    bad.look(torch.tensor(float("nan") if rank else 0.0), 4)
    assert bad.value(world) == 4
    with pytest.raises(RunError) as refused:
        checkpoint.write(folder / "checkpoints", 3, {}, world, _full)
    (folder / f"said-{rank}").write_text(str(refused.value))


@pytest.mark.slow
def test_all_ranks_stop_together(tmp_path: Path) -> None:
    on_two_ranks(stop_on, tmp_path)
    said = [(tmp_path / f"said-{rank}").read_text() for rank in (0, 1)]
    assert "No space left on device" in said[0]
    assert "cannot be written on another rank: there is no checkpoint yet" in said[1]
    assert list((tmp_path / "checkpoints").iterdir()) == []


# A full disk.


def _full(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _full_safetensors(*args: Any, **kwargs: Any) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("function", "fails"),
    [
        ("hardneg.training.checkpoint.save_file", _full_safetensors),
        pytest.param("hardneg.training.checkpoint.save_file", _full, marks=pytest.mark.slow),
        ("hardneg.training.checkpoint.write_json", _full),
        pytest.param("hardneg.training.checkpoint.link_tree", _full, marks=pytest.mark.slow),
        ("hardneg.training.checkpoint.os.replace", _full),
    ],
)
def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, fails: Callable[..., Any]
) -> None:
    pairs, more = made_pairs(), options(negatives=1, refresh="steps:4", lag=2, depth=6)
    hardneg.train(pairs, encoder(), tmp_path / "whole", more, device="cpu")

    class FullAt:
        def log(self, step: int, values: dict[str, float]) -> None: ...
        def sync(self) -> None:
            if checkpoint.latest(tmp_path / "out" / "checkpoints") is not None:
                monkeypatch.setattr(function, fails)

        def close(self) -> None: ...

    with pytest.raises(
        RunError,
        match=r"step-00000010 cannot be written \(.*No space left on device.*: the checkpoint of step 5 is intact\. Free",
    ):
        hardneg.train(pairs, encoder(), tmp_path / "out", more, device="cpu", callbacks=[FullAt()])
    monkeypatch.undo()
    assert steps(tmp_path / "out") == ["step-00000005"]
    hardneg.train(pairs, encoder(), tmp_path / "out", more, device="cpu", resume=True)
    assert (weights(tmp_path / "out" / "last") == weights(tmp_path / "whole" / "last")).all()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full: run the suite on Linux")
def test_a_log_on_a_full_disk_names_the_file(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log.jsonl", 0)
    log.file.close()
    log.file = open("/dev/full", "a", encoding="utf-8")  # noqa: SIM115
    with pytest.raises(
        RunError, match=r"log\.jsonl cannot be written \(No space left on device\): the training stopped"
    ):
        log.log(1, {"loss": 1.0})
    log.close()


@pytest.mark.parametrize("when", ["best", "last"])
def test_an_encoder_on_a_full_disk_keeps_the_one_before(tmp_path: Path, when: str) -> None:
    class Full(hardneg.HashedEncoder):
        saved = 0

        def save(self, folder: str | Path) -> None:
            self.saved += 1
            if self.saved == 2:
                (Path(folder) / "table.npy").write_bytes(b"half")
                _full()
            super().save(folder)

    better = iter(range(100))
    held_out: Any = SimpleNamespace(evaluate=lambda towers, names, metric: {names[0]: float(next(better))})
    model = Full(dimension=16, buckets=512)
    more = options(evaluate_every=2 if when == "best" else 12)
    with pytest.raises(RunError, match=rf"{when} cannot be written \(No space left on device\)"):
        hardneg.train(made_pairs(), model, tmp_path / "out", more, device="cpu", evaluation=held_out)
    assert np.isfinite(weights(tmp_path / "out" / "best")).all()
    assert not [name for name in os.listdir(tmp_path / "out") if name.startswith(".") and "hardneg-new" in name]


# The log.


def test_the_log_is_cut_at_the_checkpoint(tmp_path: Path) -> None:
    """Later entries, a half line, and bytes that are no text: all of that goes, and the rest stays as it is."""
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step, "loss": step / 7}) for step in (3, 5, 6)]
    path.write_bytes("\n".join(lines).encode() + b'\n{"step": 4}\n[]\n{"step": "x"}\n{"step": 5, "lo\xff')
    log = LogFile(path, 5)
    log.log(6, {"loss": 1.0, "broken": float("nan")})
    log.sync()
    log.close()
    assert path.read_text() == f'{lines[0]}\n{lines[1]}\n{{"step": 4}}\n{{"step": 6, "loss": 1.0, "broken": null}}\n'


KILLS = """
import json, os, shutil, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import hardneg
from hardneg.training.callbacks import LogFile
from tests.test_trainer import encoder, made_pairs

folder, chosen = Path(sys.argv[1]), sys.argv[2]
OPTIONS = hardneg.TrainOptions(
    steps=14, batch_size=8, accumulate=2, negatives=2, log_every=4, save_every=3, evaluate_every=5, refresh="steps:6", lag=2,
    depth=8, bank=40, bank_start=2, learning_rate=0.01, filters=("group",), measures=("mrr@10",),
)
count, kill_at = 0, -1

def moment():
    global count
    count += 1
    if count == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

def with_moments(module, name):
    before = getattr(module, name)
    def wrapped(*args, **kwargs):
        moment()
        result = before(*args, **kwargs)
        moment()
        return result
    setattr(module, name, wrapped)

for module, name in ((os, "replace"), (os, "rename"), (os, "fsync"), (os, "unlink"), (shutil, "rmtree")):
    with_moments(module, name)

def log(self, step, values):
    line = json.dumps({"step": step, **values}) + "\\n"
    for part in (line[: len(line) // 2], line[len(line) // 2 :]):
        moment()
        self.file.write(part)
        self.file.flush()

LogFile.log = log

def train(out, resume=False, at=-1):
    "In a process of its own; returns its signal, and the number of moments."
    global kill_at, count
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        kill_at, count = at, 0
        pairs = made_pairs(groups=True)
        try:
            hardneg.train(pairs, encoder(dropout=0.2), out, OPTIONS, evaluation=pairs, device="cpu", resume=resume,
                          warn=lambda message: None)
            os.write(write, str(count).encode())
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    counted = os.read(read, 100)
    os.close(read)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status), int(counted or 0)

def results(out):
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    log = [{n: v for n, v in row.items() if "seconds" not in n} for row in log]
    info = json.loads((out / "train.json").read_text())
    for each in (info, *info["generations"]):
        each.pop("seconds")
    names = sorted(name for name in os.listdir(out) if name != "log.jsonl")
    return log, info, *(hardneg.HashedEncoder.load(out / name).fingerprint() for name in ("best", "last")), names

# Whatever a training imports is imported once, and not in every process.
hardneg.train(made_pairs(), encoder(), folder / "first", hardneg.TrainOptions(steps=1, negatives=0, batch_size=8), device="cpu")
count = 0
ended, total = train(folder / "whole")
assert ended == 0
wanted = results(folder / "whole")
moments = range(1, total + 1) if chosen == "all" else [max(1, total * i // int(chosen)) for i in range(int(chosen))]
wrong = []
for at in moments:
    out = folder / f"killed-{at}"
    ended, _ = train(out, at=at)
    assert ended == signal.SIGKILL, (at, ended)
    if not (out / "train.json").exists():  # nothing was begun
        continue
    if json.loads((out / "train.json").read_text())["finished"]:
        ended = 0
    else:
        train(out, resume=True, at=1 + at * 7 % 40)  # and once more
        if not json.loads((out / "train.json").read_text())["finished"]:
            ended, _ = train(out, resume=True)
        else:
            ended = 0
    if ended or results(out) != wanted:
        wrong.append((at, ended, [i for i, (a, b) in enumerate(zip(results(out), wanted)) if a != b] if not ended else None))
    shutil.rmtree(out)
print(total, "moments;", len(wrong), "wrong:", wrong)
"""


def _kill(folder: Path, chosen: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(folder), chosen], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parent.parent, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr[-2000:]


@pytest.mark.faults
def test_killed_at_any_moment_log_and_results_are_the_same(tmp_path: Path) -> None:
    """Killed between any two steps that files are made of, also in the middle of a line of the log, and twice."""
    assert " 0 wrong" in _kill(tmp_path, "4")


@pytest.mark.faults
def test_killed_at_many_moments_log_and_results_are_the_same(tmp_path: Path) -> None:
    assert " 0 wrong" in _kill(tmp_path, "100")


# Random numbers.


class Draws(hardneg.HashedEncoder):
    """An encoder whose dropout is drawn by numpy and by Python."""

    def vectors(self, texts: Any, *, prompt: str = "") -> torch.Tensor:
        found = super().vectors(texts, prompt=prompt)
        if self.training:
            kept = np.random.random(found.shape) < 0.8  # noqa: NPY002
            found = found * torch.from_numpy(kept) * random.choice((0.9, 1.0, 1.1)) + 0.01 * random.random()
        return found


class Stop:
    def __init__(self, at: int) -> None:
        self.at = at

    def log(self, step: int, values: dict[str, float]) -> None:
        if step == self.at:
            raise KeyboardInterrupt

    def close(self) -> None: ...


def test_models_that_draw_from_numpy_and_python_are_repeatable(tmp_path: Path) -> None:
    pairs, more = made_pairs(), options(log_every=1, mini_batch_size=5)

    def made() -> Draws:
        return Draws(dimension=16, buckets=512)

    for name in ("a", "b"):
        np.random.seed(len(name))  # noqa: NPY002
        hardneg.train(pairs, made(), tmp_path / name, more, device="cpu")
        random.random()
        np.random.rand()  # noqa: NPY002
    with pytest.raises(KeyboardInterrupt):
        hardneg.train(pairs, made(), tmp_path / "cut", more, device="cpu", callbacks=[Stop(8)])
    np.random.rand(5)  # noqa: NPY002
    hardneg.train(pairs, made(), tmp_path / "cut", more, device="cpu", resume=True)
    for name in ("b", "cut"):
        assert (weights(tmp_path / name / "last") == weights(tmp_path / "a" / "last")).all()


# Damage.

DAMAGED = options(
    steps=9,
    negatives=2,
    refresh="steps:4",
    lag=2,
    depth=6,
    bank=24,
    bank_start=2,
    momentum=0.9,
    evaluate_every=3,
    log_every=2,
)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole`: a training. `cut`: the same, interrupted after its checkpoint of step 5. `other`: another one."""
    folder, pairs = tmp_path_factory.mktemp("cut"), made_pairs()
    for name, seed, callbacks in (("whole", 0, []), ("cut", 0, [Stop(8)]), ("other", 1, [Stop(8)])):
        try:
            hardneg.train(
                pairs,
                encoder(seed),
                folder / name,
                DAMAGED,
                device="cpu",
                evaluation=pairs,
                callbacks=callbacks,
                warn=quiet,
            )
        except KeyboardInterrupt:
            assert callbacks
    return folder


def _resumed(out: Path) -> np.ndarray | None:
    """The weights after resuming; None if that is refused by a message that names the folder."""
    pairs = made_pairs()
    try:
        hardneg.train(pairs, encoder(), out, DAMAGED, device="cpu", evaluation=pairs, resume=True, warn=quiet)
    except (RunError, DataError) as error:
        said = str(error)
    else:
        return weights(out / "last")
    assert str(out) in said
    return None


def _fuzz(cut: Path, tmp_path: Path, seeds: range) -> int:
    refused, wanted = 0, weights(cut / "whole" / "last")
    for seed in seeds:
        out = tmp_path / f"damaged-{seed}"
        shutil.copytree(cut / "cut", out)
        what = mutate(out / "checkpoints" if seed % 5 else out, np.random.default_rng(seed), cut / "other")
        found = _resumed(out)
        assert found is None or (found == wanted).all(), what
        refused += found is None
        shutil.rmtree(out)
    return refused


def test_damaged_checkpoints_are_refused(cut: Path, tmp_path: Path) -> None:
    assert _fuzz(cut, tmp_path, range(30)) > 15


@pytest.mark.faults
def test_damaged_checkpoints_are_refused_many(cut: Path, tmp_path: Path) -> None:
    _fuzz(cut, tmp_path, range(30, 1000))


def _as_version_2(out: Path, change: Callable[[Any], Any] = lambda state: state) -> None:
    """Rewrite the checkpoint as the version before wrote it: without checksums, and without what came since."""
    path = next((out / "checkpoints").glob("*/state.json"))
    head = json.loads(path.read_text())
    state = head["state"]
    state["pairs:"] = [pair for pair in state["pairs:"] if pair[0] != "unlogged"]
    path.write_text(json.dumps({"schema": checkpoint.OLDER, "sha256": head["sha256"], "state": change(state)}))


def test_a_checkpoint_of_the_version_before_is_read(cut: Path, tmp_path: Path) -> None:
    """Also one that holds no state of numpy's and Python's generators."""

    def without(state: Any) -> Any:
        for key, each in state["pairs:"]:
            if key == "random":
                each["pairs:"] = [pair for pair in each["pairs:"] if pair[0] == "torch"]
        return state

    for name, change in (("a", lambda state: state), ("b", without)):
        shutil.copytree(cut / "cut", tmp_path / name)
        _as_version_2(tmp_path / name, change)
        found = _resumed(tmp_path / name)
        assert found is not None
        assert (found == weights(cut / "whole" / "last")).all()


def test_a_checkpoint_of_a_version_that_is_not_read_is_named(cut: Path, tmp_path: Path) -> None:
    shutil.copytree(cut / "cut", tmp_path / "out")
    path = next((tmp_path / "out" / "checkpoints").glob("*/state.json"))
    path.write_text(json.dumps({"schema": "hardneg-checkpoint-1", "recall": 1}))
    pairs = made_pairs()
    with pytest.raises(
        RunError, match=r"state\.json: schema 'hardneg-checkpoint-1', expected 'hardneg-checkpoint-3'.*--over"
    ):
        hardneg.train(pairs, encoder(), tmp_path / "out", DAMAGED, evaluation=pairs, device="cpu", resume=True)
    shutil.rmtree(tmp_path / "out" / "checkpoints")
    shutil.copytree(cut / "cut" / "checkpoints", tmp_path / "out" / "checkpoints")
    os.rename(tmp_path / "out" / "checkpoints" / "step-00000005", tmp_path / "out" / "checkpoints" / "step-00000006")
    with pytest.raises(RunError, match="is of step 5, unlike its folder"):
        hardneg.train(pairs, encoder(), tmp_path / "out", DAMAGED, evaluation=pairs, device="cpu", resume=True)


def _changed(state: Any, rng: np.random.Generator, text: str) -> Any:
    """The state with one of its values replaced by a JSON value."""
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            if isinstance(node, list) and len(node) > 100 and key > 2:
                break  # the words of Python's generator
            places.append((node, key))
            if isinstance(node[key], dict | list):
                visit(node[key])

    visit(state)
    node, key = places[int(rng.integers(len(places)))]
    node[key] = json.loads(text)
    return state


def _change_old(cut: Path, tmp_path: Path, seeds: range) -> None:
    """Old checkpoints have no checksum, so a number that fits is taken; but nothing ends in an error that is not ours."""
    texts = [text for text in json_values() if len(text) < 100]
    for seed in seeds:
        out, rng = tmp_path / f"old-{seed}", np.random.default_rng(seed)
        shutil.copytree(cut / "cut", out)
        _as_version_2(out, lambda state, rng=rng: _changed(state, rng, texts[int(rng.integers(len(texts)))]))  # type: ignore[misc]
        _resumed(out)
        shutil.rmtree(out)


def test_changed_values_in_old_checkpoints_are_refused_or_taken(cut: Path, tmp_path: Path) -> None:
    _change_old(cut, tmp_path, range(40))


@pytest.mark.faults
def test_changed_values_in_old_checkpoints_are_refused_or_taken_many(cut: Path, tmp_path: Path) -> None:
    _change_old(cut, tmp_path, range(40, 1500))


@pytest.mark.parametrize("name", ["schema", "finished", "options", "data", "ranks"])
def test_every_entry_of_train_json_is_checked(cut: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(cut / "cut", tmp_path / "out")
    path = tmp_path / "out" / "train.json"
    whole = json.loads(path.read_text())
    for text in json_values():
        rest = json.dumps({n: v for n, v in whole.items() if n != name})
        path.write_text(f"{rest[:-1]}, {json.dumps(name)}: {text}}}")
        if json_safe(text) == whole[name]:
            continue
        with pytest.raises(RunError, match=r"train\.json|the interrupted training had other|training is finished"):
            hardneg.train(made_pairs(), encoder(), tmp_path / "out", DAMAGED, device="cpu", resume=True)
    path.write_text(json.dumps({n: v for n, v in whole.items() if n != name}))
    with pytest.raises(RunError, match=r"train\.json"):
        hardneg.train(made_pairs(), encoder(), tmp_path / "out", DAMAGED, device="cpu", resume=True)


def json_safe(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def test_what_an_encoder_returns_while_training_is_checked() -> None:
    class One(hardneg.HashedEncoder):
        def vectors(self, texts: Any, *, prompt: str = "") -> Any:
            return super().vectors(texts, prompt=prompt)[:1]

    towers = Towers(One(8, buckets=16))
    with pytest.raises(DataError, match=r"the encoder One returned \[1, 8\] of torch\.float32 from vectors"):
        towers(["a", "b"], "query")
    with pytest.raises(DataError, match="the encoder One returned shape"):
        towers.encode(["a", "b"], "query")
    assert towers.training


# The best encoder so far, when a training goes on.


class _Stops:
    """Ends a training at a step, as an interruption would."""

    def __init__(self, at: int) -> None:
        self.at = at

    def log(self, step: int, values: dict[str, float]) -> None:
        if step >= self.at:
            raise DataError("stopped")

    def close(self) -> None: ...


def test_a_damaged_best_encoder_is_not_taken_for_the_best(tmp_path: Path) -> None:
    pairs, out, heard = made_pairs(), tmp_path / "out", list[str]()
    given = options(evaluate_every=4, log_every=1)
    with pytest.raises(DataError, match="stopped"):
        hardneg.train(pairs, encoder(), out, given, evaluation=pairs, device="cpu", callbacks=[_Stops(7)])
    path = out / "best" / "config.json"
    path.write_text(path.read_text().replace("hashed", "hashes"))
    with pytest.raises(RunError, match=r"best/config\.json is missing or damaged: remove .*best to go on without it"):
        hardneg.train(pairs, encoder(), out, given, evaluation=pairs, device="cpu", resume=True)
    shutil.rmtree(out / "best")
    found = hardneg.train(pairs, encoder(), out, given, evaluation=pairs, device="cpu", resume=True, warn=heard.append)
    assert "the best encoder is looked for from step 6 on" in heard[0]
    assert found["warnings"] == heard
    assert found["best"]["step"] in (8, 12)
    hardneg.HashedEncoder.load(out / "best")


def test_a_damaged_log_is_said(tmp_path: Path) -> None:
    pairs, out = made_pairs(), tmp_path / "out"
    given = options(log_every=1)
    with pytest.raises(DataError, match="stopped"):
        hardneg.train(pairs, encoder(), out, given, device="cpu", callbacks=[_Stops(7)])
    path = out / "log.jsonl"
    whole = path.read_text()
    path.write_text(whole.replace('"step": 3', '"step": 2', 1))
    with pytest.raises(RunError, match=r"log\.jsonl is damaged, or was changed: remove .*log\.jsonl to go on"):
        hardneg.train(pairs, encoder(), out, given, device="cpu", resume=True)
    path.write_text(whole + '{"step": 8, "los')  # cut off, after what was on disk at the last checkpoint
    hardneg.train(pairs, encoder(), out, given, device="cpu", resume=True)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(1, 13))
