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

    def vectors(self, texts: Sequence[str], *, prompt: str = "") -> torch.Tensor:
        """The vectors of n texts, `[n, d]`, as the model returns them, on its device, with gradients."""
        device = next(self.model.parameters()).device
        features = self.model.preprocess(list(texts), prompt=prompt or None)
        on_device = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in features.items()}
        out: torch.Tensor = self.model(on_device)["sentence_embedding"]
        return out

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> NDArray[np.float32]:
        """The vectors of n texts, float32 `[n, d]`, as the model returns them: normalized only if it does that."""
        vectors = self.model.encode(
            list(texts),
            prompt=prompt or None,
            batch_size=self.batch_size,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, np.float32)

    def fingerprint(self) -> str:
        """A hash of all weights and buffers, of the names and types of the modules, and of the maximum sequence length.

        The name of the model is not part of it.
        """
        digest = hashlib.sha256(b"sentence-transformers-1")
        modules = [(name, type(module).__name__) for name, module in self.model.named_children()]
        digest.update(json.dumps([modules, self.model.max_seq_length], default=str).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            data = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
            digest.update(data.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write the model in the format of sentence-transformers. The spec `st:FOLDER` loads it.

        A folder that is there already is replaced when the model is written.

        Raises:
            RunError: the folder cannot be written, for example because the disk is full.
        """
        with replaced_folder(folder) as new:
            self.model.save_pretrained(str(new))


def from_spec(name: str, options: EncoderOptions) -> SentenceTransformersEncoder:
    """Make the encoder of the spec `st:NAME_OR_PATH`."""
    if not name:
        raise incomplete("st:")
    return SentenceTransformersEncoder(name, device=options.device, batch_size=options.batch_size)
