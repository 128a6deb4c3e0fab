"""Findings while training: the same words, a bounded cost, every writer, and the page of a training folder."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import hardneg
from hardneg.diagnostics import JsonLines, LiveFindings, Wandb, diagnose_training, live
from hardneg.diagnostics.estimates import Measurements
from hardneg.diagnostics.findings.rules import find
from hardneg.diagnostics.findings.thresholds import Thresholds
from hardneg.diagnostics.measures.batch import batch_hardness
from hardneg.errors import RunError, UsageError
from tests.conftest import run_here


def batch(far: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """16 queries with their positives, and two mined negatives each, of which one has a cosine of `far`."""
    q = torch.nn.functional.normalize(torch.randn(16, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    other = torch.nn.functional.normalize(q.roll(1, 0) - (q.roll(1, 0) * q).sum(1, keepdim=True) * q, dim=1)
    near = 0.98 * q + (1 - 0.98**2) ** 0.5 * other
    away = far * q + (1 - far**2) ** 0.5 * other
    return q, torch.cat([q, near, away]), torch.arange(16, 48).view(2, 16).T


def test_what_teaches_is_counted_right() -> None:
    q, d, mined = batch(0.1)
    found = batch_hardness(q, d, mined, 0.05)
    p = torch.softmax(torch.tensor([1.0, 0.98, 0.1]) / 0.05, 0)
    assert found["teaching"] == pytest.approx(0.5)
    assert found["negative_weight"] == pytest.approx(float(p[1:].sum()), abs=1e-4)
    assert batch_hardness(q, d, mined, 1.0)["teaching"] == 1


def test_findings_while_training_have_the_words_of_a_diagnosis() -> None:
    seen = LiveFindings()
    numbers = {"teaching": 0.3, "temperature": 0.05}
    said = [seen.look(step, numbers) for step in range(3000, 3500, 100)]
    assert [len(each) for each in said] == [0, 0, 1, 0, 0]
    finding = next(f for f in find(Measurements(dict(numbers)), Thresholds(), "") if f.code == "taught-out")
    assert said[2][0].startswith(f"since step 3,000: {finding.text}")
    other = LiveFindings()
    other.load(seen.state())
    assert other.look(3600, numbers) == []
    assert seen.look(3700, {"teaching": 0.9, "temperature": 0.05}) == []
    assert seen.streaks == {}


class FakeWandb:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, values))


def test_every_writer_gets_the_numbers(tmp_path: Path) -> None:
    wandb = FakeWandb()
    warned: list[str] = []
    watch = hardneg.Diagnostics(
        [JsonLines(tmp_path / "live.jsonl"), Wandb(wandb)], every=10, budget=1, warn=warned.append
    )
    q, d, mined = batch(-0.9)
    for step in range(1, 41):
        watch.batch(step, q, d, mined[:, 1:], statistics={"temperature": torch.tensor(0.05)})
    rows = [json.loads(line) for line in (tmp_path / "live.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 30, 40] == [step for step, _ in wandb.rows]
    assert rows[0]["teaching"] == 0 == wandb.rows[0][1]["negatives/teaching"]
    assert len(warned) == 1
    assert "step 30: since step 10" in warned[0]
    with pytest.raises(UsageError, match="neither"):
        hardneg.Diagnostics(object())
    with pytest.raises(UsageError, match="wandb"):
        Wandb(object())
    with pytest.raises(RunError, match="cannot be written"):
        JsonLines(tmp_path / "nowhere" / "x.jsonl")


def test_the_cost_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that takes 30 ms gets so few measurements that they take a tenth of the time at most."""

    class Slow:
        spent = 0.0

        def write(self, step: int, values: dict[str, float]) -> None:
            start = time.perf_counter()
            time.sleep(0.03)
            self.spent += time.perf_counter() - start

    monkeypatch.setattr(live, "ALLOWED", 0.0)
    slow = Slow()
    watch = hardneg.Diagnostics(slow, every=1, budget=0.1)
    q, d, mined = batch(0.1)
    start = time.perf_counter()
    for step in range(1, 301):
        watch.batch(step, q, d, mined)
        time.sleep(0.003)
    share = slow.spent / (time.perf_counter() - start)
    assert share < 0.15
    assert watch.put_off > 100
    assert len(watch.history) >= 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    things = ["bread", "rivers", "trains", "clouds", "chess", "violins", "taxes", "whales", "paint", "clocks"]
    pairs = hardneg.Pairs.from_columns(
        [f"question {i} about {things[i % 10]}" for i in range(120)],
        [f"answer {i} about {things[i % 10]}" for i in range(120)],
    )
    out = tmp_path_factory.mktemp("trained") / "t"
    options = hardneg.TrainOptions(
        steps=30,
        batch_size=8,
        negatives=3,
        refresh="steps:10",
        filters=("margin:relative=0.05",),
        learning_rate=0.01,
        log_every=3,
    )
    hardneg.train(pairs, hardneg.HashedEncoder(32), out, options, evaluation=pairs, device="cpu", warn=lambda _: None)
    return out


def test_a_training_is_diagnosed_from_its_folder(trained: Path, tmp_path: Path) -> None:
    found = diagnose_training(trained)
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert found.finished
    assert found.steps == 30
    assert found.series("loss") == [(row["step"], row["loss"]) for row in lines if "loss" in row]
    assert found.refreshes == [row["step"] for row in lines if "swap_seconds" in row]
    shares = {name: found.series(name)[-1][1] for name in found.names("rejected/")}
    assert {"rejected/known", "rejected/margin"} <= set(shares)
    assert 0 < sum(shares.values()) <= 1
    assert {"teaching", "negative_weight", "evaluation/ndcg@10"} <= set(found.names())
    done = run_here("diagnose", trained, "--html", tmp_path / "t.html")
    assert done.returncode == 0, done.stderr
    assert "diagnosed the training" in done.stdout
    page = (tmp_path / "t.html").read_text()
    assert page.count("<svg") >= 8
    assert "<script" not in page
    assert "rejected/margin" in page
    assert run_here("diagnose", trained, "--second-encoder", "hashed").returncode == 2


def test_the_log_of_a_training_is_not_trusted(tmp_path: Path) -> None:
    """Lines that are none are counted; names and warnings are shown as text; a finding is there from the step on that it holds."""
    nasty = "<img src=x onerror=alert(1)>"
    head = {"schema": "hardneg-train-1", "finished": False, "warnings": [nasty]}
    (tmp_path / "train.json").write_text(json.dumps(head))
    rows: list[Any] = [
        {"step": s, "loss": 1.0 / s, "teaching": 0.9 if s < 40 else 0.2, "temperature": 0.05} for s in range(10, 90, 10)
    ]
    rows += [
        {"step": 90, f"rejected/{nasty}": 0.5, "teaching": float("inf"), "x": [1]},
        {"step": "x"},
        [1],
        {"step": True},
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + '\n{"step": 100, "lo')
    found = diagnose_training(tmp_path)
    assert found.unreadable == 4
    assert found.findings == []  # the last entry has no share that teaches: nothing is said of now
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(row) for row in rows[:8]))
    found = diagnose_training(tmp_path)
    assert [f.code for f in found.findings] == ["taught-out"]
    assert found.findings[0].text.startswith("since step 40: 80% of the negatives teach nothing")
    assert found.fails("warning")
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(row) for row in rows[:9]))
    diagnose_training(tmp_path).to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert nasty not in page
    assert "&lt;img" in page
    (tmp_path / "train.json").write_text('{"schema": "other"}')
    with pytest.raises(RunError, match="no training"):
        diagnose_training(tmp_path)


def test_drift_is_logged_once_it_is_known(tmp_path: Path) -> None:
    pairs = hardneg.Pairs.from_columns(
        [f"question {i} {i % 7}" for i in range(64)], [f"answer {i} {i % 7}" for i in range(64)]
    )
    options = hardneg.TrainOptions(
        steps=12,
        batch_size=16,
        refresh="steps:4",
        lag=2,
        wait=True,
        negatives=2,
        depth=8,
        log_every=1,
        learning_rate=0.05,
    )
    result = hardneg.train(pairs, hardneg.HashedEncoder(16), tmp_path / "out", options, device="cpu")
    drifts = {each["in_use_from"]: each["drift"] for each in result["generations"]}
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    logged = {row["step"]: row.get("drift") for row in rows if "loss" in row}
    first = min(drifts)
    assert all(logged[step] is None for step in logged if step < first)
    assert logged[first + 1] == pytest.approx(drifts[first])
    assert drifts[first] > 0
