"""Encoders of texts and pictures, and what is trained, evaluated and mined with them on the digits of scikit-learn."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hardneg
from hardneg.data.picture import Picture
from hardneg.demo_data.digits import NAMES, captions_of, write_digits
from hardneg.errors import DataError
from tests.conftest import run_here


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), most=240)


def test_the_digits_are_those_of_scikit_learn(digits: Path) -> None:
    from sklearn.datasets import load_digits

    real: Any = load_digits()
    pairs = hardneg.read_pairs(digits)
    items = pairs.documents.take(np.arange(len(pairs.document_ids)))
    queries = pairs.queries.take(np.arange(len(pairs)))
    assert len(items) == 180
    captions = {int(d): queries[q] for q, d in zip(pairs.positives.row_numbers(), pairs.positives.values, strict=True)}
    for row, item in enumerate(items):
        assert isinstance(item, Picture)
        number = int(item.split(".")[0])
        assert np.abs(np.asarray(item.decode())[..., 0] / 255 * 16 - real.images[number]).max() < 0.05
        assert captions[row] in captions_of(int(real.target[number]))
    test = hardneg.read_pairs(digits, hardneg.ReadOptions(split="test", caption_template="a handwritten {}"))
    assert test.queries.take(np.arange(10)) == sorted(f"a handwritten {name}" for name in NAMES)
    assert not set(test.document_keys.tolist()) & set(pairs.document_keys.tolist())


def test_each_item_goes_through_its_tower(digits: Path, clip: Callable[[], Any], tmp_path: Path) -> None:
    encoder = clip()
    pairs = hardneg.read_pairs(digits)
    pictures, texts = pairs.documents.take(np.arange(5)), pairs.queries.take(np.arange(4))
    mixed = [pictures[0], texts[0], texts[1], pictures[1], pictures[2], texts[2], pictures[3], texts[3], pictures[4]]
    found = encoder.encode(mixed)
    theirs = encoder.model.encode([each.decode() for each in pictures])
    np.testing.assert_allclose(found[[0, 3, 4, 6, 8]], theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[[1, 2, 5, 7]], encoder.model.encode(texts), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(encoder.eval().vectors(mixed).numpy(), found, rtol=1e-4, atol=1e-5)
    before = encoder.fingerprint()
    encoder.save(tmp_path / "saved")
    again: Any = hardneg.make_encoder(f"st:{tmp_path / 'saved'}", device="cpu")
    assert again.fingerprint() == before
    again.model[0].processor.image_processor.image_mean = [0.1, 0.1, 0.1]  # pictures are prepared in another way
    assert again.fingerprint() != before
    assert not hardneg.make_encoder("hashed").__dict__.get("pictures")


def test_texts_that_look_like_pictures_stay_texts(clip: Callable[[], Any], tmp_path: Path) -> None:
    """A model of several kinds opens strings that look like paths, and fetches those that look like addresses."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    Image.new("RGB", (8, 8), "red").save(tmp_path / "secret.png")
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            texts = [
                str(tmp_path / "secret.png"),
                f"http://127.0.0.1:{server.server_port}/x.png",
                "data:image/png;base64,x",
            ]
            encoder = clip()
            found, gradients = encoder.encode(texts), encoder.vectors(texts)
        finally:
            server.shutdown()
            thread.join()
    assert asked == []
    assert gradients.shape == found.shape == (3, 16)
    (tmp_path / "secret.png").unlink()  # the vector is that of the text: the file does not matter
    np.testing.assert_array_equal(encoder.encode(texts), found)


def test_training_and_evaluation_from_the_command_line(digits: Path, small_clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "trained"
    args = ["--encoder", f"st:{small_clip}", "--device", "cpu", "--json"]
    given = [
        "--steps", "4", "--batch-size", "8", "--negatives", "2", "--refresh", "steps:2", "--filter", "group", "--symmetric",
        "--learning-rate", "0.001", "--eval-split", "test", "--zero-shot", "--caption-template", "a handwritten {}",
    ]  # fmt: skip
    done = run_here("train", digits, "--out", out, *args, *given)
    assert done.returncode == 0, done.stderr
    trained = json.loads(done.stdout)
    assert trained["finished"]
    assert [each["step"] for each in trained["generations"]] == [2]
    last = trained["evaluations"][-1]["zero-shot@1"]
    args[1] = f"st:{out / 'last'}"
    found = run_here(
        "evaluate", digits, "--split", "test", "--caption-template", "a handwritten {}", "--zero-shot", *args
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["means"]["zero-shot@1"] == pytest.approx(last, abs=1e-6)
    turned = run_here("mine", digits, "--out", tmp_path / "run", "--images", "queries", "--filter", "group", *args)
    assert turned.returncode == 0, turned.stderr
    run = hardneg.mining.Run(tmp_path / "run")
    pairs = run.pairs()
    groups, place = pairs.document_groups, {id: i for i, id in enumerate(pairs.document_ids.to_pylist())}
    assert groups is not None
    assert pairs.query_groups is not None
    for row, line in enumerate(run.negatives().to_pylist()):
        assert line["negative_ids"]
        assert all(groups[place[id]] != pairs.query_groups[row] for id in line["negative_ids"])


def test_a_picture_that_was_changed_stops_the_mining(digits: Path, clip: Callable[[], Any], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(digits, tmp_path / "digits")
    pairs = hardneg.read_pairs(tmp_path / "digits")
    (tmp_path / "digits" / "train" / "0001.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"0001\.png: 1 bytes in place of"):
        hardneg.mine(pairs, tmp_path / "run", encoder=clip())
