"""Protocols of encoders: what an encoder must have, and what it may have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


@runtime_checkable
class Encoder(Protocol):
    """An encoder: any object that turns texts into vectors and has these three members."""

    @property
    def dimension(self) -> int:
        """d, the number of components of each vector."""
        ...

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> NDArray[np.float32]:
        """The vectors of n texts, float32 `[n, d]`. `prompt` is put before each text, or handled by the model."""
        ...

    def fingerprint(self) -> str:
        """A hash of the weights and of all else that the vectors depend on. It changes whenever the vectors do."""
        ...


@runtime_checkable
class Fittable(Protocol):
    """An encoder that must be fitted to a sample of the dataset's texts before it can encode."""

    def fit(self, texts: Sequence[str]) -> None:
        """Fit the encoder to a sample of queries and documents."""
        ...

    @property
    def fitted(self) -> bool:
        """Whether the encoder can encode already."""
        ...


@runtime_checkable
class Trainable(Encoder, Protocol):
    """An encoder that can be trained. It must also be a `torch.nn.Module`."""

    def vectors(self, texts: Sequence[str], *, prompt: str = "") -> torch.Tensor:
        """The vectors of n texts, float `[n, d]`, with gradients, on the device of the weights."""
        ...

    def save(self, folder: str | Path) -> None:
        """Write the encoder to a folder, from which a spec such as `hashed:FOLDER` or `st:FOLDER` can load it."""
        ...
