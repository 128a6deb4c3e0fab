"""Trainings on a GPU: the same losses as on the processor, with every part that has arrays of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hardneg
from hardneg.losses.variants import Variants
from tests.conftest import NO_CUDA
from tests.test_trainer import Rows, encoder, made_pairs, quiet

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_CUDA)]

SMALL: dict[str, Any] = {"steps": 8, "batch_size": 16, "negatives": 2, "depth": 12, "log_every": 1, "amp": "no"}
WAYS: dict[str, dict[str, Any]] = {
    "in-batch": {"negatives": 0},
    "mined": {},
    "refreshed": {"refresh": "steps:3"},
    "a part encoded": {"refresh": "steps:3", "share": 0.5},
    "staleness": {"refresh": "staleness:check=2"},
    "bank": {"bank": 64, "bank_start": 1, "bank_fresh": 0.25},
    "momentum": {"bank": 64, "bank_start": 1, "momentum": 0.9},
    "cached": {"mini_batch_size": 4},
    "accumulated": {"accumulate": 2},
    "learned temperature": {"learn_temperature": True},
    "margin": {"variants": Variants(margin_absolute=0.05), "filters": ("margin:relative=0.05",)},
    "symmetric": {"variants": Variants(symmetric=True, query_query=True, document_document=True)},
    "hard batches": {"batches": "hard:group=4"},
    "hard batches by training": {"batches": "hard:group=4,graph=training"},
    "drawn": {"negative_sampling": "softmax"},
    "learned posterior": {"filters": ("posterior:learned",), "bank": 64, "bank_start": 1},
    "Matryoshka": {"dimensions": (8, 16)},
}


def losses(folder: Path, device: str, **more: Any) -> list[float]:
    told = Rows()
    options = hardneg.TrainOptions(**{**SMALL, **more})
    hardneg.train(
        made_pairs(),
        encoder(),
        folder / device,
        options,
        device=device,
        callbacks=[told],
        warn=quiet,
        evaluation=made_pairs(),
    )
    return [row["loss"] for row in told.rows if "loss" in row]


@pytest.mark.parametrize("way", WAYS)
def test_losses_are_those_of_the_processor(tmp_path: Path, way: str) -> None:
    ours, theirs = (losses(tmp_path, device, **WAYS[way]) for device in ("cuda", "cpu"))
    assert len(ours) == len(theirs) == 8
    assert np.allclose(ours, theirs, rtol=2e-3), (ours, theirs)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains_alike(tmp_path: Path, amp: str) -> None:
    ours, theirs = losses(tmp_path, "cuda", amp=amp), losses(tmp_path, "cpu")
    assert np.allclose(ours, theirs, rtol=0.05), (ours, theirs)


def test_a_resumed_training_goes_on_alike(tmp_path: Path) -> None:
    more: dict[str, Any] = {"refresh": "steps:3", "bank": 64, "bank_start": 1, "lr_scheduler": "constant", "warmup": 0}
    whole = losses(tmp_path, "cuda", **more)
    told = Rows()
    for steps in (5, 8):
        options = hardneg.TrainOptions(**{**SMALL, **more, "steps": steps})
        hardneg.train(
            made_pairs(),
            encoder(),
            tmp_path / "parts",
            options,
            device="cuda",
            callbacks=[told],
            warn=quiet,
            resume=steps == 8,
        )
    found = [row["loss"] for row in told.rows if "loss" in row]
    assert np.allclose(found, whole, rtol=2e-3), (found, whole)


def test_a_transformer_trains_with_lora_and_checkpointing(tmp_path: Path, tiny_model: Path) -> None:
    made = hardneg.make_encoder(f"st:{tiny_model}", device="cuda")
    told = Rows()
    options = hardneg.TrainOptions(
        **{**SMALL, "steps": 20, "batch_size": 16, "amp": None}, lora="r=4,alpha=16", gradient_checkpointing=True,
        learning_rate=0.02, mini_batch_size=8,
    )  # fmt: skip
    hardneg.train(made_pairs(), made, tmp_path / "out", options, device="cuda", callbacks=[told], warn=quiet)
    found = [row["loss"] for row in told.rows if "loss" in row]
    assert np.mean(found[-5:]) < np.mean(found[:5])
    saved = hardneg.make_encoder(f"st:{tmp_path / 'out' / 'last'}", device="cuda")
    assert saved.encode(["a red bird"]).shape[0] == 1
