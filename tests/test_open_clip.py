"""The encoder open_clip:, with the real package where it is installed (it is not part of the development tools)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hardneg
from hardneg.demo_data.digits import write_digits
from hardneg.errors import MissingDependencyError, UsageError

NO_OPEN_CLIP = (
    "no open_clip: pip install 'hardneg[open-clip]', with a torchvision that was built with the torch there is"
)

_declared: list[torch.library.Library] = []  # what is declared lasts as long as the object

CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small architecture, without weights."""
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip(NO_OPEN_CLIP)
    if torch.version.cuda is None and not hasattr(torch.ops.torchvision, "nms"):
        # A torchvision for GPUs cannot load its operators beside a torch for the CPU. Its transforms are Python and need none:
        # with the two operators declared that it describes when it is imported, they can be used.
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
    folder = tmp_path_factory.mktemp("open_clip") / "model"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), most=240)


def test_it_encodes_trains_and_is_saved(model: Path, digits: Path, tmp_path: Path) -> None:
    encoder: Any = hardneg.make_encoder(f"open_clip:{model},pretrained=none", seed=3, device="cpu")
    assert (encoder.dimension, encoder.pictures, encoder.learning_rate) == (16, True, 5e-4)
    assert hardneg.make_encoder(f"open_clip:{model},pretrained=none", seed=3).fingerprint() == encoder.fingerprint()
    assert hardneg.make_encoder(f"open_clip:{model},pretrained=none", seed=4).fingerprint() != encoder.fingerprint()
    pairs = hardneg.read_pairs(digits)
    items = [*pairs.documents.take(np.arange(40)), *pairs.queries.take(np.arange(3))]
    whole = encoder.encode(items)
    # The tower, the batch and the neighbors of an item do not change its vector, on a CPU.
    assert np.array_equal(whole[:40], encoder.encode(items[:40]))
    assert np.array_equal(whole[40:], encoder.encode(items[40:]))
    encoder.batch_size = 7
    assert np.array_equal(whole, encoder.encode(items))
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, rtol=1e-5)
    with torch.no_grad():
        pixels = torch.stack([encoder.preprocess(items[i].decode()) for i in range(2)])
        theirs = torch.nn.functional.normalize(encoder.model.eval().encode_image(pixels), dim=1)
    np.testing.assert_allclose(whole[:2], theirs.numpy(), atol=1e-6)
    options = hardneg.TrainOptions(
        steps=4, batch_size=8, negatives=2, refresh="steps:2", filters=("group",), learning_rate=1e-3
    )
    hardneg.train(pairs, encoder, tmp_path / "trained", options, device="cpu", warn=lambda text: None)
    again: Any = hardneg.make_encoder(f"open_clip:{tmp_path / 'trained' / 'last'}", device="cpu")
    assert again.fingerprint() == encoder.fingerprint()
    assert np.array_equal(again.encode(items), encoder.encode(items))
    assert not np.array_equal(encoder.encode(items), whole)
    run = hardneg.mine(digits, tmp_path / "run", encoder=again, filters=("group",), negatives=3)
    assert run.info["counts"]["negatives"] == {"3": len(pairs)}


def test_what_cannot_be_loaded(model: Path, tmp_path: Path) -> None:
    for spec, message in (
        ("open_clip:", "is incomplete: write open_clip:MODEL,pretrained="),
        ("open_clip:ViT-B-32,openai", "is incomplete"),
        ("open_clip:ViT-B-32", r"needs pretrained=, one of its tags \(.*openai"),
        ("open_clip:ViT-B-32,pretrained=nope", "'nope' is neither"),
        ("open_clip:no-such-model,pretrained=none", "cannot be loaded"),
        (f"open_clip:{model}", "the folder has no weights"),
    ):
        with pytest.raises(UsageError, match=message):
            hardneg.make_encoder(spec)
    torch.save({}, tmp_path / "weights.pt")
    with pytest.raises(UsageError, match=r"from .safetensors only, because other files may run code"):
        hardneg.make_encoder(f"open_clip:ViT-B-32,pretrained={tmp_path / 'weights.pt'}")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(MissingDependencyError, match=r"hardneg\[open-clip\]"):
        hardneg.make_encoder("open_clip:ViT-B-32,pretrained=openai")
