"""Names of version 0.1: still typed and still in files, so they are still read; what is written has the new ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import hardneg
from hardneg import renamed
from hardneg.bank.memory_bank import MemoryBank
from hardneg.false_negatives.filters import PosteriorFilter, SharedNeighbors
from hardneg.false_negatives.model import Posterior
from hardneg.mining.inputs import same_config
from hardneg.mining.specs import parse_filter
from hardneg.storage.files import sha256_file
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
    negatives = run.negatives()
    info["config"]["filters"] = ["crowd:max=0.9"]  # as version 0.1 wrote it
    info.pop("checksum", None)
    info["schema_version"] = 1
    (run.folder / "run.json").write_text(json.dumps(info))
    again = hardneg.select(hardneg.Run(run.folder), hardneg.SelectOptions(), tmp_path / "again")
    assert again.negatives().equals(negatives)


def as_before(run: hardneg.Run) -> hardneg.Run:
    """The run as version 0.1 wrote it, with old names of filters."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    info = json.loads((run.folder / "run.json").read_text())
    info.pop("checksum", None)
    info["schema_version"] = 1
    info["config"]["filters"] = ["crowd:max=0.9"]
    info["counts"]["verdicts"]["crowd"] = info["counts"]["verdicts"].pop("shared-neighbors")
    for path in run.candidate_files():
        table = pq.read_table(path)
        verdicts = [name.replace("shared-neighbors", "crowd") for name in table["verdict"].to_pylist()]
        pq.write_table(table.set_column(4, "verdict", pa.array(verdicts)), path)
        info["files"][path.relative_to(run.folder).as_posix()] = sha256_file(path)
    (run.folder / "run.json").write_text(json.dumps(info))
    return hardneg.Run(run.folder)


def test_a_run_with_the_old_name_is_resumed_compared_and_written_anew(file: Path, tmp_path: Path) -> None:
    options = hardneg.MineOptions(depth=40, filters=("shared-neighbors:max=0.9",))
    run = hardneg.mine(str(file), tmp_path / "run", options)
    assert run.info["counts"]["verdicts"]["shared-neighbors"] > 0
    shutil.copytree(run.folder, tmp_path / "old")
    old = as_before(hardneg.Run(tmp_path / "old"))
    flow = hardneg.compare(old, run).flow
    assert all(list(after) == [before] for before, after in flow.items())
    assert "shared-neighbors" in flow
    for spec in ("shared-neighbors:max=0.9", "crowd:max=0.9"):
        same = hardneg.MineOptions(depth=40, filters=(spec,))
        assert same.to_json()["filters"] == ["shared-neighbors:max=0.9"]
        assert TrainOptions(filters=(spec,)).to_json()["filters"] == ["shared-neighbors:max=0.9"]
        assert hardneg.mine(str(file), old.folder, same, resume=True).negatives().equals(run.negatives())
        same_config({**options.to_json(), "filters": ["crowd:max=0.9"]}, same.to_json(), tmp_path)
    with pytest.raises(hardneg.RunError, match="other options"):
        same_config({**options.to_json(), "filters": ["crowd:max=0.8"]}, options.to_json(), tmp_path)
    again = hardneg.select(old, hardneg.SelectOptions(seed=1), tmp_path / "again")
    assert again.info["config"]["filters"] == ["shared-neighbors:max=0.9"]
    noted = hardneg.select(old, hardneg.SelectOptions(filters=("crowd:max=0.5",)), tmp_path / "noted")
    assert noted.info["config"]["filters"] == ["shared-neighbors:max=0.5"]


def test_a_guarantee_holds_under_the_new_name() -> None:
    selection = {"sampler": "softmax:temperature=0.05", "negatives": 7, "seed": 0, "default_filters": True}
    promise = {"threshold": 0.5, "selection": {**selection, "filters": ["crowd:max=0.90"]}}
    posterior = Posterior(("score",), (1.0,), 0.0, 0.5, "groups", {}, {}, promise)
    filter = PosteriorFilter(posterior=posterior, file="p.json")
    for spec in ("crowd:max=0.9", "shared-neighbors:max=0.9"):
        now = {**selection, "sampler": "softmax", "filters": [spec, "posterior:p.json"]}
        assert filter.notes(now) == []
    (note,) = filter.notes({**selection, "filters": ["shared-neighbors:max=0.8"]})
    assert "filters ['shared-neighbors:max=0.9'] then, ['shared-neighbors:max=0.8'] now" in note


def test_old_features_on_the_command_line(tmp_path: Path) -> None:
    pairs = hardneg.Pairs.from_columns(
        [f"question {i} about {THINGS[i % 6]}" for i in range(60)],
        [f"answer {i} about {THINGS[i % 6]}" for i in range(60)],
        groups=[THINGS[i % 6] for i in range(60)],
    )
    hardneg.mine(pairs, tmp_path / "run", hardneg.MineOptions(depth=40))
    done = run_here("calibrate", tmp_path / "run", "--learn", "groups", "--feature", "crowd_query")
    assert done.returncode == 0, done.stderr
    assert "note: the feature 'crowd_query' is called 'shared_query' now" in done.stderr
    assert Posterior.load(tmp_path / "run" / "posterior.json").features == ("shared_query",)
    quiet = run_here("calibrate", tmp_path / "run", "--learn", "groups", "--feature", "shared_query")
    assert "note:" not in quiet.stderr


def test_names_of_verdicts() -> None:
    old = ("kept", "crowd", "crowd#2", "margin#3")
    assert list(map(renamed.verdict, old)) == ["kept", "shared-neighbors", "shared-neighbors#2", "margin#3"]


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
    [(("--filter", "crowd:max=0.9"), ("--filter", "shared-neighbors:max=0.9")),
     *(pytest.param(old, new, marks=pytest.mark.slow) for old, new in (
         (("--policy", "top"), ("--negative-sampling", "top")), (("--policy=top",), ("--negative-sampling=top",)),
         (("--chunk", "4"), ("--mini-batch-size", "4")), (("--rate", "cosine"), ("--lr-scheduler", "cosine")),
         (("--clip", "0.5"), ("--max-grad-norm", "0.5")),
     ))],
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
    state = json.loads(text.replace('"negative_sampling"', '"policy"'))
    del state["checksum"], state["files"], state["step"]
    path.write_text(json.dumps({**state, "schema": "hardneg-checkpoint-2"}))


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
