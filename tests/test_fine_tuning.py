"""What of a model is trained: LoRA, frozen parameters, learning rates of their own, gradient checkpointing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hardneg
from hardneg.encoders.factory import make_encoder
from hardneg.encoders.lora import Lora
from hardneg.errors import UsageError
from hardneg.training.fine_tuning import matching, parameter_groups, parse_rates
from hardneg.training.options import TrainOptions
from hardneg.training.towers import Towers

from .conftest import run_here, write_jsonl
from .test_trainer import encoder, made_pairs

QUIET: dict[str, Any] = {"device": "cpu", "warn": lambda message: None}
SMALL: dict[str, Any] = {"steps": 4, "batch_size": 8, "negatives": 1, "depth": 12, "learning_rate": 0.01}
TEXTS = ["a red bird", "the old stone by the river"]


def loaded(model: Path) -> Any:
    return make_encoder(f"st:{model}", device="cpu")


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_lora_trains_small_matrices_and_saves_a_plain_model(tmp_path: Path, tiny_model: Path) -> None:
    pairs, out, model = made_pairs(), tmp_path / "out", loaded(tiny_model)
    before, untrained = state(model), model.encode(TEXTS)
    options = TrainOptions(**SMALL, lora="r=4,alpha=16")
    hardneg.train(pairs, model, out, options, evaluation=pairs, **QUIET)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    after = model.state_dict()
    for name, value in before.items():  # the model's own weights did not move
        assert torch.equal(
            value,
            after[
                name
                if name in after
                else name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")
            ],
        )
    assert np.abs(model.encode(TEXTS) - untrained).max() > 1e-2
    saved = loaded(out / "last")  # a plain model: it needs no peft
    assert set(saved.state_dict()) == set(before)
    assert np.allclose(saved.encode(TEXTS), model.encode(TEXTS), atol=1e-5)
    # The matrices alone, over the model that they were trained with, by peft itself.
    from peft import PeftModel

    fresh = loaded(tiny_model)
    transformer = fresh.model[0].auto_model
    config = json.loads((out / "last" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 16, str(tiny_model))
    PeftModel.from_pretrained(transformer, str(out / "last" / "adapter"))  # in place
    assert np.allclose(fresh.encode(TEXTS), model.encode(TEXTS), atol=1e-5)
    small = (out / "last" / "adapter" / "adapter_model.safetensors").stat().st_size
    assert small < (out / "last" / "model.safetensors").stat().st_size / 5


def test_lora_is_resumed_bit_for_bit(tmp_path: Path, tiny_model: Path) -> None:
    pairs = made_pairs()
    same = {
        **SMALL,
        "lora": "r=4,dropout=0.2",
        "lr_scheduler": "constant",
        "warmup": 0.0,
        "gradient_checkpointing": True,
    }
    whole = loaded(tiny_model)
    hardneg.train(pairs, whole, tmp_path / "one", TrainOptions(**same), **QUIET)
    hardneg.train(pairs, loaded(tiny_model), tmp_path / "two", TrainOptions(**{**same, "steps": 2}), **QUIET)
    again = loaded(tiny_model)
    hardneg.train(pairs, again, tmp_path / "two", TrainOptions(**same), resume=True, **QUIET)
    for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path, tiny_model: Path) -> None:
    """Activations are computed again with the same dropout, so the weights are the same; and they are not kept."""
    pairs, kept = made_pairs(), []
    for on in (False, True):
        model = loaded(tiny_model)
        hardneg.train(pairs, model, tmp_path / str(on), TrainOptions(**SMALL, gradient_checkpointing=on), **QUIET)
        kept.append((state(model), _bytes_kept(model.train())))
    (a, many), (b, few) = kept
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert few < 0.5 * many
    assert loaded(tmp_path / "True" / "last").fingerprint() == loaded(tmp_path / "False" / "last").fingerprint()


def _bytes_kept(model: Any) -> int:
    """Bytes that autograd keeps for the backward pass, without the weights."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.vectors([f"{text} {i}" for i, text in enumerate(TEXTS * 20)])
    return sum(kept.values())


def test_frozen_parameters_stay(tmp_path: Path, tiny_model: Path) -> None:
    model = loaded(tiny_model)
    before = state(model)
    hardneg.train(made_pairs(), model, tmp_path / "out", TrainOptions(**SMALL, freeze=("*embeddings*",)), **QUIET)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert not any("embeddings" in name for name in moved)


def test_what_a_training_froze_the_next_one_trains(tmp_path: Path) -> None:
    """First one tower alone, then both, as is usual."""
    encoders, pairs = [encoder(), encoder(1)], made_pairs()
    for each in encoders:
        each.fit(pairs.documents.slice(0, len(pairs.document_ids)))
    towers, held = Towers(*encoders), encoders[1].table.weight
    before = held.detach().clone()
    hardneg.train(pairs, towers, tmp_path / "a", TrainOptions(**SMALL, freeze=("document",)), **QUIET)
    assert torch.equal(held, before)
    assert all(parameter.requires_grad for parameter in towers.parameters())
    without_effect = TrainOptions(**SMALL, freeze=("document",), learning_rates=("document=1e-6",))
    with pytest.raises(UsageError, match="every parameter that 'document' names is frozen"):
        hardneg.train(pairs, towers, tmp_path / "c", without_effect, **QUIET)
    assert all(parameter.requires_grad for parameter in towers.parameters())
    hardneg.train(pairs, towers, tmp_path / "b", TrainOptions(**SMALL), **QUIET)
    assert not torch.equal(held, before)
    held.requires_grad_(False)  # what its owner froze stays so
    with pytest.raises(UsageError, match="leaves nothing to train"):
        hardneg.train(pairs, towers, tmp_path / "c", TrainOptions(**SMALL, freeze=("query",)), **QUIET)
    assert [parameter.requires_grad for parameter in towers.parameters()] == [True, False]


def test_a_tower_is_frozen_or_slower(tmp_path: Path) -> None:
    pairs = made_pairs()
    changes = []
    for more in ({"freeze": ("document",)}, {"learning_rates": ("document=1e-6",)}, {}):
        towers = Towers(encoder(0), encoder(1))
        for side in ("query", "document"):
            towers.tower(side).fit([f"word {i}" for i in range(50)])  # type: ignore[attr-defined]
        before = state(towers)
        options = TrainOptions(**SMALL, **more)  # type: ignore[arg-type]
        hardneg.train(pairs, towers, tmp_path / f"out{len(changes)}", options, **QUIET)
        changes.append([float((value - before[name]).abs().max()) for name, value in towers.state_dict().items()])
    frozen, slow, both = changes
    assert frozen[1] == 0 < frozen[0]
    assert 0 < slow[1] <= 5e-6 < 1e-3 < slow[0]
    assert both[1] > 1e-3


def test_groups_and_rates() -> None:
    towers = Towers(encoder(0), encoder(1))
    assert [len(group["params"]) for group in parameter_groups(towers, 0.0)] == [2]
    groups = parameter_groups(towers, 0.0, ("query=0.5", "*tower.table*=0.25", "document=0.125"))
    assert [(len(group["params"]), group["lr"]) for group in groups] == [(1, 0.125), (1, 0.25)]
    assert parse_rates(["a=b=1e-3"]) == [("a=b", 1e-3)]
    for given in (("document",), ("=1",), ("a=x",), ("a=0",), ("a=-1",), ("a=nan",), (3,)):
        with pytest.raises(UsageError, match="learning_rates"):
            TrainOptions(learning_rates=given)


def test_what_cannot_be_done_is_said(tmp_path: Path, tiny_model: Path) -> None:
    pairs = made_pairs()
    for more, message in (
        ({"lora": "8"}, "lora needs an st: encoder"), ({"gradient_checkpointing": True}, "gradient checkpointing needs"),
        ({"freeze": ("query",)}, "leaves nothing to train"), ({"freeze": ("document",)}, "one encoder serves both sides"),
        ({"learning_rates": ("*head*=1",)}, r"no parameter fits the pattern '\*head\*'. Parameters are called query_tower"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            hardneg.train(pairs, encoder(), tmp_path / "out", TrainOptions(**{**SMALL, **more}), **QUIET)
    options = TrainOptions(**SMALL, lora="r=4,targets=nowhere")
    with pytest.raises(UsageError, match="LoRA: "):
        hardneg.train(pairs, loaded(tiny_model), tmp_path / "out", options, **QUIET)
    for spec in ("x", "0", "r=8,beta=2", "r=8,dropout=1", "alpha=0", 7.5):
        with pytest.raises(UsageError, match="lora="):
            TrainOptions(lora=spec)  # type: ignore[arg-type]
    assert Lora.parse(16) == Lora(16)


@pytest.mark.parametrize("pattern", ["*head*", "document"])
def test_a_rate_that_fits_nothing_is_refused_before_anything_is_encoded(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = encoder()
    for work in ("fit", "encode"):
        monkeypatch.setattr(model, work, lambda *given, work=work, **more: pytest.fail(f"{work} was called"))
    there = "from Python only, as in .*hardneg.Towers" if pattern == "document" else "Parameters are called query_tower"
    options = TrainOptions(**SMALL, learning_rates=(f"{pattern}=1e-6",))
    with pytest.raises(UsageError, match=f"no parameter fits the pattern .*{there}"):
        hardneg.train(made_pairs(), model, tmp_path / "out", options, **QUIET)
    assert not (tmp_path / "out").exists()


def test_the_patterns_in_the_docs_fit_a_transformer(tiny_model: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    patterns = re.findall(r"--freeze '([^']+)'", text)
    patterns += [rate.rpartition("=")[0] for rate in re.findall(r"--learning-rate-of '([^']+)'", text)]
    assert len(patterns) >= 2
    for pattern in patterns:
        assert matching(Towers(loaded(tiny_model)), pattern)


def test_from_the_command_line(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"query": f"q {i} {i % 7}", "positive": f"answer {i} {i % 7}"} for i in range(32)]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", rows)
    done = run_here(
        "train", pairs, "--out", tmp_path / "out", "--encoder", f"st:{tiny_model}", "--batch-size", "8", "--negatives", "1",
        "--eval-split", "none", "--steps", "2", "--lora", "4", "--gradient-checkpointing", "--freeze", "*layer.0.output*",
        "--learning-rate-of", "*lora_B*=1e-3", "--device", "cpu", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    options = json.loads(done.stdout)["options"]
    assert options["learning_rate"] == 2e-4  # ten times that of a whole transformer
    assert options["freeze"] == ["*layer.0.output*"]
    assert loaded(tmp_path / "out" / "last").encode(["a"]).shape == (1, 16)
