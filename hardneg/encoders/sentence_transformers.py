"""Use any sentence-transformers model as an encoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hardneg.encoders.factory import EncoderOptions, incomplete
from hardneg.encoders.saved import replaced_folder
from hardneg.errors import MissingDependencyError, UsageError


class SentenceTransformersEncoder(nn.Module):
    """A sentence-transformers model as an encoder that can be trained.

    Args:
        name: name or path of the model, as `SentenceTransformer` takes it, or a loaded model.
        device: device of the model; None lets sentence-transformers choose. Ignored for a loaded model.
        batch_size: texts per batch in `encode`.

    Raises:
        MissingDependencyError: sentence-transformers is not installed.
        UsageError: the model cannot be loaded.
    """

    def __init__(self, name: Any, device: str | None = None, batch_size: int = 32) -> None:
        super().__init__()
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise MissingDependencyError("sentence-transformers", "st", f"the encoder st:{name}") from None
        if isinstance(name, str):
            try:
                self.model = SentenceTransformer(name, device=device)
            except Exception as error:  # a damaged model fails in many ways, deep in other libraries
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise UsageError(
                    f"st:{name}: the model cannot be loaded ({reason}). Give the folder of a saved model, "
                    f"or a name that this machine can reach"
                ) from error
        else:
            self.model = name
        self.batch_size = batch_size
        self.fitted = True

    @property
    def dimension(self) -> int:
        """d, the number of components of each vector."""
        return int(self.model.get_embedding_dimension())

    @property
    def learning_rate(self) -> float:
        """The highest learning rate that suits the model: 2e-5 for a transformer, 0.2 for a table of static vectors.

        As in the training examples of sentence-transformers.
        """
        first = next(iter(self.model.children()), None)
        return 0.2 if type(first).__name__ == "StaticEmbedding" else 2e-5

    @property
    def prompts(self) -> dict[str, str]:
        """What the model itself puts before queries and documents, by side.

        Those of its prompts that are named so: `query`; `document`, `passage` or `corpus`, the first that is not empty; else its
        default prompt, if it has none of these names.
        """
        named = getattr(self.model, "prompts", None) or {}
        usual = named.get(getattr(self.model, "default_prompt_name", None) or "") or ""
        found = {}
        for side, names in (("query", ("query",)), ("document", ("document", "passage", "corpus"))):
            found[side] = next((named[name] for name in names if named.get(name)), usual)
        return found

    def vectors(self, texts: Sequence[str], *, prompt: str = "") -> torch.Tensor:
        """The vectors of n texts, `[n, d]`, as the model returns them, on its device, with gradients."""
        device = next(self.model.parameters()).device
        features = self.model.preprocess(list(texts), prompt=prompt)
        on_device = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in features.items()}
        out: torch.Tensor = self.model(on_device)["sentence_embedding"]
        return out

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> NDArray[np.float32]:
        """The vectors of n texts, float32 `[n, d]`, as the model returns them: normalized only if it does that."""
        vectors = self.model.encode(
            list(texts),
            prompt=prompt,  # also an empty one: None would be the model's default
            batch_size=self.batch_size,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, np.float32)

    def fingerprint(self) -> str:
        """A hash of all that the vectors depend on: weights, modules and their settings, tokenizer and default prompt.

        So a model with other pooling or another tokenizer is another one, whatever its weights. The name of the model is
        not part of it.
        """
        return model_digest(self.model, "sentence-transformers-2")

    def save(self, folder: str | Path) -> None:
        """Write the model in the format of sentence-transformers. The spec `st:FOLDER` loads it.

        A folder that is there already is replaced when the model is written.

        Raises:
            RunError: the folder cannot be written, for example because the disk is full.
        """
        with replaced_folder(folder) as new:
            self.model.save_pretrained(str(new))


def model_digest(model: Any, kind: str) -> str:
    """A hash of what a model of sentence-transformers computes: weights, modules and their settings, tokenizer and prompts.

    Args:
        model: a `SentenceTransformer` or a `CrossEncoder`.
        kind: what the hash is of; other kinds have other hashes.
    """
    digest = hashlib.sha256(kind.encode())
    digest.update(json.dumps(_settings(model), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
        digest.update(data.flatten().view(torch.uint8).numpy().tobytes())
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


def from_spec(name: Any, options: EncoderOptions) -> SentenceTransformersEncoder:
    """Make the encoder of the spec `st:NAME_OR_PATH`, or of a loaded model."""
    if name == "":
        raise incomplete("st:")
    return SentenceTransformersEncoder(name, device=options.device, batch_size=options.batch_size)
