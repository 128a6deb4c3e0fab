"""Tokens that are kept: the same tensors as the tokenizer makes, or it is asked each time."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hardneg
from hardneg import HashedEncoder, TrainOptions, train
from hardneg.encoders.kept_tokens import LIMIT, KeptTokens, keeping_tokens
from hardneg.encoders.sentence_transformers import SentenceTransformersEncoder

WORDS = [
    *["a", "river", "carries", "sand", "and", "stones", "down", "to", "the", "sea", "in", "layers", "over", "time"],
    "\u00e9",
    "\u4e2d\u6587",
    "\U0001f600",
]


def texts_of(generator: np.random.Generator, count: int, longest: int = 30) -> list[str]:
    return [" ".join(generator.choice(WORDS, generator.integers(0, longest))) for _ in range(count)]


class Padded:
    """A tokenizer by words, which fills rows up as it is told, and counts what it is asked."""

    def __init__(self, side: str = "right", multiple: int = 1, longest: int = 20, noise: bool = False) -> None:
        self.side, self.multiple, self.longest, self.noise = side, multiple, longest, noise
        self.asked = 0

    def __call__(self, texts: list[str]) -> dict[str, Any]:
        self.asked += len(texts)
        rows = [[1, *(3 + sum(map(ord, word)) % 1000 for word in text.split())][: self.longest] for text in texts]
        if self.noise:
            rows = [[token + int(torch.randint(2, ())) for token in row] for row in rows]
        width = -(-max(map(len, rows)) // self.multiple) * self.multiple
        made: dict[str, Any] = {"input_ids": [], "attention_mask": []}
        for row in rows:
            fill = [0] * (width - len(row))
            for name, value, beyond in (("input_ids", row, 2), ("attention_mask", [1] * len(row), 0)):
                added = [beyond] * len(fill)
                made[name].append([*value, *added] if self.side == "right" else [*added, *value])
        ids, mask = torch.tensor(made["input_ids"]), torch.tensor(made["attention_mask"])
        return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": mask, "modality": "text"}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return list(a) == list(b) and all(
        torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype if isinstance(a[n], torch.Tensor) else a[n] == b[n]
        for n in a
    )


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("first", [1, 8])
def test_the_same_tensors_in_any_mixture_of_known_and_new_texts(side: str, first: int) -> None:
    generator = np.random.default_rng(3)
    texts = [text or "empty" for text in texts_of(generator, 300)]
    right, asked, kept = Padded(side), Padded(side), KeptTokens()
    assert same(kept.features(texts[:first], "", asked), right(texts[:first]))
    for _ in range(60):
        some = [texts[i] for i in generator.integers(0, len(texts), generator.integers(1, 24))]
        assert same(kept.features(some, "", asked), right(some))
    assert kept.usable
    assert kept.hits > 200
    before = asked.asked
    for start in range(0, 300, 50):
        kept.features(texts[start : start + 50], "", asked)
    again = asked.asked
    assert again - before <= 300
    for start in range(0, 300, 50):
        assert same(kept.features(texts[start : start + 50], "", asked), right(texts[start : start + 50]))
    assert asked.asked == again


def test_the_prompt_and_the_length_are_part_of_the_key() -> None:
    kept = KeptTokens()
    for longest in (4, 20):
        tokenizer = Padded(longest=longest)
        for _ in range(2):
            assert same(
                kept.features(["a river carries sand and stones"], str(longest), tokenizer),
                tokenizer(["a river carries sand and stones"]),
            )


class WithPixels(Padded):
    """A tokenizer that gives more than tensors and plain values."""

    def __call__(self, texts: list[str]) -> dict[str, Any]:
        return {**super().__call__(texts), "pixels": [1]}


@pytest.mark.parametrize(
    "tokenizer", [WithPixels(), Padded(multiple=8), Padded(noise=True), lambda texts: {"values": torch.zeros(len(texts), 3)},
                  lambda texts: {"input_ids": torch.full((len(texts), 2), 0.5), "attention_mask": torch.ones(len(texts), 2)},],
)  # fmt: skip
def test_what_cannot_be_kept_is_made_each_time(tokenizer: Any) -> None:
    kept, texts = KeptTokens(), texts_of(np.random.default_rng(0), 64)
    for _ in range(12):
        found = kept.features(texts, "", tokenizer)
        assert set(found) == set(tokenizer(texts))
    assert not kept.usable
    if not getattr(tokenizer, "noise", False):
        assert same(kept.features(texts, "", tokenizer), tokenizer(texts))


def test_no_more_is_kept_than_the_limit() -> None:
    texts, tokenizer, kept = [f"text {i}" for i in range(100)], Padded(), KeptTokens(20 * 172)
    for _ in range(6):
        assert same(kept.features(texts, "", tokenizer), Padded()(texts))
    assert kept.bytes <= kept.limit
    assert kept.hits == 5 * 20
    tokenizer.asked = 0
    kept.features(texts, "", tokenizer)
    assert tokenizer.asked == 80


def test_copies_of_a_model_share_them_and_other_processes_begin_anew() -> None:
    encoder = HashedEncoder(16)
    with keeping_tokens(encoder, object()):
        encoder.encode(["a river", "the sea"])
        other = copy.deepcopy(encoder)
        other.encode(["the sea", "a river"])
        assert other.kept_tokens is encoder.kept_tokens
        assert encoder.kept_tokens is not None
        assert (encoder.kept_tokens.hits, encoder.kept_tokens.misses) == (2, 2)
        make, given = encoder.kept_tokens.__reduce__()
        assert make(*given).misses == 0
    assert encoder.kept_tokens is None


def test_threads_that_share_them() -> None:
    texts, kept, failed = texts_of(np.random.default_rng(1), 200), KeptTokens(), []
    encoder = HashedEncoder(8)
    expected = encoder.encode(texts)
    encoder.kept_tokens = kept

    def work(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(30):
            rows = generator.integers(0, len(texts), 16)
            if not np.array_equal(encoder.encode([texts[i] for i in rows]), expected[rows]):
                failed.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert kept.usable


@pytest.mark.parametrize("prompt", ["", "query: "])
def test_a_transformer_makes_the_same_vectors(prompt: str, tiny_model: Path) -> None:
    encoder = SentenceTransformersEncoder(str(tiny_model)).eval()  # without dropout
    texts = texts_of(np.random.default_rng(5), 700, 200)
    expected, with_gradients = encoder.encode(texts, prompt=prompt), encoder.vectors(texts[:9], prompt=prompt)
    with keeping_tokens(encoder):
        for _ in range(3):
            np.testing.assert_array_equal(encoder.encode(texts, prompt=prompt), expected)
            assert torch.equal(encoder.vectors(texts[:9], prompt=prompt), with_gradients)
        assert encoder.kept_tokens is not None
        assert encoder.kept_tokens.usable
        assert encoder.kept_tokens.misses < 720


def test_a_training_has_the_same_weights_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = texts_of(np.random.default_rng(2), 80)
    pairs = hardneg.Pairs.from_columns(
        [f"{i} {t}" for i, t in enumerate(texts)], [f"{i} {t} sand" for i, t in enumerate(texts)]
    )
    tables = []
    for name, limit in (("kept", 1 << 20), ("few", 2000), ("none", 0)):
        monkeypatch.setattr(
            "hardneg.training.train.keeping_tokens",
            lambda *encoders, limit=limit: keeping_tokens(*encoders, limit=limit),
        )
        encoder = HashedEncoder(16, dropout=0.1)
        train(
            pairs,
            encoder,
            tmp_path / name,
            TrainOptions(steps=12, batch_size=16, refresh="steps:4", wait=True, negatives=2, depth=10),
        )
        tables.append(encoder.table.weight.detach().numpy().copy())
        assert encoder.kept_tokens is None
    np.testing.assert_array_equal(tables[0], tables[1])
    np.testing.assert_array_equal(tables[0], tables[2])


def test_a_tokenizer_that_is_changed_is_asked_anew(tiny_model: Path) -> None:
    encoder = SentenceTransformersEncoder(str(tiny_model)).eval()
    text = " ".join(WORDS * 5)
    with keeping_tokens(encoder, encoder):  # both towers
        assert encoder.kept_tokens is not None
        assert encoder.kept_tokens.limit == LIMIT
        before = encoder.encode([text])
        encoder.model.tokenizer.truncation_side = "left"
        changed = encoder.encode([text])
    assert not np.array_equal(before, changed)
    np.testing.assert_array_equal(changed, encoder.encode([text]))
