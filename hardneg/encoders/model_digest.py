"""A hash of what a model of sentence-transformers computes, whatever it is called and wherever it comes from."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from hardneg.encoders.saved import add_weights


def model_digest(model: Any, kind: str) -> str:
    """A hash of what a model of sentence-transformers computes: weights, modules and their settings, tokenizer and prompts.

    Args:
        model: a `SentenceTransformer` or a `CrossEncoder`.
        kind: what the hash is of; other kinds have other hashes.
    """
    digest = hashlib.sha256(kind.encode())
    digest.update(json.dumps(_settings(model), sort_keys=True, default=str).encode())
    add_weights(digest, model.state_dict())
    return digest.hexdigest()


# Entries of configurations that say where a model comes from, or how it is run, and change no vector.
_VOLATILE = (
    "_name_or_path",
    "name_or_path",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "_attn_implementation_autoset",
)


def _settings(model: Any) -> dict[str, Any]:
    """Everything but the weights that the vectors of a sentence-transformers model depend on."""
    modules = []
    for name, module in model.named_children():
        own = getattr(module, "get_config_dict", None)
        inner = getattr(getattr(module, "auto_model", None), "config", None)
        modules.append(
            {
                "name": name,
                "type": type(module).__qualname__,
                "settings": _stable(own() if callable(own) else {}),
                "config": _stable(inner.to_dict() if inner is not None else {}),
                "tokenizer": _tokenizer(getattr(module, "tokenizer", None)),
                **_preparation(getattr(module, "processor", None)),
            }
        )
    prompts, default = getattr(model, "prompts", None) or {}, getattr(model, "default_prompt_name", None)
    return {
        "modules": modules,
        "max_seq_length": getattr(model, "max_seq_length", None),
        "truncate_dim": getattr(model, "truncate_dim", None),
        "prompts": prompts,
        "default_prompt": default,
    }


def _preparation(processor: Any) -> dict[str, Any]:
    """How a model of several kinds prepares pictures."""
    images = getattr(processor, "image_processor", None)
    return {} if images is None else {"images": _stable(images.to_dict())}


def _stable(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _VOLATILE}


def _tokenizer(tokenizer: Any) -> Any:
    """What a tokenizer does: a fast one describes itself, of another one the vocabulary and the special tokens are taken."""
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        described = json.loads(backend.to_str())
        # Every call sets these two anew; `max_seq_length` stands for them.
        described = {name: value for name, value in described.items() if name not in ("truncation", "padding")}
    else:
        vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
        described = {"type": type(tokenizer).__qualname__, "vocabulary": vocabulary}
    text = json.dumps(described, sort_keys=True, default=str)
    special = getattr(tokenizer, "special_tokens_map", {})
    sides = [getattr(tokenizer, name, None) for name in ("padding_side", "truncation_side", "do_lower_case")]
    return [hashlib.sha256(text.encode()).hexdigest(), {str(k): str(v) for k, v in special.items()}, sides]
