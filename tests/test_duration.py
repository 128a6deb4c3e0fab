"""How long a training goes on: early stopping, going on with a finished one, and the checkpoints that are kept."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hardneg
from hardneg.errors import RunError, UsageError
from hardneg.training import checkpoint
from hardneg.training.optim import rate_at
from hardneg.training.options import TrainOptions

from .conftest import run_here, write_jsonl
from .processes import on_two_ranks
from .test_trainer import encoder, made_pairs, weights

QUIET: dict[str, Any] = {"device": "cpu", "warn": lambda message: None}
SMALL: dict[str, Any] = {"batch_size": 16, "negatives": 2, "depth": 12, "log_every": 1, "evaluate_every": 2}


def steps_of(folder: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint._complete(folder / "checkpoints")]


def test_it_stops_early_and_goes_on_with_more_patience(tmp_path: Path) -> None:
    """Weights that hardly move give equal evaluations: the first one is the best, and none after it is better."""
    pairs, out = made_pairs(), tmp_path / "out"
    options: dict[str, Any] = {**SMALL, "steps": 30, "learning_rate": 1e-12}
    result = hardneg.train(pairs, encoder(), out, TrainOptions(**options, patience=2), evaluation=pairs, **QUIET)
    assert (result["steps"], result["stopped_early"], len(result["evaluations"])) == (6, True, 3)
    assert result["best"]["step"] == 2
    assert steps_of(out) == [6]
    with pytest.raises(
        RunError, match=r"stopped early, as its last 2 .* raise patience \(--patience\) or leave it out"
    ):
        hardneg.train(
            pairs, encoder(), out, TrainOptions(**options, patience=2), evaluation=pairs, resume=True, **QUIET
        )
    with pytest.raises(RunError, match="is finished"):  # less is no more
        hardneg.train(
            pairs, encoder(), out, TrainOptions(**options, patience=1), evaluation=pairs, resume=True, **QUIET
        )
    more = hardneg.train(
        pairs, encoder(), out, TrainOptions(**options, patience=4), evaluation=pairs, resume=True, **QUIET
    )
    assert (more["steps"], more["stopped_early"]) == (10, True)
    rest = hardneg.train(pairs, encoder(), out, TrainOptions(**options), evaluation=pairs, resume=True, **QUIET)
    assert (rest["steps"], rest["stopped_early"], len(rest["evaluations"])) == (30, False, 15)


def test_what_gets_better_does_not_stop(tmp_path: Path) -> None:
    pairs = made_pairs()
    options = TrainOptions(**SMALL, steps=8, patience=1, learning_rate=0.01)
    result = hardneg.train(pairs, encoder(), tmp_path / "out", options, evaluation=pairs, **QUIET)
    scores = [each["ndcg@10"] for each in result["evaluations"]]
    falls = next((i for i in range(1, len(scores)) if scores[i] <= max(scores[:i])), None)
    assert result["steps"] == (8 if falls is None else 2 * (falls + 1))


def stop_on(rank: int, folder: Path) -> None:
    options = TrainOptions(
        steps=30, batch_size=8, negatives=2, depth=12, evaluate_every=2, patience=1, learning_rate=1e-12
    )
    pairs = made_pairs()
    print(hardneg.train(pairs, encoder(), folder / "two", options, evaluation=pairs, **QUIET)["steps"])


@pytest.mark.slow
def test_two_ranks_stop_together(tmp_path: Path) -> None:
    assert [said.split() for said in on_two_ranks(stop_on, tmp_path)] == [["4"], ["4"]]


@pytest.mark.parametrize("length", [{"steps": 15}, {"epochs": 2.5}])
def test_a_finished_training_goes_on_as_if_it_had_been_longer(tmp_path: Path, length: dict[str, Any]) -> None:
    """With a constant learning rate the two are the same, bit for bit; 96 pairs are 6 steps an epoch."""
    pairs = made_pairs()
    same = {**SMALL, "lr_scheduler": "constant", "warmup": 0.0, "learning_rate": 0.01, "refresh": "steps:4", "bank": 40}
    same |= {"bank_start": 2, "batches": "hard:group=8"}
    short = {"steps": 7} if "steps" in length else {"epochs": 1.2}
    hardneg.train(pairs, encoder(), tmp_path / "two", TrainOptions(**same, **short), evaluation=pairs, **QUIET)
    head = json.loads((tmp_path / "two" / "train.json").read_text())
    assert (head["finished"], head["steps"]) == (True, 7 if "steps" in length else 8)
    options = TrainOptions(**same, **length)
    on = hardneg.train(pairs, encoder(), tmp_path / "two", options, evaluation=pairs, resume=True, **QUIET)
    whole = hardneg.train(pairs, encoder(), tmp_path / "one", options, evaluation=pairs, **QUIET)
    assert on["steps"] == whole["steps"] == 15
    assert (weights(tmp_path / "two" / "last") == weights(tmp_path / "one" / "last")).all()
    assert on["options"] == whole["options"]
    assert [e for e in on["evaluations"] if e["step"] not in (7, 8)] == [
        e for e in whole["evaluations"] if e["step"] != 8
    ]  # its last step was evaluated as well


def test_the_learning_rate_follows_the_new_length(tmp_path: Path) -> None:
    pairs = made_pairs()
    hardneg.train(pairs, encoder(), tmp_path / "out", TrainOptions(**SMALL, steps=4, learning_rate=1e-3), **QUIET)
    options = TrainOptions(**SMALL, steps=12, learning_rate=1e-3)
    hardneg.train(pairs, encoder(), tmp_path / "out", options, resume=True, **QUIET)
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    found = [row["learning_rate"] for row in rows if row["step"] > 4]
    # A log entry says the rate of the next step.
    assert np.allclose(found, [1e-3 * rate_at(step, 12, 0.1, "linear") for step in range(5, 13)])


def test_only_the_length_may_change(tmp_path: Path) -> None:
    pairs, out = made_pairs(), tmp_path / "out"
    hardneg.train(pairs, encoder(), out, TrainOptions(**SMALL, steps=4), **QUIET)
    for changed, message in (
        ({"steps": 3}, "is finished"), ({"steps": 9, "seed": 1}, "other seed"), ({"steps": 9, "temperature": 0.1}, "temperature"),
    ):  # fmt: skip
        with pytest.raises(RunError, match=message):
            hardneg.train(pairs, encoder(), out, TrainOptions(**{**SMALL, **changed}), resume=True, **QUIET)
    assert json.loads((out / "train.json").read_text())["finished"] is True
    shutil.rmtree(out / "checkpoints")
    with pytest.raises(RunError, match="without its checkpoint"):
        hardneg.train(pairs, encoder(), out, TrainOptions(**SMALL, steps=9), resume=True, **QUIET)
    assert (out / "last").is_dir()
    # An interrupted one may not become shorter by an option that was forgotten.
    assert TrainOptions(epochs=3).changed(TrainOptions(epochs=5)) == ["epochs"]
    assert TrainOptions(epochs=5).changed(TrainOptions(epochs=3)) == []
    assert TrainOptions().changed(TrainOptions(steps=9)) == ["steps"]
    assert TrainOptions(steps=9).changed(TrainOptions()) == []


def test_several_checkpoints_are_kept(tmp_path: Path) -> None:
    """The last one damaged, and removed: the training goes on from the one before, to the same weights."""
    pairs, out = made_pairs(), tmp_path / "out"
    options = TrainOptions(**SMALL, steps=9, save_every=2, keep=3)
    hardneg.train(pairs, encoder(), out, options, **QUIET)
    assert steps_of(out) == [6, 8, 9]
    before = weights(out / "last")
    head = json.loads((out / "train.json").read_text())
    (out / "train.json").write_text(json.dumps({**head, "finished": False}))
    tensors = out / "checkpoints" / "step-00000009" / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-4])
    with pytest.raises(RunError, match="missing or damaged"):
        hardneg.train(pairs, encoder(), out, options, resume=True, **QUIET)
    shutil.rmtree(tensors.parent)
    hardneg.train(pairs, encoder(), out, options, resume=True, **QUIET)
    assert (weights(out / "last") == before).all()
    assert steps_of(out) == [6, 8, 9]


@pytest.mark.slow
def test_from_the_command_line(tmp_path: Path) -> None:
    rows = [{"query": f"q {i} {i % 7}", "positive": f"answer {i} {i % 7}"} for i in range(64)]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", rows)
    given = ["train", pairs, "--out", tmp_path / "out", "--batch-size", "8", "--negatives", "1", "--eval-split", "none"]
    assert (
        run_here(*given, "--steps", "4", "--keep", "2", "--save-every", "1", "--batches", "hard:group=4").returncode
        == 0
    )
    assert steps_of(tmp_path / "out") == [3, 4]
    again = run_here(*given, "--steps", "4", "--batches", "hard:group=4", "--resume")
    assert (again.returncode, "is finished. To go on with it, raise --steps" in again.stderr) == (1, True)
    more = run_here(*given, "--steps", "6", "--batches", "hard:group=4", "--resume", "--json")
    assert json.loads(more.stdout)["steps"] == 6
    stops = run_here(
        "train", pairs, "--out", tmp_path / "early", "--batch-size", "8", "--eval-source", pairs, "--eval-split", "train",
        "--steps", "20", "--evaluate-every", "1", "--patience", "2", "--learning-rate", "1e-12",
    )  # fmt: skip
    assert "3 steps" in stops.stdout + stops.stderr
    assert "stopped early" in stops.stdout + stops.stderr


def test_patience_without_an_evaluation_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    options = TrainOptions(**SMALL, steps=2, patience=1)
    result = hardneg.train(made_pairs(), encoder(), tmp_path / "out", options, device="cpu", warn=said.append)
    assert (result["stopped_early"], result["best"]) == (False, None)
    assert any("patience=1 (--patience) counts evaluations, and nothing is evaluated" in each for each in said)


def test_workers_end_with_the_training(tmp_path: Path) -> None:
    class Stops:
        def log(self, step: int, values: dict[str, float]) -> None:
            raise UsageError("enough")

        def close(self) -> None:
            pass

    before = set(multiprocessing.active_children())
    options = TrainOptions(**SMALL, steps=2, workers=1)
    hardneg.train(made_pairs(), encoder(), tmp_path / "a", options, **QUIET)
    assert set(multiprocessing.active_children()) <= before
    with pytest.raises(UsageError, match="enough"):
        hardneg.train(made_pairs(), encoder(), tmp_path / "b", options, callbacks=[Stops()], **QUIET)
    assert set(multiprocessing.active_children()) <= before


def test_what_is_resumed_with_another_run_or_other_evaluation_data_is_refused(tmp_path: Path) -> None:
    """Candidates decide what is learned, and evaluation data which encoder is the best: of others, nothing can be told."""
    pairs, out = made_pairs(), tmp_path / "out"
    runs = [hardneg.mine(pairs, tmp_path / f"run{i}", encoder=encoder(i), depth=12, negatives=2) for i in range(2)]
    first, longer = (TrainOptions(**SMALL, steps=steps) for steps in (2, 4))
    hardneg.train(pairs, encoder(), out, first, run=runs[0], evaluation=pairs, **QUIET)
    others: tuple[tuple[dict[str, Any], str], ...] = (
        ({"run": runs[1], "evaluation": pairs}, r"had other candidates \(run, --run\)"),
        ({"evaluation": pairs}, r"had other candidates \(run, --run\)"),
        ({"run": runs[0]}, "had other evaluation data"),
        ({"run": runs[0], "evaluation": made_pairs(seed=1)}, "had other evaluation data"),
        ({"run": runs[0], "evaluation": {"a": pairs}}, "had other evaluation data"),
    )
    for given, message in others:
        with pytest.raises(RunError, match=message):
            hardneg.train(pairs, encoder(), out, longer, resume=True, **given, **QUIET)
    found = hardneg.train(pairs, encoder(), out, longer, run=runs[0], evaluation=pairs, resume=True, **QUIET)
    assert found["steps"] == 4
    head = json.loads((out / "train.json").read_text())
    for name in ("run", "evaluation"):
        del head["data"][name]  # as in trainings of earlier versions
    (out / "train.json").write_text(json.dumps(head))
    assert hardneg.train(
        pairs, encoder(), out, TrainOptions(**SMALL, steps=6), run=runs[0], evaluation=pairs, resume=True, **QUIET
    )["steps"] == 6  # fmt: skip


def test_an_evaluation_may_begin_when_a_training_goes_on(tmp_path: Path) -> None:
    pairs, out = made_pairs(), tmp_path / "out"
    hardneg.train(pairs, encoder(), out, TrainOptions(**SMALL, steps=2), **QUIET)
    more = hardneg.train(pairs, encoder(), out, TrainOptions(**SMALL, steps=4), evaluation=pairs, resume=True, **QUIET)
    assert [each["step"] for each in more["evaluations"]] == [4]
