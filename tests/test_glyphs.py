"""Glyphs: pictures of real fonts, the model that puts them and their names into one space, and what look-alikes are for it."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

import hardneg
from hardneg.demo_data.glyph_encoder import GlyphEncoder
from hardneg.demo_data.glyphs import FONTS, SIZE, bitmap, parse_glyph
from hardneg.errors import DataError, RunError, UsageError
from hardneg.evaluation.zero_shot import zero_shot
from hardneg.losses.variants import Variants
from tests.conftest import run_here


@pytest.fixture(scope="module")
def glyphs() -> dict[str, hardneg.Pairs]:
    return {
        split: hardneg.read_pairs("builtin:glyphs", hardneg.ReadOptions(split=split)) for split in ("train", "test")
    }


def test_pictures_are_of_the_characters() -> None:
    a = bitmap(ord("A"), "DejaVuSans")
    assert a.shape == (SIZE, SIZE)
    assert a.dtype == np.uint8
    assert a.max() > 200
    # Capital A of Latin, Greek and Cyrillic are one shape; a comma and an apostrophe differ by where they stand.
    assert (a == bitmap(0x391, "DejaVuSans")).all()
    assert (a == bitmap(0x410, "DejaVuSans")).all()
    comma, apostrophe = (np.flatnonzero(bitmap(ord(c), "DejaVuSans").any(1)).mean() for c in ",'")
    assert comma > apostrophe + 8
    assert (a != bitmap(ord("A"), "DejaVuSans-Bold")).any()
    assert not bitmap(ord(" "), "DejaVuSans").any()


def test_the_set(glyphs: dict[str, hardneg.Pairs]) -> None:
    train, test = glyphs["train"], glyphs["test"]
    assert len(train) > 4000
    assert 300 < len(test) < len(train) / 5
    assert not set(train.query_ids.to_pylist()) & set(test.query_ids.to_pylist())
    row = 40
    label = train.query_ids[row].as_py()
    assert train.queries.take(np.array([row])) == [unicodedata.name(chr(int(label[2:], 16)))]
    mine = train.documents.take(train.positives.take(np.array([row])).values)
    assert mine == [f"glyph:{label}/{font}" for font in FONTS]
    for pairs in glyphs.values():
        for text in pairs.documents.take(np.arange(0, len(pairs.document_ids), 97)):
            parsed = parse_glyph(text)
            assert parsed is not None
            assert bitmap(*parsed).any() or parsed[1] != FONTS[0]
    groups = train.document_groups
    assert groups is not None
    ids = {name: i for i, name in enumerate(train.document_ids.to_pylist())}
    both = [name for name in ("U+0041", "U+0391", "U+0410") if f"{name}/DejaVuSans" in ids]
    assert len({groups[ids[f"{name}/DejaVuSerif"]] for name in both}) == 1


def test_texts_that_name_no_picture() -> None:
    assert parse_glyph("LATIN SMALL LETTER A") is None
    assert parse_glyph("glyph:U+0041") is None
    assert parse_glyph("glyph:U+0041/DejaVuSans") == (0x41, "DejaVuSans")
    with pytest.raises(DataError, match="Did you mean 'DejaVuSans'"):
        parse_glyph("glyph:U+0041/DejaVuSan")
    with pytest.raises(DataError, match="the font has no such character"):
        bitmap(0x1F600, "DejaVuSansMono")
    with pytest.raises(DataError, match="no such picture"):
        parse_glyph("glyph:U+FFFFFF/DejaVuSans")


def test_the_model_encodes_both_and_is_saved(tmp_path: Path, glyphs: dict[str, hardneg.Pairs]) -> None:
    test = glyphs["test"]
    model = hardneg.make_encoder("glyphs", seed=1)
    assert isinstance(model, GlyphEncoder)
    model.fit(test.queries.slice(0, 50) + test.documents.slice(0, 50))
    texts = [test.queries.slice(0, 1)[0], *test.documents.slice(0, 2), "any other text"]
    vectors = model.encode(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for i, text in enumerate(texts):  # whatever it is encoded with
        np.testing.assert_allclose(model.encode([text])[0], vectors[i], atol=1e-5)
    model.save(tmp_path / "m")
    loaded = hardneg.make_encoder(f"glyphs:{tmp_path / 'm'}")
    np.testing.assert_array_equal(loaded.encode(texts), vectors)
    assert loaded.fingerprint() == model.fingerprint() != GlyphEncoder(seed=2).fingerprint()
    (tmp_path / "m" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(RunError, match=r"model\.safetensors is missing, damaged"):
        GlyphEncoder.load(tmp_path / "m")
    with pytest.raises(UsageError, match="no saved encoder"):
        GlyphEncoder.load(tmp_path / "nowhere")


def test_zero_shot_counts_by_hand(glyphs: dict[str, hardneg.Pairs]) -> None:
    test = glyphs["test"]
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((len(test), 8)).astype(np.float32)
    owner = np.empty(len(test.document_ids), np.int64)
    owner[test.positives.values] = test.positives.row_numbers()
    documents = queries[owner] + 0.6 * rng.standard_normal((len(owner), 8)).astype(np.float32)
    found = zero_shot(test, queries, documents)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, documents)]
    nearest = (unit[1] @ unit[0].T).argmax(1)
    assert found["zero-shot@1"] == pytest.approx((nearest == owner).mean())
    assert test.query_groups is not None
    alike = test.query_groups[nearest] == test.query_groups[owner]
    assert found["zero-shot-group@1"] == pytest.approx(alike.mean())
    assert 0.1 < found["zero-shot@1"] < 0.95


@pytest.mark.slow
def test_training_names_what_it_never_saw(tmp_path: Path, glyphs: dict[str, hardneg.Pairs]) -> None:
    """CLIP-style: a few steps, and pictures of unseen characters find their names far above chance."""
    train, test = glyphs["train"], glyphs["test"]
    options = hardneg.TrainOptions(
        steps=40, batch_size=128, negatives=0, temperature=0.07, learn_temperature=True, learning_rate=2e-3,
        variants=Variants(symmetric=True), filters=("group",), measures=("recall@10",), evaluate_every=40,
    )  # fmt: skip
    held = hardneg.EvaluationSet(test, zero_shot=True)
    result = hardneg.train(train, GlyphEncoder(), tmp_path / "out", options, evaluation=held, device="cpu")
    assert result["best"]["zero-shot@1"] > 10 / len(test)  # chance: 1 / len(test)
    assert result["best"]["zero-shot-group@1"] >= result["best"]["zero-shot@1"]
    assert not torch.isnan(torch.tensor(result["temperature"]))


def test_mining_pictures_finds_the_look_alikes(tmp_path: Path, glyphs: dict[str, hardneg.Pairs]) -> None:
    done = run_here(
        "mine",
        "builtin:glyphs",
        "--split",
        "test",
        "--encoder",
        "glyphs",
        "--filter",
        "group",
        "--out",
        tmp_path / "run",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["queries"] == len(glyphs["test"])
