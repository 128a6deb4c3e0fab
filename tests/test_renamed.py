"""Names of version 0.1: still typed and still in files, so they are still read; what is written has the new ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import hardneg
from hardneg import renamed
from hardneg.bank.memory_bank import MemoryBank
from hardneg.false_negatives.filters import SharedNeighbors
from hardneg.false_negatives.model import Posterior
from hardneg.mining.specs import parse_filter
from hardneg.training.options import TrainOptions
from tests.conftest import run_here, write_jsonl

THINGS = ("bread", "rivers", "trains", "clouds", "chess", "violins")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [
        {"query": f"question {i} about {THINGS[i % 6]}", "positive": f"answer {i} about {THINGS[i % 6]}"}
        for i in range(60)
    ]
    return write_jsonl(tmp_path / "pairs.jsonl", rows)


def test_the_old_filter_is_read_and_noted(file: Path, tmp_path: Path) -> None:
    assert parse_filter("crowd:max=0.25") == parse_filter("shared-neighbors:max=0.25") == SharedNeighbors(max=0.25)
    done = run_here("mine", file, "--out", tmp_path / "run", "--depth", "20", "--filter", "crowd:max=0.9")
    assert done.returncode == 0, done.stderr
    assert "note: the filter 'crowd:max=0.9' is written 'shared-neighbors:max=0.9' now" in done.stderr
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["config"]["filters"] == ["shared-neighbors:max=0.9"]
    assert "shared-neighbors" in info["counts"]["verdicts"]
    quiet = run_here("select", tmp_path / "run", "--filter", "shared-neighbors:max=0.8", "--out", tmp_path / "run2")
    assert "note:" not in quiet.stderr
    noted = run_here("select", tmp_path / "run", "--filter", "crowd:max=0.8", "--out", tmp_path / "run3")
    assert "note:" in noted.stderr
    assert (tmp_path / "run2" / "negatives.parquet").read_bytes() == (
        tmp_path / "run3" / "negatives.parquet"
    ).read_bytes()


def test_a_run_that_was_filtered_with_the_old_name(file: Path, tmp_path: Path) -> None:
    run = hardneg.mine(
        str(file), tmp_path / "run", hardneg.MineOptions(depth=20, filters=("shared-neighbors:max=0.9",))
    )
    info = json.loads((run.folder / "run.json").read_text())
    info["config"]["filters"] = ["crowd:max=0.9"]  # as version 0.1 wrote it
    (run.folder / "run.json").write_text(json.dumps(info))
    again = hardneg.select(hardneg.Run(run.folder), hardneg.SelectOptions(), tmp_path / "again")
    assert again.negatives().equals(run.negatives())


def test_old_features_of_a_posterior(tmp_path: Path) -> None:
    new = Posterior(
        ("shared_query", "shared_positive", "shared_votes", "local_score_query"),
        (1.0, 2.0, 3.0, 4.0),
        -1.0,
        0.5,
        "groups",
    )
    value = new.to_json()
    back = {name: old for old, name in renamed.FEATURES.items()}
    value["features"] = {back[name]: weight for name, weight in value["features"].items()}
    assert set(value["features"]) == {"crowd_query", "crowd_positive", "crowd_votes", "reach_query"}
    (tmp_path / "posterior.json").write_text(json.dumps(value))
    assert Posterior.load(tmp_path / "posterior.json") == new


@pytest.mark.parametrize(
    ("old", "new"),
    [(("--policy", "top"), ("--negative-sampling", "top")), (("--policy=top",), ("--negative-sampling=top",)),
     (("--chunk", "4"), ("--mini-batch-size", "4")), (("--rate", "cosine"), ("--lr-scheduler", "cosine")),
     (("--clip", "0.5"), ("--max-grad-norm", "0.5")), (("--filter", "crowd:max=0.9"), ("--filter", "shared-neighbors:max=0.9"))],
    ids=lambda options: "".join(options),
)  # fmt: skip
def test_old_options_of_train(old: tuple[str, ...], new: tuple[str, ...], file: Path, tmp_path: Path) -> None:
    common = ("--steps", "3", "--batch-size", "8", "--eval-split", "none", "--depth", "20", "--device", "cpu")
    written = []
    for name, options in (("old", old), ("new", new)):
        done = run_here("train", file, "--out", tmp_path / name, *common, *options)
        assert done.returncode == 0, done.stderr
        assert (f"note: {'the filter ' if 'crowd' in options[-1] else options[0].split('=')[0]}" in done.stderr) == (
            name == "old"
        )
        written.append(json.loads((tmp_path / name / "train.json").read_text())["options"])
    assert written[0] == written[1]
    assert not written[0].keys() & renamed.TRAIN_OPTIONS.keys()


def test_self_supervised_was_called_views(file: Path, tmp_path: Path) -> None:
    done = run_here(
        "train", file, "--out", tmp_path / "o", "--views", "--steps", "2", "--batch-size", "8", "--eval-split", "none",
        "--depth", "20",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "note: --views is called --self-supervised now" in done.stderr


def test_a_training_that_version_0_1_began(file: Path, tmp_path: Path) -> None:
    """Its options and the state of its sampler have the old names; it is resumed to the weights of a whole one."""
    pairs = hardneg.read_pairs(str(file))
    options = TrainOptions(
        steps=8, batch_size=8, negatives=2, depth=20, bank=32, bank_start=2, save_every=4, refresh="steps:4", lag=2,
        filters=("shared-neighbors:max=0.9",), negative_sampling="softmax", lr_scheduler="cosine",
    )  # fmt: skip

    class Stop:
        def log(self, step: int, values: dict[str, float]) -> None:
            if step >= 6:
                raise hardneg.DataError("stopped")

        def close(self) -> None: ...

    encoders = [hardneg.HashedEncoder(16, buckets=256) for _ in range(3)]
    hardneg.train(pairs, encoders[0], tmp_path / "whole", options, device="cpu")
    hastily = TrainOptions(**{**vars(options), "log_every": 1})
    with pytest.raises(hardneg.DataError, match="stopped"):
        hardneg.train(pairs, encoders[1], tmp_path / "cut", hastily, device="cpu", callbacks=[Stop()])
    _as_version_0_1(tmp_path / "cut")
    hardneg.train(pairs, encoders[2], tmp_path / "cut", options, device="cpu", resume=True)
    assert (encoders[0].table.weight == encoders[2].table.weight).all()


def _as_version_0_1(folder: Path) -> None:
    back = {new: old for old, new in renamed.TRAIN_OPTIONS.items()}
    head = json.loads((folder / "train.json").read_text())
    head["options"] = {back.get(name, name): value for name, value in head["options"].items()}
    head["options"]["filters"] = ["crowd:max=0.9"]
    assert {"policy", "rate", "clip", "chunk"} <= head["options"].keys()
    (folder / "train.json").write_text(json.dumps(head))
    path = next(folder.glob("checkpoints/step-*/state.json"))
    text = path.read_text()
    assert text.count('"negative_sampling"') == 1
    path.write_text(text.replace('"negative_sampling"', '"policy"'))


def test_a_bank_in_the_samplers_state() -> None:
    """One state for what a batch gets: mined, random and the bank's rows."""
    pairs = hardneg.Pairs.from_columns([f"q{i}" for i in range(12)], [f"p{i}" for i in range(12)], corpus=["x", "y"])

    def sampler(size: int = 6) -> hardneg.MemoryBankSampler:
        return hardneg.MemoryBankSampler(pairs, batch_size=4, negatives=1, bank=MemoryBank(size, 3), bank_start=1)

    import torch

    one = sampler()
    before = one.bank_view()
    assert before is not None
    assert before.vectors.shape == (0, 3)  # not before bank_start batches
    one.advance(torch.ones(4, 3), torch.arange(4))
    view = one.bank_view()
    assert view is not None
    assert view.ids.tolist() == [0, 1, 2, 3]
    other = sampler()
    other.load_state_dict(one.state_dict())
    again = other.bank_view()
    assert again is not None
    assert again.ids.tolist() == [0, 1, 2, 3]
    assert list(other) == list(one)
    for state in ({"policy": "uniform"}, {}):  # the old name of an entry, and the new one
        saved: dict[str, Any] = {**one.state_dict(), **state}
        if state:
            del saved["negative_sampling"]
        sampler().load_state_dict(saved)
    with pytest.raises(hardneg.UsageError, match=r"give advance\(vectors, ids\)"):
        one.advance()
    plain = hardneg.MemoryBankSampler(pairs, batch_size=4)
    assert plain.bank_view() is None
    with pytest.raises(hardneg.UsageError, match=r"give bank=MemoryBank"):
        plain.advance(torch.ones(4, 3))
