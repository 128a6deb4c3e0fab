"""What a training wrote and reads again: checkpoints, generations, encoders, train.json, the log, and negatives of other trainers."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

import hardneg
from hardneg.data.pairs import Pairs
from hardneg.diagnostics.training_run import diagnose_training
from hardneg.integrations.negatives import HardNegatives
from hardneg.integrations.saved_negatives import read_saved
from hardneg.refresh.staleness import movement_of
from hardneg.training import checkpoint
from hardneg.training.batches import TrainingBatches
from hardneg.training.callbacks import LogFile
from hardneg.training.distributed import World
from hardneg.training.folder import check_head
from hardneg.training.loop import Trainer
from hardneg.training.negatives import MinedNegatives
from hardneg.training.options import TrainOptions
from hardneg.training.saved import check_saved
from hardneg.training.towers import Towers
from tests.faults.damage import Files, changed_array, changed_json, lay, made_once, one_changed, sealed_json
from tests.faults.kind import Kind, Typed
from tests.faults.mutators import damaged

HERE = World(0, 1, torch.device("cpu"))


# Trainings: a checkpoint with generations, a bank and a log; and what is beside it.


@cache
def _training_data() -> Pairs:
    texts = [f"text {i} on {i % 7} and {i % 5}" for i in range(24)]
    return Pairs.from_columns(
        [f"query {i} on {i % 7}" for i in range(24)], texts, corpus=[f"other {i}" for i in range(8)]
    )


def _encoder() -> hardneg.HashedEncoder:
    return hardneg.HashedEncoder(dimension=8, buckets=64)


OPTIONS = TrainOptions(
    steps=6, batch_size=4, negatives=2, depth=8, bank=8, bank_start=1, refresh="steps:2", lag=1, save_every=4, log_every=1,
    evaluate_every=2, filters=("margin:relative=0.05",), learn_temperature=True,
)  # fmt: skip


@cache
def training_files() -> Files:
    """A finished training."""

    def make(folder: Path) -> None:
        pairs = _training_data()
        hardneg.train(
            pairs, _encoder(), folder / "out", OPTIONS, evaluation=pairs, device="cpu", warn=lambda message: None
        )

    return {name.removeprefix("out/"): data for name, data in made_once(make).items()}


def _checkpoint_files() -> Files:
    return {name: data for name, data in training_files().items() if name.startswith("checkpoints/")}


@cache
def _trainer() -> Trainer:
    pairs, towers = _training_data(), Towers(_encoder())
    towers.to(HERE.device)
    towers.tower("query").fitted = True
    batches = TrainingBatches(pairs, towers, OPTIONS, HERE)
    negatives = MinedNegatives(pairs, towers, OPTIONS, HERE, batches.sampler)
    return Trainer(towers, batches, negatives, OPTIONS, HERE, warn=lambda message: None)


def make_checkpoint(folder: Path, rng: Random) -> None:
    """A checkpoint whose state or weights are damaged, its checksums put right in most cases."""
    files = dict(_checkpoint_files())
    (state,) = (name for name in files if name.endswith("/state.json"))
    weights, seal = state.replace(".json", ".safetensors"), rng.random() < 0.85
    if rng.random() < 0.7:
        files[state] = changed_json(files[state], rng)
    else:
        files[weights] = damaged(files[weights], rng) if rng.random() < 0.6 else _changed_tensor(files[weights], rng)
        if seal:
            head = json.loads(files[state])
            files[state] = json.dumps({**head, "sha256": sha256(files[weights]).hexdigest()}).encode()
    if seal:
        files[state] = sealed_json(files[state])
    lay(folder, files)


def _changed_tensor(data: bytes, rng: Random) -> bytes:
    from safetensors.torch import load, save

    tensors = load(data)
    name = rng.choice(sorted(tensors))
    value = tensors[name]
    made = (
        value[:-1] if value.ndim else value[None],
        value.double(),
        value.long(),
        value * float("nan"),
        value[None],
        value - 1,
        None,
    )
    other = rng.choice(made)
    del tensors[name]
    if other is not None:
        tensors[name] = other.contiguous()
    return save(tensors)


def read_checkpoint(folder: Path) -> None:
    path = checkpoint.latest(folder / "checkpoints")
    assert path is not None
    with checkpoint.fitting(path):
        state = checkpoint.read(path, HERE)
        _trainer().load(state)
    assert checkpoint.step_of(path) >= 0
    next(iter(_trainer().batches.batches()), None)


def make_generations(folder: Path, rng: Random) -> None:
    """The generations of a checkpoint, of which one file is damaged."""
    files = {n.partition("/generations/")[2]: data for n, data in _checkpoint_files().items() if "/generations/" in n}
    heads = sorted(name for name in files if name.endswith(("generation.json", "index.json")))
    if rng.random() < 0.4:
        data = changed_json(files["refreshed.json"], rng)
        files["refreshed.json"] = data if rng.random() < 0.9 else damaged(data, rng)
    else:
        files = one_changed(files, rng, rng.choice(heads))
    lay(folder / "generations", files)


def read_generations(folder: Path) -> None:
    trainer = _trainer()
    negatives = MinedNegatives(
        _training_data(),
        trainer.towers,
        OPTIONS,
        HERE,
        trainer.batches.sampler,
        resume=folder / "generations",
        step=4,
    )
    try:
        assert negatives.index is not None
        assert negatives.index.generation.index.size == len(_training_data().document_ids)
        assert json.dumps(negatives.index.history) is not None
        assert all(isinstance(value, float) for value in movement_of(negatives.index).values())
        negatives.save(folder / "again")
    finally:
        negatives.close()


def make_training(folder: Path, rng: Random) -> None:
    """The folder of a training, without its checkpoint: train.json, the log and its record, or the hashes of an encoder."""
    files = {name: data for name, data in training_files().items() if not name.startswith("checkpoints/")}
    name = rng.choice(("train.json", "train.json", "log.jsonl", ".hardneg-log.json", "best/.hardneg-files.json"))
    if name == "log.jsonl":
        lines = files[name].splitlines()
        for _ in range(rng.choice((1, 3))):
            at = rng.randrange(len(lines))
            lines[at] = changed_json(lines[at], rng) if rng.random() < 0.8 else damaged(lines[at], rng)
        files[name] = b"\n".join(lines)
        record = {"bytes": len(files[name]), "sha256": sha256(files[name]).hexdigest()}
        files[".hardneg-log.json"] = sealed_json(json.dumps(record).encode())
    else:
        if name == "train.json":
            head = json.loads(files[name])
            files[name] = json.dumps({**head, "finished": rng.random() < 0.5}).encode()
        data = changed_json(files[name], rng) if rng.random() < 0.9 else damaged(files[name], rng)
        files[name] = sealed_json(data) if name != "train.json" and rng.random() < 0.8 else data
    lay(folder, {name: files[name] for name in files if not name.startswith("last/")})
    (folder / "checkpoints" / "step-00000006").mkdir(parents=True)


def read_training(folder: Path) -> None:
    """Diagnose a training, go on with it, and check its encoder: all of them, and the first raw error if there is one."""
    diagnosis_fits = lambda: json.dumps(diagnose_training(folder).to_json(), allow_nan=False)  # noqa: E731
    longer = replace(OPTIONS, steps=8).fitting(_trainer().towers.learning_rate, HERE.device)

    def log() -> None:
        file = LogFile(folder / "log.jsonl", 3)
        file.log(4, {"loss": 1.0})
        file.sync()
        file.close()

    errors: list[Exception] = []
    for use in (
        diagnosis_fits,
        lambda: check_head(folder, folder, _training_data(), longer, HERE),
        lambda: check_saved(folder / "best"),
        log,
    ):
        try:
            use()
        except Exception as error:
            errors.append(error)
    if errors:
        raise next((each for each in errors if type(each).__module__ != "hardneg.errors"), errors[0])


# Saved encoders.


def make_encoder_folder(folder: Path, rng: Random) -> None:
    files = {name.removeprefix("best/"): data for name, data in training_files().items() if name.startswith("best/")}
    seal = rng.random() < 0.8
    if rng.random() < 0.5:
        files["config.json"] = changed_json(files["config.json"], rng)
    else:
        table = files["table.npy"]
        files["table.npy"] = damaged(table, rng) if rng.random() < 0.3 else changed_array(table, rng)
        if seal:
            head = json.loads(files["config.json"])
            files["config.json"] = json.dumps({**head, "sha256": sha256(files["table.npy"]).hexdigest()}).encode()
    files["config.json"] = sealed_json(files["config.json"]) if seal else files["config.json"]
    lay(folder, files)


def read_encoder(folder: Path) -> None:
    found = hardneg.HashedEncoder.load(folder)
    vectors = found.encode(["a text", ""])
    assert vectors.shape == (2, found.dimension)
    assert np.isfinite(vectors).all()
    assert found.fingerprint()


# Negatives of the trainers of others.


@cache
def _saved_negatives() -> tuple[Files, dict[str, Any]]:
    found: dict[str, Any] = {}

    def make(folder: Path) -> None:
        negatives = HardNegatives(_training_data(), _encoder(), num_negatives=2, depth=8)
        negatives.begin(updates=6)
        negatives.save(folder)
        found.update(json.loads((folder / "negatives.json").read_bytes())["identity"])

    return made_once(make), found


def make_saved_negatives(folder: Path, rng: Random) -> None:
    files = {name: data for name, data in _saved_negatives()[0].items() if name.startswith("negatives")}
    name = rng.choice(("negatives.json", "negatives.json", *files))
    if name.endswith(".json"):
        files[name] = changed_json(files[name], rng)
    else:
        files[name] = changed_array(files[name], rng)
        head = json.loads(files["negatives.json"])
        for each in head["tables"]:
            if each["file"] == name:
                each["sha256"] = sha256(files[name]).hexdigest()
        files["negatives.json"] = json.dumps(head).encode()
    if rng.random() < 0.85:
        files["negatives.json"] = sealed_json(files["negatives.json"])
    lay(folder, files)


def read_saved_negatives(folder: Path) -> None:
    pairs = _training_data()
    _, tables = read_saved(folder, _saved_negatives()[1], (len(pairs), 2), len(pairs.document_ids))
    for _, rows in tables:
        assert rows.min() >= 0


KINDS: dict[str, Kind | Typed] = {
    "checkpoint": Kind(make_checkpoint, read_checkpoint, risky=True),
    "generations": Kind(make_generations, read_generations, risky=True),
    "training": Kind(make_training, read_training),
    "encoder": Kind(make_encoder_folder, read_encoder, risky=True),
    "saved negatives": Kind(make_saved_negatives, read_saved_negatives),
}
