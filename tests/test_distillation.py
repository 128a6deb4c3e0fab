"""Distillation: the losses against a naive reference, and trainings that learn what a real cross-encoder says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hardneg
from hardneg.errors import UsageError
from hardneg.losses.distillation import distillation_loss
from hardneg.mining.run import Run
from hardneg.mining.score import score
from hardneg.mining.teachers import TEACHER, Teachers
from hardneg.training.options import TrainOptions
from hardneg.training.teaching import Distillation, Teaching

from . import test_teacher
from .conftest import run_here

cross_encoder, mined, pairs = test_teacher.cross_encoder, test_teacher.mined, test_teacher.pairs  # fixtures

QUIET: dict[str, Any] = {"device": "cpu", "warn": lambda message: None}


def naive(q: Any, d: Any, t: Any, kind: str, scale: float, heat: float) -> float:
    losses = []
    for i in range(len(q)):
        s = [scale * float(q[i] @ d[i, j] / np.linalg.norm(q[i]) / np.linalg.norm(d[i, j])) for j in range(d.shape[1])]
        known = [j for j in range(d.shape[1]) if not np.isnan(t[i, j])]
        if kind == "kl" and len(known) >= 2:
            p, r = (np.exp(np.array(x) - max(x)) for x in ([t[i, j] / heat for j in known], [s[j] for j in known]))
            p, r = p / p.sum(), r / r.sum()
            losses.append(sum(p * (np.log(p) - np.log(r))))
        if kind == "margin-mse" and 0 in known and len(known) >= 2:
            losses.append(np.mean([((s[0] - s[j]) - (t[i, 0] - t[i, j]) / heat) ** 2 for j in known if j]))
    return float(np.mean(losses)) if losses else 0.0


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 6),
    st.sampled_from(["kl", "margin-mse"]),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.integers(0, 999),
)
def test_the_losses_are_those_of_a_loop(size: int, width: int, kind: str, missing: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, d, t = (
        rng.standard_normal((size, 8)),
        rng.standard_normal((size, width, 8)),
        3 * rng.standard_normal((size, width)),
    )
    t[rng.random(t.shape) < missing] = np.nan
    queries, documents = (torch.tensor(x, dtype=torch.float32, requires_grad=True) for x in (q, d))
    loss = distillation_loss(queries, documents, torch.tensor(t), kind, scale=5.0, teacher_temperature=2.0)
    assert float(loss.detach()) == pytest.approx(naive(q, d, t, kind, 5.0, 2.0), rel=1e-3, abs=1e-5)
    loss.backward()
    assert all(torch.isfinite(x.grad).all() for x in (queries, documents))  # type: ignore[union-attr,arg-type]
    empty = np.isnan(t).all(1)
    assert (documents.grad[torch.tensor(empty)] == 0).all()  # type: ignore[index]


@pytest.fixture(scope="module")
def scored(mined: Run, cross_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("scored") / "run"
    shutil.copytree(mined.folder, folder)
    run = Run(folder)
    score(run, f"cross-encoder:{cross_encoder},batch=16")
    return run


def far(model: Any, run: Run, kind: str) -> float:
    """The loss of a model over all candidates that may be negatives, not only over those that were drawn."""
    given = run.pairs()
    mined = hardneg.Mined.of_run(run)
    listed = np.concatenate([given.positives.padded()[:, :1], np.where(mined.kept, mined.documents, -1)], 1)
    teacher = Teachers(run.folder / "teacher", given).named(TEACHER).of(np.arange(len(given)), listed)
    teacher[listed < 0] = np.nan
    queries = torch.from_numpy(model.encode(given.queries.slice(0, len(given))))
    documents = torch.from_numpy(model.encode(given.documents.slice(0, len(given.document_ids))))
    return float(distillation_loss(queries, documents[listed.clip(min=0)], torch.from_numpy(teacher), kind))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "spec", ["kl:alone", *(pytest.param(s, marks=SLOW) for s in ("margin-mse:alone", "kl:weight=2"))]
)
def test_a_training_comes_nearer_to_its_teacher(scored: Run, tmp_path: Path, spec: str) -> None:
    model = hardneg.HashedEncoder(32)
    options: dict[str, Any] = {"steps": 60, "batch_size": 20, "negatives": 8, "learning_rate": 0.02, "log_every": 1}
    plain = hardneg.HashedEncoder(32)
    hardneg.train(scored.pairs(), plain, tmp_path / "plain", TrainOptions(**options), run=scored, **QUIET)
    hardneg.train(scored.pairs(), model, tmp_path / "out", TrainOptions(**options, distill=spec), run=scored, **QUIET)
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    losses = [row["distillation"] for row in rows]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert far(model, scored, spec.partition(":")[0]) < far(plain, scored, spec.partition(":")[0])
    if "alone" in spec:
        assert all(row["loss"] == pytest.approx(row["distillation"], rel=1e-5) for row in rows)


def test_mini_batches_change_nothing(scored: Run, tmp_path: Path) -> None:
    weights = []
    for size in (None, 7):
        model = hardneg.HashedEncoder(16)
        options = TrainOptions(
            steps=4, batch_size=20, negatives=4, distill="kl", mini_batch_size=size, learning_rate=0.01
        )
        hardneg.train(scored.pairs(), model, tmp_path / str(size), options, run=scored, **QUIET)
        weights.append(model.table.weight.detach().numpy().copy())
    assert np.abs(weights[0] - weights[1]).max() < 1e-4


def test_a_teacher_of_negatives_needs_negatives() -> None:
    """Of a positive alone there is nothing to learn: with `alone`, the loss was always 0."""
    with pytest.raises(UsageError, match="negatives=0 has none: take negatives=4"):
        TrainOptions(distill="kl:alone", negatives=0)


def test_what_cannot_be_taught_is_said(scored: Run, mined: Run, tmp_path: Path) -> None:
    for spec, message in (
        ("cosine", "Known: kl, margin-mse"), ("kl:weight=0", "weight"), ("kl:only", "'only' is not understood"), (3, "must be a text"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            TrainOptions(distill=spec)  # type: ignore[arg-type]
    pairs = scored.pairs()
    with pytest.raises(UsageError, match="--run RUN"):
        Teaching("kl", None, pairs)
    with pytest.raises(UsageError, match="hardneg score"):
        Teaching("kl", mined, pairs)
    assert Distillation.parse("margin-mse:alone,weight=0.5") == Distillation("margin-mse", 0.5, alone=True)
    for wrong in (torch.zeros(2, 4), torch.zeros(3, 3)):
        with pytest.raises(UsageError, match=r"expected \[B, d\]"):
            distillation_loss(torch.ones(2, 8), torch.ones(2, 3, 8), wrong)


def test_from_the_command_line(scored: Run, tmp_path: Path) -> None:
    export = tmp_path / "pairs.jsonl"
    pairs = scored.pairs()
    texts = pairs.documents.slice(0, len(pairs.document_ids))
    rows = [
        {"query": q, "positive": texts[p]}
        for q, p in zip(pairs.queries.slice(0, len(pairs)), pairs.positives.values.tolist(), strict=True)
    ]
    export.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run_here(
        "train",
        export,
        "--out",
        tmp_path / "out",
        "--distill",
        "kl",
        "--steps",
        "2",
        "--batch-size",
        "8",
        "--eval-split",
        "none",
    )
    assert (done.returncode, "train with --run RUN" in done.stderr) == (2, True)
