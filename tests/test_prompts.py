"""A model's own prompts for queries and documents are used by default, wherever the model encodes; "" switches them off."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import hardneg
from hardneg.encoders.base import prompt_of
from hardneg.encoders.sentence_transformers import SentenceTransformersEncoder
from hardneg.evaluation.retrieval import evaluate
from hardneg.training.towers import Towers

from .conftest import run_here
from .test_encoders import minilm

QUESTIONS = [f"what does part {i} of the engine do" for i in range(6)]
ANSWERS = [f"part {i} of the engine cools section {i * 3}" for i in range(6)]


class Listening:
    """An encoder that notes the prompts it was given."""

    dimension = 4
    prompts = {"query": "Q: ", "document": "D: "}  # noqa: RUF012

    def __init__(self) -> None:
        self.heard: list[str] = []

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> np.ndarray:
        self.heard.append(prompt)
        return np.stack([np.random.default_rng(len(prompt + t)).normal(size=4) for t in texts]).astype(np.float32)

    def fingerprint(self) -> str:
        return "listening"


@pytest.mark.parametrize(
    ("given", "heard"), [(None, {"Q: ", "D: "}), ("", {""}), ("find: ", {"find: "})], ids=["own", "none", "other"]
)
def test_mining_and_evaluation(tmp_path: Path, given: str | None, heard: set[str]) -> None:
    pairs = hardneg.Pairs.from_columns(QUESTIONS, ANSWERS)
    encoder = Listening()
    options = hardneg.MineOptions(negatives=1, query_prompt=given, document_prompt=given)
    hardneg.mine(pairs, tmp_path / "run", options, encoder=encoder)
    assert set(encoder.heard) == heard
    encoder.heard.clear()
    evaluate(pairs, encoder, ("ndcg@10",), query_prompt=given, document_prompt=given)
    assert set(encoder.heard) == heard


def test_a_sentence_transformers_model_uses_what_it_says_itself(tmp_path: Path) -> None:
    """Also after it was saved and loaded by its path."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(minilm(), device="cpu", prompts={"query": "query: ", "passage": "passage: "})
    encoder = SentenceTransformersEncoder(model)
    assert encoder.prompts == {"query": "query: ", "document": "passage: "}
    encoder.save(tmp_path / "model")
    loaded = hardneg.make_encoder(f"st:{tmp_path / 'model'}")
    towers = Towers(loaded)
    assert towers.prompts == encoder.prompts
    assert np.array_equal(model.encode_query(QUESTIONS), model.encode(QUESTIONS, prompt="query: "))
    for side, prompt in (("query", "query: "), ("document", "passage: ")):
        expected = model.encode(QUESTIONS, prompt=prompt)
        np.testing.assert_allclose(loaded.encode(QUESTIONS, prompt=prompt_of(loaded, side, None)), expected, atol=1e-6)
        np.testing.assert_allclose(towers.encode(QUESTIONS, side), expected, atol=1e-6)
        towers.eval()
        np.testing.assert_allclose(towers(QUESTIONS, side).detach().numpy(), expected, atol=1e-5)
    source = tmp_path / "pairs.csv"
    source.write_text("query,positive\n" + "".join(f"{q},{a}\n" for q, a in zip(QUESTIONS, ANSWERS, strict=True)))
    command = [
        "mine",
        str(source),
        "--encoder",
        f"st:{tmp_path / 'model'}",
        "--negatives",
        "1",
        "--precision",
        "float32",
    ]
    vectors = []
    for name, more in (
        ("a", []),
        ("b", ["--query-prompt", "query: ", "--document-prompt", "passage: "]),
        ("c", ["--query-prompt", ""]),
    ):
        done = run_here(*command, "--out", tmp_path / name, *more)
        assert done.returncode == 0, done.stderr
        vectors.append(np.load(next((tmp_path / name / "embeddings").glob("queries-*/vectors.npy"))))
    assert np.array_equal(vectors[0], vectors[1])
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-3
    np.testing.assert_allclose(vectors[2], model.encode(QUESTIONS, prompt=""), atol=1e-6)


def test_a_default_prompt_of_the_model_can_be_switched_off() -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(minilm(), device="cpu", prompts={"any": "any: "}, default_prompt_name="any")
    encoder = SentenceTransformersEncoder(model)
    own = encoder.prompts
    assert own == {"query": "any: ", "document": "any: "}
    np.testing.assert_allclose(encoder.encode(QUESTIONS, prompt=own["query"]), model.encode(QUESTIONS), atol=1e-6)
    plain = SentenceTransformer(minilm(), device="cpu").encode(QUESTIONS)
    np.testing.assert_allclose(encoder.encode(QUESTIONS, prompt=""), plain, atol=1e-6)


def test_another_prompt_is_another_run(tmp_path: Path) -> None:
    """Also none where the model has one of its own, and also when a finished run is resumed."""
    pairs = hardneg.Pairs.from_columns(QUESTIONS, ANSWERS)
    hardneg.mine(pairs, tmp_path / "run", hardneg.MineOptions(negatives=1), encoder=Listening())
    for prompt in ("", "x: "):
        options = hardneg.MineOptions(negatives=1, query_prompt=prompt)
        with pytest.raises(hardneg.RunError, match="other options"):
            hardneg.mine(pairs, tmp_path / "run", options, encoder=Listening(), resume=True)
    changed = Listening()
    changed.prompts = {"query": "other: ", "document": "D: "}  # the model's own configuration was edited
    with pytest.raises(hardneg.RunError, match="query_vectors"):
        hardneg.mine(pairs, tmp_path / "run", hardneg.MineOptions(negatives=1), encoder=changed, resume=True)
