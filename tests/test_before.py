"""What an encoder was worth before its training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import hardneg
from hardneg.errors import RunError
from hardneg.training.evaluation_set import EvaluationSet
from hardneg.training.progressed import Progressed
from hardneg.training.towers import Towers

from .conftest import run_here
from .test_trainer import Rows, encoder, made_pairs, weights

SMALL: dict[str, Any] = {"steps": 6, "batch_size": 16, "negatives": 2, "depth": 12, "evaluate_every": 3, "log_every": 1}


def trained(out: Path, **more: Any) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    given = {"evaluation": made_pairs(), "warn": said.append, "resume": False, **more}
    options = hardneg.TrainOptions(**{**SMALL, **given.pop("options", {})})
    return hardneg.train(made_pairs(), given.pop("model", encoder()), out, options, device="cpu", **given), said


def test_it_is_that_of_the_untrained_encoder(tmp_path: Path) -> None:
    told = Rows()
    result, said = trained(tmp_path / "out", callbacks=[told])
    untrained = encoder()
    untrained.fit([*made_pairs().queries, *made_pairs().documents])
    right = EvaluationSet(made_pairs()).evaluate(Towers(untrained), hardneg.TrainOptions().measures)
    assert result["before"] == pytest.approx(right)
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "evaluation/ndcg@10" in row] == [0, 3, 6]
    assert rows[0]["evaluation/ndcg@10"] == result["before"]["ndcg@10"]
    assert told.rows[0]["step"] == 0
    assert [each["step"] for each in result["evaluations"]] == [3, 6]  # it is no evaluation of the training
    assert not any("worse" in each for each in said)
    assert json.loads((tmp_path / "out" / "train.json").read_text())["before"] == result["before"]


def test_it_changes_nothing(tmp_path: Path) -> None:
    for name, evaluation in (("with", made_pairs()), ("without", None)):
        trained(tmp_path / name, evaluation=evaluation, model=encoder(dropout=0.3))
    assert (weights(tmp_path / "with" / "last") == weights(tmp_path / "without" / "last")).all()


def test_a_training_that_does_harm_is_said(tmp_path: Path) -> None:
    result, said = trained(tmp_path / "out", options={"learning_rate": 30.0, "max_grad_norm": None, "negatives": 0})
    best, before = result["best"]["ndcg@10"], result["before"]["ndcg@10"]
    assert best < before
    (line,) = [each for each in said if "worse" in each]
    assert f"ndcg@10 was {before:.4f} before it and {best:.4f} at best" in line
    assert line in result["warnings"]


class Stop(Exception):
    pass


class At:
    def __init__(self, step: int) -> None:
        self.step = step

    def log(self, step: int, values: dict[str, float]) -> None:
        if step == self.step:
            raise Stop

    def close(self) -> None:
        pass


@pytest.mark.parametrize("step", [2, 5], ids=["before the first checkpoint", "after it"])
def test_after_an_interruption_it_is_there_once(tmp_path: Path, step: int) -> None:
    whole, _ = trained(tmp_path / "whole", options={"save_every": 3})
    with pytest.raises(Stop):
        trained(tmp_path / "out", options={"save_every": 3}, callbacks=[At(step)])
    result, _ = trained(tmp_path / "out", options={"save_every": 3}, resume=True)
    assert result["before"] == whole["before"]
    logs = [
        [json.loads(line) for line in (tmp_path / n / "log.jsonl").read_text().splitlines()] for n in ("whole", "out")
    ]
    steps = [[row["step"] for row in log] for log in logs]
    assert steps[0] == steps[1]
    assert steps[0].count(0) == 1


def test_checkpoints_from_before_have_none() -> None:
    assert Progressed(step=3).harm("ndcg@10") is None
    old = {"step": 3, "evaluations": [], "best": {"ndcg@10": 0.5}, "warnings": []}
    assert Progressed(**old).before is None
    assert Progressed(**old).harm("ndcg@10") is None


def finished(tmp_path: Path, **more: Any) -> Path:
    trained(tmp_path / "out", options=more)
    return tmp_path / "out"


def test_a_training_that_stopped_early_says_what_would_go_on(tmp_path: Path) -> None:
    more = {"learning_rate": 1e-12, "evaluate_every": 1, "patience": 1, "steps": 6}
    out = finished(tmp_path, **more)
    assert json.loads((out / "train.json").read_text())["stopped_early"]
    with pytest.raises(
        RunError, match="stopped early, as its last 1 evaluations .* raise .*patience.* or leave it out"
    ):
        trained(out, options={**more, "steps": 12}, resume=True)
    result, _ = trained(out, options={**more, "steps": 12, "patience": None}, resume=True)
    assert result["steps"] == 12


def test_a_finished_training_says_which_option_is_in_the_way(tmp_path: Path) -> None:
    out = finished(tmp_path, steps=6)
    with pytest.raises(RunError, match="was asked for 6 steps, which count in place of epochs.* give more steps"):
        trained(out, options={"steps": None, "epochs": 40}, resume=True)
    with pytest.raises(RunError, match="is finished, and had other batch_size, negatives"):
        trained(out, options={"steps": 6, "batch_size": 8, "negatives": 1}, resume=True)
    with pytest.raises(RunError, match="To go on with it, raise steps"):
        trained(out, options={"steps": 6}, resume=True)


def test_the_command_says_from_where_it_goes_on(tmp_path: Path) -> None:
    rows = [{"query": f"question {i} of {i * 7}", "positive": f"answer {i} is {i * 7}"} for i in range(80)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["train", tmp_path / "x.jsonl", "--out", tmp_path / "out", "--batch-size", "16", "--negatives", "0"]
    command += ["--eval-split", "none", "--save-every", "2", "--device", "cpu"]
    assert run_here(*command, "--steps", "4").returncode == 0
    done = run_here(*command, "--steps", "8", "--resume")
    assert done.returncode == 0, done.stderr
    assert "goes on from the checkpoint of step 4" in done.stdout + done.stderr
